"""A checkpoint is whole or absent, continues bit for bit, and is refused by whoever it does not belong to."""

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import TOTAL, small_config, small_model, small_optimizer, train
from torch import nn

from superblock.config.fields import ConfigError
from superblock.models.language_model import build_model
from superblock.training import checkpoint, manifest, storage
from superblock.training.checkpoint import CheckpointError, load, newest_whole, save, verify

CONFIG: dict[str, Any] = {"seed": 1}


def _save(folder: Path, step: int, model: nn.Module | None = None, optimizer: Any = None, **options: Any) -> Path:
    model = model or nn.Linear(4, 4)
    optimizer = optimizer or small_optimizer(model)
    return save(folder, model=model, optimizer=optimizer, progress={"step": step}, config=CONFIG, **options)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def _equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("stop", [2, 6])  # before and after the heads have their first gradient
def test_continues_bit_for_bit(tmp_path: Path, name: str, stop: int) -> None:
    whole = small_model()
    losses = train(whole, small_optimizer(whole, name), range(TOTAL))

    first = small_model()
    optimizer = small_optimizer(first, name)
    assert train(first, optimizer, range(stop)) == losses[:stop]
    path = _save(tmp_path, stop, first, optimizer)

    second = build_model(small_config(), seed=2)
    optimizer = small_optimizer(second, name)
    assert load(path, model=second, optimizer=optimizer) == {"step": stop}
    assert train(second, optimizer, range(stop, TOTAL)) == losses[stop:]
    assert _equal(whole, second)


def test_overwrites_the_state_of_a_used_optimizer(tmp_path: Path) -> None:
    model = small_model()
    path = _save(tmp_path, 0, model, small_optimizer(model))
    optimizer = small_optimizer(model)
    train(model, optimizer, range(4))
    load(path, model=model, optimizer=optimizer)
    assert not optimizer.state
    assert _equal(model, small_model())


def test_holds_what_generation_needs(tmp_path: Path) -> None:
    tokenizer = tmp_path / "somewhere.json"
    tokenizer.write_text('{"version": "1.0"}')
    path = _save(tmp_path, 7, tokenizer=tokenizer)
    assert _names(tmp_path) == ["step-0000007"]
    assert checkpoint.load_config(path) == CONFIG
    assert checkpoint.load_progress(path) == {"step": 7}
    assert checkpoint.tokenizer_path(path).read_text() == tokenizer.read_text()
    content = manifest.read_manifest(path)
    assert content["tokenizer"] == manifest.describe(tokenizer)["sha256"]
    assert sorted(content["files"]) == [".metadata", "__0_0.distcp", "config.json", "progress.json", "tokenizer.json"]
    assert str(tmp_path).encode() not in (path / ".metadata").read_bytes()

    model = nn.Linear(4, 4)
    checkpoint.load_model_weights(path, model)
    tokenizer.write_text('{"version": "2.0"}')
    with pytest.raises(CheckpointError, match="another tokenizer"):
        load(path, model=model, tokenizer=tokenizer)
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        checkpoint.tokenizer_path(_save(tmp_path, 8))


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"moe__top_k": 1}, "model.moe.top_k is 2 there and 1 here"),  # changes no shape
        ({"gqa__rope_theta": 500.0}, "model.gqa.rope_theta is 10000.0 there and 500.0 here"),
        ({"num_superblocks": 1}, "model.num_superblocks is 2 there and 1 here"),
    ],
)
def test_refuses_another_architecture(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    model = small_model()
    progress: dict[str, Any] = {"step": 1}
    path = save(
        tmp_path,
        model=model,
        optimizer=small_optimizer(model),
        progress=progress,
        config={"model": asdict(model.config)},
    )
    other = small_model(**change)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ConfigError, match=words):
        load(path, model=other)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
    load(path, model=small_model(gqa__backend="eager", cross_entropy_chunk=64))  # another way to compute the same


def test_a_setting_newer_than_the_checkpoint_has_its_default(tmp_path: Path) -> None:
    model = small_model()
    stored = asdict(small_config())
    del stored["mtp"]["exits"], stored["mtp"]["exit_start"], stored["final_z_loss"]
    path = save(tmp_path, model=model, optimizer=small_optimizer(model), progress={"step": 1}, config={"model": stored})
    load(path, model=small_model())
    with pytest.raises(CheckpointError, match=r"model\.mtp\.exits is rotate there and all here"):
        load(path, model=small_model(mtp__exits="all"))


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (nn.Linear(4, 4, bias=False), "has, beyond this model, bias"),
        (nn.Sequential(nn.Linear(4, 4)), "lacks 0.bias, 0.weight"),
        (nn.Linear(4, 6), "weight is [4, 4] there and [6, 4] here"),
    ],
)
def test_refuses_other_names_and_shapes(tmp_path: Path, other: nn.Module, words: str) -> None:
    path = _save(tmp_path, 1)
    with pytest.raises(CheckpointError) as error:
        load(path, model=other)
    assert words in str(error.value)


