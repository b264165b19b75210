"""A picture of the comparison that `ui` prints, for the README and for whoever looks after it.

    python -m superblock.reporting.mlflow_picture mlflow.png
    python -m superblock.reporting.mlflow_picture mlflow.png 1600 1240 tracking.port=5001

Serves `mlflow.db` of the current folder while the picture is taken. Width and height in pixels. It needs an installed
Chromium, and playwright to drive it.
"""

import sys
import time
from pathlib import Path
from typing import Any

from superblock.config.fields import ConfigError
from superblock.config.tracking import TrackingConfig
from superblock.reporting.pages.screenshot import BROWSERS, find_browser, load_playwright
from superblock.tracking import views
from superblock.tracking.publish import publish
from superblock.tracking.server import HOST, running_server
from superblock.tracking.store import database_path, find_experiment, store_uri

PORT = "tracking.port="
WAIT = 240.0
"""Longest wait for the charts, seconds."""
DRAWN = ".js-plotly-plot .main-svg"
SAYS_ONCE = {
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "mlflow.assistant.panelOpen_v1": "false",
}
"""What MLflow's page keeps in a browser: a panel for questions, which covers a third of the page, was seen and closed."""


def take(picture: Path, config: TrackingConfig, *, width: int = 1600, height: int = 1240) -> None:
    """Serves the store, opens its first comparison and writes what it shows.

    Raises:
        ConfigError: if there is nothing to compare, or something that is needed is missing; says what to do.
    """
    start, browser = load_playwright(), find_browser()
    if browser is None:
        raise ConfigError(f"no Chromium found: install one of {', '.join(BROWSERS)}, or name its file in CHROMIUM")
    uri = store_uri(config)
    database = database_path(uri) if uri else None
    experiment = find_experiment(database, config.experiment) if database and database.exists() else None
    if uri is None or experiment is None:
        raise ConfigError(f"{uri}: no experiment {config.experiment} is recorded there yet")
    base = f"http://{HOST}:{config.port}"
    with running_server(uri, config.port, print) as server:
        found = publish(base, experiment, print) if server else []
        if not found:
            raise ConfigError("no comparison can be shown; see above")
        with start() as engine:
            opened = engine.chromium.launch(executable_path=browser, args=["--no-sandbox"])
            try:
                tab = opened.new_page(viewport={"width": width, "height": height})
                show(tab, views.address(base, experiment, found[0]))
                tab.screenshot(path=str(picture))
            finally:
                opened.close()


def show(tab: Any, address: str, wait: float = WAIT) -> int:
    """Opens a comparison in a browser's tab, without the page's own notices, until no further chart appears.

    Args:
        tab: playwright's page.
        wait: seconds.

    Returns:
        How many charts are drawn.
    """
    notices = "".join(f"localStorage.setItem('{key}', '{value}');" for key, value in SAYS_ONCE.items())
    tab.add_init_script(f"try {{ {notices} }} catch {{}}")
    tab.goto(address, timeout=wait * 1000)
    tab.wait_for_selector(DRAWN, timeout=wait * 1000)
    close = tab.get_by_role("alert").get_by_role("button", name="Close")
    if close.count():
        close.first.click()
    before, since, deadline = -1, time.monotonic(), time.monotonic() + wait
    while time.monotonic() - since < 3 and time.monotonic() < deadline:
        if (drawn := tab.locator(DRAWN).count()) != before:
            before, since = drawn, time.monotonic()
        tab.wait_for_timeout(200)
    return before


def main(words: list[str]) -> int:
    """The command: the picture, and what differs from 1600 x 1240 and port 5000."""
    sizes = [int(word) for word in words[1:] if word.isdecimal()]
    ports = [int(word[len(PORT) :]) for word in words[1:] if word.startswith(PORT) and word[len(PORT) :].isdecimal()]
    if not words or not words[0].endswith(".png") or len(sizes) + len(ports) != len(words) - 1 or len(sizes) > 2:
        print(__doc__, file=sys.stderr)
        return 2
    config = TrackingConfig(port=ports[0]) if ports else TrackingConfig()
    size = dict(zip(("width", "height"), sizes, strict=False))
    try:
        take(Path(words[0]).resolve(), config, **size)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"picture: {words[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
