"""A PostgreSQL server of a test's own, from the programs that are installed here."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

USER = "superblock"


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_postgresql() -> Iterator[str]:
    """The address of an empty database; the test is skipped where PostgreSQL's programs are missing."""
    pytest.importorskip("psycopg", reason="needs the package psycopg")
    initdb, control = _program("initdb"), _program("pg_ctl")
    if initdb is None or control is None:
        pytest.skip("needs PostgreSQL's initdb and pg_ctl")
    before = _as_another_user()
    folder = Path(tempfile.mkdtemp(prefix="superblock-postgresql-"))  # pytest's own folders are closed to other users
    data, port = folder / "data", free_port()
    try:
        if before:
            shutil.chown(folder, _user().pw_uid, _user().pw_gid)
        _run(
            [*before, initdb, "-D", str(data), "-A", "trust", "-U", USER, "--no-sync", "-E", "UTF8", "--locale", "C"],
            folder,
        )
        settings = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        _run(
            [*before, control, "-D", str(data), "-w", "-t", "120", "-l", str(folder / "log"), "-o", settings, "start"],
            folder,
        )
        yield f"postgresql://{USER}@127.0.0.1:{port}/postgres"
    finally:
        if (data / "postmaster.pid").exists():
            _run([*before, control, "-D", str(data), "-m", "immediate", "-w", "stop"], folder)
        shutil.rmtree(folder, ignore_errors=True)


def _program(name: str) -> str | None:
    """Debian keeps them outside of the path, a folder per version."""
    found = [str(path) for path in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))]
    return shutil.which(name) or (found[-1] if found else None)


def _as_another_user() -> list[str]:
    """PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("PostgreSQL does not run as root, and there is no setpriv to become another user")
    return ["setpriv", f"--reuid={_user().pw_uid}", f"--regid={_user().pw_gid}", "--clear-groups"]


def _user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


def _run(command: list[str], folder: Path) -> None:
    """Output goes to a file: the server would keep a pipe open."""
    with open(folder / "said", "ab") as said:
        status = subprocess.run(command, stdout=said, stderr=said, cwd=folder, check=False).returncode
    assert status == 0, (folder / "said").read_text(errors="replace")
