"""Groups of runs beside those of the baseline: what improved, regressed, stayed, or cannot be told.

Runs pair by seed, and the mean of the logarithm of `after / before` gets Student's t interval. Logarithms, because effects
are shares ("5 % slower") whatever level a seed has, because exchanging before and after then only changes the sign, and
because the ratio of two noisy positive numbers is skewed while its logarithm is not.

The rule, with the minimum effect e (1 % of quality, 5 % of speed and memory) and the 95 % interval of a metric:

    regressed, improved   Holm's p is below 0.05, and the interval reaches e
    unchanged             the interval lies within -e and +e
    undecided             anything else; then it says how many seeds would decide

Wrong calls of change are at most 5 % of reports in which nothing changed, all comparisons together, and the direction of a
called change is wrong at most as often. A change of e or more is called unchanged at most once in forty. The interval has
to reach e, not to lie beyond it, nor has the mean: a change of exactly e, which counts, would then be missed at least every
second time, however many seeds there are. As a t interval that excludes 0 ends before twice its mean, no change is called
whose mean is below half of e (to first order). With three seeds and a dozen comparisons Holm asks for much: `undecided`
is then the usual answer unless runs repeat well. Rates are measured by tests/reporting/detection_rates.py.

Only the metrics of `COMPARED` are compared: perplexity is a function of bits per byte, and the share of the matmul limit
is speed again; repeating them would correct for comparisons that are none. A report shows their values beside. Nor are the
very same runs compared with themselves: they would always be `unchanged`, and the others would pay for it in Holm's count.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from superblock.evaluation.statistics import holm, paired_interval, paired_p_value, values_needed
from superblock.reporting.content import MINIMUM_SEEDS, Change, Group, History, Measure, Verdict
from superblock.reporting.metrics import COMPARED, METRICS, MINIMUM_EFFECT, Kind, Metric
from superblock.reporting.phrases import (
    change_words,
    group_words,
    is_worse,
    p_words,
    percent,
    percent_interval,
    plural,
    share,
)
from superblock.reporting.selection import differing

LEVEL = 0.05
ORDER: tuple[Verdict, ...] = (
    "regressed", "improved", "undecided", "missing", "unchanged", "not enough seeds", "not comparable", "new",
)  # fmt: skip
"""What a line calls several verdicts: the first of these that is among them."""
MOST_SEEDS = 100
"""More than that are not proposed."""
LONGEST = 120
"""Characters of settings in a remark."""


def compare(
    before: Mapping[str, Group], after: Mapping[str, Group], *, effects: Mapping[Kind, float] = MINIMUM_EFFECT
) -> tuple[Change, ...]:
    """Every compared metric of every group that either has.

    Args:
        before: groups of the baseline by key.
        after: groups of this report by key. Groups match by scale, stage, arm and text, whatever their keys.
        effects: smallest relative change that counts, by kind.

    Returns:
        Changes in the order of `after`, then those that only `before` has; none where both are the very same runs.
    """
    cases = list(_cases(before, after))
    p_values = {
        f"{case.group} {case.metric.name}": paired_p_value(case.logs_after, case.logs_before)
        for case in cases
        if case.testable
    }
    adjusted = holm(p_values)
    return tuple(_change(case, p_values, adjusted, effects[case.metric.kind]) for case in cases)


def same_runs(before: Mapping[str, Group], after: Mapping[str, Group]) -> tuple[str, ...]:
    """Keys of the groups of `after` of which every compared number is of the baseline's own runs."""
    found = []
    for key, old, new in _matched(before, after):
        if old is None or new is None:
            continue
        pairs = [(old.measures.get(name), new.measures.get(name)) for name in COMPARED]
        known = [pair for pair in pairs if pair != (None, None)]
        if known and all(_same(*pair) for pair in known):
            found.append(key)
    return tuple(found)


