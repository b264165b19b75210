"""Growth of the key and value buffers."""

import torch

from superblock.models.cache import KeyValueState


def test_buffers_grow_without_losing_anything() -> None:
    state, pieces = KeyValueState(), []
    generator = torch.Generator().manual_seed(0)
    for tokens in [40, 1, 1, 100, 1, 300]:
        k = torch.randn(2, tokens, 3, 4, generator=generator)
        pieces.append(k)
        keys, values = state.append(k, -k)
        assert torch.equal(keys, torch.cat(pieces, 1))
        assert torch.equal(values, -keys)
    assert state.length == 443


def test_most_single_tokens_need_no_copy() -> None:
    state, addresses = KeyValueState(), set()
    for _ in range(1000):
        keys, _ = state.append(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1))
        addresses.add(keys.data_ptr())
    assert len(addresses) < 12
