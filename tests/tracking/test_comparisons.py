"""Which comparisons an experiment offers, and how they are written."""

import threading
from base64 import b64encode
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from superblock.tracking import comparisons, publish, views
from superblock.tracking.comparisons import RunContents
from superblock.tracking.store import open_store
from superblock.tracking.views import Chart, Section, View

RESULTS = {
    "test/bits_per_byte": 1.5,
    "val/bits_per_byte": 1.6,
    "val/tokens": 1e6,
    "train/loss": 3.0,
    "train/tokens": 1e6,
}


def run(metrics: dict[str, float] | None = None, **tags: str) -> RunContents:
    known = {"suite": "training", "stage": "mvp1", "scale": "mini", "arm": "default", "seed": "1"}
    return RunContents(known | tags, RESULTS if metrics is None else metrics)


def charts(view: View) -> list[Chart]:
    return [chart for section in view.sections for chart in section.charts]


def test_stages_of_the_newest_scale() -> None:
    runs = [run(stage="mvp2"), run(), run(scale="tiny")]
    first, second = comparisons.views(runs)
    assert (first.key, first.name, first.group_by) == ("superblock-stages", "Stages at scale mini", ("stage",))
    assert first.search == "tags.`suite` = 'training' and tags.`scale` = 'mini' and tags.`arm` = 'default'"
    assert first.order_by == "tags.`stage`"
    assert (second.key, second.group_by) == ("superblock-scales", ("scale", "stage"))


def test_charts_are_those_whose_metrics_exist() -> None:
    [view] = comparisons.views([run({"test/bits_per_byte": 1.5, "train/loss": 3.0, "experts/load_entropy": 0.99})])
    assert [(c.kind, c.metrics, c.over) for c in charts(view)] == [
        ("bar", ("test/bits_per_byte",), "step"),
        ("line", ("train/loss",), "step"),
        ("line", ("experts/load_entropy",), "step"),
    ]
    assert comparisons.views([run({"unknown": 1.0})]) == [] == comparisons.views([])


def test_curves_over_tokens_show_where_they_end() -> None:
    low, high = run(RESULTS | {"val/bits_per_byte": 1.0}), run(RESULTS | {"val/bits_per_byte": 2.0})
    diverged = run(RESULTS | {"val/bits_per_byte": float("nan")})
    [view] = comparisons.views([low, high, diverged])
    [chart] = [c for c in charts(view) if c.over == "val/tokens"]
    assert chart.metrics == ("val/bits_per_byte",) and chart.span == (0.9, 2.4)
    assert all(c.span is None for c in charts(view) if c.kind == "bar")


def test_arms_beside_each_other() -> None:
    runs = [run(stage="mvp2"), run(arm="muon"), run(arm="adamw")]
    first, second = comparisons.views(runs)
    assert (first.key, second.key) == ("superblock-stages", "superblock-arms")
    assert second.name == "Arms of mvp1 at scale mini" and second.group_by == ("arm",)
    assert second.search == "tags.`suite` = 'training' and tags.`stage` = 'mvp1' and tags.`scale` = 'mini'"


def test_suites_have_views_of_their_own() -> None:
    speed = RunContents(
        {"suite": "speed", "scale": "mini", "arm": "default"}, {"speed/a/x/ratio": 1.1, "speed/a/x/ms": 3}
    )
    growth = [run(suite="growth", arm=arm) for arm in ("stack", "interpolate")]
    first, second, third = comparisons.views([speed, *growth, run()])
    assert [view.key for view in (first, second, third)] == [
        "superblock-stages", "superblock-suite-speed", "superblock-suite-growth",
    ]  # fmt: skip
    assert [c.metrics for c in charts(second)] == [("speed/a/x/ratio",)] and second.group_by == ()
    assert third.group_by == ("arm",) and third.search == "tags.`suite` = 'growth'"


def test_probes_have_bars_of_scores_and_curves_over_levels() -> None:
    metrics = {"probe/mqar/score": 0.9, "probe/mqar/levels": 0.8, "probe/mqar/seconds": 9, "harness/a/acc_stderr": 0.1}
    runs = [RunContents({"suite": "probes", "scale": "mini", "arm": arm}, metrics) for arm in ("attention", "hybrid")]
    [view] = comparisons.views(runs)
    assert [(s.name, [(c.kind, *c.metrics) for c in s.charts]) for s in view.sections] == [
        ("Probes", [("line", "probe/mqar/levels"), ("bar", "probe/mqar/score")])
    ]
    assert view.group_by == ("arm",)


def test_note_counts_and_links() -> None:
    text = comparisons.note([run(), run(seed="2"), run(suite="growth")], [("Stages", "#/experiments/1/runs?x=y")])
    assert "- suite `training`: 2 runs (2 of mvp1 at mini)" in text and "- suite `growth`: 1 runs" in text
    assert "- [Stages](#/experiments/1/runs?x=y)" in text


