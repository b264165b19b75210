"""What a schedule starts means what was typed."""

import shlex
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from superblock.cli.overrides import literal
from superblock.config.report import ReportConfig
from superblock.reporting.schedule.words import command, free, quoted

TEXTS = st.text(st.characters(min_codepoint=32, exclude_categories=("Cs",)), min_size=1, max_size=12)


def test_a_report_without_settings_is_a_short_command() -> None:
    assert command(ReportConfig(), due=False) == [sys.executable, "-m", "superblock.cli", "report"]


@pytest.mark.parametrize("due", [False, True])
def test_the_same_report_comes_out(compose: Callable[..., Any], due: bool) -> None:
    typed = [
        "select.stages=[mvp1,mvp2]", "select.seeds=[1,2]", "select.days=7", "output=my reports/a", "fail_on=regression",
        "tracking=server", "tracking.uri='http://me:p%40ss@there:5000'", "quality_effect=0.02", "log=false", "title='100 %, it''s'",
        "schedule.cron=0 6 1,15 * *", "schedule.before=stage=mvp1 scale=mini seed=1,2,3 'tracking.arm=my arm'", "schedule.name=mine",
    ]  # fmt: skip
    typed[9] = r"title='100 %, it\'s \${here} \\'"
    config = compose("report", *typed)
    words = command(config, due=due)
    assert words[:4] == [sys.executable, "-m", "superblock.cli", "report"]
    again = compose("report", *words[4:])
    if due:
        assert again.schedule.due and again.schedule.cron == config.schedule.cron and again.schedule.name == "mine"
    else:
        assert again.schedule.cron is None and not again.schedule.due
    assert again.schedule.before == config.schedule.before
    again.schedule = config.schedule
    assert again == config


def as_hydra_reads(word: str) -> Any:
    """The value of an override after the shell and Hydra have had it."""
    [typed] = shlex.split(shlex.join([word]))
    value = OverridesParser.create().parse_override(literal(typed)).value()
    value = (
        [item.text if isinstance(item, QuotedString) else item for item in value] if isinstance(value, list) else value
    )
    return OmegaConf.create({"value": value.text if isinstance(value, QuotedString) else value}).value


@settings(max_examples=60)
@given(value=TEXTS | st.floats(0, 1, exclude_min=True) | st.booleans() | st.none())
def test_any_value_survives_the_shell_and_hydra(value: Any) -> None:
    assert as_hydra_reads(f"title={quoted(value)}") == value


@settings(max_examples=40)
@given(
    value=TEXTS
    | TEXTS.map(lambda text: f"'{text}'")
    | st.sampled_from(["'", '"', "''", "null", "a,b", "[x]", "${y}", "a\\"])
)
def test_any_free_text_survives(value: str) -> None:
    assert as_hydra_reads(f"schedule.before={free(value)}") == value


@settings(max_examples=30)
@given(values=st.lists(TEXTS, max_size=3))
def test_any_list_survives(values: list[str]) -> None:
    assert as_hydra_reads(f"select.arms={quoted(values)}") == values
