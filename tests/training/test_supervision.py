"""What the heads learn in a step: weights by phase, slices inside the sequence, and whose exit has its turn."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superblock.config.model import ModelConfig
from superblock.models.targets import trained_terms
from superblock.training.supervision import phases, supervision_at


def model(superblocks: int, **mtp: object) -> ModelConfig:
    config = ModelConfig(num_superblocks=superblocks)
    for key, value in mtp.items():
        setattr(config.mtp, key, value)
    return config


def at(step: int, total: int = 900, *, superblocks: int = 1, **mtp: object):
    config = model(superblocks, **mtp)
    return supervision_at(config, step, total, sequence_length=256, seed=1)


def test_heads_begin_after_their_share_of_training() -> None:
    assert at(0) is None
    assert at(296) is None  # 0.33 of 900 is 297
    assert at(297) is not None
    assert at(899, enabled=False) is None


def test_weight_falls_in_the_last_third() -> None:
    assert at(400).mtp_weight == 0.3
    assert at(599).mtp_weight == 0.3
    assert at(600).mtp_weight == 0.1


def test_exits_take_turns_and_later_ones_weigh_more() -> None:
    turns = [at(step, superblocks=4) for step in range(300, 306)]
    assert [s for turn in turns for s, _ in turn.exits] == [0, 1, 2, 0, 1, 2]
    assert [weight for turn in turns[:3] for _, weight in turn.exits] == pytest.approx([0.1 / 3, 0.2 / 3, 0.1])
    assert all(turn.exit_depths for turn in turns)


def test_a_single_superblock_has_no_exit_before_the_last() -> None:
    assert at(500).exits == ()
    assert at(0, exit_start=0.0) is None


@pytest.mark.parametrize(
    ("superblocks", "turns"), [(1, []), (2, [1]), (3, [1]), (6, [1, 3]), (12, [1, 3, 6]), (13, [1, 3, 6, 12])]
)
def test_only_the_exits_where_stages_end(superblocks: int, turns: list[int]) -> None:
    asked = [at(step, superblocks=superblocks, exits="stages").exits for step in range(300, 300 + 2 * len(turns))]
    assert [s + 1 for exits in asked for s, _ in exits] == turns * 2
    assert all(weight == pytest.approx(0.1 * (s + 1) / (superblocks - 1)) for exits in asked for s, weight in exits)


def test_all_exits_in_each_step_with_equal_weights() -> None:
    asked = at(500, superblocks=4, exits="all", exit_shape="equal", exit_weight=0.25)
    assert asked.exits == ((0, 0.25), (1, 0.25), (2, 0.25))
    assert at(500, superblocks=4, exits="all", exit_weight=0.0).exits == ()


def test_exits_before_the_multi_token_loss() -> None:
    early = at(100, superblocks=3, exit_start=0.1)
    assert early.mtp_weight == 0
    assert early.exits
    assert not early.exit_depths  # they predict several tokens, and that begins later
    assert at(89, superblocks=3, exit_start=0.1) is None
    assert at(400, superblocks=3, exit_start=0.1).exit_depths


def test_exits_after_the_multi_token_loss() -> None:
    assert at(400, superblocks=3, exit_start=0.5).exits == ()
    assert at(400, superblocks=3, exit_start=0.5).mtp_weight == 0.3
    assert at(450, superblocks=3, exit_start=0.5, exit_mtp=False).exits
    assert not at(450, superblocks=3, exit_start=0.5, exit_mtp=False).exit_depths


def test_phases_are_where_the_cost_of_a_step_changes() -> None:
    assert phases(model(3)) == [(0.0, 0.33), (0.33, 1.0)]
    assert phases(model(3, exit_start=0.0)) == [(0.0, 0.33), (0.33, 1.0)]
    assert phases(model(3, exit_start=0.5)) == [(0.0, 0.33), (0.33, 0.5), (0.5, 1.0)]
    assert phases(model(1, exit_start=0.5)) == [(0.0, 0.33), (0.33, 1.0)]  # there is no exit to begin
    assert phases(model(3, enabled=False)) == [(0.0, 1.0)]


@given(st.floats(0, 1), st.one_of(st.none(), st.floats(0, 1)), st.sampled_from(["rotate", "stages", "all"]))
def test_every_step_of_a_phase_asks_for_equally_many_predictions(
    start: float, exit_start: float | None, exits: str
) -> None:
    config = model(6, start=start, exit_start=exit_start, exits=exits)
    parts = phases(config)
    assert parts[0][0] == 0
    assert parts[-1][1] == 1
    assert all(a[1] == b[0] for a, b in pairwise(parts))
    for begin, end in parts:
        steps = {round(begin * 900 + share * (end - begin) * 900) for share in (0.2, 0.5, 0.8)}
        inside = [step for step in steps if begin <= step / 900 < end]
        found = {len(trained_terms(config, supervision_at(config, s, 900, sequence_length=64, seed=1))) for s in inside}
        assert len(found) <= 1


@given(st.integers(300, 899), st.floats(0.01, 1.0), st.integers(1, 8))
def test_slice_lies_in_the_sequence_and_holds_a_target(step: int, fraction: float, depth: int) -> None:
    found = at(step, token_fraction=fraction, depth=depth)
    assert 0 <= found.begin < found.end <= 256
    assert found.end - found.begin >= depth + 2
    assert abs(found.end - found.begin - max(depth + 2, fraction * 256)) <= 1


def test_slices_differ_between_steps_and_repeat_for_the_same_step() -> None:
    begins = [at(step).begin for step in range(300, 340)]
    assert len(set(begins)) > 20
    assert begins == [at(step).begin for step in range(300, 340)]
