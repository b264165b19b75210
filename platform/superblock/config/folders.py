"""Where files that can be made again are kept: prepared texts and compiled kernels."""

import os
import sys
from pathlib import Path

VARIABLE = "SUPERBLOCK_CACHE"
"""Environment variable: a folder instead of the user's own."""


def user_cache() -> Path:
    """`$SUPERBLOCK_CACHE`, or `superblock` in the user's cache directory as the system has it."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen).expanduser()
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base).expanduser() / "superblock"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "superblock" / "cache"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "superblock"
