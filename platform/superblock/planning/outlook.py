"""What `plan` says about a stage's training from the runs that are finished here: a prediction, and how earlier ones fared."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from superblock.config.run import PlanConfig
from superblock.config.typed import typed
from superblock.evaluation.summary import FORESEEN
from superblock.models.formulas import Counts
from superblock.planning.finished import Finished, read_finished
from superblock.planning.plan import new_table, short, si, size
from superblock.planning.prediction import Estimate, Prediction, afterwards, foresee, plan_target
from superblock.tracking.files import read_json
from superblock.tracking.runs import RunRecord, list_runs, runs_root
from superblock.training.promoted import PROMOTION_FILE


def outlook(config: PlanConfig, counts: Counts) -> Iterator[Table | str]:
    """Tables and lines, in the order to be printed; nothing for a stage that has no budget at this scale."""
    if config.stage.budget.get(config.scale.name) is None:
        return
    records = [run for run in list_runs(scale=config.scale.name) if run.status == "FINISHED"]
    runs = read_finished(records)
    parent = _promoted(config.stage.parent, records, runs)
    threads = runs[-1].machine.get("threads") if runs else None  # `plan` has no such key: as in the newest run
    found = foresee(plan_target(config, counts, parent, int(threads) if threads else None), runs)
    if isinstance(found, str):
        yield f"Prediction: {found} in {runs_root().resolve()}; {_first_command(config)} makes one."
        return
    yield predicted(config, found)
    begin = f"Growing from {parent.name}" if parent else "From scratch"
    yield f"{begin}: {found.words}."
    rows = list(_history(records, runs))
    if rows:
        yield compared(rows)
    if any(later for _, _, _, later in rows):
        yield "after: computed now from the runs that were over when this one began; the others were stored before training."


def predicted(config: PlanConfig, found: Prediction) -> Table:
    """One row per quantity, with its interval."""
    table = new_table("prediction", "expected", f"{found.confidence:.0%} interval", left=1)
    budget = config.stage.budget[config.scale.name]
    rows: list[tuple[str, Estimate, Any]] = [
        ("test, bits per byte", found.bits_per_byte, lambda v: f"{v:.3f}"),
        (f"training, budget {budget}", found.minutes, lambda v: f"{v:.1f} min"),
        ("all of it: start, evaluation", found.minutes_in_all, lambda v: f"{v:.1f} min"),
        ("optimizer steps", found.steps, lambda v: f"{v:,.0f}"),
        ("tokens", found.tokens, short),
        ("peak memory", found.memory_bytes, size),
        ("FLOPs of this training", found.flops, lambda v: si(v, "FLOP")),
        ("FLOPs of its whole lineage", found.lineage_flops, lambda v: si(v, "FLOP")),
    ]
    price = config.price_per_hour
    if price is not None:
        rows.append((f"cost at {price:g} an hour", found.minutes_in_all, lambda v: f"{v / 60 * price:,.2f}"))
    for label, estimate, show in rows:
        exact = estimate.low == estimate.high
        table.add_row(
            label, show(estimate.value), "exact" if exact else f"{show(estimate.low)} to {show(estimate.high)}"
        )
    return table


def compared(rows: Sequence[tuple[Finished, Mapping[str, Any], Mapping[str, float], bool]]) -> Table:
    """Predicted beside measured, for runs that are finished."""
    table = new_table("finished", "quantity", "predicted", "interval", "measured", "", left=2)
    for run, known, came, later in rows:
        first = f"{run.stage}, after" if later else run.stage
        for name, value in came.items():
            title, unit, digits = FORESEEN[name]
            estimate = Estimate(**known[name])
            cells = (f"{v / unit:.{digits}f}" for v in (estimate.value, estimate.low, estimate.high, value))
            middle, low, high, measured = cells
            inside = estimate.contains(value)
            verdict = Text("inside" if inside else "outside", style="green" if inside else "")
            table.add_row(first, title, middle, f"{low} to {high}", measured, verdict)
            first = ""
    return table


def _history(
    records: Sequence[RunRecord], runs: Sequence[Finished]
) -> Iterator[tuple[Finished, Mapping[str, Any], Mapping[str, float], bool]]:
    """The newest finished run of each stage, what was predicted of it, what came, and whether that is computed only now."""
    stored = {record.name: record.summary.get("prediction") for record in records}
    newest = {run.stage: run for run in runs}
    for run in sorted(newest.values(), key=lambda run: run.superblocks):
        known = stored[run.name]
        if not known:
            hindsight = afterwards(run, runs)
            known = hindsight.to_dict() if hindsight else None
        came = {"bits_per_byte": run.loss, "minutes": run.minutes, "memory_bytes": run.memory_bytes}
        if known:
            yield (
                run,
                known,
                {name: v for name, v in came.items() if v is not None and name in known},
                not stored[run.name],
            )


def _promoted(stage: str | None, records: Sequence[RunRecord], runs: Sequence[Finished]) -> Finished | None:
    """The newest promoted run of the stage that this one grows from."""
    for record in records:
        if stage is not None and record.stage == stage and read_json(record.folder / PROMOTION_FILE).get("promoted"):
            return next((run for run in runs if run.name == record.name), None)
    return None


def _first_command(config: PlanConfig) -> str:
    scale = "" if config.scale.name == "tiny" else f" scale={config.scale.name}"
    return f"`{typed(f'run stage={config.stage.parent or config.stage.name}{scale}')}`"
