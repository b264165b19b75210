"""Training speed beside transformers' Qwen3-Next of the same dimensions, in one process, in turns.

    python tests/benchmarks/training_speed.py [superblocks] [repeats]

Both sides: the same tokens, two threads, fused AdamW, freed memory kept, subnormals flushed. The peer has no
multi-token heads; the share they take of ours is shown apart, in the phase of training in which they learn. The peer runs in fp32 and under bf16 autocast. Each repeat runs every variant once, in rotated order; the figure
is the median of the repeats' ratios. Prints a table and one JSON line.
"""

import gc
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch

from superblock.config.model import ModelConfig
from superblock.kernels.packing import PackInfo
from superblock.models.batch import Supervision
from superblock.models.language_model import build_model
from superblock.training.process import prepare_process

BATCH, TOKENS = 8, 256


def peer(superblocks: int) -> torch.nn.Module:
    """transformers' model: one linear-attention and one full-attention layer per superblock."""
    from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

    config = Qwen3NextConfig(
        vocab_size=4096, hidden_size=256, intermediate_size=128, num_hidden_layers=2 * superblocks,
        num_attention_heads=4, num_key_value_heads=2, head_dim=64,
        linear_key_head_dim=64, linear_value_head_dim=64, linear_num_key_heads=4, linear_num_value_heads=4,
        moe_intermediate_size=128, shared_expert_intermediate_size=128, num_experts=8, num_experts_per_tok=2,
        layer_types=["linear_attention", "full_attention"] * superblocks, max_position_embeddings=4096,
        tie_word_embeddings=False, output_router_logits=False,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
    )  # fmt: skip
    config._attn_implementation = "sdpa"
    model = Qwen3NextForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("mlp.gate.weight"):  # zero as shipped, which sends every token to the same experts
            torch.nn.init.normal_(parameter, std=0.02)
    return model.train()


def stepper(model: torch.nn.Module, loss: Callable[[], torch.Tensor], *, bf16: bool) -> Callable[[], None]:
    """One training step: forward, backward, fused AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def variants(superblocks: int) -> dict[str, Callable[[], None]]:
    """What is compared."""
    ids_BT = torch.randint(0, 4096, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0))
    labels_BT, pack = ids_BT.roll(-1, 1), PackInfo.dense(BATCH, TOKENS)
    result: dict[str, Callable[[], None]] = {}
    for name, bf16, heads in (
        ("superblock bf16", True, False),
        ("superblock fp32", False, False),
        ("with heads, bf16", True, True),
    ):
        config = ModelConfig(num_superblocks=superblocks)
        config.mtp.enabled = heads
        width = round(config.mtp.token_fraction * TOKENS)
        exit_superblock = superblocks // 2 if heads and superblocks > 1 else None
        supervision = Supervision(begin=0, end=width, mtp_weight=0.3, exit_superblock=exit_superblock, exit_weight=0.1)
        ours = build_model(config, seed=1).train()

        def our_loss(
            model: torch.nn.Module = ours, asked: Supervision | None = supervision if heads else None
        ) -> torch.Tensor:
            losses = model(ids_BT, pack, labels_BT, supervision=asked).losses
            return sum(term.weight * term.total / max(1, term.count) for term in losses.values())  # type: ignore[return-value]

        result[name] = stepper(ours, our_loss, bf16=bf16)
    for name, bf16 in (("transformers bf16", True), ("transformers fp32", False)):
        theirs = peer(superblocks)
        result[name] = stepper(
            theirs, lambda model=theirs: model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss, bf16=bf16
        )  # type: ignore[misc]
    return result


def main() -> None:
    """Runs the comparison."""
    superblocks = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    repeats = int(sys.argv[2]) if len(sys.argv) > 2 else 9
    threads = prepare_process(None, 1)
    steps = variants(superblocks)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step(), step()
    names = list(steps)
    for repeat in range(repeats):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            gc.collect()
            start = time.perf_counter()
            steps[name]()
            steps[name]()
            seconds[name].append((time.perf_counter() - start) / 2)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    best_peer = min((name for name in names if name.startswith("transformers")), key=medians.__getitem__)
    for name in names:
        ratio = statistics.median(peer / own for peer, own in zip(seconds[best_peer], seconds[name], strict=True))
        low, high = min(seconds[name]), max(seconds[name])
        print(
            f"{name:18s} {1e3 * medians[name]:7.1f} ms [{1e3 * low:.1f}, {1e3 * high:.1f}]  "
            f"{BATCH * TOKENS / medians[name]:7.0f} tokens/s  {ratio:5.2f}x of {best_peer}"
        )
    share = statistics.median(
        1 - plain / whole for plain, whole in zip(seconds["superblock bf16"], seconds["with heads, bf16"], strict=True)
    )
    print(f"the multi-token heads take {share:.1%} of a step")
    print(json.dumps({"superblocks": superblocks, "threads": threads, "torch": torch.__version__, "seconds": seconds}))


if __name__ == "__main__":
    main()
