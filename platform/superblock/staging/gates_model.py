"""Gates that look at the trained model itself. Legend: L MoE layers, E experts, T tokens."""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from superblock.config.growth import StatementConfig
from superblock.config.run import RunConfig
from superblock.data.loader import evaluation_loader, training_loader
from superblock.models.batch import Batch, Supervision
from superblock.models.targets import trained_terms
from superblock.staging.evidence import Evidence, Finding, Missing
from superblock.training.supervision import supervision_at

GRADIENT_SEQUENCES = 2
GRADIENT_BATCHES = 3
"""At least; more where exits take turns, so that each has one."""
EXPERT_BATCHES = 4
"""Of the test split, before the count may stop early."""
SAMPLED_TOKENS, SAMPLE_TOKENS, PROMPT_TOKENS = 800, 200, 16
"""In all, of a sample, and of the text it continues."""
LEAST_SHARE = 0.25
"""Of the tokens asked for: samples that end at once repeat nothing and say nothing."""

# -- gradients --------------------------------------------------------------------------------------------------------


def gradients(evidence: Evidence, asked: StatementConfig) -> Finding:
    """A few training batches as in the last steps of training, each exit having its turn; every parameter is looked at."""
    turns = list(_late_turns(evidence.config))
    trained = _trained_names(evidence, turns)
    waiting, broken = set(trained), set()
    for turn, batch in zip(turns, _training_batches(evidence, len(turns)), strict=True):
        for name, gradient in _gradients_of(evidence, batch, turn):
            if not gradient.isfinite().all():
                broken.add(name)
            elif gradient.any():
                waiting.discard(name)
    return _gradient_finding(evidence, trained, sorted(waiting - broken), sorted(broken), len(turns))


def _late_turns(config: RunConfig) -> Iterator[Supervision | None]:
    """What the heads learn in the last steps, when all have begun; on whole sequences, so that few batches do."""
    model, T = config.model, config.data.sequence_length
    total = 1_000_000  # the turns are those of the steps before it
    for step in range(total - max(GRADIENT_BATCHES, len(model.exit_turns())), total):
        supervision = supervision_at(model, step, total, sequence_length=T, seed=config.seed)
        yield replace(supervision, begin=0, end=T) if supervision else None


def _trained_names(evidence: Evidence, turns: Sequence[Supervision | None]) -> list[str]:
    """Every parameter but those of heads that this configuration does not train at the end of a run."""
    model = evidence.config.model
    names = [name for name, _ in evidence.model.named_parameters()]
    if model.family != "superblock":
        return names
    reached: dict[int, int] = {}  # by superblock the deepest prediction of its head that is trained
    for turn in turns:
        for term in trained_terms(model, turn):
            reached[term.superblock] = max(term.depth, reached.get(term.superblock, 0))
    return [name for name in names if _is_reached(name, reached)]


def _is_reached(name: str, reached: dict[int, int]) -> bool:
    parts = name.split(".")
    if parts[0] != "heads":
        return True
    depth = int(parts[3]) + 1 if parts[2] == "mtp" else 0
    return depth <= reached.get(int(parts[1]), -1)


def _training_batches(evidence: Evidence, number: int) -> Iterator[Batch]:
    config = evidence.config
    loader = training_loader(
        evidence.corpus.train,
        sequence_length=config.data.sequence_length,
        batch_size=GRADIENT_SEQUENCES,
        seed=config.seed,
        first_step=0,
        num_steps=number,
    )
    return (batch.to(evidence.device) for batch in loader)


def _gradients_of(
    evidence: Evidence, batch: Batch, supervision: Supervision | None
) -> Iterator[tuple[str, torch.Tensor]]:
    """The gradient of each parameter that has one, of one batch, in the precision of training."""
    model, config = evidence.model, evidence.config
    with torch.autocast(evidence.device.type, torch.bfloat16, enabled=config.trainer.precision == "bf16"):
        output = model(batch.input_ids_BT, batch.pack, batch.labels_BT, supervision=supervision)
    loss = sum(term.weight * term.total / max(1, int(term.count)) for term in output.losses.values())
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            yield name, parameter.grad
    model.zero_grad(set_to_none=True)


def _gradient_finding(
    evidence: Evidence, trained: Sequence[str], without: Sequence[str], broken: Sequence[str], batches: int
) -> Finding:
    left_out = sum(1 for _ in evidence.model.named_parameters()) - len(trained)
    note = f"; {left_out} of heads that are not trained at the end of this run are left out" if left_out else ""
    note += "" if evidence.config.model.mtp.enabled else "; there are no multi-token heads (model.mtp.enabled=false)"
    wanted = "a finite gradient other than zero for every trained parameter"
    faults = [f"{_some(broken)} not finite"] if broken else []
    faults += [f"{_some(without)} none"] if without else []
    if faults:
        return Finding(False, f"of {len(trained)} tensors, {' and '.join(faults)}", wanted, len(without) + len(broken))
    return Finding(True, f"all {len(trained)} tensors have one in {batches} batches{note}", wanted, 0.0)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} {'has' if len(names) == 1 else 'have'}"


