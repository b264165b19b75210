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
from contextlib import suppress
from dataclasses import dataclass, replace

from superblock.config.budget import Budget
from superblock.config.fields import ConfigError, restore
from superblock.config.run import RunConfig, fingerprint
from superblock.config.typed import typed
from superblock.data.corpus import prepare
from superblock.evaluation.summary import wide_console
from superblock.planning.prediction import Prediction, predict
from superblock.staging import screen
from superblock.staging.lookup import named_finished_run, promoted_model, run_to_go_on_with
from superblock.staging.parents import Resolved, resolve_parent
from superblock.staging.promotion import Promoted, promote, refuse
from superblock.staging.screen import Board, Row
from superblock.staging.statements import FILE as STATEMENTS
from superblock.staging.statements import Statements, evaluate, render
from superblock.tracking.runs import RunRecord, find_run, list_runs
from superblock.training.loop import train
from superblock.training.manifest import load_config, newest_whole
from superblock.training.promoted import PROMOTION_FILE

Say = Callable[[str], None]
Compose = Callable[[Sequence[str]], RunConfig]
DECIDED = (STATEMENTS, PROMOTION_FILE)
"""In the folder of a run whose gates were measured before."""
REFUSED = 3
"""Exit status where a gate failed."""


@dataclass(frozen=True)
class Result:
    """How a stage ended: whether the next may begin, and what it was promoted as."""

    went_well: bool
    promoted: Promoted | None = None


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

    @property
    def together(self) -> bool:
        """Whether there are several, which build on each other."""
        return len(self.board.rows) > 1


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
    board = Board([Row(c.stage.name, c.stage.superblocks, _minutes(c)) for c in ordered], wide_console())
    shared = Surroundings(compose, say, board, pipeline_name(ordered), continue_with)
    before: Promoted | None = None
    for config in ordered:
        result = run_stage(config, shared, before)
        if not result.went_well:
            return REFUSED
        before = result.promoted
    if shared.together:
        states = {row.state for row in board.rows.values()}
        if states == {screen.KEPT}:
            board.show()
            say("every stage is already promoted: nothing to do")
        elif states <= {screen.KEPT, screen.PROMOTED}:
            say("every stage is promoted")
    return 0


def run_stage(config: RunConfig, shared: Surroundings, before: Promoted | None = None) -> Result:
    """Brings one stage to its promotion.

    Args:
        before: what the stage before it was promoted as in this pipeline.

    Raises:
        ConfigError: for settings that cannot work, or if the stage is being trained by another command.
    """
    say, stage = shared.say, config.stage.name
    if (finished := named_finished_run(config)) is not None:
        return _again(config, finished, shared)
    own = before if before is not None and before.stage == config.stage.parent else None
    resolved = resolve_parent(config, say, before=own, together=shared.together)
    config = resolved.config
    row = shared.board.rows[stage]
    row.parent = None if config.parent == "none" else config.parent
    wanted = wants_promotion(config, together=shared.together)
    if wanted and not config.evaluation.test:
        raise ConfigError(
            "evaluation.test=false: the gates of a stage need its test; leave it out, or add promote=false"
        )
    digest = prepare(config.data, report=say).digest if shared.together else None
    if wanted and digest is not None and (kept := _kept(config, digest, shared)) is not None:
        return Result(True, kept)
    found = run_to_go_on_with(config, digest)
    if wanted and found is not None and found.status == "FINISHED":
        say(f"{found.name} has finished; its gates are measured again")
        done: RunRecord | None = found
    else:
        _begin(shared, stage)
        done = _train(_continuing(config, found), resolved, shared)
    if done is None:  # it was over before, or this is a rank above 0
        _end(shared, stage, screen.DONE)
        return Result(True)
    _fill(row, done)
    if not wanted:
        _end(shared, stage, screen.DONE)
        return Result(True)
    return _judge(done, config, shared)


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
    prints = [fingerprint(replace(config, parent="required")) for config in configs]  # how it grows counts too
    digest = hashlib.sha256(" ".join(prints).encode()).hexdigest()[:8]
    return f"{configs[0].scale.name}-s{configs[0].seed}-{digest}"


# -- parts --------------------------------------------------------------------------------------------------------


