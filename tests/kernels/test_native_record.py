"""Structures of C++ filled by name."""

import ctypes
from pathlib import Path

import pytest
import torch

from superblock.kernels.native.record import Record

HEADER = """
struct Other {
  int64_t first;
};

// A comment with struct Mixed in it.
struct Mixed {
  const void* data;           // [N, D]; of anything
  float *left, *right;        // [N]
  int64_t N, D;
  double scale;
};
"""


@pytest.fixture
def header(tmp_path: Path) -> Path:
    path = tmp_path / "layer.h"
    path.write_text(HEADER)
    return path


def test_fields_lie_as_in_the_header(header: Path) -> None:
    left = torch.ones(3)
    filled = Record(header, "Mixed")(D=2, N=3, scale=0.5, data=None, left=left, right=17)
    assert bytes(filled) == b"".join(value.to_bytes(8, "little") for value in (0, left.data_ptr(), 17, 3, 2)) + bytes(
        ctypes.c_double(0.5)
    )


def test_it_keeps_its_tensors(header: Path) -> None:
    filled = Record(header, "Other")(first=1)
    assert filled.values == {"first": 1}
    tensor = torch.ones(3)
    mixed = Record(header, "Mixed")(D=2, N=3, scale=1, data=tensor, left=None, right=None)
    assert mixed.values["data"] is tensor


@pytest.mark.parametrize("values", [{}, {"first": 1, "second": 2}])
def test_every_field_has_a_value_and_nothing_else(header: Path, values: dict[str, int]) -> None:
    with pytest.raises(TypeError, match=r"Other: fields without a value or unknown: \['(first|second)'\]"):
        Record(header, "Other")(**values)


def test_what_it_cannot_read_is_refused(header: Path) -> None:
    with pytest.raises(ValueError, match="no structure Third"):
        Record(header, "Third")
    header.write_text("struct Small {\n  int32_t count;\n};\n")
    with pytest.raises(ValueError, match="'int32_t count' in Small is no pointer"):
        Record(header, "Small")
