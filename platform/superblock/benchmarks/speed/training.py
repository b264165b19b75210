"""The whole training step, the optimizer alone, and what the prediction heads add."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from superblock.benchmarks.speed.cases import Case
from superblock.benchmarks.speed.work import (
    OURS,
    PEER,
    Pair,
    Variant,
    Work,
    autocast,
    difference,
    has_peer,
    variants_of,
)
from superblock.benchmarks.timing import Call
from superblock.config.benchmark import BenchmarkConfig
from superblock.config.model import ModelConfig
from superblock.kernels.packing import PackInfo
from superblock.models.batch import Supervision
from superblock.models.language_model import build_model

RATE = 1e-5
"""So small that hundreds of steps on the same tokens change nothing that costs time."""
CHECKED = 64
"""Tokens whose loss is compared: among many thousands of choices of experts one would be a tie that rounding decides."""


class TrainingStep:
    """Forward, backward and fused AdamW on the same tokens; one model and one optimizer per side."""

    def __init__(self, config: BenchmarkConfig, case: Case) -> None:
        self.pair = Pair(config, case)
        self.ids_BT = self.pair.tokens(case.batch, case.tokens)
        self.labels_BT = self.ids_BT.roll(-1, 1)
        self.pack = PackInfo.dense(case.batch, case.tokens)

    @cached_property
    def our_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.pair.ours.train().parameters(), lr=RATE, fused=True)

    @cached_property
    def their_optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.pair.theirs.train().parameters(), lr=RATE, fused=True)

    def ours(self, bf16: bool) -> Call:
        def loss() -> Tensor:
            term = self.pair.ours(self.ids_BT, self.pack, self.labels_BT).losses["next_token"]
            return term.total / term.count

        return step(loss, self.our_optimizer, bf16)

    def theirs(self, bf16: bool, style: str) -> Call:
        model = self.pair.styled(style).train()
        # the labels are shifted already: transformers would shift them once more
        return step(
            lambda: (
                model(input_ids=self.ids_BT, shift_labels=self.labels_BT, labels=self.labels_BT, use_cache=False).loss
            ),
            self.their_optimizer,
            bf16,
        )

    def check(self) -> float:
        """Losses of both, with the same weights, on the first tokens, and their gradients for the embedding."""
        self.pair.share_weights()
        ours, theirs = self.pair.ours.train(), self.pair.theirs.train()
        ids_BT, labels_BT = self.ids_BT[:1, :CHECKED], self.labels_BT[:1, :CHECKED].contiguous()
        term = ours(ids_BT, PackInfo.dense(*ids_BT.shape), labels_BT).losses["next_token"]
        loss = term.total / term.count
        expected = theirs(input_ids=ids_BT, shift_labels=labels_BT, labels=labels_BT, use_cache=False).loss
        [gradient] = torch.autograd.grad(loss, [ours.embedding.weight])
        [their_gradient] = torch.autograd.grad(expected, [theirs.model.embed_tokens.weight])
        return max(
            difference(loss, expected, "the loss"),
            difference(gradient, their_gradient, "the gradient for the embedding"),
        )


def step(loss: Callable[[], Tensor], optimizer: torch.optim.Optimizer, bf16: bool) -> Call:
    """One training step."""

    def call() -> None:
        with autocast(bf16):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return call


def training(config: BenchmarkConfig, case: Case) -> Work:
    """`train/...`."""
    whole = TrainingStep(config, case)
    return Work(variants_of(config, whole.ours, whole.theirs, styles=True), whole.check if has_peer() else None)


def optimizer(config: BenchmarkConfig, case: Case) -> Work:
    """`part/optimizer`: ours with its parameter groups beside torch's on the peer's parameters, both fused AdamW."""
    from superblock.config.optim import OptimConfig
    from superblock.optim.build import build_optimizer

    pair = Pair(config, case)

    def call(model: Any, make: Callable[[Any], torch.optim.Optimizer]) -> Call:
        generator = torch.Generator().manual_seed(config.seed)
        for parameter in model.parameters():
            parameter.grad = 1e-3 * torch.randn(parameter.shape, generator=generator)
        return make(model).step

    ours = lambda: call(pair.ours, lambda model: build_optimizer(model, OptimConfig(learning_rate=RATE)))  # noqa: E731
    theirs = lambda: call(pair.theirs, lambda m: torch.optim.AdamW(m.parameters(), lr=RATE, fused=True))  # noqa: E731
    variants = [Variant(f"{OURS}-adamw", ours)]
    if has_peer():
        variants.append(Variant(f"{PEER}-adamw", theirs, baseline=True))
    return Work(tuple(variants))


def heads(config: BenchmarkConfig, case: Case) -> Work:
    """`part/heads`: our training step with the multi-token head and an early exit, beside the same without them."""
    bf16 = "bf16" in config.speed.precisions
    precision = "bf16" if bf16 else "fp32"
    return Work((
        Variant("with-heads", lambda: _step_of_heads(config, case, True, bf16), precision),
        Variant("without-heads", lambda: _step_of_heads(config, case, False, bf16), precision, baseline=True),
    ))  # fmt: skip


def _step_of_heads(config: BenchmarkConfig, case: Case, enabled: bool, bf16: bool) -> Call:
    pair = Pair(config, case)
    c: ModelConfig = pair.config
    c.mtp.enabled = enabled
    model = build_model(c, seed=config.seed).train()
    ids_BT, pack = pair.tokens(case.batch, case.tokens), PackInfo.dense(case.batch, case.tokens)
    labels_BT = ids_BT.roll(-1, 1)
    supervision = Supervision(
        begin=0, end=round(c.mtp.token_fraction * case.tokens), mtp_weight=c.mtp.weight,
        exits=((case.superblocks // 2 - 1, c.mtp.exit_weight),),
    )  # fmt: skip

    def loss() -> Tensor:
        losses = model(ids_BT, pack, labels_BT, supervision=supervision if enabled else None).losses
        total: Tensor = sum(term.weight * term.total / max(1, term.count) for term in losses.values())
        return total

    return step(loss, torch.optim.AdamW(model.parameters(), lr=RATE, fused=True), bf16)
