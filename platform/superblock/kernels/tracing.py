"""What torch.compile must know about the kernels.

Kernels written by hand with a plan that depends on the data, or with a loop over chunks, make it trace for minutes and
again for every new plan. The decorators of `torch.compiler` are meant for that, but they import the compiler, which takes
4 s of every start; here that waits until somebody compiles.
"""

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


class _Held:
    """The function behind an untraced one."""

    def __init__(self, function: Callable[..., object]) -> None:
        self.run = function


_SOURCES = Path(__file__).parent
_UNTRACED: list[_Held] = []
_CONSTANT: list[Callable[..., object]] = []


def untraced(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: once `before_compiling` was called, the compiler stops before this function and goes on behind it."""
    held = _Held(function)
    _UNTRACED.append(held)

    @functools.wraps(function)
    def call(*arguments: P.args, **named: P.kwargs) -> R:
        return held.run(*arguments, **named)  # type: ignore[return-value]

    return call


def constant(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: the compiler calls this function once and takes what it returns for its result from then on."""
    _CONSTANT.append(function)
    return function


def before_compiling() -> None:
    """To be called before anything is compiled."""
    for held in _UNTRACED:
        if not hasattr(held.run, "_torchdynamo_orig_callable"):
            held.run = torch.compiler.disable(held.run)
    for function in _CONSTANT:
        torch.compiler.assume_constant_result(function)
    # torch keys what it compiled, the backward pass included, by the forward graph, where an operator is a mere name:
    # after an update it would run the former version's backward pass
    tag, former = sources_tag(_SOURCES), torch.compiler.config.cache_key_tag
    if tag not in former:
        torch.compiler.config.cache_key_tag = f"{former}{tag}"


def sources_tag(folder: Path) -> str:
    """Names a state of the kernels' sources: each file's name and content counts."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.suffix in (".py", ".h", ".cpp"):
            digest.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return f"superblock-{digest.hexdigest()[:16]}"
