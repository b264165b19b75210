"""Which implementation of attention runs. An explicit choice that cannot run is an error, never a silent fallback."""

import torch

BACKENDS = ("auto", "sdpa", "xformers", "eager")


def choose(name: str, device: torch.device | str) -> str:
    """Resolve a backend's name for a device: "auto" is "sdpa".

    Raises ValueError for an unknown name and RuntimeError, saying why, for a choice that cannot run.
    """
    if name not in BACKENDS:
        raise ValueError(f"attention backend {name!r} is unknown; choose one of {', '.join(BACKENDS)}")
    if name == "xformers":
        from superblock.kernels.attention.xformers import why_not  # slow to import, needed only here

        if reason := why_not(torch.device(device)):
            raise RuntimeError(f"attention backend 'xformers' cannot run: {reason}; use 'sdpa'")
    return "sdpa" if name == "auto" else name
