"""What a person sees when everything is ready."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from cloche.launch.broker import Broker
from cloche.settings import Resolved, mask_url

_SURVIVAL = {
    True: "messages survive a stop",
    False: "messages are LOST when it stops",
    None: "whether messages survive a stop is not known",
}


def banner(
    resolved: Resolved, broker: Broker, pages: Mapping[str, str], workers: Mapping[str, str]
) -> list[str]:
    """Lines: where to look, what runs, whether data survives, where settings came from."""
    settings = resolved.settings
    results = settings.results.url.get_secret_value() if settings.results.url else broker.url
    rows = [
        *((name, url) for name, url in pages.items()),
        ("app", settings.app),
        ("broker", f"{broker.describe}: {_SURVIVAL[broker.survives]}"),
        ("results", mask_url(results)),
        ("database", _database(resolved)),
        *((f"worker {name}" if name != "worker" else name, what) for name, what in workers.items()),
        ("settings", ", ".join(_sources(resolved)) or "all at their defaults"),
    ]
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  {what}" for name, what in rows]


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
        place = {
            "cli": "command line",
            "env": "environment",
            "well-known": "environment",
            "app": "the application",
        }.get(origin.kind, re.sub(r":\d+$", "", origin.where))
        counts[place] = counts.get(place, 0) + 1
    return (f"{place} ({count})" for place, count in counts.items())
