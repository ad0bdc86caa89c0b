"""What a person sees when everything is ready."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from cloche.launch.broker import SettledBroker
from cloche.launch.environment import Environment
from cloche.settings import Resolved, mask_url
from cloche.settings.celery_keys import plain_url

_SURVIVAL = {
    True: "messages survive a stop",
    False: "messages are LOST when it stops",
    None: "whether messages survive a stop is not known",
}


def banner(
    environment: Environment,
    broker: SettledBroker,
    pages: Mapping[str, str],
    workers: Mapping[str, str],
) -> list[str]:
    """Lines: where to look, what runs, whether data survives, where settings came from."""
    resolved, settings = environment.resolved, environment.settings
    said = resolved.origin("broker.url")
    of = "" if said.kind == "default" or broker.embedded is not None else f", from {said}"
    rows = [
        *((name, url) for name, url in pages.items()),
        ("app", settings.app),
        ("broker", f"{broker.describe}{of}: {_SURVIVAL[broker.survives]}"),
        ("results", _results(environment)),
        *([("database", _database(resolved))] if settings.keeps_rows else []),
        *((f"worker {name}" if name != "worker" else name, what) for name, what in workers.items()),
        ("settings", ", ".join(_sources(resolved)) or "all at their defaults"),
    ]
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  {what}" for name, what in rows]


def _results(environment: Environment) -> str:
    """Where the workers keep them."""
    where = environment.app.backend_cls or environment.app.conf.result_backend
    if not isinstance(where, str):
        return "not kept" if where is None else f"as the application says: {where!r}"
    return mask_url(plain_url(where))


def _database(resolved: Resolved) -> str:
    url = resolved.settings.database.url
    if url is not None:
        return mask_url(url.get_secret_value())
    return f"SQLite in {resolved.settings.run_dir}"


def _sources(resolved: Resolved) -> Iterator[str]:
    """``cloche.toml (3)``: where settings came from and how many from each."""
    counts: dict[str, int] = {}
    for key in resolved.changed():
        origin = resolved.origin(key)
        if origin.kind == "cli" and not origin.where.startswith("-"):
            continue  # nobody said so: the launcher found it
        place = {
            "cli": "command line",
            "env": "environment",
            "well-known": "environment",
            "app": "the application",
        }.get(origin.kind, "")
        if not place or origin.where.startswith(".env:"):
            place = re.sub(r":\d+.*$", "", origin.where)
        counts[place] = counts.get(place, 0) + 1
    return (f"{place} ({count})" for place, count in counts.items())
