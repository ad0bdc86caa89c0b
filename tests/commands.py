"""``cloche`` commands and programs of its users, at a fraction of the cost of a new interpreter.

Half a second and more of what a command computes is importing Celery and the rest. Tests that run
many have them forked from a process that has done it (multiprocessing's fork server): each has its
own process, environment, directory and descriptors, as :func:`subprocess.run` gives them.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from celery.__main__ import main as celery

from cloche.cli import main
from cloche.testing import ChildProcess

_ROOT = str(Path(__file__).parents[1])
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        *(f"cloche.cli.{name}" for name in ("failures", "ps", "stop", "start", "scale", "wait")),
        *(f"cloche.cli.{name}" for name in ("restart", "tasks", "schedules", "health", "config")),
        *(f"cloche.cli.{name}" for name in ("dlq", "logs", "logs_read", "logs_admin")),
        *("cloche.launch.discovery", "cloche.launch.environment", "kombu.transport.redis"),
        *("celery.__main__", "celery.bin.celery", "celery.bin.worker", "celery.apps.worker"),
        *("celery.worker.autoscale", "celery.concurrency.prefork", "celery.concurrency.thread"),
        *("cloche.cli.worker", "cloche.cli.beat", "cloche.aio.pool", "cloche.broker.transport"),
        *("cloche.broker.results.redis_backend", "cloche.worker.threads", "cloche.worker.prefork"),
    ]
)


def cloche(
    *words: str,
    cwd: Path,
    env: Mapping[str, str],
    timeout: float = 120,
    script: bool = False,
) -> subprocess.CompletedProcess[str]:
    """``python -m cloche WORDS`` without input; ``script``: as the installed script, which leaves
    the directory out of ``sys.path``. Raises subprocess.TimeoutExpired.
    """
    first = Path(sys.executable).parent if script else cwd
    return _ended(main, ["cloche", *words], cwd, env, first, timeout)


def python(
    code: str, *words: str, cwd: Path, env: Mapping[str, str], timeout: float = 120
) -> subprocess.CompletedProcess[str]:
    """``python -c CODE WORDS`` of a program that imports Cloche. Raises TimeoutExpired."""
    return _ended(partial(_execute, code), ["-c", *words], cwd, env, cwd, timeout)


def _ended(
    run: Callable[[], object],
    argv: list[str],
    cwd: Path,
    env: Mapping[str, str],
    first: Path,
    timeout: float,
) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory(prefix="cloche-command-") as kept:
        out, err = Path(kept, "out"), Path(kept, "err")
        for path in (out, err):
            path.touch()  # there is something to read however early it ends
        given = (run, argv, str(cwd), dict(env), str(first), str(out), str(err))
        process = _context.Process(target=_begin, args=given)
        process.start()
        try:
            process.join(timeout)
            if process.exitcode is None:
                raise subprocess.TimeoutExpired(argv, timeout, out.read_bytes())
            code = process.exitcode
        finally:
            process.kill()
            process.join()
            process.close()
        return subprocess.CompletedProcess(argv, code, out.read_text(), err.read_text())


class Forked(ChildProcess):
    """As `ChildProcess`, of ``python -m celery …`` or ``python -m cloche …``, at half the cost.

    Its command line is not its own for those who look at processes.
    """

    def _spawn(self) -> subprocess.Popen[bytes]:
        # The first two patch the standard library before all else, the third is named by a variable
        # that Celery reads as it is imported.
        if {"gevent", "eventlet", "custom"} & set(self.words):
            return super()._spawn()
        return cast("subprocess.Popen[bytes]", _Process(self))


class _Process:
    """What :class:`subprocess.Popen` is to `ChildProcess`."""

    def __init__(self, child: ChildProcess) -> None:
        module, *words = child.words[1:]
        given = (
            *({"celery": celery, "cloche": main}[module], [module, *words]),
            *(str(child.directory), child.environ, str(child.directory)),
            *(str(child.log_path), str(child.log_path)),
        )
        self._process = _context.Process(target=_begin_worker, args=given)
        self._process.start()
        self.pid: int = self._process.pid or 0
        self.args = child.words

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def _begin_worker(run: Callable[[], object], argv: list[str], *given: Any) -> None:
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # A worker that renews itself executes it again.
    sys.orig_argv = [sys.executable, "-m", *argv]
    if "ignore" in given[1].get("PYTHONWARNINGS", ""):
        warnings.simplefilter("ignore")
    _begin(run, argv, *given)


def _begin(
    run: Callable[[], object],
    argv: list[str],
    cwd: str,
    env: Mapping[str, str],
    first: str,
    out: str,
    err: str,
) -> None:
    """In the new process: become what a new interpreter would be, and end as one does."""
    for number, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, out, os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        (2, err, os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    ):
        opened = os.open(path, flags, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv[:] = argv
    given = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [first, *given, *(path for path in sys.path if path not in ("", _ROOT, *given))]
    code = 1
    try:
        run()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        # What a child of multiprocessing leaves out.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _execute(code: str) -> None:
    exec(code, {"__name__": "__main__"})
