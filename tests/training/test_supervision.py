"""What the heads learn in a step: weights by phase, slices inside the sequence, one exit at a time."""

from hypothesis import given
from hypothesis import strategies as st

from superblock.config.model import ModelConfig
from superblock.training.supervision import supervision_at


def at(step: int, total: int = 900, *, superblocks: int = 1, **mtp: object):
    config = ModelConfig(num_superblocks=superblocks)
    for key, value in mtp.items():
        setattr(config.mtp, key, value)
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
    assert [turn.exit_superblock for turn in turns] == [0, 1, 2, 0, 1, 2]
    assert [round(turn.exit_weight, 4) for turn in turns[:3]] == [0.0333, 0.0667, 0.1]


def test_a_single_superblock_has_no_exit_before_the_last() -> None:
    assert at(500).exit_superblock is None
    assert at(500).exit_weight == 0


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
