"""The whole model: causality, packing, decoding, precision, gradients, and agreement of its counts and scores."""

from collections.abc import Callable
from itertools import product

import pytest
import torch

from superblock.config.fields import ConfigError
from superblock.config.model import AttentionConfig, DeltaNetConfig, ModelConfig, MoEConfig, MTPConfig
from superblock.kernels.packing import PackInfo
from superblock.models.batch import IGNORE, Batch, ModelOutput, Supervision
from superblock.models.cache import Cache
from superblock.models.language_model import SuperblockModel, build_model

Small = Callable[..., ModelConfig]
Packed = Callable[..., Batch]

PATTERNS = [["gdn", "gqa"], ["gqa"], ["gdn"], ["gdn", "gdn", "gdn", "gqa"]]
EVERYTHING = Supervision(begin=0, end=24, mtp_weight=0.3, exits=((0, 0.1),))


def awake(config: ModelConfig, seed: int = 1) -> SuperblockModel:
    """A model whose zero-initialised weights are not zero, so that every part acts."""
    model = build_model(config, seed=seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("w2.weight"):
                parameter.normal_(0, 0.1, generator=torch.Generator().manual_seed(seed))
    return model


def losses(model: SuperblockModel, batch: Batch, supervision: Supervision | None = None) -> ModelOutput:
    return model(batch.input_ids_BT, batch.pack, batch.labels_BT, supervision=supervision)


def objective(output: ModelOutput) -> torch.Tensor:
    return torch.stack([t.weight * t.total / max(1, t.count) for t in output.losses.values()]).sum()


@pytest.mark.parametrize("pattern", PATTERNS, ids="-".join)
@pytest.mark.parametrize("wiring", ["prenorm", "literal"])
def test_tokens_do_not_see_the_future(small: Small, pattern: list[str], wiring: str) -> None:
    model = awake(small(pattern=pattern, wiring=wiring)).eval()
    ids = torch.randint(0, 64, (2, 21), generator=torch.Generator().manual_seed(3))
    changed = ids.clone()
    changed[:, 13:] = (changed[:, 13:] + 7) % 64
    before, after = model(ids).logits_BTV, model(changed).logits_BTV
    assert torch.equal(before[:, :13], after[:, :13])
    assert not torch.equal(before[:, 13:], after[:, 13:])


@pytest.mark.parametrize("pattern", PATTERNS, ids="-".join)
@pytest.mark.parametrize("last", ["mlp", "block"])
def test_packed_documents_score_as_if_they_were_alone(
    small: Small, packed: Packed, pattern: list[str], last: str
) -> None:
    config = small(pattern=pattern, mtp=MTPConfig(depth=2, last=last, d_hidden=8, d_block=16))
    model = awake(config)
    rows = [[1, 2, 10, 11], [8, 13, 2, 1]]
    batch = packed(*rows)
    together = model(batch.input_ids_BT, batch.pack, batch.labels_BT, score=True).scores
    assert set(together) == {"next_token", "exit/1", "mtp/1", "mtp/2"}
    for b, row in enumerate(rows):
        for begin, length in zip(torch.tensor([0, *row]).cumsum(0).tolist(), row, strict=False):
            columns = slice(begin, begin + length)
            ids, labels = batch.input_ids_BT[b : b + 1, columns], batch.labels_BT[b : b + 1, columns]
            for name, score in model(ids, None, labels, score=True).scores.items():
                torch.testing.assert_close(together[name].nll_BT[b, columns], score.nll_BT[0], rtol=1e-5, atol=1e-5)
                assert torch.equal(together[name].rank_BT[b, columns], score.rank_BT[0])


def test_losses_are_the_sums_of_the_scores(small: Small, packed: Packed) -> None:
    model = awake(small(mtp=MTPConfig(depth=2, last="block", d_hidden=8, d_block=16)))
    batch = packed([5, 19], [24])
    labels = batch.labels_BT.clone()
    labels[0, 3] = labels[1, 20:] = IGNORE
    batch = Batch(batch.input_ids_BT, labels, batch.pack)
    terms = losses(model, batch, EVERYTHING).losses
    scores = model(batch.input_ids_BT, batch.pack, batch.labels_BT, score=True).scores
    assert set(terms) == {"router", *scores, "exit/1/mtp/1", "exit/1/mtp/2"}
    for name, score in scores.items():
        torch.testing.assert_close(terms[name].total, score.nll_BT.sum(), rtol=1e-5, atol=1e-4)
        assert terms[name].count == int((score.rank_BT >= 0).sum())


@pytest.mark.parametrize("last", ["mlp", "block"])
def test_heads_learn_only_their_columns(small: Small, packed: Packed, last: str) -> None:
    model = awake(small(num_superblocks=1, mtp=MTPConfig(depth=2, last=last, d_hidden=8, d_block=16)))
    batch = packed([9, 15], [24])
    begin, end = 4, 11
    part = losses(model, batch, Supervision(begin=begin, end=end, mtp_weight=1.0)).losses
    whole = model(batch.input_ids_BT, batch.pack, batch.labels_BT, score=True).scores
    for name in ("mtp/1", "mtp/2"):
        rank = whole[name].rank_BT[:, begin:end]
        assert part[name].count == int((rank >= 0).sum()) == {"mtp/1": 13, "mtp/2": 12}[name]
        if last == "mlp":  # a block's attention begins inside the slice, so its values differ by design
            torch.testing.assert_close(part[name].total, whole[name].nll_BT[:, begin:end].sum(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("enabled", "mtp_weight", "exits", "exit_depths"),
    product([True, False], [0.0, 0.3], [(), ((0, 0.1),), ((1, 0.0),), ((0, 0.1), (1, 0.2))], [True, False]),
)
def test_targets_are_counted_without_a_forward_pass(
    small: Small, packed: Packed, enabled: bool, mtp_weight: float, exits: tuple, exit_depths: bool
) -> None:
    model = build_model(small(num_superblocks=3, mtp=MTPConfig(enabled=enabled, depth=3, d_hidden=8)), seed=0)
    batch = packed([1, 3, 8], [12])
    supervision = Supervision(begin=2, end=9, mtp_weight=mtp_weight, exits=exits, exit_depths=exit_depths)
    for asked in (supervision, None):
        counts = {name: term.count for name, term in losses(model, batch, asked).losses.items()}
        assert counts == model.count_targets(batch, asked)


def test_weights_of_the_terms(small: Small, packed: Packed) -> None:
    terms = losses(build_model(small(), seed=0), packed([24]), EVERYTHING).losses
    assert {name: term.weight for name, term in terms.items()} == pytest.approx({
        "router": 1.0, "next_token": 1.0, "mtp/1": 0.15, "mtp/2": 0.15,
        "exit/1": 0.1, "exit/1/mtp/1": 0.05, "exit/1/mtp/2": 0.05,
    })  # fmt: skip


@pytest.mark.parametrize("last", ["mlp", "block"])
@pytest.mark.parametrize("tied", [False, True])
def test_gradient_reaches_every_parameter(small: Small, packed: Packed, last: str, tied: bool) -> None:
    moe = MoEConfig(num_experts=4, top_k=2, d_expert=16, d_shared=16, shared_gate=True)
    mtp = MTPConfig(depth=2, last=last, d_hidden=8, d_block=16)
    model = awake(small(moe=moe, mtp=mtp, tie_embeddings=tied))
    objective(losses(model, packed([11, 13], [24]), EVERYTHING)).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missing == []


def test_detached_heads_leave_the_trunk_alone(small: Small, packed: Packed) -> None:
    batch = packed([24])
    gradients = []
    for supervision in (None, EVERYTHING):
        model = awake(small(mtp=MTPConfig(depth=2, d_hidden=8, detach_trunk=True)))
        objective(losses(model, batch, supervision)).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if not name.startswith("heads.")})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    assert all(p.grad is not None for p in model.heads.parameters())


