"""The schedules that are shipped are valid, and start what they say."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from superblock.reporting.schedule.cron import parse


def tool(name: str) -> str:
    """A program beside this Python, or on the path."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed; it comes with the extra dev")
    return found


@pytest.fixture
def workflow(root: Path) -> Path:
    return root / ".github" / "workflows" / "report.yml"


@pytest.fixture
def manifest(root: Path) -> Path:
    return root / "reports" / "schedule" / "cronjob.yaml"


def script(workflow: Path) -> str:
    """Every shell line of a workflow."""
    jobs = yaml.safe_load(workflow.read_text())["jobs"].values()
    return "\n".join(step["run"] for job in jobs for step in job["steps"] if "run" in step)


@dataclass(frozen=True)
class Job:
    """A job that was played: how its steps ended, and what the last one would keep."""

    outcomes: Mapping[str, str]
    """`success`, `failure` or `skipped` by a step's name."""
    pinned: bool

    @property
    def kept(self) -> bool:
        return self.outcomes["Keep"] == "success"


PYTHON = """case "$*" in
*platform.run*) [ ! -e fail-train ] || exit 1; mkdir -p runs/new; echo x > runs/new/summary.json;;
*platform.report*) echo "$*" > reported; mkdir -p reports/latest; touch reports/latest/report.md
    [ ! -e fail-report ] || exit 3;;
esac
"""
GH = """[ ! -e fail-$2 ] || exit 1
case "$1 $2" in
"run list") cat ids;;
"run download") cp -r "kept-$3" "$7";;
api*) id=${2#*/runs/}; [ ! -d "kept-${id%%/*}" ]; echo $?;;
esac
"""


@pytest.fixture
def play(workflow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Job]:
    """Runs the steps of the report's job by the shell, with stand-ins for Python and GitHub's own program.

    Artifacts of earlier jobs are the folders `kept-<id>`; the file `fail-<what>` lets a part fail.
    """
    (tmp_path / "reports").mkdir()
    (tmp_path / "ids").write_text("")
    for place, text in (("tools/gh", GH), ("tools/python3", "[ ! -e fail-install ]"), (".venv/bin/python", PYTHON)):
        file = tmp_path / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}/tools:/usr/bin:/bin", "ARTIFACT": "report", "GITHUB_REF_NAME": "main",
        "GITHUB_REPOSITORY": "me/mine", "GITHUB_STEP_SUMMARY": str(tmp_path / "summary"), "PIN": "false",
    }  # fmt: skip
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    def job(*failing: str) -> Job:
        for name in failing:
            (tmp_path / f"fail-{name}").touch()
        steps, outcomes, ids = yaml.safe_load(workflow.read_text())["jobs"]["report"]["steps"], {}, {}
        for step in steps:
            outcome = "skipped"
            if _wanted(step.get("if"), outcomes.values(), ids):
                status = subprocess.run(["bash", "-e", "-c", step["run"]]).returncode if "run" in step else 0
                outcome = "failure" if status else "success"
            outcomes[step.get("name", step.get("uses"))] = ids[step.get("id", "")] = outcome
        for name in failing:
            (tmp_path / f"fail-{name}").unlink()
        said = tmp_path / "reported"
        return Job(outcomes, said.exists() and "pin=true" in said.read_text())

    return job


def _wanted(condition: str | None, outcomes: Any, ids: Mapping[str, str]) -> bool:
    """Whether a step is begun, by those of GitHub's conditions that the workflow uses."""
    if condition is None:
        return "failure" not in outcomes
    parts = condition.removeprefix("${{").removesuffix("}}").split("&&")
    known = [re.fullmatch(r"!cancelled\(\)|steps\.(\w+)\.outcome == 'success'", part.strip()) for part in parts]
    assert all(known), condition
    return all(found and (found[1] is None or ids[found[1]] == "success") for found in known)


def keep(folder: Path, number: int) -> None:
    """What a job that pinned its report left behind; jobs are listed newest first."""
    kept = folder / f"kept-{number}"
    (kept / "runs" / "old").mkdir(parents=True)
    (kept / "reports").mkdir()
    (kept / "reports" / "baseline.json").write_text(f'{{"report": "{number}"}}')
    (folder / "ids").write_text(f"{number}\n{(folder / 'ids').read_text()}")


def test_the_first_job_pins_and_keeps(play: Callable[..., Job], tmp_path: Path) -> None:
    (tmp_path / "ids").write_text("7\n8\n")  # they failed before they kept anything
    job = play()
    assert set(job.outcomes.values()) == {"success"} and job.pinned and job.kept


