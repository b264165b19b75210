"""`superblock run --multirun hydra/sweeper=optuna`: a search, where each trial is trained when the sweeper asks for it.

Plain `--multirun` composes and checks every configuration before the first is trained. A sweeper that learns from
results cannot do that: it is told each trial's bits per byte on the validation split before it chooses the next. The
study is kept in `runs/search/<study>`, so that the same command goes on with it; defaults are in
conf/hydra/sweeper/search.yaml.
"""

import hashlib
import importlib.util
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from superblock.cli.app import compose_run, configuration, readable_errors, run_hydra, say
from superblock.cli.commands import COMMANDS
from superblock.config.fields import ConfigError
from superblock.config.run import RunConfig
from superblock.config.typed import quoted, typed

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
WORDS = "words"
"""Attribute of a study: what was typed, by key; other words would mix trials that do not compare."""
SEED = 1
"""Of the sampler, where none is given: a search can be repeated."""
PATIENCE = 3
"""Trials in a row that may come to nothing before the search stops."""
FAILED = "failed"
"""Attribute of a study: why trials came to nothing, by number. A killed trial has no entry and is made up for."""


class Stop(BaseException):
    """Ends a search from within a trial: the sweeper would take any `Exception` for a failed trial."""


def is_search(words: Sequence[str]) -> bool:
    """Whether a command line asks for a sweeper that learns, and not only to see its configuration."""
    shown = {"--help", "-h", "--info", "-i", "--cfg", "-c"} & {word.partition("=")[0] for word in words}
    return not shown and _value(words, GROUP, "basic") != "basic"


def main() -> None:
    """Searches as `sys.argv` says.

    Raises:
        SystemExit: with status 1 if no trial has a result or several in a row had none, 2 if the configuration is at fault.
    """
    with readable_errors(COMMANDS["run"]):
        typed = sys.argv[1:]
        _check(typed)
        study = _study_name(typed)
        with _alone(study):
            search = Search.open(study, typed)
            if search.left > 0:
                search.go_on()
            status = search.conclude()
    if status:
        sys.exit(status)


@dataclass
class Search:
    """One study and this start's part in it."""

    name: str
    typed: list[str]
    study: Any
    """`optuna.Study`; the sweeper opens its own on the same storage."""
    wanted: int
    """Trials of the whole search."""
    seed: int | None
    """Of the sampler; None if it has none, as a grid."""
    _in_a_row: int = 0

    @classmethod
    def open(cls, name: str, typed: list[str]) -> "Search":
        """The study, with trials that an earlier start left behind marked as failed.

        Raises:
            ConfigError: if the study was begun with other words.
        """
        import optuna
        from hydra.utils import instantiate

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sweeper = _sweeper(name, typed)
        with _quiet():
            study = optuna.create_study(
                study_name=name, storage=instantiate(sweeper.storage), direction="minimize", load_if_exists=True
            )
            _same_search(study, typed)
            for trial in study.trials:
                if not trial.state.is_finished():
                    study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        seed = (sweeper.sampler.seed or SEED) if "seed" in sweeper.sampler else None
        return cls(name, typed, study, sweeper.n_trials, seed)

    @property
    def done(self) -> list[Any]:
        """Trials with a result."""
        return [trial for trial in self.study.trials if trial.value is not None]

    @property
    def left(self) -> int:
        return self.wanted - len(self.done) - len(self.study.user_attrs.get(FAILED, {}))

    def go_on(self) -> None:
        """Has Hydra's sweeper ask for the trials that are left."""
        first, before = len(self.study.trials), len(self.done)
        going_on = f", {before} of them done" if first else ""
        say(f"search {self.name}: {self.wanted} trials{going_on}; study and logs in {(FOLDER / self.name).resolve()}")
        own = {"hydra.sweeper.n_trials": self.left, **_own(self.name)}
        if self.seed is not None:
            own["hydra.sweeper.sampler.seed"] = self.seed + first  # or it would draw again what it drew at first
        words = [word for word in self.typed if _key(word) not in own]
        words += [f"{key}={value}" for key, value in own.items()]

        def task(composed: Any) -> float | None:
            from hydra.core.hydra_config import HydraConfig

            sys.argv[1:] = self.typed  # it is recorded with every run
            return self._trial(first + int(HydraConfig.get().job.num), composed)

        try:
            with _quiet():
                run_hydra(COMMANDS["run"], task, words)
        except Stop:
            say(f"search {self.name}: stopped, {PATIENCE} trials in a row came to nothing")
        except (
            RuntimeError
        ) as error:  # a grid's way of saying that nothing is left, which the sweeper knows of results alone
            if "Study.stop" not in str(error):
                raise
        except SystemExit:
            say(f"search {self.name}: stopped; to go on: the same command")
            raise

    def conclude(self) -> int:
        """Says what was found; the status of the process."""
        failed = self.study.user_attrs.get(FAILED, {})
        done = sorted(self.done, key=lambda trial: trial.value)
        nothing = f", {len(failed)} came to nothing" if failed else ""
        say(f"\nsearch {self.name}: {len(done)} of {self.wanted} trials with a result{nothing}")
        if not done:
            return 1
        best = done[0]
        words = " ".join(f"{key}={value}" for key, value in best.params.items())
        say(f"best: trial {best.number}, {best.value:.4f} bits per byte of the validation split, with {words}")
        say(f"to train it again, and keep it:\n  {typed(quoted(['run', *self._repeat(best.params)]))}")
        return 1 if self._in_a_row >= PATIENCE else 0

    def _repeat(self, params: dict[str, Any]) -> list[str]:
        fixed = [word for word in self.typed if "=" in word and not _is_hydra(word) and _key(word) not in params]
        return [*fixed, *(f"{key}={value}" for key, value in params.items())]

    def _trial(self, number: int, composed: Any) -> float | None:
        """Trains one. An error makes it a failed trial, for which the sweeper takes None; several in a row end the search."""
        from superblock.staging.search import run_trial

        searched = self.study.trials[number].params
        words = " ".join(f"{key}={value}" for key, value in searched.items())
        say(f"trial {number}: {words}")
        log = FOLDER / self.name / "logs" / f"trial-{number}.txt"
        try:
            config: RunConfig = configuration(COMMANDS["run"], composed)
            again = typed(quoted(["run", *self.typed]))
            value = run_trial(config, study=self.name, number=number, log=log, say=say, continue_with=again)
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            say(f"trial {number} came to nothing: {reason}")
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a", encoding="utf-8") as file:
                traceback.print_exc(file=file)
            self.study.set_user_attr(FAILED, {**self.study.user_attrs.get(FAILED, {}), str(number): reason})
            self._in_a_row += 1
            if self._in_a_row >= PATIENCE:
                raise Stop from error
            return None
        self._in_a_row = 0
        best = min([value, *(trial.value for trial in self.done)])
        say(f"trial {number}: {value:.4f} bits per byte of the validation split; best so far {best:.4f}")
        return value


