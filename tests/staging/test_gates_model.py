"""Gates that look at the trained model: each passes on a sound one and fails on a planted fault."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from superblock.config.growth import StatementConfig
from superblock.generation.session import Session
from superblock.models.language_model import build_model
from superblock.staging import gates_model
from superblock.staging.evidence import Missing
from superblock.staging.gates_model import distinct_4grams, distinct_share, gradients, no_dead_experts

MakeEvidence = Callable[..., Any]
PLAIN = StatementConfig(because="why")
NONE_DEAD = StatementConfig(because="why", limit=0)
HALF = StatementConfig(because="why", limit=0.5)


def parameters(evidence: Any) -> dict[str, torch.nn.Parameter]:
    return dict(evidence.model.named_parameters())


def with_fresh_model(evidence: Any) -> Any:
    """The same, with an untrained model of the evidence's own configuration."""
    tokenizer = evidence.session.tokenizer
    evidence.__dict__["session"] = Session(build_model(evidence.config.model, seed=1).eval(), tokenizer)
    return evidence


# -- gradients --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_parameter_learns(evidence: MakeEvidence, precision: str) -> None:
    made = evidence("second", f"trainer.precision={precision}")
    found = gradients(made, PLAIN)
    assert found.holds, found.measured
    assert f"all {len(parameters(made))} tensors" in found.measured
    assert all(parameter.grad is None for parameter in parameters(made).values())


@pytest.mark.parametrize(
    "name", ["superblocks.1.layers.0.moe.router.weight", "heads.0.norm.weight", "heads.1.mtp.0.w1.weight"]
)
def test_a_frozen_parameter_is_named(evidence: MakeEvidence, name: str) -> None:
    made = evidence("second")
    parameters(made)[name].requires_grad_(False)
    found = gradients(made, PLAIN)
    assert not found.holds and f"{name} has none" in found.measured and found.value == 1


def test_a_part_that_is_cut_off_is_found(evidence: MakeEvidence) -> None:
    """Zero output weights stop the gradient of what comes before them: it is there, and zero."""
    made = evidence("second")
    with torch.no_grad():
        parameters(made)["heads.1.mtp.0.w2.weight"].zero_()
    found = gradients(made, PLAIN)
    assert not found.holds and "heads.1.mtp.0.w1.weight" in found.measured


def test_a_gradient_that_is_no_number_is_found(evidence: MakeEvidence) -> None:
    made = evidence("second")
    with torch.no_grad():
        parameters(made)["norm.weight"][0] = float("nan")
    found = gradients(made, PLAIN)
    assert not found.holds and "not finite" in found.measured


def test_heads_that_are_never_trained_are_left_out_in_words(evidence: MakeEvidence) -> None:
    without = with_fresh_model(evidence("second", "model.mtp.enabled=false"))
    found = gradients(without, PLAIN)
    assert found.holds and "3 of heads that are not trained" in found.measured and "mtp.enabled=false" in found.measured
    found = gradients(evidence("second", "model.mtp.exit_weight=0"), PLAIN)
    assert found.holds and "are left out" in found.measured


# -- experts ----------------------------------------------------------------------------------------------------------


def test_experts_that_all_have_tokens(evidence: MakeEvidence) -> None:
    found = no_dead_experts(evidence("first"), NONE_DEAD)
    assert found.holds and found.value == 0 and "all 2 x 4 experts" in found.measured


def test_a_router_that_never_picks_an_expert(evidence: MakeEvidence) -> None:
    made = evidence("first")
    biases = [buffer for name, buffer in made.model.named_buffers() if name.endswith("balance_bias")]
    biases[1][2] = -1e9
    found = no_dead_experts(made, NONE_DEAD)
    assert not found.holds and found.value == 1 and "layer 2 expert 3" in found.measured
    assert no_dead_experts(made, StatementConfig(because="why", limit=1)).holds


# -- samples ----------------------------------------------------------------------------------------------------------


def test_samples_of_a_sound_model_vary(evidence: MakeEvidence) -> None:
    found = distinct_4grams(evidence("first"), HALF)
    assert found.holds and found.value is not None and found.value > 0.5
    assert found == distinct_4grams(evidence("first"), HALF)  # the same seeds


def test_a_model_that_repeats_itself(evidence: MakeEvidence, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "complete", lambda self, prompt, tokens, seed: "the end of " * 40)
    found = distinct_4grams(evidence("first"), HALF)
    assert not found.holds and found.value is not None and found.value < 0.1


def test_a_model_that_says_nothing(evidence: MakeEvidence, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "complete", lambda self, prompt, tokens, seed: "")
    with pytest.raises(Missing, match="ends its texts at once"):
        distinct_4grams(evidence("first"), HALF)


def test_what_is_continued_is_the_test_text(evidence: MakeEvidence) -> None:
    made = evidence("first")
    test = made.corpus.test.tokens.tolist()
    excerpts = list(gates_model._excerpts(made))
    assert sum(len(original) for _, original in excerpts) >= 700
    for prompt, original in excerpts[:5]:
        joined = prompt + original
        assert any(test[i : i + len(joined)] == joined for i in range(len(test)))


@given(
    st.lists(st.lists(st.integers(0, 3), max_size=30), max_size=4).filter(lambda texts: any(len(t) > 3 for t in texts))
)
def test_the_share_of_distinct_runs(texts: list[list[int]]) -> None:
    share = distinct_share(texts)
    assert 0 < share <= 1
    assert distinct_share([*texts, *texts]) == pytest.approx(share / 2)  # saying all of it again adds nothing new
