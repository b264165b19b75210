"""Tasks for the harness that need no network: made from the test text a model was trained beside.

superblock_brackets      which closing bracket comes here: `)`, `]` or `}`, followed by the same rest of the line.
                         Each is right equally often, so that chance is 1/3.
superblock_identifiers   which name comes here, of four that occurred before in the same context; chance is 1/4.
superblock_text          perplexity of words and bytes, bits per byte, on the beginnings of documents.

A question is kept only if all its answers begin at the same border between tokens, so that none has more of the text to
predict than the others. The same text and tokenizer give the same files.
"""

import json
import keyword
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer

from superblock.benchmarks.harness.tokens import boundary
from superblock.data.tokenizer import token_bytes

CHANCE = {"superblock_brackets": 1 / 3, "superblock_identifiers": 1 / 4}
CONTEXT = 300
"""Characters before the question, at most; it begins at the beginning of a line."""
REST = 16
"""Characters of the line behind a bracket, at most."""
QUESTIONS = 300
PER_DOCUMENT = 12
"""Questions of one kind from a document, at most."""
TEXTS, TEXT_CHARACTERS = 40, 4000
FEWEST = 12
PAIRS = {"(": ")", "[": "]", "{": "}"}
NAME = re.compile(r"[A-Za-z_]\w{2,}", re.ASCII)

Question = dict[str, Any]
Questions = Callable[[str, random.Random], Iterator[Question]]


def write_tasks(documents: Sequence[str], tokenizer: Tokenizer, folder: Path) -> dict[str, str]:
    """Writes the data and a task file for each task that the text has enough for; says of the others why not.

    Args:
        documents: the test text.
        tokenizer: the model's.
        folder: made if needed; what lies there is replaced.
    """
    folder.mkdir(parents=True, exist_ok=True)
    same = _same_border(tokenizer)
    made = {
        "superblock_brackets": _balanced([_pick(documents, one, same) for one in map(_closed_by, PAIRS.values())]),
        "superblock_identifiers": _pick(documents, identifiers, same)[:QUESTIONS],
        "superblock_text": [{"text": _beginning(text)} for text in documents[:TEXTS]],
    }
    missing = {}
    for name, rows in made.items():
        if len(rows) < (FEWEST if name in CHANCE else 1):
            missing[name] = f"the test text has {len(rows)} examples for it, and it needs {FEWEST}"
            continue
        data = folder / f"{name}.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(_task(name, data), sort_keys=False), "utf-8")
    return missing


def brackets(text: str, draw: random.Random) -> Iterator[Question]:
    """A question at each closing bracket whose opening one lies in the context."""
    opened: list[tuple[str, int]] = []
    for at, sign in enumerate(text):
        if sign in PAIRS:
            opened.append((PAIRS[sign], at))
        elif sign in PAIRS.values() and opened:
            expected, place = opened.pop()
            begin = _context_begin(text, at)
            if expected != sign:
                opened.clear()  # within a string or a comment: nothing before it counts
            elif begin <= place:
                rest = text[at + 1 :].split("\n", 1)[0][:REST]
                choices = [closing + rest for closing in PAIRS.values()]
                yield {"context": text[begin:at], "choices": choices, "label": list(PAIRS.values()).index(sign)}


def identifiers(text: str, draw: random.Random) -> Iterator[Question]:
    """A question at each name that occurred before, against three others that did too."""
    for found in NAME.finditer(text):
        name, begin = found.group(), _context_begin(text, found.start())
        context = text[begin : found.start()]
        known = sorted({other for other in NAME.findall(context) if not keyword.iskeyword(other)})
        others = [other for other in known if not other.startswith(name) and not name.startswith(other)]
        if name in known and len(others) >= 3:
            choices = [name, *draw.sample(others, 3)]
            draw.shuffle(choices)
            yield {"context": context, "choices": choices, "label": choices.index(name)}


# -- parts ------------------------------------------------------------------------------------------------------------


def _pick(documents: Sequence[str], questions: Questions, same: Callable[[Question], bool]) -> list[Question]:
    """Some of every document, in an order that does not depend on it."""
    draw, picked = random.Random(0), []
    for text in documents:
        found = list(questions(text, draw))
        draw.shuffle(found)
        picked += [one for one in found[: 4 * PER_DOCUMENT] if one["context"].strip() and same(one)][:PER_DOCUMENT]
    draw.shuffle(picked)
    return picked


def _closed_by(sign: str) -> Questions:
    """The questions about brackets whose answer is `sign`."""
    label = list(PAIRS.values()).index(sign)
    return lambda text, draw: (one for one in brackets(text, draw) if one["label"] == label)


def _balanced(kinds: list[list[Question]]) -> list[Question]:
    """As many of each kind as there are of the rarest, in turn."""
    least = min(QUESTIONS // len(kinds), *map(len, kinds))
    return [one for row in zip(*(ones[:least] for ones in kinds), strict=True) for one in row]


def _same_border(tokenizer: Tokenizer) -> Callable[[Question], bool]:
    sizes = token_bytes(tokenizer).tolist()

    def same(question: Question) -> bool:
        context = question["context"]
        size = len(context.encode())
        ids = [tokenizer.encode(context + choice).ids for choice in question["choices"]]
        beginnings = {tuple(one[: boundary(one, sizes, size)]) for one in ids}
        return len(beginnings) == 1

    return same


def _context_begin(text: str, at: int) -> int:
    """The beginning of the first line within reach; of the text or of the reach itself if there is none."""
    first = max(0, at - CONTEXT)
    newline = text.find("\n", first, at)
    return first if first == 0 or newline < 0 else newline + 1


def _beginning(text: str) -> str:
    end = text.rfind("\n", 0, TEXT_CHARACTERS) + 1
    return text if len(text) <= TEXT_CHARACTERS else text[: end or TEXT_CHARACTERS]


def _task(name: str, data: Path) -> dict[str, Any]:
    common = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(data.resolve())},
            "cache_dir": str(data.resolve().parent / "cache"),
        },
        "test_split": "test",
    }
    if name not in CHANCE:
        measured = ("word_perplexity", "byte_perplexity", "bits_per_byte")
        return common | {
            "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "text",
            "metric_list": [{"metric": one} for one in measured], "metadata": {"version": 1},
        }  # fmt: skip
    return common | {
        "output_type": "multiple_choice", "doc_to_text": "context", "doc_to_choice": "choices", "doc_to_target": "label",
        "target_delimiter": "", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        "metadata": {"version": 1, "chance": CHANCE[name]},
    }  # fmt: skip
