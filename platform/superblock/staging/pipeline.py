"""One stage from its parent to its promotion, and several of them in order.

Each stage is looked up before anything is done, so that a pipeline that was killed goes on where it was, and one that is
complete has nothing to do:

    promoted with this configuration       kept as it is
    interrupted                            continued from its newest checkpoint
    finished, but not promoted             its gates are measured again
    anything else                          trained, then its gates are measured

A configuration is the same where `config.run.fingerprint` is: the settings that decide what is trained, its seed, and the
run it grows from. So a stage is trained anew once its parent is another run. One stage alone is always trained, unless
`resume` says otherwise.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from rich.console import Console

from superblock.config.budget import Budget
from superblock.config.fields import ConfigError
from superblock.config.run import RunConfig, fingerprint
from superblock.planning.prediction import Prediction, predict
from superblock.staging import screen
from superblock.staging.parents import Resolved, resolve_parent
from superblock.staging.promotion import Promoted, find_promoted, promote, refuse
from superblock.staging.screen import Board, Row
from superblock.staging.statements import Statements, evaluate, render
from superblock.tracking.runs import RunRecord, find_run, list_runs
from superblock.training.loop import train
from superblock.training.manifest import newest_whole
from superblock.training.starting import refuse_other_configuration, resume_command

Say = Callable[[str], None]
Compose = Callable[[Sequence[str]], RunConfig]
REFUSED = 3
"""Exit status where a gate failed."""


@dataclass(frozen=True)
class Surroundings:
    """What the stages of one command share."""

    compose: Compose
    say: Say
    board: Board
    pipeline: str
    """Tag that holds the runs of one pipeline together."""
    continue_with: str | None = None
    """Command that continues it, for messages; None is the run's own."""


def run_stages(configs: Sequence[RunConfig], *, compose: Compose, say: Say, continue_with: str | None = None) -> int:
    """Runs stages in the order of their depth, each from its promoted parent, up to the first whose gate fails.

    Args:
        configs: one per stage, alike in all other settings; one alone is a pipeline of one.
        compose: the configuration of `run` with the given overrides.
        say: shows a line.
        continue_with: command line that goes on with all of them.

    Returns:
        Exit status: 0, or 3 where a gate failed.

    Raises:
        ConfigError: for settings that cannot work.
        SystemExit: after Ctrl-C or SIGTERM, when a checkpoint has been written.
    """
    ordered = sorted(configs, key=lambda config: config.stage.superblocks)
    board = Board([Row(c.stage.name, c.stage.superblocks, _minutes(c)) for c in ordered], Console())
    shared = Surroundings(compose, say, board, pipeline_name(ordered), continue_with)
    for config in ordered:
        if not run_stage(config, shared):
            return REFUSED
    if len(ordered) > 1:
        kept = all(row.state == screen.KEPT for row in board.rows.values())
        if kept:
            board.show()
        say("every stage is already promoted: nothing to do" if kept else "every stage is promoted")
    return 0


def run_stage(config: RunConfig, shared: Surroundings) -> bool:
    """Brings one stage to its promotion; False where a gate failed."""
    say, board, stage = shared.say, shared.board, config.stage.name
    resolved = resolve_parent(config, say)
    config = resolved.config
    row = board.rows[stage]
    row.parent = None if config.parent == "none" else config.parent
    together = len(board.rows) > 1
    wanted = wants_promotion(config, together=together)
    found = _found(config) if together or config.resume != "none" else None
    if wanted and together and (kept := _promoted(config)) is not None:
        if (record := find_run(kept.run)) is not None:
            _fill(row, record)
        row.state, row.note = screen.KEPT, kept.number
        say(f"{stage} is already promoted: {kept.describe()}")
        return True
    if found is not None and found.status == "FINISHED":
        if (checkpoint := newest_whole(found.folder)[0]) is not None:
            refuse_other_configuration(config, found, checkpoint)
        say(f"{found.name} has finished{'; its gates are measured again' if wanted else ': nothing to do'}")
        record = found
    else:
        _begin(board, stage)
        record = _train(_continuing(config, found), resolved, shared)
    if record is None:  # ranks above 0
        return True
    _fill(row, record)
    if not wanted:
        _end(board, stage, screen.DONE)
        return True
    return _judge(record, config, shared)


