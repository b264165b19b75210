"""What a sweep file and the command line describe together: arms, depths, seeds and an equal budget."""

import re
import shlex
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from superblock.benchmarks.ablation.budget import ArmBudget
from superblock.benchmarks.ablation.sweep_file import OF_THE_SWEEP, STAGES, Arm, Reader, key_of
from superblock.config.ablation import AblationConfig
from superblock.config.fields import ConfigError, closest

DEFAULTS: dict[str, Any] = {
    "stages": ["mvp1"], "seeds": [1, 2, 3], "budget": "120 steps of the reference", "parent_share": 0.4,
}  # fmt: skip


@dataclass(frozen=True)
class Sweep:
    """A whole sweep, checked as far as it can be without composing a configuration."""

    title: str
    stem: str
    """Name of the file without its ending; empty without a file."""
    source: str
    """What errors call it."""
    reference: str
    stages: tuple[str, ...]
    scale: str | None
    seeds: tuple[int, ...]
    budget_words: str
    overrides: tuple[str, ...]
    parent_share: float
    arms: tuple[Arm, ...]

    @property
    def budget(self) -> ArmBudget:
        return ArmBudget.parse(self.budget_words, f"{self.source}: budget")

    def words(self, arm: Arm) -> tuple[str, ...]:
        """The arm's overrides behind those of every arm, which give way to it."""
        own = {key_of(word) for word in arm.words}
        return (*(word for word in self.overrides if key_of(word) not in own), *arm.words)

    def as_config(self) -> AblationConfig:
        """The sweep as it would be typed without a file: what the experiment is known by."""
        arms = [f"{arm.name}: {shlex.join(arm.words)}" for arm in self.arms]
        return AblationConfig(
            file=self.stem or None, arms=arms, reference=self.reference, stages=list(self.stages), seeds=list(self.seeds),
            budget=self.budget_words, overrides=shlex.join(self.overrides), parent_share=self.parent_share,
        )  # fmt: skip


def shipped() -> dict[str, Any]:
    """The sweep files that come with the package, by name."""
    folder = files("superblock.conf").joinpath("ablation")
    found = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    return {file.name.removesuffix(".yaml"): file for file in found}


def read_sweep(config: AblationConfig) -> Sweep:
    """The sweep that the file and the command line describe; the command line counts where both say something.

    Raises:
        ConfigError: naming the file, the arm and the key, and what would be right.
    """
    text, source, stem = _text(config.file)
    content = Reader(source).sweep(text)
    given = {"reference": config.reference, "stages": config.stages, "seeds": config.seeds, "budget": config.budget,
             "parent_share": config.parent_share}  # fmt: skip
    content = {**DEFAULTS, **content, **{key: value for key, value in given.items() if value not in (None, [])}}
    arms: list[Arm] = content.get("arms", [])
    typed = [Reader("ablation").arm(*_halves(arm)) for arm in config.arms]
    for arm in typed:
        if any(arm.name == other.name for other in arms):
            raise ConfigError(f"ablation.arms.{arm.name}: {source} has an arm of this name; choose another")
    arms = [*arms, *typed]
    if len(arms) < 2:
        raise ConfigError(f"{source}: arms: there must be at least two, the reference and what is compared with it")
    everywhere = Reader("ablation").words(config.overrides, "overrides", OF_THE_SWEEP)
    sweep = Sweep(
        title=_title(text) if text else "arms of the command line",
        stem=stem,
        source=source,
        reference=content.get("reference", arms[0].name),
        stages=tuple(content["stages"]),
        scale=content.get("scale"),
        seeds=tuple(content["seeds"]),
        budget_words=content["budget"],
        overrides=(*content.get("overrides", ()), *everywhere),
        parent_share=content["parent_share"],
        arms=tuple(arms),
    )
    _check(sweep)
    return replace(sweep, arms=tuple(sorted(sweep.arms, key=lambda arm: arm.name != sweep.reference)))


# -- the file -----------------------------------------------------------------------------------------------------


def _text(file: str | None) -> tuple[str, str, str]:
    """(content, what errors call it, its stem); nothing without a file."""
    if file is None:
        return "", "ablation", ""
    known = shipped()
    if file in known:
        return known[file].read_text(encoding="utf-8"), f"{file}.yaml", file
    path = Path(file).expanduser()
    if not path.is_file():
        hint = f"; did you mean {close[0]}?" if (close := closest(file, known)) else ""
        raise ConfigError(f"ablation.file={file}: is no file, and none of {', '.join(known)}{hint}")
    stem = re.sub(r"[^A-Za-z0-9._-]", "-", path.stem).strip("-._")[:16]
    try:
        return path.read_text(encoding="utf-8"), str(path), stem
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"ablation.file={file}: cannot be read: {error}") from None


def _halves(arm: str) -> tuple[str, str]:
    """`muon: optim=muon` as a name and overrides."""
    name, _, words = arm.partition(":")
    return name.strip(), words.strip()


def _title(text: str) -> str:
    first = text.lstrip().partition("\n")[0]
    return first.lstrip("# ").strip() if first.startswith("#") else ""


def _check(sweep: Sweep) -> None:
    """What file and command line must say together."""
    names = [arm.name for arm in sweep.arms]
    if sweep.reference not in names:
        hint = f"; did you mean {close[0]}?" if (close := closest(sweep.reference, names)) else ""
        raise ConfigError(f"{sweep.source}: reference: {sweep.reference}: is none of the arms {', '.join(names)}{hint}")
    for stage in sweep.stages:
        if stage not in STAGES:
            raise ConfigError(f"{sweep.source}: stages: {stage}: must be one of {', '.join(STAGES)}")
    for key in ("stages", "seeds"):
        if not getattr(sweep, key):
            raise ConfigError(f"{sweep.source}: {key}: []: must name at least one")
    for seed in sweep.seeds:
        if not 0 <= seed < 2**31:
            raise ConfigError(f"{sweep.source}: seeds: {seed}: must be at least 0 and below 2**31")
    assert sweep.budget.amount > 0  # parsing it raises what is wrong with it
