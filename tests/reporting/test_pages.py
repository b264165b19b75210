"""A report's pages: everything is in them, nothing in them is code of a stranger, and equal reports give equal bytes."""

import re
import xml.etree.ElementTree as xml
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import example_report
import pytest

from superblock.reporting.changepoint import MINIMUM_LENGTH
from superblock.reporting.content import Report
from superblock.reporting.files import write_report
from superblock.reporting.pages import charts, render, render_index
from superblock.reporting.pages.blocks import Fold, Picture, Points, Table
from superblock.reporting.pages.changes import _histories
from superblock.reporting.pages.escaping import (
    anchor,
    html_words,
    markdown,
    markdown_code,
    markdown_fence,
    markdown_words,
)
from superblock.reporting.pages.evidence import gates
from superblock.reporting.pages.experiments import ablations
from superblock.reporting.pages.inside import exits
from superblock.reporting.pages.language import language
from superblock.reporting.pages.numbers import (
    count,
    fixed,
    metric_text,
    percent_interval,
    prefixed,
    probability,
    significant,
)
from superblock.reporting.pages.pictures import COLOURS
from superblock.reporting.pages.stages import stages
from superblock.reporting.shelf import Shelf

VOID = {"meta", "link", "br", "img", "hr"}


class Page(HTMLParser):
    """Checks that elements close in order, and keeps texts, tags and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.texts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.texts.append(data)

    def count(self, tag: str) -> int:
        return sum(one == tag for one, _ in self.tags)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    for name, make in example_report.VARIANTS.items():
        render(make(), folder / name)
    return {name: folder / name for name in example_report.VARIANTS}


@pytest.fixture(scope="module", params=list(example_report.VARIANTS))
def variant(request: pytest.FixtureRequest, rendered: dict[str, Path]) -> Path:
    return rendered[request.param]


def test_html_is_well_formed_and_headings_are_in_order(variant: Path) -> None:
    page = Page((variant / "index.html").read_text())
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h\d", tag)]
    assert levels == [1] + [2] * 14
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    assert dict(page.tags)["html"] == {"lang": "en"}


def test_every_picture_has_words_and_is_a_file(variant: Path) -> None:
    page = Page((variant / "index.html").read_text())
    drawn = [attributes for tag, attributes in page.tags if attributes.get("role") == "img"]
    files = sorted(variant.glob("*.svg"))
    assert len(drawn) == page.count("svg") == len(files)
    assert all(re.search(r"\d", one["aria-label"] or "") for one in drawn)
    text = (variant / "report.md").read_text()
    for file in files:
        assert xml.parse(file).getroot().tag.endswith("svg")
        assert f"]({file.name})" in text


def test_nothing_is_fetched(variant: Path) -> None:
    page = Page((variant / "index.html").read_text())
    for tag, attributes in page.tags:
        assert tag not in ("img", "iframe", "object", "image")
        assert "src" not in attributes
        if tag == "link":
            assert attributes["href"] == "data:,"
    assert "@import" not in (variant / "index.html").read_text()
    assert "http-equiv" in (variant / "index.html").read_text()


def test_equal_reports_give_equal_bytes(rendered: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "old.svg").write_text("<svg/>")
    render(example_report.full(), tmp_path)
    again = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert again == {path.name: path.read_bytes() for path in rendered["full"].iterdir()}


def numbers(report: Report) -> set[str]:
    """Every number of a report as it should be read."""
    found: set[str] = set()
    for group in report.groups:
        for metric, measure in group.measures.items():
            found |= {metric_text(metric, value) for value in (measure.mean, *(one.value for one in measure.values))}
            found |= {f"[{metric_text(metric, measure.low or 0)}, {metric_text(metric, measure.high or 0)}]"}
        for value in (group.parameters, group.active_parameters, group.training_tokens):
            found.add(count(value or 0))
        found |= {prefixed(group.flops or 0), *(fixed(value, 4) for value in group.references.values())}
        found |= {fixed(one.value, 4) for one in group.predicted if one.metric == "bits_per_byte"}
        found |= {significant(curve.mean[-1], 4) for curve in group.curves}
        found |= {fixed(one.bits_per_byte.mean, 4) for one in group.exits}
        found |= {fixed(one.load_entropy, 4) for one in group.experts}
        found |= {fixed(100 * one.min_load, 1) for one in group.experts}
        for part in (*group.positions, *group.packages):
            assert part.accuracy
            found |= {part.name, fixed(part.bits_per_byte.mean, 3), fixed(100 * part.accuracy.mean, 1)}
        for one in group.statements:
            found |= {one.measured, one.asked, one.because}
    for change in report.changes:
        if change.relative is not None:
            value, _, interval = percent_interval(change.relative, change.low, change.high).partition(" [")
            found |= {value, interval, probability(change.p_adjusted), probability(change.p), change.words}
    for history in report.histories:
        found |= {history.words, *(metric_text(history.metric, point.value) for point in history.points)}
    for row in report.probes:
        found |= {fixed(100 * row.score.mean, 1), fixed(100 * row.chance, 1), row.published or ""}
        found |= {fixed(100 * level.mean, 1) for level in row.levels.values()}
    for case in report.speed:
        found |= {case.case, significant(case.milliseconds), f"{case.ratio:.2f}x"}
    for ablation in report.ablations:
        found |= {fixed(ablation.mean, 4, sign=True), probability(ablation.p_adjusted), ablation.words}
    for one in report.harness:
        found |= {one.task, one.metric, significant(one.value, 4), str(one.examples), one.run}
    for source in report.sources:
        found |= {
            source.name,
            source.command,
            source.commit[:12],
            source.fingerprint,
            source.data_digest,
            source.hardware,
        }
    return found | set(report.problems) | {report.verdict_words, report.title}


def test_every_number_is_there(rendered: dict[str, Path]) -> None:
    report = example_report.full()
    wanted = numbers(report)
    assert len(wanted) > 350
    text = Page((rendered["full"] / "index.html").read_text()).text
    assert [one for one in wanted if one not in text] == []
    written = (rendered["full"] / "report.md").read_text()
    read = re.sub(r"\\([\\`*_\[\]~|#!])", r"\1", written).replace("&lt;", "<").replace("&gt;", ">")
    assert [one for one in wanted if one not in read] == []


def test_every_run_can_be_found_and_is_linked(rendered: dict[str, Path]) -> None:
    page = Page((rendered["full"] / "index.html").read_text())
    linked = {attributes.get("href") for tag, attributes in page.tags if tag == "a"}
    for source in example_report.full().sources:
        assert f"#{anchor(source.name)}" in linked
        assert source.mlflow is None or f"http://127.0.0.1:5000{source.mlflow}" in linked


def test_a_baseline_that_is_missing_is_told(rendered: dict[str, Path]) -> None:
    assert "superblock report pin=true" in Page((rendered["no_baseline"] / "index.html").read_text()).text
    assert "superblock report pin=true" in (rendered["no_baseline"] / "report.md").read_text()


@pytest.mark.parametrize("name", ["full", "minimal", "no_baseline"])
def test_commands_can_be_typed_in_every_folder(rendered: dict[str, Path], name: str) -> None:
    """`python -m platform.run` is for the root of the repository, and a report is read elsewhere."""
    for file in ("index.html", "report.md"):
        assert "python -m platform" not in (rendered[name] / file).read_text()


def test_what_was_not_measured_names_its_command(rendered: dict[str, Path]) -> None:
    page = Page((rendered["minimal"] / "index.html").read_text())
    assert page.count("table") == page.count("svg") == 0
    for word in (
        "suite=probes",
        "suite=speed",
        "suite=language",
        "suite=growth",
        "superblock run",
        "generate run=mvp1",
        "schedule.cron",
    ):
        assert word in page.text
    assert sum(attributes.get("class") == "missing" for _, attributes in page.tags) == 13


def test_bars_of_an_ablation_are_blue_by_its_verdict(
    rendered: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interval without zero that Holm's correction does not confirm is no difference."""
    drawn: list[charts.Bar] = []
    monkeypatch.setattr(charts, "intervals", lambda bars, title: drawn.extend(bars))
    for block in ablations(example_report.full()).blocks:
        if isinstance(block, Picture):
            block.draw()
    assert [(bar.name, bar.colour == COLOURS[0]) for bar in drawn if "prenorm" in bar.name] == [
        ("literal less prenorm", False), ("ungated less prenorm", False),
    ]  # fmt: skip
    assert sum(bar.colour == COLOURS[0] for bar in drawn) == 3
    text = Page((rendered["full"] / "index.html").read_text()).text
    assert "Trained for 300 steps for each arm, equal steps, not equal FLOPs." in text
    assert "equal budget of FLOPs" not in text