@pytest.mark.parametrize("pattern", PATTERNS, ids="-".join)
@pytest.mark.parametrize("window", [None, 5])
def test_cached_decoding_equals_the_full_forward(small: Small, pattern: list[str], window: int | None) -> None:
    gqa = AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=8, window=window)
    model = awake(small(pattern=pattern, gqa=gqa)).eval()
    ids = torch.randint(0, 64, (2, 90), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        whole = model(ids).logits_BTV
        cache, pieces = Cache(), []
        for begin, end in [(0, 40), *((t, t + 1) for t in range(40, 70)), (70, 77), (77, 90)]:
            pieces.append(model(ids[:, begin:end], cache=cache).logits_BTV)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-5, atol=1e-5)
    assert cache.length == 90
    assert cache.num_bytes > 0


def test_last_only_gives_the_last_logits(small: Small) -> None:
    model = build_model(small(), seed=0).eval()
    ids = torch.randint(0, 64, (2, 9))
    torch.testing.assert_close(model(ids, last_only=True).logits_BTV, model(ids).logits_BTV[:, -1:])


def test_bf16_autocast_stays_close_to_fp32(small: Small, packed: Packed) -> None:
    model, batch = awake(small()), packed([11, 13], [24])
    exact = losses(model, batch, EVERYTHING)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = losses(model, batch, EVERYTHING)
    for name, term in rounded.losses.items():
        assert term.total.dtype == torch.float32
        if name != "router":
            assert abs(term.total - exact.losses[name].total).item() / max(1, term.count) < 1e-2
    objective(rounded).backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)


