"""Media pages by yt-dlp, which runs as a process of its own behind the egress guard."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import mimetypes
import os
import re
import shutil
import signal
import subprocess
import sys
from asyncio import StreamReader
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson

from cloche.errors import (
    DownloadBrokenError,
    DownloadError,
    DownloadRefusedError,
    ExtraMissingError,
)
from cloche.settings.model import DownloadSettings
from cloche.tasks.download.cache import Cache, Space
from cloche.tasks.download.filename import sanitise
from cloche.tasks.download.part import Checksum
from cloche.tasks.download.progress import Progress
from cloche.tasks.download.records import Order, Stored
from cloche.tasks.egress import EgressGuard, bundle
from cloche.tasks.egress_proxy import EgressProxy

_CHILD = Path(__file__).with_name("ytdlp_child.py")
#: Marks the lines meant for us among those yt-dlp prints.
_MARK = "cloche:"
#: The authorities it trusts, a file in its directory, where it must not trust only certifi's.
_TRUSTED = "trusted.pem"
_LINE_LIMIT = 4 * 1024**2
#: Where no program is found: what yt-dlp would start (ffmpeg, mplayer, rtmpdump) opens
#: connections of its own, past the proxy.
_NO_PROGRAMS = "/nonexistent"
#: Signs in yt-dlp's error line that asking again cannot help.
_FINAL = re.compile(
    r"(?i)unsupported url|HTTP Error 4(?!08|25|29)\d\d|unavailable|private|not exist|removed"
    r"|no video formats|no media found|CERTIFICATE_VERIFY_FAILED|ffmpeg|could not be run"
    r"|requested format is not available"
)


def knows(url: str) -> bool:
    """Whether yt-dlp is installed and has an extractor made for this site.

    Asked of a process of its own: importing the extractors takes a second and tens of
    megabytes, which a worker would keep.
    """
    if importlib.util.find_spec("yt_dlp") is None:
        return False
    with subprocess.Popen(
        [sys.executable, "-P", str(_CHILD), "--knows", url],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as child:
        return child.wait(timeout=60) == 0


class YtDlp:
    """Runs yt-dlp in a directory of its own; its unfinished files are continued too."""

    def __init__(self, settings: DownloadSettings, guard: EgressGuard, space: Space) -> None:
        if importlib.util.find_spec("yt_dlp") is None:
            raise ExtraMissingError(
                "The yt-dlp backend is not installed.", fix="pip install 'cloche[yt-dlp]'"
            )
        self._settings = settings
        self._guard = guard
        self._space = space
        self._file: Path | None = None

    async def fetch(
        self, order: Order, partial: Path, progress: Progress, known: Stored | None
    ) -> Stored | None:
        """The medium of the page as one file; ``known`` is not asked about."""
        directory = _directory(partial)
        directory.mkdir(parents=True, exist_ok=True)
        if self._settings.ca_file:
            (directory / _TRUSTED).write_text(bundle(self._settings.ca_file))
        proxy = EgressProxy(self._guard, connect_timeout=self._settings.connect_timeout)
        async with proxy:
            try:
                self._space.check(0)
                info = await _extracted(
                    self._command(order), directory, proxy.url, order, progress, self._space
                )
            except DownloadError as error:
                if isinstance(error, DownloadRefusedError):
                    shutil.rmtree(directory, ignore_errors=True)
                raise proxy.refused or error from error
        self._file = _confined(directory, info)
        return await asyncio.to_thread(_stored, self._file, info, order)

    def keep(self, stored: Stored, cache: Cache) -> None:
        """Move the file into the cache, remove what else yt-dlp left."""
        if self._file is not None:
            cache.put(self._file, stored.sha256)
            shutil.rmtree(self._file.parent, ignore_errors=True)

    def _command(self, order: Order) -> list[str]:
        options = {
            "--output": "media.%(ext)s",
            "--max-filesize": str(order.max_size),
            "--socket-timeout": str(self._settings.read_timeout),
            "--retries": str(self._settings.resumes),
            "--user-agent": self._settings.user_agent,
            "--progress-delta": "0.2",
            "--progress-template": f"download:{_MARK}%(progress)j",
            "--print": f"after_move:{_MARK}%(.{{filepath,title,ext}})j",
            "--playlist-items": "1",
            "--format": "best",  # of those in one file: nothing could join two
            "--ffmpeg-location": _NO_PROGRAMS,
        }
        if self._settings.ca_file:
            options["--compat-options"] = "no-certifi"
        flags = [
            *("--ignore-config", "--no-plugin-dirs", "--no-cache-dir", "--no-colors"),
            *("--no-playlist", "--no-simulate", "--progress", "--newline"),
        ]
        pairs = [text for pair in options.items() for text in pair]
        return [sys.executable, "-P", str(_CHILD), *flags, *pairs, "--", order.url]


async def _extracted(
    command: list[str],
    directory: Path,
    proxy: str,
    order: Order,
    progress: Progress,
    space: Space,
) -> dict[str, Any]:
    """Run yt-dlp to its end; what it says about the file it made."""
    async with _running(command, directory, proxy) as child:
        if child.stdout is None or child.stderr is None:
            raise DownloadBrokenError("yt-dlp has no output.")
        errors = asyncio.ensure_future(_last_lines(child.stderr))
        info = await _followed(child.stdout, directory, order, progress, space)
        status = await child.wait()
        said = await errors
    if status == 0 and info:
        return info
    raise _failure(status, said, order)


@asynccontextmanager
async def _running(command: list[str], directory: Path, proxy: str) -> AsyncIterator[Process]:
    """yt-dlp as the leader of a process group, which is gone afterwards."""
    child = await asyncio.create_subprocess_exec(
        *command,
        cwd=directory,
        env=_environment(directory, proxy),
        stdin=PIPE,
        stdout=PIPE,
        stderr=PIPE,
        start_new_session=True,
        limit=_LINE_LIMIT,
    )
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        await child.wait()


def _environment(directory: Path, proxy: str) -> dict[str, str]:
    """Little of ours: the proxy for all protocols, no programs, the authorities to trust."""
    kept = {name: os.environ[name] for name in ("LANG", "LC_ALL") if name in os.environ}
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "ftp_proxy", "all_proxy"), proxy)
    own = {"PATH": _NO_PROGRAMS, "HOME": str(directory), "no_proxy": "", "PYTHONUTF8": "1"}
    trusted = directory / _TRUSTED
    return kept | proxies | own | ({"SSL_CERT_FILE": str(trusted)} if trusted.exists() else {})


async def _followed(
    output: StreamReader, directory: Path, order: Order, progress: Progress, space: Space
) -> dict[str, Any]:
    """Read progress to the end of the output; the line about the finished file."""
    info: dict[str, Any] = {}
    before = 0
    async for line in output:
        text = line.decode(errors="replace").strip()
        if not text.startswith(_MARK):
            continue
        said = orjson.loads(text.removeprefix(_MARK))
        if "filepath" in said:
            info = said
            continue
        before = _counted(said, before, progress)
        if _size_of(directory) > order.max_size:
            raise _too_large(order)
        space.check(0)
    return info


def _counted(said: dict[str, Any], before: int, progress: Progress) -> int:
    """Add up the files that yt-dlp fetches one after another (video, audio)."""
    received = int(said.get("downloaded_bytes") or 0)
    total = said.get("total_bytes") or said.get("total_bytes_estimate")
    progress.received = max(progress.received, before + received)
    progress.total = before + int(total) if total else None
    return before + received if said.get("status") == "finished" else before


async def _last_lines(errors: StreamReader) -> list[str]:
    lines: deque[str] = deque(maxlen=20)
    async for line in errors:
        lines.append(line.decode(errors="replace").strip())
    return list(lines)


def _failure(status: int, said: list[str], order: Order) -> DownloadError:
    why = next((line for line in said if "ERROR" in line), "")  # others follow from the first
    if status == 0:
        # It skips what --max-filesize forbids, and calls that a success.
        return _too_large(order)
    if _FINAL.search(why):
        return DownloadRefusedError("yt-dlp cannot get this.", why=why)
    return DownloadBrokenError(f"yt-dlp failed (exit status {status}).", why=why)


def _too_large(order: Order) -> DownloadRefusedError:
    return DownloadRefusedError(
        "yt-dlp gave no file within the size limit.",
        why=f"At most {order.max_size} bytes were to be taken.",
        fix="Raise max_size of the request, or the setting download.max_size.",
    )


def _directory(partial: Path) -> Path:
    return partial.with_name(f"{partial.name}.d")


def _size_of(directory: Path) -> int:
    with os.scandir(directory) as entries:
        return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)


def _confined(directory: Path, info: dict[str, Any]) -> Path:
    file = Path(directory, str(info["filepath"])).resolve()
    if not file.is_relative_to(directory.resolve()) or not file.is_file():
        raise DownloadRefusedError("yt-dlp wrote its file outside its directory.")
    return file


def _stored(file: Path, info: dict[str, Any], order: Order) -> Stored:
    size = file.stat().st_size
    if size > order.max_size:
        file.unlink()
        raise _too_large(order)
    with file.open("rb") as content:
        sha256 = hashlib.file_digest(content, "sha256").hexdigest()
        if order.checksum:
            _verify(Checksum.parse(order.checksum), content, file)
    name = order.filename or f"{info.get('title') or 'media'}{file.suffix}"
    return Stored(sha256, size, sanitise(name), mimetypes.guess_type(file.name)[0])


def _verify(expected: Checksum, content: Any, file: Path) -> None:
    content.seek(0)
    found = hashlib.file_digest(content, expected.new).hexdigest()
    if found != expected.digest:
        file.unlink()
        raise DownloadRefusedError(
            f"The file has the wrong checksum: {expected} was expected.",
            why=f"Its {expected.algorithm} is {found}.",
        )
