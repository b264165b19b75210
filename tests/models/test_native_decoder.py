"""Decoding in C++ against decoding in PyTorch: the same logits and states, and never a stale weight."""

import copy
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from superblock.config.model import AttentionConfig, DeltaNetConfig, ModelConfig, MoEConfig
from superblock.kernels.decode import native
from superblock.models import language_model, native_decoder
from superblock.models.cache import Cache, DeltaState, KeyValueState
from superblock.models.language_model import SuperblockModel, build_model


@pytest.fixture(autouse=True)
def _compiled() -> None:
    if (reason := native.LIBRARY.why_not()) is not None:
        pytest.skip(reason)


GDN = {"num_key_heads": 1, "num_value_heads": 2, "key_dim": 16, "value_dim": 32}
GQA = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 16, "rope_fraction": 0.5}
MOE = {"num_experts": 4, "top_k": 2, "d_expert": 32, "d_shared": 16, "route_scale": 1.5}

VARIANTS = {
    "as it comes": {},
    "literal": {"wiring": "literal"},
    "softmax and shared gate": {"moe": MoEConfig(**MOE, score="softmax", shared_gate=True)},
    "no shared expert, all experts": {"moe": MoEConfig(**MOE | {"d_shared": 0, "top_k": 4})},
    "one wide expert": {"moe": MoEConfig(**MOE | {"num_experts": 1, "top_k": 1, "d_expert": 48})},
    "positive eigenvalues, two taps": {"gdn": DeltaNetConfig(**GDN, negative_eigenvalues=False, conv_width=2)},
    "one tap": {"gdn": DeltaNetConfig(**GDN, conv_width=1)},
    "more value heads": {"gdn": DeltaNetConfig(**GDN | {"num_key_heads": 2, "num_value_heads": 6, "value_dim": 144})},
    "window": {"gqa": AttentionConfig(**GQA, window=5)},
    "no gate, no positions": {"gqa": AttentionConfig(**GQA | {"rope_fraction": 0.0}, output_gate=False)},
    "all turned, one kv head": {
        "gqa": AttentionConfig(**GQA | {"rope_fraction": 1.0, "num_kv_heads": 1, "head_dim": 80})
    },
    "tied": {"tie_embeddings": True},
    "attention only": {"pattern": ["gqa"]},
    "delta rule only": {"pattern": ["gdn"]},
    "three to one": {"pattern": ["gdn", "gdn", "gdn", "gqa"]},
}


def made(seed: int = 1, **changes: object) -> SuperblockModel:
    """A small model in which every weight acts, with a selection bias."""
    sections = {"gdn": DeltaNetConfig(**GDN), "gqa": AttentionConfig(**GQA), "moe": MoEConfig(**MOE)}  # type: ignore[arg-type]
    values = {"d_model": 48, "vocab_size": 128, "num_superblocks": 2, **sections}
    model = build_model(ModelConfig(**(values | changes)), seed=seed).eval()  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            spread = tensor.shape[-1] ** -0.5 if tensor.ndim > 1 else 0.3
            tensor.copy_(spread * torch.randn(tensor.shape, generator=generator) + ("norm" in name))
        for bias in model.buffers():
            bias.copy_(0.1 * torch.randn(bias.shape, generator=generator))
    return model


