"""What the command line of a search says, and whether it can work; see `cli.search`."""

import hashlib
import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from superblock.cli.app import compose_run
from superblock.cli.commands import COMMANDS
from superblock.config.fields import ConfigError
from superblock.config.run import RunConfig

GROUP = "hydra/sweeper"
SWEEPER = "optuna"
OURS = "search"
"""The plugin's sweeper with our defaults; under its own name Hydra would not let a file extend it."""
FOLDER = Path("runs/search")
STUDY_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,47}"
NOT_THE_SEARCH = ("hydra.sweeper.n_trials", "hydra.sweeper.n_jobs", "hydra.sweeper.max_failure_rate")
"""Settings that may change while a search goes on."""
NOT_THE_TRIALS = ("tracking", "hydra.sweeper.storage")
"""Where results go: whatever begins so may change too, and an address may hold a password that a study need not keep."""


def is_search(words: Sequence[str]) -> bool:
    """Whether a command line asks for a sweeper that learns, and not only to see its configuration."""
    shown = {"--help", "-h", "--info", "-i", "--cfg", "-c"} & {word.partition("=")[0] for word in words}
    return not shown and _value(words, GROUP, "basic") != "basic"


def check_search(typed: Sequence[str]) -> None:
    """Refuses what cannot be searched before anything is trained."""
    from superblock.cli.overrides import MULTIRUN, check

    sweeper = _value(typed, GROUP)
    if sweeper != SWEEPER:
        raise ConfigError(f"{GROUP}={sweeper}: must be basic or {SWEEPER}")
    if not _installed():
        raise ConfigError(f"{GROUP}={SWEEPER}: needs the extra `search`; pip install 'superblock[search]'")
    if not MULTIRUN & set(typed):
        raise ConfigError(f"{GROUP}={SWEEPER}: has an effect only with --multirun")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(f"{GROUP}={SWEEPER}: a search runs in one process; start it without torchrun")
    if (launcher := _value(typed, "hydra/launcher", "basic")) != "basic":
        raise ConfigError(
            f"hydra/launcher={launcher}: trials of a search follow each other in this process; leave it out"
        )
    check(COMMANDS["run"], [word for word in typed if "=" in word], multirun=True)
    _check_configuration(_corner(typed))


def _check_configuration(config: RunConfig) -> None:
    """What the trials share must allow a search."""
    if config.name is not None:
        raise ConfigError(
            f"name={config.name}: trials are named after their study; hydra.sweeper.study_name names that"
        )
    if config.resume != "none" or config.exit_at is not None:
        raise ConfigError("resume: a search begins its runs; leave it out, the same command goes on with the search")
    if config.promote:
        raise ConfigError("promote=true: the trials of a search are not promoted; train the best one again for that")
    if not config.evaluation.test:
        raise ConfigError(
            "evaluation.test=false: trials are compared by the whole validation split, which it leaves out"
        )


def _corner(typed: Sequence[str]) -> RunConfig:
    """The configuration at the first values of all ranges, or at the last ones; whatever is fixed must work in one of them.

    Raises:
        ConfigError: if there is no range, or neither works.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from superblock.cli.overrides import literal

    words = [literal(word) for word in typed if "=" in word and not is_hydra(word)]
    overrides = [OverridesParser.create().parse_override(word) for word in words]
    swept = any(override.is_sweep_override() for override in overrides)
    if not swept and not any(key_of(word).startswith("hydra.sweeper.params") for word in typed):
        raise ConfigError(
            f"{GROUP}={SWEEPER}: needs something to search, such as 'optim.learning_rate=interval(0.001,0.01)'"
        )
    corners = [[_end(override, end) for override in overrides] for end in (0, -1)]
    try:
        return compose_run(corners[0])
    except ConfigError:
        if not swept:
            raise
        try:
            return compose_run(corners[1])
        except ConfigError:
            pass
        raise


def _end(override: Any, end: int) -> str:
    """An override with the first or the last of its values."""
    if not override.is_sweep_override():
        return str(override.input_line)
    key = override.get_key_element()
    if override.is_interval_sweep():
        value = override.value()
        return f"{key}={value.end if end else value.start}"
    return f"{key}={list(override.sweep_string_iterator())[end]}"


def study_name(typed: Sequence[str]) -> str:
    """As given, or one that the same command has again as long as the code is the same."""
    from superblock.tracking.provenance import code_state

    given = _value(typed, "hydra.sweeper.study_name", "")
    if given and not re.fullmatch(STUDY_NAME, given):
        raise ConfigError(
            f"hydra.sweeper.study_name={given}: must be letters, digits, '.', '_' and '-', at most 48, not starting with a sign"
        )
    words = sorted(word for word in typed if key_of(word) not in NOT_THE_SEARCH)
    return given or f"search-{hashlib.sha256(' '.join([*words, code_state().commit]).encode()).hexdigest()[:8]}"


def may_change(key: str) -> bool:
    return key in NOT_THE_SEARCH or key.startswith(NOT_THE_TRIALS)


def sweeper_settings(study: str, typed: Sequence[str]) -> Any:
    """Hydra's configuration of the sweeper."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    own = own_settings(study)
    words = [word for word in typed if is_hydra(word) and key_of(word) not in own]
    with initialize_config_module("superblock.conf", version_base="1.3"):
        composed = compose("run", overrides=[*words, *(f"{k}={v}" for k, v in own.items())], return_hydra_config=True)
    sweeper = composed.hydra.sweeper
    if getattr(sweeper.direction, "name", sweeper.direction) != "minimize":
        raise ConfigError("hydra.sweeper.direction: bits per byte are better when they are lower; leave it out")
    if not OmegaConf.is_dict(sweeper.storage):
        raise ConfigError(
            "hydra.sweeper.storage: must stay a table; another data base is hydra.sweeper.storage.url=<address>"
        )
    if sweeper.n_trials < 1:
        raise ConfigError(f"hydra.sweeper.n_trials={sweeper.n_trials}: must be at least 1")
    return sweeper


def own_settings(study: str) -> dict[str, Any]:
    """What this command adds to the words that were typed, or says instead of them."""
    return {GROUP: OURS, "hydra.sweeper.study_name": study, "hydra.sweep.dir": (FOLDER / study).as_posix()}


def _installed() -> bool:
    try:
        return importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper") is not None
    except ModuleNotFoundError:
        return False


def is_hydra(word: str) -> bool:
    return key_of(word).startswith(("hydra.", "hydra/"))


def key_of(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _value(words: Sequence[str], key: str, otherwise: str = "") -> str:
    return next((word.partition("=")[2] for word in reversed(words) if key_of(word) == key), otherwise)
