"""The schedules that are shipped are valid, and start what they say."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
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
