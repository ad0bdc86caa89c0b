"""What was observed of a program on one side, so that the other side's can be held against it."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?")
_ADDRESS = re.compile(r"0x[0-9a-f]{6,}")
_ORIGIN = re.compile(r"gen\d+@[\w.-]+")
_DATETIME = re.compile(r"datetime\.datetime\([\d, ]+")
_TRACE = "Traceback (most recent call last)"
_OWN = re.compile(r'File "[^"]*tests/differential/(\w+)\.py", line (\d+), in (\w+)')

#: Of an event or record: what differs from run to run on one and the same Celery.
_NEVER_ALIKE = {
    "timestamp", "local_received", "clock", "pid", "runtime", "utcoffset", "hostname", "at",
}  # fmt: skip
#: Whether it is there counts, not what it says.
_MASKED = {"delivery_tag", "timestamp", "date_done", "expiration"}


@dataclass(frozen=True, slots=True)
class Difference:
    """At ``path`` the sides say other things. ``kind`` is the path without names and numbers."""

    path: str
    stock: str
    ours: str

    @property
    def kind(self) -> str:
        steps = self.path.split("/")
        named = ["*" if i and steps[i - 1] in ("tasks", "steps", "handles") else s
                 for i, s in enumerate(steps)]  # fmt: skip
        return "/".join(re.sub(r"\d+", "*", step) for step in named)

    def __str__(self) -> str:
        return f"{self.path}: stock {self.stock:.160} | ours {self.ours:.160}"


#: Events that come in an order of their own.
STREAMS = {
    "received": ("task-received",),
    "started": ("task-started",),
    "ended": (
        "task-succeeded", "task-failed", "task-retried", "task-revoked", "task-rejected",
        "task-cancelled",
    ),
    "own events": ("task-progress",),
}  # fmt: skip


class Story:
    """Collects what is known of one program on one side."""

    def __init__(self, program: str) -> None:
        self.program = program
        self.labels: dict[str, str] = {}
        self.groups: set[str] = set()

    def tell(
        self,
        records: list[dict[str, Any]],
        events: Mapping[str, list[dict[str, Any]]],
        owners: Mapping[str, tuple[str, str]],
        metas: Mapping[str, Any],
        logs: Mapping[str, list[str]],
        left: Mapping[str, list[str]],
        hung: bool,
    ) -> dict[str, Any]:
        """Everything, by subject."""
        self._name(records, owners)
        told: dict[str, Any] = {
            "steps": {
                record["number"]: self.alike(record["outcome"])
                for record in records
                if record["k"] == "step"
            },
            "handles": {
                record["n"]: self.alike(record["told"])
                for record in records
                if record["k"] == "handle"
            },
            "hung": hung,
            "left": {kind: len(texts) for kind, texts in left.items() if texts},
        }
        tasks: dict[str, list[Any]] = defaultdict(list)
        own = defaultdict(list)
        for record in records:
            if isinstance(record.get("id"), str):
                own[record["id"]].append(record)
        for task_id, label in self.labels.items():
            if task_id not in self.groups:
                tasks[label].append(
                    self._task(
                        own[task_id],
                        events.get(task_id, []),
                        metas.get(task_id),
                        logs.get(task_id, []),
                    )
                )
        loose = [self.alike(r) for r in records if "id" in r and r["id"] is None]
        told["loose"] = _ordered(loose)
        told["tasks"] = {label: _ordered(found) for label, found in sorted(tasks.items())}
        return told

    def _name(
        self, records: Iterable[dict[str, Any]], owners: Mapping[str, tuple[str, str]]
    ) -> None:
        named: dict[str, set[str]] = defaultdict(set)
        for uuid, (program, label) in owners.items():
            if program == self.program:
                named[uuid].add(label)
        weak: dict[str, str] = {}
        for record in records:
            task_id = record.get("id")
            if isinstance(task_id, str) and isinstance(record.get("n"), str):
                if record["k"] == "group":
                    self.groups.add(task_id)
                if record["k"] in ("sent", "group", "last"):
                    weak.setdefault(task_id, record["n"])
                else:
                    named[task_id].add(record["n"])
        # A task and what replaces it share an id; whose record comes last is chance.
        first = {uuid: min(names, key=lambda n: (len(n), n)) for uuid, names in named.items()}
        self.labels = weak | first

    def _task(
        self,
        records: list[dict[str, Any]],
        events: list[dict[str, Any]],
        meta: Any,
        logs: list[str],
    ) -> dict[str, Any]:
        by_kind: dict[str, list[Any]] = defaultdict(list)
        for record in records:
            facts = {k: v for k, v in record.items() if k not in ("k", "id", "n", "at")}
            kind = record["k"]
            if kind == "signal":
                publishing = facts["signal"] in ("before_task_publish", "after_task_publish")
                consumer = facts["signal"] in ("task_received", "task_revoked")
                kind = "consumer signals" if consumer else "signals"
                if publishing:
                    kind = f"published by {facts.pop('where')}"
            # The next attempt may begin before this one has told that it is a retry.
            if isinstance(retries := facts.pop("retries", None), int):
                kind = f"{kind} of attempt {retries}"
            if kind not in ("sent", "group", "last"):
                by_kind[kind].append(self.alike(facts))
        told: dict[str, Any] = {
            # Where one id is published by several, whose turn it is is chance.
            kind: _ordered(found) if kind.startswith("published by producer") else found
            for kind, found in by_kind.items()
        }
        shown = [
            self.alike({k: v for k, v in event.items() if k not in _NEVER_ALIKE})
            for event in events
        ]
        # A retry is published before it is told: which of them is heard first is chance.
        for stream, types in STREAMS.items():
            told[stream] = [event for event in shown if event["type"] in types]
        told["sent"] = _ordered(event for event in shown if event["type"] == "task-sent")
        told["meta"] = self.alike(meta)
        told["logs"] = _ordered(logs)
        told["pace"] = list(_pace(records))
        return told

    def alike(self, value: Any, key: str = "") -> Any:
        """``value`` without what differs from run to run."""
        if isinstance(value, dict):
            return {
                self.alike(k): "…" if k in _MASKED else self.alike(v, k)
                for k, v in value.items()
                if k not in _NEVER_ALIKE or k == "timestamp"
            }
        if isinstance(value, list):
            return [self.alike(item) for item in value]
        if isinstance(value, str):
            return self._text(value, key)
        return value if value == value else "NaN"

    def _text(self, text: str, key: str) -> str:
        if _TRACE in text:
            own = [where.removeprefix("_").removeprefix("a") for _, _, where in _OWN.findall(text)]
            return f"traceback through {own}: " + self._text(text.strip().splitlines()[-1], key)
        if text in self.labels:
            return f"<{self.labels[text]}>"
        text = text.replace(self.program, "P")
        text = _UUID.sub(lambda found: f"<{self.labels.get(found[0], 'uuid')}>", text)
        text = _ORIGIN.sub("<origin>", _ADDRESS.sub("0x", text))
        text = _DATETIME.sub("datetime.datetime(…", text)
        return _TIME.sub("<time>", text)


def _pace(records: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Whether each attempt came no sooner than was asked, and not much later."""
    due: float | None = None
    for record in records:
        if record["k"] == "retry" and isinstance(record["wait"], int | float):
            due = record["at"] + record["wait"]
            wait = record["wait"]
        elif record["k"] == "body":
            if due is not None:
                late = record["at"] - due
                yield "early" if late < -0.1 * wait - 0.02 else "late" if late > 5 else "in time"
            due = None


