"""How a configuration field is written down once: its default, its meaning and its limits.

Every section is a plain dataclass whose fields are made by `knob`. The same line serves `--help`, validation and the
generated documentation, so the three cannot disagree. Standard library only: an error is known before a heavy import.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from enum import Enum
from operator import attrgetter
from typing import Any, get_args, get_origin, get_type_hints

SHORT = 3
"""Signs of a name in which one wrong sign leaves little that is alike, as in s6 for s5."""


class ConfigError(ValueError):
    """What the user wrote cannot work. The text names the key, the value and what is allowed."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The values a knob accepts; `None` means unbounded."""

    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None  # exclusive lower bound
    choices: tuple[str, ...] = ()

    def describe(self) -> str:
        """The limits in words, for help and error texts; empty when there are none."""
        if self.choices:
            return "one of " + ", ".join(self.choices)
        low = f"above {self.above:.10g}" if self.above is not None else ""
        if self.minimum is not None:
            low = f"at least {self.minimum:.10g}"
        high = f"at most {self.maximum:.10g}" if self.maximum is not None else ""
        return " and ".join(part for part in (low, high) if part)

    def allow(self, value: object) -> bool:
        """Whether `value` lies within the limits. NaN never does."""
        if self.choices:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return True
        if math.isnan(value):
            return False
        return (
            (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and (self.above is None or value > self.above)
        )


def knob(default: Any, meaning: str, **limits: Any) -> Any:
    """A documented dataclass field.

    Args:
        default: the value, or a callable that makes one (for lists and nested sections).
        meaning: one sentence with the unit, shown by `--help`.
        limits: `minimum`, `maximum`, `above` or `choices`, see `Limits`.
    """
    metadata = {"meaning": meaning, "limits": Limits(**limits)}
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def section(cls: Callable[[], Any], meaning: str) -> Any:
    """A nested configuration section."""
    return field(default_factory=cls, metadata={"meaning": meaning, "limits": Limits()})


@dataclass(frozen=True)
class FieldDoc:
    """One row of the reference: what `--help` prints about a key."""

    key: str
    type: str
    default: Any
    meaning: str
    allowed: str


def document(config: type, prefix: str = "") -> Iterator[FieldDoc]:
    """Yields the documentation of every key below a section, in the order of definition."""
    for f in fields(config):
        key = f"{prefix}{f.name}"
        make: Any = f.default_factory
        default = make() if f.default is MISSING else f.default
        if is_dataclass(default):
            yield from document(type(default), f"{key}.")
        else:
            name = f.type if isinstance(f.type, str) else getattr(f.type, "__name__", str(f.type))
            kind = str(f.type) if get_origin(f.type) is list else name
            yield FieldDoc(key, kind, default, f.metadata["meaning"], f.metadata["limits"].describe())


def validate(config: Any, path: str = "") -> None:
    """Checks every value below a section against its limits, then each section's own rules.

    A section may define `problems(self) -> Iterator[tuple[str, str]]`, yielding (field name, what is wrong with it).

    Raises:
        ConfigError: naming the key, the value and what is allowed.
    """
    for f in fields(config):
        key, value = f"{path}{f.name}", getattr(config, f.name)
        if is_dataclass(value):
            validate(value, f"{key}.")
            continue
        limits: Limits = f.metadata["limits"]
        values: Sequence[Any] = value if isinstance(value, list) else [value]
        for item in values:
            if item is not None and not limits.allow(item):
                hint = f" (did you mean {close[0]}?)" if (close := closest(item, limits.choices)) else ""
                raise ConfigError(f"{key}={_show(item)}: must be {limits.describe() or 'a number'}{hint}")
            if isinstance(item, float) and not math.isfinite(item):
                raise ConfigError(f"{key}={_show(item)}: must be a finite number")
    for name, problem in getattr(config, "problems", lambda: ())():
        raise ConfigError(f"{path}{name}={_show(attrgetter(name)(config))}: {problem}")


def differences(there: Any, here: Any, key: str, leave_out: Collection[str] = ()) -> Iterator[tuple[str, Any, Any]]:
    """What differs between two nested dictionaries as (key, value there, value here), in their order.

    Args:
        key: what the keys begin with.
        leave_out: names that do not count, on any level.
    """
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        for name in {**there, **here}:
            if name not in leave_out:
                yield from differences(there.get(name), here.get(name), f"{key}.{name}", leave_out)
    elif there != here:
        yield key, there, here


def restore(section: type, values: Mapping[str, Any], key: str) -> Any:
    """A configuration section from what `dataclasses.asdict` made of it.

    Args:
        key: what the section is called in an error.

    Raises:
        ConfigError: for a key that this version does not know.
    """
    result = section()
    known = {f.name for f in fields(result)}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"{key}.{name}={value}: this setting was recorded, and this version does not know it")
        default = getattr(result, name)
        of: Any = (*get_args(get_type_hints(section)[name]), None, None)[1]  # what a table holds
        if is_dataclass(default) and not isinstance(default, type):
            value = restore(type(default), value, f"{key}.{name}")
        elif isinstance(value, Mapping) and isinstance(of, type) and is_dataclass(of):
            value = {entry: restore(of, content, f"{key}.{name}.{entry}") for entry, content in value.items()}
        setattr(result, name, value)
    return result


def closest(word: object, known: Sequence[str] | Mapping[str, Any]) -> list[str]:
    """The known name most like a misspelt one, as a list of at most one; of a short name one sign may be half of it."""
    return get_close_matches(str(word), list(known), n=1, cutoff=0.5 if len(str(word)) <= SHORT else 0.6)


def _show(value: object) -> str:
    return "null" if value is None else str(value.value if isinstance(value, Enum) else value)