@pytest.mark.parametrize(("there", "here"), [("adamw", "muon"), ("muon", "adamw")])
def test_refuses_another_optimizer(tmp_path: Path, there: str, here: str) -> None:
    model = small_model()
    optimizer = small_optimizer(model, there)
    train(model, optimizer, range(1))
    path = _save(tmp_path, 1, model, optimizer)
    with pytest.raises(CheckpointError, match="another optimizer"):
        load(path, model=model, optimizer=small_optimizer(model, here))


# -- damage -----------------------------------------------------------------------------------------------------------


def _truncate(path: Path) -> None:
    os.truncate(path / "__0_0.distcp", 100)


def _flip(path: Path) -> None:
    data = bytearray((path / "__0_0.distcp").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "__0_0.distcp").write_bytes(data)


def _edit_manifest(path: Path, **changes: Any) -> None:
    content = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(content | changes))


DAMAGE = {
    "has 100 bytes instead of": _truncate,
    "has changed: its checksum differs": _flip,
    "progress.json is missing": lambda path: (path / "progress.json").unlink(),
    "no manifest, so it was never finished": lambda path: (path / "manifest.json").unlink(),
    "its manifest cannot be read": lambda path: os.truncate(path / "manifest.json", 30),
    "its format is 99": lambda path: _edit_manifest(path, format=99),
    "does not name .metadata": lambda path: _edit_manifest(path, files={}),
    "outside of the checkpoint": lambda path: _edit_manifest(path, files={"../../x": {}}),
}


@pytest.mark.parametrize("words", DAMAGE)
def test_a_broken_checkpoint_is_skipped_with_its_reason(tmp_path: Path, words: str) -> None:
    good, bad = _save(tmp_path, 1), _save(tmp_path, 2)
    DAMAGE[words](bad)
    assert words in (verify(bad) or "")
    found, skipped = newest_whole(tmp_path)
    assert found == good
    assert [name for name, _ in skipped] == ["step-0000002"] and words in skipped[0][1]
    with pytest.raises(CheckpointError, match=words.replace(".", "[.]")):
        load(bad, model=nn.Linear(4, 4))


def test_nothing_to_find(tmp_path: Path) -> None:
    assert newest_whole(tmp_path) == (None, [])
    with pytest.raises(CheckpointError, match="never finished"):
        load(tmp_path / "checkpoints" / "step-0000001", model=nn.Linear(4, 4))


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def _seal(path: Path) -> None:
    """Makes the manifest agree with the files, as an attacker would."""
    files = {name: manifest.describe(path / name) for name in manifest.read_manifest(path)["files"]}
    _edit_manifest(path, files=files)


def test_a_malicious_listing_is_not_run(tmp_path: Path) -> None:
    path, canary = _save(tmp_path, 1), tmp_path / "canary"
    (path / ".metadata").write_bytes(pickle.dumps(_Canary(canary)))
    _seal(path)
    assert verify(path) is None
    with pytest.raises(CheckpointError, match="mkdir, which no checkpoint needs"):
        load(path, model=nn.Linear(4, 4))
    assert not canary.exists()


class _EarlyPickler(pickle.Pickler):
    """Pickles members of enumerations as Python 3.11.0 to 3.11.3 does."""

    def reducer_override(self, item: Any) -> Any:
        return (getattr, (type(item), item.name)) if isinstance(item, Enum) else NotImplemented


def test_a_listing_of_an_early_python(tmp_path: Path) -> None:
    path = _save(tmp_path, 1)
    listing = pickle.loads((path / ".metadata").read_bytes())
    with (path / ".metadata").open("wb") as file:
        _EarlyPickler(file).dump(listing)
    assert b"getattr" in (path / ".metadata").read_bytes()
    _seal(path)
    load(path, model=nn.Linear(4, 4))


@pytest.mark.parametrize("name", ["numel", "__init__", "__reduce__"])
def test_no_other_attribute_is_given_out(tmp_path: Path, name: str) -> None:
    class Ask:
        def __reduce__(self) -> tuple[Any, ...]:
            return getattr, (torch.Size, name)

    path = _save(tmp_path, 1)
    (path / ".metadata").write_bytes(pickle.dumps(Ask()))
    _seal(path)
    with pytest.raises(CheckpointError, match=f"an attribute {name} of"):
        load(path, model=nn.Linear(4, 4))


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch on saving to the same folder
def test_a_malicious_object_is_not_run(tmp_path: Path) -> None:
    """torch itself unpickles objects inside of a checkpoint's data files."""
    import torch.distributed.checkpoint as dcp

    path, canary = _save(tmp_path, 1), tmp_path / "canary"
    dcp.save({"model/weight": _Canary(canary), "model/bias": torch.zeros(4)}, checkpoint_id=path, no_dist=True)
    _seal(path)
    with pytest.raises(CheckpointError):
        load(path, model=nn.Linear(4, 4))
    assert not canary.exists()


def test_a_listing_that_points_elsewhere_is_refused(tmp_path: Path) -> None:
    path = _save(tmp_path, 1)
    (path / ".metadata").write_bytes((path / ".metadata").read_bytes().replace(b"__0_0.distcp", b"../../secret"))
    _seal(path)
    with pytest.raises(CheckpointError, match=r"points to \.\./\.\./secret"):
        load(path, model=nn.Linear(4, 4))


