"""What `--help` prints: the groups with their options, and every key with its default, its meaning and its limits."""

import shutil
import textwrap
from collections.abc import Iterator

from superblock.cli.commands import ALL_STAGES, STAGE_GROUP, Command, groups, options
from superblock.config.fields import FieldDoc, document

SEARCH = "--multirun hydra/sweeper=optuna"
"""A flag of `run` alone."""
STATUSES = ((0, "done"), (2, "a setting cannot work; the text says which"), (130, "interrupted"))
FLAGS = (
    ("--cfg job", "print the configuration this command line makes, and stop; with --resolve without ${...}"),
    ("--multirun", "one run after the other for every combination of values such as seed=1,2,3"),
    (
        SEARCH,
        "a search for the lowest validation bits per byte, such as 'optim.learning_rate=interval(0.001,0.01)' "
        "hydra.sweeper.n_trials=8; the same command goes on with it (needs superblock[search])",
    ),
    ("--info", "print what Hydra knows about where the configuration comes from"),
    ("--help", "this text"),
)


def describe(command: Command) -> str:
    """The whole help text of a command."""
    width = max(80, min(140, shutil.get_terminal_size().columns))
    return "\n".join(_lines(command, width))


def _lines(command: Command, width: int) -> Iterator[str]:
    yield f"superblock {command.name}: {command.summary}"
    yield ""
    yield f"usage: superblock {command.name} [group=option ...] [key=value ...]"
    yield f"       python -m platform.{command.name} ...        (the same, from the root of the repository)"
    if groups(command.name):
        yield from ("", "groups, as group=option; * is the default")
    for group, default in groups(command.name).items():
        for option in options(group).values():
            mark = "*" if option.name == default else " "
            yield from _row(f"  {group}={option.name}{mark}", option.meaning, 24, width)
        if group == STAGE_GROUP and command.name == "run":
            yield from _row(f"  {ALL_STAGES}", "every stage in order, each grown from the one before", 24, width)
    yield from ("", "keys, as key=value")
    for doc in document(command.config):
        yield from _row(f"  {doc.key}", f"{doc.meaning} [{_limits(doc)}]", 32, width)
    yield from ("", "flags")
    for flag, meaning in FLAGS:
        if flag != SEARCH or command.name == "run":
            yield from _row(f"  {flag}", meaning, 24, width)
    yield from ("", "exit statuses")
    for status, meaning in sorted((*STATUSES, *command.statuses)):
        yield from _row(f"  {status}", meaning, 24, width)
    yield from ("", "examples")
    for overrides, meaning in command.examples:
        yield f"  superblock {command.name} {overrides}".rstrip() + f"    # {meaning}"


def _limits(doc: FieldDoc) -> str:
    default = (
        "null" if doc.default is None else str(doc.default).lower() if isinstance(doc.default, bool) else doc.default
    )
    if doc.default == "":
        default = "''"
    parts = [doc.type.replace(" | None", " or null"), f"default {default}", doc.allowed]
    return "; ".join(str(part) for part in parts if part)


def _row(left: str, right: str, column: int, width: int) -> Iterator[str]:
    first, *rest = textwrap.wrap(right, width - column) or [""]
    yield f"{left:<{column}}{first}" if len(left) < column else f"{left}  {first}"
    for line in rest:
        yield " " * column + line
