"""Our model in lm-evaluation-harness: its numbers against ones that are computed without it."""

import json
import math
import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from superblock.benchmarks.harness.local_tasks import brackets, identifiers, write_tasks
from superblock.benchmarks.harness.tokens import boundary
from superblock.config.run import RunConfig
from superblock.data import token_file
from superblock.data.corpus import Corpus, prepare
from superblock.data.text_store import Ranges, TextStore
from superblock.evaluation.finished import own_text
from superblock.evaluation.language import describe, read_language
from superblock.evaluation.scoring import scored
from superblock.evaluation.slices import Layout, SlicedScores
from superblock.generation.session import Session, load_checkpoint
from superblock.tracking.spool import metric_history
from superblock.training.manifest import newest_whole

WORDS = ("suite=harness", "threads=1", "tracking=none")
TEXT = 'def parse(text, größe):\n    """Reads 日本 {0}."""\n    return [text[i] for i in range(len(größe))]\n\n' * 4


@pytest.fixture
def trained(finished_run: Path) -> SimpleNamespace:
    pytest.importorskip("lm_eval")
    from superblock.benchmarks.harness.model import HarnessModel

    checkpoint, _ = newest_whole(finished_run)
    assert checkpoint is not None
    session = load_checkpoint(checkpoint)
    model = HarnessModel(session, batch_size=3, precision="fp32")
    config, corpus = own_text(checkpoint, "test", digest=None, say=lambda text: None)
    return SimpleNamespace(session=session, model=model, config=config, corpus=corpus)


def asked(*arguments: Any) -> SimpleNamespace:
    """A request as far as a model looks at it."""
    return SimpleNamespace(args=arguments)


def independent(session: Session, ids: list[int], first: int) -> tuple[float, bool]:
    """Log-likelihood of `ids[first:]`, from the logits of the whole row in float64."""
    with torch.no_grad():
        logits = session.model(torch.tensor([ids])).logits_BTV[0].double()
    known = torch.log_softmax(logits[first - 1 : -1], dim=-1)
    targets = torch.tensor(ids[first:])
    return float(known.gather(1, targets[:, None]).sum()), bool((known.argmax(-1) == targets).all())


def test_loglikelihoods(trained: SimpleNamespace) -> None:
    session, model = trained.session, trained.model
    pairs = [("def parse(te", "xt)"), ("", "import os\n"), ("größ", "e = 日本"), ("return ", "self"), ("x", " = 1\n")]
    found = model.loglikelihood([asked(*pair) for pair in pairs], disable_tqdm=True)
    for (context, continuation), (value, greedy) in zip(pairs, found, strict=True):
        ids = [session.end_of_text, *session.tokenizer.encode(context + continuation).ids]
        sizes = [len(session.token_bytes[token]) for token in ids[1:]]
        within = sum(sum(sizes[: n + 1]) <= len(context.encode()) for n in range(len(sizes)))
        expected, likeliest = independent(session, ids, 1 + within)
        assert value == pytest.approx(expected, rel=1e-5)
        assert greedy == likeliest
    best = session.model(torch.tensor([[session.end_of_text]])).logits_BTV[0, -1].argmax().item()
    text = session.token_bytes[best].decode()
    assert model.loglikelihood([asked("", text)], disable_tqdm=True)[0][1]  # what greedy decoding writes


def test_long_contexts_lose_their_beginning(trained: SimpleNamespace) -> None:
    session, model = trained.session, trained.model
    ids = session.tokenizer.encode(TEXT + "end").ids
    within = boundary(ids, [len(session.token_bytes[i]) for i in range(512)], len(TEXT.encode()))
    [(value, _)] = model.loglikelihood([asked(TEXT, "end")], disable_tqdm=True)
    row = ids[-(model.max_length + 1) :]
    assert len(ids) > len(row)
    assert value == pytest.approx(independent(session, row, len(row) - (len(ids) - within))[0], rel=1e-5)
    [(whole, _)] = model.loglikelihood([asked("", TEXT)], disable_tqdm=True)  # longer than in training, scored whole
    alone = [session.end_of_text, *session.tokenizer.encode(TEXT).ids]
    assert whole == pytest.approx(independent(session, alone, 1)[0], rel=1e-5)