# -- the command line ---------------------------------------------------------------------------------------------


def _check(typed: Sequence[str]) -> None:
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

    words = [literal(word) for word in typed if "=" in word and not _is_hydra(word)]
    overrides = [OverridesParser.create().parse_override(word) for word in words]
    swept = any(override.is_sweep_override() for override in overrides)
    if not swept and not any(_key(word).startswith("hydra.sweeper.params") for word in typed):
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


def _study_name(typed: Sequence[str]) -> str:
    """As given, or one that the same command has again as long as the code is the same."""
    from superblock.tracking.provenance import code_state

    given = _value(typed, "hydra.sweeper.study_name", "")
    if given and not re.fullmatch(STUDY_NAME, given):
        raise ConfigError(
            f"hydra.sweeper.study_name={given}: must be letters, digits, '.', '_' and '-', at most 48, not starting with a sign"
        )
    words = sorted(word for word in typed if _key(word) not in NOT_THE_SEARCH)
    return given or f"search-{hashlib.sha256(' '.join([*words, code_state().commit]).encode()).hexdigest()[:8]}"


def _same_search(study: Any, typed: Sequence[str]) -> None:
    """Notes what a new study searches, and refuses to go on with another search in it."""
    words = {_key(word): word for word in typed if not word.startswith("-") and not _may_change(_key(word))}
    begun = study.user_attrs.get(WORDS)
    if begun is None:
        study.set_user_attr(WORDS, words)
    elif begun != words:
        [key, *_] = sorted(key for key in begun.keys() | words.keys() if begun.get(key) != words.get(key))
        raise ConfigError(
            f"hydra.sweeper.study_name={study.study_name}: this search was begun with {begun.get(key, f'no {key}')}, not "
            f"{words.get(key, f'no {key}')}; give the new one another name, or type what it was begun with"
        )


def _may_change(key: str) -> bool:
    return key in NOT_THE_SEARCH or key.startswith(NOT_THE_TRIALS)


def _sweeper(study: str, typed: Sequence[str]) -> Any:
    """Hydra's configuration of the sweeper."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf

    own = _own(study)
    words = [word for word in typed if _is_hydra(word) and _key(word) not in own]
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


def _own(study: str) -> dict[str, Any]:
    """What this command adds to the words that were typed, or says instead of them."""
    return {GROUP: OURS, "hydra.sweeper.study_name": study, "hydra.sweep.dir": (FOLDER / study).as_posix()}


@contextmanager
def _alone(study: str) -> Iterator[None]:
    """Holds the study's folder, so that trials of another process are not taken for dead ones."""
    from filelock import FileLock, Timeout

    (FOLDER / study).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(FOLDER / study / ".lock", blocking=False):
            yield
    except Timeout:
        raise ConfigError(
            f"{FOLDER / study}: this search is going on in another process; give another one hydra.sweeper.study_name"
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings of one package about another's older names, and of failed trials, which are said here."""
    logging.getLogger("hydra_plugins.hydra_optuna_sweeper").setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        for category in (FutureWarning, DeprecationWarning):
            warnings.filterwarnings("ignore", category=category)
        yield


def _installed() -> bool:
    try:
        return importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper") is not None
    except ModuleNotFoundError:
        return False


def _is_hydra(word: str) -> bool:
    return _key(word).startswith(("hydra.", "hydra/"))


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+~")


def _value(words: Sequence[str], key: str, otherwise: str = "") -> str:
    return next((word.partition("=")[2] for word in reversed(words) if _key(word) == key), otherwise)
