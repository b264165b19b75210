"""A run as the registry gets it: its files, the tags it is found by, and a page that says what it is."""

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from superblock.config.run import RunConfig
from superblock.staging.statements import Statements
from superblock.tracking import registry
from superblock.tracking.files import read_json
from superblock.tracking.runs import RunRecord
from superblock.tracking.versions import PROMOTED, alias_of_seed
from superblock.training.lineage import Lineage, plain_lineage, read_lineage, total_flops
from superblock.training.manifest import describe, load_progress
from superblock.training.promoted import model_name

EXAMPLE = "def main("
"""A request, for those who look at the model's page."""
LONGEST = 4900
"""Characters of a description; a local store takes 5,000."""


@dataclass(frozen=True)
class Candidate:
    """A finished run with a whole checkpoint."""

    run: RunRecord
    config: RunConfig
    checkpoint: Path

    @property
    def model(self) -> str:
        """Name of the registered model."""
        return model_name(self.config.stage.name, self.config.scale.name)

    @property
    def aliases(self) -> tuple[str, ...]:
        return PROMOTED, alias_of_seed(self.config.seed)

    @cached_property
    def lineage(self) -> Lineage:
        return read_lineage(self.checkpoint)

    def tags(self) -> dict[str, object]:
        """What versions are found and compared by."""
        code = read_json(self.run.folder / "provenance.json").get("code", {})
        commit = code.get("commit") or "unknown"
        test = self.run.summary.get("splits", {}).get("test", {})
        return {
            "stage": self.config.stage.name,
            "scale": self.config.scale.name,
            "seed": self.config.seed,
            "run": self.run.name,
            "checkpoint": self.checkpoint.name,
            "fingerprint": self.run.fingerprint,
            "data_digest": self.run.summary.get("data_digest") or "unknown",
            "tokenizer_digest": describe(self.checkpoint / "tokenizer.json")["sha256"],
            "d_model": self.config.model.d_model,
            "superblocks": self.config.model.num_superblocks,
            "parent": self.lineage[-2].run if len(self.lineage) > 1 else "none",
            "growth": self.lineage[-1].method,
            "lineage_flops": f"{total_flops(self.lineage):.6e}",
            "code_commit": f"{commit}-dirty" if code.get("dirty") else commit,
            "test_bits_per_byte": test.get("bits_per_byte", "unknown"),
            "promotion": "promoted",
        }

    def parent_version(self, uri: str) -> int | str:
        """The version that the parent's run was registered as; `none` if it was not.

        Raises:
            StoreAway: if the store does not answer.
        """
        if len(self.lineage) < 2:
            return "none"
        parent = self.lineage[-2]
        model = model_name(parent.stage, self.config.scale.name)
        return registry.version_of_run(uri, self.config.tracking.experiment, model, parent.run) or "none"

    def register(self, statements: Statements, tags: dict[str, object], uri: str) -> int:
        """Writes the model's files beside the run's and has them registered; sweeps away what was killed before.

        Raises:
            StoreAway: if the store does not answer.
        """
        place = self.run.folder / ".tmp-promotion"
        shutil.rmtree(place, ignore_errors=True)
        try:
            release = registry.Release(
                model=self.model,
                aliases=self.aliases,
                checkpoint=self._write(place / registry.CHECKPOINT, tags),
                run_id=str(tags["mlflow_run_id"]),
                tags=tags,
                description=self._description(statements, tags),
                prompt=EXAMPLE,
            )
            return registry.register(release, uri=uri, experiment=self.config.tracking.experiment)
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _write(self, folder: Path, tags: dict[str, object]) -> Path:
        from superblock.training.checkpoint import read_weights  # these import torch
        from superblock.training.registered import write

        folder.mkdir(parents=True)
        progress = load_progress(self.checkpoint)
        known = {"step": progress["step"], "tokens_seen": progress.get("tokens_seen")}
        config, tokenizer = (self.checkpoint / name for name in ("config.json", "tokenizer.json"))
        write(
            folder,
            read_weights(self.checkpoint),
            config,
            tokenizer,
            known | tags | {"lineage": plain_lineage(self.lineage)},
        )
        return folder

    def _description(self, statements: Statements, tags: dict[str, object]) -> str:
        """Markdown."""
        config, outcomes = self.config, statements.outcomes
        route = " -> ".join(
            f"{one.superblocks} (`{one.run}`, {one.method}, {one.flops:.3g} FLOPs)" for one in self.lineage
        )
        gates = [f"| {one.name} | {one.measured} | {one.asked} |" for one in outcomes if one.kind == "gate"]
        claims = [f"| {one.name} | {one.verdict} | {one.measured} |" for one in outcomes if one.kind == "claim"]
        parts = [
            f"**{config.stage.title or config.stage.name}** at scale `{config.scale.name}`, seed {config.seed}, from run "
            f"`{self.run.name}`: {tags['test_bits_per_byte']} bits per byte on the test split.",
            f"Lineage, in superblocks: {route}. Data `{tags['data_digest']}`, code `{tags['code_commit']}`.",
            "To serve it where superblock is installed, with this store as `MLFLOW_TRACKING_URI`:\n\n"
            f"    mlflow models serve -m models:/{self.model}@{PROMOTED} --env-manager local",
        ]
        if gates:
            parts.append("\n".join(["| gate passed | measured | asked |", "|---|---|---|", *gates]))
        if claims:
            parts.append("\n".join(["| claim | verdict | measured |", "|---|---|---|", *claims]))
        return "\n\n".join(parts)[:LONGEST]
