"""How large a model is, and what a token of training costs."""

from dataclasses import dataclass

from superblock.config.model import ModelConfig
from superblock.models.formulas import count
from superblock.models.language_model import build_model


@dataclass(frozen=True)
class ModelSize:
    """Parameters, and FLOPs of forward and backward per token."""

    total: int
    active: int
    training_flops_per_token: float


def measure(config: ModelConfig, sequence_length: int) -> ModelSize:
    """Closed forms for the superblock; a family of your own is built on the meta device and costs 6 FLOPs per parameter
    and token (arXiv 2001.08361), which is right for dense models with long rows of matrix products."""
    if config.family == "superblock":
        counts = count(config)
        return ModelSize(counts.total, counts.active, counts.training_flops_per_token(sequence_length))
    total = sum(parameter.numel() for parameter in build_model(config, seed=0, device="meta").parameters())
    return ModelSize(total, total, 6.0 * total)
