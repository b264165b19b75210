"""`superblock run --multirun hydra/sweeper=optuna`: a search, where each trial is trained when the sweeper asks for it.

Plain `--multirun` composes and checks every configuration before the first is trained. A sweeper that learns from
results cannot do that: it is told each trial's bits per byte on the validation split before it chooses the next. The
study is kept in `runs/search/<study>`, so that the same command goes on with it; defaults are in
conf/hydra/sweeper/search.yaml.
"""

import logging
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from superblock.cli.app import configuration, readable_errors, run_hydra, say
from superblock.cli.commands import COMMANDS
from superblock.cli.search_settings import (
    FOLDER,
    check_search,
    is_hydra,
    key_of,
    may_change,
    own_settings,
    study_name,
    sweeper_settings,
)
from superblock.config.fields import ConfigError
from superblock.config.run import RunConfig
from superblock.config.typed import quoted, typed

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


def main() -> None:
    """Searches as `sys.argv` says.

    Raises:
        SystemExit: with status 1 if no trial has a result or several in a row had none, 2 if the configuration is at fault.
    """
    with readable_errors(COMMANDS["run"]):
        words = sys.argv[1:]
        check_search(words)
        study = study_name(words)
        with _alone(study):
            search = Search.open(study, words)
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
        sweeper = sweeper_settings(name, typed)
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
        own = {"hydra.sweeper.n_trials": self.left, **own_settings(self.name)}
        if self.seed is not None:
            own["hydra.sweeper.sampler.seed"] = self.seed + first  # or it would draw again what it drew at first
        words = [word for word in self.typed if key_of(word) not in own]
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
        except RuntimeError as error:
            if "Study.stop" not in str(error):
                raise  # not a grid's way of saying that nothing is left
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
        fixed = [word for word in self.typed if "=" in word and not is_hydra(word) and key_of(word) not in params]
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


# -- parts --------------------------------------------------------------------------------------------------------


def _same_search(study: Any, typed: Sequence[str]) -> None:
    """Notes what a new study searches, and refuses to go on with another search in it."""
    words = {key_of(word): word for word in typed if not word.startswith("-") and not may_change(key_of(word))}
    begun = study.user_attrs.get(WORDS)
    if begun is None:
        study.set_user_attr(WORDS, words)
    elif begun != words:
        [key, *_] = sorted(key for key in begun.keys() | words.keys() if begun.get(key) != words.get(key))
        raise ConfigError(
            f"hydra.sweeper.study_name={study.study_name}: this search was begun with {begun.get(key, f'no {key}')}, not "
            f"{words.get(key, f'no {key}')}; give the new one another name, or type what it was begun with"
        )


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