def _kept(config: RunConfig, digest: str, shared: Surroundings) -> Promoted | None:
    """The stage's model, if it is promoted already; then it is said and shown."""
    if (promoted := promoted_model(config, digest)) is None:
        return None
    row = shared.board.rows[config.stage.name]
    if (record := find_run(promoted.run)) is not None:
        _fill(row, record)
    row.state, row.note = screen.KEPT, promoted.number
    shared.say(f"{config.stage.name} is already promoted: {promoted.describe()}")
    return promoted


def _train(config: RunConfig, resolved: Resolved, shared: Surroundings) -> RunRecord | None:
    """Trains one run; its record, or None on ranks above 0."""
    prediction = predict(config, list_runs(), parent=resolved.parent_record)
    row = shared.board.rows[config.stage.name]
    if isinstance(prediction, Prediction):
        shared.say(f"predict {prediction.words}")
        row.minutes = prediction.minutes_in_all.value
    else:
        shared.say(f"predict nothing: {prediction}")
    try:
        summary = train(
            config,
            tags={"pipeline": shared.pipeline},
            prediction=prediction.to_dict() if isinstance(prediction, Prediction) else None,
            watcher=shared.board if shared.together else None,
            continue_with=shared.continue_with,
        )
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        _end(shared, config.stage.name, screen.STOPPED if stopped else screen.FAILED)
        raise
    return None if summary is None else find_run(summary.name)


def _again(config: RunConfig, record: RunRecord, shared: Surroundings) -> Result:
    """Measures the gates of a finished run that `resume` names, as its own configuration says, with today's bounds."""
    checkpoint, _ = newest_whole(record.folder)
    if checkpoint is None:
        raise ConfigError(f"resume={record.name}: has no whole checkpoint, so nothing can be measured on it")
    own: RunConfig = restore(RunConfig, load_config(checkpoint), "config")
    if not (config.promote or wants_promotion(own) or any((record.folder / name).is_file() for name in DECIDED)):
        shared.say(f"{record.name} has finished: nothing to do; promote=true measures its stage's gates")
        return Result(True)
    if own.stage.name == config.stage.name:
        own.stage = config.stage
    else:
        with suppress(Exception):  # the stage's file may be gone since: then its bounds are those of the training
            own.stage = shared.compose([f"stage={own.stage.name}", "trainer.budget=1steps"]).stage
    shared.say(f"{record.name} has finished; its gates are measured again")
    shared.board.rows = {own.stage.name: Row(own.stage.name, own.stage.superblocks, None)}
    _fill(shared.board.rows[own.stage.name], record)
    return _judge(record, own, shared)


def _judge(record: RunRecord, config: RunConfig, shared: Surroundings) -> Result:
    """Measures the gates of a finished run, and promotes or refuses it."""
    board, say, stage = shared.board, shared.say, config.stage.name
    board.rows[stage].state = screen.CHECKING
    say(f"gates   of {stage}")
    statements = evaluate(record, config, compose=shared.compose, say=say)
    render(statements, board.console)
    if statements.passed:
        promoted = promote(record, statements, config, say=say)
        _end(shared, stage, screen.PROMOTED, promoted.number)
        return Result(True, promoted)
    refuse(record, statements, config, say=say)
    _end(shared, stage, screen.FAILED, "; ".join(one.name for one in statements.failures))
    say(_refusal(statements, record, shared.continue_with))
    return Result(False)


def _refusal(statements: Statements, record: RunRecord, pipeline: str | None) -> str:
    rest = ", and what follows it was not begun" if pipeline else ""
    lines = [f"{record.stage} is not promoted{rest}:"]
    for one in statements.failures:
        lines += [f"  gate {one.name}: measured {one.measured}; must be {one.asked}", f"    {one.because}"]
    again = pipeline or typed(f"run resume={record.name}")
    lines.append(f"the run is kept; to measure its gates again, without training:\n  {again}")
    if pipeline:
        lines.append(
            f"to train the stage anew: remove {record.folder}, or change a setting such as seed or trainer.budget"
        )
    return "\n".join(lines)


def _continuing(config: RunConfig, found: RunRecord | None) -> RunConfig:
    """With `resume` naming an interrupted run, if there is one."""
    return config if found is None or config.resume not in ("none", "auto") else replace(config, resume=found.name)


def _begin(shared: Surroundings, stage: str) -> None:
    if shared.together:
        shared.board.begin(stage)
    else:
        shared.board.rows[stage].state = screen.RUNNING


def _end(shared: Surroundings, stage: str, state: str, note: str = "") -> None:
    if shared.together:
        shared.board.end(stage, state, note)


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
