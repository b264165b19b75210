"""All C++ libraries of the kernels at once: found, compiled side by side, loaded and checked before training begins."""

import contextlib
import importlib
import pkgutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from superblock import kernels
from superblock.kernels.native.build import BuildError, build, is_built
from superblock.kernels.native.library import NativeLibrary


@dataclass(frozen=True)
class Prepared:
    """What `prepare` did."""

    level: str | None
    """The level of `processor` that runs; None without any library."""
    seconds: float
    """Spent in the compiler; 0 when everything was in the cache."""
    refused: dict[str, str]
    """Why a library cannot be used, by operation and module."""

    @property
    def reason(self) -> str | None:
        """Why there are no C++ kernels at all, in words for users; None if there are some."""
        if self.level is not None or not self.refused:
            return None
        reason = next(iter(self.refused.values()))
        return f"{reason}; apt install g++" if "no C++ compiler" in reason else reason


def libraries() -> dict[str, NativeLibrary]:
    """Every `LIBRARY` of a module `kernels.<operation>.native*`, by `<operation>.<module>`; two modules may share one."""
    found: dict[str, NativeLibrary] = {}
    for package in pkgutil.iter_modules(kernels.__path__):
        if not package.ispkg or package.name == "native":
            continue
        folder = importlib.import_module(f"{kernels.__name__}.{package.name}")
        for module in pkgutil.iter_modules(folder.__path__):
            if module.name.startswith("native"):
                library = getattr(importlib.import_module(f"{folder.__name__}.{module.name}"), "LIBRARY", None)
                if isinstance(library, NativeLibrary) and library not in found.values():
                    found[f"{package.name}.{module.name}"] = library
    return found


def prepare(announce: Callable[[str], None] = lambda text: None) -> Prepared:
    """Makes every library ready. Sources are compiled in parallel; loading and checking stay in this thread, whose number
    of threads and treatment of subnormal numbers the checks are to see.

    Args:
        announce: told before the compiler runs, which takes seconds.
    """
    all_of_them = libraries()
    missing = [library for library in all_of_them.values() if library.wanted_level and not _is_built(library)]
    began = time.perf_counter()
    if missing:
        announce(f"compiling {len(missing)} C++ sources")
        with ThreadPoolExecutor() as pool:
            list(pool.map(_compile, missing))
    seconds = time.perf_counter() - began if missing else 0.0
    refused = {name: reason for name, library in all_of_them.items() if (reason := library.why_not())}
    level = next((library.level for name, library in all_of_them.items() if name not in refused), None)
    return Prepared(level, seconds if level else 0.0, refused)


def _is_built(library: NativeLibrary) -> bool:
    """True also without a compiler: then nothing is compiled, and `why_not` says so."""
    try:
        return is_built(library.source, library.wanted_level or "")
    except BuildError:
        return True


def _compile(library: NativeLibrary) -> None:
    with contextlib.suppress(Exception):  # `why_not` meets it again and keeps the reason
        build(library.source, library.wanted_level or "")
