"""Structures that C++ functions take: their fields are read from the header that declares them, and filled by name."""

import ctypes
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

Value = Tensor | int | float | None
_NUMBERS = {"int64_t": ctypes.c_int64, "double": ctypes.c_double}
_DECLARATION = re.compile(r"(?:const )?(\w+)\s*(.+)")


class Filled(ctypes.Structure):
    """A structure for a call; the tensors whose addresses it holds live as long as it does."""

    values: Mapping[str, Value]


class Record:
    """A C++ structure whose fields are pointers, `int64_t` and `double`: 8 bytes each, so that nothing lies between them.

    Args:
        header: the file that declares it.
        name: its name there.

    Raises:
        ValueError: if there is no such structure in the file, or one with other fields.
    """

    def __init__(self, header: Path, name: str) -> None:
        self.name = name
        fields = list(_fields(header, name))
        self._layout = type(name, (Filled,), {"_fields_": fields})
        self.fields = {field for field, _ in fields}

    def __call__(self, **values: Value) -> Filled:
        """The structure with these values, a tensor as its address and None as a null pointer.

        Raises:
            TypeError: unless every field, and nothing else, has a value.
        """
        if values.keys() != self.fields:
            raise TypeError(f"{self.name}: fields without a value or unknown: {sorted(values.keys() ^ self.fields)}")
        filled = self._layout(**{n: v.data_ptr() if isinstance(v, Tensor) else v for n, v in values.items()})
        filled.values = values
        return filled


def _fields(header: Path, name: str) -> Iterator[tuple[str, type]]:
    """Names and types in the order of their declaration."""
    found = re.search(rf"^struct {name} {{\n(.*?)^}};", header.read_text(), re.DOTALL | re.MULTILINE)
    if not found:
        raise ValueError(f"{header}: no structure {name}")
    body = re.sub(r"//.*", "", found[1])
    for declaration in filter(None, map(str.strip, body.split(";"))):
        match = _DECLARATION.fullmatch(declaration)
        assert match, declaration
        for field in match[2].split(","):
            pointer = field.strip().startswith("*")
            if not pointer and match[1] not in _NUMBERS:
                raise ValueError(f"{header}: {declaration!r} in {name} is no pointer, int64_t or double")
            yield field.strip(" *"), ctypes.c_void_p if pointer else _NUMBERS[match[1]]
