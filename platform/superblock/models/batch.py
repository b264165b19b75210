"""What goes into a model and what comes out. Legend: B sequences, T tokens, V vocabulary, L MoE layers, E experts."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from superblock.kernels.packing import PackInfo, move

IGNORE = -100
"""Label of a position that is not scored."""


@dataclass(frozen=True)
class Batch:
    """Packed documents. `labels_BT[b, t]` is the token after `input_ids_BT[b, t]`, or `IGNORE`."""

    input_ids_BT: Tensor
    labels_BT: Tensor
    pack: PackInfo
    source: "Batch | None" = None
    """What this was copied from to another device."""

    @property
    def host(self) -> "Batch":
        """The same batch in the processor's memory, if it was ever there: counting targets there waits for no GPU."""
        return self if self.source is None else self.source

    @property
    def num_targets(self) -> int:
        """Positions whose next token is scored."""
        return int((self.host.labels_BT != IGNORE).sum())

    def split(self, parts: int) -> list["Batch"]:
        """Equal parts along the batch dimension, each with its own boundaries."""
        if parts == 1:
            return [self]
        tensors = zip(self.input_ids_BT.chunk(parts), self.labels_BT.chunk(parts), self.pack.chunk(parts), strict=True)
        sources = [None] * parts if self.source is None else self.source.split(parts)
        return [Batch(*three, source) for three, source in zip(tensors, sources, strict=True)]

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        ids_BT, labels_BT = (move(t, device) for t in (self.input_ids_BT, self.labels_BT))
        source = self if self.input_ids_BT.device.type == "cpu" else self.source
        return Batch(ids_BT, labels_BT, self.pack.to(device), source)


@dataclass(frozen=True, kw_only=True)
class Supervision:
    """What the prediction heads learn in this step; a pure function of the step (training.supervision)."""

    begin: int
    """First column of the slice of each sequence on which heads are trained."""
    end: int
    """Column after the slice."""
    mtp_weight: float = 0.0
    """Weight of the last superblock's multi-token loss; 0 leaves it out."""
    exits: tuple[tuple[int, float], ...] = ()
    """Exits that learn: the superblock, from 0 and not the last, and the weight of its losses, in rising order."""
    exit_depths: bool = True
    """Whether the multi-token depths of those exits learn too."""


@dataclass(frozen=True)
class LossTerm:
    """One loss: `weight * total / count` enters the objective, with `count` summed over micro-batches and processes."""

    total: Tensor
    """fp32 scalar with gradient: sum over the targets."""
    count: Tensor | int
    """A number, or a scalar that stays on the device; `count_targets` tells it beforehand."""
    weight: float = 1.0


@dataclass(frozen=True)
class TokenScores:
    """How well one head predicted its targets, without gradient."""

    nll_BT: Tensor
    """fp32 negative log-likelihood in nats; 0 where the label is `IGNORE`."""
    rank_BT: Tensor
    """int64 number of tokens more likely than the target: 0 is a top-1 hit; -1 where ignored."""


@dataclass
class ModelOutput:
    """What `LanguageModel.forward` returns; which fields are filled depends on what was asked."""

    logits_BTV: Tensor | None = None
    losses: dict[str, LossTerm] = field(default_factory=dict)
    scores: dict[str, TokenScores] = field(default_factory=dict)
    expert_counts_LE: Tensor | None = None
    """fp32 tokens routed to each expert of each MoE layer in this forward pass."""
    router_stats: dict[str, Tensor] = field(default_factory=dict)
    """Per-layer scalars [L]: router_logit_rms, gate_top1_mean, gate_entropy, shared_routed_ratio."""
