"""`superblock generate`: continue a text with a trained model."""

from superblock.cli.app import launch
from superblock.config.run import GenerateConfig


def main() -> None:
    launch("generate", run)


def run(config: GenerateConfig) -> None:
    """Writes what the model makes of the prompt."""
    from superblock.generation.command import generate

    generate(config)
