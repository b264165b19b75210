"""Which implementation of attention runs. An explicit choice that cannot run is an error, never a silent fallback."""

import torch

from superblock.kernels.tracing import constant

BACKENDS = ("auto", "native", "sdpa", "xformers", "eager")


def choose(
    name: str,
    device: torch.device | str,
    *,
    dtype: torch.dtype = torch.bfloat16,
    head_dim: int = 64,
    masked: bool = True,
) -> str:
    """Resolve a backend's name: "auto" is "native" on a processor, "xformers" for documents or a window on a GPU where it
    is proven, and "sdpa" where those cannot run.

    Args:
        dtype: in which attention is computed.
        masked: whole rows without a window do not count as masked: torch's own kernels need no mask in memory for them,
            and no repeated keys and values.

    Raises ValueError for an unknown name and RuntimeError, saying why, for a choice that cannot run.
    """
    if name not in BACKENDS:
        raise ValueError(f"attention backend {name!r} is unknown; choose one of {', '.join(BACKENDS)}")
    if name == "xformers" and (reason := why_not_xformers(device, dtype, head_dim)):
        raise RuntimeError(f"attention backend 'xformers' cannot run: {reason}; use 'sdpa'")
    if name == "native" and (reason := why_not_native(device, dtype, head_dim)):
        raise RuntimeError(f"attention backend 'native' cannot run: {reason}; use 'sdpa'")
    if name != "auto":
        return name
    if why_not_native(device, dtype, head_dim) is None:
        return "native"
    if torch.device(device).type == "cuda" and masked and why_not_xformers(device, dtype, head_dim) is None:
        return "xformers"
    return "sdpa"


@constant
def why_not_xformers(device: torch.device | str, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why xFormers does not compute attention of this kind; None if it has been seen to do so, rightly."""
    from superblock.kernels.attention.proof import proof  # imports xFormers, which takes seconds

    return proof(torch.device(device), dtype, head_dim).reason


@constant
def why_not_native(device: torch.device | str, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why our C++ kernels do not compute attention of this kind; None if they do. Builds them when they are first needed."""
    from superblock.kernels.attention.native import why_not

    return why_not(torch.device(device), dtype, head_dim)
