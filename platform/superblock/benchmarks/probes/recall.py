"""Recall: pairs of key and value are read, and a key that comes again asks for its value.

MQAR is Zoology's multi-query associative recall (arXiv 2312.04927) in the mixed sizes of the Based set; the other
three are MAD's (arXiv 2403.17844). Legend: B sequences, T tokens, P pairs, Q queries, V vocabulary.
"""

from functools import partial

import numpy as np

from superblock.benchmarks.probes.task import MIXERS, Examples, Level, Recipe, Task, distinct, unasked

POWER = 0.01
"""Zoology's power_a: of the gap from the pairs to a query, so that near ones are likelier."""
NOISE_SHARE = 0.2
"""Of the tokens of noisy recall."""
MOTIF = 3
"""Most tokens of a key or value of fuzzy recall."""


def mqar(
    rng: np.random.Generator, B: int, *, T: int, pairs: int, vocabulary: int, random_between: bool = False
) -> Examples:
    """P pairs, then every key once more at a random later place.

    Keys are of the lower half of the vocabulary, values of the upper; both differ within a sequence. Between the queries
    stands 0, which is neither, or with `random_between` (Zoology's random_non_queries) any token.
    """
    half = vocabulary // 2
    keys_BP = 1 + distinct(rng, B, half - 1, pairs)
    values_BP = half + distinct(rng, B, vocabulary - half, pairs)
    ids_BT = rng.integers(0, vocabulary if random_between else 1, (B, T))
    labels_BT = unasked(B, T)
    ids_BT[:, 0 : 2 * pairs : 2], ids_BT[:, 1 : 2 * pairs : 2] = keys_BP, values_BP
    room = (T - 2 * pairs) // 2
    weight = POWER * np.arange(1, room + 1) ** (POWER - 1)
    # the largest of log weight + Gumbel noise are a draw without replacement
    gaps_BP = np.argsort(-(np.log(weight) + rng.gumbel(size=(B, room))), axis=1)[:, :pairs]
    places_BP = 2 * pairs + 2 * gaps_BP
    np.put_along_axis(ids_BT, places_BP, keys_BP, axis=1)
    np.put_along_axis(labels_BT, places_BP, values_BP, axis=1)
    return Examples(ids_BT, labels_BT)


def in_context_recall(
    rng: np.random.Generator, B: int, *, T: int, vocabulary: int, noise_share: float = 0.0, noise: int = 0
) -> Examples:
    """Key, value, key, value ...: keys are drawn with repetition, and a key that was there before asks for its value.

    Keys are of the lower half of the vocabulary, values of the upper, and each sequence has a dictionary of its own. With
    `noise_share`, so many places between pairs hold a token of `noise` others, which begin at `vocabulary`.
    """
    half = vocabulary // 2
    table_BK = half + rng.integers(0, vocabulary - half, (B, half))
    ids_BT, labels_BT = np.zeros((B, T), dtype=np.int64), unasked(B, T)
    for b in range(B):
        t, seen = 0, set()
        while t < T:
            if noise and (t == T - 1 or rng.random() < noise_share * 2 / (1 + noise_share)):
                ids_BT[b, t] = vocabulary + rng.integers(noise)
                t += 1
                continue
            key = int(rng.integers(half))
            ids_BT[b, t] = key
            if key in seen:
                labels_BT[b, t] = table_BK[b, key]
            if t + 1 < T:
                ids_BT[b, t + 1] = table_BK[b, key]
            seen.add(key)
            t += 2
    return Examples(ids_BT, labels_BT)


def fuzzy_recall(rng: np.random.Generator, B: int, *, T: int, vocabulary: int) -> Examples:
    """As in-context recall, but keys and values are motifs of 1 to `MOTIF` tokens; every token of the value is asked for.

    Key motifs begin with a token that no other motif of the sequence begins with, so that its end can be told: the last
    place of a known key asks for the value's first token, and so on.
    """
    half = vocabulary // 2
    ids_BT, labels_BT = np.zeros((B, T), dtype=np.int64), unasked(B, T)
    for b in range(B):
        entries = [(_motif(rng, first, half), _value(rng, half, vocabulary)) for first in range(half)]
        t, seen = 0, set()
        while t < T:
            first = int(rng.integers(half))
            key, value = entries[first]
            tokens = np.concatenate([key, value])[: T - t]
            ids_BT[b, t : t + len(tokens)] = tokens
            begin = t + len(key) - 1
            answers = value[: max(0, T - begin)]
            if first in seen:
                labels_BT[b, begin : begin + len(answers)] = answers
            seen.add(first)
            t += len(tokens)
    return Examples(ids_BT, labels_BT)


def _motif(rng: np.random.Generator, first: int, half: int) -> np.ndarray:
    """`first` and 0 to 2 further key tokens."""
    return np.concatenate([[first], rng.integers(0, half, rng.integers(0, MOTIF))])