def test_whole_texts_are_read_as_the_language_suite_reads_them(trained: SimpleNamespace, tmp_path: Path) -> None:
    """A split of one document: the same windows, the same bits."""
    session, T = trained.session, trained.config.data.sequence_length
    text = next(  # whose last window is full, since the harness lets that one begin earlier
        text for end in range(600, 2000) if len(session.tokenizer.encode(text := (TEXT * 6)[:end]).ids) % T == 0
    )
    data = text.encode()
    (tmp_path / "text").write_bytes(data)
    store = TextStore(
        tmp_path / "text", np.array([0]), np.array([len(data)]), np.array([0.0]), "", np.zeros(1, np.int32), ("",)
    )
    part = token_file.write(store, Ranges(store.begins, store.ends, store.groups), session.tokenizer, tmp_path, "test")
    layout = Layout.of(part, T)
    metric = SlicedScores(layout, trained.corpus.token_bytes)
    for one in scored(session.model, session.device, part, trained.config):
        metric.update(one.scores, one.batch, one.first_sequence)
    sums = metric.compute()
    described = describe(sums, layout, part, split="test", step=1, digest="d", trained_length=T)
    [value, nothing] = trained.model.loglikelihood_rolling([asked(text), asked("")])
    assert value == pytest.approx(-sums[..., 0].sum(), rel=1e-6)
    assert nothing == 0
    bits = -value / math.log(2) / len(data)
    assert bits * (len(part) / (len(part) - 1)) == pytest.approx(described["bits_per_byte"], rel=1e-6)


def test_greedy_texts_are_those_of_generate(trained: SimpleNamespace) -> None:
    session, model = trained.session, trained.model
    whole = session.complete("def ", 12, 1, temperature=0)
    assert model.generate_until([asked("def ", {"until": [], "max_gen_toks": 12})]) == [whole]
    stop = whole[3:5]
    [short] = model.generate_until([asked("def ", {"until": ["nowhere", stop], "max_gen_toks": 12})])
    assert short == whole[: whole.index(stop)]
    [late] = model.generate_until([asked(TEXT, {"until": "\n\n", "max_gen_toks": 4})])
    ids = session.tokenizer.encode(TEXT).ids
    room = model.max_length - 1 - 4
    ending = b"".join(session.token_bytes[i] for i in ids[-room:]).decode("utf-8", "ignore")
    assert late == "".join(p.text for p in session.stream(ending, max_tokens=4, temperature=0, stop="\n\n"))


