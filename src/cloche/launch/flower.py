"""Flower on our application: a password of its own, loopback, a broker URL it can read."""

from __future__ import annotations

import importlib.util
import os
import secrets
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from cloche.errors import ExtraMissingError
from cloche.launch.environment import join
from cloche.process.port import claim
from cloche.settings import Resolved, reload
from cloche.settings.celery_keys import plain_url

USER = "cloche"
_FILE = "flower.password"


def run_flower(resolved: Resolved, *, host: str, port: int, say: Callable[[str], None]) -> NoReturn:
    """Become Flower.

    Raises ExtraMissingError where it is not installed, PortTakenError, and what joining the
    application raises.
    """
    if importlib.util.find_spec("flower") is None:
        raise ExtraMissingError(
            "Flower is not installed.",
            why="it is an optional dependency of Cloche",
            fix="pip install 'cloche[flower]'",
        )
    # Flower's broker page knows kombu's own URLs only. It sends and fetches no task, so the
    # transport makes no other difference to it.
    environment = join(reload(resolved, cli={"broker.transport": "stock"}))
    claim(host, port)
    password, new = flower_password(environment.settings.run_dir)
    path = environment.settings.run_dir / _FILE
    say(
        f"Flower on http://{host}:{port}, user {USER}, password " + (password if new else "as ever")
    )
    say(f"the password is in {path}; delete the file for another one")
    # As `celery -b` does it; Flower runs no task of the project, but imports it.
    os.environ["CELERY_BROKER_URL"] = plain_url(environment.app.conf.broker_read_url)
    # An application that hardens itself would put it through Cloche's transport again.
    os.environ["CLOCHE_BROKER__TRANSPORT"] = "stock"
    os.environ["FLOWER_BASIC_AUTH"] = f"{USER}:{password}"  # not in the list of processes
    command = [
        *(sys.executable, "-m", "celery", "-A", environment.settings.app, "flower"),
        *(f"--address={host}", f"--port={port}"),
    ]
    os.execv(sys.executable, command)  # noqa: S606


def flower_password(run_dir: Path) -> tuple[str, bool]:
    """The password of this run directory, and whether it has just been made. The file is 0600."""
    run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = run_dir / _FILE
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        path.chmod(0o600)
        return path.read_text().strip(), False
    password = secrets.token_urlsafe(18)
    with os.fdopen(handle, "w") as file:
        file.write(password + "\n")
    return password, True
