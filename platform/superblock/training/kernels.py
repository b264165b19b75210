"""Makes the kernels of a run ready before anything is timed, and tells which they are."""

from collections.abc import Callable

import torch

from superblock.callbacks.throughput import DTYPES
from superblock.config.run import RunConfig
from superblock.kernels.native.collection import prepare
from superblock.kernels.report import choices, describe, tags


def start_kernels(config: RunConfig, accelerator: str, say: Callable[[str], None]) -> dict[str, str]:
    """Builds the C++ libraries on a processor, proves xFormers on a GPU, and says what runs; returns it as tags.

    A family of your own is not asked: what it calls is built when it is called.

    Raises:
        ConfigError: for a backend that was asked for and cannot run here.
    """
    if config.model.family != "superblock":
        return {}
    gpu = accelerator == "gpu"
    device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
    prepared = None if gpu else prepare(lambda text: say(f"kernels {text}"))
    found = choices(config.model, device, DTYPES[config.trainer.precision])
    for i, line in enumerate(describe(found, prepared)):
        say(f"{'' if i else 'kernels':7} {line}")
    return tags(found, prepared)
