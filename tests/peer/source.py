"""Where the suite comes from: the source distribution on PyPI, in a scratch directory."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
from pathlib import Path

VERSION = "5.7.0"
SHA256 = "6a5dfcf6662287204f009a02002b9e66c83d4105e47ebabdc7079108772fc6f0"

PROJECT = Path(__file__).parents[2]
SCRATCH = PROJECT / ".peer-suite"
CHECKOUT = SCRATCH / f"celery-{VERSION}"
ENVIRONMENT = SCRATCH / "venv"
PYTHON = ENVIRONMENT / "bin" / "python"

#: Not the package itself: the tests run the installed Celery, as users do.
_WANTED = ("t/", "requirements/", "pyproject.toml")


def prepare() -> None:
    """Have the suite and its environment at hand; a minute the first time, then nothing."""
    SCRATCH.mkdir(exist_ok=True)
    if not CHECKOUT.is_dir():
        _unpack(_downloaded())
    if not (ENVIRONMENT / ".ready").exists():
        _install()
        (ENVIRONMENT / ".ready").touch()


def _downloaded() -> Path:
    archive = SCRATCH / f"celery-{VERSION}.tar.gz"
    if not archive.exists():
        print(f"peer-suite: downloading the source distribution of Celery {VERSION}", flush=True)
        only_this = ("--no-deps", "--no-binary", "celery", "--dest", str(SCRATCH))
        _pip(sys.executable, "download", *only_this, f"celery=={VERSION}")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != SHA256:
        archive.unlink()
        raise SystemExit(
            f"peer-suite: {archive.name} is not the file this project knows: "
            f"its SHA-256 is {found}, not {SHA256}. Removed; run again."
        )
    return archive


def _unpack(archive: Path) -> None:
    with tarfile.open(archive) as tar:
        top = CHECKOUT.name + "/"
        members = [m for m in tar if m.name.removeprefix(top).startswith(_WANTED)]
        tar.extractall(SCRATCH, members=members, filter="data")


def _install() -> None:
    print("peer-suite: installing Cloche and the suite's requirements (a minute)", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True)
    pins = ("--constraint", str(PROJECT / "constraints.txt"))
    _pip(PYTHON, "install", *pins, "--editable", str(PROJECT))
    for name in ("test.txt", "test-integration.txt"):
        requirements = ("--requirement", str(CHECKOUT / "requirements" / name))
        _pip(PYTHON, "install", *requirements, f"celery=={VERSION}")


def _pip(python: Path | str, command: str, *words: str) -> None:
    subprocess.run(
        [python, "-m", "pip", command, "--quiet", "--disable-pip-version-check", *words],
        check=True,
    )