def test_fp32_agrees_with_float64_references(small: Small, packed: Packed) -> None:
    """The slow float64 forms of every kernel against the fast fp32 ones, through the whole model."""
    fast = awake(small())
    slow = awake(
        small(
            gdn=DeltaNetConfig(num_key_heads=2, num_value_heads=4, key_dim=8, value_dim=16, backend="recurrent"),
            gqa=AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=8, rope_fraction=0.5, backend="eager"),
            moe=MoEConfig(num_experts=4, top_k=2, d_expert=16, d_shared=16, route_scale=1.5, backend="loop"),
        )
    ).double()
    batch = packed([11, 13], [24])
    ours, exact = losses(fast, batch, EVERYTHING), losses(slow, batch, EVERYTHING)
    objective(ours).backward()
    objective(exact).backward()
    for name, term in exact.losses.items():
        torch.testing.assert_close(ours.losses[name].total.double(), term.total.double(), rtol=1e-5, atol=1e-6)
    reference = dict(slow.named_parameters())
    for name, parameter in fast.named_parameters():
        expected = reference[name].grad
        error = (parameter.grad - expected).norm() / expected.norm()
        assert error < 1e-4, f"{name}: {error:.1e}"


def test_dropout_acts_in_training_only(small: Small) -> None:
    model, ids = build_model(small(embedding_dropout=0.5), seed=0), torch.randint(0, 64, (1, 8))
    assert not torch.equal(model.train()(ids).logits_BTV, model(ids).logits_BTV)
    assert torch.equal(model.eval()(ids).logits_BTV, model(ids).logits_BTV)


def test_forward_changes_no_buffer(small: Small, packed: Packed) -> None:
    model = build_model(small(), seed=0).train()
    objective(losses(model, packed([24]))).backward()
    assert [name.rpartition(".")[2] for name, _ in model.named_buffers()] == ["balance_bias"] * model.num_moe_layers
    assert all(torch.equal(buffer, torch.zeros(4)) for buffer in model.buffers())


def test_experts_are_balanced_layer_by_layer(small: Small) -> None:
    model = build_model(small(), seed=0)
    counts_LE = torch.eye(4) * 8
    model.balance_experts(counts_LE, 0.1)
    for bias, counts in zip(model.buffers(), counts_LE, strict=True):
        assert bias.argmin() == counts.argmax()


def test_a_size_that_was_not_expected_is_refused(small: Small) -> None:
    size = sum(p.numel() for p in build_model(small(), seed=0, device="meta").parameters())
    build_model(small(expect_params=size * 1.004), seed=0, device="meta")
    with pytest.raises(ConfigError, match=r"model\.expect_params=.*has [0-9,]+ parameters"):
        build_model(small(expect_params=size * 1.01), seed=0, device="meta")


def test_one_token_rows_and_long_shifts(small: Small) -> None:
    """A row shorter than the heads reach has no targets for them, and no NaN."""
    model = build_model(small(), seed=0)
    ids = torch.tensor([[3], [4]])
    output = model(ids, PackInfo.dense(2, 1), ids, supervision=Supervision(begin=0, end=1, mtp_weight=0.3))
    assert output.losses["mtp/1"].count == 0
    assert torch.isfinite(objective(output))
