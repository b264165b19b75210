"""Beginning from a parent: its weights and optimizer state in the deeper model, and what is true at the boundary.

Legend: S superblocks of the parent, G of the grown model.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from superblock.config.growth import GrowthConfig
from superblock.config.model import ModelConfig
from superblock.models.batch import Batch
from superblock.models.growth import GrowthPlan, plan_growth, transplant
from superblock.models.language_model import build_model
from superblock.optim.growth import transplant_states
from superblock.training.checkpoint import read_optimizer_states, read_weights
from superblock.training.lineage import Parent


@dataclass(frozen=True)
class Boundary:
    """What growth changed, measured in fp32 on the same tokens before the first step. None is not promised or not known."""

    method: str
    superblocks: tuple[int, int]
    """S and G."""
    max_logit_difference: float | None
    """Between the parent's logits and the grown model's: 0 up to rounding for `identity`."""
    exit_difference: float | None
    """Largest difference of a token's loss between an exit of the parent, its output included, and the same exit of the
    grown model: 0 up to rounding for `identity` and `stack`."""
    parent_loss: float | None
    grown_loss: float | None
    """Nats per token."""
    inherited_states: int = 0
    """Parameters whose optimizer state was taken over."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"superblocks": list(self.superblocks)}

    def describe(self) -> str:
        S, G = self.superblocks
        parts = [f"{S} -> {G} superblocks by {self.method}"]
        if self.parent_loss is not None and self.grown_loss is not None:
            parts.append(f"loss {self.parent_loss:.4f} before and {self.grown_loss:.4f} after")
        if self.max_logit_difference is not None:
            difference = self.max_logit_difference
            parts.append(f"logits differ by at most {difference:.1e}" if difference else "logits equal")
        parts.append(
            f"optimizer state of {self.inherited_states} tensors" if self.inherited_states else "new optimizer"
        )
        return ", ".join(parts)


class Growth:
    """Turns a fresh model and its optimizer into a parent's successors, one after the other.

    The optimizer comes second, because a budget in minutes is measured in between, with an optimizer without state.

    Raises:
        ConfigError: if the parent is no ancestor of this model (`models.growth.plan_growth`).
    """

    def __init__(self, parent: Parent, config: ModelConfig, growth: GrowthConfig) -> None:
        self.parent, self.config, self.growth = parent, config, growth
        self.plan: GrowthPlan = plan_growth(parent.model, config, growth.method)

    def weights(self, model: nn.Module, batch: Batch | None) -> Boundary:
        """Gives `model` its parent's weights, in place; it may be sharded.

        Args:
            batch: tokens on which both are compared; None where the model cannot be called alone.
        """
        state = read_weights(self.parent.checkpoint)
        transplant(self.plan, state, model)
        S, G = self.plan.superblocks
        if batch is None:
            return Boundary(self.growth.method, (S, G), None, None, None, None)
        return compare(self.parent.model, state, model, batch, self.growth.method)

    def optimizer(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Gives the optimizer its parent's state where `growth.optimizer` asks for it; returns how many parameters had one."""
        if not self.growth.optimizer:
            return 0
        transplant_states(self.plan, read_optimizer_states(self.parent.checkpoint), model, optimizer)
        return len(optimizer.state)


@torch.no_grad()
def compare(parent: ModelConfig, state: dict[str, Tensor], model: nn.Module, batch: Batch, method: str) -> Boundary:
    """Scores the same tokens with the parent and with the model grown from it by `method`, in fp32.

    Args:
        parent, state: the parent's configuration and weights.
        model: grown, not trained since; its mode is restored.
        batch: on the model's device.
    """
    before = build_model(parent, seed=0)
    before.load_state_dict(state)
    before.to(batch.input_ids_BT.device).eval()
    training = model.training
    model.eval()
    try:
        with torch.autocast(batch.input_ids_BT.device.type, enabled=False):
            then, now = ({k: s.nll_BT for k, s in _scores(one, batch).items()} for one in (before, model))
            logits, grown = (one(batch.input_ids_BT, batch.pack).logits_BTV for one in (before, model))
    finally:
        model.train(training)
    S, G = parent.num_superblocks, model.config.num_superblocks  # type: ignore[union-attr]
    pairs = [(f"exit/{s}", f"exit/{s}") for s in range(1, S)] + [("next_token", f"exit/{S}")]
    exits = max(float((then[a] - now[b]).abs().max()) for a, b in pairs)
    tokens = max(1, batch.num_targets)
    return Boundary(
        method,
        (S, G),  # type: ignore[arg-type]
        max_logit_difference=float((logits - grown).abs().max()) if method == "identity" else None,
        exit_difference=exits if method in ("identity", "stack") else None,
        parent_loss=float(then["next_token"].sum()) / tokens,
        grown_loss=float(now["next_token"].sum()) / tokens,
    )


def _scores(model: nn.Module, batch: Batch) -> dict[str, Any]:
    scores: dict[str, Any] = model(batch.input_ids_BT, batch.pack, batch.labels_BT, score=True).scores
    return scores
