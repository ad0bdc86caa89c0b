"""Why an embedded server ended, told by its last log lines."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from shlex import quote

from cloche.broker.embedded.ports import taken
from cloche.broker.embedded.server import ServerProgram
from cloche.errors import BrokerError, BrokerFault, ClocheError

_CORRUPT = re.compile(
    r"Bad file format reading the append only file:? ?(?P<file>\S+\.aof)?"
    r"|Unexpected end of file reading the append only file"
    r"|AOF loading aborted|corrupt|Terminating server after rdb file reading failure"
    r"|The AOF manifest|AOF file .* doesn't exist|Invalid AOF manifest",
    re.IGNORECASE,
)
_SHOWN = 8


def startup_diagnosis(
    lines: list[str], server: ServerProgram, directory: Path, port: int
) -> ClocheError:
    """The error to show. ``lines`` are what the server wrote last, the newest at the end."""
    text, place = "\n".join(lines), quote(str(directory))
    said = "the server's last words:\n    " + "\n    ".join(lines[-_SHOWN:])
    if "Address already in use" in text:
        return taken(port, directory)
    if re.search(r"Can't handle RDB format version|Wrong signature", text):
        return _other(
            f"{server.version} cannot read the data in {directory}",
            said,
            "another product or a newer version wrote it: run that one again, "
            f"or keep the old data aside and start afresh: mv {place} {place}.old",
        )
    if _CORRUPT.search(text):
        return _other(f"The data in {directory} is damaged", said, _repair(text, server, directory))
    for words, fault, fix in _OTHERS:
        if words in text:
            return BrokerError(
                f"The embedded broker cannot keep its data in {directory}",
                fault=fault,
                why=said,
                fix=fix,
            )
    return _other("The embedded broker ended", said, "read the lines above")


_OTHERS = (
    (
        "Failed opening Unix socket",
        BrokerFault.PERMISSION,
        "choose a run_dir on a local disk: this one's file system has no unix sockets",
    ),
    ("No space left on device", BrokerFault.FULL, "free disk space, or choose another run_dir"),
    ("Permission denied", BrokerFault.PERMISSION, "make it writable for this user"),
    ("Read-only file system", BrokerFault.PERMISSION, "choose another run_dir"),
)


def _repair(text: str, server: ServerProgram, directory: Path) -> str:
    """What to do about a damaged file.

    Not check-aof on the manifest, which the server proposes: valkey-check-aof 9.1.2 takes
    the RDB preamble of a sound base file for damage and stops there.
    """
    place = quote(str(directory))
    copy = f"first copy it: cp -a {place} {place}.copy"
    file = next((found["file"] for found in _CORRUPT.finditer(text) if found["file"]), None)
    if file and ".incr." in file:
        path = directory / "appendonlydir" / file
        return (
            f"{copy}; then cut the damaged end off: {_check_aof(server)} --fix {quote(str(path))}"
        )
    return f"{copy}; then restore a backup, or start afresh: mv {place} {place}.damaged"


def _check_aof(server: ServerProgram) -> str:
    """The repair program; it is the server itself called by that name (server.c ``main``)."""
    name = f"{server.version.product}-check-aof"
    if shutil.which(name):
        return name
    return f"exec -a {name} {quote(str(server.path))}"  # bash


def _other(what: str, why: str, fix: str) -> BrokerError:
    return BrokerError(what, fault=BrokerFault.OTHER, why=why, fix=fix)
