"""Gates: properties that sound code and a sound training have. Here those that records, growth and plans answer.

What needs the trained model is in `gates_model`, the proof of resuming in `resuming`.
"""

import math

from superblock.config.growth import StatementConfig
from superblock.data.loader import evaluation_loader
from superblock.models.formulas import count
from superblock.models.growth import GrowthPlan, plan_growth, transplant
from superblock.models.language_model import build_model
from superblock.planning.plan import differences, short
from superblock.staging.evidence import Evidence, Finding, Measurement, Missing
from superblock.staging.gates_model import distinct_4grams, gradients, no_dead_experts
from superblock.staging.resuming import resume
from superblock.training.checkpoint import read_weights
from superblock.training.growing import Boundary, compare
from superblock.training.lineage import Parent

FULL_SIZE = 235e9
"""Parameters that the architecture reaches at full scale."""
BOUNDARY_SEQUENCES = 4


def finite_loss(evidence: Evidence, asked: StatementConfig) -> Finding:
    """The whole history, not only its end: a loss that recovered was still once no number."""
    losses = {name: points for name, points in evidence.history.items() if _is_loss(name)}
    if not any(name.startswith("train/") for name in losses):
        raise Missing(f"{evidence.run.folder} has no recorded training loss")
    values = [(step, name, value) for name, points in losses.items() for step, value in points]
    bad = sorted((step, name, value) for step, name, value in values if not math.isfinite(value))
    wanted = "every recorded loss a finite number"
    if bad:
        step, name, value = bad[0]
        words = f"{len(bad):,} of {len(values):,} losses are not finite, first {name} = {value} at step {step:,}"
        return Finding(False, words, wanted, float(len(bad)))
    return Finding(True, f"all {len(values):,} losses are finite", wanted, 0.0)


def _is_loss(name: str) -> bool:
    """Losses of parts of a sequence do not count: a part without tokens has none."""
    last = name.rpartition("/")[2]
    return (last == "loss" or last.endswith("_loss")) and "position_" not in name


def bits_per_byte(evidence: Evidence, asked: StatementConfig) -> Finding:
    """On the test split, against what `against` names; without a parent against the trigram model."""
    bits = evidence.bits_per_byte()
    if asked.against == "parent" and evidence.parent_name is not None:
        bound, digest = evidence.parent_result()
        if digest != evidence.summary.get("data_digest"):
            raise Missing(
                f"the parent {evidence.parent_name} was tested on another text, so their bits per byte do not compare"
            )
        wanted = f"at most the {bound:.4f} of its parent {evidence.parent_name}"
        return Finding(bits <= bound, f"{bits:.4f} bits per byte of the test text", wanted, bits)
    scratch = " (from scratch, so there is no parent to compare with)" if asked.against == "parent" else ""
    bound = _trigram(evidence)
    wanted = f"below the {bound:.4f} of a trigram model{scratch}"
    return Finding(bits < bound, f"{bits:.4f} bits per byte of the test text", wanted, bits)


def _trigram(evidence: Evidence) -> float:
    known = evidence.summary["splits"]["test"].get("references", {}).get("trigram")
    return float(known if known is not None else evidence.corpus.reference_points("test")["trigram"])


# -- growth -----------------------------------------------------------------------------------------------------------


