"""From a C++ source to a shared library in the user's cache, once per source, compiler, level and torch version.

The sources include no header of torch (with them a build takes 35 s, without 4 s). OpenMP is linked against the very pool
of threads that torch has: two pools that wait in a spin on the same cores run 10 to 500 times slower.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from filelock import FileLock

from superblock.config.folders import user_cache
from superblock.kernels.native import processor

HEADERS = Path(__file__).parent
"""`#include "simd.h"` finds its files here."""
_COMMON = [
    "-O3",
    "-std=c++17",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
]


class BuildError(RuntimeError):
    """Why there is no library, in words for users."""


@functools.cache
def compiler() -> tuple[str, str]:
    """The C++ compiler ($CXX, g++ or clang++) and the first line of its version.

    Raises:
        BuildError: if there is none.
    """
    for name in filter(None, (os.environ.get("CXX"), "g++", "clang++")):
        if path := shutil.which(name):
            version = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
            return path, version.partition("\n")[0]
    raise BuildError("no C++ compiler (g++ or clang++) on the path")


@functools.cache
def openmp() -> Path | None:
    """The GNU OpenMP library that torch has loaded; None if it has another. Other packages may have loaded their own."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    loaded = {line.split(maxsplit=5)[-1] for line in maps.splitlines() if "libgomp" in line}
    beside_torch = str(Path(torch.__file__).parent)
    return Path(min(loaded, key=lambda path: (not path.startswith(beside_torch), path))) if loaded else None


def shares_threads() -> bool:
    """Whether kernels run on torch's pool of threads; else on one thread. What clang compiles needs another library.

    Raises:
        BuildError: if there is no compiler.
    """
    return openmp() is not None and "clang" not in compiler()[1]


@functools.cache
def _accepts(path: str, level: str) -> bool:
    """Whether a compiler knows the flags of a level: GCC 9 has none for bf16, GCC 10 none for AMX."""
    line = [path, *processor.FLAGS[level], "-fsyntax-only", "-xc++", os.devnull]
    return subprocess.run(line, capture_output=True, check=False).returncode == 0


def chosen_level() -> str | None:
    """That of `processor`; unless it is forced, the next lower one whose flags the compiler knows.

    Raises:
        BuildError: if there is no compiler, or one thread would do the work of all, which takes longer than torch does.
        ValueError: as `processor.level`.
    """
    wanted = processor.level()
    if wanted is None or processor.forced():
        return wanted
    if not shares_threads() and (threads := torch.get_num_threads()) > 1:
        raise BuildError(
            f"without g++ and GNU OpenMP in torch it would run on one of torch's {threads} threads; "
            f"{processor.VARIABLE}={wanted} runs it all the same"
        )
    names = list(processor.FLAGS)
    lower = reversed(names[: names.index(wanted) + 1])
    return next((name for name in lower if _accepts(compiler()[0], name)), names[0])


def command(level: str) -> list[str]:
    """The compiler and its flags, without files."""
    threads = ["-fopenmp"] if shares_threads() else []
    return [compiler()[0], *_COMMON, *processor.FLAGS[level], *threads, f"-I{HEADERS}"]


def library_path(source: Path, level: str) -> Path:
    """Where the library of a source lies: the name holds a hash of everything that the machine code depends on."""
    digest = hashlib.sha256()
    texts = [source, *sorted(HEADERS.glob("*.h")), *sorted(source.parent.glob("*.h"))]
    for path in dict.fromkeys(texts):
        digest.update(path.read_bytes())
    parts = [compiler()[1], *command(level)[1:-1], torch.__version__, str(openmp()), *sorted(processor.flags())]
    digest.update("\0".join(parts).encode())
    return user_cache() / "kernels" / f"{source.parent.name}-{source.stem}-{level}-{digest.hexdigest()[:16]}.so"


def is_built(source: Path, level: str) -> bool:
    """Whether `build` finds the library in the cache.

    Raises:
        BuildError: if there is no compiler, whose version is part of the name.
    """
    return library_path(source, level).exists()


def build(source: Path, level: str) -> Path:
    """The library of a source, compiled unless it is in the cache. Safe when several processes build at once.

    Raises:
        BuildError: if there is no compiler, no place to write, or the source does not compile.
    """
    target = library_path(source, level)
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_suffix(".lock")):
            if not target.exists():
                _compile(source, level, target)
    except OSError as error:
        raise BuildError(f"{target.parent}: {error.strerror or error}") from error
    return target


def _compile(source: Path, level: str, target: Path) -> None:
    handle, name = tempfile.mkstemp(dir=target.parent, suffix=".tmp")
    os.close(handle)
    # linked without -lgomp: its symbols are found in the one that torch has loaded, see `load`
    compiled = Path(name).with_suffix(".o")
    first = [part for part in command(level) if part != "-shared"]
    try:
        for line in (
            [*first, "-c", "-o", str(compiled), str(source)],
            [compiler()[0], "-shared", "-o", name, str(compiled)],
        ):
            done = subprocess.run(line, capture_output=True, text=True, check=False)
            if done.returncode:
                errors = [text for text in done.stderr.splitlines() if "error" in text] or done.stderr.splitlines()
                raise BuildError(f"{source.name} does not compile: {errors[0] if errors else done.returncode}")
        os.chmod(name, 0o755)
        os.replace(name, target)
    finally:
        compiled.unlink(missing_ok=True)
        Path(name).unlink(missing_ok=True)


def load(path: Path) -> ctypes.CDLL:
    """Opens a library, with torch's OpenMP in sight of it.

    Raises:
        BuildError: if it cannot be opened.
    """
    try:
        if pool := openmp():
            ctypes.CDLL(str(pool), mode=ctypes.RTLD_GLOBAL)
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise BuildError(f"{path.name} cannot be loaded: {error}") from error