def verdict(changes: Sequence[Change], alarms: Sequence[History] = (), same: int = 0) -> tuple[Verdict, str]:
    """All changes in one line: regressed if anything did, else improved if anything did, else the least certain of the rest.

    Args:
        changes: of `compare`.
        alarms: histories; only those with an alarm count, as regressions.
        same: how many groups are the baseline's own runs.

    Returns:
        The verdict, and what stands behind it and a colon: it does not say the verdict again.
    """
    by: dict[str, list[str]] = defaultdict(list)
    for change in changes:
        by[change.verdict].append(_named(change.group, change.metric, change.relative, change.low, change.high))
    for history in alarms:
        if history.alarm:
            by["alarm"].append(f"{_named(history.group, history.metric, history.relative)} in its history")
    found: Verdict = "regressed" if by["alarm"] else next((word for word in ORDER if by[word]), "new")
    parts = [_part(word, by[word], found) for word in ("regressed", "improved", "alarm", *ORDER[2:]) if by[word]]
    if same:
        found = found if parts else "unchanged"
        parts.append(f"{plural(same, 'group')} of the baseline's own runs, which are not compared with themselves")
    return (found, f"{'; '.join(parts)}.") if parts else (found, "nothing to compare with.")


def _part(word: str, names: list[str], found: Verdict) -> str:
    """What came out as one verdict: by name where it asks for attention, else as a number."""
    numbers = plural(len(names), "number")
    if word == "missing":
        is_missing = "" if word == found else (" is missing" if len(names) == 1 else " are missing")
        return f"{numbers} of the baseline{is_missing}: {_listed(names)}"
    if word in ("regressed", "improved", "alarm"):
        return _listed(names) if word == found else f"{word}: {_listed(names)}"
    if word == found:
        return numbers
    return f"{len(names)} {'with ' if word == 'not enough seeds' else ''}{word}"


