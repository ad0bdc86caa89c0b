"""The run directory: one launcher at a time, its state, its logs, its sockets."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cloche.errors import ProcessError
from cloche.process import table
from cloche.process.identity import Identity
from cloche.process.record import ChildRecord, RunRecord
from cloche.process.stopping import stop_in_order

#: sun_path holds 108 bytes on Linux (unix(7)), 104 on macOS, the last one a NUL.
_SOCKET_PATH_MOST = 103
#: Seconds between two looks at who holds the directory, and between two words about a wait.
_TICK, _REMIND = 0.05, 5.0
#: Seconds that a launcher takes to end when all that it kept is gone.
_ENDING = 0.5

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a run directory, since when (Unix time), and whether it is being stopped."""

    identity: Identity
    since: float
    stopping: bool = False


@dataclass(frozen=True, slots=True)
class Leftover:
    """A process of an earlier run that still lives. ``name`` is that of its spec."""

    name: str
    identity: Identity
    command: tuple[str, ...] = ()


class RunDirectory:
    """A directory of one launcher at a time; made private (0700), with its parents.

    Raises ProcessError if it cannot be made or is not ours.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path).absolute()
        self.logs = self.path / "logs"
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
            self.logs.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ProcessError(
                f"{self.path} cannot be the run directory",
                why=error.strerror or str(error),
                fix="set run_dir to a directory of your own",
            ) from error
        self.state_path = self.path / "state.json"
        self.instance = secrets.token_hex(16)
        self.since = time.time()
        self._lock: int | None = None

    @property
    def lock_fd(self) -> int:
        """The locked file; whoever inherits it keeps the directory closed to others."""
        if self._lock is None:
            raise ProcessError(f"{self.path} is not locked by this process")
        return self._lock

    def lock(self, patience: float = 45.0, say: Say = lambda text: None) -> bool:
        """Become the only launcher here. False if this object already is.

        A living launcher in it is a ProcessError at once, unless it is being stopped: that is
        waited for. The guard of a dead one gets ``patience`` seconds more than its processes
        may take. Blocks: call it before the loop runs or in a thread.
        """
        if self._lock is not None:
            return False
        handle = os.open(self.path / "up.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:  # never unlocked but by closing: the guard shares this very lock
            self._wait_for(handle, patience, say)
            os.ftruncate(handle, 0)
            self._sign(handle)
        except BaseException:
            os.close(handle)
            raise
        self._lock = handle
        return True

    def announce_stop(self) -> None:
        """Tell those who want to start something here that they need only wait."""
        if self._lock is not None:
            self._sign(self._lock, stopping=True)

    def _sign(self, handle: int, **more: bool) -> None:
        """Write whose the directory is; ``more`` makes it longer, so nothing is left behind it."""
        mine = Identity.own()
        owner = {"pid": mine.pid, "started": mine.started, "since": self.since}
        os.pwrite(handle, json.dumps({**owner, "boot": table.boot_id(), **more}).encode(), 0)

    def wait_stopped(self, say: Say) -> None:
        """Return once the launcher that is being stopped here is gone; at once if none is."""
        stopping = self.owner()
        if stopping is None or not stopping.stopping:
            return
        pid = stopping.identity.pid
        remind = _Reminder(self, f"Cloche is being stopped here (pid {pid})", say, after=_ENDING)
        while self.owner() == stopping:
            remind()
            time.sleep(_TICK)

    def unlock(self) -> None:
        """Let the next launcher in. The lock ends when its last holder (the guard) closes it."""
        if self._lock is not None:
            os.ftruncate(self._lock, 0)  # this process may live on
            os.close(self._lock)
            self._lock = None

    def owner(self) -> Owner | None:
        """The living launcher of this directory, if any."""
        try:
            raw = json.loads((self.path / "up.lock").read_text())
            stopping = bool(raw.get("stopping"))
            owner = Owner(Identity(raw["pid"], raw["started"]), raw["since"], stopping)
            same_boot = raw["boot"] == table.boot_id()
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return owner if same_boot and owner.identity.alive() else None

    def record(self) -> RunRecord | None:
        """The run the state file tells of: the present one, or the last that ended badly."""
        return RunRecord.read(self.state_path)

    def save(self, children: Iterable[ChildRecord]) -> None:
        """Write the state of this run."""
        launcher = Identity.own(self.instance)
        RunRecord(self.instance, launcher, self.since, tuple(children), table.boot_id()).write(
            self.state_path
        )

    def forget(self) -> None:
        """Nothing runs any more: remove the state file."""
        self.state_path.unlink(missing_ok=True)

    def leftovers(self) -> tuple[Leftover, ...]:
        """What an earlier run left alive, its main processes first."""
        record = self._earlier()
        if record is None:
            return ()
        mains = {
            child.identity.pid: Leftover(child.name, child.identity, tuple(child.command))
            for child in record.children
            if child.identity is not None and child.identity.alive()
        }
        groups = {
            child.identity.pid: child.name
            for child in record.children
            if child.identity is not None and child.identity.leads()
        }
        others = {
            row.pid: Leftover(groups[row.group], Identity(row.pid, row.started, record.instance))
            for row in table.rows()
            if row.group in groups
        } | {
            found.row.pid: Leftover(
                found.name, Identity(found.row.pid, found.row.started, record.instance)
            )
            for found in table.carriers(record.instance)
        }
        return tuple({**others, **mains}[pid] for pid in (*mains, *(others.keys() - mains.keys())))

    def reclaim(self, say: Say = lambda text: None) -> None:
        """Stop what an earlier run left alive, in its order. Blocks until it is gone."""
        record = self._earlier()
        if record is not None:
            remind = _Reminder(self, _KILLED, say)

            def pause(seconds: float) -> None:
                remind()
                time.sleep(seconds)

            stop_in_order(record.children, record.instance, say=say, pause=pause)
            self.forget()

    def socket_path(self, name: str) -> Path:
        """Where to bind a unix socket: here, or in a private temporary directory if the
        path would be longer than the kernel takes. The same answer every time."""
        here = self.path / name
        if _fits(here):
            return here
        digest = hashlib.sha256(os.fsencode(self.path)).hexdigest()[:16]
        for parent in dict.fromkeys((tempfile.gettempdir(), "/tmp")):  # noqa: S108 (checked below)
            there = Path(parent) / f"cloche-{os.getuid()}-{digest}" / name
            if _fits(there):
                _make_private(there.parent)
                return there
        raise ProcessError(f"no place for the socket {name}: every path is too long")

    def _earlier(self) -> RunRecord | None:
        record = self.record()
        if record is None or record.instance == self.instance or self._lives(record):
            return None
        return record

    def _lives(self, record: RunRecord) -> bool:
        return record.launcher.pid != os.getpid() and record.launcher.alive()

    def _wait_for(self, handle: int, patience: float, say: Say) -> None:
        self.wait_stopped(say)
        remind = _Reminder(self, _KILLED, say)
        deadline = time.monotonic() + patience + remind.longest
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._refuse_if_owned()
                remind()
                if time.monotonic() >= deadline:
                    raise ProcessError(
                        f"{self.path} is still being cleaned up after an earlier run",
                        why="its launcher was killed and its processes take long to stop",
                        fix=f"wait, or see what still runs in {self.logs / 'guard.log'}",
                    ) from None
                time.sleep(_TICK)
            else:
                return

    def _refuse_if_owned(self) -> None:
        owner = self.owner()
        if owner is not None:
            since = datetime.fromtimestamp(owner.since).astimezone()
            raise ProcessError(
                f"Cloche already runs in {self.path}",
                why=f"pid {owner.identity.pid} holds it since {since:%Y-%m-%d %H:%M:%S}",
                fix=f"stop it first (kill {owner.identity.pid}), or set another run_dir",
            )


_KILLED = "an earlier launcher was killed: what it left behind is being stopped"


class _Reminder:
    """Says what is waited for, ``after`` seconds and then every few: what still runs of the run
    that the state file tells of, and how long that may last."""

    def __init__(self, directory: RunDirectory, what: str, say: Say, after: float = 0.0) -> None:
        record = directory.record()
        self.longest = 0.0 if record is None else record.longest_stop()
        self._children = () if record is None else record.children
        self._what, self._say = what, say
        self._began = time.monotonic()
        self._next = self._began + after

    def __call__(self) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + _REMIND
        still = ", ".join(
            f"{child.name} (pid {child.identity.pid})"
            for child in self._children
            if child.identity is not None and child.identity.alive()
        )
        spent = f"{now - self._began:.0f} s of at most {self.longest:.0f}"
        self._say(f"{self._what}; {spent}: {still}" if still else self._what)


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= _SOCKET_PATH_MOST


def _make_private(directory: Path) -> None:
    """Make a 0700 directory in a place where others may write; refuse what is not ours."""
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        found = directory.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise ProcessError(
                f"{directory} belongs to somebody else",
                fix="set TMPDIR to a directory of your own, or a shorter run_dir",
            ) from None
        directory.chmod(0o700)
