"""The cases of the speed suite, their names and what they cost: no torch, so that a wrong name is known at once."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from superblock.benchmarks.timing import Settings
from superblock.config.benchmark import BenchmarkConfig, SpeedConfig
from superblock.config.fields import ConfigError, closest
from superblock.config.model import AttentionConfig, DeltaNetConfig, ModelConfig, MoEConfig, MTPConfig
from superblock.config.stage import ScaleConfig
from superblock.models.formulas import TRAINING_FACTOR, Counts, count, mean_context

SHARE = 0.25
"""Share of the mean matmul limit that is assumed for estimates of time."""
QUICK_TOKENS = 128
OVERHEAD = {"train": 2e-3, "prefill": 2e-3, "decode": 4e-3}
"""Seconds per superblock and call that do not depend on tokens, for estimates."""
RUN_SECONDS = 5.0
"""Seconds of a whole run, for estimates."""
LOOPS = 3
"""Whole runs of which the cost around a step is taken."""
CHILD_SECONDS = 8.0
"""Seconds to start a process, import and build, for estimates."""


@dataclass(frozen=True)
class Case:
    """One piece of work that all variants do."""

    name: str
    kind: str
    batch: int = 1
    tokens: int = 1
    """Of a sequence; of decoding, those of a sample."""
    superblocks: int = 1
    context: int = 0
    """Tokens in the cache before decoding."""
    head_dim: int = 0
    memory: bool = False
    """Peak memory is measured too."""

    @property
    def tokens_per_call(self) -> int:
        return self.batch * self.tokens


def select(config: BenchmarkConfig) -> list[Case]:
    """The cases that `config.cases` names, the most important ones first.

    Raises:
        ConfigError: if a pattern matches none of them.
    """
    known: dict[str, Case] = {}
    for case in all_cases(quickened(config.speed) if config.quick else config.speed):
        known.setdefault(case.name, case)
    chosen: set[str] = set()
    for pattern in (part.strip() for part in config.cases.split("|")):
        found = {name for name in known if fnmatchcase(name, pattern)}
        if not found:
            hint = f"; did you mean {close[0]}?" if (close := closest(pattern, known)) else ""
            raise ConfigError(f"cases={config.cases}: {pattern} is none of {', '.join(known)}{hint}")
        chosen |= found
    return [case for name, case in known.items() if name in chosen]


def all_cases(speed: SpeedConfig) -> Iterator[Case]:
    """Depths, parts, inference, what surrounds a step, then how cost grows with batch and length."""
    B, T = speed.batch_size, speed.sequence_length
    yield from (_train(depth, B, T, memory=speed.memory) for depth in speed.superblocks)
    rows, columns = max(1, speed.part_tokens // T), min(T, speed.part_tokens)
    for dim in speed.head_dims:
        yield Case(f"part/delta-rule-{dim}", "delta-rule", batch=rows, tokens=columns, head_dim=dim)
    for kind in ("gated-deltanet", "attention", "moe", "convolution", "norm", "cross-entropy"):
        yield Case(f"part/{kind}", kind, batch=rows, tokens=columns)
    yield Case("part/optimizer", "optimizer", superblocks=speed.inference_superblocks)
    yield Case("part/heads", "heads", batch=B, tokens=T, superblocks=max(2, min(speed.superblocks)))
    depth = speed.inference_superblocks
    for tokens in speed.prefill:
        yield Case(f"prefill/s{depth}/t{tokens}", "prefill", tokens=tokens, superblocks=depth)
    for context in speed.contexts:
        yield Case(
            f"decode/s{depth}/c{context}", "decode", tokens=speed.decode_tokens, superblocks=depth, context=context
        )
    yield Case("around/loader", "loader", batch=B, tokens=T)
    yield Case("around/step", "around", batch=2, tokens=32)
    smallest = min(speed.superblocks)
    for batch in speed.batch_sizes:
        yield _train(smallest, batch, T)
    for tokens in speed.sequence_lengths:
        yield _train(smallest, max(1, speed.tokens_per_step // tokens), tokens)


def quickened(speed: SpeedConfig) -> SpeedConfig:
    """The smallest of each list, and short sequences."""
    short = min(speed.sequence_length, QUICK_TOKENS)
    least = lambda values: sorted(values)[:1]  # noqa: E731
    return replace(
        speed,
        superblocks=least(speed.superblocks),
        batch_size=1,
        batch_sizes=least(speed.batch_sizes),
        sequence_length=short,
        sequence_lengths=[min(n, short) for n in least(speed.sequence_lengths)],
        tokens_per_step=short,
        inference_superblocks=1,
        prefill=[min(n, short) for n in least(speed.prefill)],
        contexts=[min(n, short) for n in least(speed.contexts)],
        decode_tokens=min(4, speed.decode_tokens),
        part_tokens=min(2 * short, speed.part_tokens),
        head_dims=least(speed.head_dims),
        memory=False,
    )


def model_config(scale: ScaleConfig, superblocks: int, longest: int) -> ModelConfig:
    """The superblock with the peer's function: its router, its shared gate, decays only, no prediction heads."""
    s = scale
    return ModelConfig(
        d_model=s.d_model,
        vocab_size=s.vocab_size,
        num_superblocks=superblocks,
        max_sequence_length=max(longest, 4),
        gdn=DeltaNetConfig(
            num_key_heads=s.key_heads,
            num_value_heads=s.value_heads,
            key_dim=s.delta_head_dim,
            value_dim=s.delta_head_dim,
            negative_eigenvalues=False,
        ),
        gqa=AttentionConfig(num_heads=s.query_heads, num_kv_heads=s.kv_heads, head_dim=s.attention_head_dim),
        moe=MoEConfig(
            num_experts=s.experts,
            top_k=s.top_k,
            d_expert=s.d_expert,
            d_shared=s.d_expert,
            score="softmax",
            shared_gate=True,
            balance_rate=0.0,
            aux_loss=0.0,
        ),
        mtp=MTPConfig(enabled=False, last=s.mtp_last, d_hidden=s.mtp_hidden, d_block=s.mtp_block),
    )


