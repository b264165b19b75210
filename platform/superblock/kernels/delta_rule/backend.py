"""Which form of the delta rule runs. An explicit choice that cannot run is an error, never a silent fallback."""

from torch import Tensor

from superblock.kernels.delta_rule import flash_linear, native

BACKENDS = ("auto", "native", "chunked", "recurrent", "fla")


def choose(name: str, q_BTGK: Tensor, v_BTHV: Tensor, *, chunk_size: int = 0, training: bool = False) -> str:
    """Resolve "auto": C++ where it can run, flash-linear-attention on CUDA where it is installed, else PyTorch: the
    recurrence for a single token without gradient (decoding), the chunked form for all else.

    Raises ValueError for an unknown name and RuntimeError, saying why, for a choice that cannot run.
    """
    if name not in BACKENDS:
        raise ValueError(f"delta rule backend {name!r} is unknown; choose one of {', '.join(BACKENDS)}")
    if name == "native" and (reason := native.unfit(q_BTGK, v_BTHV, chunk_size)):
        raise RuntimeError(f"delta rule backend 'native' cannot run: {reason}; use 'chunked'")
    if name == "fla" and (reason := flash_linear.why_not(q_BTGK)):
        raise RuntimeError(f"delta rule backend 'fla' cannot run: {reason}; use 'chunked'")
    if name != "auto":
        return name
    if q_BTGK.device.type == "cpu" and native.unfit(q_BTGK, v_BTHV, chunk_size) is None:
        return "native"
    if q_BTGK.device.type == "cuda" and flash_linear.why_not(q_BTGK) is None:
        return "fla"
    return "recurrent" if q_BTGK.shape[1] == 1 and not training else "chunked"