def _listed(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _named(group: str, metric: str, relative: float | None, low: float | None = None, high: float | None = None) -> str:
    known = METRICS[metric]
    moved = "" if relative is None else f", {percent_interval(relative, low, high, known)}"
    return f"{known.label} of {group_words(group)}{moved}"


@dataclass(frozen=True)
class _Case:
    """One metric of one group, before and after."""

    group: str
    metric: Metric
    before: Measure | None
    after: Measure | None
    obstacle: str
    """Why the two cannot be compared; empty if they can."""
    logs_before: list[float]
    logs_after: list[float]
    """Of the seeds that both have, in one order."""
    remark: str
    """Further words, such as unequal training."""

    @property
    def testable(self) -> bool:
        return not self.obstacle and len(self.logs_after) >= MINIMUM_SEEDS


def _cases(before: Mapping[str, Group], after: Mapping[str, Group]) -> Iterator[_Case]:
    for key, old, new in _matched(before, after):
        yield from _metrics(key, old, new)


def _matched(
    before: Mapping[str, Group], after: Mapping[str, Group]
) -> Iterator[tuple[str, Group | None, Group | None]]:
    """Groups of one scale, stage, arm and text; where there is no such text, of the other one, to say so."""
    old = {_identity(group): group for group in before.values()}
    here = {_identity(group) for group in after.values()}
    other_text = {name[:3]: group for name, group in old.items() if name not in here}
    met = set(here)
    for key, group in after.items():
        same = old.get(_identity(group)) or other_text.get(_identity(group)[:3])
        met.add(_identity(same or group))
        yield key, same, group
    for key, group in before.items():
        if _identity(group) not in met:
            yield key, group, None


def _identity(group: Group) -> tuple[str, str, str, str]:
    return group.scale, group.stage, group.arm, group.data_digest


def _metrics(key: str, before: Group | None, after: Group | None) -> Iterator[_Case]:
    for name in COMPARED:
        metric = METRICS[name]
        old, new = (group.measures.get(name) if group else None for group in (before, after))
        if (old is None and new is None) or _same(old, new):
            continue
        pairs = list(_pairs(old, new)) if old and new else []
        obstacle = _obstacle(before, after, metric, pairs) if before and after else ""
        logs = ([], []) if obstacle else ([math.log(a) for a, _ in pairs], [math.log(b) for _, b in pairs])
        remark = _remark(before, after, metric) if before and after else ""
        yield _Case(key, metric, old, new, obstacle, *logs, remark)


def _same(before: Measure | None, after: Measure | None) -> bool:
    """Whether both are what the same runs measured, once."""
    return before is not None and after is not None and set(before.values) == set(after.values)


def _pairs(before: Measure, after: Measure) -> Iterator[tuple[float, float]]:
    """Values of the seeds that both have; the mean where a seed has several."""
    values: list[dict[int, list[float]]] = [defaultdict(list), defaultdict(list)]
    for measure, by_seed in zip((before, after), values, strict=True):
        for value in measure.values:
            by_seed[value.seed].append(value.value)
    for seed in sorted(values[0].keys() & values[1].keys()):
        yield fmean(values[0][seed]), fmean(values[1][seed])


def _obstacle(before: Group, after: Group, metric: Metric, pairs: list[tuple[float, float]]) -> str:
    if before.data_digest != after.data_digest:
        return f"another text: {before.data_digest} in the baseline, {after.data_digest} here"
    if metric.kind != "quality" and (before.machine is None or after.machine is None):
        return "runs of one group come from several machines"
    if metric.kind != "quality" and before.machine != after.machine:
        return f"another machine: {before.machine} in the baseline, {after.machine} here"
    if any(value <= 0 for pair in pairs for value in pair):
        return "relative changes need values above 0"
    return ""


def _remark(before: Group, after: Group, metric: Metric) -> str:
    """What else differs: other settings may move any metric, the tokens of training its quality."""
    words = ""
    if before.configuration != after.configuration:
        words = "; other settings than the baseline's"
        if before.settings and after.settings:
            named = differing(before.settings, after.settings)
            words += f" ({named if len(named) <= LONGEST else named[: LONGEST - 3] + '...'})"
    if metric.kind == "quality" and before.training_tokens and after.training_tokens:
        more = after.training_tokens / before.training_tokens - 1
        words += f"; trained on {100 * more:+.0f} % tokens" if abs(more) >= 0.02 else ""
    return words


def _change(case: _Case, p_values: Mapping[str, float], adjusted: Mapping[str, float], effect: float) -> Change:
    name, metric = f"{case.group} {case.metric.name}", case.metric
    differences = [b - a for a, b in zip(case.logs_before, case.logs_after, strict=True)]
    relative = math.expm1(fmean(differences)) if differences else None
    low = high = None
    if case.testable:
        interval = paired_interval(case.logs_after, case.logs_before)
        low, high = math.expm1(interval.low), math.expm1(interval.high)
    p, p_adjusted = p_values.get(name), adjusted.get(name)
    word, words = _judge(case, differences, (relative, low, high), p_adjusted, effect, len(adjusted))
    return Change(
        case.group, metric.name, case.before, case.after, relative, low, high, p, p_adjusted, word, words + case.remark
    )


def _judge(
    case: _Case, differences: list[float], relative: tuple[float | None, float | None, float | None],
    p_adjusted: float | None, effect: float, comparisons: int,
) -> tuple[Verdict, str]:  # fmt: skip
    mean, low, high = relative
    if case.before is None:
        return "new", "not in the baseline"
    if case.after is None:
        return "missing", "in the baseline, but not here"
    if case.obstacle:
        return "not comparable", case.obstacle
    if mean is None or low is None or high is None or p_adjusted is None:
        seen = f"{percent(mean, case.metric)}, but " if mean is not None else ""
        return "not enough seeds", f"{seen}{len(differences)} of {MINIMUM_SEEDS} seeds that a verdict needs are in both"
    said = f"{change_words(mean, low, high, case.metric)} over {len(differences)} seeds"
    sure, within = p_adjusted < LEVEL, -effect < low and high < effect
    corrected = p_words(p_adjusted) + (f" after correction for {comparisons} comparisons" if comparisons > 1 else "")
    if within:
        return "unchanged", f"{said}: " + (
            "a change, but less" if sure else "less"
        ) + f" than the {share(effect)} that count"
    if sure:
        worse = is_worse(mean, case.metric)
        return ("regressed", f"{said}, worse; {corrected}") if worse else ("improved", f"{said}, better; {corrected}")
    return "undecided", f"{said}; {corrected}: {_advice(differences, effect, comparisons)}"


def _advice(differences: list[float], effect: float, comparisons: int) -> str:
    """How many seeds would decide, if mean and deviation stay what they are."""
    mean, spread = abs(fmean(differences)), stdev(differences)
    if not effect and not mean:
        return "they are equal on average, which no number of seeds can show where every change counts"
    needed = [values_needed(spread, math.log1p(effect) - mean, most=MOST_SEEDS)]
    if mean > math.log1p(effect) / 2:
        needed.append(values_needed(spread, mean, 1 - LEVEL / comparisons, MOST_SEEDS))
    known = [n for n in needed if n is not None]
    if not known:
        return f"more than {MOST_SEEDS} seeds would be needed, so much do they differ"
    return f"about {max(min(known), len(differences) + 1)} seeds would decide"
