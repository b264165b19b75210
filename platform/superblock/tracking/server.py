"""The comparison page: a lean MLflow server on the right store.

MLflow's own defaults start four workers, a job runner and seven queue consumers: 15 processes and 46 s on two cores,
against 2 processes and 10 s here.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from urllib.parse import quote, urlencode

import psutil

from superblock.config.fields import ConfigError
from superblock.config.tracking import TrackingConfig
from superblock.config.typed import typed
from superblock.tracking import views
from superblock.tracking.publish import publish
from superblock.tracking.store import (
    artifact_folder,
    database_path,
    find_experiment,
    is_database,
    store_uri,
    without_password,
)

HOST = "127.0.0.1"
START_TIMEOUT = 180.0  # seconds
Report = Callable[[str], None]


def serve(config: TrackingConfig, report: Report = print) -> int:
    """Starts the server, prints where to look, and stays until Ctrl-C; for `tracking=server` only prints the address.

    Returns:
        The exit status: 0 after Ctrl-C, 1 if the server ended by itself.

    Raises:
        ConfigError: if there is nothing to show or the port is taken.
    """
    uri = store_uri(config)
    if uri is None:
        raise ConfigError(
            "tracking=none: keeps no MLflow store, so there is nothing to show; use tracking=sqlite or server"
        )
    if not is_database(uri):
        _say_where(uri, remote_experiment(uri, config.experiment), report)
        return 0
    database = database_path(uri)
    if database and not database.exists():
        raise ConfigError(f"tracking.uri={uri}: nothing is recorded there yet; run `{typed('run stage=mvp1')}` first")
    return _serve_database(uri, config, report)


def comparison_url(base: str, experiment_id: str | None) -> str:
    """The page with all runs of an experiment as charts; the list of experiments if the id is not known."""
    if experiment_id is None:
        return f"{base}/#/experiments"
    query = {
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": "false",
        "compareRunsMode": "CHART",
        "workflowType": "machine_learning",
    }
    return f"{base}/#/experiments/{quote(experiment_id)}/runs?{urlencode(query)}"


def server_command(artifacts: Path, port: int) -> list[str]:
    """The command line of the server; which store it serves is in its environment."""
    place = ["--default-artifact-root", artifacts.as_uri(), "--artifacts-destination", artifacts.as_uri()]
    return [sys.executable, "-m", "mlflow", "server", *place, "--host", HOST, "--port", str(port), "--workers", "1"]


def server_environment(uri: str) -> dict[str, str]:
    """The address of the store, which every user could read on the command line, and what makes the server lean."""
    return os.environ | {
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


@contextmanager
def running_server(uri: str, port: int, report: Report) -> Iterator["subprocess.Popen[bytes] | None"]:
    """A server that answers at `http://127.0.0.1:<port>` until the end of the block; None if it did not start.

    Args:
        uri: of a database, from `store_uri`.
        report: shows a line to the user.

    Raises:
        ConfigError: if the port is taken.
    """
    _require_free_port(port)
    log = server_log(uri)
    log.parent.mkdir(parents=True, exist_ok=True)
    report(f"starting MLflow on {database_path(uri) or without_password(uri)}, about 10 s")
    with open(log, "wb") as output:
        server = subprocess.Popen(
            server_command(artifact_folder(database_path(uri)), port), env=server_environment(uri), stdout=output,
            stderr=subprocess.STDOUT, cwd=log.parent, start_new_session=True,  # Ctrl-C reaches us alone: we end all of it
        )  # fmt: skip
    try:
        if _wait_until_healthy(server, port, report):
            yield server
        else:
            report(f"the server did not start; its last words ({log}):\n{_tail(log)}")
            yield None
    finally:
        _end(server)


def server_log(uri: str) -> Path:
    """What the server of a database says."""
    return artifact_folder(database_path(uri)).parent / "ui.log"


def _serve_database(uri: str, config: TrackingConfig, report: Report) -> int:
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        with running_server(uri, config.port, report) as server:
            if server is None:
                return 1
            _say_where(f"http://{HOST}:{config.port}", _local_experiment(uri, config), report)
            report("Ctrl-C ends the server")
            server.wait()
            report(f"the server ended by itself; its last words ({server_log(uri)}):\n{_tail(server_log(uri))}")
            return 1
    except KeyboardInterrupt:
        report("server ended")
        return 0
    finally:
        signal.signal(signal.SIGTERM, previous)


def _local_experiment(uri: str, config: TrackingConfig) -> str | None:
    """The experiment's id in a database that is being served: from its file, else from the server."""
    database = database_path(uri)
    if database:
        return find_experiment(database, config.experiment)
    return remote_experiment(f"http://{HOST}:{config.port}", config.experiment)


def _say_where(base: str, experiment_id: str | None, report: Report) -> None:
    """Shows the saved comparisons, or where all runs are if there are none."""
    shown = without_password(base) or base
    plain = comparison_url(shown, experiment_id)
    found = publish(base, experiment_id, report) if experiment_id else []
    if not found:
        report(f"compare runs at {plain}")
        return
    (name, link), *others = [(view.name, views.address(shown, str(experiment_id), view)) for view in found]
    report(f"compare runs at {link}\n  {name}")
    for name, link in [*others, ("all runs, MLflow's own charts", plain)]:
        report(f"{link}\n  {name}")


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _require_free_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise ConfigError(
                f"tracking.port={port}: something listens there already, maybe an earlier `ui`; "
                f"open http://{HOST}:{port} or choose another, for example tracking.port={port + 1}"
            ) from None


def _wait_until_healthy(server: "subprocess.Popen[bytes]", port: int, report: Report) -> bool:
    """Polls /health; a line every 5 s shows that something happens."""
    begin = time.monotonic()
    shown = 0
    while server.poll() is None and (waited := time.monotonic() - begin) < START_TIMEOUT:
        if _healthy(port):
            return True
        if waited // 5 > shown:
            shown = int(waited // 5)
            report(f"waiting for the server, {waited:.0f} s")
        time.sleep(0.25)
    return False


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def remote_experiment(uri: str, name: str) -> str | None:
    """The experiment's id on a server; None if the server does not answer or does not know it."""
    address = f"{uri}/api/2.0/mlflow/experiments/get-by-name?{urlencode({'experiment_name': name})}"
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return str(json.load(answer)["experiment"]["experiment_id"])
    except (OSError, ValueError, KeyError):
        return None


def _end(server: "subprocess.Popen[bytes]") -> None:
    """Ends the server and the workers it started, politely first."""
    processes: list[subprocess.Popen[bytes] | psutil.Process] = [server]
    with suppress(psutil.Error):
        processes = [*psutil.Process(server.pid).children(recursive=True), server]
    for process in processes:
        with suppress(psutil.Error, OSError):
            process.terminate()
    begin = time.monotonic()
    while any(_runs(process) for process in processes) and time.monotonic() - begin < 5:
        time.sleep(0.05)
    for process in processes:
        with suppress(psutil.Error, OSError):
            process.kill()
    server.wait()


def _runs(process: "subprocess.Popen[bytes] | psutil.Process") -> bool:
    if isinstance(process, subprocess.Popen):
        return process.poll() is None
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def _tail(path: Path, lines: int = 8) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])