def test_a_later_job_goes_on_from_the_newest_artifact(play: Callable[..., Job], tmp_path: Path) -> None:
    keep(tmp_path, 7)
    keep(tmp_path, 8)
    (tmp_path / "ids").write_text(f"9\n{(tmp_path / 'ids').read_text()}")
    job = play("report")  # a regression
    assert (job.outcomes["Report"], job.kept, job.pinned) == ("failure", True, False)
    assert (tmp_path / "reports" / "baseline.json").read_text() == '{"report": "8"}'
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["new", "old"]


@pytest.mark.parametrize("part", ["install", "train", "list", "download", "repos"])
def test_a_job_without_baseline_and_history_keeps_and_pins_nothing(
    play: Callable[..., Job], tmp_path: Path, part: str
) -> None:
    keep(tmp_path, 7)
    if part == "repos":  # the question which artifacts there are
        gh = tmp_path / "tools" / "gh"
        gh.write_text(gh.read_text().replace("case", 'case "$1" in api) exit 1;; esac\ncase', 1))
    job = play(part)
    assert (job.outcomes["Report"], job.outcomes["Keep"], job.pinned) == ("skipped", "skipped", False)
    assert sorted(job.outcomes.values()).count("failure") == 1


def check_workflow(file: Path) -> int:
    command = [tool("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", str(file)]
    return subprocess.run(command, capture_output=True).returncode


def test_the_workflow_is_valid(workflow: Path, tmp_path: Path) -> None:
    assert check_workflow(workflow) == 0
    broken = tmp_path / "broken.yml"
    broken.write_text(workflow.read_text().replace("runs-on:", "runs-at:"))
    assert check_workflow(broken) != 0


def test_the_manifest_is_valid(manifest: Path, tmp_path: Path) -> None:
    command = [tool("kubernetes-validate"), "--strict"]
    done = subprocess.run([*command, str(manifest)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    broken = tmp_path / "broken.yaml"
    broken.write_text(manifest.read_text().replace("concurrencyPolicy:", "concurencyPolicy:"))
    assert subprocess.run([*command, str(broken)], capture_output=True).returncode != 0


def test_one_at_a_time_and_made_up_for(manifest: Path) -> None:
    claim, job = yaml.safe_load_all(manifest.read_text())
    assert job["spec"]["concurrencyPolicy"] == "Forbid" and job["spec"]["startingDeadlineSeconds"] > 0
    pod = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_the_times_are_times(workflow: Path, manifest: Path) -> None:
    text = yaml.safe_load(workflow.read_text())
    times = [entry["cron"] for entry in text[True]["schedule"]]  # YAML takes the key `on` for true
    times.append(list(yaml.safe_load_all(manifest.read_text()))[1]["spec"]["schedule"])
    assert [parse(time).weekdays for time in times] == [{1}, {1}]


def test_they_install_as_readme_says(root: Path, workflow: Path, manifest: Path) -> None:
    [line] = re.findall(
        r"<!-- command: run -->\s*```sh\n(.*?) && \S+ -m platform\.run", (root / "README.md").read_text()
    )
    assert line in script(workflow) and line in manifest.read_text()


@pytest.mark.parametrize("file", ["workflow", "manifest", "readme"])
def test_their_commands_are_understood(
    file: str, root: Path, request: pytest.FixtureRequest, superblock: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []
    for module, function in (("superblock.reporting.command", "run"), ("superblock.staging.pipeline", "run_stages")):
        stand_in = ModuleType(module)
        setattr(stand_in, function, lambda config, **rest: given.append(config) or 0)
        monkeypatch.setitem(sys.modules, module, stand_in)
    path = root / "reports" / "schedule" / "README.md" if file == "readme" else request.getfixturevalue(file)
    text = script(path) if file == "workflow" else path.read_text()
    text = text.replace('"$PIN"', "true").replace("\\\n", " ")
    found = re.findall(r"-m platform\.(\w+)([^|&\n`]*)", text)
    assert len(found) >= 1
    for command, words in found:
        typed = shlex.split(words.removesuffix("'") if words.count("'") % 2 else words)
        answer = superblock(command, *typed)
        assert answer.status == 0, answer.err
    assert len(given) >= len(found)


def test_the_shell_reads_the_workflow(workflow: Path) -> None:
    text = re.sub(r"\$\{\{.*?\}\}", "x", script(workflow))
    done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
