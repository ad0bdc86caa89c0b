"""Hot reload for development: a changed source file starts the workers anew, gracefully."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path

from cloche.errors import ExtraMissingError
from cloche.process.supervisor import Supervisor
from cloche.settings import Settings

try:
    from watchfiles import Change, PythonFilter, awatch
except ImportError:
    raise ExtraMissingError(
        "Changed files cannot be watched.",
        why="watchfiles is not installed",
        fix="pip install 'cloche[reload]', or start without --reload",
    ) from None

#: What runs no code of the project's, or none that changes what it does.
_LEFT_ALONE = frozenset({"broker", "service", "dashboard"})
#: Seconds the project may take to be imported.
_IMPORT_TIMEOUT = 60.0


class Reloader:
    """Watches ``reload.paths`` and starts workers and scheduler of a supervisor anew.

    Only if the project can still be imported: otherwise what runs goes on, and the reason is told.
    """

    def __init__(
        self, settings: Settings, supervisor: Supervisor, say: Callable[[str], None]
    ) -> None:
        self._settings = settings
        self._supervisor = supervisor
        self._say = say
        self._paths = [path.absolute() for path in settings.reload.paths]
        self._ignored = [settings.run_dir.absolute()]

    async def run(self) -> None:
        try:
            await self._watch(polling=False)
        except Exception as error:  # noqa: BLE001 (the system's watches have several)
            self._say(f"files are looked at now and then, since they cannot be watched: {error}")
            await self._watch(polling=True)

    async def _watch(self, *, polling: bool) -> None:
        only = PythonFilter(ignore_paths=self._ignored)
        async for changes in awatch(
            *self._paths, watch_filter=only, step=200, debounce=1000, force_polling=polling or None
        ):
            await self._changed(changes)

    async def _changed(self, changes: set[tuple[Change, str]]) -> None:
        names = _named(sorted(path for _, path in changes))
        trouble = _syntax(changes) or await self._import()
        if trouble:
            self._say(f"{names} changed, and what runs goes on unchanged: {trouble}")
            return
        wanted = [one.name for one in self._supervisor.status() if one.name not in _LEFT_ALONE]
        self._say(f"{names} changed: {', '.join(wanted)} start anew")
        await asyncio.gather(*(self._restart(name) for name in wanted))

    async def _restart(self, name: str) -> None:
        try:
            await self._supervisor.restart(name)
        except Exception as error:  # noqa: BLE001 (told; the supervisor goes on trying)
            self._say(f"{name} could not be started anew: {error}")

    async def _import(self) -> str:
        """Import the project in a process of its own; what is wrong with it, or nothing."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "cloche", "tasks", "--json", "-A", self._settings.app),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            _, told = await asyncio.wait_for(process.communicate(), _IMPORT_TIMEOUT)
        except TimeoutError:
            process.kill()
            await process.wait()
            return f"it is not imported within {_IMPORT_TIMEOUT:g} s"
        except asyncio.CancelledError:
            process.kill()
            raise
        return _reason(told.decode(errors="replace")) if process.returncode else ""


def _syntax(changes: set[tuple[Change, str]]) -> str:
    """The first syntax error in the changed files, as ``file:line: what``."""
    for change, name in sorted(changes, key=lambda one: one[1]):
        if change is Change.deleted:
            continue
        try:
            compile(Path(name).read_bytes(), name, "exec", dont_inherit=True)
        except SyntaxError as error:
            return f"{_short(name)}:{error.lineno}: SyntaxError: {error.msg}"
        except (OSError, ValueError):
            continue
    return ""


def _reason(told: str) -> str:
    """Its error message: the first line and, of an import, where it failed."""
    lines = told.strip().splitlines() or ["it said nothing"]
    why = next((line.strip() for line in lines if line.strip().startswith("why: ")), "")
    first = next(
        (line for line in lines if line.startswith("error: ")), lines[-1] if lines else "?"
    )
    detail = why.removeprefix("why: ").strip()
    return f"{first.removeprefix('error: ')} {detail}".strip()


def _named(paths: list[str]) -> str:
    names = [_short(path) for path in paths]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _short(path: str) -> str:
    """Below the working directory without it."""
    return os.path.relpath(path) if Path(path).is_relative_to(Path.cwd()) else path