def test_tasks_of_the_harness_are_shown_with_what_guessing_reaches(rendered: dict[str, Path], tmp_path: Path) -> None:
    text = Page((rendered["full"] / "index.html").read_text()).text
    assert re.search(r"superblock_brackets source acc 0\.7412 ± 0\.022 0\.333 300 mvp4", text)
    assert re.search(r"superblock_text source bits_per_byte 1\.615 7 a part of the task mvp4", text)
    alone = replace(example_report.full(), groups=(), changes=(), histories=())
    render(alone, tmp_path)
    text = Page((tmp_path / "index.html").read_text()).text
    assert "The language suite was not run." in text and "superblock_brackets" in text


def test_runs_that_were_held_to_no_gate_are_named(tmp_path: Path) -> None:
    """Silence about a run is no pass."""
    report = example_report.full()
    first = replace(report.groups[0], statements=tuple(one for one in report.groups[0].statements if one.seed != 3))
    render(replace(report, groups=(first,)), tmp_path / "one")
    text = Page((tmp_path / "one" / "index.html").read_text()).text
    assert "Every gate that was measured was passed." in text and "Every gate of every run" not in text
    assert f"Not held to any gate: {first.runs[2]}" in text
    render(replace(report, groups=report.groups[:1]), tmp_path / "all")
    text = Page((tmp_path / "all" / "index.html").read_text()).text
    assert "Every gate of every run was passed." in text and "Not held" not in text


