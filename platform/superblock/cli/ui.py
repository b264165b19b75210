"""`superblock ui`: open MLflow on the runs of this folder."""

import sys

from superblock.cli.app import launch
from superblock.config.run import UiConfig


def main() -> None:
    launch("ui", run)


def run(config: UiConfig) -> None:
    """Serves until interrupted."""
    from superblock.tracking.server import serve

    if status := serve(config.tracking):
        sys.exit(status)
