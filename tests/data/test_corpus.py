"""Preparation: splits without leaks, exact text behind the tokens, one preparation for many processes, no half corpus."""

import json
import os
import pickle
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from superblock.config.data import DataConfig
from superblock.data import corpus as corpus_module
from superblock.data import text_store, token_file
from superblock.data.corpus import Corpus, cache_folder, prepare
from superblock.data.documents import Account, DataError
from superblock.data.sources import open_source
from superblock.data.text_store import SPLITS, Ranges, TextStore, collect, draw, group_of, split

from .conftest import made_up


def config(path: Path, cache: Path, **settings: object) -> DataConfig:
    base = DataConfig(
        source="text",
        path=str(path),
        cache_dir=str(cache),
        vocab_size=320,
        sequence_length=16,
        val_percent=10,
        test_percent=20,
    )
    return replace(base, **settings)  # type: ignore[arg-type]


def silent(line: str) -> None:
    pass


def documents_of(corpus: Corpus, split: str) -> list[str]:
    file = getattr(corpus, split)
    parts = np.split(file.tokens, file.doc_starts[1:])
    return [corpus.tokenizer.decode(part[1:].tolist(), skip_special_tokens=False) for part in parts]


class TestSplits:
    def test_every_document_comes_back_exactly_once(self, corpus: Corpus, texts: list[str]) -> None:
        found = [text for name in SPLITS for text in documents_of(corpus, name)]
        assert sorted(found) == sorted(texts)
        assert corpus.meta["split"] == "whole documents"

    def test_streams_begin_documents_with_the_mark_and_nothing_else(self, corpus: Corpus) -> None:
        for name in SPLITS:
            file = getattr(corpus, name)
            assert np.flatnonzero(file.tokens == corpus.end_of_text).tolist() == file.doc_starts.tolist()
            assert file.doc_starts[0] == 0 and file.tokens.max() < corpus.tokenizer.get_vocab_size() == file.vocab_size
            assert len(file) == len(file.tokens) and file.tokens.dtype == np.uint16

    def test_bytes_are_exact(self, corpus: Corpus, texts: list[str]) -> None:
        for name in SPLITS:
            file = getattr(corpus, name)
            assert file.num_bytes == sum(len(text.encode()) for text in documents_of(corpus, name))
            assert file.num_bytes == corpus.token_bytes[file.tokens].sum()
        for name in ("val", "test"):
            assert corpus.text_path(name).read_text("utf-8") == "".join(documents_of(corpus, name))
        assert corpus.meta["account"]["num_bytes"] == sum(len(text.encode()) for text in texts)

    def test_the_split_of_a_document_depends_on_its_name_alone(self) -> None:
        assert draw("a/b.py") == draw("a/b.py") != draw("a/c.py")
        drawn = np.array([draw(f"file{i}.py") for i in range(20_000)])
        assert abs((drawn < 0.05).mean() - 0.05) < 0.006 and drawn.min() >= 0 and drawn.max() < 1
        assert draw("os.py") == 0.2418774763245995  # golden: a file must not move to another split

    def test_duplicates_are_left_out(self, tmp_path: Path) -> None:
        folder = tmp_path / "text"
        folder.mkdir()
        for i in range(60):
            (folder / f"{i:02}.txt").write_text(made_up(i % 20))
        (folder / "empty.txt").write_text(" \n")
        lines: list[str] = []
        corpus = prepare(config(folder, tmp_path / "cache"), report=lines.append)
        assert corpus.meta["account"]["counts"] == {"duplicate": 40, "empty": 1}
        assert corpus.meta["account"]["documents"] == 20 and "40 duplicate, 1 empty" in corpus.description
        assert any("40 x duplicate, first: 20.txt" in line for line in lines)

    def test_a_single_file_is_cut_near_line_ends(self, tmp_path: Path) -> None:
        text = "".join(f"line {i} of a book\n" for i in range(3000))
        (tmp_path / "book.txt").write_text(text)
        corpus = prepare(config(tmp_path / "book.txt", tmp_path / "cache"), report=silent)
        parts = [documents_of(corpus, name) for name in SPLITS]
        assert [len(part) for part in parts] == [1, 1, 1] and "".join(part[0] for part in parts) == text
        assert all(part[0].endswith("\n") for part in parts)
        assert corpus.test.num_bytes == pytest.approx(
            0.2 * len(text), abs=30
        ) and corpus.val.num_bytes == pytest.approx(0.1 * len(text), abs=30)

    def test_cutting_never_splits_a_character(self, tmp_path: Path) -> None:
        data = "日🙂é".encode() * 500
        (tmp_path / "text").write_bytes(data)
        store = TextStore(
            tmp_path / "text", np.array([0]), np.array([len(data)]), np.array([0.9]), "", np.zeros(1, np.int32), ("",)
        )
        parts, how = split(store, val_percent=11, test_percent=13)
        assert how == "the tail of each document"
        assert "".join(text for name in SPLITS for text in store.texts(parts[name])).encode() == data

    def test_every_document_knows_its_first_folder(self, corpus: Corpus, texts: list[str]) -> None:
        """Also where each document is cut, and for files that lie in no folder."""
        names = {text: f"part{number % 3}" for number, text in enumerate(texts)}
        file, documents = corpus.test, list(corpus.documents("test"))
        assert "".join(documents) == corpus.text_path("test").read_text("utf-8")
        found = [file.group_names[group] for group in file.groups.tolist()]
        assert found == [names[text] for text in documents]
        assert len(set(found)) == 3
        assert [group_of(name) for name in ("a/b/c.py", "top.py", "a.jsonl:3")] == ["a", "", ""]

    def test_pieces_of_one_document_stay_together(self, tmp_path: Path) -> None:
        (tmp_path / "in").mkdir()
        for i in range(100):
            (tmp_path / "in" / f"{i:02}.txt").write_text("".join(f"{i} {j}\n" for j in range(400)))
        source = open_source(DataConfig(source="text", path=str(tmp_path / "in"), max_document_bytes=1024))
        store = collect(source, tmp_path / "text", Account())
        assert len(store.begins) == 300 and len(np.unique(store.draws)) == 100

    @pytest.mark.parametrize("text", ["x", "one line", "a\nb\nc"])
    def test_too_little_text_says_how_much_is_needed(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "a.txt").write_text(text)
        with pytest.raises(DataError, match=r"too little .* give at least 10 kB|give more than .* kB of text"):
            prepare(config(tmp_path / "a.txt", tmp_path / "cache"), report=silent)

    def test_a_split_shorter_than_a_sequence_names_the_key(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text(made_up(1))
        with pytest.raises(
            DataError, match=r"data\.sequence_length=4096: the training split has only .* lower data\.sequence_length"
        ):
            prepare(config(tmp_path / "a.txt", tmp_path / "cache", sequence_length=4096), report=silent)

    def test_nothing_usable_says_why(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_bytes(b"\0\1\2")
        (tmp_path / "b.txt").write_bytes(b"")
        with pytest.raises(DataError, match=r"1 binary \(holds NUL bytes\)"):
            prepare(config(tmp_path, tmp_path / "cache"), report=silent)

    def test_strict_stops_at_the_first_fault(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text('{"text": "\\ud800"}\n')
        with pytest.raises(DataError, match=r"a\.jsonl:1, character 0: half of a surrogate pair"):
            prepare(config(tmp_path, tmp_path / "cache", on_error="raise"), report=silent)
        assert not list((tmp_path / "cache" / "corpora").glob("*-*[0-9a-f]/"))


class TestCache:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "text"
        folder.mkdir()
        for i in range(30):
            (folder / f"{i:02}.txt").write_text(made_up(i))
        return folder

    def test_a_second_start_reads_no_text(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        lines: list[str] = []
        first = prepare(config(folder, tmp_path / "cache"), report=lines.append)
        assert [word for word in ("reading", "documents", "learned", "wrote") if any(word in line for line in lines)] == [
            "reading", "documents", "learned", "wrote"]  # fmt: skip
        monkeypatch.setattr(corpus_module, "_prepare", None)
        began = time.perf_counter()
        second = prepare(config(folder, tmp_path / "cache"), report=lambda line: pytest.fail(line))
        assert time.perf_counter() - began < 0.5
        assert second.description == first.description and second.fingerprint == first.fingerprint

    @pytest.mark.parametrize(
        "settings",
        [
            {"vocab_size": 384},
            {"val_percent": 11.0},
            {"test_percent": 21.0},
            {"max_document_bytes": 2048},
            {"on_error": "raise"},
        ],
    )
    def test_every_setting_that_matters_has_its_own_corpus(
        self, folder: Path, tmp_path: Path, settings: dict[str, object]
    ) -> None:
        base = config(folder, tmp_path)
        changed = replace(base, **settings)  # type: ignore[arg-type]
        fingerprint = corpus_module._fingerprint
        assert fingerprint(base, open_source(base)) != fingerprint(changed, open_source(changed))
        same = replace(base, sequence_length=32, workers=2)
        assert fingerprint(base, open_source(base)) == fingerprint(same, open_source(same))

    def test_a_changed_file_makes_a_new_corpus(self, folder: Path, tmp_path: Path) -> None:
        first = prepare(config(folder, tmp_path / "cache"), report=silent)
        (folder / "00.txt").write_text("another text entirely\n")
        second = prepare(config(folder, tmp_path / "cache"), report=silent)
        assert first.folder != second.folder and first.digest != second.digest

    def test_the_same_text_elsewhere_has_the_same_tokens(self, folder: Path, tmp_path: Path) -> None:
        other = tmp_path / "moved"
        first = prepare(config(folder, tmp_path / "cache"), report=silent)
        folder.rename(other)
        second = prepare(config(other, tmp_path / "cache"), report=silent)
        assert second.digest == first.digest and second.folder != first.folder
        for name in ("tokenizer.json", "train.bin", "val.bin", "test.bin", "test.txt"):
            assert (first.folder / name).read_bytes() == (second.folder / name).read_bytes()

    @pytest.mark.parametrize(
        "damage", ["train.bin", "val.starts.npy", "test.txt", "tokenizer.json", "corpus.json", "test.json"]
    )
    @pytest.mark.parametrize("how", ["cut", "gone"])
    def test_a_damaged_corpus_is_made_again(self, folder: Path, tmp_path: Path, damage: str, how: str) -> None:
        first = prepare(config(folder, tmp_path / "cache"), report=silent)
        path = first.folder / damage
        before = path.read_bytes()
        path.unlink() if how == "gone" else path.write_bytes(before[:-5])
        lines: list[str] = []
        second = prepare(config(folder, tmp_path / "cache"), report=lines.append)
        assert "removing an incomplete corpus" in lines[0] and second.whole()
        assert (second.folder / damage).read_bytes() == before

    def test_an_interrupted_preparation_leaves_nothing(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(token_file, "write", interrupt)
            prepare(config(folder, tmp_path / "cache"), report=silent)
        assert not [p for p in (tmp_path / "cache" / "corpora").iterdir() if p.is_dir()]
        assert prepare(config(folder, tmp_path / "cache"), report=silent).whole()

    def test_what_a_killed_process_left_is_removed(self, folder: Path, tmp_path: Path) -> None:
        chosen = config(folder, tmp_path / "cache")
        name = f"text-{corpus_module._fingerprint(chosen, open_source(chosen))}"
        draft = tmp_path / "cache" / "corpora" / f".{name}.draft"
        draft.mkdir(parents=True)
        (draft / "train.bin").write_bytes(b"half")
        assert prepare(chosen, report=silent).whole() and not draft.exists()

    def test_two_at_once_prepare_once(self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        prepared, lines, results = [], [], []
        original: Callable[..., None] = corpus_module._prepare

        def slow(*arguments: object) -> None:
            prepared.append(1)
            time.sleep(0.3)
            original(*arguments)

        monkeypatch.setattr(corpus_module, "_prepare", slow)
        work = lambda: results.append(prepare(config(folder, tmp_path / "cache"), report=lines.append))  # noqa: E731
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(prepared) == 1 and len(results) == 3 and len({r.folder for r in results}) == 1
        assert any("another process is preparing" in line for line in lines)

    def test_files_that_change_while_they_are_read_are_noticed(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = text_store.collect

        def collect_and_change(*arguments: object) -> TextStore:
            store = original(*arguments)  # type: ignore[arg-type]
            (folder / "new.txt").write_text("came later")
            return store

        monkeypatch.setattr(text_store, "collect", collect_and_change)
        with pytest.raises(DataError, match="changed while they were read"):
            prepare(config(folder, tmp_path / "cache"), report=silent)

    def test_no_place_to_write_names_the_key(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "cache").write_text("a file, not a folder")
        with pytest.raises(DataError, match=r"data\.cache_dir="):
            prepare(config(folder, tmp_path / "cache"), report=silent)

    @pytest.mark.parametrize(
        ("system", "variables", "expected"),
        [
            ("linux", {}, "~/.cache/superblock"),
            ("darwin", {}, "~/Library/Caches/superblock"),
            ("win32", {"LOCALAPPDATA": "/local"}, "/local/superblock/cache"),
            ("linux", {"XDG_CACHE_HOME": "/xdg"}, "/xdg/superblock"),
            ("linux", {"XDG_CACHE_HOME": "/xdg", "SUPERBLOCK_CACHE": "/own"}, "/own"),
        ],
    )
    def test_where_the_cache_lies(
        self, monkeypatch: pytest.MonkeyPatch, system: str, variables: dict[str, str], expected: str
    ) -> None:
        for name in ("XDG_CACHE_HOME", "SUPERBLOCK_CACHE", "LOCALAPPDATA"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr("sys.platform", system)
        assert cache_folder(DataConfig()) == Path(expected).expanduser()
        assert cache_folder(DataConfig(cache_dir="/given")) == Path("/given")


class TestTokenFile:
    def test_pickles_as_its_path(self, corpus: Corpus) -> None:
        corpus.train.tokens  # noqa: B018 - opened, and still not part of the pickle
        data = pickle.dumps(corpus.train)
        assert len(data) < 1000 and np.array_equal(pickle.loads(data).tokens, corpus.train.tokens)

    def test_large_vocabularies_take_four_bytes(
        self, tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        data = b"some text\n"
        (tmp_path / "text").write_bytes(data)
        store = TextStore(
            tmp_path / "text", np.array([0]), np.array([len(data)]), np.array([0.0]), "", np.zeros(1, np.int32), ("",)
        )

        class Wide:
            def __getattr__(self, name: str) -> object:
                return getattr(corpus.tokenizer, name)

            def get_vocab_size(self) -> int:
                return 100_000

        file = token_file.write(store, Ranges(store.begins, store.ends, store.groups), Wide(), tmp_path, "train")  # type: ignore[arg-type]
        assert file.tokens.dtype == np.uint32 and file.whole()
        assert corpus.tokenizer.decode(file.tokens[1:].tolist()) == data.decode()

    def test_batches_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(token_file, "BATCH_BYTES", 100)
        batches = list(token_file._batches(iter(["x" * 60] * 7)))
        assert [len(batch) for batch in batches] == [2, 2, 2, 1]


def test_corpus_file_is_plain_json(corpus: Corpus) -> None:
    meta = json.loads((corpus.folder / "corpus.json").read_text("utf-8"))
    assert meta["settings"]["vocab_size"] == 320 and corpus.name == "text" and len(corpus.digest) == 16
    assert not [name for name in os.listdir(corpus.folder) if "=" in name or "," in name]
    assert "text" not in os.listdir(corpus.folder)
