"""Every YAML file that is shipped composes, sets the field that names it, and agrees with the dataclass defaults."""

from collections.abc import Callable
from dataclasses import asdict
from itertools import product
from typing import Any

import pytest

from superblock.cli.commands import COMMANDS, groups, options
from superblock.config.budget import Budget
from superblock.config.fields import document, validate
from superblock.config.run import RunConfig
from superblock.models.formulas import count, named_layers

NEEDS = {  # what an option cannot do without
    "data=text": "data.path=x.txt",
    "data=hub": "data.name=x",
    "tracking=server": "tracking.uri=http://localhost:5000",
    "tracking=postgresql": "tracking.uri=postgresql://anna@localhost/runs",
}
SHIPPED = [(group, name) for group in groups("run") for name in options(group)]
FIELD = {"data": "source", "tracking": "store", "model": "family", "trainer": None, "evaluation": None}


@pytest.mark.parametrize(("group", "name"), SHIPPED, ids=lambda value: str(value))
def test_every_option_composes(compose: Callable[..., RunConfig], group: str, name: str) -> None:
    choice = f"{group}={name}"
    config = compose("run", choice, "trainer.budget=2steps", *([NEEDS[choice]] if choice in NEEDS else []))
    if field := FIELD.get(group, "name"):
        assert getattr(getattr(config, group), field) == name


@pytest.mark.parametrize(("stage", "scale"), list(product(options("stage"), options("scale"))))
def test_every_stage_at_every_scale(compose: Callable[..., Any], stage: str, scale: str) -> None:
    config = compose("plan", f"stage={stage}", f"scale={scale}")
    assert config.model.num_superblocks == {"mvp1": 1, "mvp2": 3, "mvp3": 6, "mvp4": 12}[stage]
    budget = config.stage.budget[scale]
    assert budget is None if scale == "full" else Budget.parse(budget).amount > 0
    assert set(config.stage.budget) == set(options("scale"))


def test_every_option_says_what_it_is() -> None:
    for name in COMMANDS:
        for group in groups(name):
            for option in options(group).values():
                assert 3 < len(option.meaning) < 100 and not option.meaning.startswith(option.name), option


def test_stages_grow_from_one_another(compose: Callable[..., Any]) -> None:
    stages = [compose("plan", f"stage={name}").stage for name in options("stage")]
    assert [stage.parent for stage in stages] == [None, "mvp1", "mvp2", "mvp3"]
    assert all(stage.title and stage.purpose for stage in stages)


def test_help_tells_the_defaults_that_a_bare_command_has(compose: Callable[..., RunConfig]) -> None:
    composed, written = asdict(compose("run")), asdict(RunConfig())
    composed["stage"] = written["stage"]
    composed["trainer"]["budget"] = None
    assert composed == written


@pytest.mark.parametrize("name", COMMANDS)
def test_a_bare_command_is_valid(compose: Callable[..., Any], name: str) -> None:
    validate(compose(name))


def test_full_scale_is_the_plan_of_235_billion_parameters(compose: Callable[..., Any]) -> None:
    model = compose("plan", "stage=mvp4", "scale=full").model
    assert count(model).total == 235_366_983_936
    assert round(count(model).active / 1e9, 2) == 21.04
    assert len(named_layers(model)) == 101


def test_base_scale_fits_one_large_gpu(compose: Callable[..., Any]) -> None:
    counts = count(compose("plan", "stage=mvp4", "scale=base").model)
    assert round(counts.total / 1e9, 1) == 2.1
    assert round(counts.active / 1e9, 1) == 0.9


@pytest.mark.parametrize("scale", options("scale"))
def test_a_larger_stage_differs_in_depth_alone(compose: Callable[..., Any], scale: str) -> None:
    small, large = (asdict(compose("plan", f"stage={stage}", f"scale={scale}").model) for stage in ("mvp1", "mvp4"))
    assert {key for key in small if small[key] != large[key]} == {"num_superblocks"}


@pytest.mark.parametrize("config", [command.config for command in COMMANDS.values()])
def test_every_field_is_documented_once(config: type) -> None:
    rows = list(document(config))
    assert len({row.key for row in rows}) == len(rows)
    for row in rows:
        assert len(row.meaning) > 3 and not row.meaning.endswith("."), row
