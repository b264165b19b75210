"""A C++ kernel as one of torch's operators, without what a registered operator costs at every call.

torch's wrapper of a Python operator costs 70 us per pair of forward and backward calls on warm caches, and more where they
are full of a model's numbers. A compiler, a mode that watches operations, a tracer and tensors that are no plain memory
need the registered operator; everything else gets an autograd function.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import increment_version
from torch.nn import Parameter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

R = TypeVar("R")
Save = Callable[[Any, tuple[Any, ...], Any], None]
"""Gets autograd's context, the inputs and the output, and saves what backward needs in the context."""

_PLAIN = (Tensor, Parameter)


class NativeOperator(Generic[R]):
    """What `native_operator` makes of a function; called like it, with positional arguments.

    `registered` is torch's operator of the same name, which compilers and watching modes see; `function` the bare function.
    """

    def __init__(self, name: str, function: Callable[..., R], mutates: tuple[str, ...]) -> None:
        functools.update_wrapper(self, function)
        self.name, self.function = name, function
        parameters = list(inspect.signature(function).parameters.values())
        self._floats = [i for i, parameter in enumerate(parameters) if parameter.annotation is float]
        self._written = [i for i, parameter in enumerate(parameters) if parameter.name in mutates]
        self.registered: Any = torch.library.custom_op(
            f"superblock::{name}", function, mutates_args=mutates, device_types="cpu"
        )
        self._node: type[torch.autograd.Function] | None = None

    def register_fake(self, fake: Callable[..., R]) -> Callable[..., R]:
        """Decorator: what gives tensors of the results' shapes without computing them."""
        self.registered.register_fake(fake)
        return fake

    def register_autograd(self, backward: Callable[..., Any], *, setup_context: Save) -> None:
        """The gradient, differentiable once: `backward(ctx, *gradients)` of what `setup_context` saved."""
        self.registered.register_autograd(backward, setup_context=setup_context)
        function = self.function

        def forward(ctx: Any, *inputs: Any) -> Any:
            output = function(*inputs)
            setup_context(ctx, inputs, output)
            return output

        members = {"forward": staticmethod(forward), "backward": staticmethod(once_differentiable(backward))}
        self._node = type(self.name, (torch.autograd.Function,), members)

    def __call__(self, *arguments: Any) -> R:
        """The function's result, with a gradient if one was registered and is wanted."""
        if _watched() or not plain(*arguments):
            return self.registered(*arguments)
        for i in self._floats:
            if type(arguments[i]) is int:  # 1 for 1.0, as torch's own schemas allow; C++ would read garbage
                arguments = (*arguments[:i], float(arguments[i]), *arguments[i + 1 :])
        for i in self._written:
            if not arguments[i].is_inference():
                increment_version(arguments[i])
        if self._node is None or not torch.is_grad_enabled():
            return self.function(*arguments)
        return self._node.apply(*arguments)


def native_operator(name: str, *, mutates: tuple[str, ...] = ()) -> Callable[[Callable[..., R]], NativeOperator[R]]:
    """Decorator: the function, which calls a C++ kernel on tensors in the memory of a processor, as `superblock::name`.

    `mutates` names the arguments that it writes to; no result may share memory with an argument.
    """
    return lambda function: NativeOperator(name, function, mutates)


def wanted(gradients: Sequence[Tensor | None], needs: Sequence[bool]) -> tuple[Tensor | None, ...]:
    """What autograd takes for inputs of which the first have these gradients: None where there is no need."""
    padded = [*gradients, *[None] * (len(needs) - len(gradients))]
    return tuple(gradient if need else None for gradient, need in zip(padded, needs, strict=True))


def _watched() -> bool:
    """Whether somebody follows operations one by one: a compiler, a mode, a tracer, a transformation of functions."""
    return (
        torch.compiler.is_compiling()
        or is_in_torch_dispatch_mode()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
    )


def plain(*arguments: Any) -> bool:
    """Whether every tensor is memory that a kernel can read, not a stand-in (fake, meta, distributed)."""
    for argument in arguments:
        if type(argument) in _PLAIN:
            if not argument.is_cpu:
                return False
        elif isinstance(argument, Tensor):
            return False
    return True


def in_memory(gradient: Tensor) -> Tensor:
    """A gradient as kernels read it: contiguous, and written out where torch only knows that it is zero."""
    return gradient.clone() if gradient._is_zerotensor() else gradient.contiguous()


def shapes_fit(what: str, **tensors: tuple[Tensor | None, tuple[int, ...]]) -> None:
    """Raises ValueError unless each tensor that is there has the shape beside it: a kernel would read past its end."""
    for name, (tensor, shape) in tensors.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{what}: {name} is {list(tensor.shape)}, not {list(shape)}")