def test_the_default_tasks_and_ones_own(finished_run: Path, superblock: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    own = tmp_path / "own"
    own.mkdir()
    rows = [{"question": f"x = {n}\ny = ", "choices": [str(n), "import"], "answer": 0} for n in range(6)]
    (own / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (own / "own.yaml").write_text(
        f"task: own_numbers\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {own / 'own.jsonl'}\n"
        f"  cache_dir: {tmp_path / 'cache'}\ntest_split: test\noutput_type: multiple_choice\ndoc_to_text: question\n"
        'doc_to_choice: choices\ndoc_to_target: answer\ntarget_delimiter: ""\nmetric_list:\n  - metric: acc\n'
    )
    tasks = "harness.tasks=[superblock_brackets,superblock_identifiers,superblock_text,own_numbers]"
    answer = superblock("benchmark", *WORDS, tasks, f"harness.include_path={own}", "harness.limit=5", "name=mine")
    assert answer.status == 0, answer.err
    record = json.loads(Path("runs/benchmarks/mine/harness.json").read_text())
    assert record["schema"] == "superblock.harness/1" and record["run"] == finished_run.name
    assert list(record["tasks"]) == ["superblock_brackets", "superblock_identifiers", "superblock_text", "own_numbers"]
    assert {entry["examples"] for entry in record["tasks"].values()} == {5}
    for name in ("superblock_brackets", "superblock_identifiers", "own_numbers"):
        accuracy = record["tasks"][name]["metrics"]["acc"]
        assert 0 <= accuracy["value"] <= 1 and accuracy["stderr"] >= 0
    bits = record["tasks"]["superblock_text"]["metrics"]["bits_per_byte"]["value"]
    assert bits == pytest.approx(read_language(finished_run)["bits_per_byte"], rel=0.3)  # of a part of the same text
    assert record["tasks"]["superblock_brackets"]["chance"] == pytest.approx(1 / 3)
    assert record["tasks"]["own_numbers"]["chance"] is None
    part = "harness.limit=5 it is not added to the run"
    assert part in answer.out and not any(name.startswith("harness/") for name in metric_history(finished_run))

    tasks = "harness.tasks=[superblock_text,own_numbers]"
    answer = superblock("benchmark", *WORDS, tasks, f"harness.include_path={own}")
    assert answer.status == 0 and part not in answer.out
    whole = Path(f"runs/benchmarks/harness-{finished_run.name}/harness.json")
    found = json.loads(whole.read_text())["tasks"]
    history = metric_history(finished_run)
    bits = found["superblock_text"]["metrics"]["bits_per_byte"]["value"]
    assert history["harness/superblock_text/bits_per_byte"] == [(0, bits)]
    assert "harness/own_numbers/acc_stderr" in history
    answer = superblock("benchmark", *WORDS, tasks, f"harness.include_path={own}", "harness.limit=2")
    assert answer.status == 0 and json.loads(whole.read_text())["tasks"] == found
    assert Path(f"runs/benchmarks/harness-{finished_run.name}-limit2/harness.json").exists()

    answer = superblock("benchmark", *WORDS, "harness.tasks=[superblock_text]", "harness.include_path=nowhere")
    assert answer.status == 2 and "there is no such folder" in answer.err


@pytest.mark.slow
def test_tasks_of_the_hub_without_a_network(finished_run: Path, superblock: Callable[..., Any]) -> None:
    pytest.importorskip("lm_eval")
    answer = superblock("benchmark", *WORDS, "harness.tasks=[hellaswag]")
    assert answer.status == 2
    assert "hellaswag cannot be loaded" in answer.err and "need a network the first time" in answer.err
    answer = superblock("benchmark", *WORDS, "harness.tasks=[helaswag]")
    assert answer.status == 2 and "did you mean hellaswag?" in answer.err


def test_without_the_extra(finished_run: Path, superblock: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("model", "tasks"):
        monkeypatch.delitem(sys.modules, f"superblock.benchmarks.harness.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    answer = superblock("benchmark", *WORDS, "harness.tasks=[superblock_text]")
    assert answer.status == 2
    assert "lm_eval is not installed; install it with: pip install -c constraints.txt -e '.[harness]'" in answer.err


def test_questions_have_one_answer(finished_run: Path, tmp_path: Path) -> None:
    text = "def f(a, b):\n    table = {a: [b]}\n    return (table[a], ')' , [1)\n"
    found = list(brackets(text, random.Random(0)))
    assert [(one["context"][-1], ")]}"[one["label"]]) for one in found] == [
        ("b", ")"), ("b", "]"), ("]", "}"), ("a", "]"), ("'", ")"),
    ]  # fmt: skip
    assert found[0]["choices"] == ["):", "]:", "}:"]
    source = "alpha = beta + gamma\ndelta = epsilon(alpha, beta)\nreturn alpha\n"
    for one in identifiers(source, random.Random(0)):
        gold = one["choices"][one["label"]]
        assert source.startswith(gold, len(one["context"]))
        assert len(set(one["choices"])) == 4 and all(choice in one["context"] for choice in one["choices"])
        assert "return" not in one["choices"]

    checkpoint, _ = newest_whole(finished_run)
    assert checkpoint is not None
    config: RunConfig
    config, corpus = own_text(checkpoint, "test", digest=None, say=lambda line: None)
    assert write_tasks(list(corpus.documents("test")), corpus.tokenizer, tmp_path / "a") == {}
    again: Corpus = prepare(config.data, report=lambda line: None)
    write_tasks(list(again.documents("test")), again.tokenizer, tmp_path / "b")
    for name in ("superblock_brackets", "superblock_identifiers", "superblock_text"):
        data = (tmp_path / "a" / f"{name}.jsonl").read_bytes()
        assert data == (tmp_path / "b" / f"{name}.jsonl").read_bytes()
    rows = [json.loads(line) for line in (tmp_path / "a" / "superblock_brackets.jsonl").read_text().splitlines()]
    labels = [row["label"] for row in rows]
    assert labels.count(0) == labels.count(1) == labels.count(2) >= 4
    assert "superblock_brackets" in write_tasks(["no brackets here\n"], corpus.tokenizer, tmp_path / "c")
