"""Validation says which key, which value, and what is allowed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superblock.config.budget import Budget
from superblock.config.fields import ConfigError, Limits, closest, document, knob, section, validate
from superblock.config.run import RunConfig, fingerprint


@dataclass
class Inner:
    rate: float = knob(0.5, "a rate", above=0, maximum=1)
    kind: str = knob("wave", "a kind", choices=("wave", "ramp"))
    words: list[str] = knob(lambda: ["a"], "some words", choices=("a", "b"))

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.rate == 0.125:
            yield "rate", "is one eighth"


@dataclass
class Outer:
    count: int | None = knob(3, "a number", minimum=1)
    inner: Inner = section(Inner, "a section")


def broken(change: Callable[[Outer], None]) -> str:
    config = Outer()
    change(config)
    with pytest.raises(ConfigError) as caught:
        validate(config)
    return str(caught.value)


def test_the_defaults_are_valid() -> None:
    validate(Outer())
    validate(Outer(count=None))


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("rate", 0.0, "inner.rate=0.0: must be above 0 and at most 1"),
        ("rate", 1.5, "inner.rate=1.5: must be above 0 and at most 1"),
        ("rate", float("nan"), "inner.rate=nan: must be above 0 and at most 1"),
        ("rate", 0.125, "inner.rate=0.125: is one eighth"),
        ("kind", "wavy", "inner.kind=wavy: must be one of wave, ramp (did you mean wave?)"),
        ("kind", "7", "inner.kind=7: must be one of wave, ramp"),
        ("words", ["a", "c"], "inner.words=c: must be one of a, b"),
    ],
)
def test_the_message_names_key_value_and_limits(key: str, value: object, text: str) -> None:
    assert broken(lambda config: setattr(config.inner, key, value)) == text


def test_infinity_is_no_number() -> None:
    @dataclass
    class Open:
        rate: float = knob(1.0, "without limits")

    with pytest.raises(ConfigError, match="rate=inf: must be a finite number"):
        validate(Open(rate=float("inf")))


@given(st.floats(allow_nan=True), st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_limits_allow_exactly_what_they_describe(value: float, low: float, high: float) -> None:
    assert Limits(minimum=low, maximum=high).allow(value) == (low <= value <= high)
    assert Limits(above=low).allow(value) == (value > low)


def test_documentation_follows_the_definition() -> None:
    rows = {row.key: row for row in document(Outer)}
    assert list(rows) == ["count", "inner.rate", "inner.kind", "inner.words"]
    assert rows["count"].type == "int | None" and rows["count"].allowed == "at least 1"
    assert rows["inner.words"].default == ["a"]


def test_closest() -> None:
    assert closest("optmi", ["optim", "data"]) == ["optim"]
    assert closest("zzz", ["optim", "data"]) == []


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("300 steps", 300, "steps"),
        ("300steps", 300, "steps"),
        ("2M tokens", 2e6, "tokens"),
        ("1.1B tokens", 1.1e9, "tokens"),
        ("90 seconds", 1.5, "minutes"),
        ("1.5 hours", 90, "minutes"),
        ("1e3 steps", 1000, "steps"),
    ],
)
def test_budgets(text: str, amount: float, unit: str) -> None:
    budget = Budget.parse(text)
    assert budget.amount == pytest.approx(amount) and budget.unit == unit


@pytest.mark.parametrize("text", ["-3 steps", "0 steps", "steps", "3", "3 parsecs", "1e999 steps", "nan minutes", ""])
def test_bad_budgets(text: str) -> None:
    with pytest.raises(ConfigError, match="trainer.budget"):
        Budget.parse(text)


def test_a_budget_becomes_steps() -> None:
    assert Budget.parse("2M tokens").steps(tokens_per_step=2048, seconds_per_step=1) == 977
    assert Budget.parse("4 minutes").steps(tokens_per_step=1, seconds_per_step=0.5) == 480
    assert Budget.parse("1 seconds").steps(tokens_per_step=1, seconds_per_step=60) == 1


def test_fingerprint_counts_what_changes_training() -> None:
    same, other = RunConfig(name="a"), RunConfig(seed=2)
    same.tracking.port = 1
    same.evaluation.every = 0.5
    same.data.cache_dir = "/somewhere"
    same.trainer.progress = False
    assert fingerprint(same) == fingerprint(RunConfig()) != fingerprint(other)
    deeper = RunConfig()
    deeper.model.num_superblocks = 3
    assert fingerprint(deeper) != fingerprint(RunConfig())


def test_a_field_without_a_meaning_is_a_mistake() -> None:
    @dataclass
    class Bare:
        value: int = field(default=1)

    with pytest.raises(KeyError):
        list(document(Bare))
