"""Claims: hypotheses about a stage, measured with an interval. They are held, not held, or undecided, and stop nothing."""

import math
from collections.abc import Collection, Sequence
from statistics import fmean

from torch import nn

from superblock.config.growth import StatementConfig
from superblock.config.typed import stored
from superblock.data.loader import evaluation_loader
from superblock.evaluation.exits import ExitScores, score_exits
from superblock.evaluation.statistics import Interval, paired_interval, t_interval
from superblock.generation.session import load_checkpoint
from superblock.planning.finished import Finished, read_finished, same_recipe
from superblock.staging.evidence import Evidence, Finding, Measurement, tested_bits
from superblock.tracking.runs import RunRecord, list_runs

PAIRS = 3
"""Seeds without which an interval says too little."""
EQUAL_FLOPS = 0.03
"""Share by which the lineages of a pair may differ in FLOPs."""
WINDOWS_PER_BLOCK = 4
"""Recorded speeds that are averaged before they count as one value: a slow minute slows several of them."""
EXIT_SEQUENCES = 128
"""Of the test split, spread evenly; each is a block of the bootstrap."""

# -- growing against training from scratch ----------------------------------------------------------------------------


def beats_scratch(evidence: Evidence, asked: StatementConfig) -> Finding:
    """Test bits per byte, grown less from scratch, paired by seed at equal FLOPs of the whole lineage.

    Runs grown from one ancestor are not independent, so each pair has a lineage of its own seed.
    """
    wanted = "fewer bits per byte than from scratch with equal FLOPs, with 95% confidence"
    if evidence.parent_name is None:
        return Finding(None, "this run itself is from scratch", wanted)
    grown, scratch = _rivals(evidence)
    pairs: dict[int, tuple[RunRecord, RunRecord]] = {}
    for one in grown:
        if (rival := _equal(one, scratch)) is not None:
            pairs.setdefault(one.seed, (one, rival))
    seeds = ", ".join(str(seed) for seed in sorted(pairs))
    if len(pairs) < PAIRS:
        found = f"{len(pairs)} of {PAIRS} pairs of seeds are there{f' (seeds {seeds})' if seeds else ''}"
        return Finding(None, f"{found}; {_what_to_run(evidence.run, grown, set(pairs))}", wanted)
    ordered = [pairs[seed] for seed in sorted(pairs)]
    gain = paired_interval([tested_bits(one) for one, _ in ordered], [tested_bits(rival) for _, rival in ordered])
    holds = True if gain.high < 0 else False if gain.low > 0 else None
    return Finding(holds, f"{gain} bits per byte, seeds {seeds}", wanted, gain.mean, gain.low, gain.high)


def _rivals(evidence: Evidence) -> tuple[list[RunRecord], list[RunRecord]]:
    """The runs that were grown as this one, each from a lineage of its own seed, and those from scratch, newest first."""
    run = evidence.run
    records = list_runs(run.folder.parent, stage=run.stage, scale=run.scale)
    runs = {one.name: one for one in read_finished(records) if one.loss is not None}
    if run.name not in runs:
        return [], []
    this = runs[run.name]
    alike = [one for one in records if one.name in runs and _compares(this, runs[one.name])]
    grown = [
        one
        for one in alike
        if _grown_alike(this, runs[one.name]) and _method(one) == _method(run) and _of_one_seed(one)
    ]
    return grown, [one for one in alike if one.summary.get("parent") is None]


def _equal(grown: RunRecord, scratch: Sequence[RunRecord]) -> RunRecord | None:
    """The newest run from scratch of the same seed and FLOPs."""
    return next((one for one in scratch if one.seed == grown.seed and _equal_flops(grown, one)), None)


def _compares(this: Finished, other: Finished) -> bool:
    length = [one.settings.get("data.sequence_length") for one in (this, other)]
    alike = this.digest == other.digest and this.total == other.total and length[0] == length[1]
    return alike and same_recipe(this.settings, other.settings)


def _grown_alike(this: Finished, other: Finished) -> bool:
    """In the settings of growth, and through the same depths."""
    keys = {key for one in (this, other) for key in one.settings if key.startswith("growth.")}
    depths = [[superblocks for superblocks, _, _ in one.lineage] for one in (this, other)]
    same = all(this.settings.get(key) == other.settings.get(key) for key in keys)
    return depths[0] == depths[1] and len(depths[0]) > 1 and same


def _of_one_seed(run: RunRecord) -> bool:
    return {one["seed"] for one in run.summary["lineage"]} == {run.seed}


def _equal_flops(a: RunRecord, b: RunRecord) -> bool:
    costs = [float(one.summary.get("lineage_flops") or 0) for one in (a, b)]  # not known of runs from before lineages
    return all(costs) and max(costs) <= min(costs) * (1 + EQUAL_FLOPS)


def _method(run: RunRecord) -> str | None:
    method = (run.summary.get("growth") or {}).get("method")
    return None if method is None else str(method)


def _what_to_run(run: RunRecord, grown: Sequence[RunRecord], paired: Collection[int]) -> str:
    """The command that gives, or leads to, the next pair."""
    alone = [one for one in grown if one.seed not in paired]
    seed = max([run.seed, *(one.seed for one in grown)]) + 1
    command = stored(f"run scale={run.scale}")
    if not alone:
        return f"for another lineage, with this one's other settings: {command} stage=all seed={seed}"
    one, summary = alone[0], alone[0].summary
    steps = round(summary["steps"] * summary["lineage_flops"] / summary["flops"])
    settings = f"stage={run.stage} seed={one.seed} parent=none promote=false trainer.budget={steps}steps"
    return f"for another, with this run's other settings: {command} {settings}"