def _ordered(items: Iterable[Any]) -> list[Any]:
    return sorted(items, key=lambda item: json.dumps(item, sort_keys=True, default=str))


def differences(stock: Any, ours: Any, path: str = "") -> Iterator[Difference]:
    """Where two stories part."""
    if isinstance(stock, dict) and isinstance(ours, dict):
        for key in sorted({*stock, *ours}, key=str):
            inner = f"{path}/{key}" if path else str(key)
            if key not in ours:
                yield Difference(inner, _short(stock[key]), "absent")
            elif key not in stock:
                yield Difference(inner, "absent", _short(ours[key]))
            else:
                yield from differences(stock[key], ours[key], inner)
    elif isinstance(stock, list) and isinstance(ours, list):
        if len(stock) != len(ours):
            yield Difference(
                f"{path}/length",
                f"{len(stock)} {_kinds(stock)}",
                f"{len(ours)} {_kinds(ours)}",
            )
        else:
            for index, (one, other) in enumerate(zip(stock, ours, strict=True)):
                yield from differences(one, other, f"{path}/{index}")
    elif type(stock) is not type(ours) or stock != ours:
        yield Difference(path, _short(stock), _short(ours))


def _short(value: Any) -> str:
    return json.dumps(value, default=str)[:400]


def _kinds(items: list[Any]) -> str:
    """What a list is of, so that one missing event is seen."""
    words = [
        str(item.get("type") or item.get("signal") or item.get("hook") or item.get("what") or "…")
        if isinstance(item, dict)
        else str(item)[:60]
        for item in items
    ]
    return ", ".join(words)[:300]
