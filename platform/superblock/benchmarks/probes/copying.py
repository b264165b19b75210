"""Copying and storing: what was read comes back later, from among noise, after a trigger, from one token, or from the weights.

Selective copying as in MAD (arXiv 2403.17844) and Mamba (arXiv 2312.00752), induction heads as in the latter, compression
and memorization as in MAD. Legend: B sequences, T tokens, C tokens to copy, V vocabulary.
"""

from functools import partial

import numpy as np

from superblock.benchmarks.probes.task import MIXERS, Examples, Level, Recipe, Task, chosen_places, unasked


def selective_copy(rng: np.random.Generator, B: int, *, T: int, count: int, contents: int) -> Examples:
    """C of the first T - C - 1 places hold contents (ids from 2), the others noise (0); after a mark (1) they come again.

    The mark asks for the first of them, and each blank (0) behind it for the next: order, not values, tells which.
    """
    reading = T - count
    ids_BT, labels_BT = np.zeros((B, T), dtype=np.int64), unasked(B, T)
    tokens_BC = 2 + rng.integers(0, contents, (B, count))
    np.put_along_axis(ids_BT, chosen_places(rng, B, reading, count), tokens_BC, axis=1)
    ids_BT[:, reading] = 1
    labels_BT[:, reading:] = tokens_BC
    return Examples(ids_BT, labels_BT)


def induction_heads(rng: np.random.Generator, B: int, *, T: int, contents: int) -> Examples:
    """A trigger (0) stands once among random tokens (ids from 1) and again at the end, which asks for what followed it."""
    ids_BT, labels_BT = 1 + rng.integers(0, contents, (B, T)), unasked(B, T)
    place_B = rng.integers(0, T - 2, B)
    rows = np.arange(B)
    ids_BT[rows, place_B] = ids_BT[:, -1] = 0
    labels_BT[:, -1] = ids_BT[rows, place_B + 1]
    return Examples(ids_BT, labels_BT)


def compression(rng: np.random.Generator, B: int, *, T: int, contents: int) -> Examples:
    """T / 2 random tokens (ids from 2), a mark (1), and blanks (0) that ask for them in order.

    MAD decodes every place from the state at the mark by an MLP that knows the position. Here each blank asks, so that
    models without a decoder can be compared; attention could look past the mark, so its score tells copying, not
    compression.
    """
    half = T // 2
    ids_BT, labels_BT = np.zeros((B, T), dtype=np.int64), unasked(B, T)
    ids_BT[:, :half] = 2 + rng.integers(0, contents, (B, half))
    ids_BT[:, half] = 1
    labels_BT[:, half:] = ids_BT[:, :half]
    return Examples(ids_BT, labels_BT)


