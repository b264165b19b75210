"""How a run trains: budget, batch, precision, strategy, checkpoints."""

from collections.abc import Iterator
from dataclasses import dataclass

from superblock.config.budget import ALLOWED, Budget
from superblock.config.fields import knob


@dataclass
class TrainerConfig:
    """The training loop."""

    budget: str | None = knob(None, f"how long to train: {ALLOWED}")
    batch_size: int = knob(8, "sequences per optimizer step, over all processes and micro-batches", minimum=1)
    micro_batches: int = knob(1, "parts a process's share of the batch is computed in, to save memory", minimum=1)
    precision: str = knob(
        "bf16",
        "fp32, bf16 or fp16 (GPU only) for matrix products; norms, gates and losses stay fp32",
        choices=("fp32", "bf16", "fp16"),
    )
    strategy: str = knob(
        "auto",
        "single, ddp, fsdp (torch's FSDP2); auto is single, or fsdp under torchrun",
        choices=("auto", "single", "ddp", "fsdp"),
    )
    compile: bool = knob(
        False, "compile each layer with torch.compile: tens of seconds to minutes before the first step, for GPUs"
    )
    activation_checkpointing: str = knob(
        "none",
        "compute activations twice to save memory: selective the mixers', full whole layers'",
        choices=("none", "selective", "full"),
    )
    accelerator: str = knob("auto", "cpu or gpu; auto takes a GPU if there is one", choices=("auto", "cpu", "gpu"))
    threads: int | None = knob(None, "CPU threads; null is one per core, or 1 per process under torchrun", minimum=1)
    checkpoint_every: str = knob("1 minutes", f"distance between checkpoints: {ALLOWED}")
    keep_last: int = knob(2, "newest checkpoints kept beside the best one", minimum=1)
    log_every: int = knob(10, "steps between logged training metrics", minimum=1)
    progress: bool = knob(True, "show a progress bar")

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.budget is not None:
            Budget.parse(self.budget)
        Budget.parse(self.checkpoint_every, "trainer.checkpoint_every")
        if self.batch_size % self.micro_batches:
            yield "micro_batches", f"must divide batch_size={self.batch_size}"
