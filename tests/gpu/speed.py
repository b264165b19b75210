"""Training speed, share of the peak, and memory of whole models on a GPU, beside two peers."""

import gc
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from kernel_checks import train_step

from superblock.cli import app
from superblock.cli.commands import COMMANDS
from superblock.config.model import ModelConfig
from superblock.config.optim import OptimConfig
from superblock.config.run import RunConfig
from superblock.config.trainer import TrainerConfig
from superblock.evaluation.matmul_limit import matmul_limit
from superblock.kernels.packing import PackInfo
from superblock.models.batch import Batch, Supervision
from superblock.models.formulas import count
from superblock.models.language_model import build_model
from superblock.optim.build import build_optimizer
from superblock.training.layers import prepare_layers

PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "4090": 165e12}
"""bf16 FLOP/s without sparsity, from the makers' data sheets; the first whose name occurs in the device's."""
DOCUMENT = 700
"""Tokens of a document, so that rows of 1024 and 2048 hold several."""

Step = Callable[[], Any]


def configuration(*overrides: str) -> RunConfig:
    """What `python -m platform.run <overrides>` would train."""
    before, sys.argv = sys.argv, ["superblock", *overrides]
    try:
        [(_, composed)] = app.compose(COMMANDS["run"])
        config: RunConfig = app.configuration(COMMANDS["run"], composed)
    finally:
        sys.argv = before
    return config


