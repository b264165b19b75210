"""Scores a finished run's model on held-out text."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from superblock.evaluation.finished import Finished
from superblock.evaluation.language import beyond, describe
from superblock.evaluation.scoring import SPLITS, scored
from superblock.evaluation.slices import Layout, SlicedScores
from superblock.generation.session import Session, load_checkpoint
from superblock.training.manifest import load_progress


def measure(run: Finished, split: str, longest: int, *, say: Callable[[str], None]) -> dict[str, Any]:
    """The content of the run's `language.json`.

    Args:
        run: a finished run, opened.
        split: `test` or `validation`.
        longest: longest context that is read, in lengths of a training sequence.
        say: shows a line.
    """
    began = time.perf_counter()
    part, T = getattr(run.corpus, SPLITS[split]), run.config.data.sequence_length
    session = load_checkpoint(run.checkpoint)
    layout, sums = _sums(run, session, split, T)
    found = describe(
        sums, layout, part, split=split, step=int(load_progress(run.checkpoint)["step"]), digest=run.corpus.digest,
        trained_length=T,
    )  # fmt: skip
    found["longest"] = T * longest
    if longest > 1:
        layout, sums = _sums(run, session, split, T * longest)
        found["beyond"] = beyond(sums, layout, T)
    say(f"{run.record.name}: {len(part):,} tokens in {time.perf_counter() - began:.1f} s")
    return found


def _sums(run: Finished, session: Session, split: str, length: int) -> tuple[Layout, NDArray[np.float64]]:
    part, T = getattr(run.corpus, SPLITS[split]), run.config.data.sequence_length
    layout = Layout.of(part, length, T)
    metric = SlicedScores(layout, run.corpus.token_bytes).to(session.device)
    other = None if length == T else length
    for one in scored(session.model, session.device, part, run.config, sequence_length=other):
        metric.update(one.scores, one.batch, one.first_sequence)
    return layout, metric.compute()
