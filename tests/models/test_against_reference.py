"""The torch model against the NumPy model of tests/reference: logits, exits and multi-token predictions to 1e-6."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from superblock.config.fields import validate
from superblock.config.model import AttentionConfig, DeltaNetConfig, ModelConfig, MoEConfig, MTPConfig
from superblock.kernels.packing import PackInfo
from superblock.models.batch import IGNORE, Supervision
from superblock.models.cache import Cache
from superblock.models.language_model import SuperblockModel, build_model

BASE = ModelConfig(
    d_model=48,
    vocab_size=128,
    num_superblocks=2,
    max_sequence_length=64,
    cross_entropy_chunk=16,
    gdn=DeltaNetConfig(num_key_heads=2, num_value_heads=2, key_dim=12, value_dim=16, chunk_size=8),
    gqa=AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=16),
    moe=MoEConfig(num_experts=6, top_k=2, d_expert=24, d_shared=16, route_scale=1.5),
    mtp=MTPConfig(d_hidden=24, d_block=32),
)


def variant(**changes: Any) -> ModelConfig:
    """`BASE` with changed fields; a dictionary changes fields of a section."""
    sections = {k: replace(getattr(BASE, k), **v) for k, v in changes.items() if isinstance(v, dict)}
    config = replace(BASE, **(changes | sections))
    validate(config)
    return config


CONFIGS = {
    "base": BASE,
    "literal wiring": variant(wiring="literal"),
    "tied": variant(tie_embeddings=True, num_superblocks=1),
    "grouped values": variant(gdn={"num_value_heads": 6}),
    "positive eigenvalues, two taps": variant(gdn={"negative_eigenvalues": False, "conv_width": 2}),
    "attention only, window, no gate": variant(pattern=["gqa"], gqa={"window": 7, "output_gate": False}),
    "three to one, full rotation": variant(pattern=["gdn", "gdn", "gdn", "gqa"], gqa={"rope_fraction": 1.0}),
    "no positions, one kv head": variant(gqa={"rope_fraction": 0.0, "num_kv_heads": 1}),
    "softmax router, shared gate": variant(moe={"score": "softmax", "shared_gate": True, "top_k": 3}),
    "no shared expert": variant(moe={"d_shared": 0}),
    "block head": variant(mtp={"last": "block"}),
    "block head, two depths": variant(mtp={"last": "block", "depth": 2}, gqa={"window": 9}),
    "three depths, three superblocks": variant(mtp={"depth": 3}, num_superblocks=3),
    "no heads": variant(mtp={"enabled": False}),
}
WRITERS = ("out", "down", "w2")
LENGTHS = [[5, 1, 17, 2, 15], [40]]
"""Documents of each packed row of 40 tokens: one shorter than the convolution, one longer than two chunks."""


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    path = Path(__file__).parents[1] / "reference" / "model.py"
    spec = importlib.util.spec_from_file_location("superblock_reference", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def make(config: ModelConfig, dtype: torch.dtype) -> SuperblockModel:
    """A model whose every weight matters: initial zeros and ones would hide a missing one.

    In fp32 what is written into the residual stream is small, as after initialisation: DeltaNet's norm divides by outputs
    that may be near 0, which costs more digits the more such layers follow each other.
    """
    model = build_model(config, seed=3).to(dtype).eval()
    write = 1.0 if dtype == torch.float64 else 0.05
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in model.state_dict().items():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            if name.endswith(("dt_bias", "A_log")):
                p.add_(0.1 * noise)
            elif p.ndim == 1:
                p.add_(0.2 * noise)
            else:
                scale = write if name.removesuffix(".weight").endswith(WRITERS) else 1.0
                p.copy_(scale * noise / p.shape[-1] ** 0.5)
    return model


def packed_batch() -> tuple[Tensor, Tensor, PackInfo]:
    ids_BT = torch.from_numpy(np.random.default_rng(0).integers(0, BASE.vocab_size, (2, 41)))
    doc_ids_BT = torch.stack([torch.arange(len(n)).repeat_interleave(torch.tensor(n)) for n in LENGTHS])
    return ids_BT[:, :-1], ids_BT[:, 1:], PackInfo.from_doc_ids(doc_ids_BT)


def documents() -> list[tuple[int, slice]]:
    """Row and columns of every document of `packed_batch`."""
    ends = [np.cumsum(lengths) for lengths in LENGTHS]
    return [(b, slice(end - n, end)) for b in range(2) for n, end in zip(LENGTHS[b], ends[b], strict=True)]


def predictions(reference: ModuleType, model: SuperblockModel, ids_BT: Tensor) -> list[Any]:
    weights = {name: p.double().numpy() for name, p in model.state_dict().items()}
    return [reference.forward(model.config, weights, ids_BT[b, where].numpy()) for b, where in documents()]


def difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Root mean square of the difference over that of the value."""
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits(reference: ModuleType, name: str) -> None:
    ids_BT, _, pack = packed_batch()
    for dtype, tolerance in ((torch.float64, 1e-7), (torch.float32, 1e-6)):  # the angles of rotary positions are fp32
        model = make(CONFIGS[name], dtype)
        expected = [p.logits_TV for p in predictions(reference, model, ids_BT)]
        with torch.no_grad():
            logits_BTV = model(ids_BT, pack).logits_BTV.double().numpy()
        ours = [logits_BTV[b, where] for b, where in documents()]
        assert difference(np.concatenate(ours), np.concatenate(expected)) < tolerance, dtype


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_of_every_head(reference: ModuleType, name: str) -> None:
    """The negative log-likelihood of each target from each head, and that nothing else is scored."""
    ids_BT, labels_BT, pack = packed_batch()
    for dtype in (torch.float64, torch.float32):
        model = make(CONFIGS[name], dtype)
        expected: dict[str, np.ndarray] = {}
        for (b, where), p in zip(documents(), predictions(reference, model, ids_BT), strict=True):
            heads = {"next_token": p.logits_TV} | {f"exit/{s + 1}": logits for s, logits in enumerate(p.exits)}
            heads |= {f"mtp/{k + 1}": logits for k, logits in enumerate(p.ahead[-1])}
            for head, logits in heads.items():
                nll = expected.setdefault(head, np.zeros(ids_BT.shape))
                n = len(logits)
                targets = labels_BT[b, where].numpy()[where.stop - where.start - n :]
                nll[b, where.start : where.start + n] = -reference.log_softmax(logits)[np.arange(n), targets]
        scores = model(ids_BT, pack, labels_BT, score=True).scores
        assert scores.keys() == expected.keys()
        for head, nll in expected.items():
            assert difference(scores[head].nll_BT.numpy(), nll) < 1e-6, (head, dtype)
            assert ((scores[head].rank_BT >= 0).numpy() == (nll != 0)).all(), head


