"""What pip would install is what the repository holds."""

import tomllib
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version


@pytest.fixture(scope="module")
def project(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def tested(root: Path) -> dict[str, Version]:
    lines = [line for line in (root / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    pairs = [line.split("==") for line in lines]
    assert len({name.lower() for name, _ in pairs}) == len(pairs), "a package is listed twice"
    return {canonical(name): Version(number) for name, number in pairs}


def canonical(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def test_every_package_is_listed(project: dict, root: Path) -> None:
    folders = {file.parent.relative_to(root / "platform") for file in (root / "platform").glob("superblock/**/*.py")}
    library = {".".join(folder.parts) for folder in folders}
    assert set(project["tool"]["setuptools"]["packages"]) == library | {"superblock.conf", "superblock.stages"}


def test_every_folder_of_the_library_is_a_package(root: Path) -> None:
    folders = {file.parent for file in (root / "platform" / "superblock").glob("**/*.py")} | {root / "conf"}
    assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []


def test_every_dependency_has_a_tested_version_in_its_range(project: dict, tested: dict[str, Version]) -> None:
    extras = project["project"]["optional-dependencies"].values()
    lines = [*project["project"]["dependencies"], *(line for extra in extras for line in extra)]
    for requirement in map(Requirement, lines):
        if requirement.name != "superblock":
            assert requirement.specifier.contains(tested[canonical(requirement.name)]), requirement


def test_what_dependencies_need_has_a_tested_version_too(tested: dict[str, Version]) -> None:
    """The whole closure on this machine: a package that constraints.txt forgets would come in any version."""
    missing, queue = set(), ["superblock"]
    seen = set(queue)
    while queue:
        for requirement in map(Requirement, requires(queue.pop()) or []):
            name = canonical(requirement.name)
            if name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
                continue
            seen.add(name)
            if name.startswith(("nvidia-", "cuda-", "triton")):
                continue  # torch pins these itself, by exact version
            if name not in tested:
                missing.add(name)
            queue.append(name)
    assert missing == set()
    assert len(seen) > 50


@pytest.mark.parametrize("name", ["torch", "lightning", "mlflow", "hydra-core", "datasets", "tokenizers"])
def test_the_tested_versions_are_the_installed_ones(name: str, tested: dict[str, Version]) -> None:
    assert Version(version(name)).public == str(tested[name])


def test_xformers_is_asked_for_only_where_it_has_wheels(project: dict) -> None:
    [xformers] = [r for r in map(Requirement, project["project"]["dependencies"]) if r.name == "xformers"]
    assert xformers.marker is not None

    def wanted(system: str, machine: str) -> bool:
        return xformers.marker.evaluate({"sys_platform": system, "platform_machine": machine})

    assert wanted("linux", "x86_64") and wanted("win32", "AMD64")
    assert not wanted("linux", "aarch64") and not wanted("darwin", "arm64")


def test_a_bare_lightning_of_the_attack_is_refused(project: dict) -> None:
    [lightning] = [r for r in map(Requirement, project["project"]["dependencies"]) if r.name == "lightning"]
    assert not lightning.specifier.contains("2.6.2") and not lightning.specifier.contains("2.6.3")


def test_licence(project: dict, root: Path) -> None:
    assert project["project"]["license"] == "Apache-2.0"
    assert "Apache License" in (root / "LICENSE").read_text()[:200]
