"""The folder that holds the reports: each in a folder of its own, whole or not at all, with the baseline and the newest."""

import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from superblock.config.fields import ConfigError, closest
from superblock.reporting.content import Report
from superblock.reporting.files import read_report
from superblock.tracking.files import read_json, write_json

REPORT_FILE = "report.json"
MARKDOWN_FILE = "report.md"
BASELINE_FILE = "baseline.json"
LATEST = "latest"
NEW, OLD = ".new-", ".old-"
"""What folders begin with while they are written, and while they are replaced."""


def made_folder(output: str) -> Path:
    """The folder that holds the reports, made if it is absent.

    Raises:
        ConfigError: if it cannot be, such as where a file is in its place.
    """
    folder = Path(output).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output={output}: cannot be a folder ({error.strerror}); name another") from None
    return folder


class Shelf:
    """The reports below a folder. Only one process may change them at a time, see `lock`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def tidy(self) -> None:
        """Puts right what an interrupted process left: an unfinished report goes, a replaced one comes back."""
        for left in self.folder.glob(f"{NEW}*"):
            shutil.rmtree(left, ignore_errors=True)
        for left in self.folder.glob(f"{OLD}*"):
            home = self.folder / left.name.removeprefix(OLD)
            if home.exists():
                shutil.rmtree(left, ignore_errors=True)
            else:
                os.rename(left, home)

    def find(self, name: str) -> Report | None:
        """A report by its name; None if there is none that this version can read."""
        return read_report(self.folder / name / REPORT_FILE)

    def all(self) -> list[Report]:
        """Every report that can be read, oldest first."""
        files = sorted(self.folder.glob(f"[!.]*/{REPORT_FILE}"))
        found = [report for file in files if not file.parent.is_symlink() and (report := read_report(file))]
        return sorted(found, key=lambda report: (report.time, report.name))

    def put(self, name: str, write: Callable[[Path], None]) -> bool:
        """Writes a report in a folder of its own and moves it into place; whether anything became different.

        What somebody added to the folder of a report stays there: only what `write` makes is compared and replaced.

        Args:
            name: of the report.
            write: fills the folder it is given.

        Raises:
            ConfigError: if something that is no report has this name.
        """
        home, new, old = (self.folder / f"{prefix}{name}" for prefix in ("", NEW, OLD))
        if home.is_symlink() or (home.exists() and not (home / REPORT_FILE).is_file()):
            raise ConfigError(f"name={name}: {home} holds something that is no report; choose another name")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        write(new)
        if home.exists():
            written = _contents(new, _files(new))
            ours = [path for path in _files(home) if path in written or _is_picture_of(home, path)]
            if _contents(home, ours) == written:
                shutil.rmtree(new)
                return False
            away = {home / path for path in ours}
            shutil.copytree(
                home, new, symlinks=True, dirs_exist_ok=True,
                ignore=lambda place, names: {name for name in names if Path(place, name) in away},
            )  # fmt: skip
            os.rename(home, old)
        os.rename(new, home)
        shutil.rmtree(old, ignore_errors=True)
        return True

    def baseline(self) -> str | None:
        """Name of the pinned report."""
        name = read_json(self.folder / BASELINE_FILE).get("report")
        return name if isinstance(name, str) else None

    def pin(self, name: str) -> None:
        """Makes a report what later ones are compared with."""
        write_json(self.folder / BASELINE_FILE, {"report": name})

    def named(self, name: str) -> Report:
        """The report that `baseline=<name>` means.

        Raises:
            ConfigError: if there is none.
        """
        if (report := self.find(name)) is None:
            known = [report.name for report in self.all()]
            near = closest(name, known)
            hint = (
                f"did you mean {near[0]}?"
                if near
                else f"there are {', '.join(known[-5:])}"
                if known
                else "none is there"
            )
            raise ConfigError(f"baseline={name}: {self.folder} holds no such report that can be read; {hint}")
        return report

    def point_latest(self, made: Report) -> None:
        """Lets `latest` lead to the report just made, or to one of newer runs, where the system has symbolic links."""
        before = self.find(LATEST)
        name = max([made, *([before] if before else []), *self.all()], key=lambda report: report.time).name  # the first
        link = self.folder / LATEST
        if link.exists() and not link.is_symlink():
            return  # somebody's own
        if link.is_symlink() and os.readlink(link) == name:
            return
        temporary = self.folder / f".{LATEST}.{os.getpid()}"
        with suppress(OSError, NotImplementedError):
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(name, target_is_directory=True)
            os.replace(temporary, link)


def _files(folder: Path) -> list[str]:
    """The paths of all files below a folder."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _contents(folder: Path, files: Iterable[str]) -> dict[str, bytes]:
    """Files by their path below a folder."""
    return {path: (folder / path).read_bytes() for path in files}


def _is_picture_of(folder: Path, path: str) -> bool:
    """Whether a file was drawn for the page in Markdown of a report, which shows all that were."""
    page = folder / MARKDOWN_FILE
    return path.endswith(".svg") and page.is_file() and f"]({path})" in page.read_text("utf-8", "replace")
