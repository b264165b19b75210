"""Every kernel of the GPU path against its reference in float64: outputs and gradients, documents, odd lengths.

Legend: B sequences, T tokens, G key or kv heads, H heads, K, V head widths, N tokens, D width, E experts, F hidden width.
"""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from superblock.config.model import ModelConfig
from superblock.config.trainer import TrainerConfig
from superblock.kernels.attention import attend
from superblock.kernels.attention.backend import why_not_xformers
from superblock.kernels.cross_entropy.chunked import ChunkedCrossEntropy
from superblock.kernels.cross_entropy.reference import reference_cross_entropy
from superblock.kernels.delta_rule import flash_linear
from superblock.kernels.delta_rule.chunked import chunked
from superblock.kernels.delta_rule.reference import recurrent
from superblock.kernels.experts.backend import why_not_grouped
from superblock.kernels.packing import PackInfo
from superblock.models.batch import Batch, Supervision
from superblock.models.language_model import build_model
from superblock.optim.build import build_optimizer
from superblock.training.layers import prepare_layers
from superblock.training.sharding import clip_gradients

BF16, FP32 = torch.bfloat16, torch.float32
TOLERANCE = {BF16: 2e-2, FP32: 2e-4}
"""Relative to the size of each output or gradient. fp32 products may use TF32 inside xFormers and Triton, ours do not."""


@dataclass(frozen=True)
class Check:
    """`run` returns relative errors by name; `why_not` says why it cannot run here."""

    name: str
    run: Callable[[], dict[str, float]]
    tolerance: float
    why_not: str | None = None


def all_checks(device: torch.device) -> Iterator[Check]:
    """What there is to check on a device."""
    yield from delta_rule_checks(device)
    yield from attention_checks(device)
    yield from experts_checks(device)
    for dtype in (FP32, BF16):
        yield Check(f"cross-entropy chunked {dtype}", partial(cross_entropy, device, dtype), TOLERANCE[dtype])
    for settings in (
        {"activation_checkpointing": "selective"},
        {"activation_checkpointing": "full"},
        {"compile": True},
    ):
        name = " ".join(f"{key}={value}" for key, value in settings.items())
        yield Check(f"whole model, {name}", partial(whole_model, device, settings), 2e-3)
    waits = None if device.type == "cuda" else "only a GPU can be waited for"
    yield Check("a step that never waits for the GPU", partial(no_waiting, device), 0.0, waits)


# -- kernels ----------------------------------------------------------------------------------------------------------


def packed(lengths: list[int], rows: int) -> PackInfo:
    """The same documents in every row."""
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return PackInfo.from_doc_ids(ids.expand(rows, -1))


def errors(names: str, form: Any, reference: Any, tensors: list[Tensor]) -> dict[str, float]:
    """Relative distances of outputs and gradients between a form and a reference that is given float64 copies."""
    exact = [t.detach().double().requires_grad_() for t in tensors]
    inputs = [t.detach().requires_grad_() for t in tensors]
    results = []
    for function, given in ((form, inputs), (reference, exact)):
        with torch.enable_grad():
            outputs = function(*given)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            total = sum(o.to(torch.float32 if function is form else torch.float64).sin().sum() for o in outputs)
        results.append([*outputs, *torch.autograd.grad(total, given)])
    labels = [f"out{i}" for i in range(len(results[0]) - len(inputs))] + [f"d{name}" for name in names.split()]
    return {label: distance(a, b) for label, a, b in zip(labels, *results, strict=True)}


