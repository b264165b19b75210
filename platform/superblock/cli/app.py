"""The one wrapper around Hydra: from a command line to a checked configuration, or to a short error and exit status 2."""

import os
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, TypeVar

from superblock.cli.commands import COMMANDS, STAGE_GROUP, Command, options
from superblock.config.fields import ConfigError, validate
from superblock.config.run import RunConfig
from superblock.config.typed import quoted

C = TypeVar("C")


Job = tuple[str, Any]
"""The overrides of one job, as they would be typed, and its configuration."""


def launch(name: str, action: Callable[[Any], None]) -> None:
    """Composes the configurations that `sys.argv` describes, checks them all, and calls `action` with each.

    There are several only with `--multirun`; they run in order, in this process. Ends the process with status 2 and at
    most four lines on stderr where a configuration cannot work.
    """

    def one_after_the_other(jobs: list[Job]) -> None:
        for number, (label, config) in enumerate(jobs, 1):
            if len(jobs) > 1:
                say(f"{number} of {len(jobs)}: {label}")
            action(config)

    launch_all(name, one_after_the_other)


def launch_all(name: str, action: Callable[[list[Job]], None]) -> None:
    """Like `launch`, with one call for all configurations; there is none where Hydra was asked for something else."""
    command = COMMANDS[name]
    if {"--help", "-h"} & set(sys.argv[1:]):
        from superblock.cli.help import describe

        print(describe(command))
        return
    with readable_errors(command):
        if jobs := [(label, configuration(command, composed)) for label, composed in compose(command)]:
            action(jobs)


@contextmanager
def readable_errors(command: Command) -> Iterator[None]:
    """Ends the process in four lines where the configuration is at fault; other errors keep their traceback."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        from superblock.cli.errors import explain, four_lines

        text = explain(error, command, sys.argv[1:])
        if text is None:
            raise
        if is_first_process():
            print(four_lines(text), file=sys.stderr)
        sys.exit(2)


def say(text: str) -> None:
    """Prints a line at once, from the first process only."""
    if is_first_process():
        print(text, flush=True)


def is_first_process() -> bool:
    """Whether this is the process of a machine that speaks; torchrun numbers them."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def compose(command: Command) -> list[tuple[str, Any]]:
    """What Hydra makes of `sys.argv`: the overrides and the configuration of each job.

    There is none where Hydra was asked for something else: `--cfg`, `--info` or completion.
    """
    from hydra.core.hydra_config import HydraConfig

    from superblock.cli.overrides import every_stage

    jobs: list[tuple[str, Any]] = []

    def keep(composed: Any) -> None:
        jobs.append((quoted(HydraConfig.get().overrides.task), composed))

    typed = sys.argv[1:]
    run_hydra(command, keep, every_stage(typed) if command.name == "run" else typed)
    return jobs


def run_hydra(command: Command, task: Callable[[Any], Any], words: Sequence[str]) -> None:
    """Has Hydra call `task` with what it composes of these words, once per job.

    `sys.argv` is left as it was typed, since it is recorded and shown.
    """
    import hydra

    from superblock.cli.overrides import flag_first, literal

    typed = sys.argv[1:]
    sys.argv[1:] = [literal(word) for word in flag_first(words)]
    try:
        _check(command, _arguments())
        register(command)
        with _plain_errors():
            hydra.main(version_base="1.3", config_path="pkg://superblock.conf", config_name=command.name)(task)()
    finally:
        sys.argv[1:] = typed


def compose_run(overrides: Sequence[str]) -> RunConfig:
    """The checked configuration of `run` with these words on its command line; for what belongs to another run.

    Raises:
        ConfigError: naming the key, the value and what is allowed.
    """
    from hydra import compose, initialize_config_module
    from hydra.core.global_hydra import GlobalHydra

    from superblock.cli.errors import explain
    from superblock.cli.overrides import check

    command = COMMANDS["run"]
    check(command, overrides, multirun=False)
    register(command)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module("superblock.conf", version_base="1.3"):
            composed = compose("run", overrides=list(overrides))
        config: RunConfig = configuration(command, composed)
    except ConfigError:
        raise
    except Exception as error:  # what Hydra and OmegaConf raise names a key of `run`, whichever command asked
        if (text := explain(error, command, overrides)) is None:
            raise
        raise ConfigError(text) from None
    return config


def configuration(command: Command, composed: Any) -> Any:
    """The checked dataclass of what Hydra composed.

    Raises:
        ConfigError: naming the key, the value and what is allowed.
    """
    from omegaconf import OmegaConf

    config = OmegaConf.to_object(composed)
    assert isinstance(config, command.config)
    validate(config)
    return config


def register(command: Command) -> None:
    """Tells Hydra the types of a command's configuration, and the stages, whose files are not below `conf`."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    store = ConfigStore.instance()
    store.store(name=f"{command.name}_schema", node=command.config)
    for option in options(STAGE_GROUP).values():
        store.store(group=STAGE_GROUP, name=option.name, node=OmegaConf.create(option.file.read_text()))


def _arguments() -> Any:
    from hydra._internal.utils import get_args_parser

    parser: ArgumentParser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    return parser.parse_args()


def _refuse(message: str) -> NoReturn:
    """argparse would print a page of Hydra's flags."""
    if message.startswith("unrecognized arguments"):
        flag = message.rpartition(": ")[2].split()[0]
        raise ConfigError(f"{flag}: there is no such flag; settings are written key=value, without dashes")
    raise ConfigError(message.removeprefix("argument "))


def _check(command: Command, arguments: Any) -> None:
    from superblock.cli.overrides import check

    if arguments.multirun and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "--multirun and stage=all: run one process at a time; under torchrun give one stage and one value per key"
        )
    if not arguments.shell_completion:
        check(command, arguments.overrides, multirun=arguments.multirun)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Has Hydra raise what went wrong instead of printing it and exiting."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = before