def flops(case: Case, scale: ScaleConfig) -> float | None:
    """Model FLOPs of one call; None where none are counted."""
    counts = count(model_config(scale, case.superblocks, case.tokens + case.context))
    tokens, seen = case.tokens_per_call, mean_context(case.tokens)
    if case.kind in ("train", "heads"):
        return tokens * counts.training_flops_per_token(case.tokens, heads=False)
    if case.kind in ("prefill", "decode"):
        unembedding = 2 * scale.d_model * scale.vocab_size  # of the last token alone
        each = counts.flops_per_token(case.context + seen)
        return tokens * each if case.kind == "decode" else tokens * (each - unembedding) + unembedding
    if case.kind == "delta-rule":
        return TRAINING_FACTOR * tokens * 7.0 * scale.value_heads * case.head_dim**2
    rows = {"gated-deltanet": "Gated DeltaNet", "attention": "Grouped Query Attention", "moe": "MoE FFN"}
    if case.kind in rows:
        return TRAINING_FACTOR * tokens * _row(counts, rows[case.kind], seen)
    if case.kind == "cross-entropy":
        return TRAINING_FACTOR * tokens * 2.0 * scale.d_model * scale.vocab_size
    return None


def estimate(case: Case, config: BenchmarkConfig, limits: Mapping[str, float], peers: int, settings: Settings) -> float:
    """Seconds that a case takes, roughly.

    Args:
        limits: FLOP/s in matrix products by precision.
        peers: variants of the peer that can run.
        settings: how often it is measured.
    """
    if case.kind == "around":
        return RUN_SECONDS * (1 + min(LOOPS, settings.repeats))
    sides = len(config.speed.precisions) + peers
    rate = SHARE * sum(limits.values()) / len(limits)
    calls = case.tokens if case.kind == "decode" else 1
    one = (flops(case, config.scale) or 0.0) / rate + OVERHEAD.get(case.kind, 1e-3) * case.superblocks * calls
    timed = min(settings.case_seconds, settings.repeats * sides * max(one, settings.sample_seconds))
    return 1.0 + sides * settings.warm_up * one + timed + (sides * (CHILD_SECONDS + 2 * one) if case.memory else 0.0)


def _train(superblocks: int, batch: int, tokens: int, *, memory: bool = False) -> Case:
    name = f"train/s{superblocks}/b{batch}-t{tokens}"
    return Case(name, "train", batch=batch, tokens=tokens, superblocks=superblocks, memory=memory)


def _row(counts: Counts, name: str, context: float) -> float:
    row = next(row for row in counts.rows if row.name == name)
    return row.flops_at(context) / row.copies
