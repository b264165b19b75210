"""What the command for the picture of MLflow says when it cannot take one; the browser's tests take it."""

from pathlib import Path

import pytest

from superblock.reporting import mlflow_picture
from superblock.reporting.mlflow_picture import main


@pytest.mark.parametrize(
    "words", [[], ["a.jpg"], ["a.png", "x"], ["a.png", "1", "2", "3"], ["a.png", "tracking.port=x"]]
)
def test_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "python -m superblock.reporting.mlflow_picture mlflow.png" in capsys.readouterr().err


def test_nothing_recorded(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr(mlflow_picture, "load_playwright", lambda: None)
    monkeypatch.setenv("CHROMIUM", "/bin/true")
    assert main(["a.png", "900", "700", "tracking.port=5077"]) == 2
    assert "no experiment superblock is recorded there yet" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_without_a_browser(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(mlflow_picture, "load_playwright", lambda: None)
    monkeypatch.setattr(mlflow_picture, "find_browser", lambda: None)
    assert main(["a.png"]) == 2
    assert "no Chromium found: install one of chromium-headless-shell" in capsys.readouterr().err
