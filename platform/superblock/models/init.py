"""Initial weights, equal for any number of processes, any sharding and any order of construction."""

import hashlib
import math
from typing import cast

import torch
from torch import Tensor, nn

from superblock.config.model import ModelConfig

WRITERS = ("out", "down", "shared_down")
"""Last part of the names of the matrices through which a superblock or a block head writes into its residual stream."""


def initial_std(config: ModelConfig) -> float:
    """Standard deviation of ordinary matrices: `model.init_std`, or min(0.02, D^-0.5)."""
    return config.init_std or min(0.02, config.d_model**-0.5)


def writer_std(config: ModelConfig) -> float:
    """That of matrices that write into the residual stream: smaller by the root of the number of writes.

    A superblock of two mixers writes four times, hence std / sqrt(4 S) (GPT-2 and Megatron: 1/sqrt(2 layers)).
    """
    return initial_std(config) / math.sqrt(2 * len(config.pattern) * config.num_superblocks)


@torch.no_grad()
def init_weights(model: nn.Module, seed: int) -> None:
    """Fills every parameter of a `SuperblockModel`, which may be fresh from `to_empty` or sharded (DTensor).

    | parameter                                          | initial value                                                |
    | -------------------------------------------------- | ------------------------------------------------------------ |
    | embedding, unembedding, router, all input matrices | normal, `initial_std`                                        |
    | mixer.out, down, shared_down                       | normal, `writer_std`                                         |
    | mtp.<k>.w2                                         | 0: a new depth repeats its predecessor                       |
    | norms                                              | 1                                                            |
    | conv                                               | uniform in +-W^-0.5, torch's own for a depthwise convolution |
    | A_log                                              | log of uniform in (0.01, 16); from 0 a bf16 draw can be dead |
    | dt_bias                                            | softplus(dt_bias) log-uniform in (0.001, 0.1)                |
    | balance_bias (buffer)                              | 0                                                            |

    With `dt_bias` at 1 (transformers, Megatron) half of the heads would forget within a tenth of a token; this choice, of
    flash-linear-attention, starts with a median half-life of 11 tokens. Each parameter, and each expert of a stack,
    has a generator of its own, seeded by (seed, name): a process draws whole matrices and keeps its part.
    """
    config = cast(ModelConfig, model.config)
    for name, parameter in model.named_parameters():
        local, region = local_region(parameter)
        if parameter.ndim < 3:
            local.copy_(_draw(name, parameter.shape, config, _generator(seed, name))[region])
            continue
        experts, rest = region[0], region[1:]
        for i, e in enumerate(range(experts.start, experts.stop)):
            local[i] = _draw(name, parameter.shape[1:], config, _generator(seed, f"{name}.{e}"))[rest]
    for buffer in model.buffers():
        buffer.zero_()


def leaf_name(name: str) -> str:
    """What the table of `init_weights` calls a parameter: `superblocks.0.layers.1.mixer.out.weight` is `out`."""
    return name.removesuffix(".weight").rpartition(".")[2]


def local_region(parameter: Tensor) -> tuple[Tensor, tuple[slice, ...]]:
    """This process's storage and the part of the whole tensor that it holds."""
    if not hasattr(parameter, "placements"):  # not a DTensor, whose import takes a second
        return parameter, tuple(slice(0, n) for n in parameter.shape)
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    sharded = cast(DTensor, parameter)
    shape, offset = compute_local_shape_and_global_offset(sharded.shape, sharded.device_mesh, sharded.placements)
    return sharded.to_local(), tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _draw(name: str, shape: torch.Size, config: ModelConfig, generator: torch.Generator) -> Tensor:
    """fp32 values of a whole parameter, or of one expert's matrix."""
    leaf = leaf_name(name)
    if leaf.endswith("norm"):
        return torch.ones(shape)
    if leaf == "w2":
        return torch.zeros(shape)
    if leaf in ("A_log", "dt_bias", "conv"):
        uniform = torch.rand(shape, generator=generator)
        return {"A_log": _log_decay, "dt_bias": _time_step_bias, "conv": _taps}[leaf](uniform)
    std = writer_std(config) if leaf in WRITERS else initial_std(config)
    return torch.randn(shape, generator=generator) * std


def _log_decay(uniform: Tensor) -> Tensor:
    return (0.01 + (16 - 0.01) * uniform).log()


def _time_step_bias(uniform: Tensor) -> Tensor:
    step = torch.exp(math.log(1e-3) + uniform * (math.log(1e-1) - math.log(1e-3)))
    return step + torch.log(-torch.expm1(-step))


def _taps(uniform: Tensor) -> Tensor:
    return (2 * uniform - 1) * uniform.shape[1] ** -0.5
