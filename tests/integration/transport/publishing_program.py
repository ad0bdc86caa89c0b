"""Many publishers at once: ``python -m …publishing_program KIND BROKER_URL LIMIT``.

KIND is what runs them: ``threads``, ``loops``, ``gevent`` or ``eventlet``. Prints the ids it got.
"""

from __future__ import annotations

import sys
from importlib import import_module

KIND, URL, LIMIT = sys.argv[1], sys.argv[2], int(sys.argv[3])
if KIND == "gevent":
    import_module("gevent.monkey").patch_all()
elif KIND == "eventlet":
    import_module("eventlet").monkey_patch()

import asyncio  # noqa: E402 (after the patching)
import threading  # noqa: E402
from typing import Any  # noqa: E402

from celery import Celery  # noqa: E402

from cloche.app.task import Task  # noqa: E402

PUBLISHERS, EACH = 24, 6

app = Celery("many", broker=URL, task_cls=Task, set_as_current=False)
app.conf.update(broker_pool_limit=LIMIT, task_publish_retry=False, task_ignore_result=True)


@app.task(name="demo.note")
def note(number: int) -> None:
    raise AssertionError("only published")


def publish(ids: list[str]) -> None:
    task: Any = app.tasks["demo.note"]
    for number in range(EACH // 2):
        ids.append(task.delay(number).id)
        ids.append(task.apply_async((number,), headers={"a": 1}).id)


async def publish_on_loop(ids: list[str]) -> None:
    task: Any = app.tasks["demo.note"]
    for _ in range(EACH):
        ids.append((await task.adelay(1)).id)


async def on_loop(ids: list[str]) -> None:
    await asyncio.gather(*(publish_on_loop(ids) for _ in range(PUBLISHERS // 4)))


def main() -> None:
    ids: list[str] = []
    if KIND == "loops":
        threads = [threading.Thread(target=lambda: asyncio.run(on_loop(ids))) for _ in range(4)]
    else:  # which are greenlets where threading is patched
        threads = [threading.Thread(target=publish, args=(ids,)) for _ in range(PUBLISHERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print("\n".join(ids))


if __name__ == "__main__":
    main()
