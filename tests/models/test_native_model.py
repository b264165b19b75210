"""A whole model trained for some steps with its C++ kernels and without: the same losses and gradient norms."""

import pytest
import torch

from superblock.config.model import ModelConfig
from superblock.kernels.native import NativeLibrary
from superblock.kernels.packing import PackInfo
from superblock.models.batch import Supervision
from superblock.models.language_model import build_model


def train(config: ModelConfig, *, half: bool, steps: int = 3) -> list[list[float]]:
    """All losses and the norm of the gradient, of each step; two documents per row, heads included."""
    model = build_model(config, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    ids = torch.randint(config.vocab_size, (2, 48), generator=torch.Generator().manual_seed(1))
    pack = PackInfo.from_doc_ids(torch.tensor([0] * 17 + [1] * 31).expand(2, -1))
    supervision = Supervision(begin=8, end=40, mtp_weight=0.3, exits=((0, 0.1),))
    history = []
    for _ in range(steps):
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            losses = model(ids, pack, ids.roll(-1, 1), supervision=supervision).losses
        terms = [term.weight * term.total / max(1, term.count) for term in losses.values()]
        torch.stack(terms).sum().backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        optimizer.step()
        optimizer.zero_grad()
        history.append([*(float(term.detach()) for term in terms), float(norm)])
    return history


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("last", ["mlp", "block"])
def test_kernels_do_not_change_training(half: bool, last: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(num_superblocks=2, d_model=64, vocab_size=192, max_sequence_length=64, final_z_loss=1e-4)
    config.mtp.last = last
    native = train(config, half=half)
    monkeypatch.setattr(NativeLibrary, "why_not", lambda self: "turned off")
    plain = train(config, half=half)
    torch.testing.assert_close(torch.tensor(native), torch.tensor(plain), rtol=2e-2 if half else 2e-4, atol=1e-6)
