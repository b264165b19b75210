"""A decoding step in C++: every level of the processor, any number of threads, strided states, and refusals in words.

The variants of the architecture are in tests/models/test_native_decoder.py.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from superblock.kernels.decode import (
    Attention,
    Decoder,
    Delta,
    DeltaState,
    Experts,
    KeyValues,
    Sizes,
    native,
    reference,
)
from superblock.kernels.native import processor

LEVELS = processor.levels()
SIZES = Sizes(48, 64, 2, 4, 32, 80, 4, 4, 2, 80, 20, 0, True, 4, 2, 32, 16, True, 1e-6, 1.0, 1.0)
THETA = 1000.0


@pytest.fixture(autouse=True)
def _compiled() -> None:
    if (reason := native.LIBRARY.why_not()) is not None:
        pytest.skip(reason)


class Case:
    """Random weights for a layer of each kind, and states in the middle of a text."""

    def __init__(
        self,
        sizes: Sizes = SIZES,
        *,
        B: int = 3,
        length: int = 20,
        scale: float = 1.0,
        kept: torch.dtype = torch.float32,
    ) -> None:
        self.sizes, self.length, self.scale = sizes, length, scale
        self.generator = torch.Generator().manual_seed(length)
        self.layers = [(self._weights(kind), self._weights(Experts)) for kind in (Delta, Attention)]
        self.norm_D, self.table_ND = self.draw(sizes.width), self.draw(sizes.vocabulary, sizes.width)
        self.x_BD = self.draw(B, sizes.width)
        self.state = DeltaState(
            self.draw(B, sizes.taps - 1, sizes.channels),
            self.draw(B, sizes.value_heads, sizes.key_width, sizes.value_width),
        )
        self.keys, self.values = self.draw(2, B, length + 3, sizes.kv_heads, sizes.head_width).to(kept).unbind()

    def draw(self, *shape: int) -> Tensor:
        spread = self.scale * shape[-1] ** -0.5 if len(shape) > 1 else 1.0
        return spread * torch.randn(shape, generator=self.generator)

    def _weights(self, kind: Any) -> Any:
        return kind(*(self.draw(*shape) for shape in kind(*[torch.empty(0)] * len(kind._fields)).shapes(self.sizes)))

    def decoder(self) -> Decoder:
        return Decoder(self.sizes, self.layers, self.norm_D, self.table_ND, THETA)

    def run(self, decoder: Decoder | None = None, **changes: Any) -> list[Tensor]:
        """Logits, new states, counts, keys and values."""
        state = changes.get("state", self.state)
        keys, values = changes.get("keys", self.keys.clone()), self.values.clone()
        states = [state, KeyValues(keys, values, self.length)]
        logits, [after], counts = (decoder or self.decoder()).step(
            changes.get("x", self.x_BD.clone()), states, self.length
        )
        return [logits, *after, counts, keys[:, : self.length + 1], values[:, : self.length + 1]]

    def exact(self) -> list[Tensor]:
        """The same in float64."""
        double = lambda part: type(part)(*(t.double() for t in part))  # noqa: E731
        keys, values = self.keys.double(), self.values.double()
        layers = [(double(mixer), double(experts)) for mixer, experts in self.layers]
        states = [double(self.state), KeyValues(keys, values, self.length)]
        arguments = (self.norm_D.double(), self.table_ND.double(), THETA, self.x_BD.double(), states, self.length)
        logits, [after], counts = reference.step(self.sizes, layers, *arguments)
        return [logits, *after, counts, keys[:, : self.length + 1], values[:, : self.length + 1]]


def agree(ours: list[Tensor], exact: list[Tensor], bound: float = 1e-5) -> None:
    for a, b in zip(ours, exact, strict=True):
        assert ((a - b).norm() / b.norm()).item() < bound


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("B", "length"), [(1, 0), (3, 20), (5, 300), (2, 255), (1, 256)])
def test_every_level(level: str, B: int, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    library = native.LIBRARY.at(level)
    assert library.why_not() is None
    monkeypatch.setattr(native, "LIBRARY", library)
    case = Case(B=B, length=length)
    agree(case.run(), case.exact())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(("B", "length"), [(1, 0), (3, 20), (2, 255), (1, 600)])
def test_keys_and_values_in_bf16(level: str, B: int, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the past are read exactly; that of the token itself is rounded to nearest."""
    library = native.LIBRARY.at(level)
    assert library.why_not() is None
    monkeypatch.setattr(native, "LIBRARY", library)
    case = Case(B=B, length=length, kept=torch.bfloat16)
    *ours, keys, values = case.run()
    *exact, exact_keys, exact_values = case.exact()
    assert keys.dtype == values.dtype == torch.bfloat16
    assert torch.equal(keys[:, :-1].double(), exact_keys[:, :-1])
    assert torch.equal(values[:, :-1].double(), exact_values[:, :-1])
    for new, true in ((keys, exact_keys), (values, exact_values)):
        torch.testing.assert_close(new[:, -1].double(), true[:, -1], rtol=2**-8, atol=1e-5)
    agree(ours, exact, 3e-3 / (length + 1) ** 0.5 + 1e-5)


