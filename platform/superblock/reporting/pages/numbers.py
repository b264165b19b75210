"""Numbers as people read them: sensible digits, units, intervals."""

import math
from datetime import UTC, datetime

from superblock.reporting.content import Measure
from superblock.reporting.metrics import METRICS, Metric

MINUS = "\N{MINUS SIGN}"
COUNTS = ("", " k", " M", " B", " T")
"""Prefixes of parameters and tokens, where a billion is B."""
UNITS = ("", " k", " M", " G", " T", " P", " E", " Z", " Y")


def fixed(value: float, digits: int, *, sign: bool = False) -> str:
    """Digits after the point, thousands parted, with a true minus sign; no `-0.0`."""
    if not math.isfinite(value):
        return "not a number"
    text = f"{value:{'+' if sign else ''},.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = f"{0:,.{digits}f}"
    return text.replace("-", MINUS)


def significant(value: float, digits: int = 3) -> str:
    """As many digits as matter, no exponent within reason: 0.0421, 3.14, 1,240."""
    if value == 0 or not math.isfinite(value):
        return fixed(value, 0)
    if not 1e-6 <= abs(value) < 1e12:
        return f"{value:.{digits - 1}e}".replace("-", MINUS)
    after = digits - 1 - math.floor(math.log10(abs(value)))
    return fixed(value, max(0, after))


def prefixed(value: float, prefixes: tuple[str, ...] = UNITS) -> str:
    """Three digits and a prefix: `4.52 M`, `61.3 T`."""
    power = 0
    while abs(value) >= 999.5 and power < len(prefixes) - 1:
        value, power = value / 1000, power + 1
    if power == 0 and value == int(value):
        return fixed(value, 0)
    digits = 2 if abs(value) < 9.995 else 1 if abs(value) < 99.95 else 0
    return fixed(value, digits) + prefixes[power]


def count(value: float) -> str:
    """Parameters or tokens."""
    return prefixed(value, COUNTS)


def percent(ratio: float, *, digits: int | None = None, sign: bool = True) -> str:
    """A relative change of 0.0123 is `+1.2 %`; two digits after the point below one per cent."""
    value = 100 * ratio
    return fixed(value, percent_digits(ratio) if digits is None else digits, sign=sign) + " %"


def percent_digits(ratio: float) -> int:
    return 2 if abs(ratio) < 0.01 else 1


def percent_interval(ratio: float, low: float | None, high: float | None) -> str:
    """`+1.2 % [+0.4, +2.0]`."""
    digits = percent_digits(ratio)
    text = percent(ratio, digits=digits)
    if low is None or high is None:
        return text
    return f"{text} [{fixed(100 * low, digits, sign=True)}, {fixed(100 * high, digits, sign=True)}]"


def interval(low: float | None, high: float | None, digits: int, *, sign: bool = False) -> str:
    """`[1.331, 1.339]`; empty without one."""
    if low is None or high is None:
        return ""
    return f"[{fixed(low, digits, sign=sign)}, {fixed(high, digits, sign=sign)}]"


def probability(value: float | None) -> str:
    """A p value."""
    if value is None:
        return ""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def moment(time: float) -> str:
    """Seconds since 1970 as date and time of day."""
    return datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M UTC")


def metric_of(name: str) -> Metric:
    """How a metric is shown; one that nobody described is shown as it is."""
    known = METRICS.get(name)
    return known or Metric(name, name.rpartition("/")[2].replace("_", " "), "", "lower", "quality", 4)


def metric_title(name: str) -> str:
    """Label and unit."""
    metric = metric_of(name)
    return f"{metric.label}, {metric.unit}" if metric.unit and metric.unit not in ("bits/byte",) else metric.label


def metric_text(name: str, value: float) -> str:
    """A value of a metric, without its unit."""
    metric = metric_of(name)
    return fixed(value * metric.scale, metric.digits) if name in METRICS else significant(value, 4)


def metric_interval(name: str, measure: Measure) -> str:
    """The interval of a measure, without its unit."""
    if measure.low is None or measure.high is None:
        return ""
    return f"[{metric_text(name, measure.low)}, {metric_text(name, measure.high)}]"