def test_claims_that_are_open_take_a_line_each(tmp_path: Path) -> None:
    """However many stages and runs they concern; with one command, as code, and no reason of what did not fail."""
    report = example_report.full()
    groups = tuple(
        replace(group, statements=tuple(
            replace(one, verdict="undecided", measured=f"0 of 3 pairs; for another: superblock run stage={group.stage} seed=1 --multirun")
            if (one.kind, one.seed) in (("claim", 2), ("claim", 3)) else one
            for one in group.statements
        ))
        for group in report.groups
    )  # fmt: skip
    section = gates(replace(report, groups=groups))
    [claims] = [block.items for block in section.blocks if isinstance(block, Points) and block.tone == "unsure"]
    assert len(claims) == 1 and "Whoever plans" not in claims[0]
    assert "in mvp1 (2 of 3 runs), mvp2 (2 of 3 runs)" in claims[0]
    assert claims[0].count("`superblock run stage=mvp1 seed=1`") == claims[0].count("superblock run") == 1
    [failed] = [block.items for block in section.blocks if isinstance(block, Points) and block.tone == "bad"]
    assert len(failed) == 1 and "An expert that no token" in failed[0]
    cells = [table.rows[0][1].text for table in section.blocks if isinstance(table, Table)]
    assert cells == ["\u2713 3 of 3", "? 1 held, 2 undecided"]


def test_predictions_have_a_row_per_stage(rendered: dict[str, Path]) -> None:
    report = example_report.full()
    predicted = [group for group in report.groups if group.predicted]
    [table] = [block for block in stages(report).blocks if isinstance(block, Table) and "Predicted" in block.caption]
    assert len(table.rows) == len(predicted) and "80 % interval" in table.caption
    one = predicted[0].predicted[0]
    assert table.rows[0][1].note.endswith(f", {one.inside} of {one.seeds} inside")


