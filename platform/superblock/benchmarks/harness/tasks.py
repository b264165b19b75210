"""Finds the tasks and has the harness run them."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from superblock.config.fields import ConfigError, closest
from superblock.config.finished import LOCAL_TASKS, HarnessConfig

STDERR = "_stderr"


def evaluate(model: LM, config: HarnessConfig, local: Path | None) -> dict[str, dict[str, Any]]:
    """Results by task: `metrics` (value and stderr by name), `examples`, `version`, `shots`.

    Args:
        model: what is asked.
        config: the tasks and how they are asked.
        local: folder with the task files that were made here.

    Raises:
        ConfigError: for an unknown task, or one whose data cannot be had.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = _manager(config, local)
    found = simple_evaluate(
        model=model,
        tasks=_load(manager, config.tasks),
        num_fewshot=config.shots,
        limit=config.limit,
        bootstrap_iters=1000,
        log_samples=False,
        task_manager=manager,
    )
    assert found is not None
    samples, versions, shots = found.get("n-samples", {}), found.get("versions", {}), found.get("n-shot", {})
    return {
        task: {
            "metrics": _metrics(values),
            "examples": int(samples.get(task, {}).get("effective", 0)),
            "version": versions.get(task),
            "shots": shots.get(task),
        }
        for task, values in found["results"].items()
    }


def _manager(config: HarnessConfig, local: Path | None) -> TaskManager:
    """Knows the tasks made here and the user's; the harness's own, whose thousands take a while, only where asked for."""
    paths: list[str | Path] = [str(local)] if local else []
    if config.include_path is not None:
        folder = Path(config.include_path).expanduser()
        if not folder.is_dir():
            raise ConfigError(f"harness.include_path={config.include_path}: there is no such folder")
        paths.append(str(folder))
    manager = TaskManager(include_path=paths or None, include_defaults=False)
    if any(task not in manager.all_tasks for task in config.tasks):
        manager = TaskManager(include_path=paths or None, include_defaults=True)
    for task in config.tasks:
        if task not in manager.all_tasks:
            close = closest(task, [*manager.all_tasks, *LOCAL_TASKS])
            hint = f"; did you mean {close[0]}?" if close else ""
            raise ConfigError(f"harness.tasks: the harness knows no task {task}{hint}")
    return manager


def _load(manager: TaskManager, names: list[str]) -> list[Any]:
    """The tasks with their data, one by one, so that an error names the one it belongs to."""
    loaded: list[Any] = []
    for name in names:
        try:
            manager.load([name])
        except Exception as error:  # datasets, the hub, the network and a task's own code raise anything
            text = " ".join(str(error).split())[:200] or type(error).__name__
            raise ConfigError(
                f"harness.tasks: {name} cannot be loaded: {text}\n"
                "the harness's own tasks fetch their data from the Hugging Face hub and need a network the first time; "
                f"without one: 'harness.tasks=[{','.join(LOCAL_TASKS)}]' or task files in harness.include_path"
            ) from error
        loaded.append(name)
    return loaded


def _metrics(values: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """`acc,none` is `acc`; another filter's name stays behind the metric's."""
    found: dict[str, dict[str, float | None]] = {}
    for key, value in values.items():
        metric, _, filtered = key.partition(",")
        if not isinstance(value, (int, float)) or isinstance(value, bool) or metric.endswith(STDERR) or not filtered:
            continue
        error = values.get(f"{metric}{STDERR},{filtered}")
        name = metric if filtered == "none" else f"{metric}-{filtered}"
        known = isinstance(error, (int, float)) and math.isfinite(error)
        found[name] = {"value": float(value), "stderr": float(error) if known else None}  # type: ignore[arg-type]
    return found
