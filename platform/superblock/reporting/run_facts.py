"""One run's facts, put together in the same way wherever its files and labels were read."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from superblock.reporting.facts import RunFacts, Series
from superblock.reporting.metrics import METRICS, is_result

SUMMARY = {
    "steps": "run/steps", "tokens": "run/tokens", "minutes": "run/minutes", "minutes_in_all": "run/minutes_in_all",
    "peak_memory_bytes": "run/memory_bytes",
}  # fmt: skip
EXIT_CURVES = {
    "bits_per_byte": "bits_per_byte",
    "tokens_per_second": "tokens_per_second",
    "trained_bits_per_byte": "trained",
}
PARTS = ("positions", "beyond", "packages")
"""Lists of the language suite: parts of the context, of what lies beyond the trained one, and of the text."""
TRAINING = "training"
"""Suite of runs that are no part of a benchmark."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """What a source says of a run. Labels are MLflow's tags, which the spool holds too."""

    name: str
    status: str
    started: float
    ended: float | None
    tags: Mapping[str, str]
    params: Mapping[str, str] = field(default_factory=dict)
    latest: Mapping[str, float] = field(default_factory=dict)
    """Last values of metrics; others than a report's results are passed over."""
    curves: Mapping[str, Series] = field(default_factory=dict)
    data: str = ""
    uid: str = ""
    mlflow_run_id: str | None = None
    experiment_id: str | None = None
    summary: Mapping[str, Any] = field(default_factory=dict)
    statements: Mapping[str, Any] = field(default_factory=dict)
    language: Mapping[str, Any] = field(default_factory=dict)
    samples: str | None = None


def run_facts(told: Told) -> RunFacts:
    """The facts. Whatever a file holds that is not of the expected kind is left out."""
    tags, summary = told.tags, told.summary
    machine = tags.get("hardware.fingerprint", "")
    if machine and told.params.get("threads"):
        machine += f"-{told.params['threads']}t"
    return RunFacts(
        name=told.name, stage=tags.get("stage", ""), scale=tags.get("scale", ""), arm=tags.get("arm", ""),
        seed=int(tags["seed"]) if tags.get("seed", "").isdecimal() else 0, suite=tags.get("suite", TRAINING),
        status=told.status, started=told.started, ended=told.ended, fingerprint=tags.get("fingerprint", ""),
        commit=tags.get("mlflow.source.git.commit", ""), dirty=tags.get("git.dirty") == "true",
        hardware=tags.get("hardware", ""), machine=machine, command=_whole(tags.get("mlflow.source.name", "")),
        data_digest=tags.get("data.digest") or str(summary.get("data_digest") or ""), data=told.data,
        mlflow_run_id=told.mlflow_run_id, experiment_id=told.experiment_id,
        superblocks=_superblocks(told.params, summary), lineage=_lineage(told.name, summary), settings=dict(told.params),
        results=_results(told.latest, summary), curves={**told.curves, **_exits(summary)},
        statements=tuple(one for one in _list(told.statements, "outcomes") if isinstance(one, Mapping)),
        prediction=_prediction(summary), samples=told.samples, language=_language(told.language),
    )  # fmt: skip


def _whole(command: str) -> str:
    """The command with its name, which the console script once left out of what it recorded: `superblock stage=mvp1`."""
    program, _, settings = command.partition(" ")
    lacks = program == "superblock" and (settings.startswith("--") or "=" in settings.split(" ")[0])
    return f"{program} run {settings}" if lacks else command


def doubts(told: Told) -> list[str]:
    """What a reader should know before trusting the run, in words."""
    found = []
    if told.tags.get("diverged") == "true":
        first = told.tags.get("diverged.first", "")
        found.append(f"{told.name} diverged{f' ({first})' if first else ''}")
    bad = [name for name in METRICS if name in told.latest and not _is_number(told.latest[name])]
    if bad:
        found.append(f"{told.name}: {', '.join(bad)} {'are' if len(bad) > 1 else 'is'} not finite and left out")
    if strange := list(_strange(told)):
        found.append(f"{told.name}: {', '.join(strange)} not of the expected kind and left out")
    return found


def _strange(told: Told) -> Iterator[str]:
    """The parts of a run's files that `run_facts` leaves out."""
    if len(_lineage_entries(told.summary)) < len(_list(told.summary, "lineage")):
        yield "lineage in summary.json"
    if any(not isinstance(values, Mapping) for values in _table(told.summary, "exits").values()):
        yield "exits in summary.json"
    if any(not isinstance(one, Mapping) for one in _list(told.statements, "outcomes")):
        yield "outcomes in statements.json"
    kept = _language(told.language)
    for part in PARTS:
        if part in told.language and kept[part] != told.language[part]:
            yield f"{part} in language.json"


def _superblocks(params: Mapping[str, str], summary: Mapping[str, Any]) -> int | None:
    if (lineage := _lineage_entries(summary)) and _is_number(lineage[-1].get("superblocks")):
        return int(lineage[-1]["superblocks"])
    text = params.get("model.num_superblocks", "")
    return int(text) if text.isdecimal() else None


def _lineage(name: str, summary: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(one["run"] for one in _lineage_entries(summary)) or (name,)


def _lineage_entries(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """All of them or none: of a lineage with a gap neither length nor tokens are known."""
    entries = _list(summary, "lineage")
    whole = all(
        isinstance(one, Mapping) and isinstance(one.get("run"), str) and _is_number(one.get("tokens"))
        for one in entries
    )
    return entries if whole else []


def _language(measured: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the language suite measured, without entries that have no name or are none."""
    kept = {
        part: [one for one in _list(measured, part) if isinstance(one, Mapping) and isinstance(one.get("name"), str)]
        for part in PARTS
        if part in measured
    }
    return {**measured, **kept}


def _results(latest: Mapping[str, float], summary: Mapping[str, Any]) -> dict[str, float]:
    found = {name: value for name, value in latest.items() if is_result(name)}
    found |= {name: summary[key] for key, name in SUMMARY.items() if key in summary}
    if lineage := _lineage_entries(summary):
        found["lineage/tokens"] = sum(one["tokens"] for one in lineage)
    test = _table(_table(summary, "splits"), "test")
    known = _table(test, "references").items()
    found |= {f"reference/{name}": value for name, value in known if not name.startswith("best ")}
    return {name: float(found[name]) for name in sorted(found) if _is_number(found[name])}


def _exits(summary: Mapping[str, Any]) -> dict[str, Series]:
    """What each exit reached, by the superblocks it uses."""
    exits = {
        int(depth): values
        for depth, values in _table(summary, "exits").items()
        if depth.isdecimal() and isinstance(values, Mapping)
    }
    found = {}
    for key, name in EXIT_CURVES.items():
        known = [(depth, values[key]) for depth, values in sorted(exits.items()) if _is_number(values.get(key))]
        if known:
            found[f"exits/{name}"] = Series(tuple(d for d, _ in known), tuple(float(v) for _, v in known))
    return found


def _prediction(summary: Mapping[str, Any]) -> dict[str, Any]:
    known = _table(summary, "prediction")
    return {
        name: {bound: float(one[bound]) for bound in ("value", "low", "high")}
        for name, one in known.items()
        if isinstance(one, Mapping) and all(_is_number(one.get(bound)) for bound in ("value", "low", "high"))
    }


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _list(table: Mapping[str, Any], key: str) -> list[Any]:
    value = table.get(key)
    return value if isinstance(value, list) else []


def _table(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = table.get(key)
    return value if isinstance(value, Mapping) else {}
