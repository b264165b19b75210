"""What a model would consist of and cost: tables of closed forms, and a comparison with the built model."""

import math
import re
import sys
from collections.abc import Iterator

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from superblock.config.budget import Budget
from superblock.config.run import PlanConfig
from superblock.models.formulas import Counts, count, layers_per_superblock, mean_context, named_layers

WIDTH = 100
DEVICE_BYTES = 80e9
"""Memory of one large training device."""
LAPTOP_BYTES = 8e9
"""What training may take of an ordinary laptop's memory."""


def show(config: PlanConfig) -> None:
    """Prints parameters, FLOPs and bytes of `config.model`, and what the finished runs here predict of its training.

    With `check`, compares with the model on the meta device.

    Raises:
        SystemExit: with status 1 if the built model differs.
    """
    from superblock.planning.outlook import outlook

    counts, console = count(config.model), Console(width=None if sys.stdout.isatty() else WIDTH)
    title = f"{config.stage.name} at scale {config.scale.name}"
    console.print(Text(f"{short(counts.total)} parameters, {short(counts.active)} active per token", style="bold"))
    console.print(Text(f"{title}: exactly {counts.total:,} and {counts.active:,}", style="dim"))
    _print(console, components(counts))
    _line(console, layers_in_words(counts))
    _print(console, costs(config, counts))
    for line in remarks(config, counts):
        _line(console, line)
    for part in outlook(config, counts):
        if isinstance(part, str):
            _line(console, part)
        else:
            _print(console, part)
    if config.check:
        compare(counts, console)


def components(counts: Counts) -> Table:
    """One row per component, with its number within the superblock and its forward FLOPs per token."""
    table = new_table("", "component", "", "each", "together", "share", "FLOP", left=2)
    context = mean_context(counts.config.max_sequence_length, counts.config.gqa.window)
    for row in counts.rows:
        copies = f"{row.copies} x" if row.layer else ""
        share = f"{row.total / counts.total:.1%}"
        flops = si(row.flops_at(context)) if not row.head and row.flops else ""
        table.add_row(str(row.layer or ""), row.name, copies, f"{row.parameters:,}", f"{row.total:,}", share, flops)
    table.add_section()
    table.add_row("", "all", "", "", f"{counts.total:,}", "100%", si(counts.flops_per_token(context)), style="bold")
    return table


def layers_in_words(counts: Counts) -> str:
    """The seed's own count of layers, and their names."""
    config, layers = counts.config, named_layers(counts.config)
    per, S = layers_per_superblock(config), config.num_superblocks
    names = [layer.name for layer in layers]
    last = names[2 + (S - 1) * per : 2 + S * per]
    return (
        f"{len(layers)} named layers = 2 + {S} x {per} + 3: {', '.join(names[:2])}; "
        f"{S} x [{', '.join(re.sub(r' [(].*', '', name) for name in last)}]; {', '.join(names[-3:])}"
    )


def costs(config: PlanConfig, counts: Counts) -> Table:
    """FLOPs and bytes of training and generating."""
    table = new_table("cost", "amount", "of", left=1)
    table.columns[2].justify = "left"
    for label, amount, what in _costs(config, counts):
        table.add_row(label, amount, what)
    return table


def _costs(config: PlanConfig, counts: Counts) -> Iterator[tuple[str, str, str]]:
    T = counts.config.max_sequence_length
    context = mean_context(T, counts.config.gqa.window)
    yield "forward", si(counts.flops_per_token(context), "FLOP"), f"per token, in the mean over {T:,} tokens"
    yield "", si(counts.flops_per_token(T), "FLOP"), f"for token {T:,}, which sees all before it"
    yield "training", si(counts.training_flops_per_token(), "FLOP"), "per token, forward and backward, heads on"
    heads = counts.training_flops_per_token() / counts.training_flops_per_token(heads=False) - 1
    yield "", f"{heads:.1%}", "more through the prediction heads, included above"
    text = config.stage.budget.get(config.scale.name)
    if text and (budget := Budget.parse(text)).unit == "tokens":
        whole = counts.training_flops_per_token() * budget.amount
        yield "", si(whole, "FLOP"), f"for the stage's {short(budget.amount)} tokens"
    yield "weights", size(counts.weight_bytes()), f"in bf16, {size(counts.weight_bytes(4))} in fp32"
    yield (
        "training",
        size(counts.training_bytes()),
        "weights, gradients, AdamW: 16 bytes per parameter",
    )
    yield "generation", size(counts.kv_bytes_per_token() * 1000), "of keys and values per 1,000 tokens, bf16"
    state = counts.recurrent_state_bytes() + counts.conv_state_bytes()
    yield "", size(state), "of recurrent state per sequence, whatever its length"


