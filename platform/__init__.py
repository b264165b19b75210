"""The standard library's `platform`, with this project's commands beside it: `python -m platform.run`.

From the repository's root this folder hides the standard module of the same name, which torch, Lightning and MLflow
import. So the standard module's own code runs here, in this namespace: every attribute is the standard one, private
ones too, and `platform.run` resolves beside them.
"""

import os as _os
import sys as _sys
from importlib.machinery import PathFinder as _PathFinder

TYPE_CHECKING = False
if TYPE_CHECKING:  # type checkers read this file instead of typeshed's platform.pyi
    from typing import Any

    def __getattr__(name: str) -> Any: ...


_root = _os.path.dirname(_os.path.dirname(_os.path.realpath(__file__)))
_spec = _PathFinder.find_spec("platform", [p for p in _sys.path if _os.path.realpath(p or _os.getcwd()) != _root])
exec(_spec.loader.get_code("platform"), globals())  # type: ignore[union-attr]
