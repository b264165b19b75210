"""The checks of a GPU's kernels as tests where there is one; elsewhere a trial of the script itself."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from check_kernels import main
from kernel_checks import Check, all_checks

GPU = torch.device("cuda", 0) if torch.cuda.is_available() else None


@pytest.mark.skipif(GPU is None, reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("check", all_checks(GPU) if GPU else [], ids=lambda check: check.name)
def test_on_a_gpu(check: Check) -> None:
    if check.why_not:
        pytest.skip(check.why_not)
    errors = check.run()
    assert max(errors.values()) <= check.tolerance, errors


def test_checks_hold_on_a_processor() -> None:
    """All kernels that can run there; whole models are tested elsewhere."""
    ran = 0
    for check in all_checks(torch.device("cpu")):
        if check.why_not is None and "model" not in check.name:
            errors = check.run()
            assert max(errors.values()) <= check.tolerance, (check.name, errors)
            ran += 1
    assert ran > 15


@pytest.mark.slow
def test_the_script_writes_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["device=cpu", "scales=dry", "minutes=3", "checks=false", f"out={tmp_path}"]) == 0
    [path] = tmp_path.iterdir()
    record = json.loads(path.read_text())
    assert path.name == f"{record['date']}-gpu-cpu.json"
    measured = [line for line in record["speed"] if "tokens_per_second" in line]
    assert "superblock" in {line["name"] for line in measured}
    assert not [line for line in record["speed"] if "failed" in line]


def test_wrong_words_are_answered(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["gpu=1"]) == 2
    assert "settings are device" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([]) == 2
    assert "no GPU here" in capsys.readouterr().err