def memorization(rng: np.random.Generator, B: int, *, T: int, keys: int, table_seed: int = 0) -> Examples:
    """Key, blank, key, blank ...: every key asks, at its blank (0), for the value that it has in all sequences.

    The table comes from `table_seed`, never from the sequence, so that it can only be known by heart. Keys have the ids
    from 1, values those behind them.
    """
    table_K = 1 + keys + np.random.default_rng(table_seed).permutation(keys)
    index_BP = rng.integers(0, keys, (B, T // 2))
    ids_BT, labels_BT = np.zeros((B, T), dtype=np.int64), unasked(B, T)
    ids_BT[:, 0::2][:, : T // 2] = 1 + index_BP
    labels_BT[:, 1::2][:, : T // 2] = table_K[index_BP]
    return Examples(ids_BT, labels_BT)


def selective_copy_task() -> Task:
    """The CPU tier: 8 of 8 different contents from 64 tokens; then from 128 and 256."""
    draw = partial(selective_copy, count=8, contents=8)
    return Task(
        name="selective_copy",
        ability="selective copying",
        setting="8 of 8 kinds of contents from 64 tokens; also from 128 and 256",
        vocabulary=64,
        chance=1 / 8,
        batches=(partial(draw, T=64),),
        batch_tokens=2048,
        levels=_levels(draw, 64, (64, 128, 256), examples=256),
        recipe=Recipe(steps=2500, learning_rate=5e-3, seconds=55),
        arms=MIXERS,
        published_setting="MAD: 16 of 14 kinds from 256 tokens, width 128, 4 layers; Mamba: 16 of 16 kinds from 4096 tokens, width 64, 2 layers",
        published="Transformer 99.6 %, DeltaNet 100 % (MAD)",
        rope_fraction=1.0,
        rope_theta=100.0,
        tied=True,
    )


def mad_selective_copy_task() -> Task:
    """MAD's own sizes."""
    draw = partial(selective_copy, count=16, contents=14)
    return Task(
        name="mad_selective_copy",
        ability="selective copying, MAD's size",
        setting="16 of 14 kinds of contents from 256 tokens",
        vocabulary=64,
        chance=1 / 14,
        batches=(partial(draw, T=256),),
        batch_tokens=4096,
        levels=_levels(draw, 256, (256, 512), examples=64),
        recipe=Recipe(steps=2000, learning_rate=3e-3, seconds=120),
        arms=MIXERS,
        published_setting="vocabulary 16, 256 tokens, 16 to copy, 12,800 examples, 200 epochs, width 128, 4 layers",
        published="Transformer 99.6 %, DeltaNet 100 % (MAD)",
    )


def induction_heads_task() -> Task:
    """Mamba's task with shorter sequences: the trigger's follower, trained at 64 tokens and tested at four times as many."""
    draw = partial(induction_heads, contents=15)
    return Task(
        name="induction_heads",
        ability="induction",
        setting="vocabulary 16, 64 tokens; also 128 and 256",
        vocabulary=64,
        chance=1 / 15,
        batches=(partial(draw, T=64),),
        batch_tokens=4096,
        levels=_levels(draw, 64, (64, 128, 256), examples=512),
        recipe=Recipe(steps=2000, learning_rate=3e-3, seconds=100),
        arms=MIXERS,
        published_setting="vocabulary 16, 256 tokens trained, 64 to 1,048,576 tested, 2 layers, width 64 (arXiv 2312.00752)",
        published=None,
    )


def compression_task() -> Task:
    draw = partial(compression, contents=14)
    return Task(
        name="compression",
        ability="storing all tokens",
        setting="14 kinds, 16 tokens of 32; also 32 of 64. The blanks ask, where MAD decodes one vector by an MLP",
        vocabulary=64,
        chance=1 / 14,
        batches=(partial(draw, T=32),),
        batch_tokens=4096,
        levels=_levels(draw, 32, (32, 64), examples=256),
        recipe=Recipe(steps=1500, learning_rate=3e-3, seconds=90),
        arms=MIXERS,
        published_setting="vocabulary 16, 32 tokens, 12,800 examples, 200 epochs, width 128, 4 layers",
        published="Transformer 51.6 %, DeltaNet 42.2 % (MAD, with its decoder)",
    )


def memorization_task() -> Task:
    """MAD's sizes; length is no difficulty here, so there is one level."""
    draw = partial(memorization, keys=127)
    return Task(
        name="memorization",
        ability="knowledge in the weights",
        setting="127 pairs that are the same in all sequences, 32 tokens",
        vocabulary=256,
        chance=1 / 127,
        batches=(partial(draw, T=32),),
        batch_tokens=4096,
        levels=_levels(draw, 32, (32,), examples=256),
        recipe=Recipe(steps=1500, learning_rate=3e-3, seconds=60),
        arms=MIXERS,
        published_setting="vocabulary 256, 32 tokens, 12,800 examples, 200 epochs, width 128, 4 layers",
        published="Transformer 85.2 %, DeltaNet 52.8 % (MAD)",
    )


def _levels(draw: "partial[Examples]", trained: int, lengths: tuple[int, ...], examples: int) -> tuple[Level, ...]:
    return tuple(
        Level(
            f"length={T}",
            partial(draw, T=T),
            max(16, examples * trained // T),
            scored=trained == T,
            trained=trained == T,
        )
        for T in lengths
    )
