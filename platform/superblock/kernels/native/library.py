"""One C++ source as something Python can call."""

import ctypes
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from superblock.kernels.native import processor
from superblock.kernels.native.build import BuildError, build, chosen_level, load

Argument = Tensor | ctypes.Structure | int | float | None


class NativeLibrary:
    """A C++ source beside the Python that calls it; built, loaded and checked when it is first needed.

    Every entry point is `extern "C"`, returns nothing, and takes pointers, `int64_t` and `double` in any order, and the
    number of threads (`int64_t`) last.

    Args:
        source: the C++ file.
        check: calls the library on small inputs and raises AssertionError unless it agrees with the reference. Runs
            once per process, before anything else uses the library; it must not ask `why_not`.
        level: build for this level of `processor` instead of the best one.
    """

    def __init__(self, source: Path, *, check: Callable[[], None], level: str | None = None) -> None:
        self.source, self._check, self._asked = source, check, level
        self._lock = threading.RLock()
        self._handle: ctypes.CDLL | None = None
        self._reason: str | None = None
        self._level: str | None = None
        self._tried = False

    @property
    def level(self) -> str | None:
        """The level it was built for, None before it is loaded."""
        return self._level

    @property
    def wanted_level(self) -> str | None:
        """The level it is going to be built for; None if it is turned off or cannot be had, which `why_not` explains."""
        try:
            return self._asked or chosen_level()
        except (BuildError, ValueError):
            return None

    def at(self, level: str) -> "NativeLibrary":
        """The same source for another level, for tests; without a check of its own."""
        return NativeLibrary(self.source, check=lambda: None, level=level)

    def why_not(self) -> str | None:
        """Why the library cannot be used, in words; None if it can. Builds, loads and checks at the first call."""
        if not self._tried:
            with self._lock:
                if not self._tried:
                    self._try()
        return self._reason

    def _try(self) -> None:
        try:
            self._level = self._asked or chosen_level()
            if self._level is None:
                self._reason = f"{processor.VARIABLE}=off"
            else:
                self._handle = load(build(self.source, self._level))
                with _plain_torch():
                    self._check()
        except AssertionError as error:
            self._reason = f"{self.source.name} differs from its reference on this machine ({self._level}): {error}"
        except (BuildError, ValueError) as error:
            self._reason = str(error)
        except Exception as error:  # whatever a check dies of, the PyTorch form serves
            self._reason = f"{self.source.name} fails its check ({self._level}): {type(error).__name__}: {error}"
        if self._reason is not None:
            self._handle = None
        self._tried = True

    def call(self, name: str, *arguments: Argument) -> None:
        """Calls an entry point; tensors and structures go as their address, None as a null pointer. The GIL is free meanwhile.

        The caller has checked device, dtype, shape and strides of every tensor, and passes a float where the source has a double:
        what each argument is, the first call decides.
        """
        assert self._handle is not None, f"{self.source.name} is not loaded: {self._reason}"
        function = getattr(self._handle, name)
        if function.argtypes is None:  # ctypes then converts by itself, which is quick
            function.argtypes = [*map(_c_type, arguments), ctypes.c_int64]
        function(*[x.data_ptr() if isinstance(x, Tensor) else x for x in arguments], torch.get_num_threads())


@contextmanager
def _plain_torch() -> Iterator[None]:
    """With gradients, in full precision and on real tensors, whatever surrounds the call that needs the library."""
    full, dtype = torch.autocast("cpu", enabled=False), torch.get_default_dtype()
    with torch.inference_mode(False), torch.enable_grad(), _disable_current_modes(), full, torch.device("cpu"):
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


def _c_type(argument: Argument) -> type:
    """What an entry point takes where it is called with this; the same at every call."""
    if isinstance(argument, ctypes.Structure):
        return ctypes.POINTER(type(argument))
    if argument is None or isinstance(argument, Tensor):
        return ctypes.c_void_p
    return ctypes.c_double if isinstance(argument, float) else ctypes.c_int64


def agree(
    form: Callable[..., Tensor], reference: Callable[..., Tensor], inputs: Sequence[Tensor], bound: float
) -> None:
    """Raises AssertionError if the output, or the gradient of an input, of `form` in fp32 is further than `bound`, relative to
    its norm, from that of `reference` in float64. For checks, on small inputs."""
    results = []
    for function, dtype in ((form, torch.float32), (reference, torch.float64)):
        leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
        y = function(*leaves)
        results.append([y.detach(), *torch.autograd.grad(y.sin().sum(), leaves)])
    for i, (found, want) in enumerate(zip(*results, strict=True)):
        error = float((found - want).norm() / want.norm())
        what = f"the gradient of input {i - 1}" if i else "the output"
        assert error < bound, f"{form.__name__}: {what} is off by {error:.1e}"
