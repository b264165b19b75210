"""What the user wrote after the command, checked before Hydra sees it, so that an error names what was meant."""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException

from superblock.cli.commands import ALL_STAGES, COMMANDS, STAGE_GROUP, Command, groups, options, sections
from superblock.config.fields import ConfigError, FieldDoc, closest, document

FREE_TEXT = ("prompt", "stop", "schedule.cron", "schedule.before")
"""Keys whose value is taken as it was typed: Hydra would trim the space that ends `prompt="def "`, parse brackets, and take
the commas of `schedule.cron=0 6 1,15 * *` for a sweep."""

MULTIRUN = {"--multirun", "-m"}

PATHS = ("data.path", "data.cache_dir", "model.file", "output")
"""Keys that hold paths, taken as typed unless they are a list for a sweep: Hydra refuses `~` and brackets."""


def literal(word: str) -> str:
    """An override whose value is free text, quoted for Hydra unless the user did; any other word as it is."""
    key, _, value = word.partition("=")
    if key not in FREE_TEXT and (key not in PATHS or "," in value or "${" in value):
        return word
    if not value or (len(value) > 1 and value[0] == value[-1] and value[0] in "'\""):
        return word
    value = re.sub(r"(\\*)('|$)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), value)
    return f"{key}='{value.replace('${', chr(92) + '${')}'"


def every_stage(words: Sequence[str]) -> list[str]:
    """`stage=all` as the sweep over every stage that Hydra knows; all other words as they are."""
    if ALL_STAGES not in words:
        return list(words)
    sweep = f"{STAGE_GROUP}={','.join(options(STAGE_GROUP))}"
    flag = [] if MULTIRUN & set(words) else ["--multirun"]
    return [*flag, *(sweep if word == ALL_STAGES else word for word in words)]


def flag_first(words: Sequence[str]) -> list[str]:
    """The same words with `--multirun` before the others: between settings Hydra's parser would not know what follows it."""
    return sorted(words, key=lambda word: word not in MULTIRUN)


def check(command: Command, overrides: Sequence[str], *, multirun: bool) -> None:
    """Checks the form, the keys and the group options of every override; types and limits are checked after composing.

    Raises:
        ConfigError: naming the override and what would be right.
    """
    searching = any(text.startswith("hydra/sweeper=") for text in overrides)
    for text in overrides:
        try:
            override = OverridesParser.create().parse_override(text)
        except HydraException:
            raise ConfigError(f"{text}: {_form(command, text)}") from None
        if override.is_interval_sweep() and not searching:
            raise ConfigError(f"{text}: an interval is for a search: --multirun hydra/sweeper=optuna")
        _check_one(command, override, multirun)


def _check_one(command: Command, override: Override, multirun: bool) -> None:
    key, text = override.key_or_group, override.input_line
    if override.is_hydra_override():
        return
    known = {*groups(command.name), *sections(command.config), *(doc.key for doc in document(command.config))}
    if key not in known and not _entry(command, key):
        raise ConfigError(f"{text}: {unknown_key(command, key)}")
    if override.is_delete():
        raise ConfigError(f"{text}: a setting can be changed but not removed; write {key}=<value>")
    if override.package is not None or override.is_add() or override.is_force_add():
        raise ConfigError(f"{text}: every setting exists already; write {key}=<value>")
    if override.is_sweep_override() and not multirun:
        raise ConfigError(f"{text}: several values need --multirun; put a text that holds commas in quotes")
    if key in groups(command.name):
        for value in _values(override):
            if not isinstance(value, str) or value not in options(key):
                raise ConfigError(f"{key}={value}: {unknown_option(key, value)}")


def unknown_key(command: Command, key: str) -> str:
    """What to say about a key that `command` does not have."""
    if table := _entry(command, key):
        return f"{table} has no entry {key.removeprefix(table + '.')}"
    known = [doc.key for doc in document(command.config)] + list(groups(command.name))
    last = key.rpartition(".")[2]
    same = [name for name in known if name.rpartition(".")[2] == last]
    by_last = {name.rpartition(".")[2]: name for name in reversed(known)}
    near = same or closest(key, known) or [by_last[word] for word in closest(last, by_last)]
    hint = f"; did you mean {' or '.join(near[:3])}?" if near else ""
    return f"there is no such key{hint} (`superblock {command.name} --help` lists all)"


def unknown_option(group: str, value: object) -> str:
    """What to say about an option that `group` does not have."""
    near = closest(value, options(group))
    hint = f" (did you mean {group}={near[0]}?)" if near else ""
    return f"must be one of {', '.join(options(group))}{hint}"


def documented(command: Command, key: str | None) -> FieldDoc | None:
    """The documentation of a key, if it has any."""
    return next((doc for doc in document(command.config) if doc.key == key), None)


def _entry(command: Command, key: str) -> str | None:
    """The key of the table that `key` is an entry of: what a table holds is known only once its stage is."""
    tables = (doc.key for doc in document(command.config) if doc.type.startswith("dict"))
    return next((table for table in tables if key.startswith(f"{table}.")), None)


def _values(override: Override) -> Iterator[Any]:
    values = override.sweep_iterator() if override.is_sweep_override() else [override.value()]
    for value in values:
        yield value.text if isinstance(value, QuotedString) else value


def _form(command: Command, text: str) -> str:
    """What to say about a word that is no override."""
    if "=" not in text:
        near = next((f"{group}={text}" for group in groups(command.name) if text in options(group)), None)
        if text in COMMANDS:
            return f"is a command; one command at a time, as in `superblock {text}`"
        return f"settings are written key=value; did you mean {near}?" if near else "settings are written key=value"
    key = text.partition("=")[0]
    return (
        f"cannot be read; put a value that holds brackets, quotes, commas or signs in quotes, as in \"{key}='a=b, c'\""
    )
