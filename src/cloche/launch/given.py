"""What a command tells a running launcher of its settings, and how the two are compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from cloche.settings import Settings


def given_workers(settings: Settings) -> dict[str, Any]:
    """The declared workers as plain fields, only those somebody set."""
    return {
        name: worker.model_dump(mode="json", exclude_unset=True)
        for name, worker in settings.workers.items()
    }


def digests(settings: Settings) -> dict[str, str]:
    """Each setting a launcher cannot change while it runs, as a hash: compared, never shown."""
    dumped = settings.model_dump(mode="python", exclude={"workers", "app", "run_dir"})
    return {
        key: hashlib.sha256(_revealed(value).encode()).hexdigest() for key, value in _flat(dumped)
    }


def _flat(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _flat(inner, (*path, str(key)))
    else:
        yield ".".join(path), value


def _revealed(value: Any) -> str:
    secret = getattr(value, "get_secret_value", None)
    return json.dumps(secret() if secret is not None else value, default=str)