def growth_exact(evidence: Evidence, asked: StatementConfig) -> Finding:
    """What was measured when the weights were taken over, and the same growth done once more where the parent still is."""
    recorded = evidence.summary.get("growth")
    if recorded is None:
        if evidence.parent_name is not None:
            raise Missing(f"nothing was recorded about growing from {evidence.parent_name}")
        return Finding(
            True, "trained from scratch: nothing was grown", "exact growth from a parent, where there is one"
        )
    limit = asked.limit or 0.0
    method, (S, G) = recorded["method"], recorded["superblocks"]
    then = _promised(Boundary(**{**recorded, "superblocks": (S, G)}))
    try:
        parent, gone = evidence.parent, ""
    except Missing as missing:
        parent, gone = None, str(missing)
    if parent is None and not then:
        raise Missing(f"{gone}, and nothing that {method} promises was recorded when the model was grown")
    changed, again = _grow_again(evidence, parent) if parent else (0, {})
    worst = max([*then.values(), *again.values()], key=_not_finite_last, default=0.0)
    parts = [f"{S} -> {G} superblocks by {method}"]
    parts += [f"{what} differ by at most {value:.1g}" for what, value in then.items()]
    if parent:
        copied = "all copied weights are equal bit for bit" if not changed else f"{changed:,} copied weights differ"
        done_again = f", {max(again.values(), key=_not_finite_last):.1g} when grown again" if again else ""
        parts.append(f"{copied}{done_again}")
    else:
        parts.append(f"not grown again: {gone}")
    differ = f"{' and '.join(_PROMISES[method])} within {limit:g}, " if _PROMISES[method] else ""
    return Finding(not changed and worst <= limit, ", ".join(parts), f"{differ}copied weights equal", worst)


_PROMISES = {"identity": ("logits", "exits"), "stack": ("exits",), "interpolate": ()}


def _promised(boundary: Boundary) -> dict[str, float]:
    """What the method says is equal, as far as it was measured: the largest difference by name."""
    found = {"logits": boundary.max_logit_difference, "exits": boundary.exit_difference}
    return {what: value for what in _PROMISES[boundary.method] if (value := found[what]) is not None}


def _grow_again(evidence: Evidence, parent: Parent) -> tuple[int, dict[str, float]]:
    """How many copied tensors are not their source's copies, and what differs that the method says is equal."""
    config, method = evidence.config, evidence.config.growth.method
    plan = plan_growth(parent.model, config.model, method)
    state, model = read_weights(parent.checkpoint), build_model(config.model, seed=config.seed)
    transplant(plan, state, model)
    grown = model.state_dict()
    changed = sum(not grown[name].equal(state[source]) for name, source in _copies(plan))
    T = config.data.sequence_length
    loader = evaluation_loader(
        evidence.corpus.val, sequence_length=T, batch_size=BOUNDARY_SEQUENCES, limit=BOUNDARY_SEQUENCES
    )
    return changed, _promised(compare(parent.model, state, model, next(iter(loader)), method))


def _copies(plan: GrowthPlan) -> list[tuple[str, str]]:
    return [(name, origin.source) for name, origin in plan.origins.items() if origin.source is not None]


def _not_finite_last(value: float) -> float:
    """An order in which NaN is the largest."""
    return value if math.isfinite(value) else math.inf


# -- the plan ---------------------------------------------------------------------------------------------------------


def plan_closes(evidence: Evidence, asked: StatementConfig) -> Finding:
    """The stage at full scale: its size in closed form, and every row of that against the model built without storage."""
    model = evidence.compose([f"stage={evidence.config.stage.name}", "scale=full", "trainer.budget=1steps"]).model
    counts, limit = count(model), asked.limit or 0.0
    sizes = {name: p.numel() for name, p in build_model(model, seed=0, device="meta").named_parameters()}
    faults = list(differences(counts, sizes))
    away = abs(counts.total / FULL_SIZE - 1)
    rows = f"formula and model differ: {'; '.join(faults[:2])}" if faults else "formula and model agree in every row"
    return Finding(
        not faults and away <= limit,
        f"{short(counts.total)} parameters at full scale, {away:.2%} from {short(FULL_SIZE)}; {rows}",
        f"within {limit:.1%} of {short(FULL_SIZE)}, every row equal",
        away,
    )


GATES: dict[str, Measurement] = {
    "finite_loss": finite_loss,
    "gradients": gradients,
    "no_dead_experts": no_dead_experts,
    "bits_per_byte": bits_per_byte,
    "growth_exact": growth_exact,
    "resume": resume,
    "distinct_4grams": distinct_4grams,
    "plan_closes": plan_closes,
}
