"""A few texts from the trained model, kept with its run."""

from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import Callback, Trainer

Generate = Callable[[str, int, int], str]
"""(prompt, tokens to generate, seed) -> the continuation."""


class Samples(Callback):
    """Continues the prompts in turn when training is complete and records the texts as `samples.md`.

    Args:
        generate: continues a prompt; every process calls it, since a sharded model answers only together.
        prompts: beginnings of texts, used in turn.
        count: texts to write.
        tokens: length of each continuation.
        seed: seed of the first text; each later one adds 1.
    """

    def __init__(self, generate: Generate, prompts: Sequence[str], *, count: int, tokens: int, seed: int = 1) -> None:
        if count and not prompts:
            raise ValueError("samples need at least one prompt")
        self._generate, self._prompts = generate, tuple(prompts)
        self._count, self._tokens, self._seed = count, tokens, seed
        self.texts: list[tuple[str, str]] = []
        """Prompt and continuation of each text."""

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        if pl_module.step < pl_module.total_steps:  # interrupted: the run goes on another time
            return
        prompts = [self._prompts[i % len(self._prompts)] for i in range(self._count)]
        self.texts = [(p, self._generate(p, self._tokens, self._seed + i)) for i, p in enumerate(prompts)]
        if self.texts and trainer.is_global_zero:
            pl_module.tracker.text(as_markdown(self.texts, pl_module.step), "samples.md")


def as_markdown(texts: Sequence[tuple[str, str]], step: int) -> str:
    """The texts under headings, indented by four spaces so that nothing in them is taken for markup."""
    parts = [f"# Samples after step {step:,}"]
    for i, (prompt, continuation) in enumerate(texts, start=1):
        body = "\n".join("    " + line for line in (prompt + continuation).splitlines())
        parts.append(f"## {i}. prompt `{prompt.strip() or repr(prompt)}`\n\n{body}")
    return "\n\n".join(parts) + "\n"
