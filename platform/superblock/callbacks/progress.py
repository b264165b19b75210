"""What a person watches while a run goes on: bars on a terminal, a line now and then in a log file."""

import math
import time
from collections.abc import Iterator
from typing import Any, Protocol

from lightning.pytorch import Callback, Trainer
from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from superblock.callbacks.base import MAIN
from superblock.callbacks.perplexity import Perplexity
from superblock.callbacks.stopwatch import Stopwatch

BAR_SECONDS = 0.5
LINE_SECONDS = 10.0


class Display(Protocol):
    """Where progress is shown."""

    interval: float
    """Shortest time between two updates, in seconds."""

    def update(self, phase: str, done: int, total: int | None, text: str) -> None: ...
    def finish(self, phase: str, text: str) -> None: ...
    def close(self) -> None: ...


class Watcher(Protocol):
    """Somebody who is told how long training will take; shown above the bars where rich can render it."""

    def training(self, seconds_left: float) -> None: ...


class _Watched(Progress):
    """Bars below what watches them."""

    watcher: Watcher | None = None

    def get_renderables(self) -> Iterator[RenderableType]:
        if self.watcher is not None and hasattr(self.watcher, "__rich__"):
            yield self.watcher  # type: ignore[misc]
        yield from super().get_renderables()


class Bars:
    """One moving bar per phase, the training's above the evaluation's."""

    def __init__(self, console: Console, interval: float = BAR_SECONDS, watcher: Watcher | None = None) -> None:
        self.interval = interval
        columns = (TextColumn("{task.description:10}"), BarColumn(bar_width=24), TextColumn("{task.fields[text]}"))
        self._progress = _Watched(*columns, console=console, transient=True, refresh_per_second=4)
        self._progress.watcher = watcher
        self._tasks: dict[str, TaskID] = {}
        self._console = console

    def update(self, phase: str, done: int, total: int | None, text: str) -> None:
        if not self._tasks:
            self._progress.start()
        if phase not in self._tasks:
            self._tasks[phase] = self._progress.add_task(phase, total=total, text=text)
        self._progress.update(self._tasks[phase], completed=done, total=total, text=text)

    def finish(self, phase: str, text: str) -> None:
        if (task := self._tasks.pop(phase, None)) is not None:
            self._progress.remove_task(task)
        if not self._tasks:
            self._progress.stop()
        self._console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        self._progress.stop()


class Lines:
    """Plain lines for files and pipes."""

    def __init__(self, console: Console, interval: float = LINE_SECONDS) -> None:
        self.interval = interval
        self._console = console

    def update(self, phase: str, done: int, total: int | None, text: str) -> None:
        self._print(f"{phase}: {text}")

    def finish(self, phase: str, text: str) -> None:
        self._print(text)

    def close(self) -> None:
        pass

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class ProgressBar(Callback):
    """Shows step, loss, tokens/s and time left during training, then each evaluation and its result.

    Process 0 alone shows anything. The loss is read from the device at most once per update.

    Args:
        console: where to; standard output by default.
        perplexity: whose results end an evaluation's line.
        interval: seconds between updates; 0.5 on a terminal and 10 elsewhere by default.
        watcher: told the time left whenever it is shown.
    """

    def __init__(
        self,
        *,
        console: Console | None = None,
        perplexity: Perplexity | None = None,
        interval: float | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        self._console = console or Console()
        self._perplexity, self._watcher = perplexity, watcher
        self._display: Display
        if self._console.is_terminal:
            self._display = Bars(self._console, BAR_SECONDS if interval is None else interval, watcher)
        else:
            self._display = Lines(self._console, LINE_SECONDS if interval is None else interval)
        self._watch = Stopwatch()
        self._first: tuple[int, int] | None = None  # step and tokens when the watch began
        self._shown = -math.inf
        self._began = 0.0

    def _is_time(self) -> bool:
        now = time.perf_counter()
        if now - self._shown < self._display.interval:
            return False
        self._shown = now
        return True

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not trainer.is_global_zero:
            return
        if self._first is None:  # the first step plans and allocates, so speed is measured from its end
            self._first = (pl_module.step, pl_module.tokens_seen)
            self._watch.restart()
        if self._is_time():
            self._display.update(
                "training",
                pl_module.step,
                pl_module.total_steps or None,
                self._training_text(pl_module, trainer.world_size),
            )

    def _training_text(self, module: Any, world_size: int) -> str:
        assert self._first is not None
        steps, tokens = module.step - self._first[0], module.tokens_seen - self._first[1]
        parts = [f"step {module.step:,}"]
        if module.total_steps:
            parts = [f"step {module.step:,}/{module.total_steps:,}", f"{100 * module.step / module.total_steps:.0f} %"]
        if MAIN in module.last_losses:
            # this process's share of the mean; exact on one process, its own estimate on several
            parts.append(f"loss {float(module.last_losses[MAIN]) * world_size:.3f}")
        seconds = self._watch.seconds
        if steps and seconds > 0:
            parts.append(f"{tokens / seconds:,.0f} tokens/s")
            if module.total_steps:
                left = seconds / steps * (module.total_steps - module.step)
                parts.append(f"{duration(left)} left")
                if self._watcher is not None:
                    self._watcher.training(left)
        return "  ".join(parts)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.is_global_zero and self._first is not None:
            took = duration(self._watch.seconds)
            text = self._training_text(pl_module, trainer.world_size).removesuffix("  0:00 left")
            self._display.finish("training", f"training: {text}  in {took} without evaluation")

    def _evaluate_start(self, trainer: Trainer) -> None:
        self._watch.pause()
        self._began = self._shown = time.perf_counter()

    def _evaluate_batch(self, trainer: Trainer, phase: str, done: int, sizes: Any) -> None:
        if trainer.is_global_zero and not trainer.sanity_checking and self._is_time():
            total = sum(sizes) if isinstance(sizes, list) else sizes
            known = int(total) if math.isfinite(total) else None
            self._display.update(phase, done, known, f"batch {done:,}" + (f"/{known:,}" if known else ""))

    def _evaluate_end(self, trainer: Trainer, phase: str, key: str, step: int) -> None:
        if trainer.is_global_zero and not trainer.sanity_checking:
            text = f"{phase} at step {step:,}"
            results = self._perplexity.results if self._perplexity else {}
            if f"{key}bits_per_byte" in results:
                text += f": {results[f'{key}bits_per_byte']:.4f} bits per byte, perplexity {results[f'{key}perplexity']:.2f}"
            self._display.finish(phase, f"{text}  ({time.perf_counter() - self._began:.1f} s)")
        self._watch.go_on()

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._evaluate_start(trainer)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._evaluate_batch(trainer, "validation", batch_idx + 1, trainer.num_val_batches)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        key = "val/" if trainer.state.fn == "fit" else "final/val_"
        self._evaluate_end(trainer, "validation", key, pl_module.step)

    def on_test_start(self, trainer: Trainer, pl_module: Any) -> None:
        self._evaluate_start(trainer)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._evaluate_batch(trainer, "test", batch_idx + 1, trainer.num_test_batches)

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._evaluate_end(trainer, "test", "test/", pl_module.step)

    def on_exception(self, trainer: Trainer, pl_module: Any, exception: BaseException) -> None:
        self._display.close()


def duration(seconds: float) -> str:
    """`2:05`, or `1:02:05` from an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
