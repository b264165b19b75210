"""Growing a trained model of S superblocks into one of G > S: where every weight of the grown model comes from.

    method        superblock i of the grown model is                                       logits at the boundary
    identity      superblock i; from S on a fresh one whose writers are zero               equal, of the model and every exit
    stack         a copy of superblock i mod S: whole copies, the last one cut if need be  another model; exits 1 to S equal
    interpolate   a copy of superblock floor(i S / G): each repeated in place              another model
    none          fresh, and so is everything else: the control arm                        another model

**Where.** New superblocks follow the trained ones. So the parent stays inside: the exit of superblock S predicts what
the parent's output did, earlier exits keep their names and their logits, and a model grown 1 -> 3 -> 6 -> 12 contains
its ancestors. Spreading them (LLaMA Pro, arXiv 2401.02415) would move every exit, and is not known to be better: in
continued training OpT-DeUS (arXiv 2508.08011) gained by inserting closer to the top.

**Zero and not zero.** Identity needs the writers at zero (init.WRITERS), nothing else. All other weights are fresh. Were
they zero too, neither side would ever receive gradient. Were they copies of one superblock, all new superblocks would
start with the same gradient and stay alike: at width 64 the cosine between two of them is 1.00 in the first step and
0.97 after twelve, against 0.00 for fresh ones. The price of zero writers: in the first step only they (and the routers,
by their balancing loss) have gradient; that of the rest grows with them, to half of an old superblock's in a warm-up
of ten steps.

**Scale.** Copied writers are not scaled down to the deeper model's `writer_std`, as in the code of G_stack
(arXiv 2405.15319): that is a scale for random weights, and trained ones have found theirs.

**Heads.** The last head, which alone is of kind `mtp.last`, becomes the last head, so that the multi-token losses are
equal too. Every other head stays with the parent's stream: where that is at its end, superblock S or beyond, the head
reads with the parent's final norm, hence exits as the parent did; its depths come from the parent's last head of kind
`mlp`, or are fresh if it has none. A router's selection bias follows its superblock.

Legend: S superblocks of the parent, G of the grown model, D width.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor, nn

from superblock.config.fields import ConfigError
from superblock.config.growth import METHODS
from superblock.config.model import ModelConfig
from superblock.models.init import WRITERS, leaf_name, local_region
from superblock.models.language_model import SuperblockModel

MAY_DIFFER = frozenset({
    "num_superblocks", "file", "expect_params", "max_sequence_length", "init_std", "cross_entropy_chunk",
    "embedding_dropout", "final_z_loss", "gdn.chunk_size", "gdn.backend", "gqa.backend", "moe.backend",
    "moe.balance_rate", "moe.aux_loss", "moe.z_loss", "mtp.weight", "mtp.final_weight", "mtp.exit_weight", "mtp.start",
    "mtp.exits", "mtp.exit_shape", "mtp.exit_start", "mtp.exit_mtp", "mtp.token_fraction", "mtp.detach_trunk",
})  # fmt: skip
"""Keys of `model` that change neither a shape nor what the trained weights compute, only how they are trained."""


@dataclass(frozen=True)
class Origin:
    """Where one tensor of the grown model comes from."""

    kind: Literal["copied", "zero", "fresh"]
    source: str | None = None
    """Name in the parent's state, where copied."""


@dataclass(frozen=True)
class GrowthPlan:
    """The origin of every parameter and buffer; weights and optimizer state are both mapped by it."""

    method: str
    superblocks: tuple[int, int]
    """S and G."""
    origins: dict[str, Origin]
    """By name in the grown model's `state_dict`, in its order."""
    shapes: dict[str, torch.Size]
    """Of the grown model's tensors."""
    parent_shapes: dict[str, torch.Size]
    """Of the parent's tensors, all of them."""

    def __str__(self) -> str:
        """A line for each norm, table, superblock and part of a head, and a summary."""
        S, G = self.superblocks
        lines = [f"{S} -> {G} superblocks by {self.method}"]
        for unit, names in groupby(self.origins, key=_unit):
            counts = Counter(_describe(self.origins[name]) for name in names)
            lines.append(f"  {unit:<16} {', '.join(f'{what} ({n})' for what, n in counts.items())}")
        sizes: Counter[str] = Counter()
        for name, origin in self.origins.items():
            sizes[origin.kind] += self.shapes[name].numel()
        lines.append("  " + ", ".join(f"{sizes[kind]:,} values {kind}" for kind in ("copied", "zero", "fresh")))
        return "\n".join(lines)


