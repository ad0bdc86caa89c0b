"""Where a suite comes from: the source distribution on PyPI, in a scratch directory."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from tests.peer.suites import Suite

PROJECT = Path(__file__).parents[2]
SCRATCH = PROJECT / ".peer-suite"


@dataclass(frozen=True, slots=True)
class Source:
    """A suite on this machine: its tests, and an environment of its own."""

    suite: Suite

    @property
    def directory(self) -> Path:
        return SCRATCH / self.suite.name

    @property
    def checkout(self) -> Path:
        """Where its tests are."""
        return self.directory / self.suite.distribution

    @property
    def environment(self) -> Path:
        return self.directory / "venv"

    @property
    def python(self) -> Path:
        return self.environment / "bin" / "python"

    def prepare(self) -> None:
        """Have all of it at hand; a minute the first time, then nothing.

        Raises SystemExit if the archive is not the one this project knows.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        if not self.checkout.is_dir():
            self._unpack(self._downloaded())
        ready = self.environment / ".ready"
        wanted = "\n".join((*self.suite.installs, *self.suite.requirement_files))
        if not ready.exists() or ready.read_text() != wanted:
            self._install()
            ready.write_text(wanted)

    def _downloaded(self) -> Path:
        suite = self.suite
        archive = self.directory / f"{suite.distribution}.tar.gz"
        if not archive.exists():
            self._say(f"downloading the source distribution of {suite.project} {suite.version}")
            only_this = ("--no-deps", "--no-binary", suite.project, "--dest", str(self.directory))
            _pip(sys.executable, "download", *only_this, f"{suite.project}=={suite.version}")
        found = hashlib.sha256(archive.read_bytes()).hexdigest()
        if found != suite.sha256:
            archive.unlink()
            raise SystemExit(
                f"peer-suite: {archive.name} is not the file this project knows: "
                f"its SHA-256 is {found}, not {suite.sha256}. Removed; run again."
            )
        return archive

    def _unpack(self, archive: Path) -> None:
        with tarfile.open(archive) as tar:
            top = self.suite.distribution + "/"
            members = [m for m in tar if m.name.removeprefix(top).startswith(self.suite.unpacked)]
            tar.extractall(self.directory, members=members, filter="data")
        if not {"setup.cfg", "pyproject.toml"} & set(self.suite.unpacked):
            # Else pytest takes the settings of the next directory up that has some: ours.
            (self.checkout / "pytest.ini").touch()

    def _install(self) -> None:
        self._say("installing Cloche and what the suite requires (a minute)")
        subprocess.run([sys.executable, "-m", "venv", "--clear", self.environment], check=True)
        pins = ("--constraint", str(PROJECT / "constraints.txt"))
        _pip(self.python, "install", *pins, "--editable", str(PROJECT))
        # One at a time: the files of a distribution pin against each other.
        for name in self.suite.requirement_files:
            requirements = ("--requirement", str(self.checkout / "requirements" / name))
            _pip(self.python, "install", *requirements, *self.suite.requirements)
        _pip(self.python, "install", *self.suite.installs)

    def _say(self, text: str) -> None:
        print(f"peer-suite: {self.suite.name}: {text}", flush=True)


def _pip(python: Path | str, command: str, *words: str) -> None:
    subprocess.run(
        [python, "-m", "pip", command, "--quiet", "--disable-pip-version-check", *words],
        check=True,
    )
