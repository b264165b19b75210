"""The verdict of a report without a baseline: what the stages show beside each other."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from superblock.evaluation.statistics import Interval, holm, paired_interval, paired_p_value
from superblock.reporting.content import MINIMUM_SEEDS, Group, Measure, NoBaseline, Verdict

BITS = "test/bits_per_byte"
LEVEL = 0.05
WITHOUT: dict[NoBaseline, str] = {
    "none earlier": "no earlier report is the baseline",
    "not asked for": "compared with no baseline, as asked for",
    "gone": "the baseline is gone",
}


@dataclass(frozen=True)
class Step:
    """A stage beside the one before it, in bits per byte, seed by seed."""

    before: str
    after: str
    interval: Interval | None
    """None without three common seeds."""
    p_adjusted: float

    @property
    def better(self) -> bool:
        return self.interval is not None and self.interval.high < 0 and self.p_adjusted < LEVEL

    @property
    def worse(self) -> bool:
        return self.interval is not None and self.interval.low > 0 and self.p_adjusted < LEVEL


def verdict(groups: Sequence[Group], without: NoBaseline = "none earlier") -> tuple[Verdict, str]:
    """`new`, since there is nothing to compare with, or `not enough seeds`; and a line that says what there is.

    Args:
        groups: of the newest configurations.
        without: why there is no baseline.
    """
    chain = main_chain(groups)
    if not chain:
        return "missing", "No run was tested on a text."
    counts = [len(by_seed(group.measures[BITS])) for group in chain]
    parts = [f"{_stages(chain)}, {_seeds(counts)}: {_bits(chain)}"]
    if len(chain) > 1 and min(counts) >= MINIMUM_SEEDS:
        parts[0] += f", {_order(steps(chain))}"
    parts += [words for words in (_gates(groups), _others(groups, chain), WITHOUT[without]) if words]
    few = max(counts) < MINIMUM_SEEDS
    return "not enough seeds" if few else "new", _sentence("; ".join(parts))


def main_chain(groups: Sequence[Group]) -> list[Group]:
    """The stages of one scale, arm and text, by depth: of the chain with the most of them, the default arm's before others'."""
    chains: dict[tuple[str, str, str], list[Group]] = defaultdict(list)
    for group in groups:
        if BITS in group.measures:
            chains[(group.scale, group.arm, group.data_digest)].append(group)
    best = max(chains, key=lambda key: (len(chains[key]), key[1] == "default", key), default=None)
    return sorted(chains[best] if best else [], key=lambda group: (group.superblocks or 0, group.stage))


def steps(chain: Sequence[Group]) -> list[Step]:
    """Every stage beside the one before, with p adjusted for their number."""
    pairs = {}
    for before, after in pairwise(chain):
        old, new = by_seed(before.measures[BITS]), by_seed(after.measures[BITS])
        common = sorted(old.keys() & new.keys())
        pairs[(before.stage, after.stage)] = ([new[seed] for seed in common], [old[seed] for seed in common])
    enough = {key: pair for key, pair in pairs.items() if len(pair[0]) >= MINIMUM_SEEDS}
    adjusted = holm({" ".join(key): paired_p_value(*pair) for key, pair in enough.items()})
    return [
        Step(*key, paired_interval(*pair) if key in enough else None, adjusted.get(" ".join(key), 1.0))
        for key, pair in pairs.items()
    ]


def by_seed(measure: Measure) -> dict[int, float]:
    """A value for each seed: the mean where a seed has several runs."""
    values: dict[int, list[float]] = defaultdict(list)
    for one in measure.values:
        values[one.seed].append(one.value)
    return {seed: fmean(found) for seed, found in values.items()}


def _stages(chain: Sequence[Group]) -> str:
    return chain[0].stage if len(chain) == 1 else f"{len(chain)} stages"


def _seeds(counts: Sequence[int]) -> str:
    if min(counts) == max(counts):
        words = "one seed" if counts[0] == 1 else f"{counts[0]} seeds"
        return words + (" each" if len(counts) > 1 else "")
    return f"{min(counts)} to {max(counts)} seeds"


def _bits(chain: Sequence[Group]) -> str:
    values = [chain[0], chain[-1]] if len(chain) > 1 else [chain[0]]
    return "bits per byte " + " -> ".join(f"{group.measures[BITS].mean:.3f}" for group in values)


def _order(found: Sequence[Step]) -> str:
    """Which stages are shown to be better than the one before."""
    if all(one.better for one in found):
        return (
            "each stage better than the one before"
            if len(found) > 1
            else f"{found[0].after} better than {found[0].before}"
        )
    parts = [f"{one.after} better than {one.before}" for one in found if one.better]
    parts += [f"{one.after} worse than {one.before}" for one in found if one.worse]
    if same := [one.after for one in found if not one.better and not one.worse]:
        parts.append(f"{' and '.join(same)} not shown to be better than the stage before")
    return ", ".join(parts)


def _gates(groups: Sequence[Group]) -> str:
    verdicts = [one.verdict for group in groups for one in group.statements if one.kind == "gate"]
    failed = sum(verdict != "passed" for verdict in verdicts)
    if not verdicts:
        return "no gate was measured"
    return f"{failed} of {len(verdicts)} gates failed" if failed else f"all {len(verdicts)} gates passed"


def _others(groups: Sequence[Group], chain: Sequence[Group]) -> str:
    rest = len(groups) - len(chain)
    return f"{rest} further group{'s' if rest > 1 else ''}" if rest else ""


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