def test_the_same_runs_are_told(tmp_path: Path) -> None:
    report = replace(example_report.full(), changes=(), same_runs=("mini/mvp1/default", "mini/mvp2/default"))
    render(report, tmp_path)
    assert "2 groups are the very same runs as in the baseline" in Page((tmp_path / "index.html").read_text()).text


def test_rows_over_several_stages_lead_to_no_single_one() -> None:
    report = example_report.full()
    for groups, linked in ((report.groups, False), (report.groups[:1], True)):
        tables = [
            one for block in language(replace(report, groups=groups, harness=())).blocks
            for one in (block.blocks if isinstance(block, Fold) else (block,)) if isinstance(one, Table)
        ]  # fmt: skip
        assert len(tables) == 2
        assert all(bool(row[0].runs) == linked and row[-1].runs for table in tables for row in table.rows)


def test_names_of_near_references_stay_apart() -> None:
    """At the right end, where the best models are far below; the lower one of two below its line."""
    line = charts.Line("mvp1", (charts.Dot(1e6, 1.5, 1.2, 1.8),), "#000000")
    made = charts.lines([line], "parameters", "bits per byte", logarithmic=True, references=(("a", 1.6), ("b", 1.61)))
    [axes] = made.axes
    texts = {one.get_text(): one for one in axes.texts}
    assert all(one.get_ha() == "right" for one in texts.values())
    assert (texts["a"].get_va(), texts["b"].get_va()) == ("top", "bottom")


def test_a_history_of_few_points_is_not_steady() -> None:
    report = example_report.full()
    steady = report.histories[0]
    for length, state in ((1, "… too short"), (MINIMUM_LENGTH - 1, "… too short"), (MINIMUM_LENGTH, "= steady")):
        short = replace(steady, points=steady.points[:length])
        page = _histories(report, [short])
        assert page.rows[0][1].text == state


def test_models_trained_at_a_depth_are_kept_apart_by_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[charts.Line] = []
    monkeypatch.setattr(charts, "lines", lambda series, *rest, **more: drawn.extend(series))
    report = example_report.full()
    deep = report.groups[-1]
    point = deep.exits[0]
    assert point.trained
    worse = replace(point, trained=replace(point.trained, mean=2.5, low=2.4, high=2.6))
    other = replace(deep, key="mini/mvp4/other", arm="other", exits=(worse, *deep.exits[1:]))
    for groups in ((deep, other), (deep,)):
        drawn.clear()
        for block in exits(replace(report, groups=groups)).blocks:
            if isinstance(block, Picture):
                block.draw()
        dots = [line.dots[0].y for line in drawn if line.name.startswith("trained at that depth")]
        assert dots == ([point.trained.mean, 2.5] if len(groups) == 2 else [point.trained.mean])


def test_one_seed_shows_no_interval(rendered: dict[str, Path]) -> None:
    text = Page((rendered["one_seed"] / "index.html").read_text()).text
    assert "1.6538" in text
    assert "not enough seeds" in text.lower()


def test_strangers_words_stay_words(rendered: dict[str, Path]) -> None:
    text = (rendered["hostile"] / "index.html").read_text()
    page = Page(text)
    assert page.count("script") == 1
    assert "<script>alert" not in text
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert not (attributes.get("href") or "").lower().startswith("javascript")
    assert "<script>alert(1)</script>" in page.text
    assert not re.search(r"[\x00-\x08\x1b\u202e]", text)
    for file in rendered["hostile"].glob("*.svg"):
        assert not [one for one in xml.parse(file).iter() if one.tag.endswith("script")]


