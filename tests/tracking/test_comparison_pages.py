"""The pages of a real MLflow server in a real browser: the comparison that `ui` prints, over SQLite and over PostgreSQL."""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from superblock.config.run import RunConfig
from superblock.config.tracking import TrackingConfig
from superblock.reporting.mlflow_picture import show
from superblock.tracking import views
from superblock.tracking.identity import STAGE_COLORS
from superblock.tracking.publish import publish
from superblock.tracking.run import Tracker
from superblock.tracking.server import HOST, remote_experiment, running_server
from superblock.tracking.store import open_store, store_uri
from superblock.tracking.versions import read_versions

sys.path.insert(0, str(Path(__file__).parents[1]))
from browser import browser, visit
from postgresql import free_port, running_postgresql

pytestmark = pytest.mark.slow
WAIT = 240.0
STAGES, SEEDS = ("mvp1", "mvp2"), (1, 2)
PAGE = """<!doctype html><title>report</title><p id="said">without script</p>
<script>document.getElementById("said").textContent = "drawn inside MLflow"</script>"""
NO_USERS = "/ajax-api/2.0/mlflow/users/current"
"""What the page asks every server for, though only those with accounts know it: the one 404 it may show."""


@dataclass(frozen=True)
class Place:
    """A served store with runs in it."""

    uri: str
    base: str
    experiment: str
    runs: list[str]
    folder: Path


def record(tracking: TrackingConfig, stage: str, seed: int) -> str:
    """A run as training leaves it; returns its id."""
    config = RunConfig(tracking=tracking, seed=seed)
    config.stage.name, config.scale.name = stage, "mini"
    name = f"{stage}-mini-s{seed}"
    with Tracker.start(config, run_folder=Path("runs") / name, run_name=name, resume=False, rank=0) as tracker:
        tracker.dataset("embedded", "d" * 16, "test", "a library")
        for step in range(10, 60, 10):
            bits = 3.0 - 0.01 * step - 0.1 * seed
            tracker.metrics({"train/loss": 1.4 * bits, "train/tokens": 100.0 * step}, step)
            tracker.metrics({"val/bits_per_byte": bits, "val/tokens": 100.0 * step}, step)
            tracker.metrics({"experts/load_entropy": 0.99}, step)
        for depth in range(1, 3):
            tracker.metrics({"exits/bits_per_byte": 2.5 - 0.1 * depth}, depth)
        tracker.result({"test/bits_per_byte": 2.4 + 0.01 * seed, "test/perplexity": 40.0, "test/accuracy_top1": 0.3})
        tracker.result({"final/tokens_per_second": 1000.0 * seed, "final/memory_peak_mib": 500.0})
        tracker.text(PAGE, "report.html")
    assert tracker.mlflow_run_id
    return tracker.mlflow_run_id


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, empty_database: Path, chromium: Any
) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp(request.param)
    tracking = TrackingConfig(store=request.param, flush_seconds=0.05, timeout_seconds=WAIT, system_metrics=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        if request.param == "sqlite":
            (folder / "mlflow.db").write_bytes(empty_database.read_bytes())
            yield from served(tracking)
        else:
            with running_postgresql() as uri:
                yield from served(replace(tracking, uri=uri))


def served(tracking: TrackingConfig) -> Iterator[Place]:
    uri = str(store_uri(tracking))
    runs = [record(tracking, stage, seed) for stage in STAGES for seed in SEEDS]
    port, said = free_port(), []
    with running_server(uri, port, said.append) as server:
        assert server is not None, said
        base = f"http://{HOST}:{port}"
        experiment = remote_experiment(base, tracking.experiment)
        assert experiment is not None
        yield Place(uri, base, experiment, runs, Path.cwd())


def test_the_comparison_is_drawn(place: Place, chromium: Any) -> None:
    said: list[str] = []
    [view] = publish(place.base, place.experiment, said.append)
    assert (said, view.name) == ([], "Stages at scale mini")
    seen = visit(chromium, "about:blank", width=1600, height=3200)
    failed: list[str] = []
    seen.tab.on("response", lambda answer: answer.status >= 400 and failed.append(answer.url))
    drawn = show(seen.tab, views.address(place.base, place.experiment, view), WAIT)
    wanted = [chart for section in view.sections for chart in section.charts]
    seen.tab.wait_for_function(
        f"document.querySelectorAll('.js-plotly-plot').length >= {len(wanted)}", timeout=WAIT * 1000
    )
    text = seen.tab.inner_text("body")
    assert [s.name for s in view.sections] == re.findall("|".join(re.escape(s.name) for s in view.sections), text), (
        "sections in this order"
    )
    assert drawn >= len(wanted) == 11
    assert all(metric in text for chart in wanted for metric in chart.metrics)
    assert "No charts" not in text and "Error loading" not in text
    assert text.count("Group: mvp") == len(STAGES) and f"{len(place.runs)} matching runs" in text

    legend = seen.tab.evaluate(
        "() => Object.fromEntries([...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => plot.data)"
        ".filter(trace => trace.type === 'bar').flatMap(trace => [].concat(trace.y).map((name, i) => [String(name),"
        " [].concat(trace.marker.color)[i]])))"
    )
    colors = set(legend.values())
    assert {color.lower() for color in colors} == {STAGE_COLORS[stage] for stage in STAGES}
    bands = seen.tab.evaluate(
        "() => [...document.querySelectorAll('.js-plotly-plot')].flatMap(plot => plot.data)"
        ".filter(trace => trace.fill && trace.fill !== 'none').length"
    )
    assert bands >= len(STAGES), "seeds are averaged, with their extremes as a band"
    assert all(url.endswith(NO_USERS) for url in failed)
    assert [said for said in seen.messages if "404" not in said and not said.startswith("AG Grid")] == []
    seen.tab.close()


def test_a_page_among_the_artifacts_runs_inside_the_frame(place: Place, chromium: Any) -> None:
    seen = visit(chromium, "about:blank", width=1400, height=900)
    address = f"{place.base}/#/experiments/{place.experiment}/runs/{place.runs[0]}/artifacts/report.html"
    seen.tab.goto(address, timeout=WAIT * 1000)
    frame = seen.tab.locator("iframe[sandbox]")
    frame.wait_for(timeout=WAIT * 1000)
    assert frame.get_attribute("sandbox") == "allow-scripts"
    said = seen.tab.frame_locator("iframe[sandbox]").locator("#said")
    said.wait_for(timeout=WAIT * 1000)
    assert said.inner_text() == "drawn inside MLflow"
    seen.tab.close()


def test_the_store_itself_is_read_and_ranked(place: Place) -> None:
    client, experiment = open_store(place.uri, "superblock")
    assert experiment == place.experiment
    order = {"field_name": "metrics.test/bits_per_byte", "dataset_name": "embedded test", "dataset_digest": "d" * 16}
    found = client.search_logged_models([experiment], order_by=[{**order, "ascending": True}])
    assert [model.name[-2:] for model in found] == ["s1", "s1", "s2", "s2"]
    assert read_versions(place.uri) == []
    folder = place.folder / "runs" / "artifacts"
    assert str(client.get_experiment(experiment).artifact_location).startswith(folder.as_uri())
    client.create_registered_model("mvp1-mini")
    client.create_model_version("mvp1-mini", folder.as_uri(), place.runs[0])
    client.set_registered_model_alias("mvp1-mini", "promoted", "1")
    [version] = read_versions(place.uri)
    assert (version.model, version.version, version.aliases, version.folder) == ("mvp1-mini", 1, ("promoted",), folder)
    assert not [*place.folder.rglob("mlruns"), *Path.cwd().rglob("mlruns")]
