"""Which predictions a model is trained on or scored by, and their targets: pure functions of labels and boundaries.

Training asks for the number of targets before it computes anything, because losses are divided by the targets of all
micro-batches and processes. Legend: B sequences, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from superblock.config.model import ModelConfig
from superblock.kernels.packing import PackInfo
from superblock.models.batch import IGNORE, Batch, Supervision


@dataclass(frozen=True)
class HeadTerm:
    """One prediction of a head: `depth` tokens beyond the next one, after superblock `superblock` (from 0)."""

    name: str
    superblock: int
    depth: int
    weight: float = 1.0


def trained_terms(config: ModelConfig, supervision: Supervision | None) -> list[HeadTerm]:
    """What `supervision` asks of the heads; the depths of a head share its weight equally, an exit adds its own."""
    if supervision is None:
        return []
    last, depths = config.num_superblocks - 1, _depths(config)
    terms = []
    if supervision.mtp_weight:
        share = supervision.mtp_weight / config.mtp.depth
        terms += [HeadTerm(f"mtp/{k}", last, k, share) for k in depths]
    for s, weight in supervision.exits:
        assert 0 <= s < last, f"superblock {s} has no early exit: the last one, {last}, has the model's own output"
        terms.append(HeadTerm(f"exit/{s + 1}", s, 0, weight))
        if supervision.exit_depths:
            terms += [HeadTerm(f"exit/{s + 1}/mtp/{k}", s, k, weight / config.mtp.depth) for k in depths]
    return terms


def scored_terms(config: ModelConfig) -> list[HeadTerm]:
    """Every early exit and the last superblock's depths."""
    last = config.num_superblocks - 1
    exits = [HeadTerm(f"exit/{s + 1}", s, 0) for s in range(last)]
    return exits + [HeadTerm(f"mtp/{k}", last, k) for k in _depths(config)]


def ahead(tokens_BT: Tensor, pack: PackInfo, places: int, fill: int) -> Tensor:
    """The token `places` ahead within the same document, `fill` where there is none."""
    if places == 0:
        return tokens_BT
    shifted_BT = torch.full_like(tokens_BT, fill)
    if places < tokens_BT.shape[1]:
        position_BT = pack.position_ids_BT
        same_BT = position_BT[:, places:] == position_BT[:, :-places] + places
        shifted_BT[:, :-places] = torch.where(same_BT, tokens_BT[:, places:], fill)
    return shifted_BT


def head_labels(labels_BT: Tensor, pack: PackInfo, terms: Sequence[HeadTerm]) -> dict[int, Tensor]:
    """Labels [B, T] by depth. A target counts where the token at the depth's own place is of the same document."""
    return {depth: ahead(labels_BT, pack, depth, IGNORE) for depth in {term.depth for term in terms}}


def count_targets(batch: Batch, config: ModelConfig, supervision: Supervision | None) -> dict[str, int]:
    """Targets of every loss term of a call, counted where the batch came from. The router's loss counts once per call."""
    labels_BT, pack = batch.host.labels_BT, batch.pack.host
    terms = trained_terms(config, supervision)
    labels = head_labels(labels_BT, pack, terms)
    columns = slice(supervision.begin, supervision.end) if supervision is not None else slice(None)
    counted = [labels_BT, *(labels[term.depth][:, columns] for term in terms)]
    counts = torch.stack([count(t) for t in counted]).tolist()
    named = dict(zip(["next_token", *(term.name for term in terms)], counts, strict=True))
    return named | ({"router": 1} if config.moe.aux_loss or config.moe.z_loss else {})


def count(labels: Tensor) -> Tensor:
    """How many labels are scored, an int64 scalar on their device."""
    return (labels != IGNORE).sum()


def _depths(config: ModelConfig) -> range:
    return range(1, config.mtp.depth + 1) if config.mtp.enabled else range(0)
