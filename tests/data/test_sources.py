"""What is read, and what bad input does: named, counted, never lost in silence."""

import bz2
import gzip
import io
import json
import lzma
import os
import sys
import tracemalloc
import zipfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from superblock.config.data import DataConfig
from superblock.config.fields import ConfigError
from superblock.data.documents import Account, DataError, Document, cut, decode_stream
from superblock.data.embedded import EmbeddedSource
from superblock.data.sources import open_source


def read(
    path: Path | str, *, strict: bool = False, limit: int = 1 << 20, **settings: object
) -> tuple[dict[str, str], Account]:
    account = Account(strict=strict)
    source = open_source(DataConfig(source="text", path=str(path), max_document_bytes=limit, **settings))  # type: ignore[arg-type]
    return {d.identity: d.text for d in source.documents(account)}, account


def table(values: list[object], column: str = "text") -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({column: values}), buffer)
    return buffer.getvalue()


class TestKinds:
    def test_text_files_are_one_document_each_and_keep_their_bytes(self, tmp_path: Path) -> None:
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "two.md").write_bytes(b"# two\r\nno end of line")
        (tmp_path / "one.txt").write_bytes("\ufeffönë\n".encode())
        (tmp_path / "c.py").write_bytes(b"x = 1\n")
        documents, account = read(tmp_path)
        assert documents == {"b/two.md": "# two\r\nno end of line", "c.py": "x = 1\n", "one.txt": "önë\n"}
        assert list(documents) == sorted(documents) and not account.counts

    @pytest.mark.parametrize("ending", ["", ".gz", ".bz2", ".xz", ".zst"])
    @pytest.mark.parametrize("kind", [".txt", ".jsonl", ".parquet"])
    def test_compression_changes_nothing(self, tmp_path: Path, kind: str, ending: str) -> None:
        text = "grün\n" * 50
        data = {".txt": text.encode(), ".jsonl": json.dumps({"text": text}).encode(), ".parquet": table([text])}[kind]
        path = tmp_path / f"a{kind}{ending}"
        if ending == ".zst":
            with pyarrow.OSFile(str(path), "wb") as raw, pyarrow.CompressedOutputStream(raw, "zstd") as stream:
                stream.write(data)
        else:
            path.write_bytes(
                {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}[ending](data)
            )
        documents, account = read(tmp_path)
        assert list(documents.values()) == [text] and not account.counts

    def test_zip_holds_many_files(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
            archive.writestr("sub/a.txt", "first")
            archive.writestr("b.jsonl", '{"text": "second"}\n')
            archive.writestr("picture.png", b"\x89PNG")
        assert read(tmp_path)[0] == {"all.zip/b.jsonl:1": "second", "all.zip/sub/a.txt": "first"}

    def test_globs(self, tmp_path: Path) -> None:
        for name in ("a.txt", "b.md", "deep/er/c.txt", "deep/d.bin"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(name)
        assert set(read(tmp_path / "**" / "*.txt")[0]) == {"a.txt", "deep/er/c.txt"}
        assert set(read(tmp_path / "*")[0]) == {"a.txt", "b.md"}

    def test_names_do_not_depend_on_where_the_folder_lies(self, tmp_path: Path) -> None:
        for place in ("here", "elsewhere/below"):
            (tmp_path / place / "x").mkdir(parents=True)
            (tmp_path / place / "x" / "a.txt").write_text("text")
        assert read(tmp_path / "here")[0] == read(tmp_path / "elsewhere" / "below")[0]

    def test_other_text_field(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text('{"body": "one"}\n\n{"body": "two"}')
        assert list(read(tmp_path, text_field="body")[0]) == ["a.jsonl:1", "a.jsonl:3"]


class TestWhereThereIsNothing:
    def test_missing_path(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"data\.path=.*nowhere: there is no such file"):
            read(tmp_path / "nowhere")

    def test_empty_folder_says_what_to_put_in(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"nothing to read here.*\.jsonl"):
            read(tmp_path)

    def test_folder_of_other_files_says_what_it_found(self, tmp_path: Path) -> None:
        (tmp_path / "a.pdf").write_bytes(b"%PDF")
        with pytest.raises(DataError, match="1 file of another kind"):
            read(tmp_path)

    def test_glob_without_match(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="nothing to read"):
            read(tmp_path / "*.txt")

    def test_file_of_another_kind(self, tmp_path: Path) -> None:
        (tmp_path / "a.docx").write_bytes(b"PK")
        with pytest.raises(DataError, match=r"a\.docx: cannot tell what this file is"):
            read(tmp_path / "a.docx")

    def test_link_to_itself(self, tmp_path: Path) -> None:
        (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
        with pytest.raises(DataError, match="leads nowhere or to itself"):
            read(tmp_path / "loop.txt")


BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    "invalid UTF-8": ("bad.txt", b"ok \xff\xfe no", r"bad\.txt, byte 3: not UTF-8"),
    "UTF-16": ("bad.txt", "text".encode("utf-16-le"), r"bad\.txt, byte 1: binary"),
    "binary junk": ("bad.py", bytes(range(256)), r"bad\.py, byte 0: binary"),
    "NUL in the middle": ("bad.md", b"a" * 5000 + b"\0" + b"b", r"bad\.md, byte 5,000: binary"),
    "truncated gzip": ("bad.txt.gz", gzip.compress(b"abc" * 1000)[:-12], r"bad\.txt\.gz: .*cannot be read"),
    "no gzip at all": ("bad.txt.gz", b"plain text", r"bad\.txt\.gz: .*cannot be read"),
    "damaged xz": ("bad.txt.xz", lzma.compress(b"abc" * 100)[:40], r"bad\.txt\.xz: .*cannot be read"),
    "no zstd at all": ("bad.txt.zst", b"plain text", r"bad\.txt\.zst: .*cannot be read"),
    "no zip at all": ("bad.zip", b"plain text", r"bad\.zip: .*cannot be read"),
    "malformed line": ("bad.jsonl", b'{"text": "one"}\n{"text": \n', r"bad\.jsonl:2: .*malformed JSON"),
    "missing field": ("bad.jsonl", b'{"text": "one"}\n{"body": 1, "id": 2}\n', r"bad\.jsonl:2 has: body, id: no field 'text'"),
    "line that is a list": ("bad.jsonl", b'{"text": "one"}\n[1]\n', r"bad\.jsonl:2 has: list"),
    "field that is a number": ("bad.jsonl", b'{"text": "one"}\n{"text": 3}\n', r"bad\.jsonl:2: int: field 'text' is no text"),
    "bytes in a line": ("bad.jsonl", b'{"text": "one"}\n{"text": "\xff"}\n', r"bad\.jsonl:2: .*malformed JSON"),
    "damaged table": ("bad.parquet", table(["a"])[:-9], r"bad\.parquet: .*damaged parquet"),
    "table without the field": ("bad.parquet", table(["a"], "body"), r"bad\.parquet has: body: no field 'text'"),
    "table with an empty cell": ("bad.parquet", table(["one", None]), r"bad\.parquet:2: NoneType: record without text"),
}  # fmt: skip


class TestBadFiles:
    @pytest.mark.parametrize("case", BAD_FILES)
    def test_is_counted_or_stops(self, tmp_path: Path, case: str) -> None:
        name, data, message = BAD_FILES[case]
        (tmp_path / "good.txt").write_text("good")
        (tmp_path / name).write_bytes(data)
        documents, account = read(tmp_path)
        assert documents["good.txt"] == "good"
        assert sum(account.counts.values()) == 1
        assert "bad" in next(account.lines()) and account.summary().startswith("1 ")
        with pytest.raises(DataError, match=message) as error:
            read(tmp_path, strict=True)
        assert "data.on_error=skip" in str(error.value)

    def test_the_good_lines_of_a_bad_file_stay(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\nnonsense\n{"text": "three"}\n')
        assert list(read(tmp_path)[0].values()) == ["one", "three"]

    def test_folder_loops_end_and_are_counted(self, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "x.txt").write_text("x")
        (tmp_path / "a" / "up").symlink_to(tmp_path)
        documents, account = read(tmp_path)
        assert list(documents) == ["a/x.txt"] and account.counts == {"link to a folder that is read already": 1}
        with pytest.raises(DataError, match="link to a folder"):
            read(tmp_path, strict=True)

    def test_links_to_nowhere_are_counted(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("a")
        (tmp_path / "b.txt").symlink_to(tmp_path / "gone.txt")
        documents, account = read(tmp_path)
        assert list(documents) == ["a.txt"] and account.counts == {"cannot be read (FileNotFoundError)": 1}

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
    def test_forbidden_files_are_counted(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_text("a")
        (tmp_path / "b.txt").write_text("b")
        (tmp_path / "b.txt").chmod(0)
        assert read(tmp_path)[1].counts == {"cannot be read (PermissionError)": 1}

    def test_folder_with_the_name_of_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").mkdir()
        (tmp_path / "a.txt" / "b.txt").write_text("inside")
        assert read(tmp_path / "a.txt")[0] == {"b.txt": "inside"}
        assert read(tmp_path)[0] == {"a.txt/b.txt": "inside"}


class TestLongDocuments:
    def test_gigantic_line_is_cut_in_bounded_memory(self, tmp_path: Path) -> None:
        size, limit = 100_000_000, 1_000_000
        with (tmp_path / "line.txt").open("wb") as file:
            for _ in range(100):
                file.write("aé日🙂".encode() * (size // 1000))
        total = (tmp_path / "line.txt").stat().st_size
        account = Account()
        source = open_source(DataConfig(source="text", path=str(tmp_path), max_document_bytes=limit))
        found = pieces = 0
        tracemalloc.start()
        for document in source.documents(account):
            size_of = len(document.text.encode())
            assert limit - 4 < size_of <= limit or found + size_of == total
            assert document.key == "line.txt"
            found, pieces = found + size_of, pieces + 1
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert found == total and pieces >= total // limit
        assert peak < 12 * limit
        assert account.counts == {"cut into pieces of data.max_document_bytes": 1}

    def test_gigantic_record_is_left_out_and_the_next_is_read(self, tmp_path: Path) -> None:
        long = json.dumps({"text": "x" * 50_000})
        (tmp_path / "a.jsonl").write_text(f'{long}\n{{"text": "next"}}\n')
        documents, account = read(tmp_path, limit=1024)
        assert documents == {"a.jsonl:2": "next"}
        assert account.examples == {"line longer than twice data.max_document_bytes": "a.jsonl:1"}

    def test_an_invalid_piece_does_not_take_the_others_along(self, tmp_path: Path) -> None:
        (tmp_path / "a.txt").write_bytes(b"a" * 1024 + b"\xff" * 1024 + b"c" * 10)
        documents, account = read(tmp_path, limit=1024)
        assert documents == {"a.txt#1": "a" * 1024, "a.txt#3": "c" * 10}
        assert account.examples["not UTF-8"] == "a.txt#2, byte 1,024"

    @given(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), min_size=1), st.integers(4, 40)
    )
    def test_pieces_join_to_the_text(self, text: str, limit: int) -> None:
        for documents in (
            list(cut("a", text, limit, Account())),
            list(decode_stream("a", io.BytesIO(text.encode()), limit, Account())),
        ):
            assert "".join(d.text for d in documents) == text
            assert all(len(d.text.encode()) <= limit for d in documents)
            assert {d.key for d in documents} == {"a"}
            assert len({d.identity for d in documents}) == len(documents)


class TestEmbedded:
    def test_is_the_standard_library_without_tests(self) -> None:
        source = EmbeddedSource(1 << 24)
        account = Account(strict=True)
        documents = list(source.documents(account))
        names = [document.identity for document in documents]
        assert names == sorted(names) and {"os.py", "json/decoder.py"} <= set(names)
        assert not [n for n in names if {"test", "tests", "site-packages", "idle_test"} & set(n.split("/")[:-1])]
        assert not [n for n in names if n.startswith("_sysconfigdata")]
        assert sum(len(d.text) for d in documents) > 5e6
        assert ".".join(map(str, sys.version_info[:3])) in source.label

    def test_key_follows_the_files(self, monkeypatch: pytest.MonkeyPatch) -> None:
        source = EmbeddedSource(1 << 24)
        before = source.key()
        assert before == EmbeddedSource(1 << 24).key()
        source._files = source._files[:-1]
        assert source.key() != before

    def test_without_source_files_it_says_what_to_use(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr("superblock.data.embedded.sysconfig.get_path", lambda name: str(tmp_path))
        with pytest.raises(DataError, match="use data=text"):
            EmbeddedSource(1 << 24)

    def test_unreadable_file_is_counted(self, tmp_path: Path) -> None:
        source = EmbeddedSource(1 << 24)
        source.root, source._files = tmp_path, ["a.py", "b.py"]
        (tmp_path / "a.py").write_bytes(b"# coding: nonsense\n")
        (tmp_path / "b.py").write_bytes("# coding: latin-1\nx = 'é'\r\n".encode("latin-1"))
        account = Account()
        assert [d.text for d in source.documents(account)] == ["# coding: latin-1\nx = 'é'\n"]
        assert account.counts == {"cannot be read (SyntaxError)": 1}


class TestHub:
    @pytest.fixture(autouse=True)
    def _cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf")
        monkeypatch.setattr("datasets.config.HF_MODULES_CACHE", str(tmp_path / "hf_modules"))

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "owner" / "stories"
        (folder / "data").mkdir(parents=True)
        (folder / "extra").mkdir()
        (folder / "README.md").write_text(
            "---\nconfigs:\n- config_name: default\n  data_files:\n"
            "  - {split: train, path: data/train-*.parquet}\n  - {split: test, path: data/test-*.parquet}\n"
            "- config_name: extra\n  data_files:\n  - {split: train, path: extra/*.parquet}\n---\n# Stories\n"
        )
        (folder / "data" / "train-00000-of-00001.parquet").write_bytes(table(["one", "two", None]))
        (folder / "data" / "test-00000-of-00001.parquet").write_bytes(table(["three"]))
        (folder / "extra" / "more.parquet").write_bytes(table(["four"]))
        return folder

    def read(self, name: Path | str, **settings: object) -> tuple[dict[str, str], Account]:
        account = Account()
        source = open_source(DataConfig(source="hub", name=str(name), **settings))  # type: ignore[arg-type]
        return {d.identity: d.text for d in source.documents(account)}, account

    def test_reads_a_local_folder_in_the_hubs_layout(self, folder: Path) -> None:
        documents, account = self.read(folder)
        assert documents == {"train:0": "one", "train:1": "two"}
        assert account.examples == {"record without text": "train:2: NoneType"}
        assert self.read(folder, split="test")[0] == {"test:0": "three"}
        assert self.read(folder, subset="extra")[0] == {"train:0": "four"}

    def test_key_follows_name_split_and_files(self, folder: Path) -> None:
        key = lambda **settings: open_source(DataConfig(source="hub", name=str(folder), **settings)).key()  # noqa: E731
        before = key()
        assert before == key() != key(split="test")
        (folder / "data" / "train-00000-of-00001.parquet").write_bytes(table(["other"]))
        assert key() != before

    @pytest.mark.parametrize(
        ("settings", "message"),
        [({"split": "dev"}, r"data\.split=dev"), ({"subset": "none"}, r"data\.subset=none"),
         ({"text_field": "body"}, r"data\.text_field=body: the records of .* have: text")],
    )  # fmt: skip
    def test_what_is_not_there_is_named(self, folder: Path, settings: dict[str, str], message: str) -> None:
        with pytest.raises(DataError, match=message):
            self.read(folder, **settings)

    def test_unknown_data_set(self) -> None:
        with pytest.raises(DataError, match=r"data\.name=no/such-data-set"):
            self.read("no/such-data-set")

    def test_empty_folder(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(DataError, match=r"data\.name=.*empty"):
            self.read(tmp_path / "empty")


def test_nothing_heavy_is_imported_to_open_a_source(tmp_path: Path) -> None:
    import subprocess

    (tmp_path / "a.txt").write_text("a")
    code = (
        "import sys; from superblock.config.data import DataConfig; from superblock.data.sources import open_source;"
        f"open_source(DataConfig()).key(); open_source(DataConfig(source='text', path={str(tmp_path)!r})).key();"
        "sys.exit(' '.join({'datasets', 'torch', 'pyarrow', 'tokenizers'} & set(sys.modules)) or 0)"
    )
    library = str(Path(sys.modules["superblock"].__file__ or "").parents[1])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.append({library!r}); {code}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_pieces_know_their_document() -> None:
    assert Document("a#2", "text", "a").key == "a" and Document("a", "text").key == "a"
