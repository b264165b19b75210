"""`superblock generate`: continue a text with a trained model."""

from superblock.cli.app import launch, say
from superblock.config.run import GenerateConfig


def main() -> None:
    launch("generate", run)


def run(config: GenerateConfig) -> None:
    """Writes what the model makes of the prompt."""
    say(f"generate: looking for run {config.run}")
    from superblock.generation.session import generate

    generate(config)
