"""`superblock generate`: which run it takes, what it writes where, and what it says when it cannot."""

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from superblock.config.fields import ConfigError
from superblock.config.run import GenerateConfig
from superblock.generation.command import generate, write
from superblock.generation.find import find_checkpoint
from superblock.generation.session import Piece

Make = Callable[..., Path]
SHORT = {"max_tokens": 12, "prompt": "def f"}


def test_text_goes_to_stdout_and_the_rest_to_stderr(make_run: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make_run("run-a")
    generate(GenerateConfig(**SHORT))
    out, err = capsys.readouterr()
    assert out.startswith("def f")
    assert out.endswith("\n")
    assert err.startswith("generate: run-a (stage mvp1, scale mini, step-0000007, test 2.346 bits per byte)\n")
    assert "12 tokens in" in err
    assert "tokens/s" in err
    assert "extrapolates" not in err


def test_the_same_command_gives_the_same_text(make_run: Make, superblock: Callable[..., Any]) -> None:
    make_run("run-a")
    first, second, other = (superblock("generate", f"seed={s}", "max_tokens=12").out for s in (3, 3, 4))
    assert first == second != other


def test_an_exit_is_named_and_its_text_is_another(make_run: Make, superblock: Callable[..., Any]) -> None:
    make_run("run-a")
    texts = {at: superblock("generate", "max_tokens=12", *at) for at in ((), ("exit_at=2",), ("exit_at=1",))}
    assert texts[()].out == texts[("exit_at=2",)].out != texts[("exit_at=1",)].out
    assert "exit 1: the model that ends after 1 superblock\n" in texts[("exit_at=1",)].err
    assert "exit" not in texts[()].err
    assert texts[("exit_at=1",)].err.startswith("generate: run-a (stage mvp1")


@pytest.mark.parametrize(
    ("at", "words"), [("3", "exit_at=3: the model has 2 superblocks; must be 1 to 2"), ("0", "at least 1")]
)
def test_an_exit_that_is_not_there_is_refused_in_words(
    make_run: Make, superblock: Callable[..., Any], at: str, words: str
) -> None:
    make_run("run-a")
    answer = superblock("generate", f"exit_at={at}")
    assert answer.status == 2
    assert words in answer.err
    assert len(answer.err.strip().splitlines()) <= 4
    assert not answer.out


def test_samples_follow_each_other(make_run: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make_run("run-a")
    generate(GenerateConfig(samples=3, **SHORT))
    out, err = capsys.readouterr()
    assert [out.index(f"--- {i} of 3 ---\ndef f") for i in (1, 2, 3)] == sorted(
        out.index(f"--- {i} of 3") for i in (1, 2, 3)
    )
    assert "36 tokens" in err


def test_texts_beyond_the_trained_length_are_written_with_a_note(
    make_run: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run("run-a")
    generate(GenerateConfig(prompt="x", max_tokens=40))
    assert "trained on 32 tokens at once" in capsys.readouterr().err


def test_samples_that_end_in_another_order_are_read_in_theirs() -> None:
    out = io.StringIO()
    pieces = [
        Piece(0, "a", 1), Piece(1, "x", 1), Piece(2, "", 1, done=True),
        Piece(0, "b", 2), Piece(1, "y", 2, done=True),
        Piece(0, "c", 3, done=True),
    ]  # fmt: skip
    assert write(pieces, ">", 3, out) == 6
    assert out.getvalue() == "--- 1 of 3 ---\n>abc\n\n--- 2 of 3 ---\n>xy\n\n--- 3 of 3 ---\n>\n"


def test_a_terminal_without_the_character_shows_a_question_mark() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    write([Piece(0, "naïve", 1, done=True)], "", 1, out)
    assert raw.getvalue() == b"na?ve\n"


def test_a_reader_that_leaves_ends_it_quietly(make_run: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_run("run-a")
    with (tmp_path / "out").open("w") as file:

        def leave(text: str) -> int:
            raise BrokenPipeError

        monkeypatch.setattr(sys, "stdout", file)
        monkeypatch.setattr("superblock.generation.command._printable", lambda text, out: leave(text))
        generate(GenerateConfig(**SHORT))


def test_without_a_run_it_says_what_to_type(superblock: Callable[..., Any]) -> None:
    answer = superblock("generate")
    assert answer.status == 2
    assert "superblock run stage=mvp1" in answer.err


def test_an_unknown_run_gets_a_suggestion(make_run: Make) -> None:
    make_run("mvp1-mini-s1")
    with pytest.raises(ConfigError, match="did you mean mvp1-mini-s1"):
        find_checkpoint("mvp1-mini-s2")
    with pytest.raises(ConfigError, match="the newest are mvp1-mini-s1"):
        find_checkpoint("zzz")


def test_a_run_is_found_by_name_stage_id_and_folder(make_run: Make) -> None:
    older, newer = make_run("one", started=1.0), make_run("two", started=2.0, stage="mvp2")
    newest_of_stage = make_run("three", started=1.5)
    found = {text: find_checkpoint(text).checkpoint.parents[1] for text in ("newest", "mvp2", "mvp1", "one", "abcone")}
    assert {text: path.name for text, path in found.items()} == {
        "newest": newer.name, "mvp2": newer.name, "mvp1": newest_of_stage.name, "one": older.name, "abcone": older.name,
    }  # fmt: skip
    for path in (older, older / "checkpoints" / "step-0000007"):
        run = find_checkpoint(str(path)).run
        assert run is not None
        assert run.name == "one"


def test_a_broken_checkpoint_is_named_and_the_next_newest_used(
    make_run: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run("run-a", steps=(4, 9))
    (folder / "checkpoints" / "step-0000009" / "config.json").write_text("{}")
    generate(GenerateConfig(**SHORT))
    err = capsys.readouterr().err
    assert "step-0000009: config.json has 2 bytes" in err
    assert "step-0000004" in err.splitlines()[1]
    with pytest.raises(ConfigError, match="is not whole"):
        find_checkpoint(str(folder / "checkpoints" / "step-0000009"))


def test_a_run_that_has_no_checkpoint_yet_is_passed_over(make_run: Make) -> None:
    make_run("old", started=1.0)
    make_run("running", started=2.0, steps=())
    found = find_checkpoint("newest")
    assert found.checkpoint.parents[1].name == "old"
    assert found.skipped == ("running has no whole checkpoint",)
    with pytest.raises(ConfigError, match="running has no whole checkpoint"):
        find_checkpoint("running")


def test_it_needs_no_training_libraries_and_answers_before_torch(make_run: Make) -> None:
    make_run("run-a")
    code = (
        "import sys\nfrom superblock.generation.command import generate, find_checkpoint\n"
        "from superblock.config.run import GenerateConfig\n"
        "find_checkpoint('newest').describe(); assert 'torch' not in sys.modules\n"
        "generate(GenerateConfig(max_tokens=3))\n"
        "heavy = {'lightning', 'mlflow', 'torchmetrics', 'datasets', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
