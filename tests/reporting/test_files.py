"""`report.json`: what is read equals what was written, and nothing else is read."""

import json
import math
import tempfile
import types
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from superblock.reporting.content import SCHEMA, History, Point, Report
from superblock.reporting.files import FILE, read_report, report_text, write_report

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
PLAIN = Report("name", "title", 1.0, "new", "words", "here", None)


def strategy(kind: Any) -> st.SearchStrategy[Any]:
    """Values of a type of the contract."""
    origin, of = get_origin(kind), get_args(kind)
    if kind is Any:
        return st.one_of(st.integers(), st.text(max_size=3), st.none(), st.booleans())
    if origin in (Union, types.UnionType):
        return st.one_of(*map(strategy, of))
    if origin is tuple:
        return st.lists(strategy(of[0]), max_size=1).map(tuple)
    if origin is dict:
        return st.dictionaries(st.text(max_size=3), strategy(of[1]), max_size=1)
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return st.builds(kind, **{one.name: strategy(hints[one.name]) for one in fields(kind)})
    return NUMBERS if kind is float else st.from_type(kind)


HINTS = get_type_hints(Report)
PARTS = [one.name for one in fields(Report) if get_origin(HINTS[one.name]) is tuple]


@pytest.mark.parametrize("part", PARTS)
@settings(max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_every_report_comes_back_as_it_was(part: str, data: st.DataObject) -> None:
    report = replace(PLAIN, **{part: (data.draw(strategy(get_args(HINTS[part])[0])),)})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "deep" / "er"
        write_report(report, folder)
        assert read_report(folder) == read_report(folder / FILE) == report
        assert (folder / FILE).read_text("utf-8") == report_text(report)
        assert [path.name for path in folder.iterdir()] == [FILE]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_hold_is_refused_and_nothing_written(value: float, tmp_path: Path) -> None:
    point = Point(0.0, value, "", ())
    history = History("g", "test/bits_per_byte", "m", (point,), None, None, False, "")
    with pytest.raises(ValueError):
        write_report(replace(PLAIN, histories=(history,)), tmp_path / "r")
    assert not (tmp_path / "r").exists()


def changed(**values: Any) -> str:
    return json.dumps(json.loads(report_text(PLAIN)) | values)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "3", "{}", changed(schema="superblock.report/2"), changed(time="yesterday"), changed(verdict="fine"),
        changed(groups={}), changed(groups=[{"key": "a"}]), changed(baseline=3), changed(problems=[1]), changed(time=True),
    ],
)  # fmt: skip
def test_anything_else_is_no_report(text: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text(text)
    assert read_report(tmp_path) is None


def test_where_nothing_is_there_is_no_report(tmp_path: Path) -> None:
    assert read_report(tmp_path) is None
    assert read_report(tmp_path / "absent.json") is None


def test_fields_that_came_later_are_passed_over_and_absent_ones_have_their_defaults(tmp_path: Path) -> None:
    data = json.loads(changed(later=[1, 2])) | {"schema": SCHEMA}
    del data["probes"], data["problems"]
    (tmp_path / FILE).write_text(json.dumps(data))
    assert read_report(tmp_path) == PLAIN
