"""One run from configuration to summary, read from top to bottom: set up, train, evaluate, record."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import lightning.pytorch as pl

from superblock.callbacks.accuracy import Accuracy
from superblock.callbacks.checkpointing import Checkpointing
from superblock.callbacks.exits import ExitCurve
from superblock.callbacks.expert_health import ExpertHealth
from superblock.callbacks.language import LanguageSlices
from superblock.callbacks.memory import Memory
from superblock.callbacks.nonfinite import NonFiniteGuard
from superblock.callbacks.norms import Norms
from superblock.callbacks.perplexity import Perplexity
from superblock.callbacks.progress import ProgressBar, Watcher
from superblock.callbacks.samples import Samples
from superblock.callbacks.throughput import Throughput
from superblock.config.budget import Budget
from superblock.config.fields import ConfigError
from superblock.config.run import RunConfig
from superblock.data.corpus import Corpus, prepare
from superblock.evaluation.summary import RunSummary, render, wide_console
from superblock.generation.session import Session
from superblock.tracking.run import Tracker
from superblock.training import distributed
from superblock.training.conclusion import record, summarise
from superblock.training.data_module import PackedDataModule
from superblock.training.interruption import Interruption
from superblock.training.kernels import start_kernels
from superblock.training.lineage import Parent, find_parent, refuse_other_text
from superblock.training.module import LanguageModelModule
from superblock.training.process import forget_peak, prepare_process
from superblock.training.size import ModelSize, measure
from superblock.training.starting import Start, choose, resume_command
from superblock.training.strategies import build_strategy, resolve_accelerator

PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
PROMPTS = ("def ", "class ", "import ", '"""')


def train(
    config: RunConfig,
    *,
    tags: Mapping[str, str] | None = None,
    prediction: dict[str, Any] | None = None,
    watcher: Watcher | None = None,
    continue_with: str | None = None,
) -> RunSummary | None:
    """Trains, evaluates and records one run; prints the summary and returns it.

    Args:
        config: `parent` is `none` or a run; `auto` and `required`, which `staging` looks up, mean from scratch here.
        tags: further labels of the run in MLflow.
        prediction: what `planning.prediction` said before, for the summary.
        watcher: shown above the progress bar, and told the time left.
        continue_with: command that goes on after an interruption; None is this run's own.

    Returns:
        The summary, or None on ranks above 0 and for a run that had already finished.

    Raises:
        ConfigError: for settings that cannot work on this machine, or a run that cannot be continued.
        NonFiniteError: if training diverged; the last checkpoint is from before.
        SystemExit: with 128 + the signal's number after Ctrl-C or SIGTERM, when a checkpoint has been written.
    """
    began = time.monotonic()
    accelerator = resolve_accelerator(config.trainer.accelerator)
    distributed.start_process_group(accelerator)
    rank, world_size = distributed.rank(), distributed.world_size()
    say = _speaker(rank)
    start = distributed.broadcast_object(choose(config) if rank == 0 else None)
    assert start is not None
    for note in start.notes:
        say(note)
    if start.finished:
        if rank == 0 and (start.folder / "summary.json").is_file():
            render(RunSummary.load(start.folder / "summary.json"), wide_console())
        return None
    with _no_folder_if_refused(start):
        parent = find_parent(config) if start.checkpoint is None else None
        threads = prepare_process(config.trainer.threads, world_size)
        forget_peak()
        _quiet()
        corpus = _corpus(config, rank, say)
        if parent:
            _refuse_parent_of_other_text(config, parent, corpus)
    size = measure(config.model, config.data.sequence_length)
    say(f"model   {size.total / 1e6:.2f} M parameters, {size.active / 1e6:.2f} M active per token")
    kernels = start_kernels(config, accelerator, say)
    interruption = Interruption()
    interruption.install()
    tracker = Tracker.start(
        config, run_folder=start.folder, run_name=start.name, resume=start.checkpoint is not None, rank=rank, report=say
    )
    run = _Run(config, start, parent, corpus, size, tracker, interruption, say, watcher)
    try:
        with tracker:
            tracker.tags(kernels | dict(tags or {}))
            tracker.params({"threads": threads})
            module, measures = _fit(run, accelerator, continue_with or resume_command(start.name))
            minutes = (time.monotonic() - began) / 60
            summary = summarise(
                config, start, corpus, size, module, measures, minutes_in_all=minutes, prediction=prediction
            )
            if rank == 0:
                record(summary, start.folder, module.tokens_per_step, tracker)
        distributed.barrier()  # gloo aborts a process that leaves while another still talks to it
    finally:
        interruption.restore()
        distributed.stop_process_group()
    if rank == 0:
        render(summary, wide_console())
        return summary
    return None


@dataclass(frozen=True)
class _Run:
    """What the parts of a run are made from."""

    config: RunConfig
    start: Start
    parent: Parent | None
    corpus: Corpus
    size: ModelSize
    tracker: Tracker
    interruption: Interruption
    say: Callable[[str], None]
    watcher: Watcher | None


