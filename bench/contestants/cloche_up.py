"""``cloche up`` of this checkout: from the command to the service's ready page."""

from __future__ import annotations

import subprocess

from bench.contestant import Contestant, own_environment


def _missing() -> str | None:
    cloche = own_environment() / "bin" / "cloche"
    if not cloche.exists():
        return "cloche is not installed beside this Python"
    asked = subprocess.run([cloche, "up", "--help"], capture_output=True, text=True, check=False)
    if asked.returncode:
        last = (asked.stderr.strip().splitlines() or ["no message"])[-1]
        return f"`cloche up --help` exits {asked.returncode}: {last}"
    return None


def _set(**settings: str) -> tuple[str, ...]:
    return tuple(
        word
        for name, value in settings.items()
        for word in ("--set", f"{name.replace('__', '.')}={value}")
    )


CONTESTANTS = (
    Contestant(
        name="cloche up",
        worker=(
            "cloche",
            "up",
            *_set(service__port="{port}", dashboard__port="{other_port}"),
            *_set(broker__embedded="always", run_dir="{home}/run"),
        ),
        app="",
        benchmarks=("up",),
        environment="own",
        ready="/readyz",
        grace=60,
        missing=_missing,
    ),
)
