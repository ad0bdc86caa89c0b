"""A real launcher for the tests: a broker-like process and two workers, then it waits.

``launcher.py RUN-DIRECTORY LEDGER [no-death-signal] [silent]``; says ``ready`` and the guard's pid.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from cloche.process.output import Output
from cloche.process.run_directory import RunDirectory
from cloche.process.spec import ProcessSpec
from cloche.process.supervisor import Supervisor

ACTOR = str(Path(__file__).with_name("actor.py"))


def specs(ledger: str, *, dies: bool, silent: bool) -> list[ProcessSpec]:
    """Workers need the broker, which stops last and is told so by nobody but us."""
    quiet = ["silent"] if silent else []

    def actor(name: str, *words: str) -> list[str]:
        return [sys.executable, ACTOR, name, ledger, *words]

    return [
        ProcessSpec(
            name="broker",
            command=actor("broker", "notify=0"),
            notify=True,
            dies_with_launcher=False,
        ),
        ProcessSpec(
            name="worker",
            command=actor("worker", "drain=0.6", "family", "escape", "notify=0", *quiet),
            needs=("broker",),
            notify=True,
            dies_with_launcher=dies,
        ),
        ProcessSpec(
            name="stubborn",
            command=actor("stubborn", "stubborn", "notify=0"),
            needs=("broker",),
            notify=True,
            stop_signals=((signal.SIGTERM, 0.3),),
            dies_with_launcher=dies,
        ),
    ]


async def main(path: str, ledger: str, *words: str) -> None:
    directory = RunDirectory(Path(path))
    output = Output(sys.stderr, logs=directory.logs)
    supervisor = Supervisor(
        specs(ledger, dies="no-death-signal" not in words, silent="silent" in words),
        run_directory=directory,
        output=output,
    )
    asyncio.get_running_loop().add_signal_handler(
        signal.SIGTERM, lambda: asyncio.ensure_future(supervisor.stop())
    )
    await supervisor.start()
    print("ready", supervisor.guard_pid, directory.instance, flush=True)
    await supervisor.run()
    output.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
