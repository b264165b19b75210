"""Which kernels a model runs with on a device, and why not better ones: what is printed at the start and logged.

Every operation's own choice is asked, with tensors of the model's shapes that hold nothing. Legend as in the kernels.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from superblock.config.fields import ConfigError
from superblock.config.model import ModelConfig
from superblock.kernels.attention import backend as attention
from superblock.kernels.delta_rule import backend as delta_rule
from superblock.kernels.delta_rule import flash_linear
from superblock.kernels.delta_rule import native as delta_native
from superblock.kernels.experts import backend as experts
from superblock.kernels.experts.native import why_not_native as why_not_native_experts
from superblock.kernels.native.collection import Prepared, libraries

TOKENS = 64
CHOSEN = {f"{name}.native" for name in ("attention", "cross_entropy", "decode", "delta_rule", "experts", "norm")}
"""Libraries whose operation `choices` reports; the others belong to one of those."""


@dataclass(frozen=True)
class Choice:
    """What one operation runs."""

    operation: str
    backend: str
    note: str = ""
    """What is known of it, or why a faster form does not run."""

    def __str__(self) -> str:
        return f"{self.operation} {self.backend}" + (f" ({self.note})" if self.note else "")


def choices(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> list[Choice]:
    """What training runs, operation by operation; building, loading and proving kernels where that was not done yet.

    Args:
        device: with its index, on a GPU.
        dtype: of matrix products (`trainer.precision`).

    Raises:
        ConfigError: for a backend that was asked for and cannot run.
    """
    found = []
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        if "gqa" in config.pattern or config.mtp.last == "block":
            found.append(_checked("model.gqa.backend", config.gqa.backend, _attention, config, device, dtype))
        if "gdn" in config.pattern:
            found.append(_checked("model.gdn.backend", config.gdn.backend, _delta_rule, config, device, dtype))
        found.append(_checked("model.moe.backend", config.moe.backend, _experts, config, device, dtype))
    native = libraries() if device.type == "cpu" else {}
    for operation, module, otherwise in (
        ("cross-entropy", "cross_entropy.native", "chunked"),
        ("norm", "norm.native", "torch"),
        ("decode", "decode.native", "torch"),
    ):
        reason = native[module].why_not() if module in native else ""
        found.append(Choice(operation, otherwise if reason or module not in native else "native", reason or ""))
    return found


def describe(found: list[Choice], prepared: Prepared | None) -> list[str]:
    """Lines for the user: the C++ kernels in one, everything else in the next.

    Args:
        prepared: what became of the C++ libraries; None on a GPU.
    """
    fast = [choice for choice in found if choice.backend == "native"]
    rest = [choice for choice in found if choice.backend != "native"]
    lines = []
    if fast and prepared is not None:
        built = f", built in {prepared.seconds:.0f} s" if prepared.seconds else ""
        lines.append(f"C++ ({prepared.level}{built}): {', '.join(choice.operation for choice in fast)}")
    reason = prepared.reason if prepared is not None else None
    if reason:  # once, not behind each of them
        lines.append(f"PyTorch, no C++: {reason}")
        rest = [Choice(choice.operation, choice.backend) for choice in rest]
    if rest:
        lines.append(", ".join(map(str, rest)))
    if prepared is not None and not reason:
        parts = {name: why for name, why in prepared.refused.items() if name not in CHOSEN}
        lines += [f"PyTorch for {name.replace('.native', '').strip('_')}: {why}" for name, why in parts.items()]
    return lines


def tags(found: list[Choice], prepared: Prepared | None) -> dict[str, str]:
    """The same for MLflow, one tag per operation."""
    level = {} if prepared is None else {"kernels.native": prepared.level or "none"}
    return level | {
        f"kernels.{choice.operation.replace(' ', '_').replace('-', '_')}": choice.backend for choice in found
    }


# -- one operation each -----------------------------------------------------------------------------------------------


def _checked(key: str, backend: str, ask: Any, *arguments: Any) -> Choice:
    try:
        return ask(*arguments)
    except RuntimeError as error:
        raise ConfigError(f"{key}={backend}: {error}") from error


def _attention(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Choice:
    c = config.gqa
    name = attention.choose(c.backend, device, dtype=dtype, head_dim=c.head_dim, masked=True)
    note = ""
    if name == "xformers":
        from superblock.kernels.attention.proof import proof

        proven = proof(device, dtype, c.head_dim)
        note = f"{proven.operator}, {proven.error:.0e} from the reference; sdpa for whole rows"
    elif c.backend == "auto" and name != "native":
        why_not = attention.why_not_xformers if device.type == "cuda" else attention.why_not_native
        note = _passed_over("xformers" if device.type == "cuda" else "C++", why_not(device, dtype, c.head_dim))
    return Choice("attention", name, note)


def _delta_rule(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Choice:
    c = config.gdn
    q_BTGK = _empty(1, TOKENS, c.num_key_heads, c.key_dim, device=device, dtype=dtype)
    v_BTHV = _empty(1, TOKENS, c.num_value_heads, c.value_dim, device=device, dtype=dtype)
    name = delta_rule.choose(c.backend, q_BTGK, v_BTHV, chunk_size=c.chunk_size, training=True)
    note = ""
    if c.backend == "auto" and device.type == "cuda" and name != "fla":
        note = _passed_over("flash-linear-attention", flash_linear.why_not(q_BTGK))
    elif c.backend == "auto" and device.type == "cpu" and name != "native":
        note = _passed_over("C++", delta_native.unfit(q_BTGK, v_BTHV, c.chunk_size))
    return Choice("delta rule", name, note)


def _experts(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Choice:
    c, D = config.moe, config.d_model
    h_ND = _empty(TOKENS, D, device=device, dtype=dtype)
    gate_up, down = (
        _empty(c.num_experts, 2 * c.d_expert, D, device=device),
        _empty(c.num_experts, D, c.d_expert, device=device),
    )
    name = experts.choose(c.backend, h_ND, gate_up, down)
    note = ""
    if c.backend == "auto" and device.type == "cuda" and name != "grouped":
        note = _passed_over("grouped", experts.why_not_grouped(h_ND, gate_up, down))
    elif c.backend == "auto" and device.type == "cpu" and name != "native":
        note = _passed_over("C++", why_not_native_experts(h_ND, gate_up, down))
    return Choice("experts", name, note)


def _passed_over(name: str, reason: str | None) -> str:
    return f"{name}: {reason}" if reason else ""


def _empty(*shape: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """A tensor of a shape that takes no memory: only shapes, dtypes and devices are asked about."""
    return torch.empty(1, device=device, dtype=dtype).expand(shape)
