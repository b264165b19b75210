"""Trains a model on a probe and tests it: torch alone, one process, fresh examples in every step.

Nothing of a run depends on anything but its task, arm and seed; seeds of the weights and of the training examples differ
from run to run, the test's examples are the same for every arm and seed.
Legend: B sequences, T tokens, V vocabulary.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle

import numpy as np
import torch
from torch import nn

from superblock.benchmarks.probes.arms import model_config
from superblock.benchmarks.probes.task import Draw, Examples, Task
from superblock.config.fields import validate
from superblock.config.optim import OptimConfig, ScheduleConfig
from superblock.models.batch import IGNORE, ModelOutput
from superblock.models.language_model import SuperblockModel, build_model
from superblock.optim.build import build_optimizer, set_learning_rate
from superblock.optim.schedules import learning_rate_factor

CLIP = 1.0
"""Largest norm of the gradient."""
STOP_AFTER = 3
"""Evaluations in a row that must reach `Recipe.stop`."""
EVERY = 100
"""Steps between two evaluations on fresh examples of the training distribution."""
VALIDATION = 1024
"""Asked places of such an evaluation, about."""
TEST_SEED, VALIDATION_SEED = 1_000_003, 2_000_003
TOKENS_AT_ONCE = 16_384
"""Of a test, so that its logits fit in memory."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What a run came to."""

    score: float
    """Mean accuracy over the levels that count."""
    levels: dict[str, float]
    """Accuracy by level."""
    steps: int
    parameters: int
    loss: float
    """Of the last step, in nats per asked place."""
    curve: list[tuple[int, float]] = field(default_factory=list)
    """(step, accuracy on the training distribution)."""
    training_seconds: float = 0.0
    seconds: float = 0.0


def run_probe(task: Task, arm: str, seed: int, say: Say = lambda line: None) -> Outcome:
    """Trains and tests one model.

    Raises:
        FloatingPointError: if the loss is not finite.
    """
    began = time.perf_counter()
    config = model_config(task, arm)
    validate(config)
    model = build_model(config, seed=seed)
    steps, loss, curve = _train(model, task, seed, say)
    trained = time.perf_counter()
    levels = {level.name: test(model, level.draw, level.examples, TEST_SEED + i) for i, level in enumerate(task.levels)}
    scored = [levels[level.name] for level in task.levels if level.scored]
    return Outcome(
        score=float(np.mean(scored)), levels=levels, steps=steps, parameters=sum(p.numel() for p in model.parameters()),
        loss=loss, curve=curve, training_seconds=trained - began, seconds=time.perf_counter() - began,
    )  # fmt: skip


@torch.no_grad()
def test(model: nn.Module, draw: Draw, examples: int, seed: int) -> float:
    """Share of the asked places of so many sequences at which the likeliest token is the answer."""
    examples_drawn = draw(np.random.default_rng(seed), examples)
    ids_BT, labels_BT = examples_drawn.tensors()
    rows = max(1, TOKENS_AT_ONCE // ids_BT.shape[1])
    right = asked = 0
    for ids, labels in zip(ids_BT.split(rows), labels_BT.split(rows), strict=True):
        counts = labels != IGNORE
        answers = model(ids).logits_BTV.argmax(-1)
        right += int((answers == labels)[counts].sum())
        asked += int(counts.sum())
    return right / asked


def _train(model: SuperblockModel, task: Task, seed: int, say: Say) -> tuple[int, float, list[tuple[int, float]]]:
    """Steps done, the last loss, and accuracies on the way."""
    recipe = task.recipe
    optimizer = build_optimizer(
        model,
        OptimConfig(
            learning_rate=recipe.learning_rate, table_rate=1.0, vector_rate=1.0, weight_decay=recipe.weight_decay
        ),
    )
    schedule = ScheduleConfig(name="cosine", warmup=recipe.warmup, final=0.05)
    rng = np.random.default_rng(seed)
    batches = cycle([(draw, task.sequences(draw)) for draw in task.batches])
    curve: list[tuple[int, float]] = []
    reached, loss = 0, float("nan")
    for step in range(recipe.steps):
        set_learning_rate(optimizer, learning_rate_factor(schedule, step, recipe.steps))
        draw, sequences = next(batches)
        loss = _step(model, optimizer, draw(rng, sequences))
        if not np.isfinite(loss):
            raise FloatingPointError(f"the loss of step {step + 1} is {loss}")
        if (step + 1) % EVERY and step + 1 < recipe.steps:
            continue
        accuracy = _validate(model, task)
        curve.append((step + 1, accuracy))
        say(f"step {step + 1} of {recipe.steps}: loss {loss:.4f}, accuracy {accuracy:.4f}")
        reached = reached + 1 if recipe.stop is not None and accuracy >= recipe.stop else 0
        if reached >= STOP_AFTER:
            break
    return curve[-1][0], loss, curve


def _step(model: SuperblockModel, optimizer: torch.optim.Optimizer, examples: Examples) -> float:
    """One optimizer step; the loss in nats per asked place."""
    ids_BT, labels_BT = examples.tensors()
    output: ModelOutput = model(ids_BT, None, labels_BT)
    answers = output.losses["next_token"]
    loss = answers.total / answers.count
    objective = loss + output.losses["router"].total if "router" in output.losses else loss
    objective.backward()
    nn.utils.clip_grad_norm_(model.parameters(), CLIP)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    assert output.expert_counts_LE is not None
    model.balance_experts(output.expert_counts_LE, model.config.moe.balance_rate)
    return float(loss.detach())


def _validate(model: SuperblockModel, task: Task) -> float:
    """Mean accuracy over the distributions of training."""
    found = []
    for i, draw in enumerate(task.batches):
        asked = int((draw(np.random.default_rng(0), 4).labels_BT != IGNORE).sum()) / 4
        count = max(8, round(VALIDATION / len(task.batches) / max(1.0, asked)))
        found.append(test(model, draw, count, VALIDATION_SEED + i))
    return float(np.mean(found))
