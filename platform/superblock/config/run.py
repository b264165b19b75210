"""The whole configuration of a command, as Hydra composes it and as the library takes it."""

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from superblock.config.data import DataConfig
from superblock.config.evaluation import EvaluationConfig
from superblock.config.fields import knob, section
from superblock.config.growth import GrowthConfig
from superblock.config.model import ModelConfig
from superblock.config.optim import OptimConfig, ScheduleConfig
from superblock.config.stage import ScaleConfig, StageConfig
from superblock.config.tracking import TrackingConfig
from superblock.config.trainer import TrainerConfig

RUN_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


@dataclass
class RunConfig:
    """`python -m platform.run`: train, evaluate and track one stage."""

    stage: StageConfig = section(StageConfig, "stage of the pipeline")
    scale: ScaleConfig = section(ScaleConfig, "sizes")
    model: ModelConfig = section(ModelConfig, "architecture")
    data: DataConfig = section(DataConfig, "corpus and batches")
    optim: OptimConfig = section(OptimConfig, "optimizer")
    schedule: ScheduleConfig = section(ScheduleConfig, "learning rate over time")
    trainer: TrainerConfig = section(TrainerConfig, "training loop")
    tracking: TrackingConfig = section(TrackingConfig, "MLflow")
    evaluation: EvaluationConfig = section(EvaluationConfig, "validation and test")
    growth: GrowthConfig = section(GrowthConfig, "beginning from the stage before")
    seed: int = knob(
        1,
        "seed of initial weights, data order and dropout; several, as in seed=1,2,3, with stage=all or --multirun",
        minimum=0,
        maximum=2**31 - 1,
    )
    resume: str = knob(
        "none", "none: a new run; auto: continue the newest interrupted run of this configuration; or a run's name"
    )
    parent: str = knob(
        "auto",
        "what the weights begin from: auto (the promoted model of the stage before, if there is one), required (that or an "
        "error), none (from scratch), or a run's name",
    )
    promote: bool | None = knob(
        None,
        "check the stage's gates after training and register a model that passes; null does so where the run has the "
        "stage's own budget",
    )
    exit_at: int | None = knob(
        None,
        "with resume=<a finished run>: evaluate the model inside it that ends at this superblock's exit, and train nothing",
        minimum=1,
    )
    name: str | None = knob(
        None, "name of the run's folder below runs/; null makes one from stage, scale, seed and time"
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.trainer.budget is None:
            yield (
                "trainer.budget",
                (
                    f"stage {self.stage.name} has no training budget at scale={self.scale.name} "
                    "(it can be planned: `plan`); give one, for example trainer.budget=300steps"
                ),
            )
        if self.data.sequence_length > self.model.max_sequence_length:
            yield "data.sequence_length", f"is longer than model.max_sequence_length={self.model.max_sequence_length}"
        if self.data.vocab_size > self.model.vocab_size:
            yield "data.vocab_size", f"is larger than model.vocab_size={self.model.vocab_size}"
        if self.exit_at is not None and self.resume in ("none", "auto"):
            yield "exit_at", "evaluates a finished run and trains nothing; say which: resume=<its name>"
        if self.name is not None and not re.fullmatch(RUN_NAME, self.name):
            yield "name", "must be letters, digits, '.', '_' and '-', at most 64, not starting with a sign"


@dataclass
class PlanConfig:
    """`python -m platform.plan`: count a model without building it."""

    stage: StageConfig = section(StageConfig, "stage of the pipeline")
    scale: ScaleConfig = section(ScaleConfig, "sizes")
    model: ModelConfig = section(ModelConfig, "architecture")
    check: bool = knob(False, "build the model on the meta device and compare the counts")
    price_per_hour: float | None = knob(
        None, "price of an hour of this machine in your currency: adds the predicted cost", minimum=0
    )


@dataclass
class GenerateConfig:
    """`python -m platform.generate`: continue a text with a trained model."""

    run: str = knob(
        "newest",
        "newest, a run's name or MLflow id, a stage such as mvp1, a checkpoint folder, or a promoted model such as "
        "mvp1@promoted or mvp1-mini@promoted-s3",
    )
    prompt: str = knob("def ", "text to continue")
    max_tokens: int = knob(200, "tokens to generate", minimum=1)
    temperature: float = knob(0.8, "0 takes the most likely token; higher is more varied", minimum=0, maximum=100)
    top_k: int = knob(0, "sample among the k most likely tokens; 0 is all", minimum=0)
    top_p: float = knob(0.95, "sample among the most likely tokens that hold this probability", above=0, maximum=1)
    exit_at: int | None = knob(
        None, "superblocks to use: the model that ends at this one's exit; null uses all", minimum=1
    )
    samples: int = knob(1, "texts to generate", minimum=1, maximum=256)
    stop: str | None = knob(None, "text that ends a sample")
    seed: int = knob(1, "seed of sampling", minimum=0, maximum=2**31 - 1)
    tracking: TrackingConfig = section(TrackingConfig, "MLflow store whose model registry knows what is promoted")


@dataclass
class UiConfig:
    """`python -m platform.ui`: open the MLflow server on the right store."""

    tracking: TrackingConfig = section(TrackingConfig, "MLflow")


def fingerprint(config: RunConfig) -> str:
    """Sixteen hex digits that are equal for two runs that would train the same way.

    Where results go, how they are shown and how often they are measured does not count.
    """
    parts: dict[str, Any] = {name: asdict(getattr(config, name)) for name in ("model", "data", "optim", "schedule")}
    trainer = config.trainer
    parts["trainer"] = [trainer.budget, trainer.batch_size, trainer.precision]
    parts["seed"] = config.seed
    if config.parent not in ("auto", "none"):
        parts["parent"] = [config.parent, asdict(config.growth)]
    del parts["data"]["cache_dir"], parts["data"]["workers"]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
