"""Whatever is wrong with a command line is said in at most four lines that name it, with exit status 2."""

from collections.abc import Callable

import pytest

CASES = {
    # unknown keys, groups, options, commands, flags
    "trainer.bugdet=3": "trainer.bugdet=3: there is no such key; did you mean trainer.budget?",
    "learning_rate=1e-3": "did you mean optim.learning_rate or growth.learning_rate?",
    "modle.d_model=8": "did you mean scale.d_model or model.d_model?",
    "zzz=1": "zzz=1: there is no such key (`superblock run --help` lists all)",
    "stages=mvp1": "did you mean stage?",
    "stage=mvp9": "stage=mvp9: must be one of mvp1, mvp2, mvp3, mvp4",
    "scale=smal": "must be one of base, full, mini, small, tiny (did you mean scale=small?)",
    "model={gdn:{key_dim:8}}": "must be one of superblock",
    "model.gdn={keydim:3}": "model.gdn.keydim: there is no such key; did you mean model.gdn.key_dim?",
    "stage.budget.huge=3minutes": "stage.budget has no entry huge",
    "--stage": "--stage: there is no such flag; settings are written key=value, without dashes",
    # the form of an override
    "mvp3": "mvp3: settings are written key=value; did you mean stage=mvp3?",
    "generate": "is a command; one command at a time",
    "rubbish": "rubbish: settings are written key=value",
    "trainer.budget==3": "cannot be read",
    "data.name='a": "cannot be read",
    "+seed=1": "every setting exists already; write seed=<value>",
    "+foo=1": "there is no such key",
    "++seed=1": "every setting exists already; write seed=<value>",
    "~stage": "a setting can be changed but not removed",
    "stage@model=mvp1": "every setting exists already; write stage=<value>",
    "seed=1,2": "several values need --multirun",
    # wrong types
    "trainer.batch_size=abc": "trainer.batch_size=abc: must be a whole number, at least 1",
    "seed=1.5": "seed=1.5: must be a whole number, at least 0 and at most 2147483647",
    "data.val_percent=x": "data.val_percent=x: must be a number, above 0 and at most 40",
    "trainer.progress=maybe": "trainer.progress=maybe: must be true or false",
    "model.pattern=3": "model.pattern=3: must be a list such as [a,b], one of gdn, gqa",
    "scale.d_model=wide": "scale.d_model=wide: must be a whole number",
    "model.gqa.window=far": "model.gqa.window=far: must be a whole number or null",
    "seed=null": "seed=null: must be a whole number",
    # values that cannot work
    "trainer.batch_size=-1": "trainer.batch_size=-1: must be at least 1",
    "trainer.budget=-4steps": "trainer.budget=-4steps: must be a number with a unit: '300 steps'",
    "trainer.budget=0steps": "trainer.budget=0steps: must be above zero",
    "stage.budget.tiny=soon": "stage.budget.tiny=soon: must be a number with a unit",
    "optim.learning_rate=nan": "optim.learning_rate=nan: must be above 0 and at most 10",
    "optim.learning_rate=-1": "optim.learning_rate=-1.0: must be above 0",
    "model.route=1": "there is no such key",
    "model.moe.top_k=99": "model.moe.top_k=99: must be at most num_experts=8",
    "model.gqa.num_heads=3": "model.gqa.num_kv_heads=2: must divide num_heads=3",
    "model.gdn.num_value_heads=5": "model.gdn.num_value_heads=5: must be a multiple of num_key_heads=4",
    "model.pattern=[gdn,mamba]": "model.pattern=mamba: must be one of gdn, gqa",
    "model.wiring=postnorm": "must be one of prenorm, literal (did you mean prenorm?)",
    "data.sequence_length=1000": "data.sequence_length=1000: is longer than model.max_sequence_length=256",
    "data.vocab_size=8192": "data.vocab_size=8192: is larger than model.vocab_size=4096",
    "trainer.micro_batches=3": "trainer.micro_batches=3: must divide batch_size=8",
    "name=a/b": "name=a/b: must be letters, digits",
    "data=text": "data.path=null: data=text needs data.path=<file, folder or glob>",
    "data.path=notes": "data.path=notes: has an effect only with data=text",
    "data.name=corpus": "data.name=corpus: has an effect only with data=hub",
    "tracking=server": "tracking.uri=null: tracking=server needs tracking.uri=http://host:port",
    "scale=full": "stage mvp1 has no training budget at scale=full",
    "scale.name=huge": "trainer.budget: the stage has no budget for scale=huge; give one",
    "trainer.strategy=fsdp": "torchrun --nproc-per-node=2 -m superblock.cli run trainer.strategy=fsdp",
}