def _value(rng: np.random.Generator, half: int, vocabulary: int) -> np.ndarray:
    return rng.integers(half, vocabulary, rng.integers(1, MOTIF + 1))


SHOWN, WIDER = (2, 4, 8, 16, 32), (48, 60)
"""Pairs of MQAR that are trained on, and beyond."""
PLACES = 4
"""Tokens of a sequence of MQAR for each of its pairs, as in Zoology's (256, 64)."""
MQAR_VOCABULARY = 128


def _mqar_draw(pairs: int) -> "partial[Examples]":
    return partial(mqar, T=PLACES * pairs, pairs=pairs, vocabulary=MQAR_VOCABULARY)


def _mqar_level(pairs: int) -> Level:
    trained = pairs in SHOWN
    return Level(f"pairs={pairs}", _mqar_draw(pairs), examples=4096 // pairs, scored=trained, trained=trained)


def mqar_task() -> Task:
    """The CPU tier: 63 keys and 64 values, 2 to 32 pairs in training, 48 and 60 beyond; keys of Gated DeltaNet are 8 wide.

    Tried on the way, each with seed 1: with a vocabulary of 256, 4 to 32 pairs in 64 to 128 tokens, random tokens between and
    rates up to 3e-3, no arm did better than guessing among the values seen after 1,500 steps of 4,096 tokens. Short
    sequences of few pairs in the mix are what DeltaNet needs to begin (0.89 instead of 0.02 after 800 steps), one table for
    both ends what its values need. Attention must first find the token before: it stays at guessing for about 1,000 steps
    and then learns within 300, if all of a head is rotated and the slowest frequency is 1/100 rather than 1/10,000. With
    48 pairs in the mix too, or heads 16 wide, it stays there for 2,000 steps and has 0.42 and 0.27 at the end. Keys 16 wide lose too
    little to be seen (0.98 at 32 pairs); with values as narrow, DeltaNet's state is outgrown as well, but the hybrid's layer of it
    passes too little on (0.96 after 2,300 steps).
    """
    return Task(
        name="mqar",
        ability="associative recall",
        setting="vocabulary 128, 2 to 32 pairs in four times as many tokens; also 48 and 60 pairs",
        vocabulary=MQAR_VOCABULARY,
        chance=1 / (MQAR_VOCABULARY // 2),
        batches=tuple(_mqar_draw(pairs) for pairs in SHOWN),
        batch_tokens=2048,
        levels=tuple(_mqar_level(pairs) for pairs in (*SHOWN, *WIDER)),
        recipe=Recipe(steps=3000, learning_rate=5e-3, seconds=110),
        arms=MIXERS,
        published_setting="vocabulary 8192, 100,000 examples, (64,4) to (256,64) trained, to (1024,256) tested; d 64 to 512, 2 layers",
        published="DeltaNet perfect (its authors' account), attention about 100 %, fixed states fall as pairs outgrow them (the usual picture; no table read)",
        rope_fraction=1.0,
        rope_theta=100.0,
        tied=True,
        key_dim=8,
    )


def _mad(name: str, ability: str, draw_at: "partial[Examples]", vocabulary: int, published: str, asked: str) -> Task:
    """A task of MAD: its own sizes but for fewer examples and a model of two layers."""
    levels = tuple(
        Level(f"length={T}", partial(draw_at, T=T), examples=128, scored=T == 128, trained=T == 128) for T in (128, 256)
    )
    return Task(
        name=name,
        ability=ability,
        setting=f"{asked}, 128 tokens; also 256",
        vocabulary=vocabulary,
        chance=1 / 8,
        batches=(partial(draw_at, T=128),),
        batch_tokens=4096,
        levels=levels,
        recipe=Recipe(steps=1500, learning_rate=3e-3, seconds=100),
        arms=MIXERS,
        published_setting="vocabulary 16 (noisy 32), 128 tokens, 12,800 examples, 200 epochs, width 128, 4 layers, best of 6 rates and decays",
        published=published,
    )


def in_context_recall_task() -> Task:
    draw = partial(in_context_recall, vocabulary=16)
    return _mad(
        "in_context_recall",
        "recall from context",
        draw,
        16,
        "Transformer 94.1 %, DeltaNet 100 % (MAD)",
        "vocabulary 16",
    )


def noisy_recall_task() -> Task:
    """A fifth of the places hold noise of 16 further tokens."""
    draw = partial(in_context_recall, vocabulary=16, noise_share=NOISE_SHARE, noise=16)
    return _mad(
        "noisy_recall",
        "recall among noise",
        draw,
        32,
        "Transformer 86.8 %, DeltaNet 100 % (MAD)",
        "vocabulary 16 and 16 of noise",
    )


def fuzzy_recall_task() -> Task:
    draw = partial(fuzzy_recall, vocabulary=16)
    return _mad(
        "fuzzy_recall",
        "recall of motifs",
        draw,
        16,
        "Transformer 29.8 %, DeltaNet 35.7 % (MAD)",
        "vocabulary 16, motifs of 1 to 3",
    )
