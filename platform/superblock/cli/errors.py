"""Turns what Hydra and OmegaConf raise into a sentence that names the key, the value and what is allowed."""

import re
from collections.abc import Iterator, Sequence

from hydra.errors import HydraException, MissingConfigException
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationKeyError,
    OmegaConfBaseException,
)

from superblock.cli.commands import Command
from superblock.cli.overrides import documented, unknown_key
from superblock.config.fields import ConfigError

KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "list[str]": "a list such as [a,b]",
    "list[int]": "a list of whole numbers such as [1] or [1,2]",
}
WIDTH = 500
"""Longest line of an error; a value may be a whole file."""


def explain(error: BaseException, command: Command, overrides: Sequence[str]) -> str | None:
    """The sentence for an error in the configuration; `None` for any other error, which deserves its traceback."""
    chain = list(_chain(error))
    for cause in chain:
        if isinstance(cause, ConfigError):
            return str(cause)
        if isinstance(cause, OmegaConfBaseException):
            return _omegaconf(cause, command, overrides)
    if isinstance(error, MissingConfigException):
        return f"{error.missing_cfg_file}: there is no such configuration file"
    if isinstance(error, HydraException):
        return _without_advice(str(error))
    return None


def four_lines(text: str) -> str:
    """At most four lines, none endless."""
    lines = [line if len(line) <= WIDTH else line[: WIDTH - 3] + "..." for line in text.splitlines() if line.strip()]
    return "\n".join(lines[:4])


def _omegaconf(error: OmegaConfBaseException, command: Command, overrides: Sequence[str]) -> str:
    key, message = error.full_key or "", str(error).partition("\n")[0]
    if isinstance(error, InterpolationKeyError):
        return _interpolation(key, message)
    if isinstance(error, ConfigKeyError | ConfigAttributeError):
        return f"{key}: {unknown_key(command, key)}"
    doc = documented(command, key)
    given = next((text.partition("=")[2] for text in overrides if text.partition("=")[0] == key), None)
    value = re.search(r"[Vv]alue '(.*?)'", message)  # of a sweep, the one value that is wrong
    given = value[1] if value else given
    shown = key if given is None else f"{key}={given}"
    if doc is None:
        return f"{shown}: {message[:1].lower()}{message[1:]}" if key else message
    names = [part.strip() for part in doc.type.split("|")]
    kind = " or ".join("null" if name == "None" else KINDS.get(name, name) for name in names)
    return f"{shown}: must be {kind}" + (f", {doc.allowed}" if doc.allowed else "")


def _interpolation(key: str, message: str) -> str:
    wanted = re.search(r"'(.*?)'", message)
    name = wanted[1] if wanted else "another key"
    if name.startswith("stage.budget."):
        scale = name.removeprefix("stage.budget.")
        return f"{key}: the stage has no budget for scale={scale}; give one, for example {key}=300steps"
    return f"{key}: takes its value from {name}, which does not exist"


def _without_advice(text: str) -> str:
    """Hydra advises to append keys with +, which no command here accepts."""
    return "\n".join(line for line in text.splitlines() if "use +" not in line and "https://" not in line)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what caused it; under a debugger Hydra ties causes into a ring."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__
