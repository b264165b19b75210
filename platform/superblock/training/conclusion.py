"""What a finished run leaves behind: the summary, the learning curve, and the comparison with reference points."""

from pathlib import Path
from typing import Any

from superblock.callbacks.throughput import Throughput
from superblock.config.run import RunConfig
from superblock.data.corpus import Corpus
from superblock.evaluation.curve import curve
from superblock.evaluation.exit_curve import exit_curve
from superblock.evaluation.summary import RunSummary, SplitResult
from superblock.tracking.run import ARTIFACTS, Tracker
from superblock.tracking.runs import list_runs, read_run, runs_root
from superblock.tracking.spool import metric_history
from superblock.training.lineage import Lineage, plain_lineage, total_flops
from superblock.training.module import LanguageModelModule
from superblock.training.size import ModelSize
from superblock.training.starting import Start

NEXT_STAGE = {"mvp1": "mvp2", "mvp2": "mvp3", "mvp3": "mvp4"}


def summarise(
    config: RunConfig,
    start: Start,
    corpus: Corpus,
    size: ModelSize,
    module: LanguageModelModule,
    measures: dict[str, Any],
    *,
    minutes_in_all: float,
    prediction: dict[str, Any] | None = None,
) -> RunSummary:
    """The numbers a run ends with.

    Args:
        measures: the measuring callbacks by name, as `training.loop` makes them.
        minutes_in_all: since the command began.
        prediction: what was predicted before training, to be kept beside what was measured.
    """
    throughput: Throughput = measures["throughput"]
    lineage = module.lineage
    summary = RunSummary(
        name=start.name,
        stage=config.stage.name,
        scale=config.scale.name,
        steps=module.step,
        tokens=module.tokens_seen,
        minutes=module.training_seconds / 60,
        parameters_total=size.total,
        parameters_active=size.active,
        tokens_per_second=throughput.tokens_per_second or None,
        flops_per_second=throughput.flops_per_second or None,
        matmul_share=throughput.matmul_share or None,
        peak_memory_bytes=measures["memory"].peak,
        checkpoint=str(start.folder / "checkpoints"),
        data_digest=corpus.digest,
        next_stage=NEXT_STAGE.get(config.stage.name),
        seed=config.seed,
        minutes_in_all=minutes_in_all,
        parent=lineage[-2].run if len(lineage) > 1 else None,
        flops=lineage[-1].flops,
        lineage=plain_lineage(lineage),
        lineage_flops=total_flops(lineage),
        growth=module.boundary,
        exits=measures["exits"].results,
        prediction=prediction,
    )
    if config.evaluation.test:
        for split, prefix, part in (("validation", "final/val_", "val"), ("test", "test/", "test")):
            summary.splits[split] = _split(config, corpus, measures, prefix, part)
    for depth, bits in _trained_at(lineage[:-1], corpus.digest).items():
        if depth in summary.exits:
            summary.exits[depth]["trained_bits_per_byte"] = bits
    return summary


def record(summary: RunSummary, folder: Path, tokens_per_step: int, tracker: Tracker) -> None:
    """Writes `summary.json` and the pictures into the run's folder, and records them."""
    flops = {"lineage/flops": summary.lineage_flops, "lineage/own_flops": summary.flops}
    tracker.result({name: value for name, value in flops.items() if value is not None})
    tracker.result(_predicted(summary))
    summary.save(folder / "summary.json")
    tracker.artifact(folder / "summary.json")
    for picture in _draw(folder, summary, tokens_per_step):
        tracker.artifact(picture, "plots")
    gaps = {s: v["bits_per_byte"] / v["trained_bits_per_byte"] - 1 for s, v in _beside_trained(summary).items()}
    tracker.result({f"exits/gap_{s}": gap for s, gap in gaps.items()})


def _predicted(summary: RunSummary) -> dict[str, float]:
    """What was expected before training, as numbers that charts can show beside what came of it."""
    units = {"bits_per_byte": ("bits_per_byte", 1), "minutes": ("minutes", 1), "memory_bytes": ("memory_gib", 2**30)}
    known = summary.prediction or {}
    return {f"predicted/{name}": known[key]["value"] / unit for key, (name, unit) in units.items() if known.get(key)}


def _split(config: RunConfig, corpus: Corpus, measures: dict[str, Any], prefix: str, part: str) -> SplitResult:
    quality, accuracy = measures["perplexity"].results, measures["accuracy"].results
    result = SplitResult(
        quality[f"{prefix}perplexity"], quality[f"{prefix}bits_per_byte"], accuracy[f"{prefix}accuracy_top1"]
    )
    if config.evaluation.reference_points:
        result.references |= corpus.reference_points(part)
    if part == "test" and config.stage.parent:
        result.references |= _best_of(config.stage.parent, config.scale.name, corpus.digest)
    return result


def _best_of(stage: str, scale: str, digest: str) -> dict[str, float]:
    """The previous stage's best finished run on the same data."""
    results = [
        run.summary["splits"]["test"]["bits_per_byte"]
        for run in list_runs(stage=stage, scale=scale)
        if run.status == "FINISHED"
        and run.summary.get("data_digest") == digest
        and "test" in run.summary.get("splits", {})
    ]
    return {f"best {stage}": min(results)} if results else {}


def _trained_at(ancestors: Lineage, digest: str) -> dict[str, float]:
    """Test bits per byte of the models a run grew from, by their superblocks; of those tested on the same text."""
    found: dict[str, float] = {}
    for one in ancestors:
        record = read_run(runs_root() / one.run)
        tested = record.summary.get("splits", {}).get("test") if record else None
        if record and tested and record.summary.get("data_digest") == digest:
            found[str(one.superblocks)] = tested["bits_per_byte"]
    return found


def _beside_trained(summary: RunSummary) -> dict[str, dict[str, float]]:
    return {s: values for s, values in summary.exits.items() if "trained_bits_per_byte" in values}


def _draw(folder: Path, summary: RunSummary, tokens_per_step: int) -> list[Path]:
    history = metric_history(folder / "spool.jsonl")
    points = {
        name: [(step * tokens_per_step, value) for step, value in history.get(f"{name}/bits_per_byte", [])]
        for name in ("train", "val")
    }
    references = {}
    if test := summary.splits.get("test"):
        points["test"] = [(summary.tokens, test.bits_per_byte)]
        references = {name: value for name, value in test.references.items() if name in ("trigram", "xz")}
    exits = {int(s): values["bits_per_byte"] for s, values in summary.exits.items()}
    trained = {int(s): values["trained_bits_per_byte"] for s, values in _beside_trained(summary).items()}
    (folder / ARTIFACTS).mkdir(exist_ok=True)
    pictures = []
    for kind in ("svg", "png"):
        if any(points.values()):
            pictures.append(folder / ARTIFACTS / f"learning_curve.{kind}")
            curve(points, references, pictures[-1])
        if len(exits) > 1:
            pictures.append(folder / ARTIFACTS / f"exits.{kind}")
            exit_curve(exits, trained, pictures[-1])
    return pictures