def distance(found: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over that of what is wanted; 1e30 for anything that is not finite."""
    found, wanted = found.detach().double(), wanted.detach().double()
    value = float((found - wanted).norm() / (wanted.norm() + 1e-30))
    return value if value == value else 1e30


def delta_rule_checks(device: torch.device) -> Iterator[Check]:
    cases = {
        "one document": (128, None, (2, 4, 64, 64)),
        "odd length": (131, None, (2, 2, 64, 128)),
        "documents": (150, [1, 63, 64, 5, 17], (2, 4, 128, 128)),
        "short": (7, [3, 4], (1, 1, 64, 64)),
    }
    for name, (T, lengths, heads) in cases.items():
        for form_name, form, dtype in (("chunked", chunked, FP32), ("fla", flash_linear.triton_rule, BF16)):
            run = partial(delta_rule, device, form, dtype, T, lengths, heads)
            probe = torch.empty(1, T, heads[0], heads[2], device=device, dtype=dtype)
            why_not = flash_linear.why_not(probe) if form_name == "fla" else None
            yield Check(f"delta rule {form_name}, {name}", run, TOLERANCE[dtype] * (2 if dtype == BF16 else 1), why_not)


def delta_rule(
    device: torch.device, form: Any, dtype: torch.dtype, T: int, lengths: list[int] | None, heads: tuple[int, ...]
) -> dict[str, float]:
    B, (G, H, K, V) = 2, heads
    make = torch.Generator().manual_seed(T)
    shapes = ((B, T, G, K), (B, T, G, K), (B, T, H, V))
    q, k, v = (torch.randn(shape, generator=make).to(device, dtype) for shape in shapes)
    g = -torch.rand(B, T, H, generator=make).to(device) * 0.5
    beta = 2 * torch.rand(B, T, H, generator=make).to(device)
    state = torch.randn(B, H, K, V, generator=make).to(device)
    pack = None if lengths is None else packed(lengths, B).to(device)

    def with_state(rule: Any) -> Any:
        return lambda q, k, v, g, beta, state: rule(q, k, v, g, beta, pack=pack, initial_state=state)

    return errors("q k v g beta state", with_state(form), with_state(recurrent), [q, k, v, g, beta, state])


def attention_checks(device: torch.device) -> Iterator[Check]:
    for T, lengths, window in (
        (128, None, None),
        (131, None, 32),
        (150, [1, 63, 64, 5, 17], None),
        (150, [149, 1], 40),
    ):
        for backend in ("sdpa", "xformers"):
            for dtype in (BF16, FP32):
                name = f"attention {backend} {dtype}, T={T}, documents={lengths}, window={window}"
                why_not = why_not_xformers(device, dtype, 64) if backend == "xformers" else None
                run = partial(attention, device, backend, dtype, T, lengths, window)
                yield Check(name, run, max(TOLERANCE[dtype], 2e-3), why_not)


def attention(
    device: torch.device, backend: str, dtype: torch.dtype, T: int, lengths: list[int] | None, window: int | None
) -> dict[str, float]:
    make = torch.Generator().manual_seed(T)
    shapes = ((2, T, 4, 64), (2, T, 2, 64), (2, T, 2, 64))
    qkv = [torch.randn(shape, generator=make).to(device, dtype) for shape in shapes]
    pack = None if lengths is None else packed(lengths, 2).to(device)
    form, reference = (partial(attend, pack=pack, window=window, backend=name) for name in (backend, "eager"))
    return errors("q k v", form, reference, qkv)


def experts_checks(device: torch.device) -> Iterator[Check]:
    for dtype in (BF16, FP32):
        for name in ("grouped", "sorted"):
            x, gate_up, down = (torch.empty(n, device=device, dtype=dtype) for n in ((9, 64), (8, 64, 64), (8, 64, 32)))
            why_not = why_not_grouped(x, gate_up, down) if name == "grouped" else None
            yield Check(f"experts {name} {dtype}", partial(experts, device, name, dtype), TOLERANCE[dtype], why_not)


def experts(device: torch.device, name: str, dtype: torch.dtype) -> dict[str, float]:
    """An odd number of tokens; expert 5 gets none."""
    N, D, E, F, k = 333, 64, 8, 32, 3
    make = torch.Generator().manual_seed(N)
    scores = torch.rand(N, E, generator=make)
    scores[:, 5] = -1
    index = scores.topk(k, dim=1).indices.to(device)
    shapes = ((N, D), (E, 2 * F, D), (E, D, F), (N, k))
    x, gate_up, down, weight = (torch.randn(shape, generator=make).to(device) / 4 for shape in shapes)
    module = importlib.import_module(f"superblock.kernels.experts.{name}")
    form = getattr(module, "sorted_experts" if name == "sorted" else name)
    reference = importlib.import_module("superblock.kernels.experts.loop").loop

    def call(function: Any) -> Any:
        return lambda x, gate_up, down, weight: function(x, gate_up, down, index, weight)

    tensors = [x.to(dtype), gate_up.to(dtype), down.to(dtype), weight]
    return errors("x gate_up down weight", call(form), call(reference), tensors)


def cross_entropy(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    N, D, V = 700, 64, 1000
    make = torch.Generator().manual_seed(N)
    h, w = (torch.randn(shape, generator=make).to(device, dtype) / 4 for shape in ((N, D), (V, D)))
    labels = torch.randint(0, V, (N,), generator=make).to(device)
    labels[::7] = -100
    form = lambda h, w: ChunkedCrossEntropy.apply(h, w, labels, 256, 1e-3, True) / N  # noqa: E731
    reference = lambda h, w: reference_cross_entropy(h, w, labels, z_loss=1e-3) / N  # noqa: E731
    return errors("h w", form, reference, [h, w])


# -- whole models -----------------------------------------------------------------------------------------------------


def tiny_model(device: torch.device, **settings: Any) -> tuple[Any, list[Batch], Supervision]:
    """Two superblocks of width 64, batches of documents, and what their heads learn."""
    config = ModelConfig(d_model=64, vocab_size=512, num_superblocks=2)
    config.gdn.num_key_heads = config.gdn.num_value_heads = config.gqa.num_heads = 2
    config.gqa.num_kv_heads, config.moe.d_expert, config.moe.d_shared = 1, 64, 64
    model = build_model(config, seed=1).to(device)
    prepare_layers(model, TrainerConfig(**settings))
    make, batches = torch.Generator().manual_seed(0), []
    for _ in range(4):
        ids = torch.randint(0, 512, (4, 65), generator=make)
        pack = packed([30, 1, 33], 4)
        batches.append(Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), pack))
    return model, batches, Supervision(begin=8, end=40, mtp_weight=0.3, exits=((0, 0.1),))


def train_step(model: Any, optimizer: torch.optim.Optimizer, batch: Batch, supervision: Supervision | None) -> Tensor:
    """One optimizer step as training does it, without a wait; returns the loss of the next token."""
    device = batch.input_ids_BT.device
    targets = model.count_targets(batch, supervision)
    with torch.autocast(device.type, BF16):
        output = model(batch.input_ids_BT, batch.pack, batch.labels_BT, supervision=supervision)
    losses = {name: term.total / max(1, targets[name]) for name, term in output.losses.items()}
    sum(output.losses[name].weight * loss for name, loss in losses.items()).backward()
    clip_gradients(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if output.expert_counts_LE is not None:
        model.balance_experts(output.expert_counts_LE, 1e-3)
    return losses["next_token"].detach()


def train(device: torch.device, **settings: Any) -> list[Tensor]:
    from superblock.config.optim import OptimConfig

    model, batches, supervision = tiny_model(device, **settings)
    optimizer = build_optimizer(model, OptimConfig())
    return [train_step(model, optimizer, batch.to(device), supervision) for batch in batches]


def whole_model(device: torch.device, settings: dict[str, Any]) -> dict[str, float]:
    """Losses of four steps with layers recomputed or compiled, against plain layers."""
    plain, found = (torch.stack(train(device, **given)) for given in ({}, settings))
    return {"loss": distance(found, plain)}


def no_waiting(device: torch.device) -> dict[str, float]:
    """torch raises at whatever would wait; the first step may, since it proves and plans."""
    from superblock.config.optim import OptimConfig

    model, batches, supervision = tiny_model(device)
    optimizer = build_optimizer(model, OptimConfig())
    train_step(model, optimizer, batches[0].to(device), supervision)
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches[1:]:
            train_step(model, optimizer, batch.to(device), supervision)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    return {"waits": 0.0}
