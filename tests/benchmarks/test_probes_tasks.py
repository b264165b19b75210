"""Every generated task asks for what it says: labels are found again by another way, and guessing scores chance."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from superblock.benchmarks.probes import copying, needle, recall, states
from superblock.benchmarks.probes.catalogue import TASKS
from superblock.benchmarks.probes.task import EVERY_ARM, Examples
from superblock.config.probes import ARMS, PROBES, REQUIRED
from superblock.models.batch import IGNORE

SEEDS = st.integers(0, 2**31 - 1)


def rows(examples: Examples) -> list[tuple[list[int], dict[int, int]]]:
    """Tokens and asked places of every sequence."""
    found = []
    for ids, labels in zip(examples.ids_BT.tolist(), examples.labels_BT.tolist(), strict=True):
        found.append((ids, {t: label for t, label in enumerate(labels) if label != IGNORE}))
    return found


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(SEEDS, st.booleans())
def test_mqar_asks_every_key_once_for_its_value(seed: int, between: bool) -> None:
    for ids, asked in rows(recall.mqar(rng(seed), 3, T=32, pairs=6, vocabulary=64, random_between=between)):
        table = dict(zip(ids[0:12:2], ids[1:12:2], strict=True))
        assert len(table) == 6 and len(set(table.values())) == 6
        assert all(0 < key < 32 for key in table) and all(32 <= value < 64 for value in table.values())
        assert {ids[t]: value for t, value in asked.items()} == table and len(asked) == 6 and min(asked) >= 12
        if not between:
            assert all(ids[t] == 0 for t in range(12, 32) if t not in asked)


def test_mqar_asks_soon_rather_than_late() -> None:
    """Zoology's power law: the first free place is by far the likeliest."""
    examples = recall.mqar(rng(0), 400, T=64, pairs=1, vocabulary=64)
    places = np.argmax(examples.labels_BT != IGNORE, axis=1)
    first, last = (places == 2).mean(), (places == 62).mean()
    weight = 1 / np.arange(1, 32) ** 0.99
    assert first == pytest.approx(weight[0] / weight.sum(), abs=0.08) and last < 0.05


@given(SEEDS, st.sampled_from([0.0, 0.2]))
def test_recall_from_context_is_what_followed_the_key_before(seed: int, share: float) -> None:
    noise = 8 if share else 0
    drawn = recall.in_context_recall(rng(seed), 3, T=40, vocabulary=16, noise_share=share, noise=noise)
    for ids, asked in rows(drawn):
        clean = [(t, token) for t, token in enumerate(ids) if token < 16]
        assert share or len(clean) == 40
        table: dict[int, int] = {}
        expected = {}
        for (t, key), following in zip(clean[0::2], [*clean[1::2], None], strict=False):
            assert key < 8
            if key in table:
                expected[t] = table[key]
                assert following is None or following[1] == table[key]
            if following is not None:
                table[key] = following[1]
        assert asked == expected


def test_noise_has_its_share_of_the_places() -> None:
    drawn = recall.in_context_recall(rng(1), 100, T=128, vocabulary=16, noise_share=0.2, noise=16)
    assert (drawn.ids_BT >= 16).mean() == pytest.approx(0.2, abs=0.02)


@given(SEEDS)
def test_fuzzy_recall_can_be_told_from_the_sequence(seed: int) -> None:
    """Key motifs and values alternate by their halves of the vocabulary; a known key's end and its value's places ask."""
    for ids, asked in rows(recall.fuzzy_recall(rng(seed), 3, T=60, vocabulary=16)):
        changes = [0, *(t for t in range(1, 60) if (ids[t - 1] >= 8) and ids[t] < 8)]
        table: dict[int, list[int]] = {}
        expected = {}
        for begin, end in pairwise([*changes, 60]):
            part = ids[begin:end]
            split = next((i for i, token in enumerate(part) if token >= 8), len(part))
            value = part[split:]
            if part[0] in table and split <= len(part):
                known = table[part[0]]
                assert value == known[: len(value)]
                for i in range(len(value)):
                    expected[begin + split - 1 + i] = value[i]
                if end == 60:  # a cut sequence may ask for a token that it no longer shows
                    cut = begin + split - 1 + len(value)
                    expected |= {t: asked[t] for t in asked if t == cut}
            table.setdefault(part[0], value)
        assert asked == expected


@given(SEEDS)
def test_selective_copy_repeats_what_is_no_noise_in_order(seed: int) -> None:
    for ids, asked in rows(copying.selective_copy(rng(seed), 3, T=40, count=5, contents=6)):
        mark = ids.index(1)
        assert mark == 35 and not any(ids[36:]) and list(asked) == [35, 36, 37, 38, 39]
        assert list(asked.values()) == [token for token in ids[:mark] if token]


@given(SEEDS)
def test_induction_asks_what_followed_the_trigger(seed: int) -> None:
    for ids, asked in rows(copying.induction_heads(rng(seed), 3, T=20, contents=7)):
        first = ids.index(0)
        assert ids.count(0) == 2 and ids[-1] == 0 and asked == {19: ids[first + 1]} and ids[first + 1] > 0


@given(SEEDS)
def test_compression_repeats_everything(seed: int) -> None:
    for ids, asked in rows(copying.compression(rng(seed), 3, T=20, contents=7)):
        assert ids[10] == 1 and list(asked) == list(range(10, 20)) and list(asked.values()) == ids[:10]