def remarks(config: PlanConfig, counts: Counts) -> Iterator[str]:
    """The hardware it needs, and whether these numbers are more than arithmetic."""
    yield hardware(counts)
    if config.stage.budget.get(config.scale.name) is None:
        yield (
            "Nobody has trained this model. The numbers are exact arithmetic on its configuration; what it would learn, "
            "and at which speed, is unknown."
        )


def hardware(counts: Counts) -> str:
    """What holds the weights and the training state, in words."""
    training, weights = counts.training_bytes(), counts.weight_bytes()
    if training <= LAPTOP_BYTES:
        return f"A laptop trains it: {size(training)} of weights and optimizer state, and the activations."
    if training <= DEVICE_BYTES:
        return f"One device of 80 GB trains it: {size(training)} of weights and optimizer state leave room for activations."
    devices, to_generate = math.ceil(training / DEVICE_BYTES), math.ceil(weights / DEVICE_BYTES)
    return (
        f"Training needs at least {devices} devices of 80 GB for weights and optimizer state, sharded "
        f"(trainer.strategy=fsdp), and more for activations; generating needs {to_generate} for the bf16 weights."
    )


def compare(counts: Counts, console: Console) -> None:
    """Builds the model without storage and compares every row.

    Raises:
        SystemExit: with status 1 where they differ, after naming each row.
    """
    from superblock.models.language_model import build_model

    sizes = {name: p.numel() for name, p in build_model(counts.config, seed=0, device="meta").named_parameters()}
    faults = list(differences(counts, sizes))
    for fault in faults:
        print(f"check: {fault}", file=sys.stderr)
    if faults:
        raise SystemExit(1)
    _line(console, f"check: the built model has the same {sum(sizes.values()):,} parameters, row by row")


def differences(counts: Counts, sizes: dict[str, int]) -> Iterator[str]:
    """Where the closed forms and a model's parameters, given by name and size, are not the same."""
    for row in counts.rows:
        built = sum(n for name, n in sizes.items() if re.match(row.where, name))
        if built != row.total:
            place = f" (layer {row.layer})" if row.layer else ""
            yield f"{row.name}{place}: {row.total:,} by formula, {built:,} built, {built - row.total:+,}"
    for name, n in sizes.items():
        if not any(re.match(row.where, name) for row in counts.rows):
            yield f"{name}: {n:,} built, in no row"


def short(value: float) -> str:
    """A number in up to five digits with a unit: 235.37B, 7.54M, 812."""
    for factor, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.2f}{unit}"
    return f"{value:.0f}"


def si(value: float, unit: str = "") -> str:
    """Three digits with a decimal prefix: 42.6 GFLOP, 3.77 TB."""
    for factor, prefix in (
        (1e24, "Y"),
        (1e21, "Z"),
        (1e18, "E"),
        (1e15, "P"),
        (1e12, "T"),
        (1e9, "G"),
        (1e6, "M"),
        (1e3, "k"),
    ):
        if value >= factor:
            return f"{value / factor:#.3g}".rstrip(".") + f" {prefix}{unit}"
    return f"{value:.0f} {unit}".rstrip()


def size(value: float) -> str:
    """Bytes in decimal units, as devices are sold."""
    return si(value, "B")


def new_table(*titles: str, left: int) -> Table:
    """An empty table whose first columns are aligned to the left."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for i, title in enumerate(titles):
        table.add_column(title, justify="left" if i < left else "right", no_wrap=True)
    return table


def _print(console: Console, table: Table) -> None:
    console.print(Padding(table, (1, 0, 1, 2), expand=False))


def _line(console: Console, text: str) -> None:
    console.print(Text(text), width=min(WIDTH, console.width))
