"""Commands as people type them: for the one at the keyboard, and for whoever reads a result elsewhere.

`python -m platform.run` works only from the root of the repository, `superblock run` wherever the package is installed.
"""

import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

DOOR = "platform"
"""Package of the repository whose modules are the commands."""
SCRIPT = "superblock"
_begun: list[str] = []
"""The command that this process was started with; the console script takes it from `sys.argv`, which Hydra reads."""


def typed(command: str) -> str:
    """A command for the screen, in the form in which this process was started.

    Args:
        command: its name and settings, such as `run stage=mvp1`, quoted for a shell where they need it.
    """
    return f"python -m {DOOR}.{command}" if _main_module().startswith(f"{DOOR}.") else stored(command)


def stored(command: str) -> str:
    """The same for what is kept, and read in other folders: reports, records, notes in MLflow."""
    return f"{SCRIPT} {command}"


def quoted(words: Sequence[str]) -> str:
    """Settings as a shell takes them."""
    return shlex.join(words)


@contextmanager
def begun(command: str) -> Iterator[None]:
    """Remembers the command that was taken from `sys.argv`."""
    _begun.append(command)
    try:
        yield
    finally:
        _begun.pop()


def command_line() -> str:
    """The command of this process as it could be typed again, `python -m` included."""
    words, module = sys.argv[1:], _main_module().removesuffix(".__main__")
    if module.startswith(f"{DOOR}."):
        return quoted(["python", "-m", module, *words])
    start = ["python", "-m", module] if module else [Path(sys.argv[0]).name]
    return quoted([*start, *_begun[-1:], *words])


def _main_module() -> str:
    """Name of the module that `python -m` was given; empty for a script."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return spec.name if spec is not None and spec.name else ""