def _fit(run: _Run, accelerator: str, continue_with: str) -> tuple[LanguageModelModule, dict[str, Any]]:
    """Trains and evaluates; the module and the callbacks that measured it."""
    rank, world_size = distributed.rank(), distributed.world_size()
    data = PackedDataModule(run.corpus, run.config, rank=rank, world_size=world_size)
    module = LanguageModelModule(
        run.config,
        data,
        run.tracker,
        world_size=world_size,
        resume_from=run.start.checkpoint,
        parent=run.parent,
        report=run.say,
    )
    measures = _measurements(run)
    trainer = _trainer(run.config, run.start, accelerator, _callbacks(run, module, measures))
    _record_facts(run)
    # Lightning counts batches from where this process began; our steps survive a resume
    trainer.fit_loop.epoch_loop._should_check_val_fx = lambda _: module.should_validate()  # type: ignore[method-assign, assignment]
    trainer.fit(module, datamodule=data)
    if run.interruption.signum:
        run.say(f"stopped at step {module.step:,} of {module.total_steps:,}; to continue:\n  {continue_with}")
        raise SystemExit(128 + run.interruption.signum)
    if run.config.evaluation.test:
        data.whole_validation = True
        trainer.validate(module, datamodule=data, verbose=False)
        trainer.test(module, datamodule=data, verbose=False)
    run.interruption.check()
    return module, measures


@contextmanager
def _no_folder_if_refused(start: Start) -> Iterator[None]:
    """A run that cannot begin leaves no empty folder behind."""
    try:
        yield
    except ConfigError:
        if start.checkpoint is None:
            with suppress(OSError):  # it holds something, or another process was first
                start.folder.rmdir()
        raise


def _refuse_parent_of_other_text(config: RunConfig, parent: Parent, corpus: Corpus) -> None:
    try:
        refuse_other_text(parent.checkpoint, corpus)
    except ConfigError as error:
        raise ConfigError(f"parent={config.parent}: {error}\nparent=none trains from scratch") from None


# -- parts --------------------------------------------------------------------------------------------------------


def _speaker(rank: int) -> Callable[[str], None]:
    """Prints a line on the first process, on nothing else."""
    return (lambda text: print(text, flush=True)) if rank == 0 else (lambda text: None)


def _quiet() -> None:
    """Silences what Lightning says about choices that were made on purpose."""
    import logging

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")


def _corpus(config: RunConfig, rank: int, say: Callable[[str], None]) -> Corpus:
    """The first process prepares, the others then find it prepared."""
    began = time.perf_counter()
    if rank == 0:
        corpus = prepare(config.data, report=say)
    distributed.barrier()
    if rank > 0:
        corpus = prepare(config.data, report=say)
    say(f"data    {corpus.description}  ({time.perf_counter() - began:.1f} s)")
    return corpus


def _measurements(run: _Run) -> dict[str, Any]:
    """The callbacks that measure, by name; their state goes into checkpoints."""
    bytes_per_token = run.corpus.train.num_bytes / len(run.corpus.train)
    perplexity = Perplexity(train_bytes_per_token=bytes_per_token)
    return {
        "nonfinite": NonFiniteGuard(),
        "perplexity": perplexity,
        "accuracy": Accuracy(),
        "throughput": Throughput(training_flops_per_token=run.size.training_flops_per_token),
        "memory": Memory(),
        "experts": ExpertHealth(),
        "norms": Norms(),
        "exits": ExitCurve(perplexity),
    }


def _callbacks(run: _Run, module: LanguageModelModule, measures: dict[str, Any]) -> list[pl.Callback]:
    """In the order in which Lightning calls them: what measures comes before what writes checkpoints."""
    config = run.config
    checkpointing = Checkpointing(
        run.start.folder,
        every=Budget.parse(config.trainer.checkpoint_every),
        keep_last=config.trainer.keep_last,
        config=asdict(config),
        tokenizer=run.corpus.tokenizer_path,
        interruption=run.interruption,
        stateful=measures,
    )
    samples = Samples(
        lambda prompt, tokens, seed: Session(module.model, run.corpus.tokenizer).complete(prompt, tokens, seed),
        PROMPTS,
        count=config.evaluation.samples,
        tokens=config.evaluation.sample_tokens,
        seed=config.seed,
    )
    bar = [ProgressBar(perplexity=measures["perplexity"], watcher=run.watcher)] if config.trainer.progress else []
    slices = [LanguageSlices(run.corpus, config.data.sequence_length)] if config.evaluation.language else []
    return [*measures.values(), *slices, run.interruption, checkpointing, samples, *bar]


def _trainer(config: RunConfig, start: Start, accelerator: str, callbacks: list[pl.Callback]) -> pl.Trainer:
    """Lightning's Trainer without what this project does itself: bars, checkpoints, loggers, samplers."""
    return pl.Trainer(
        accelerator=accelerator,
        devices=distributed.local_world_size(),
        num_nodes=distributed.num_nodes(),
        strategy=build_strategy(config.trainer.strategy, accelerator, config.trainer.precision),
        precision=PRECISIONS[config.trainer.precision],  # type: ignore[arg-type]
        max_epochs=1,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        default_root_dir=start.folder,
    )


def _record_facts(run: _Run) -> None:
    """Data, size and parent, known before the first step."""
    tracker, corpus, size = run.tracker, run.corpus, run.size
    for context in ("training", "validation", "test"):
        tracker.dataset(corpus.name, corpus.digest, context, corpus.description)
    tracker.tags({"data.digest": corpus.digest})
    tracker.result({"model/parameters": size.total, "model/active_parameters": size.active})
    tracker.params({"model.parameters": size.total, "model.active_parameters": size.active})
    if run.parent:
        tracker.tags({"parent": run.parent.run, "growth.method": run.config.growth.method})
