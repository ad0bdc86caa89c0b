"""A program that uses everything in a parent process with busy threads, and forks as it does so.

``python -m tests.integration.fork.program HOW CHILDREN DIRECTORY``; HOW is what forks: ``os.fork``,
``libc`` (in C, Python is not told: as uWSGI does), or a start method of multiprocessing. Prints the
ids that all processes got, one a line.
"""

from __future__ import annotations

import asyncio
import ctypes
import faulthandler
import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import chain, group

from cloche import ExecutionLogger, create_app, publish_many
from cloche.broker.queues import Queues

#: Seconds a child may take.
PATIENCE = 60

app = create_app("forks")
log = ExecutionLogger(app)


@app.task(name="forks.echo")
def echo(word: str) -> str:
    return word


@app.task(name="forks.unheard", queue="nobody")
def unheard(word: str) -> None:
    raise AssertionError("only published")


def everything(name: str) -> list[str]:
    """Call whatever there is; the ids it gave. What is not one's own result is an error."""
    calls: list[Callable[[str], list[str]]] = [
        _delay, _apply_async, _adelay, _map_delay, _canvas, _log, _queues, _inspect,
    ]  # fmt: skip
    ids = []
    for call in calls:
        ids += call(f"{name} {call.__name__}")
    return ids


def _delay(word: str) -> list[str]:
    results = [echo.delay(f"{word} {number}") for number in range(5)]
    assert [one.get(timeout=20) for one in results] == [f"{word} {number}" for number in range(5)]
    return [one.id for one in results]


def _apply_async(word: str) -> list[str]:
    result = echo.apply_async((word,), countdown=0.05, headers={"of": word})
    assert result.get(timeout=20) == word
    return [result.id]


def _adelay(word: str) -> list[str]:
    async def both() -> list[str]:
        results = await asyncio.gather(*(echo.adelay(word) for _ in range(3)))
        assert [await one.aget(timeout=20) for one in results] == [word] * 3
        return [one.id for one in results]

    return asyncio.run(both())


def _map_delay(word: str) -> list[str]:
    published = echo.map_delay([word] * 5)
    more = publish_many(app, [echo.s(word).set(countdown=0.01) for _ in range(3)])
    assert app.AsyncResult(published.ids[0]).get(timeout=20) == word
    return [*published.ids, *more.ids]


def _canvas(word: str) -> list[str]:
    result = group(echo.s(word), chain(echo.s(word), echo.si(word))).apply_async()
    assert result.get(timeout=20) == [word, word]
    return [one.id for one in result.results]


def _log(word: str) -> list[str]:
    record = log.info("forks", "test", word)
    return [str(record.id)]


def _queues(word: str) -> list[str]:
    unheard.delay(word)
    with app.connection_for_write() as connection:
        channel: Any = connection.default_channel
        assert Queues(channel.own, channel.keys).length("nobody").waiting > 0
    return []


def _inspect(word: str) -> list[str]:
    replies = app.control.ping(timeout=1, limit=1)
    assert replies, word
    return []


def keep_busy(stopping: threading.Event, ids: list[str]) -> list[threading.Thread]:
    """Threads that hold connections and locks at any moment."""

    def publish() -> None:
        while not stopping.is_set():
            ids.append(unheard.delay("busy").id)

    def wait() -> None:
        while not stopping.is_set():
            ids.extend(_delay("waiting"))

    def write() -> None:
        while not stopping.wait(0.001):
            ids.extend(_log("busy"))

    threads = [threading.Thread(target=one) for one in (publish, publish, wait, write)]
    for thread in threads:
        thread.start()
    return threads


def child(name: str, directory: Path) -> int:
    """What a child does; its exit code."""
    try:
        ids = everything(name)
        assert log.flush(20)
        (directory / name).write_text("".join(f"{one}\n" for one in ids))
    except BaseException:  # told; the parent must not go on in here
        traceback.print_exc()
        return 1
    return 0


def forked(how: str, name: str, directory: Path) -> Callable[[], int]:
    """Fork; what waits for the child's exit code."""
    if how in ("os.fork", "libc"):
        pid = os.fork() if how == "os.fork" else ctypes.PyDLL(None).fork()
        if pid == 0:
            if how == "os.fork":
                faulthandler.dump_traceback_later(PATIENCE - 5, exit=True)
            os._exit(child(name, directory))
        return lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    process = multiprocessing.get_context(how).Process(  # type: ignore[attr-defined]
        target=_run_child, args=(name, directory)
    )
    process.start()

    def wait() -> int:
        process.join(PATIENCE)
        return -1 if process.exitcode is None else int(process.exitcode)

    return wait


def _run_child(name: str, directory: Path) -> None:
    sys.exit(child(name, directory))


def main(how: str, children: int, directory: Path) -> None:
    """Use everything, fork, use everything; print all ids."""
    ids = everything("parent")
    stopping = threading.Event()
    # Python itself does not survive a fork of which it is not told while other threads run.
    threads = [] if how == "libc" else keep_busy(stopping, ids)
    try:
        waits = [forked(how, f"child-{number}", directory) for number in range(children)]
        codes = [wait() for wait in waits]
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
    assert codes == [0] * children, codes
    ids += everything("parent again")
    log.close()
    for number in range(children):
        ids += (directory / f"child-{number}").read_text().split()
    print("\n".join(ids))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