@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_extreme_weights(scale: float) -> None:
    """Scores that are all alike, and scores that leave one key; decays that underflow."""
    case = Case(length=400, scale=scale)
    agree(case.run(), case.exact(), 1e-4)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    """Large enough for several threads to take part; more of them than there are tasks of some kinds."""
    case = Case(SIZES._replace(width=256, vocabulary=24576), B=2, length=1100)
    results = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        results.append(case.run())
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_strided_states_are_read_where_they_are() -> None:
    case = Case()
    conv, matrix = case.state
    padded = torch.cat([case.draw(*conv.shape), conv], dim=1)[:, conv.shape[1] :]
    turned = matrix.transpose(2, 3).contiguous().transpose(2, 3)
    expected = case.run()
    for state in (DeltaState(padded, turned), DeltaState(conv.mT.contiguous().mT, matrix)):
        assert all(torch.equal(a, b) for a, b in zip(case.run(state=state), expected, strict=True))


def test_the_state_before_is_not_touched() -> None:
    case = Case()
    before = [t.clone() for t in case.state]
    case.run()
    assert all(torch.equal(a, b) for a, b in zip(before, case.state, strict=True))


def test_weights_are_read_where_they_are() -> None:
    case = Case()
    decoder = case.decoder()
    case.layers[1][1].down.mul_(3)
    agree(case.run(decoder), case.exact())


def test_wrong_tensors_are_refused_in_words() -> None:
    case = Case()
    conv, matrix = case.state
    with pytest.raises(ValueError, match="x has shape"):
        case.run(x=torch.zeros(3, 47))
    with pytest.raises(ValueError, match="x must be contiguous float32"):
        case.run(x=case.x_BD.double())
    with pytest.raises(ValueError, match="another model or batch"):
        case.run(state=DeltaState(conv[:2], matrix[:2]))
    with pytest.raises(ValueError, match="delta state must be float32"):
        case.run(state=DeltaState(conv.bfloat16(), matrix))
    with pytest.raises(ValueError, match="no room for token 21"):
        case.run(keys=case.keys[:, :20])
    with pytest.raises(ValueError, match="contiguous and both float32"):
        case.run(keys=case.keys.transpose(2, 3).contiguous().transpose(2, 3))
    with pytest.raises(ValueError, match="or both bfloat16"):
        case.run(keys=case.keys.bfloat16())
    with pytest.raises(ValueError, match="1 to 64"):
        case.run(x=torch.zeros(65, 48))
    with pytest.raises(ValueError, match="state of its own kind"):
        case.decoder().step(case.x_BD, [case.state, case.state], 0)
    case.layers[0] = (case.layers[0][0]._replace(out=torch.zeros(48, 5)), case.layers[0][1])
    with pytest.raises(ValueError, match=r"out has shape \(48, 5\)"):
        case.decoder()


def test_sizes_without_cpp_code_are_named() -> None:
    assert native.why_not(SIZES) is None
    assert "head_width 24, shared_width 8: not a multiple of 16" in str(
        native.why_not(SIZES._replace(head_width=24, shared_width=8))
    )