# -- cost -------------------------------------------------------------------------------------------------------------


def cost_predicted(evidence: Evidence, asked: StatementConfig) -> Finding:
    """Seconds per step of training and peak memory, as shares by which they are above what was predicted before.

    Steps, because a budget in minutes fixes the time. The peak of memory is one value and has no interval.
    """
    limit, prediction = asked.limit or 0.0, evidence.summary.get("prediction") or {}
    wanted = f"time per step and memory within {limit:.0%} of the prediction"
    minutes, steps = _predicted(prediction, "minutes"), _predicted(prediction, "steps")
    memory = _predicted(prediction, "memory_bytes")
    if (minutes is None or steps is None) and memory is None:
        return Finding(None, "nothing was predicted before this run", wanted)
    found: list[tuple[str, Interval]] = []
    words = []
    if minutes is not None and steps is not None:
        predicted, measured = 60 * minutes / steps, 60 * evidence.summary["minutes"] / evidence.summary["steps"]
        found.append(("time", _above(measured / predicted, evidence)))
        words.append(f"{1000 * measured:,.0f} ms per step against {1000 * predicted:,.0f} predicted")
    peak = evidence.summary.get("peak_memory_bytes")
    if memory is not None and peak is not None:
        above = peak / memory - 1
        found.append(("memory", Interval(above, above, above, 1)))
        words.append(f"{peak / 2**30:.2f} GiB against {memory / 2**30:.2f} predicted")
    if not found:
        return Finding(None, "what was predicted was not measured", wanted)
    holds = _all_within([interval for _, interval in found], limit)
    name, worst = max(found, key=lambda pair: abs(pair[1].mean))
    bounded = worst.low < worst.high and math.isfinite(worst.high - worst.low)
    spread = f" [{worst.low:+.1%}, {worst.high:+.1%}]" if bounded else " (one value)"
    measured_words = f"{', '.join(words)}; {name} is furthest off, {worst.mean:+.1%}{spread}"
    return Finding(holds, measured_words, wanted, worst.mean, worst.low, worst.high)


def _predicted(prediction: dict[str, dict[str, float] | None], name: str) -> float | None:
    estimate = prediction.get(name)
    return float(estimate["value"]) if estimate else None


def _above(measured: float, evidence: Evidence) -> Interval:
    """How far a time is above its prediction, given their ratio; the interval is that of the recorded seconds per token."""
    rates = evidence.history.get("throughput/tokens_per_second", [])
    seconds = [1 / rate for _, rate in rates if rate > 0]
    blocks = len(seconds) // WINDOWS_PER_BLOCK
    means = [fmean(seconds[i * WINDOWS_PER_BLOCK : (i + 1) * WINDOWS_PER_BLOCK]) for i in range(blocks)]
    if len(means) < 2:
        return Interval(measured - 1, -math.inf, math.inf, len(means))
    spread = t_interval(means)
    low, high = spread.low / spread.mean, spread.high / spread.mean
    return Interval(measured - 1, measured * low - 1, measured * high - 1, spread.n)


def _all_within(intervals: Sequence[Interval], limit: float) -> bool | None:
    """True if every interval lies within the limits, False if one lies outside of them."""
    if any(one.low > limit or one.high < -limit for one in intervals):
        return False
    return True if all(-limit <= one.low and one.high <= limit for one in intervals) else None


# -- exits ------------------------------------------------------------------------------------------------------------


def exit_cost(evidence: Evidence, asked: StatementConfig) -> Finding:
    """Bits of the exit at the parent's depth against the parent's own, on the same sequences of the test text."""
    limit = asked.limit or 0.0
    wanted = f"at most {limit:.1%} more bits per byte than the parent needs, with 95% confidence"
    if evidence.parent_name is None:
        return Finding(None, "trained from scratch: there is no parent to compare an exit with", wanted)
    parent = evidence.parent
    S = parent.model.num_superblocks
    exit_scores = _scores(evidence, evidence.model, S)
    cost = exit_scores.excess(S, _scores(evidence, load_checkpoint(parent.checkpoint).model, S), S)
    holds = True if cost.high <= limit else False if cost.low > limit else None
    words = (
        f"the exit of superblock {S} needs {cost.mean:+.2%} [{cost.low:+.2%}, {cost.high:+.2%}] bits against its parent"
    )
    return Finding(holds, f"{words} ({parent.run}, {cost.n} sequences)", wanted, cost.mean, cost.low, cost.high)


def _scores(evidence: Evidence, model: nn.Module, superblocks: int) -> ExitScores:
    """Of the same sequences for every model; bytes are the same too, so nats compare as bits per byte do."""
    config = evidence.config
    batches = evaluation_loader(
        evidence.corpus.test,
        sequence_length=config.data.sequence_length,
        batch_size=config.evaluation.batch_size,
        limit=EXIT_SEQUENCES,
    )
    return score_exits(model, batches, (superblocks,))


CLAIMS: dict[str, Measurement] = {
    "beats_scratch": beats_scratch,
    "cost_predicted": cost_predicted,
    "exit_cost": exit_cost,
}