def peak_flops(device: torch.device) -> float | None:
    """The data sheet's number; None for a device that is not listed."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((value for key, value in PEAK.items() if key in name), None)


def batch_of(config: RunConfig, sequences: int, device: torch.device) -> Batch:
    """Random tokens in documents of equal length."""
    T = config.data.sequence_length
    ids = torch.randint(0, config.model.vocab_size, (sequences, T + 1), generator=torch.Generator().manual_seed(0))
    docs = (torch.arange(T) // DOCUMENT).expand(sequences, -1)
    return Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), PackInfo.from_doc_ids(docs)).to(device)


def our_step(config: RunConfig, sequences: int, device: torch.device, settings: dict[str, Any]) -> Step:
    """A whole optimizer step of ours, heads included, with bf16 products and fp32 weights."""
    model = build_model(config.model, seed=1, device="meta").to_empty(device=device).train()
    for (
        parameter
    ) in model.parameters():  # drawn on the device: our own initial weights come from the processor, in a minute
        torch.nn.init.normal_(parameter, std=0.02) if parameter.ndim > 1 else torch.nn.init.ones_(parameter)
    for buffer in model.buffers():
        buffer.zero_()
    prepare_layers(model, TrainerConfig(**settings))
    optimizer = build_optimizer(model, OptimConfig())
    batch = batch_of(config, sequences, device)
    width = max(2, round(config.model.mtp.token_fraction * config.data.sequence_length))
    supervision = Supervision(begin=0, end=width, mtp_weight=0.3)
    return lambda: train_step(model, optimizer, batch, supervision)


def peer_step(model: torch.nn.Module, ids_BT: torch.Tensor, device: torch.device) -> Step:
    """The same of a transformers model."""
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def qwen3_next(m: ModelConfig) -> torch.nn.Module:
    """transformers' model of the same dimensions; on a GPU it uses flash-linear-attention where that is installed."""
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    layers = 2 * m.num_superblocks
    config = Qwen3NextConfig(
        vocab_size=m.vocab_size, hidden_size=m.d_model, intermediate_size=m.moe.d_expert, num_hidden_layers=layers,
        num_attention_heads=m.gqa.num_heads, num_key_value_heads=m.gqa.num_kv_heads, head_dim=m.gqa.head_dim,
        linear_key_head_dim=m.gdn.key_dim, linear_value_head_dim=m.gdn.value_dim,
        linear_num_key_heads=m.gdn.num_key_heads, linear_num_value_heads=m.gdn.num_value_heads,
        moe_intermediate_size=m.moe.d_expert, shared_expert_intermediate_size=m.moe.d_shared,
        num_experts=m.moe.num_experts, num_experts_per_tok=m.moe.top_k, max_position_embeddings=m.max_sequence_length,
        layer_types=["linear_attention", "full_attention"] * m.num_superblocks, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    model = Qwen3NextForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("mlp.gate.weight"):  # zero as shipped, which sends every token to the same experts
            torch.nn.init.normal_(parameter, std=0.02)
    return model


def gated_delta_net(m: ModelConfig) -> torch.nn.Module:
    """flash-linear-attention's own model: as many layers, the same heads, dense feed-forward parts."""
    from fla.models import GatedDeltaNetConfig, GatedDeltaNetForCausalLM

    config = GatedDeltaNetConfig(
        hidden_size=m.d_model, num_heads=m.gdn.num_key_heads, num_v_heads=m.gdn.num_value_heads, head_dim=m.gdn.key_dim,
        expand_v=m.gdn.value_dim / m.gdn.key_dim, num_hidden_layers=2 * m.num_superblocks, vocab_size=m.vocab_size,
        max_position_embeddings=m.max_sequence_length, fuse_cross_entropy=False, fuse_linear_cross_entropy=True,
    )  # fmt: skip
    return GatedDeltaNetForCausalLM(config)


def time_step(step: Step, device: torch.device, seconds: float) -> float:
    """Seconds per step: after two to warm up, as many as fit, at least three."""
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    step(), step()
    wait()
    began, steps = time.perf_counter(), 0
    while steps < 3 or time.perf_counter() - began < seconds:
        step()
        steps += 1
        if steps % 3 == 0:
            wait()  # so that not more is queued than fits the time
    wait()
    return (time.perf_counter() - began) / steps


def measure(
    name: str,
    make: Callable[[int], Step],
    tokens: int,
    flops: float,
    device: torch.device,
    *,
    first: int,
    seconds: float,
) -> dict[str, Any]:
    """Tokens per second and memory with as many sequences per step as fit, beginning with `first`.

    Args:
        make: a step for a number of sequences.
        tokens: of a sequence.
        flops: forward and backward, per token.
    """
    sequences = first
    while True:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
        try:
            began = time.perf_counter()
            took = time_step(make(sequences), device, seconds)
            break
        except torch.OutOfMemoryError:
            if sequences == 1:
                return {"name": name, "failed": "out of memory with one sequence"}
        sequences //= 2
    rate = sequences * tokens / took
    peak, limit = peak_flops(device), matmul_limit(device, torch.bfloat16)
    return {
        "name": name,
        "sequences": sequences,
        "seconds_per_step": took,
        "seconds_with_start": time.perf_counter() - began,
        "tokens_per_second": rate,
        "model_flop_per_second": rate * flops,
        "mfu": rate * flops / peak if peak else None,
        "share_of_measured_limit": rate * flops / limit,
        "memory_gib": torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None,
    }


def contestants(config: RunConfig, device: torch.device) -> Iterator[tuple[str, Callable[[int], Step], float]]:
    """Name, maker of a step, and FLOPs per token. Ours in three settings, each on its own: they compete for memory."""
    T, m = config.data.sequence_length, config.model
    flops = count(m).training_flops_per_token(T)
    for name, settings in (
        ("superblock", {}),
        ("superblock, selective", {"activation_checkpointing": "selective"}),
        ("superblock, full", {"activation_checkpointing": "full"}),
        ("superblock, compiled", {"compile": True}),
    ):
        yield name, lambda n, settings=settings: our_step(config, n, device, settings), flops
    for name, build in (("transformers Qwen3-Next", qwen3_next), ("fla GatedDeltaNet", gated_delta_net)):

        def make(n: int, build: Callable[[ModelConfig], torch.nn.Module] = build) -> Step:
            ids_BT = batch_of(config, n, device).input_ids_BT
            with torch.device(device):
                model = build(m)
            return peer_step(model, ids_BT, device)

        peer_flops = count(m).training_flops_per_token(T, heads=False)
        if build is gated_delta_net:  # dense: 6 per parameter, of which the input table computes nothing
            try:
                with torch.device("meta"):
                    size = sum(p.numel() for p in build(m).parameters())
                peer_flops = 6.0 * (size - m.vocab_size * m.d_model)
            except ImportError:
                peer_flops = 0.0
        yield name, make, peer_flops
