"""Whether modules are still what this package made of them, so that their parameters can be used past them."""

from torch import nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from superblock.models.norm import RMSNorm

_OURS = (nn.Linear, RMSNorm)


def untouched(*modules: nn.Module) -> bool:
    """Nobody put another module, or another `forward`, in their place (an adapter, a quantized one), gave them a bias or a
    hook, or follows what they compute (a counter of FLOPs)."""
    return not _has_any_global_hook() and not is_in_torch_dispatch_mode(False) and all(map(_as_made, modules))


def _as_made(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    members = vars(module)
    return (
        type(module) in _OURS
        and not any(hooks)
        and "forward" not in members
        and members["_parameters"].get("bias") is None
    )
