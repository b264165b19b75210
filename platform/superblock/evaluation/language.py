"""What a finished model knows of a text: how many bits it needs, by context and by package, with intervals.

`language.json` of a run holds it; the end of a training and the suite `language` write the same.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from superblock.data.token_file import TokenFile
from superblock.evaluation.metrics import LN2, LossTotals
from superblock.evaluation.slices import SUMS, Layout, stretch_names
from superblock.evaluation.statistics import Interval, bootstrap_interval
from superblock.tracking.files import read_json, write_json
from superblock.tracking.run import Tracker

SCHEMA = "superblock.language/1"
BLOCKS = 256
"""Stretches of text that intervals draw anew, at most."""
RESAMPLES = 1000
LOOSE = "outside packages"
"""Name of the documents that lie in no folder."""
NLL, TOKENS, BYTES, TOP1, TOP5 = range(len(SUMS))

Sums = NDArray[np.float64]
Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def file_name(split: str) -> str:
    """Where the results on a split lie in a run's folder: `language.json` is the test's."""
    return "language.json" if split == "test" else f"language-{split}.json"


def read_language(folder: Path, split: str = "test") -> dict[str, Any]:
    """What was measured of a run; empty if nothing was, or by a version that wrote something else."""
    found = read_json(folder / file_name(split))
    return found if found.get("schema") == SCHEMA else {}


def describe(
    sums_UPK: Sums, layout: Layout, part: TokenFile, *, split: str, step: int, digest: str, trained_length: int
) -> dict[str, Any]:
    """The content of `language.json`.

    Args:
        sums_UPK: see `SlicedScores`, of the whole split.
        layout: that they were made with.
        part: the split's tokens.
        split: `test` or `validation`.
        step: of the checkpoint that was measured.
        digest: of the text.
        trained_length: tokens of a training sequence.

    Raises:
        ValueError: if a token of the split was not scored, or was scored twice.
    """
    total_K = sums_UPK.sum(axis=(0, 1))
    if total_K[TOKENS] != len(part) - 1:
        raise ValueError(f"{int(total_K[TOKENS]):,} tokens were scored of the {len(part) - 1:,} of the {split} split")
    totals = LossTotals(float(total_K[NLL]), int(total_K[TOKENS]))
    blocks = merged(sums_UPK.sum(axis=1))
    return {
        "schema": SCHEMA,
        "split": split,
        "step": step,
        "data_digest": digest,
        "sequence_length": trained_length,
        # bytes in proportion to the tokens, as a run's own test counts them
        "bits_per_byte": totals.bits_per_byte(part.num_bytes * totals.tokens / len(part)),
        "perplexity": totals.perplexity,
        "accuracy": float(total_K[TOP1] / total_K[TOKENS]),
        "accuracy_top5": float(total_K[TOP5] / total_K[TOKENS]),
        "bytes": int(total_K[BYTES]),
        "tokens": totals.tokens,
        "intervals": {
            "confidence": 0.95,
            "blocks": len(blocks),
            "bits_per_byte": _ends(_interval(blocks, bits)),
            "accuracy": _ends(_interval(blocks, accuracy)),
        },
        "positions": _positions(sums_UPK, layout),
        "beyond": [],
        "packages": _packages(sums_UPK, layout, part.group_names),
    }


def beyond(sums_UPK: Sums, layout: Layout, trained_length: int) -> list[dict[str, Any]]:
    """The stretches of a context longer than the model was trained on, from sequences that reach so far."""
    return [one for one in _positions(sums_UPK, layout) if one["up_to"] > trained_length]


def bits(mean_RK: Sums) -> Sums:
    """[R] bits per byte."""
    return _ratio(mean_RK[:, NLL], mean_RK[:, BYTES]) / LN2


def accuracy(mean_RK: Sums) -> Sums:
    """[R] share of targets that were the most likely token."""
    return _ratio(mean_RK[:, TOP1], mean_RK[:, TOKENS])


def merged(sums_NK: Sums) -> Sums:
    """Neighbours added up until at most `BLOCKS` rows with tokens are left: longer blocks depend less on each other."""
    there = sums_NK[sums_NK[:, TOKENS] > 0]
    groups = np.array_split(np.arange(len(there)), min(BLOCKS, len(there)))
    return np.stack([there[rows].sum(axis=0) for rows in groups])


def metrics(found: Mapping[str, Any]) -> tuple[dict[str, float], dict[int, dict[str, float]]]:
    """What the tracker records: single results, and curves over context by the context as step."""
    section = "language" if found["split"] == "test" else f"language_{found['split']}"
    results = {
        f"{section}/{name}": found[name] for name in ("bits_per_byte", "perplexity", "accuracy", "accuracy_top5")
    }
    for one in found["packages"]:
        results |= {f"{section}/package/{one['name']}/{key}": one[key] for key in ("bits_per_byte", "accuracy")}
    curves = {
        one["up_to"]: {f"{section}/position/{key}": one[key] for key in ("bits_per_byte", "accuracy")}
        for one in (*found["positions"], *found["beyond"])
    }
    finite = {name: value for name, value in results.items() if value is not None and math.isfinite(value)}
    return finite, {step: {k: v for k, v in values.items() if v is not None} for step, values in curves.items()}


def record(found: Mapping[str, Any], folder: Path, tracker: Tracker) -> None:
    """Writes the file into the run's folder, and records it with its numbers."""
    path = folder / file_name(found["split"])
    write_json(path, found)
    results, curves = metrics(found)
    tracker.result(results)
    for step, values in curves.items():
        tracker.metrics(values, step)
    tracker.artifact(path)


# -- parts ------------------------------------------------------------------------------------------------------------


def _positions(sums_UPK: Sums, layout: Layout) -> list[dict[str, Any]]:
    named = zip(stretch_names(layout.ends_P), layout.ends_P.tolist(), strict=True)
    rows = [_slice(sums_UPK[:, p], name) | {"up_to": end} for p, (name, end) in enumerate(named)]
    return [row for row in rows if row["tokens"]]


def _packages(sums_UPK: Sums, layout: Layout, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Largest first; none where all documents lie together, since then there is nothing to tell apart."""
    sums_UK, present = sums_UPK.sum(axis=1), np.unique(layout.group_U)
    if len(present) < 2:
        return []
    rows = [_slice(sums_UK[layout.group_U == group], names[group] or LOOSE) for group in present.tolist()]
    return sorted((row for row in rows if row["bytes"]), key=lambda row: (-row["bytes"], row["name"]))


def _slice(sums_NK: Sums, name: str) -> dict[str, Any]:
    total_K = sums_NK.sum(axis=0)
    tokens, size = int(total_K[TOKENS]), int(total_K[BYTES])
    found: dict[str, Any] = {"name": name, "bits_per_byte": None, "low": None, "high": None, "accuracy": None, "accuracy_top5": None,
             "tokens": tokens, "bytes": size}  # fmt: skip
    if tokens and size:
        interval = _interval(merged(sums_NK), bits)
        found |= {"bits_per_byte": interval.mean, **dict(zip(("low", "high"), _ends(interval), strict=True)),
                  "accuracy": float(total_K[TOP1] / tokens), "accuracy_top5": float(total_K[TOP5] / tokens)}  # fmt: skip
    return found


def _interval(blocks: Sums, statistic: Statistic) -> Interval:
    return bootstrap_interval(blocks, statistic, resamples=RESAMPLES)


def _ends(interval: Interval) -> list[float | None]:
    return [end if math.isfinite(end) else None for end in (interval.low, interval.high)]


def _ratio(above: Sums, below: Sums) -> Sums:
    """NaN where a draw holds nothing."""
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