# -- experts ----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def no_dead_experts(evidence: Evidence, asked: StatementConfig) -> Finding:
    """Tokens of the test split that each expert was sent, until all had one, or to the end."""
    limit, counts_LE, tokens = asked.limit or 0.0, None, 0
    wanted = f"at most {limit:g} experts without a token"
    for number, batch in enumerate(_test_batches(evidence), 1):
        output = evidence.model(batch.input_ids_BT, batch.pack, batch.labels_BT)
        if output.expert_counts_LE is None or not output.expert_counts_LE.numel():
            return Finding(True, "the model has no experts", wanted, 0.0)
        counts_LE = output.expert_counts_LE + (0 if counts_LE is None else counts_LE)
        tokens += batch.input_ids_BT.numel()
        if number >= EXPERT_BATCHES and bool((counts_LE > 0).all()):
            break
    if counts_LE is None:
        raise Missing("the test split is empty")
    dead = (counts_LE == 0).nonzero().tolist()
    L, E = counts_LE.shape
    if dead:
        places = ", ".join(f"layer {layer + 1} expert {expert + 1}" for layer, expert in dead[:3])
        more = f" and {len(dead) - 3} more" if len(dead) > 3 else ""
        words = f"{len(dead)} of {L} x {E} experts got none of {tokens:,} tokens: {places}{more}"
        return Finding(len(dead) <= limit, words, wanted, float(len(dead)))
    idlest = float((counts_LE.amin(dim=1) / counts_LE.mean(dim=1)).min())
    words = f"all {L} x {E} experts had tokens of {tokens:,}, the idlest {idlest:.1%} of an equal share"
    return Finding(True, words, wanted, 0.0)


def _test_batches(evidence: Evidence) -> Iterator[Batch]:
    config = evidence.config
    loader = evaluation_loader(
        evidence.corpus.test,
        sequence_length=config.data.sequence_length,
        batch_size=config.evaluation.batch_size,
    )
    return (batch.to(evidence.device) for batch in loader)


# -- samples ----------------------------------------------------------------------------------------------------------


def distinct_4grams(evidence: Evidence, asked: StatementConfig) -> Finding:
    """Samples that continue stretches of the test text, against how those stretches themselves go on.

    Both are cut to the same number of tokens, so that their shares compare; a share of different runs of four tokens
    falls with the length.
    """
    samples: list[list[int]] = []
    originals: list[list[int]] = []
    for seed, (prompt, original) in enumerate(_excerpts(evidence), 1):
        text = evidence.session.complete(evidence.session.tokenizer.decode(prompt), len(original), seed)
        sample = evidence.session.tokenizer.encode(text).ids
        shorter = min(len(sample), len(original))
        samples.append(sample[:shorter])
        originals.append(original[:shorter])
    share, reference = distinct_share(samples), distinct_share(originals)
    tokens, least = sum(map(len, samples)), (asked.limit or 0.0) * reference
    asked_tokens = sum(len(original) for _, original in _excerpts(evidence))
    if tokens < LEAST_SHARE * asked_tokens:
        words = f"the samples have {tokens:,} tokens, the stretches of text they continue {asked_tokens:,}"
        return Finding(False, words, f"samples of at least {LEAST_SHARE:.0%} of that length", share)
    words = f"{share:.1%} of the 4-grams in {len(samples)} samples ({tokens:,} tokens) are distinct"
    wanted = f"at least {least:.1%}, {asked.limit:g} times the test text's {reference:.1%}"
    return Finding(share >= least, words, wanted, share)


def distinct_share(texts: Sequence[Sequence[int]]) -> float:
    """The share of different ones among all runs of four tokens within these texts.

    Raises:
        Missing: if no text has four tokens.
    """
    grams = [tuple(text[i : i + 4]) for text in texts for i in range(len(text) - 3)]
    if not grams:
        raise Missing("no sample has four tokens: the model ends its texts at once")
    return len(set(grams)) / len(grams)


def _excerpts(evidence: Evidence) -> Iterator[tuple[list[int], list[int]]]:
    """(what to continue, how it goes on) at places of the test text that are the same each time."""
    test, config = evidence.corpus.test, evidence.config
    length = max(4, min(SAMPLE_TOKENS, config.data.sequence_length - PROMPT_TOKENS))
    if len(test) < PROMPT_TOKENS + length:
        raise Missing(f"the test split has only {len(test)} tokens")
    places = random.Random("excerpts")
    for _ in range(math.ceil(SAMPLED_TOKENS / length)):
        begin = _within_a_document(evidence, places, PROMPT_TOKENS + length)
        tokens = [int(token) for token in test.tokens[begin : begin + PROMPT_TOKENS + length]]
        yield tokens[:PROMPT_TOKENS], [token for token in tokens[PROMPT_TOKENS:] if token != test.end_of_text]


def _within_a_document(evidence: Evidence, places: random.Random, length: int) -> int:
    """A place from which one document goes on for `length` tokens, if a few tries find one."""
    test = evidence.corpus.test
    for _ in range(50):
        begin = places.randrange(len(test) - length + 1)
        if not (test.tokens[begin : begin + length] == test.end_of_text).any():
            break
    return begin
