"""The model that ends at an exit computes what the exit of the whole model does, by every path."""

from collections.abc import Callable
from dataclasses import asdict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from superblock.config.fields import ConfigError
from superblock.config.model import ModelConfig, MTPConfig
from superblock.kernels.packing import PackInfo
from superblock.models.batch import Batch, Supervision
from superblock.models.cache import Cache
from superblock.models.language_model import SuperblockModel, build_model
from superblock.models.native_decoder import decode_natively
from superblock.models.truncation import refuse_exit, truncate

Small = Callable[..., ModelConfig]
Packed = Callable[..., Batch]
S = 4


def trained(config: ModelConfig, steps: int = 4) -> SuperblockModel:
    """A few steps on noise, so that every norm differs from every other."""
    model = build_model(config, seed=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.randint(config.vocab_size, (2, 24), generator=torch.Generator().manual_seed(1))
    exits = tuple((s, 0.1) for s in range(config.num_superblocks - 1))
    asked = Supervision(begin=0, end=24, mtp_weight=0.3, exits=exits)
    for _ in range(steps):
        losses = model(ids, None, ids.roll(-1, 1), supervision=asked).losses
        torch.stack([t.weight * t.total / t.count for t in losses.values()]).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def exit_logits(model: SuperblockModel, ids_BT: Tensor, s: int) -> Tensor:
    """The whole model's: run to its end, superblock `s` (from 1) tapped, through that head's norm."""
    tapped: list[Tensor] = []
    hook = model.superblocks[s - 1].register_forward_hook(lambda _, __, result: tapped.append(result[0]))
    model(ids_BT)
    hook.remove()
    norm = model.norm if s == model.config.num_superblocks else model.heads[s - 1].norm
    return F.linear(norm(tapped[0]), model.output_weight).float()


@pytest.mark.parametrize("last", ["mlp", "block"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("s", [1, 3, S])
@torch.no_grad()
def test_logits_are_those_of_the_exit(small: Small, last: str, tied: bool, half: bool, s: int) -> None:
    with torch.enable_grad():
        mtp = MTPConfig(depth=2, last=last, d_hidden=8, d_block=16)
        model = trained(small(num_superblocks=S, mtp=mtp, tie_embeddings=tied))
    part = truncate(model, s)
    ids_BT = torch.randint(64, (2, 19), generator=torch.Generator().manual_seed(5))
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        torch.testing.assert_close(part(ids_BT).logits_BTV, exit_logits(model, ids_BT, s), rtol=1e-6, atol=1e-6)
        whole = model(ids_BT).logits_BTV
        assert torch.equal(part(ids_BT).logits_BTV, whole) == (s == S)


@pytest.mark.parametrize("half", [False, True])
@torch.no_grad()
def test_scores_are_those_of_the_exits(small: Small, packed: Packed, half: bool) -> None:
    with torch.enable_grad():
        model = trained(small(num_superblocks=S))
    batch = packed([5, 19], [24])

    def scores(of: nn.Module) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            found = of(batch.input_ids_BT, batch.pack, batch.labels_BT, score=True).scores
        return {name: score.nll_BT for name, score in found.items()}

    whole, part = scores(model), scores(truncate(model, 3))
    assert set(part) == {"next_token", "exit/1", "exit/2", "mtp/1", "mtp/2"}
    for name in ("exit/1", "exit/2"):
        assert torch.equal(part[name], whole[name])
    torch.testing.assert_close(part["next_token"], whole["exit/3"], rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_decodes_token_by_token_as_at_once(small: Small) -> None:
    with torch.enable_grad():
        model = trained(small(num_superblocks=S))
    part, cache = truncate(model, 2), Cache()
    ids_BT = torch.randint(64, (2, 17), generator=torch.Generator().manual_seed(5))
    steps = [part(ids_BT[:, t : t + 1], cache=cache).logits_BTV for t in range(17)]
    assert {s for s, _ in cache.states} == {0, 1}
    torch.testing.assert_close(torch.cat(steps, 1), part(ids_BT).logits_BTV, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_cpp_serves_its_decoding(small: Small) -> None:
    model = build_model(ModelConfig(num_superblocks=3, d_model=64, vocab_size=192, max_sequence_length=64), seed=1)
    if decode_natively(model, torch.zeros(1, 1, dtype=torch.int64), Cache()) is None:
        pytest.skip("no C++ kernels here")
    part = truncate(model, 1)
    ids_BT = torch.randint(192, (2, 9), generator=torch.Generator().manual_seed(5))
    cache, steps = Cache(), []
    for t in range(9):
        output = decode_natively(part, ids_BT[:, t : t + 1], cache)
        assert output is not None
        steps.append(output.logits_BTV)
    torch.testing.assert_close(torch.cat(steps, 1), exit_logits(model, ids_BT, 1), rtol=1e-4, atol=1e-4)


def test_modules_are_shared_and_nothing_is_copied(small: Small) -> None:
    model = build_model(small(num_superblocks=3), seed=0)
    part = truncate(model, 2)
    assert part.embedding is model.embedding
    assert part.unembedding is model.unembedding
    assert list(part.superblocks) == list(model.superblocks)[:2]
    assert part.norm is part.heads[1].norm is model.heads[1].norm
    assert len(model.superblocks) == len(model.heads) == 3
    owned = {id(p) for p in model.parameters()}
    assert all(id(p) in owned for p in part.parameters())
    assert part.num_moe_layers == 4
    assert part.training
    assert not truncate(model.eval(), 1).training


def test_the_configuration_is_that_of_the_part(small: Small) -> None:
    mtp = MTPConfig(depth=2, last="block", d_hidden=8, d_block=16)
    model = build_model(small(num_superblocks=3, mtp=mtp), seed=0)
    model.config.expect_params = 1e6
    before = asdict(model.config)
    part = truncate(model, 2)
    assert (part.config.num_superblocks, part.config.expect_params, part.config.mtp.last) == (2, None, "mlp")
    fresh = build_model(part.config, seed=0).state_dict()
    assert {n: t.shape for n, t in part.state_dict().items()} == {n: t.shape for n, t in fresh.items()}
    assert asdict(truncate(model, 3).config) == asdict(model.config) == before


def test_a_truncated_model_learns(small: Small, packed: Packed) -> None:
    part = truncate(build_model(small(num_superblocks=3), seed=0), 2)
    batch = packed([24])
    asked = Supervision(begin=0, end=24, mtp_weight=0.3, exits=((0, 0.1),))
    losses = part(batch.input_ids_BT, PackInfo.dense(1, 24), batch.labels_BT, supervision=asked).losses
    counts = {name: int(term.count) for name, term in losses.items()}
    assert counts == part.count_targets(Batch(batch.input_ids_BT, batch.labels_BT, PackInfo.dense(1, 24)), asked)
    torch.stack([t.weight * t.total for t in losses.values()]).sum().backward()
    assert part.norm.weight.grad is not None


@pytest.mark.parametrize(
    ("mtp", "at", "words"),
    [
        ({}, 0, "exit_at=0: the model has 6 superblocks; must be 1 to 6"),
        ({}, 7, "exit_at=7: the model has 6 superblocks; must be 1 to 6"),
        ({"enabled": False}, 3, r"exit_at=3: with model\.mtp\.enabled=false no exit learnt; exit_at=6 is the whole"),
        ({"exit_weight": 0.0}, 3, r"with model\.mtp\.exit_weight=0 no exit learnt"),
        ({"start": 1.0}, 3, r"with model\.mtp\.start=1 no exit ever began"),
        ({"exit_start": 1.0}, 3, r"with model\.mtp\.exit_start=1 no exit ever began"),
        ({"exits": "stages"}, 2, r"with model\.mtp\.exits=stages only these exits learnt: 1, 3;"),
    ],
)
def test_an_exit_that_is_not_there_or_never_learnt_is_refused(mtp: dict, at: int, words: str) -> None:
    config = ModelConfig(num_superblocks=6, mtp=MTPConfig(**mtp))
    with pytest.raises(ConfigError, match=words):
        refuse_exit(config, at)
    refuse_exit(config, 6)  # the model itself needs no exit


def test_exits_that_stages_end_at_may_be_used() -> None:
    for at in (1, 3, 6, 12):
        refuse_exit(ModelConfig(num_superblocks=12, mtp=MTPConfig(exits="stages", start=0.9, exit_start=0.0)), at)
    with pytest.raises(ConfigError, match="the model has 1 superblock; must be 1$"):
        refuse_exit(ModelConfig(), 2)


def test_other_families_have_no_exits() -> None:
    other = nn.Linear(2, 2)
    other.config = ModelConfig(family="gru")  # type: ignore[assignment]
    with pytest.raises(ConfigError, match="a model of family gru has no exits; leave exit_at out"):
        truncate(other, 1)