# -- writing ----------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_the_previous_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = _save(tmp_path, 1)

    def full(path: Path, tensors: Any) -> None:
        (path / "__0_0.distcp").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage, "write_tensors", full)
    with pytest.raises(OSError, match=r"step-0000002 was not written, earlier ones are intact: the disk is full"):
        _save(tmp_path, 2)
    assert _names(tmp_path) == ["step-0000001"]
    assert newest_whole(tmp_path) == (good, [])


@pytest.mark.skipif(sys.platform == "win32", reason="limits of file sizes are POSIX")
def test_a_real_write_that_fails_half_way(tmp_path: Path) -> None:
    """The kernel refuses bytes after the first megabyte, as it does on a full disk, in the middle of torch's writing."""
    code = (
        "import resource, signal, sys; from pathlib import Path; import torch\n"
        "from superblock.training.checkpoint import save\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "model = torch.nn.Linear(16, 16); optimizer = torch.optim.AdamW(model.parameters())\n"
        "save(Path(sys.argv[1]), model=model, optimizer=optimizer, progress={'step': 1}, config={})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))\n"
        "model = torch.nn.Linear(1000, 1000)\n"
        "try: save(Path(sys.argv[1]), model=model, optimizer=optimizer, progress={'step': 2}, config={})\n"
        "except OSError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "step-0000002 was not written, earlier ones are intact" in done.stdout, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert _names(tmp_path) == ["step-0000001"]


def test_a_failure_inside_torch_is_an_oserror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match=r"step-0000003 was not written.*unexpected pos"):
        _save(tmp_path, 3)
    assert _names(tmp_path) == []


def test_the_same_step_can_be_saved_again(tmp_path: Path) -> None:
    _save(tmp_path, 5)
    model = nn.Linear(4, 4)
    path = _save(tmp_path, 5, model)
    assert _names(tmp_path) == ["step-0000005"]
    other = nn.Linear(4, 4)
    load(path, model=other)
    assert _equal(model, other)


def test_keeps_the_best_and_the_last(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    best = _save(tmp_path, 2, best=True)
    for step in range(3, 7):
        _save(tmp_path, step, keep_last=2)
    assert _names(tmp_path) == ["best.json", "step-0000002", "step-0000005", "step-0000006"]
    assert manifest.best(tmp_path) == best
    _save(tmp_path, 7, keep_last=1, best=True)
    assert _names(tmp_path) == ["best.json", "step-0000007"]


def test_a_broken_checkpoint_does_not_count_as_one_of_the_last(tmp_path: Path) -> None:
    for step in (1, 2):
        _save(tmp_path, step, keep_last=2)
    _truncate(tmp_path / "checkpoints" / "step-0000002")
    _save(tmp_path, 3, keep_last=2)
    assert _names(tmp_path) == ["step-0000001", "step-0000003"]


def test_what_is_being_read_is_not_removed(tmp_path: Path) -> None:
    first = _save(tmp_path, 1)
    with manifest.reading(first):
        _save(tmp_path, 2, keep_last=1)
        assert verify(first) is None
    _save(tmp_path, 3, keep_last=1)
    assert _names(tmp_path) == ["step-0000003"]


def test_a_kill_between_two_renames_loses_nothing(tmp_path: Path) -> None:
    path = _save(tmp_path, 4)
    old = path.with_name(".old-step-0000004")
    path.rename(old)
    shutil.copytree(old, path.with_name(".tmp-step-0000004"))
    assert newest_whole(tmp_path) == (old, [])
    _save(tmp_path, 5)
    assert _names(tmp_path) == ["step-0000004", "step-0000005"]


@pytest.mark.slow
def test_kill_9_at_any_time_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """Kills a process that does nothing but save, at times spread over a whole save."""
    code = (
        "import sys; from pathlib import Path; import torch\n"
        "from superblock.training.checkpoint import save\n"
        "model = torch.nn.Linear(700, 700); optimizer = torch.optim.AdamW(model.parameters(), fused=True); step = int(sys.argv[2])\n"
        "while True:\n"
        "    step += 1; torch.nn.init.constant_(model.weight, step)\n"
        "    save(Path(sys.argv[1]), model=model, optimizer=optimizer, progress={'step': step}, config={})\n"
        "    print(step, flush=True)\n"
    )
    last = 0
    for attempt in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path), str(last)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        printed = int(process.stdout.readline())
        time.sleep(0.03 + 0.017 * attempt)
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
        process.wait()
        path, _ = newest_whole(tmp_path)
        assert path is not None
        last = checkpoint.load_progress(path)["step"]
        assert last >= int(rest[-1] if rest else printed)
        model = nn.Linear(700, 700)
        load(path, model=model)
        assert (model.weight == last).all()


def test_is_quick(tmp_path: Path) -> None:
    """Five million parameters with AdamW's state, 60 MB; the goal of 0.3 s is left room for a busy machine."""
    model = nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(20)))
    optimizer = small_optimizer(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    start = time.process_time()
    _save(tmp_path, 1, model, optimizer)
    assert time.process_time() - start < 1.0
