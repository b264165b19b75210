"""A saved chart view of MLflow: what its experiment page shows when it is opened at the view's address.

A view is a tag of the experiment that holds the page's own state. MLflow makes such tags when a user shares a view, but
documents neither the tag nor the state, so what is written here was read from the pages of the versions in `TESTED` and
is used with those alone; a test opens it in a browser. Nothing here needs MLflow.
"""

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal
from urllib.parse import quote, urlencode
from uuid import NAMESPACE_URL, uuid5

TESTED = ((3, 17), (3, 18))
"""Versions of the server whose pages understand a view: from the first on, before the second."""
TAG_PREFIX = "mlflow.sharedViewState."
LONGEST_TAG = 20_000
"""What MLflow takes as the value of an experiment's tag."""
CARD_HEIGHT = 320
"""Pixels of a chart; MLflow's own 360 leave no room for two rows on a laptop's screen."""

Kind = Literal["bar", "line", "scatter"]


@dataclass(frozen=True)
class Chart:
    """One chart of a view."""

    kind: Kind
    metrics: tuple[str, ...]
    """What is drawn; of a scatter, the vertical axis. The page has their names as the chart's title, and takes no other."""
    over: str = "step"
    """Horizontal axis of a line or a scatter: the step, or a metric that is recorded at the same steps."""
    span: tuple[float, float] | None = None
    """Ends of a line's vertical axis; without them the page begins it at 0, where curves cannot be told apart."""

    def needs(self) -> tuple[str, ...]:
        """Metrics without which the chart would be empty."""
        return self.metrics if self.over == "step" else (*self.metrics, self.over)


@dataclass(frozen=True)
class Section:
    """A foldable group of charts."""

    name: str
    charts: tuple[Chart, ...]
    columns: int = 3


@dataclass(frozen=True)
class View:
    """A page of charts."""

    key: str
    """Part of its address."""
    name: str
    search: str
    """Filter of runs in MLflow's search language."""
    group_by: tuple[str, ...]
    """Tags; runs that have all of them equal are averaged, and drawn with the band of their extremes."""
    sections: tuple[Section, ...]
    order_by: str = "attributes.start_time"
    """What the list of runs is sorted by; by time, the newest is first."""

    @property
    def tag(self) -> str:
        """The experiment's tag that holds the view."""
        return TAG_PREFIX + self.key


def is_tested(version: str) -> bool:
    """Whether pages of this version of MLflow are known to understand a view."""
    parts = version.split(".")[:2]
    return all(part.isdigit() for part in parts) and TESTED[0] <= tuple(int(part) for part in parts) < TESTED[1]


def address(base: str, experiment_id: str, view: View) -> str:
    """Where a view is opened. Without `workflowType` MLflow may show the page for chat applications instead."""
    query = {"viewStateShareKey": view.key, "compareRunsMode": "CHART", "workflowType": "machine_learning"}
    return f"{base}/#/experiments/{quote(experiment_id)}/runs?{urlencode(query)}"


def encode(view: View, now: int) -> str:
    """The tag's value.

    Charts are left out from the end of the last section if the view is longer than MLflow takes.

    Args:
        now: milliseconds since 1970, shown as the time of the last change.
    """
    text = _pack(view, now)
    while len(text) > LONGEST_TAG:
        view = replace(view, sections=_without_last_chart(view.sections))
        text = _pack(view, now)
    return text


def decode(value: str) -> dict[str, Any]:
    """The page's state in a tag's value; empty if it is not one."""
    try:
        packed = json.loads(value)["state"].removeprefix("deflate;")
        state = json.loads(zlib.decompress(base64.b64decode(packed)))
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error):
        return {}
    return state if isinstance(state, dict) else {}


def state(view: View) -> dict[str, Any]:
    """The state of MLflow's page. What is not about charts has the page's own defaults."""
    sections, charts = [], []
    for section in view.sections:
        identity = _identity(view.key, section.name)
        sections.append(_section(identity, section))
        charts += [_chart(_identity(identity, str(number)), identity, c) for number, c in enumerate(section.charts)]
    groups = [{"mode": "tag", "groupByData": tag} for tag in view.group_by]
    return {
        "searchFilter": view.search,
        "orderByKey": view.order_by,
        "orderByAsc": view.order_by != "attributes.start_time",
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": ["attributes.`Source`", "attributes.`Models`", "attributes.`Dataset`"],
        "runsHiddenMode": "SHOW_ALL",  # the page's own choice hides all but the ten newest runs
        "runsHidden": [],
        "runsVisibilityMap": {},
        "runsPinned": [],
        "runsExpanded": {},
        "groupsExpanded": {},
        "groupBy": {"aggregateFunction": "average", "groupByKeys": groups} if groups else None,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "autoRefreshEnabled": True,
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,  # else the page sorts the sections by name
        "compareRunSections": sections,
        "compareRunCharts": charts,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def _pack(view: View, now: int) -> str:
    packed = base64.b64encode(zlib.compress(json.dumps(state(view)).encode(), 9)).decode()
    return json.dumps({"name": view.name, "createdAt": now, "updatedAt": now, "state": f"deflate;{packed}"})


def _without_last_chart(sections: Sequence[Section]) -> tuple[Section, ...]:
    *before, last = sections
    shorter = replace(last, charts=last.charts[:-1])
    return (*before, shorter) if shorter.charts else tuple(before)


def _identity(*words: str) -> str:
    """Equal for equal words, so that a view without changes has an equal state."""
    return str(uuid5(NAMESPACE_URL, "superblock/" + "/".join(words)))


def _section(identity: str, section: Section) -> dict[str, Any]:
    return {
        "uuid": identity, "name": section.name, "display": True, "deleted": False, "isReordered": True,
        "isGenerated": False, "columns": section.columns, "cardHeight": CARD_HEIGHT,
    }  # fmt: skip


def _chart(identity: str, section: str, chart: Chart) -> dict[str, Any]:
    common = {
        "uuid": identity, "metricSectionId": section, "type": chart.kind.upper(), "deleted": False, "isGenerated": False,
    }  # fmt: skip
    if chart.kind == "scatter":
        axes = {"xaxis": chart.over, "yaxis": chart.metrics[0]}
        return (
            common | {name: {"key": key, "type": "METRIC"} for name, key in axes.items()} | {"runsCountToCompare": 100}
        )
    common |= {"metricKey": chart.metrics[0], "selectedMetricKeys": list(chart.metrics)}
    if chart.kind == "bar":
        return common
    axis = {"xAxisKey": "step", "selectedXAxisMetricKey": ""}
    if chart.over != "step":
        axis = {"xAxisKey": "metric", "selectedXAxisMetricKey": chart.over}
    span = {} if chart.span is None else {"yMin": chart.span[0], "yMax": chart.span[1]}
    return common | axis | {
        "useGlobalXaxisKey": False, "useGlobalLineSmoothing": True, "lineSmoothness": 0, "scaleType": "linear",
        "xAxisScaleType": "linear", "range": span, "yAxisKey": "metric", "yAxisExpressions": [], "ignoreOutliers": False,
    }  # fmt: skip