@pytest.mark.parametrize("name", ["base", "block head, two depths", "three depths, three superblocks"])
def test_losses_of_an_early_exit_and_its_depths(reference: ModuleType, name: str) -> None:
    """Terms that only training has: summed over all columns they are the reference's sums."""
    ids_BT, labels_BT, pack = packed_batch()
    model = make(CONFIGS[name], torch.float64)
    expected: dict[str, list[float]] = {}
    for (b, where), p in zip(documents(), predictions(reference, model, ids_BT), strict=True):
        heads = {"exit/1": p.exits[0]} | {f"exit/1/mtp/{k + 1}": logits for k, logits in enumerate(p.ahead[0])}
        for head, logits in heads.items():
            targets = labels_BT[b, where].numpy()[where.stop - where.start - len(logits) :]
            expected.setdefault(head, []).extend(-reference.log_softmax(logits)[np.arange(len(logits)), targets])
    everything = Supervision(begin=0, end=40, mtp_weight=1.0, exits=((0, 1.0),))
    losses = model(ids_BT, pack, labels_BT, supervision=everything).losses
    assert expected.keys() == {head for head in losses if head.startswith("exit")}
    for head, nll in expected.items():
        assert losses[head].count == len(nll)
        assert float(losses[head].total.detach()) == pytest.approx(sum(nll), rel=1e-6)


@pytest.mark.parametrize("name", ["base", "three to one, full rotation", "softmax router, shared gate"])
def test_decoding(reference: ModuleType, name: str) -> None:
    """Token by token through the cache, as a text is generated."""
    ids_BT, _, _ = packed_batch()
    model = make(CONFIGS[name], torch.float32)
    weights = {n: p.double().numpy() for n, p in model.state_dict().items()}
    expected = reference.forward(model.config, weights, ids_BT[1].numpy()).logits_TV
    cache = Cache()
    with torch.no_grad():
        pieces = [model(piece, cache=cache).logits_BTV[0] for piece in ids_BT[1:].split([9, *[1] * 31], dim=1)]
    assert difference(torch.cat(pieces).double().numpy(), expected) < 1e-6


def test_the_batch_has_targets_in_every_document() -> None:
    _, labels_BT, pack = packed_batch()
    assert not (labels_BT == IGNORE).any()
    assert len(pack.cu_seqlens) - 1 == len(documents()) == 6