@pytest.mark.parametrize("override", CASES)
def test_run(superblock: Callable, override: str) -> None:
    answer = superblock("run", override)
    assert answer.status == 2
    assert CASES[override] in answer.err
    assert 1 <= len(answer.err.splitlines()) <= 4
    assert "+" not in answer.err.replace(override, "") and "hydra.cc" not in answer.err
    assert answer.out.count("\n") <= 1  # nothing but the first line of a run that its processes then refuse


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["rum"], "rum: there is no such command; did you mean run?"),
        (["frobnicate"], "there are run, generate, plan, benchmark, report, ui"),
        (["plan", "run=3"], "run=3: there is no such key"),
        (["plan", "optim=muon"], "optim=muon: there is no such key"),
        (["generate", "top_p=0"], "top_p=0.0: must be above 0 and at most 1"),
        (["report", "select.scael=mini"], "select.scael=mini: there is no such key; did you mean select.scale?"),
        (
            ["report", "fail_on=regresion"],
            "fail_on=regresion: must be one of none, regression (did you mean regression?)",
        ),
        (
            ["report", "select.seeds=1"],
            "select.seeds=1: must be a list of whole numbers such as [1] or [1,2], at least 0",
        ),
        (["benchmark", "suite=probes", "probes.tasks=[s6]"], "s5, needle (did you mean s5?)"),
        (["report", "name=../there"], "name=../there: must be letters, digits"),
        (["report", "name=latest"], "name=latest: is taken"),
        (["report", "schedule.install=true"], "schedule.install=True: needs to know when; set schedule.cron"),
        (["report", "schedule.cron=0 6 * *"], "schedule.cron=0 6 * *: has 4 fields, must have five"),
        (["report", "schedule.cron=0 6 * * 8"], "schedule.cron=0 6 * * 8: day-of-week 8 cannot be read"),
        (["report", "schedule.before=stage=mvp9"], "schedule.before=stage=mvp9: stage=mvp9: must be one of mvp1"),
        (
            ["report", "schedule.before=trainer.bugdet=1"],
            "trainer.bugdet=1: there is no such key; did you mean trainer.budget",
        ),
        (["report", "pin=true", "schedule.cron=@daily"], "pin=True: cannot be scheduled"),
        (["ui", "tracking.port=70000"], "tracking.port=70000: must be at least 1 and at most 65535"),
        (["run", "--cfg"], "--cfg/-c: expected one argument"),
        (["run", "--cfg", "jbo"], "invalid choice: 'jbo'"),
        (["run", "--multirun", "seed=1,x"], "seed=x: must be a whole number"),
        (["run", "--multirun", "stage=mvp1,mvp7"], "stage=mvp7: must be one of mvp1, mvp2, mvp3, mvp4"),
        (["run", "--multirun", "scale=tiny,full"], "no training budget at scale=full"),
        (["run", "--cfg", "job", "seed=x"], "seed=x: must be a whole number"),
        (["run", "--config-name", "walk"], "there is no such configuration"),
    ],
)
def test_other_commands_and_flags(superblock: Callable, words: list[str], text: str) -> None:
    answer = superblock(*words)
    assert answer.status == 2
    assert text in answer.err
    assert len(answer.err.splitlines()) <= 4


def test_only_the_first_process_speaks(superblock: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    answer = superblock("run", "seed=x")
    assert (answer.status, answer.out, answer.err) == (2, "", "")


def test_a_fault_of_the_program_keeps_its_traceback(superblock: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    from superblock.cli import plan

    def fail(config: object) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(plan, "run", fail)
    with pytest.raises(RuntimeError, match="a fault"):
        superblock("plan")


def test_an_error_of_the_user_that_the_library_finds(superblock: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    from superblock.cli import plan
    from superblock.config.fields import ConfigError

    def refuse(config: object) -> None:
        raise ConfigError("data.path=/nowhere: there is no such file\n\n" + "x" * 2000 + "\n3\n4\n5\n6")

    monkeypatch.setattr(plan, "run", refuse)
    answer = superblock("plan")
    assert answer.status == 2 and answer.err.startswith("data.path=/nowhere: there is no such file\nxxx")
    assert len(answer.err.splitlines()) == 4 and len(answer.err) < 1000


def test_interruption_is_no_traceback(superblock: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    from superblock.cli import plan

    def interrupt(config: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(plan, "run", interrupt)
    answer = superblock("plan")
    assert (answer.status, answer.err) == (130, "")


@pytest.mark.parametrize(
    ("environment", "override", "text"),
    [
        ({"WORLD_SIZE": "2"}, "trainer.strategy=single", "torchrun started 2 processes; must be ddp, fsdp or auto"),
        ({"WORLD_SIZE": "2"}, "--multirun", "--multirun and stage=all: run one process at a time"),
    ],
)
def test_under_torchrun(
    superblock: Callable, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], override: str, text: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    answer = superblock("run", override)
    assert answer.status == 2 and text in answer.err


def test_causes_that_form_a_ring() -> None:
    """Hydra makes one where a debugger or coverage traces the program."""
    from superblock.cli.commands import COMMANDS
    from superblock.cli.errors import explain

    first, second = RuntimeError("first"), RuntimeError("second")
    first.__cause__, second.__cause__ = second, first
    assert explain(first, COMMANDS["run"], []) is None
