"""Which processes of this user may be Celery workers: a proposal, proving nothing.

Two ways to come to notice: a command line that starts a worker, and a connection to the
broker (a worker started by a script of one's own). Who really is one, the broker says.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from cloche.process import table
from cloche.process.identity import Identity

#: What Celery calls its processes where setproctitle is installed.
_TITLE = re.compile(r"\[celeryd: (?P<node>[^\]]+):(?P<role>[^:\]]+)\]")
_INTERPRETER = re.compile(r"(python|pypy)[\d.]*$")
_PYTHON_VALUED = frozenset(("-X", "-W", "--check-hash-based-pycs"))
#: Options of ``celery`` itself that take a value (celery.bin.celery).
_CELERY_VALUED = frozenset(
    ("-A", "--app", "-b", "--broker", "--result-backend", "--loader", "--config", "--workdir")
)


@dataclass(frozen=True, slots=True)
class WorkerCandidate:
    """A process that may be a worker. ``age`` is in seconds.

    ``inner_pid`` is the number it knows itself by: another one in a container's namespace,
    whose host name is then ``host``. ``instance`` and ``parent`` tell who keeps it.
    """

    identity: Identity
    command: tuple[str, ...]
    age: float
    parent: int
    inner_pid: int
    host: str = ""
    instance: str = ""
    looks: bool = True


def candidates(broker: Collection[tuple[str, int]] = ()) -> tuple[WorkerCandidate, ...]:
    """Every process of this user that may be a worker's main process.

    ``broker``: addresses (IP, port) whose clients are proposed as well.
    """
    looking = {process.pid: process for process in _mine() if looks_like_worker(_command(process))}
    mains = {
        pid: process for pid, process in looking.items() if not _is_pool_child(process, looking)
    }
    found = {pid: _candidate(process, looks=True) for pid, process in mains.items()}
    for process in _clients(broker):
        if process.pid not in looking:
            found[process.pid] = _candidate(process, looks=False)
    return tuple(one for one in found.values() if one is not None)


def looks_like_worker(command: Sequence[str]) -> bool:
    """Whether this command line starts a worker (and is not one of its pool processes)."""
    if not command:
        return False
    titled = _TITLE.match(command[0])
    if titled:
        return titled["role"] == "MainProcess"
    words = _program(list(command))
    if words and words[0] == "manage.py":
        words = words[1:]
    if not words:
        return False
    program, rest = words[0], words[1:]
    return program in ("celery", "cloche") and next(_bare(rest), "") == "worker"


def looks_like_launcher(pid: int) -> bool:
    """Whether ``pid`` is a Cloche launcher, which starts again what ends."""
    try:
        words = _program(psutil.Process(pid).cmdline() or [""])
    except psutil.Error:
        return False
    return words[:1] == ["cloche"] and next(_bare(words[1:]), "") in ("up", "start")


def _program(words: list[str]) -> list[str]:
    """The words from the program on: without an interpreter, its options, and directories."""
    if not _INTERPRETER.match(os.path.basename(words[0])):
        return [os.path.basename(words[0]), *words[1:]]
    at = 1
    while at < len(words) and words[at].startswith("-"):
        if words[at] == "-m":
            return words[at + 1 :]
        if words[at] == "-c":
            return []
        at += 2 if words[at] in _PYTHON_VALUED else 1
    script = words[at:]
    if not script:
        return []
    name = os.path.basename(script[0])
    if name == "__main__.py":  # python -m, in its long form
        name = os.path.basename(os.path.dirname(script[0]))
    return [name, *script[1:]]


def _bare(words: Sequence[str]) -> Iterator[str]:
    """The words that are neither options nor values of Celery's own options."""
    skip = False
    for word in words:
        if skip:
            skip = False
        elif word.startswith("-"):
            skip = word in _CELERY_VALUED
        else:
            yield word


def _mine() -> Iterator[psutil.Process]:
    own, user = os.getpid(), os.getuid()
    for process in psutil.process_iter():
        try:
            if process.pid != own and process.uids().real == user:
                yield process
        except psutil.Error:
            continue


def _command(process: psutil.Process) -> tuple[str, ...]:
    try:
        return tuple(process.cmdline())
    except psutil.Error:
        return ()


def _is_pool_child(process: psutil.Process, looking: dict[int, psutil.Process]) -> bool:
    """A forked pool process has its parent's command line."""
    try:
        parent = looking.get(process.ppid())
    except psutil.Error:
        return True
    return parent is not None and _command(parent) == _command(process)


def _clients(broker: Collection[tuple[str, int]]) -> Iterator[psutil.Process]:
    if not broker:
        return
    wanted = set(broker)
    mine = {process.pid: process for process in _mine()}
    try:
        seen = psutil.net_connections(kind="tcp")
    except (psutil.Error, OSError):
        return
    for pid in {one.pid for one in seen if one.raddr and tuple(one.raddr) in wanted}:
        if pid in mine:
            yield mine[pid]


def _candidate(process: psutil.Process, *, looks: bool) -> WorkerCandidate | None:
    identity = Identity.of(process.pid)
    if identity is None:
        return None
    try:
        environ = process.environ()
        inner = _inner_pid(process.pid)
        return WorkerCandidate(
            identity=identity,
            command=_command(process),
            age=time.time() - process.create_time(),
            parent=process.ppid(),
            inner_pid=inner,
            host=environ.get("HOSTNAME", "") if inner != process.pid else "",
            instance=environ.get(table.INSTANCE, ""),
            looks=looks,
        )
    except (psutil.Error, OSError):
        return None


def _inner_pid(pid: int) -> int:
    """The pid in the innermost namespace (``NSpid`` of proc(5), Linux 4.1 and newer)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(errors="replace")
    except OSError:
        return pid
    found = re.search(r"^NSpid:.*\s(\d+)$", status, re.M)
    return int(found[1]) if found else pid
