"""`superblock ui`: open MLflow on the runs of this folder."""

from superblock.cli.app import launch, say
from superblock.config.run import UiConfig


def main() -> None:
    launch("ui", run)


def run(config: UiConfig) -> None:
    """Serves until interrupted."""
    say(f"ui: starting MLflow on port {config.tracking.port}")
    from superblock.tracking.server import serve

    serve(config.tracking)
