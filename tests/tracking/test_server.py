"""`ui`: what it says, and one real server."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import psutil
import pytest

from superblock.config.fields import ConfigError
from superblock.config.tracking import TrackingConfig
from superblock.tracking.run import Tracker
from superblock.tracking.server import comparison_url, serve, server_command, server_environment
from superblock.tracking.store import open_store


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_comparison_url() -> None:
    url = comparison_url("http://127.0.0.1:5000", "3")
    assert url.startswith("http://127.0.0.1:5000/#/experiments/3/runs?")
    assert "compareRunsMode=CHART" in url and "workflowType=machine_learning" in url
    assert comparison_url("http://h", None) == "http://h/#/experiments"


def test_server_is_lean_and_local(tmp_path: Path) -> None:
    command = " ".join(server_command(tmp_path / "runs", 5001))
    assert "--workers 1" in command and "--host 127.0.0.1" in command and f"file://{tmp_path}/runs" in command
    environment = server_environment("postgresql://anna:secret@h/runs")
    assert environment["MLFLOW_BACKEND_STORE_URI"] == "postgresql://anna:secret@h/runs" and "secret" not in command


def test_nothing_recorded_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"superblock run stage=mvp1"):
        serve(TrackingConfig())
    with pytest.raises(ConfigError, match="tracking=none"):
        serve(TrackingConfig(store="none"))
    assert list(tmp_path.iterdir()) == []


def test_port_taken(workplace: Path) -> None:
    with (
        closing(socket.create_server(("127.0.0.1", 0))) as other,
        pytest.raises(ConfigError, match=r"tracking\.port=\d+: something listens there"),
    ):
        serve(TrackingConfig(port=other.getsockname()[1]))


class Known(BaseHTTPRequestHandler):
    """Answers as an MLflow server that knows one experiment."""

    def do_GET(self) -> None:
        body = json.dumps({"experiment": {"experiment_id": "42"}}).encode()
        known = "experiment_name=superblock" in self.path
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_address_of_a_server() -> None:
    server = HTTPServer(("127.0.0.1", 0), Known)
    Thread(target=server.serve_forever, daemon=True).start()
    lines: list[str] = []
    uri = f"http://127.0.0.1:{server.server_port}"
    assert serve(TrackingConfig(store="server", uri=uri), lines.append) == 0
    assert lines[-1].startswith(f"compare runs at {uri}/#/experiments/42/runs?searchFilter=")
    assert "MLflow of unknown version: saved comparisons are known to work with 3.17" in lines[-2]
    assert serve(TrackingConfig(store="server", uri=uri, experiment="other"), lines.append) == 0
    server.shutdown()
    assert lines[-1] == f"compare runs at {uri}/#/experiments"


def test_server_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlflow.db").write_text("this is no database")
    monkeypatch.setattr("superblock.tracking.server.server_command", lambda *_: [sys.executable, "-c", "exit('oh no')"])
    lines: list[str] = []
    assert serve(TrackingConfig(port=free_port()), lines.append) == 1
    assert "did not start" in lines[-1] and "oh no" in lines[-1]


HEALTHY = """
import http.server, sys
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.send_response(200); self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), H).serve_forever()
"""


def test_ctrl_c_ends_the_server(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = lambda artifacts, port: [sys.executable, "-c", HEALTHY, str(port)]  # noqa: E731
    monkeypatch.setattr("superblock.tracking.server.server_command", command)
    open_store(f"sqlite:///{workplace}/mlflow.db", "superblock")
    lines: list[str] = []

    def report(line: str) -> None:
        lines.append(line)
        if line.startswith("Ctrl-C"):
            raise KeyboardInterrupt

    port = free_port()
    assert serve(TrackingConfig(port=port), report) == 0
    assert any(re.fullmatch(rf"compare runs at http://127.0.0.1:{port}/#/experiments/\d+/runs\?.*", x) for x in lines)
    assert lines[-1] == "server ended"
    assert not psutil.Process().children()


SERVE = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, such as these tests, ignore Ctrl-C
from superblock.config.tracking import TrackingConfig
from superblock.tracking.store import open_store
from superblock.tracking.server import serve
sys.exit(serve(TrackingConfig(port=int(sys.argv[1])), lambda line: print(line, flush=True)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_real_server(start: Callable[..., Tracker], workplace: Path, number: signal.Signals) -> None:
    with start() as tracker:
        tracker.metrics({"train/loss": 1.25}, 1)
    port = free_port()
    command = [sys.executable, "-c", SERVE, str(port)]
    ui = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    assert ui.stdout
    while not (line := ui.stdout.readline()).startswith("compare runs at"):
        assert line, "the server ended"
    family = psutil.Process(ui.pid).children(recursive=True)
    experiment = re.search(r"experiments/(\d+)/runs", line)[1]

    def get(path: str, data: dict | None = None) -> bytes:
        body = json.dumps(data).encode() if data is not None else None
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.read()

    found = json.loads(get("/api/2.0/mlflow/runs/search", {"experiment_ids": [experiment]}))["runs"]
    assert [run["info"]["run_id"] for run in found] == [tracker.mlflow_run_id]
    assert b"d_model" in get(f"/get-artifact?path=config.yaml&run_uuid={tracker.mlflow_run_id}")
    assert b"<html" in get("/")
    ui.send_signal(number)
    assert ui.wait(30) == 0
    time.sleep(0.2)
    assert family and not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family)
    assert not (workplace / "mlruns").exists() and not (workplace / "mlartifacts").exists()


@pytest.mark.slow
def test_delivery_through_a_real_server(start: Callable[..., Tracker], config, workplace: Path) -> None:
    """The server is away when the run starts and comes while it runs; it is recorded there as if it had never been away."""
    from mlflow import MlflowClient

    port = free_port()
    config.tracking.store, config.tracking.uri = "server", f"http://127.0.0.1:{port}"
    tracker = start()
    tracker.metrics({"train/loss": 1.0}, 1)
    time.sleep(1)
    server = subprocess.Popen(
        server_command(workplace / "runs" / "artifacts", port),
        env=server_environment(f"sqlite:///{workplace}/mlflow.db"),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    family: list[psutil.Process] = []
    try:
        tracker.text("hello", "samples/a.txt")
        deadline = time.monotonic() + 90
        while tracker.mlflow_run_id is None and time.monotonic() < deadline:
            time.sleep(0.1)
        tracker.metrics({"train/loss": 0.5, "train/nan": float("nan")}, 2)
        tracker.finish("FINISHED")
        family = psutil.Process(server.pid).children(recursive=True)
        client = MlflowClient(config.tracking.uri)
        run = client.get_run(tracker.mlflow_run_id)
        assert run.info.status == "FINISHED" and run.data.metrics["train/loss"] == 0.5
        assert [f.path for f in client.list_artifacts(run.info.run_id, "samples")] == ["samples/a.txt"]
    finally:
        for process in [*family, server]:
            process.terminate()
        server.wait(30)
