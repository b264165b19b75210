"""What the benchmark suites that look at finished runs measure."""

from collections.abc import Iterator
from dataclasses import dataclass

from superblock.config.fields import knob

LOCAL_TASKS = ("superblock_brackets", "superblock_identifiers", "superblock_text")
"""Tasks of the harness that are made from the run's own test text."""


@dataclass
class LanguageConfig:
    """Perplexity, bits per byte and accuracy on held-out text, by context length and by package."""

    runs: list[str] = knob(
        list,
        "finished runs: names, stages or MLflow ids; [] is the newest of each stage, arm and seed of the newest scale",
    )
    split: str = knob("test", "held-out text", choices=("validation", "test"))
    beyond: int = knob(
        1,
        "longest context that is read, in lengths of a training sequence; above 1 reads the text once more, in longer pieces",
        minimum=1,
        maximum=64,
    )


@dataclass
class HarnessConfig:
    """lm-evaluation-harness (the extra `harness`) on a finished run's model."""

    run: str = knob("newest", "as in `generate`: newest, a run's name or MLflow id, a stage, or a promoted model")
    tasks: list[str] = knob(
        lambda: list(LOCAL_TASKS),
        "tasks by name: those made from the run's test text, of include_path, or the harness's own, which need a network",
    )
    include_path: str | None = knob(None, "folder with task files (YAML) of your own")
    limit: int | None = knob(None, "examples of each task; null is all", minimum=1)
    shots: int | None = knob(None, "examples shown before each question; null is what the task says", minimum=0)
    batch_size: int = knob(16, "texts that are scored together", minimum=1)

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.tasks:
            yield "tasks", "must name at least one"
