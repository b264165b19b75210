"""What is shown on a terminal and in a log file."""

import io
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from superblock.callbacks.perplexity import Perplexity
from superblock.callbacks.progress import Bars, Lines, ProgressBar, duration


def run(bar: ProgressBar, trainer: SimpleNamespace, module: Any, steps: int) -> None:
    for i in range(steps):
        module.advance(losses={"next_token": torch.tensor(2.5)})
        bar.on_train_batch_end(trainer, module, None, None, i)
    bar.on_validation_start(trainer, module)
    for i in range(4):
        bar.on_validation_batch_end(trainer, module, None, None, i)
    bar.on_validation_end(trainer, module)
    bar.on_train_end(trainer, module)


def test_a_log_file_gets_few_lines(trainer: SimpleNamespace, module: Any) -> None:
    file = io.StringIO()
    perplexity = Perplexity(train_bytes_per_token=4.0)
    perplexity.results = {"val/bits_per_byte": 1.92345, "val/perplexity": 31.234}
    bar = ProgressBar(console=Console(file=file), perplexity=perplexity)
    assert isinstance(bar._display, Lines)
    module.total_steps = 2000
    run(bar, trainer, module, 2000)
    lines = file.getvalue().splitlines()
    assert len(lines) == 3  # the first step, the validation, the end; ten seconds never passed
    assert lines[0].startswith("training: step 1/2,000  0 %  loss 2.500")
    assert lines[1].startswith("validation at step 2,000: 1.9235 bits per byte, perplexity 31.23  (")
    assert lines[2].startswith("training: step 2,000/2,000  100 %  loss 2.500") and "tokens/s" in lines[2]
    assert "\x1b" not in file.getvalue()


def test_a_line_per_interval_with_the_time_left(trainer: SimpleNamespace, module: Any) -> None:
    file = io.StringIO()
    run(ProgressBar(console=Console(file=file, width=40), interval=0.0), trainer, module, 3)
    lines = file.getvalue().splitlines()
    assert len(lines) == 3 + 4 + 2  # steps, batches, ends; never broken by the width
    assert "tokens/s" in lines[1] and lines[1].endswith("left")
    assert lines[4] == "validation: batch 2/4"


def test_a_terminal_gets_bars(trainer: SimpleNamespace, module: Any) -> None:
    file = io.StringIO()
    bar = ProgressBar(console=Console(file=file, force_terminal=True, width=120), interval=0.0)
    assert isinstance(bar._display, Bars)
    run(bar, trainer, module, 7)
    trainer.state.fn = "test"
    bar.on_test_start(trainer, module)
    for i in range(4):
        bar.on_test_batch_end(trainer, module, None, None, i)
    bar.on_test_end(trainer, module)
    text = file.getvalue()
    assert "━" in text and "validation at step 7" in text and "test at step 7" in text
    assert "training: step 7/7" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h")  # the cursor is shown again


def test_an_exception_gives_the_terminal_back(trainer: SimpleNamespace, module: Any) -> None:
    file = io.StringIO()
    bar = ProgressBar(console=Console(file=file, force_terminal=True))
    module.advance(losses={"next_token": torch.tensor(2.5)})
    bar.on_train_batch_end(trainer, module, None, None, 0)
    assert "\x1b[?25l" in file.getvalue() and "\x1b[?25h" not in file.getvalue()
    bar.on_exception(trainer, module, RuntimeError())
    assert "\x1b[?25h" in file.getvalue()


@pytest.mark.parametrize(("zero", "sanity"), [(False, False), (True, True)])
def test_silence_elsewhere(zero: bool, sanity: bool, trainer: SimpleNamespace, module: Any) -> None:
    file = io.StringIO()
    bar = ProgressBar(console=Console(file=file), interval=0.0)
    trainer.is_global_zero, trainer.sanity_checking = zero, sanity
    run(bar, trainer, module, 0 if sanity else 5)
    assert file.getvalue() == ""


def test_duration() -> None:
    assert [duration(s) for s in (0.4, 65, 3725)] == ["0:00", "1:05", "1:02:05"]