def test_memorization_has_one_table_for_all_sequences() -> None:
    one, two = copying.memorization(rng(1), 50, T=32, keys=20), copying.memorization(rng(2), 50, T=32, keys=20)
    table: dict[int, int] = {}
    for ids, asked in [*rows(one), *rows(two)]:
        for t, value in asked.items():
            assert ids[t] == 0 and table.setdefault(ids[t - 1], value) == value and 20 < value <= 40
    assert len(table) == len(set(table.values())) == 20


@given(SEEDS)
def test_parity_counts_the_ones(seed: int) -> None:
    for ids, asked in rows(states.parity(rng(seed), 3, T=12)):
        assert asked == {t: sum(ids[: t + 1]) % 2 for t in range(2, 12)}


WORDS = {states.PLUS: "+", states.MINUS: "-", states.TIMES: "*", states.OPEN: "(", states.CLOSE: ")"}


@given(SEEDS, st.integers(5, 15))
def test_modular_arithmetic_goes_from_left_to_right(seed: int, length: int) -> None:
    for ids, asked in rows(states.modular_arithmetic(rng(seed), 3, T=length)):
        assert list(asked) == list(range(2, length, 2))
        for t, value in asked.items():
            text = str(ids[0])
            for i in range(1, t, 2):
                text = f"({text}{WORDS[ids[i]]}{ids[i + 1]})"
            assert value == eval(text) % 5


@given(SEEDS, st.sampled_from([3, 20, 41]))
def test_brackets_are_python_s(seed: int, shortest: int) -> None:
    for ids, asked in rows(states.modular_arithmetic_brackets(rng(seed), 3, T=45, shortest=shortest)):
        tokens = [token for token in ids if token != states.PADDING]
        assert ids[45 - len(tokens) :] == tokens and shortest - 1 <= len(tokens) <= 45 and tokens[-1] == states.EQUALS
        text = "".join(WORDS.get(token, str(token)) for token in tokens[:-1])
        assert asked == {44: eval(text) % 5}


@given(SEEDS, st.booleans())
def test_s5_moves_five_things(seed: int, swaps: bool) -> None:
    for ids, asked in rows(states.s5_words(rng(seed), 2, T=10, swaps=swaps)):
        things = list(range(5))
        for t, token in enumerate(ids):
            permutation = states.S5[token]
            assert not swaps or sum(a != b for a, b in enumerate(permutation)) in (0, 2)
            things = [permutation[thing] for thing in things]
            if t >= 2:
                assert states.S5[asked[t]] == tuple(things)


def test_s5_is_a_group() -> None:
    table = states.products()
    assert len(states.S5) == 120 and states.S5[0] == (0, 1, 2, 3, 4)
    assert all(sorted(row) == list(range(120)) for row in table.tolist())
    assert (table[0] == np.arange(120)).all() and (table[:, 0] == np.arange(120)).all()


@given(SEEDS, st.booleans())
def test_the_needle_is_said_before_it_is_asked(seed: int, of_test: bool) -> None:
    for ids, asked in rows(needle.needle(rng(seed), 2, T=128, test=of_test)):
        text, answer = bytes(ids), bytes(asked.values())
        assert list(asked) == [124, 125, 126, 127] and answer.isdigit()
        assert text.count(needle.SAID + answer) >= 1 and text.endswith(needle.ASKED + answer[:-1])


def test_the_test_s_haystack_is_not_the_training_s() -> None:
    trained, tested = needle.haystack(False), needle.haystack(True)
    assert len(trained) > 5 * len(tested) > 5 * 100_000 and bytes(tested[:2000]) not in bytes(trained)


# -- what holds for all -------------------------------------------------------------------------------------------


def test_the_configuration_knows_every_task_and_arm() -> None:
    assert tuple(TASKS) == PROBES and EVERY_ARM == ARMS and PROBES[:3] == REQUIRED
    assert all(make().name == name for name, make in TASKS.items())


@pytest.mark.parametrize("name", PROBES)
def test_levels_and_batches_are_well_formed(name: str) -> None:
    task = TASKS[name]()
    sizes = [level.size for level in task.levels]
    assert sizes == sorted(set(sizes)) and any(level.scored for level in task.levels) and task.levels[0].trained
    for draw in (*task.batches, *(level.draw for level in task.levels)):
        one, same, other = draw(rng(3), 2), draw(rng(3), 2), draw(rng(4), 2)
        assert one.ids_BT.shape == one.labels_BT.shape and one.ids_BT.dtype == one.labels_BT.dtype == np.int64
        assert one.ids_BT.min() >= 0 and one.ids_BT.max() < task.vocabulary
        answers = one.labels_BT[one.labels_BT != IGNORE]
        assert len(answers) and answers.min() >= 0 and answers.max() < task.vocabulary
        assert (one.ids_BT == same.ids_BT).all() and (one.ids_BT != other.ids_BT).any()


@pytest.mark.parametrize("name", PROBES)
def test_chance_is_what_the_best_blind_answer_gets(name: str) -> None:
    """The commonest answer of some examples, given to others without looking at them."""
    task = TASKS[name]()
    draw: Callable[..., Examples] = task.batches[-1]
    seen, unseen = (draw(rng(seed), 600) for seed in (1, 2))
    answers = seen.labels_BT[seen.labels_BT != IGNORE]
    commonest = np.bincount(answers).argmax()
    asked = unseen.labels_BT[unseen.labels_BT != IGNORE]
    spread = 4 * np.sqrt(task.chance / len(asked)) + 0.012
    assert (asked == commonest).mean() == pytest.approx(task.chance, abs=spread)