def wants_promotion(config: RunConfig, *, together: bool = False) -> bool:
    """Whether the gates of a run's stage are measured after its training.

    By default that is so where the run is what the stage describes (its own budget, the superblock, a test at the end), or
    one of several that build on each other.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or not config.stage.gates:
        return False
    if config.promote is None and not together:
        own = config.stage.budget.get(config.scale.name)
        same = own is not None and Budget.parse(own) == Budget.parse(config.trainer.budget or "")
        return same and config.evaluation.test and config.model.family == "superblock"
    return config.promote is not False


def pipeline_name(configs: Sequence[RunConfig]) -> str:
    """The same for the same stages, settings and seed, so that a continued pipeline keeps its name."""
    prints = [fingerprint(replace(config, parent="auto")) for config in configs]
    digest = hashlib.sha256(" ".join(prints).encode()).hexdigest()[:8]
    return f"{configs[0].scale.name}-s{configs[0].seed}-{digest}"


# -- parts --------------------------------------------------------------------------------------------------------


def _train(config: RunConfig, resolved: Resolved, shared: Surroundings) -> RunRecord | None:
    """Trains one run; its record, or None on ranks above 0."""
    prediction: Prediction | None = predict(config, list_runs(), parent=resolved.parent_record)
    row = shared.board.rows[config.stage.name]
    if prediction is not None:
        shared.say(f"predict {prediction.words}")
        row.minutes = prediction.minutes_in_all.value
    try:
        summary = train(
            config,
            tags={"pipeline": shared.pipeline},
            prediction=prediction.to_dict() if prediction else None,
            watcher=shared.board if len(shared.board.rows) > 1 else None,
            continue_with=shared.continue_with,
        )
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        _end(shared.board, config.stage.name, screen.STOPPED if stopped else screen.FAILED)
        raise
    return None if summary is None else find_run(summary.name)


def _judge(record: RunRecord, config: RunConfig, shared: Surroundings) -> bool:
    """Measures the gates of a finished run, and promotes or refuses it."""
    board, say, stage = shared.board, shared.say, config.stage.name
    board.rows[stage].state = screen.CHECKING
    say(f"gates   of {stage}")
    statements = evaluate(record, config, compose=shared.compose, say=say)
    render(statements, board.console)
    if statements.passed:
        promoted = promote(record, statements, config, say=say)
        _end(board, stage, screen.PROMOTED, promoted.number)
        return True
    refuse(record, statements, config, say=say)
    _end(board, stage, screen.FAILED, "; ".join(one.name for one in statements.failures))
    say(_refusal(statements, stage, shared.continue_with or resume_command(record.name)))
    return False


def _refusal(statements: Statements, stage: str, again: str) -> str:
    lines = [f"{stage} is not promoted, and what follows it was not begun:"]
    for one in statements.failures:
        lines += [f"  gate {one.name}: measured {one.measured}; must be {one.asked}", f"    {one.because}"]
    lines.append(f"the run is kept; to measure its gates again, without training:\n  {again}")
    return "\n".join(lines)


def _found(config: RunConfig) -> RunRecord | None:
    """The run that this configuration means to go on with: the named one, or the newest that would train the same."""
    if config.resume not in ("none", "auto"):
        return find_run(config.resume)
    runs = list_runs(fingerprint=fingerprint(config))
    return next((run for run in runs if run.status == "FINISHED"), None) or next(
        (run for run in runs if run.resumable), None
    )


def _continuing(config: RunConfig, found: RunRecord | None) -> RunConfig:
    """With `resume` naming an interrupted run, if there is one and the run was not given a name of its own."""
    if found is None or config.resume != "none" or config.name is not None:
        return config
    return replace(config, resume=found.name)


def _promoted(config: RunConfig) -> Promoted | None:
    """The promoted model of exactly this configuration."""
    if config.resume not in ("none", "auto"):
        return None
    promoted = find_promoted(config.stage.name, config, seed=config.seed)
    return promoted if promoted is not None and promoted.fingerprint == fingerprint(config) else None


def _begin(board: Board, stage: str) -> None:
    if len(board.rows) > 1:
        board.begin(stage)
    else:
        board.rows[stage].state = screen.RUNNING


def _end(board: Board, stage: str, state: str, note: str = "") -> None:
    if len(board.rows) > 1:
        board.end(stage, state, note)


def _fill(row: Row, record: RunRecord) -> None:
    summary = record.summary
    row.bits_per_byte = summary.get("splits", {}).get("test", {}).get("bits_per_byte")
    row.lineage_flops = summary.get("lineage_flops")


def _minutes(config: RunConfig) -> float | None:
    """Expected of a stage before any prediction: its budget, where that is a time, and a quarter for what surrounds it."""
    if config.trainer.budget is None:
        raise ConfigError(f"trainer.budget: stage {config.stage.name} has no budget at scale={config.scale.name}")
    budget = Budget.parse(config.trainer.budget)
    return budget.amount * 1.25 if budget.unit == "minutes" else None