def plan_growth(parent: ModelConfig, config: ModelConfig, method: str) -> GrowthPlan:
    """The plan for growing a model of `parent` into one of `config`; builds neither.

    Raises:
        ConfigError: if they differ in more than the number of superblocks and the keys of `MAY_DIFFER`, if there are
            not more superblocks than before, or for an unknown method.
    """
    if method not in METHODS:
        raise ConfigError(f"growth method {method!r}: must be one of {', '.join(METHODS)}")
    _refuse_other_model(parent, config)
    old, new = _shapes(parent), _shapes(config)
    origins = {name: _origin(name, method, parent, config.num_superblocks) for name in new}
    for name, origin in origins.items():
        assert origin.source is None or old[origin.source] == new[name], f"{name} from {origin.source}"
    return GrowthPlan(method, (parent.num_superblocks, config.num_superblocks), origins, new, old)


@torch.no_grad()
def transplant(plan: GrowthPlan, state: Mapping[str, Tensor], model: nn.Module) -> None:
    """Turns a model with initial weights into the grown one, in place.

    What the plan calls fresh stays as it is, hence depends on the seed and the parameter's name alone.

    Args:
        plan: from `plan_growth`.
        state: the parent's `state_dict` of whole tensors, as a checkpoint holds it; any device and floating dtype. It is
            not looked at where the plan copies nothing.
        model: fresh from `build_model` or `shard` with the grown configuration; its parameters may be sharded.

    Raises:
        ValueError: if `state` is not that of the plan's parent or `model` is not the plan's model; nothing is changed.
    """
    target = model.state_dict()
    if any(origin.source for origin in plan.origins.values()):
        _refuse_other_tensors("the parent's state", plan.parent_shapes, state)
    _refuse_other_tensors("the grown model", plan.shapes, target)
    for name, origin in plan.origins.items():
        local, region = local_region(target[name])
        if origin.source is not None:
            local.copy_(state[origin.source][region])
        elif origin.kind == "zero":
            local.zero_()


# -- origins ----------------------------------------------------------------------------------------------------------


def _origin(name: str, method: str, parent: ModelConfig, grown: int) -> Origin:
    """The rule for one tensor; the table above in code."""
    if method == "none":
        return Origin("fresh")
    part, _, rest = name.partition(".")
    if part not in ("superblocks", "heads"):
        return Origin("copied", name)
    number, _, rest = rest.partition(".")
    i, S = int(number), parent.num_superblocks
    if part == "heads":
        return _head_origin(i, rest, method, parent, grown)
    if method == "identity" and i >= S:
        return Origin("zero" if leaf_name(name) in WRITERS else "fresh")
    s = i * S // grown if method == "interpolate" else i % S
    return Origin("copied", f"superblocks.{s}.{rest}")


def _head_origin(i: int, rest: str, method: str, parent: ModelConfig, grown: int) -> Origin:
    last = parent.num_superblocks - 1
    if i == grown - 1:
        return Origin("copied", f"heads.{last}.{rest}")
    place = i * (last + 1) // grown if method == "interpolate" else min(i, last)
    if place < last:
        return Origin("copied", f"heads.{place}.{rest}")
    if rest == "norm.weight":
        return Origin("copied", "norm.weight")
    nearest = last if parent.mtp.last == "mlp" else last - 1
    return Origin("copied", f"heads.{nearest}.{rest}") if nearest >= 0 else Origin("fresh")


def _shapes(config: ModelConfig) -> dict[str, torch.Size]:
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in SuperblockModel(config).state_dict().items()}


# -- refusals ---------------------------------------------------------------------------------------------------------


def _refuse_other_model(parent: ModelConfig, config: ModelConfig) -> None:
    for key, before, now in _pairs(parent, config):
        if before != now and key not in MAY_DIFFER:
            raise ConfigError(f"model.{key}={now}: the parent has {before}; only model.num_superblocks can grow")
    if config.family != "superblock":
        raise ConfigError(f"model.family={config.family}: only the family superblock can grow")
    if config.num_superblocks <= parent.num_superblocks:
        raise ConfigError(
            f"model.num_superblocks={config.num_superblocks}: must be above the parent's {parent.num_superblocks}"
        )


def _pairs(parent: Any, config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for field in fields(parent):
        key, before, now = f"{prefix}{field.name}", getattr(parent, field.name), getattr(config, field.name)
        if is_dataclass(before):
            yield from _pairs(before, now, f"{key}.")
        else:
            yield key, before, now


def _refuse_other_tensors(what: str, expected: Mapping[str, torch.Size], found: Mapping[str, Tensor]) -> None:
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        names, fault = (missing, "lacks") if missing else (extra, "has, beyond the plan's,")
        rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(f"{what} {fault} {', '.join(names[:3])}{rest}")
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise ValueError(f"{what} has {name} of shape {list(found[name].shape)}, the plan {list(shape)}")
        if found[name].is_meta:
            raise ValueError(f"{what} has no storage for {name}")


# -- printing ---------------------------------------------------------------------------------------------------------


def _unit(name: str) -> str:
    parts = name.split(".")
    return ".".join(parts[: {"superblocks": 2, "heads": 3}.get(parts[0], 1)])


def _describe(origin: Origin) -> str:
    return origin.kind if origin.source is None else f"copy of {_unit(origin.source)}"