def test_markdown_tables_have_equal_rows_and_no_html_of_strangers(variant: Path) -> None:
    text = (variant / "report.md").read_text()
    unfenced = re.sub(r"(?ms)^(`{3,})text\n.*?^\1$", "", text)
    plain = re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", unfenced)
    assert "<script" not in plain
    widths: list[int] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            widths.append(len(re.findall(r"(?<!\\)\|", line)))
        elif widths:
            assert len(set(widths)) == 1, line
            assert len(widths) >= 3
            widths = []
    assert set(re.findall(r"<(/?\w+)", plain)) <= {"a", "/a", "details", "/details", "summary", "/summary"}


def test_numbers_are_readable() -> None:
    assert [count(value) for value in (950, 999_600, 4_524_000, 235_366_983_936, 2048.5)] == [
        "950",
        "1.00 M",
        "4.52 M",
        "235 B",
        "2.05 k",
    ]
    assert [prefixed(value) for value in (6.13e13, 0, 1e27)] == ["61.3 T", "0", "1,000 Y"]
    assert [significant(value) for value in (0.04213, 3.14159, 1240.0, 2e-9)] == [
        "0.0421",
        "3.14",
        "1,240",
        "2.00e\u221209",
    ]
    assert fixed(-0.00001, 2) == "0.00"
    assert percent_interval(-0.0183, -0.0221, -0.0141) == "\u22121.8 % [\u22122.2, \u22121.4]"
    assert percent_interval(0.0017, None, None) == "+0.17 %"
    assert [probability(value) for value in (None, 0.0004, 0.0456)] == ["", "< 0.001", "0.046"]


def test_escaping() -> None:
    assert str(html_words("a `b<` <c>")) == "a <code>b&lt;</code> &lt;c&gt;"
    assert str(html_words("`run --x a=<`")) == '<code>run <span class="option">--x</span> a=&lt;</code>'
    assert str(markdown("a|b\n* [x](y) <z> 1_2")) == r"a\|b \* \[x\](y) &lt;z&gt; 1\_2"
    assert str(markdown("- not a list")) == r"\- not a list"
    assert str(markdown_code("a`b|c")) == r"`` a`b\|c ``"
    assert str(markdown_words("type `run` now")) == "type `run` now"
    assert str(markdown_fence("a\n```\nb")) == "````text\na\n```\nb\n````"
    assert anchor("a-b") == "source-a-b"
    assert anchor("A b") != anchor("a-b") != anchor("a b")


def test_the_index_lists_the_newest_first_and_marks_the_baseline(tmp_path: Path) -> None:
    old = example_report.no_baseline()
    new = replace(example_report.hostile(), time=old.time + 60)
    for report in (old, new):
        write_report(report, tmp_path / report.name)
    Shelf(tmp_path).pin(old.name)
    render_index(tmp_path)
    first = {path.name: path.read_bytes() for path in tmp_path.glob("index.*")}
    render_index(tmp_path)
    assert first == {path.name: path.read_bytes() for path in tmp_path.glob("index.*")}
    page = Page(first["index.html"].decode())
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == ["hostile/index.html", "first/index.html"]
    assert page.text.count("pinned baseline") == 1
    assert "Regressed" in page.text and "New" in page.text
    lines = first["index.md"].decode().splitlines()
    assert "(pinned baseline)" in next(line for line in lines if "first/report.md" in line)
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("|")} == {7}


def test_an_empty_index_says_how_to_begin(tmp_path: Path) -> None:
    render_index(tmp_path)
    assert "superblock report" in (tmp_path / "index.html").read_text()
    assert "superblock report" in (tmp_path / "index.md").read_text()


def test_every_rule_of_the_style_closes(rendered: dict[str, Path]) -> None:
    style = (rendered["minimal"] / "index.html").read_text().split("<style>")[1].split("</style>")[0]
    depths = [0]
    for sign in re.sub(r"[^{}]", "", style):
        depths.append(depths[-1] + (1 if sign == "{" else -1))
    assert (depths[-1], max(depths)) == (0, 2), "a rule stands within a media query at most"


def test_pages_stay_small(rendered: dict[str, Path]) -> None:
    assert (rendered["full"] / "index.html").stat().st_size < 2_000_000
