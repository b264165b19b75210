"""One process at a time, and who it is for those that wait."""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from superblock.tracking.files import read_json, write_json


class Busy(Exception):
    """Another process holds the lock; the text says which, since when."""


@contextmanager
def only_one(path: Path, *, wait: float, say: Callable[[str], None]) -> Iterator[None]:
    """Holds a lock that ends with the process, however that ends.

    Args:
        path: of the lock; a note of who holds it lies beside it.
        wait: seconds to wait for another process.
        say: shows a line, once, when there is something to wait for.

    Raises:
        Busy: if it is still held after that time.
    """
    from filelock import FileLock, Timeout

    path.parent.mkdir(parents=True, exist_ok=True)
    note = path.with_name(f"{path.name}.json")
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if wait > 0:
            say(f"waiting up to {wait:.0f} s: {_holder(note)}")
        try:
            lock.acquire(timeout=wait)
        except Timeout:
            raise Busy(_holder(note)) from None
    try:
        write_json(note, {"pid": os.getpid(), "host": socket.gethostname(), "since": time.time()})
        yield
    finally:
        note.unlink(missing_ok=True)
        lock.release()


def _holder(note: Path) -> str:
    known = read_json(note)
    if not {"pid", "host", "since"} <= set(known):
        return "another process is at work there"
    since = datetime.fromtimestamp(known["since"])
    return f"process {known['pid']} on {known['host']} is at work there since {since:%Y-%m-%d %H:%M:%S}"
