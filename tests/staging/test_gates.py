"""Gates that records, growth and plans answer: each passes on a sound run and fails on a planted fault."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from superblock.config.growth import StatementConfig
from superblock.staging import gates
from superblock.staging.evidence import Missing
from superblock.tracking.spool import Spool

MakeEvidence = Callable[..., Any]
PLAIN = StatementConfig(because="why")
EXACT = StatementConfig(because="why", limit=1e-5)


def change_summary(name: str, **values: Any) -> None:
    path = Path("runs") / name / "summary.json"
    summary = json.loads(path.read_text())
    for key, value in values.items():
        place, *rest = reversed(key.split("__"))
        part = summary
        for step in reversed(rest):
            part = part[step]
        part[place] = value
    path.write_text(json.dumps(summary))


# -- losses -----------------------------------------------------------------------------------------------------------


def test_losses_of_a_sound_run_are_finite(evidence: MakeEvidence) -> None:
    found = gates.finite_loss(evidence("second"), PLAIN)
    assert found.holds and found.value == 0
    assert int(found.measured.split()[1]) > 24, found.measured


@pytest.mark.parametrize("name", ["train/loss", "val/exit_1/loss", "train/mtp_1/loss", "test/loss"])
def test_one_nan_in_the_middle_fails_though_later_losses_are_finite(evidence: MakeEvidence, name: str) -> None:
    spool = Spool(Path("runs/second"))
    spool.metrics({name: float("nan")}, 5)
    spool.metrics({name: 2.0}, 6)
    spool.close()
    found = gates.finite_loss(evidence("second"), PLAIN)
    assert not found.holds and found.value == 1
    assert f"{name} = nan at step 5" in found.measured


def test_a_part_of_the_sequence_without_tokens_is_no_fault(evidence: MakeEvidence) -> None:
    spool = Spool(Path("runs/second"))
    spool.metrics({"test/position_8/loss": float("nan"), "norms/state_rms": float("inf")}, 5)
    spool.close()
    assert gates.finite_loss(evidence("second"), PLAIN).holds


def test_a_run_without_records_is_not_taken_for_sound(evidence: MakeEvidence) -> None:
    Path("runs/second/spool.jsonl").unlink()
    with pytest.raises(Missing, match="no recorded training loss"):
        gates.finite_loss(evidence("second"), PLAIN)


# -- bits per byte ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("parents", "holds"), [(9.0, True), (None, True), (0.5, False)])
def test_a_grown_model_owes_what_its_parent_reached(evidence: MakeEvidence, parents: float | None, holds: bool) -> None:
    own = evidence("second").bits_per_byte()
    change_summary("first", splits__test__bits_per_byte=own if parents is None else parents)  # equal is enough
    found = gates.bits_per_byte(evidence("second"), StatementConfig(because="why", against="parent"))
    assert found.holds is holds and found.value == own
    assert "of its parent first" in found.asked


def test_another_text_does_not_compare(evidence: MakeEvidence) -> None:
    change_summary("first", data_digest="0" * 16)
    with pytest.raises(Missing, match="another text"):
        gates.bits_per_byte(evidence("second"), StatementConfig(because="why", against="parent"))


@pytest.mark.parametrize("against", ["trigram", "parent"])
def test_without_a_parent_the_trigram_model_is_the_bound(evidence: MakeEvidence, against: str) -> None:
    asked = StatementConfig(because="why", against=against)
    found = gates.bits_per_byte(evidence("first"), asked)
    assert not found.holds  # twelve steps
    assert "trigram" in found.asked and ("from scratch" in found.asked) is (against == "parent")
    change_summary("first", splits__test__bits_per_byte=1.0)
    assert gates.bits_per_byte(evidence("first"), asked).holds
    bound = evidence("first").summary["splits"]["test"]["references"]["trigram"]
    change_summary("first", splits__test__bits_per_byte=bound)
    assert not gates.bits_per_byte(evidence("first"), asked).holds  # as good as counting is not better


def test_a_reference_that_was_not_recorded_is_computed(evidence: MakeEvidence) -> None:
    known = gates.bits_per_byte(evidence("first"), StatementConfig(because="why", against="trigram")).asked
    change_summary("first", splits__test__references={})
    assert gates.bits_per_byte(evidence("first"), StatementConfig(because="why", against="trigram")).asked == known


def test_an_untested_run_says_what_to_do(evidence: MakeEvidence) -> None:
    change_summary("second", splits={})
    with pytest.raises(Missing, match="evaluation.test=true"):
        gates.bits_per_byte(evidence("second"), StatementConfig(because="why", against="parent"))


# -- growth -----------------------------------------------------------------------------------------------------------


def test_exact_growth_passes_and_is_done_again(evidence: MakeEvidence) -> None:
    found = gates.growth_exact(evidence("second"), EXACT)
    assert found.holds and found.value is not None and found.value < 1e-5
    assert "1 -> 3 superblocks by identity" in found.measured and "when grown again" in found.measured


@pytest.mark.parametrize("key", ["max_logit_difference", "exit_difference"])
@pytest.mark.parametrize("value", [1e-3, float("nan")])
def test_what_was_recorded_at_growth_counts(evidence: MakeEvidence, key: str, value: float) -> None:
    change_summary("second", **{f"growth__{key}": value})
    assert not gates.growth_exact(evidence("second"), EXACT).holds


def test_a_transplant_that_changes_one_weight_is_found(evidence: MakeEvidence, monkeypatch: pytest.MonkeyPatch) -> None:
    right = gates.transplant

    def wrong(plan: Any, state: Any, model: Any) -> None:
        right(plan, state, model)
        with torch.no_grad():
            model.norm.weight[0] += 1e-7  # far below the limit of the logits

    monkeypatch.setattr(gates, "transplant", wrong)
    found = gates.growth_exact(evidence("second"), EXACT)
    assert not found.holds and "1 copied weights differ" in found.measured


def test_without_the_parent_the_record_decides(evidence: MakeEvidence) -> None:
    shutil.rmtree("runs/first/checkpoints")
    found = gates.growth_exact(evidence("second"), EXACT)
    assert found.holds and "not grown again" in found.measured
    change_summary("second", growth__max_logit_difference=None, growth__exit_difference=None)
    with pytest.raises(Missing, match="no longer"):
        gates.growth_exact(evidence("second"), EXACT)


def test_a_parent_elsewhere_is_found_by_its_folder(evidence: MakeEvidence) -> None:
    Path("other").mkdir()
    Path("runs/first").rename("other/first")
    assert "not grown again" in gates.growth_exact(evidence("second"), EXACT).measured
    checkpoint = max(Path("other/first/checkpoints").glob("step-*"))
    for parent in ("other/first", checkpoint):
        made = evidence("second", f"parent={parent}")
        assert "when grown again" in gates.growth_exact(made, EXACT).measured
        assert made.parent_name == "first" and made.parent.checkpoint.name == checkpoint.name
        assert made.parent_result()[0] > 0  # the result is found with it


@pytest.mark.parametrize("method", ["stack", "interpolate"])
def test_other_methods_are_held_to_what_they_promise(evidence: MakeEvidence, method: str) -> None:
    change_summary("second", growth__method=method, growth__max_logit_difference=None)
    if method == "interpolate":
        change_summary("second", growth__exit_difference=None)
    found = gates.growth_exact(evidence("second", f"growth.method={method}"), EXACT)
    assert found.holds and "all copied weights are equal" in found.measured
    assert ("exits differ by at most" in found.measured) is (method == "stack")
    if method == "stack":
        change_summary("second", growth__exit_difference=0.1)
        assert not gates.growth_exact(evidence("second", "growth.method=stack"), EXACT).holds


def test_from_scratch_nothing_is_asked(evidence: MakeEvidence) -> None:
    found = gates.growth_exact(evidence("first"), EXACT)
    assert found.holds and "from scratch" in found.measured


# -- the plan ---------------------------------------------------------------------------------------------------------


def test_the_plan_closes_at_full_scale(evidence: MakeEvidence) -> None:
    made = evidence("second")
    made.config.stage.name = "mvp4"
    found = gates.plan_closes(made, StatementConfig(because="why", limit=0.005))
    assert found.holds and "235.37B" in found.measured
    assert not gates.plan_closes(made, StatementConfig(because="why", limit=0.001)).holds
    made.config.stage.name = "mvp3"
    smaller = gates.plan_closes(made, StatementConfig(because="why", limit=0.005))
    assert not smaller.holds and smaller.value is not None and smaller.value > 0.4


def test_a_formula_that_differs_from_the_model_is_named(
    evidence: MakeEvidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = evidence("second")
    made.config.stage.name = "mvp4"
    build = gates.build_model

    def without_the_norm(*args: Any, **kwargs: Any) -> Any:
        model = build(*args, **kwargs)
        model.norm = torch.nn.Identity()
        return model

    monkeypatch.setattr(gates, "build_model", without_the_norm)
    found = gates.plan_closes(made, StatementConfig(because="why", limit=0.005))
    assert not found.holds and "differ" in found.measured and "8,192 by formula" in found.measured
