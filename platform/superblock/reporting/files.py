"""`report.json`: a report as a file, versioned, and back; what is read equals what was written."""

import json
import os
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from superblock.reporting.content import SCHEMA, Report

FILE = "report.json"


def write_report(report: Report, folder: Path) -> None:
    """Writes `report.json` into a folder, made if needed; the same report gives the same bytes.

    Raises:
        ValueError: for a number that is not finite, which JSON does not know.
    """
    text = report_text(report)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{FILE}.{os.getpid()}.tmp"
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, folder / FILE)


def report_text(report: Report) -> str:
    """The JSON.

    Raises:
        ValueError: for a number that is not finite.
    """
    return json.dumps(asdict(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_report(path: Path) -> Report | None:
    """The report in a file or in a folder; None if there is none, or it is not one of this version."""
    file = path / FILE if path.is_dir() else path
    try:
        data = json.loads(file.read_text("utf-8"))
        if not isinstance(data, dict) or data.get("schema") != SCHEMA:
            return None
        found = _restore(Report, data)
    except (OSError, ValueError, TypeError, KeyError):
        return None
    assert isinstance(found, Report)
    return found


def _restore(kind: Any, value: Any) -> Any:
    """A value of a type of `content` from what `asdict` and JSON made of it.

    Raises:
        TypeError: if it is of another kind.
        KeyError: if a field without a default is missing.
    """
    origin, of = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and types.NoneType in of:
            return None
        [some] = [one for one in of if one is not types.NoneType]
        return _restore(some, value)
    if origin is Literal:
        return _one_of(of, value)
    if origin is tuple:
        return tuple(_restore(of[0], item) for item in _checked(list, value))
    if origin is dict:
        return {key: _restore(of[1], item) for key, item in _checked(dict, value).items()}
    if is_dataclass(kind):
        return _dataclass(kind, _checked(dict, value))
    return float(_checked((int, float), value)) if kind is float else _checked(kind, value)


def _dataclass(kind: Any, values: Mapping[str, Any]) -> Any:
    """Fields that this version does not know are passed over: they were added without changing what others mean."""
    hints, known = _hints(kind), {}
    for one in fields(kind):
        if one.name in values:
            known[one.name] = _restore(hints[one.name], values[one.name])
        elif one.default is MISSING and one.default_factory is MISSING:
            raise KeyError(one.name)
    return kind(**known)


@lru_cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _one_of(known: tuple[Any, ...], value: Any) -> Any:
    if value not in known:
        raise TypeError(f"{value!r} is none of {known}")
    return value


def _checked(kind: Any, value: Any) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{value!r} is not of type {kind}")
    return value
