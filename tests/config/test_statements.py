"""Gates and claims of a stage: only what can be measured is accepted, and all of it survives being stored."""

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest

from superblock.cli.commands import options
from superblock.config.fields import ConfigError, restore, validate
from superblock.config.growth import CLAIMS, GATES, StatementConfig
from superblock.config.run import RunConfig
from superblock.config.stage import StageConfig

GROWN = ("mvp2", "mvp3", "mvp4")


@pytest.mark.parametrize("name", options("stage"))
def test_every_stage_says_what_it_must_show_and_why(compose: Callable[..., Any], name: str) -> None:
    stage = compose("plan", f"stage={name}").stage
    validate(stage)
    left_out = {"mvp1": {"growth_exact", "plan_closes"}, "mvp4": set()}.get(name, {"plan_closes"})
    assert set(stage.gates) == set(GATES) - left_out
    assert set(stage.claims) == (set(CLAIMS) if name in GROWN else {"cost_predicted"})
    assert stage.gates["bits_per_byte"].against == ("parent" if name in GROWN else "trigram")
    for statement in (*stage.gates.values(), *stage.claims.values()):
        assert 30 < len(statement.because) < 140 and statement.because.endswith(".")


def test_a_bound_is_set_on_the_command_line(compose: Callable[..., Any]) -> None:
    assert compose("run", "stage.gates.no_dead_experts.limit=3").stage.gates["no_dead_experts"].limit == 3


def test_the_restored_configuration_is_the_stored_one(compose: Callable[..., Any]) -> None:
    config = compose("run", "stage=mvp4", "scale=mini")
    again = restore(RunConfig, asdict(config), "config")
    assert again == config
    assert isinstance(again.stage.gates["resume"], StatementConfig)
    stored = asdict(config)
    stored["stage"]["gates"]["resume"]["colour"] = 3
    with pytest.raises(ConfigError, match=r"config.stage.gates.resume.colour=3"):
        restore(RunConfig, stored, "config")


@pytest.mark.parametrize(
    ("gates", "claims", "words"),
    [
        ({"finite_los": {}}, {}, r"stage.gates.finite_los: .*did you mean finite_loss\?"),
        ({}, {"exit_costs": {}}, r"stage.claims.exit_costs: .*did you mean exit_cost\?"),
        ({"exit_cost": {"limit": 1}}, {}, "stage.gates.exit_cost: there is no such"),
        ({"resume": {"because": ""}}, {}, "stage.gates.resume.because=''"),
        ({"resume": {"limit": 40}}, {}, "stage.gates.resume.limit=40: must be null"),
        ({"no_dead_experts": {}}, {}, "stage.gates.no_dead_experts.limit=null: must be a number"),
        ({"bits_per_byte": {}}, {}, "against=null: must be trigram or parent"),
        ({"bits_per_byte": {"against": "xz"}}, {}, "against=xz: must be trigram or parent"),
        ({"finite_loss": {"against": "xz"}}, {}, "against=xz: must be null"),
    ],
)
def test_what_cannot_be_measured_is_refused(gates: Any, claims: Any, words: str) -> None:
    reason = StatementConfig(because="for a reason")
    stage = StageConfig(
        gates={name: replace(reason, **values) for name, values in gates.items()},
        claims={name: replace(reason, **values) for name, values in claims.items()},
    )
    with pytest.raises(ConfigError, match=words):
        validate(stage)