@given(st.lists(st.sampled_from(["bar", "line", "scatter"]), min_size=1, max_size=20), st.integers(1, 8))
def test_written_views_are_read_back(kinds: list[str], sections: int) -> None:
    made = tuple(Chart(kind, (f"a/{i}",), over="b") for i, kind in enumerate(kinds))
    view = View("k", "name", "", ("stage",), tuple(Section(f"s{i}", made) for i in range(sections)))
    assert views.decode(views.encode(view, 1)) == views.state(view)
    state = views.state(view)
    identities = [part["uuid"] for part in [*state["compareRunCharts"], *state["compareRunSections"]]]
    assert len(set(identities)) == len(identities) == sections * (len(kinds) + 1)
    assert {c["metricSectionId"] for c in state["compareRunCharts"]} <= {s["uuid"] for s in state["compareRunSections"]}


def test_a_long_view_fits_into_a_tag() -> None:
    import random

    names = random.Random(1)
    long = tuple(Chart("bar", ("".join(names.choices("abcdefghij", k=200)),)) for _ in range(200))
    view = View("k", "name", "", (), (Section("first", long[:1]), Section("second", long[1:])))
    text = views.encode(view, 1)
    kept = views.decode(text)["compareRunCharts"]
    assert len(text) <= views.LONGEST_TAG and 50 < len(kept) < 200
    assert [c["metricKey"] for c in kept] == [c.metrics[0] for c in long[: len(kept)]]


@pytest.mark.parametrize("value", ["", "no json", "[]", "{}", '{"state": 1}', '{"state": "deflate;!!"}'])
def test_what_is_no_view(value: str) -> None:
    assert views.decode(value) == {}


def test_versions() -> None:
    assert views.is_tested("3.17.2") and not views.is_tested("3.16.9")
    assert not any(map(views.is_tested, ("3.18.0", "4.0", "3", "", "3.x", "2.99.1")))


def test_written_into_a_store(workplace: Path) -> None:
    client, experiment = open_store(f"sqlite:///{workplace}/mlflow.db", "superblock")
    client.set_experiment_tag(experiment, views.TAG_PREFIX + "own", "a user's")
    made = client.create_run(experiment, tags={"suite": "training", "stage": "mvp1", "scale": "mini", "arm": "a"})
    client.log_metric(made.info.run_id, "test/bits_per_byte", 1.5, step=0)
    other = client.create_run(experiment, tags={"suite": "training", "stage": "mvp1", "scale": "mini", "arm": "b"})
    client.log_metric(other.info.run_id, "test/bits_per_byte", 1.4, step=0)
    assert [view.key for view in publish.write(client, experiment)] == ["superblock-stages", "superblock-arms"]
    first = client.get_experiment(experiment).tags
    assert "2 of mvp1 at mini" in first[publish.NOTE] and first["mlflow.experimentKind"] == "custom_model_development"

    publish.write(client, experiment)
    assert client.get_experiment(experiment).tags == first, "nothing is written that did not change"

    client.delete_run(other.info.run_id)
    client.set_experiment_tag(experiment, publish.NOTE, "my own words")
    publish.write(client, experiment)
    tags = client.get_experiment(experiment).tags
    assert tags[publish.NOTE] == "my own words"
    assert {key for key in tags if key.startswith(views.TAG_PREFIX)} == {
        views.TAG_PREFIX + "superblock-stages", views.TAG_PREFIX + "own",
    }  # fmt: skip


def test_a_store_that_refuses_costs_a_line(monkeypatch: pytest.MonkeyPatch, workplace: Path) -> None:
    lines: list[str] = []
    monkeypatch.setattr(publish, "server_version", lambda base: "3.17.2")
    assert publish.publish("http://127.0.0.1:1", "1", lines.append) == []
    assert len(lines) == 1 and lines[0].startswith("no saved comparisons: ")


class _Asked(BaseHTTPRequestHandler):
    """Says its version to whoever has the password."""

    def do_GET(self) -> None:
        known = self.headers.get("Authorization") == "Basic " + b64encode(b"me:p@ss").decode()
        self.send_response(200 if known and self.path == "/version" else 401)
        self.end_headers()
        self.wfile.write(b"3.17.2")

    def log_message(self, *words: object) -> None:
        pass


def test_the_version_of_a_server_with_a_password() -> None:
    with HTTPServer(("127.0.0.1", 0), _Asked) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"127.0.0.1:{server.server_port}"
        assert publish.server_version(f"http://me:p%40ss@{place}") == "3.17.2"
        assert publish.server_version(f"http://me:wrong@{place}") is None is publish.server_version(f"http://{place}")
        server.shutdown()


@pytest.mark.parametrize("base", ["http://me:secret@127.0.0.1", "http://127.0.0.1:secret", "http://[::1", "ftp:/x"])
def test_an_address_that_does_not_answer_has_no_version(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object) -> None:
        raise ConnectionRefusedError

    monkeypatch.setattr("socket.create_connection", refuse)
    assert publish.server_version(base) is None
