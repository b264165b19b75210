"""Optimizer and learning-rate schedule."""

from collections.abc import Iterator
from dataclasses import dataclass

from superblock.config.fields import knob


@dataclass
class OptimConfig:
    """One optimizer object: AdamW for everything, or Muon for matrices and AdamW for the rest."""

    name: str = knob(
        "adamw", "adamw, or muon for the hidden matrices with AdamW for the rest", choices=("adamw", "muon")
    )
    learning_rate: float = knob(3e-3, "peak rate of AdamW for matrices", above=0, maximum=10)
    table_rate: float = knob(
        3.0, "rate of the embedding and unembedding tables, as a multiple of learning_rate", above=0, maximum=1000
    )
    vector_rate: float = knob(
        3.0, "rate of norms, biases, gates and convolutions, as a multiple of learning_rate", above=0, maximum=1000
    )
    muon_learning_rate: float = knob(0.02, "peak rate of Muon", above=0, maximum=10)
    muon_momentum: float = knob(0.95, "momentum of Muon", minimum=0, maximum=0.9999)
    beta1: float = knob(0.9, "decay of AdamW's first moment", minimum=0, maximum=0.9999)
    beta2: float = knob(0.95, "decay of AdamW's second moment", minimum=0, maximum=0.99999)
    eps: float = knob(1e-8, "epsilon of AdamW", above=0)
    weight_decay: float = knob(
        0.1, "decoupled decay of matrices; norms, biases and gates have none", minimum=0, maximum=10
    )
    gradient_clip: float = knob(1.0, "largest global gradient norm; 0 turns clipping off", minimum=0)


@dataclass
class ScheduleConfig:
    """Learning rate as a pure function of the step."""

    name: str = knob(
        "wsd",
        "shape after the warm-up: constant, linear, cosine, polynomial, or wsd (constant, then a decay)",
        choices=("constant", "linear", "cosine", "polynomial", "wsd"),
    )
    warmup: float = knob(0.04, "warm-up: below 1 a share of all steps, from 1 a number of steps", minimum=0)
    final: float = knob(0.02, "last rate as a share of the peak", minimum=0, maximum=1)
    decay: float = knob(0.6, "wsd: share of all steps in the decay", above=0, maximum=1)
    power: float = knob(1.0, "polynomial: exponent", above=0)

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.warmup >= 1 and self.warmup != int(self.warmup):
            yield "warmup", "must be a share below 1 or a whole number of steps"
