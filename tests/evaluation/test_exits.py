"""Scores of every exit, block by block, and the speed up to each."""

import numpy as np
import pytest
import torch
from torch import nn

from superblock.config.fields import ConfigError
from superblock.config.model import AttentionConfig, DeltaNetConfig, ModelConfig, MoEConfig, MTPConfig
from superblock.evaluation.exits import ExitScores, exit_speeds, known_exits, score_exits
from superblock.kernels.packing import PackInfo
from superblock.models.batch import IGNORE, Batch
from superblock.models.language_model import SuperblockModel, build_model
from superblock.models.truncation import truncate


def model(superblocks: int = 3, **mtp: object) -> SuperblockModel:
    return build_model(
        ModelConfig(
            d_model=32, vocab_size=64, num_superblocks=superblocks, init_std=0.3, max_sequence_length=16,
            gdn=DeltaNetConfig(num_key_heads=1, num_value_heads=2, key_dim=8, value_dim=8, chunk_size=8),
            gqa=AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=8),
            moe=MoEConfig(num_experts=2, top_k=1, d_expert=8, d_shared=8), mtp=MTPConfig(d_hidden=8, **mtp),
        ), seed=2,
    )  # fmt: skip


def batches(count: int = 3, rows: int = 2, T: int = 16) -> list[Batch]:
    """Random tokens; the very last row is padding, as at the end of a split."""
    made = []
    for i in range(count):
        ids = torch.randint(64, (rows, T + 1), generator=torch.Generator().manual_seed(i))
        labels = ids[:, 1:].clone()
        if i == count - 1:
            labels[-1] = IGNORE
        made.append(Batch(ids[:, :-1].contiguous(), labels, PackInfo.dense(rows, T)))
    return made


def test_a_block_is_a_sequence_and_sums_to_the_models_own_loss() -> None:
    whole = model().train()
    scores = score_exits(whole, batches())
    assert scores.exits == (1, 2, 3)
    assert scores.nll_NE.shape == (5, 3)
    assert scores.nll_NE.dtype == np.float64
    assert scores.tokens_N.tolist() == [16] * 5
    assert whole.training
    with torch.no_grad():
        losses = [whole.eval()(b.input_ids_BT, b.pack, b.labels_BT).losses["next_token"] for b in batches()]
    assert scores.totals(3).nll == pytest.approx(sum(float(term.total) for term in losses), rel=1e-5)
    assert scores.totals(3).tokens == 80


@pytest.mark.parametrize("s", [1, 2])
def test_an_exit_scores_as_the_model_that_ends_there(s: int) -> None:
    whole = model().eval()
    inside = score_exits(whole, batches(), [s])
    alone = score_exits(truncate(whole, s), batches())
    assert alone.exits[-1] == s
    np.testing.assert_allclose(inside.nll_at(s), alone.nll_at(s), rtol=1e-5)
    exact = inside.excess(s, alone, s)
    assert exact.mean == pytest.approx(0, abs=1e-6)
    assert exact.low <= exact.mean <= exact.high


def test_the_excess_is_that_of_the_sums_with_an_interval_over_blocks() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(20, 60, 400)
    tokens = np.full(400, 16)
    ours = ExitScores((3, 6), np.stack([base * 1.02 + rng.normal(0, 0.5, 400), base], 1), tokens)
    parent = ExitScores((3,), base[:, None], tokens)
    found = ours.excess(3, parent, 3)
    assert found.mean == pytest.approx(ours.nll_at(3).sum() / base.sum() - 1)
    assert 0.01 < found.low < 0.02 < found.high < 0.03
    assert found.n == 400
    with pytest.raises(ValueError, match="400 and 399 blocks: both must be of the same text"):
        ours.excess(3, ExitScores((3,), base[1:, None], tokens[1:]), 3)


def test_exits_that_never_learnt_are_not_among_the_known() -> None:
    assert known_exits(model(6, exits="stages")) == (1, 3, 6)
    assert known_exits(model(3, enabled=False)) == (3,)
    assert known_exits(model(1)) == (1,)
    with pytest.raises(ConfigError, match=r"model\.mtp\.exits=stages only these exits learnt: 1, 3;"):
        score_exits(model(6, exits="stages"), batches(), [2])
    with pytest.raises(ConfigError, match="exit_at=4: the model has 3 superblocks"):
        score_exits(model(), batches(), [4])


class Table(nn.Module):
    """A family without exits."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = model(1)
        self.config = ModelConfig(family="mine", num_superblocks=1)

    def forward(self, *arguments: object, **named: object) -> object:
        output = self.inner(*arguments, **named)
        output.scores = {"next_token": output.scores["next_token"]}
        return output


def test_another_family_is_scored_at_its_end() -> None:
    other = Table()
    assert known_exits(other) == (1,)
    assert score_exits(other, batches()).totals(1) == score_exits(other.inner, batches()).totals(1)


def test_speed_of_each_depth() -> None:
    whole = model(3).train()
    found = exit_speeds(whole, batches(1, rows=4)[0], (1, 3))
    assert set(found) == {1, 3}
    assert found[1] > found[3] > 0
    assert whole.training