def tokens(B: int, T: int) -> Tensor:
    return torch.randint(0, 128, (B, T), generator=torch.Generator().manual_seed(7))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Which calls with a cache were answered by C++."""
    inner, answers = native_decoder.decode_natively, []

    def record(*arguments: object) -> object:
        output = inner(*arguments)  # type: ignore[arg-type]
        answers.append(output is not None)
        return output

    monkeypatch.setattr(language_model, "decode_natively", record)
    yield answers


def decoded(
    model: SuperblockModel, ids_BT: Tensor, begin: int, in_pytorch: Callable[[int], bool] = lambda t: False
) -> tuple[Tensor, Cache]:
    """Logits of every token from `begin` on, one at a time; where `in_pytorch` says so, without C++."""
    cache, pieces = Cache(), []
    backend = model.config.gdn.backend
    with torch.no_grad():
        if begin:
            model(ids_BT[:, :begin], cache=cache)
        for t in range(begin, ids_BT.shape[1]):
            model.config.gdn.backend = "recurrent" if in_pytorch(t) else backend
            pieces.append(model(ids_BT[:, t : t + 1], cache=cache).logits_BTV)
    model.config.gdn.backend = backend
    return torch.cat(pieces, 1), cache


def error(ours: Tensor, exact: Tensor) -> float:
    return ((ours - exact).norm() / exact.norm()).item()


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_every_variant_gives_the_same_logits(changes: dict[str, object], calls: list[bool]) -> None:
    model, ids = made(**changes), tokens(3, 24)
    logits, _ = decoded(model, ids, 9)
    assert calls == [False] + [True] * 15
    with torch.no_grad():
        exact = model.double()(ids).logits_BTV[:, 9:]
    assert error(logits, exact) < 1e-5
    assert torch.equal(logits.argmax(-1), exact.argmax(-1))


@pytest.mark.parametrize("B", [1, 2, 4, 5, 7, 16])
def test_every_batch_size(B: int) -> None:
    model, ids = made(), tokens(B, 12)
    logits, _ = decoded(model, ids, 4)
    with torch.no_grad():
        exact = model.double()(ids).logits_BTV[:, 4:]
    assert error(logits, exact) < 1e-5


@pytest.mark.parametrize("begin", [0, 1, 30])
def test_states_are_interchangeable_in_every_order(begin: int, calls: list[bool]) -> None:
    """C++ and PyTorch in turns, from an empty cache too; the buffers grow on the way."""
    model, ids = made(), tokens(2, 90)
    logits, cache = decoded(model, ids, begin, lambda t: t % 7 in (2, 3, 6))
    _, theirs = decoded(model, ids, begin, lambda t: True)
    assert True in calls and False in calls
    with torch.no_grad():
        whole = model(ids).logits_BTV
        rest = model(tokens(2, 5), cache=cache).logits_BTV
        torch.testing.assert_close(rest, model(tokens(2, 5), cache=theirs).logits_BTV, rtol=1e-4, atol=1e-5)
    assert error(logits, whole[:, begin:]) < 1e-5
    assert cache.length == 95
    for state, other in zip(cache.states.values(), theirs.states.values(), strict=True):
        for name, value in vars(state).items():
            if isinstance(value, Tensor) and isinstance(state, DeltaState):
                torch.testing.assert_close(value, vars(other)[name], rtol=1e-4, atol=1e-5)


def test_long_contexts_and_windows_across_pieces() -> None:
    for window in (None, 700):
        model = made(gqa=AttentionConfig(**GQA, window=window), num_superblocks=1)  # type: ignore[arg-type]
        ids = tokens(1, 1560)
        logits, _ = decoded(model, ids, 1530)
        with torch.no_grad():
            exact = model.double()(ids).logits_BTV[:, 1530:]
        assert error(logits, exact) < 1e-5


def test_a_state_is_left_as_it_was() -> None:
    """A copy of the cache's containers is a point to return to."""
    model, ids = made(), tokens(1, 12)
    _, cache = decoded(model, ids, 4)
    saved = Cache({key: copy.copy(state) for key, state in cache.states.items()}, cache.length)
    with torch.no_grad():
        for other in (5, 6):
            model(torch.tensor([[other]]), cache=cache)
        again = [model(torch.tensor([[9]]), cache=saved).logits_BTV]
        whole = model(torch.cat([ids, torch.tensor([[9]])], 1)).logits_BTV
    torch.testing.assert_close(again[0], whole[:, -1:], rtol=1e-4, atol=1e-5)


def test_every_change_of_a_weight_is_seen(calls: list[bool]) -> None:
    """In place, replaced, its storage swapped, a module exchanged, moved to another dtype and back."""
    model, ids = made(), tokens(1, 6)

    def in_place() -> None:
        model.superblocks[0].layers[0].moe.gate_up.mul_(1.5)

    def parameter() -> None:
        model.superblocks[1].layers[1].mixer.out.weight = nn.Parameter(torch.randn(48, 64))

    def storage() -> None:
        model.superblocks[0].layers[1].norm.weight.data = torch.rand(48)

    def module() -> None:
        model.superblocks[1] = made(seed=5).superblocks[0]

    def buffer() -> None:
        model.superblocks[0].layers[0].moe.balance_bias = torch.randn(4)

    def dtype() -> None:
        model.double()
        model.float()

    for change in (in_place, parameter, storage, module, buffer, dtype):
        with torch.no_grad():
            change()
            cache = Cache()
            for t in range(6):
                logits = model(ids[:, t : t + 1], cache=cache).logits_BTV
            whole = model(ids).logits_BTV
        assert error(logits, whole[:, -1:]) < 1e-4, change.__name__
    assert all(calls)


