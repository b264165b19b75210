"""`superblock plan`: count a model's parameters, FLOPs and bytes without building it."""

from superblock.cli.app import launch
from superblock.config.run import PlanConfig


def main() -> None:
    launch("plan", run)


def run(config: PlanConfig) -> None:
    """Prints the counts as tables."""
    from superblock.planning.plan import show

    show(config)
