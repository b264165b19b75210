"""Claims: hypotheses about a stage, measured with an interval. They are held, not held, or undecided, and stop nothing."""

import math
from collections.abc import Sequence
from statistics import fmean

import numpy as np
import torch
from numpy.typing import NDArray

from superblock.config.growth import StatementConfig
from superblock.data.loader import evaluation_loader
from superblock.evaluation.statistics import Interval, bootstrap_interval, paired_interval, t_interval
from superblock.generation.session import Session, load_checkpoint
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
    """Test bits per byte, grown less from scratch, paired by seed at equal FLOPs of the whole lineage."""
    wanted = "fewer bits per byte than from scratch with equal FLOPs, with 95% confidence"
    if evidence.parent_name is None:
        return Finding(None, "this run itself is from scratch", wanted)
    pairs = _pairs(evidence)
    seeds = ", ".join(str(grown.seed) for grown, _ in pairs)
    if len(pairs) < PAIRS:
        found = f"{len(pairs)} of {PAIRS} pairs of seeds are there{f' (seeds {seeds})' if seeds else ''}"
        return Finding(None, f"{found}; {_what_to_run(evidence, [grown for grown, _ in pairs])}", wanted)
    gain = paired_interval([tested_bits(grown) for grown, _ in pairs], [tested_bits(other) for _, other in pairs])
    holds = True if gain.high < 0 else False if gain.low > 0 else None
    return Finding(holds, f"{gain} bits per byte, seeds {seeds}", wanted, gain.mean, gain.low, gain.high)


def _pairs(evidence: Evidence) -> list[tuple[RunRecord, RunRecord]]:
    """(grown as this run was, from scratch) by seed, of the newest runs that compare."""
    run = evidence.run
    records = {one.name: one for one in list_runs(run.folder.parent, stage=run.stage, scale=run.scale)}
    runs = {one.name: one for one in read_finished(records.values()) if one.loss is not None}
    if run.name not in runs:
        return []
    this = runs[run.name]
    alike = [records[name] for name in records if name in runs and _compares(this, runs[name])]
    scratch = [one for one in alike if one.summary.get("parent") is None]
    grown = [one for one in alike if one.summary.get("parent") is not None and _method(one) == _method(run)]
    found: dict[int, tuple[RunRecord, RunRecord]] = {}
    for one in grown:
        rivals = [
            other for other in scratch if other.seed == one.seed and _equal_flops(runs[one.name], runs[other.name])
        ]
        if rivals and one.seed not in found:
            found[one.seed] = (one, rivals[0])
    return [found[seed] for seed in sorted(found)]


def _compares(this: Finished, other: Finished) -> bool:
    return this.digest == other.digest and this.total == other.total and same_recipe(this.settings, other.settings)


def _equal_flops(a: Finished, b: Finished) -> bool:
    costs = [sum(flops for _, _, flops in one.lineage) for one in (a, b)]
    return max(costs) <= min(costs) * (1 + EQUAL_FLOPS)


def _method(run: RunRecord) -> str | None:
    method = (run.summary.get("growth") or {}).get("method")
    return None if method is None else str(method)


def _what_to_run(evidence: Evidence, paired: Sequence[RunRecord]) -> str:
    """Commands that give the next pair."""
    run, summary = evidence.run, evidence.summary
    seed = run.seed if all(one.seed != run.seed for one in paired) else max(one.seed for one in paired) + 1
    command = f"python -m platform.run stage={run.stage} scale={run.scale} seed={seed}"
    steps = round(summary["steps"] * summary["lineage_flops"] / summary["flops"])
    scratch = f"{command} parent=none promote=false trainer.budget={steps}steps"
    grown = (
        "" if seed == run.seed else f" and, grown as this one, {command} parent={evidence.parent_name} promote=false"
    )
    return f"for another, with this run's other settings: {scratch}{grown}"


# -- cost -------------------------------------------------------------------------------------------------------------


def cost_predicted(evidence: Evidence, asked: StatementConfig) -> Finding:
    """Minutes of training and peak memory, as shares by which they are above what was predicted before."""
    limit, prediction = asked.limit or 0.0, evidence.summary.get("prediction") or {}
    wanted = f"time and memory within {limit:.0%} of the prediction"
    minutes, memory = _predicted(prediction, "minutes"), _predicted(prediction, "memory_bytes")
    if minutes is None and memory is None:
        return Finding(None, "nothing was predicted before this run", wanted)
    found: list[tuple[str, Interval]] = []
    if minutes is not None:
        found.append(("time", _time_above(evidence, minutes)))
    peak = evidence.summary.get("peak_memory_bytes")
    if memory is not None and peak is not None:
        above = peak / memory - 1
        found.append(("memory", Interval(above, above, above, 1)))
    words = []
    if minutes is not None:
        words.append(f"{evidence.summary['minutes']:.2f} minutes against {minutes:.2f} predicted")
    if memory is not None and peak is not None:
        words.append(f"{peak / 2**30:.2f} GiB against {memory / 2**30:.2f} predicted")
    holds = _all_within([interval for _, interval in found], limit)
    name, worst = max(found, key=lambda pair: abs(pair[1].mean))
    spread = "" if worst.low == worst.high else f" [{worst.low:+.1%}, {worst.high:+.1%}]"
    measured = f"{', '.join(words)}; {name} is furthest off, {worst.mean:+.1%}{spread}"
    return Finding(holds, measured, wanted, worst.mean, worst.low, worst.high)


def _predicted(prediction: dict[str, dict[str, float] | None], name: str) -> float | None:
    estimate = prediction.get(name)
    return float(estimate["value"]) if estimate else None


def _time_above(evidence: Evidence, predicted: float) -> Interval:
    """How far the time is above the prediction; its interval is that of the recorded seconds per token."""
    measured, rates = evidence.summary["minutes"] / predicted, evidence.history.get("throughput/tokens_per_second", [])
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
    exit_nats = _nats(evidence, load_checkpoint(evidence.checkpoint, S))
    own_nats = _nats(evidence, load_checkpoint(parent.checkpoint))
    cost = bootstrap_interval(np.stack([exit_nats, own_nats], axis=1), lambda rows: rows[:, 0] / rows[:, 1] - 1)
    holds = True if cost.high <= limit else False if cost.low > limit else None
    words = (
        f"the exit of superblock {S} needs {cost.mean:+.2%} [{cost.low:+.2%}, {cost.high:+.2%}] bits against its parent"
    )
    return Finding(holds, f"{words} ({parent.run}, {cost.n} sequences)", wanted, cost.mean, cost.low, cost.high)


@torch.no_grad()
def _nats(evidence: Evidence, session: Session) -> NDArray[np.float64]:
    """[N] the sum of each sequence's losses; bytes are the same for every model, so nats compare as bits per byte do."""
    config, sums = evidence.config, []
    loader = evaluation_loader(
        evidence.corpus.test,
        sequence_length=config.data.sequence_length,
        batch_size=config.evaluation.batch_size,
        limit=EXIT_SEQUENCES,
    )
    for batch in loader:
        batch = batch.to(session.device)
        scores = session.model(batch.input_ids_BT, batch.pack, batch.labels_BT, score=True).scores["next_token"]
        scored = (scores.rank_BT >= 0).any(dim=1)  # a batch may be filled up with empty rows
        sums.append(scores.nll_BT.double().sum(dim=1)[scored].cpu().numpy())
    nats: NDArray[np.float64] = np.concatenate(sums)
    return nats


CLAIMS: dict[str, Measurement] = {
    "beats_scratch": beats_scratch,
    "cost_predicted": cost_predicted,
    "exit_cost": exit_cost,
}
