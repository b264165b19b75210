import pytest
from torch import Tensor

from superblock.kernels.native.arena import Parts


@pytest.fixture
def clean_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory of several parts is zero where nothing is written, for tests that compare all of its bytes."""
    real = Parts.new

    def new(self: Parts, like: Tensor) -> Tensor:
        return real(self, like).zero_()

    monkeypatch.setattr(Parts, "new", new)
