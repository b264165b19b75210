"""A process that runs two small stages to their promotion, for a test that kills it: `python pipeline_worker.py <words>`."""

import sys

from superblock.cli.app import compose_run
from superblock.staging.pipeline import run_stages

GATES = ("finite_loss", "no_dead_experts", "growth_exact")


def main() -> int:
    """Exit status of the pipeline."""
    configs = [compose_run([f"stage={stage}", *sys.argv[1:]]) for stage in ("mvp1", "mvp2")]
    for config in configs:
        config.stage.gates = {name: config.stage.gates[name] for name in GATES if name in config.stage.gates}
        config.stage.claims = {}
    return run_stages(configs, compose=compose_run, say=lambda text: print(text, flush=True))


if __name__ == "__main__":
    sys.exit(main())
