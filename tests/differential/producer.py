"""The process that plays the producers of programs: takes jobs from the ledger, notes outcomes."""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from celery.result import GroupResult

from tests.differential import calls, ledger
from tests.differential.project import SIDE, app
from tests.differential.values import build, plain

handles: dict[str, dict[str, Any]] = {}


class Play:
    """One program's steps."""

    def __init__(self, program: str, steps: list[dict[str, Any]]) -> None:
        self.program, self.steps = program, steps
        self.handles: dict[str, Any] = handles.setdefault(program, {})

    def run(self) -> None:
        for number, step in enumerate(self.steps):
            self.step(f"{number}", step)
        ledger.note(self.program, "played")

    def step(self, number: str, step: dict[str, Any]) -> None:
        try:
            outcome = getattr(self, "do_" + step["do"])(number, step)
        except Exception as error:
            outcome = plain(error)
        ledger.note(self.program, "step", number=number, outcome=outcome)

    def do_call(self, number: str, step: dict[str, Any]) -> Any:
        spec = step["call"]
        sent = time.time()
        for _ in range(step.get("times", 1)):
            handle = calls.call(app, self.program, spec)
            self._sent(spec, handle, sent)
        return type(handle).__name__

    def do_many(self, number: str, step: dict[str, Any]) -> Any:
        """map_delay and its like on ours, a loop on stock."""
        spec = step["call"]
        rows = [calls.arguments(self.program, {**spec, "v": [value]}) for value in step["values"]]
        task = app.tasks[calls.PREFIX + spec["task"]]
        chosen = calls.options(app, self.program, spec)
        if SIDE == "stock":
            for positional, named in rows:
                self._sent(spec, task.apply_async(positional, named, **chosen), time.time())
        else:
            from cloche.broker.publish.bulk import publish_many

            published = publish_many(app, (task.signature(*row, **chosen) for row in rows))
            for one in published.ids:
                self._sent(spec, app.AsyncResult(one), time.time())
            return ["published", len(published.ids)]
        return ["published", len(rows)]

    def do_threads(self, number: str, step: dict[str, Any]) -> Any:
        threads = [
            threading.Thread(target=self.step, args=(f"{number}.{index}", one))
            for index, one in enumerate(step["steps"])
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return len(threads)

    def do_fork(self, number: str, step: dict[str, Any]) -> Any:
        """Children that publish and wait; the parent has published before."""

        def child(index: int) -> None:
            for inner, one in enumerate(step["steps"]):
                self.step(f"{number}.{index}.{inner}", one)

        fork = multiprocessing.get_context("fork")
        children = [fork.Process(target=child, args=(n,)) for n in range(step.get("children", 2))]
        for process in children:
            process.start()
        for process in children:
            process.join()
        return [process.exitcode for process in children]

    def do_get(self, number: str, step: dict[str, Any]) -> Any:
        handle = self.handles[step["n"]]
        return ["value", plain(handle.get(timeout=step.get("timeout", 10)))]

    def do_revoke(self, number: str, step: dict[str, Any]) -> Any:
        if "headers" in step:
            app.control.revoke_by_stamped_headers(
                {key: [f"{self.program} {value}"] for key, value in step["headers"].items()},
                **step.get("o", {}),
            )
            return None
        self.handles[step["n"]].revoke(**step.get("o", {}))
        return None

    def do_wait(self, number: str, step: dict[str, Any]) -> Any:
        """Until a body of a node has begun."""
        end = time.monotonic() + 6
        while time.monotonic() < end:
            for text in ledger.client().lrange(f"seen:{self.program}", 0, -1):
                seen = json.loads(text)
                if seen["k"] == "body" and seen["n"] == step["n"]:
                    return True
            time.sleep(0.02)
        return False

    def do_pause(self, number: str, step: dict[str, Any]) -> Any:
        time.sleep(step["seconds"])

    def do_rate(self, number: str, step: dict[str, Any]) -> Any:
        replies = app.control.rate_limit(
            "d." + step["task"], step["rate"], reply=True, timeout=1, limit=1
        )
        return [plain(answer) for reply in replies for answer in reply.values()]

    def do_store(self, number: str, step: dict[str, Any]) -> Any:
        """A producer stores a result by hand."""
        app.backend.store_result(f"{self.program}.{step['n']}", build(step["value"]), step["state"])
        return plain(app.AsyncResult(f"{self.program}.{step['n']}").state)

    def finish(self) -> None:
        for name, handle in sorted(self.handles.items()):
            try:
                told = self._told(handle)
            except Exception as error:
                told = plain(error)
            ledger.note(self.program, "handle", n=name, told=told)
        handles.pop(self.program, None)
        ledger.note(self.program, "finished")

    def _told(self, handle: Any) -> Any:
        if isinstance(handle, GroupResult):
            return {"members": [self._told(one) for one in handle.results or ()]}
        if not hasattr(handle, "state"):
            return plain(handle)
        return {
            "state": handle.state,
            "result": plain(handle.result),
            "ready": handle.ready(),
            "failed": handle.failed(),
            "traceback": bool(handle.traceback),
            "parent": bool(getattr(handle, "parent", None)),
            "children": len(handle.children or ()) if handle.children else 0,
        }

    def _sent(self, spec: dict[str, Any], handle: Any, at: float) -> None:
        name = spec.get("n", "canvas")
        self.handles.setdefault(name, handle)
        if isinstance(task_id := getattr(handle, "id", None), str):
            kind = "group" if isinstance(handle, GroupResult) else "sent"
            if spec.get("c") in ("chain", "pipe", "chord") and kind == "sent":
                kind = "last"  # of a canvas: it may never run
            ledger.note(self.program, kind, n=name, id=task_id, at=at)
            if spec.get("c") == "chunks":
                for member in handle.results:
                    ledger.note(self.program, "sent", n=name, id=member.id, at=at)


def main() -> None:
    """Take jobs of this side until told to stop."""
    jobs, workers = sys.argv[1], int(sys.argv[2])
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    app.finalize()
    # Publishes before it has threads or children, as servers do while they start.
    app.tasks["d.bound"].apply_async((), {"p": "x0000000000", "n": "warm"}).get(timeout=60)
    ledger.client().rpush("ready:" + jobs, "1")
    executor = ThreadPoolExecutor(workers) if workers else None
    server = ledger.client()
    while True:
        _, text = server.blpop([jobs], 0)  # type: ignore[misc]
        job = json.loads(text)
        if job == "stop":
            os._exit(0)
        played = Play(job["program"], job["steps"])
        action = played.finish if job.get("finish") else played.run
        if executor:
            executor.submit(action)
        else:
            action()


if __name__ == "__main__":
    main()