def test_what_cpp_cannot_serve_goes_to_pytorch(calls: list[bool]) -> None:
    model, ids = made(), tokens(2, 1)

    def asked(model: SuperblockModel = model, ids: Tensor = ids) -> bool:
        calls.clear()
        model(ids, cache=Cache())
        [answer] = calls
        return answer

    assert not asked()  # gradients
    with torch.no_grad():
        assert asked()
        assert not asked(ids=tokens(1, 2))
        assert not asked(ids=tokens(17, 1))
        assert not asked(made(gqa=AttentionConfig(**GQA, backend="sdpa")))  # type: ignore[arg-type]
        assert not asked(made(gqa=AttentionConfig(**GQA | {"head_dim": 24})))  # type: ignore[arg-type]
        assert not asked(made().double())
        assert not asked(made(embedding_dropout=0.5).train())
        assert asked(made(embedding_dropout=0.5))
        with torch.autocast("cpu", torch.bfloat16):
            assert asked()
        with torch.autocast("cpu", torch.float16):
            assert not asked()
        seen: list[int] = []
        handle = model.superblocks[0].layers[0].moe.register_forward_hook(lambda *_: seen.append(1))
        assert not asked() and seen
        handle.remove()
        assert asked()
        model.superblocks[0].layers[0].mixer.qkvz = nn.Sequential(model.superblocks[0].layers[0].mixer.qkvz)
        assert not asked()


@pytest.mark.parametrize("begin", [0, 1, 30])
def test_under_autocast_keys_stay_in_bf16(begin: int, calls: list[bool]) -> None:
    """C++ is nearer to fp32 than PyTorch under autocast is, alone and in turns with it."""
    model, ids = made(), tokens(2, 90)
    with torch.autocast("cpu", torch.bfloat16):
        ours, cache = decoded(model, ids, begin)
        assert all(calls[bool(begin) :])
        mixed, _ = decoded(model, ids, begin, lambda t: t % 7 in (2, 3, 6))
        theirs, _ = decoded(model, ids, begin, lambda t: True)
    states = [state for state in cache.states.values() if isinstance(state, KeyValueState)]
    assert states and all(state.keys_BSGK.dtype == state.values_BSGK.dtype == torch.bfloat16 for state in states)
    with torch.no_grad():
        exact = model.double()(ids).logits_BTV[:, begin:]
    assert ours.dtype == torch.float32
    assert error(ours, exact) < min(0.05, error(theirs.double(), exact))
    assert error(mixed.double(), exact) < 1.5 * error(theirs.double(), exact)


def test_a_cache_read_under_autocast_serves_without_it(calls: list[bool]) -> None:
    model, ids, cache = made(), tokens(1, 12), Cache()
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            model(ids[:, :11], cache=cache)
        saved = copy.deepcopy(cache)
        ours = model(ids[:, 11:], cache=cache).logits_BTV
        model.config.gdn.backend = "recurrent"
        theirs = model(ids[:, 11:], cache=saved).logits_BTV
    assert calls == [False, True, False]
    assert error(ours, theirs) < 0.01


def test_a_token_beyond_the_table_is_refused() -> None:
    with torch.no_grad(), pytest.raises(IndexError):
        made()(torch.tensor([[128]]), cache=Cache())


@pytest.mark.parametrize("name", ["key_norm", "A_log", "router.weight", "down"])
def test_weights_that_are_not_numbers_give_logits_that_are_not(name: str, calls: list[bool]) -> None:
    """Sampling refuses them; numbers would hide that the model has diverged."""
    model, cache = made(), Cache()
    with torch.no_grad():
        for owner, tensor in model.named_parameters():
            if owner.endswith(name):
                tensor.fill_(torch.nan)
        for t in range(3):
            logits = model(tokens(1, 3)[:, t : t + 1], cache=cache).logits_BTV
    assert all(calls)
    assert logits.isnan().all()


def test_a_bias_that_is_not_a_number_chooses_its_expert() -> None:
    model, ids = made(), tokens(2, 1)
    with torch.no_grad():
        for bias in model.buffers():
            bias[2] = torch.nan
        ours, theirs = model(ids, cache=Cache()), model(ids)
    assert torch.equal(ours.expert_counts_LE, theirs.expert_counts_LE)
    assert error(ours.logits_BTV, theirs.logits_BTV) < 1e-4


def test_the_experts_counts_are_reported() -> None:
    model, ids = made(), tokens(5, 1)
    with torch.no_grad():
        ours, theirs = model(ids, cache=Cache()).expert_counts_LE, model(ids).expert_counts_LE
    assert torch.equal(ours, theirs)


def test_a_model_is_not_kept_alive() -> None:
    model = made()
    with torch.no_grad():
        model(tokens(1, 1), cache=Cache())
    before = len(native_decoder._TRUNKS)
    del model
    assert len(native_decoder._TRUNKS) == before - 1
