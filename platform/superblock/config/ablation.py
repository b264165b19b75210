"""What suite=ablation trains: a sweep file, and what the command line changes of it."""

from collections.abc import Iterator
from dataclasses import dataclass

from superblock.config.fields import knob

SWEEPS = ("wiring", "mixers", "mtp", "experts", "optimizer", "growth", "eigenvalues")
"""Sweep files that are shipped."""


@dataclass
class AblationConfig:
    """Arms that are compared seed by seed at an equal budget; the format of the file is in benchmarks/ablation/sweep_file.py."""

    file: str | None = knob(
        None,
        f"sweep file: {', '.join(SWEEPS)} (conf/ablation), or the path of your own",
    )
    arms: list[str] = knob(
        list,
        "arms beside those of the file, each a name and the overrides of `run` that make it, as in "
        '\'ablation.arms=["adamw:","muon: optim=muon"]\'',
    )
    reference: str | None = knob(
        None, "arm that the others are compared with; null is what the file says, or the first"
    )
    stages: list[str] = knob(list, "stages whose depth is trained from scratch; [] is what the file says, or [mvp1]")
    seeds: list[int] = knob(
        list, "seeds of every arm; [] is what the file says, or [1,2,3]", minimum=0, maximum=2**31 - 1
    )
    budget: str | None = knob(
        None,
        "what every arm may cost: '20 TFLOP' or '120 steps of the reference' are equal FLOPs, '300 steps' and '1M tokens' equal "
        "steps and tokens; null is what the file says, or 120 steps of the reference",
    )
    overrides: str = knob(
        "", "overrides of `run` that every arm has beside those of the file, as in 'data=text data.path=notes'"
    )
    parent_share: float | None = knob(
        None,
        "share of the budget that the parent of a grown arm (parent=mvp1) costs; null is what the file says, or 0.4",
        above=0,
        maximum=0.95,
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        if len(set(self.seeds)) < len(self.seeds):
            yield "seeds", "must name each seed once"
        for arm in self.arms:
            if ":" not in arm:
                yield "arms", f"{arm}: must be a name, a colon and overrides, as in 'muon: optim=muon'"
        if len(set(self.stages)) < len(self.stages):
            yield "stages", "must name each stage once"
