"""Which answers prove a worker to be ours."""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import Any

import pytest

from cloche.cluster.existing import confirmed, duration, same_application
from cloche.process.identity import Identity
from cloche.process.scan import WorkerCandidate

HOST = socket.gethostname()
NODE = f"celery@{HOST}"
PROCESS = WorkerCandidate(
    identity=Identity(10, 1.0), command=("celery", "worker"), age=60, parent=1, inner_pid=10
)


def answers(
    node: str = NODE, *, pid: int = 10, uptime: int = 50, tasks: Any = ("proj.add",)
) -> Any:
    stats = {"pid": pid, "uptime": uptime, "pool": {}, "total": {}}
    return (
        ("stats", node, stats),
        ("registered", node, [f"{name} [rate_limit=10/m]" for name in tasks]),
        ("active_queues", node, [{"name": "mail"}]),
    )


def found(candidate: WorkerCandidate, told: Any) -> list[int]:
    return [one.pid for one in confirmed([candidate], told, ("proj.add", "celery.chord"))]


def test_pid_host_age_and_tasks_must_fit() -> None:
    (worker,) = confirmed([PROCESS], answers(), ("proj.add",))
    assert (worker.pid, worker.name, worker.queues) == (10, NODE, ("mail",))
    assert found(PROCESS, answers(pid=11)) == []
    assert found(PROCESS, answers("celery@elsewhere")) == []
    assert found(PROCESS, answers(uptime=100)) == [], "the process is younger than the worker"
    assert found(PROCESS, answers(tasks=("other.bake",))) == []
    assert found(PROCESS, (("stats", NODE, {"error": "no"}),)) == []


def test_a_container_is_told_by_its_inner_pid_and_its_host_name() -> None:
    inside = replace(PROCESS, inner_pid=1, host="box")
    assert found(inside, answers("celery@box", pid=1)) == [10]
    assert found(inside, answers("celery@crate", pid=1)) == []
    assert found(inside, answers(NODE, pid=1)) == []


def test_a_node_of_another_host_name_is_told_by_its_command_line() -> None:
    named = replace(PROCESS, command=("celery", "worker", "-n", "w@far"))
    assert found(named, answers("w@far")) == [10]


def test_two_of_one_name_are_two() -> None:
    second = replace(PROCESS, identity=Identity(20, 2.0), inner_pid=20)
    told = (*answers(), *answers(pid=20))
    assert [one.pid for one in confirmed([PROCESS, second], told, ("proj.add",))] == [10, 20]


@pytest.mark.parametrize(
    ("ours", "theirs", "same"),
    [
        ({"a", "b", "c"}, {"a", "b", "c"}, True),
        ({"a", "b", "c"}, {"a", "b", "new"}, True),
        ({"a", "b", "c"}, {"c", "d", "e"}, False),
        ({"a", "cloche.download.fetch"}, {"b", "cloche.download.fetch"}, False),
        ({"cloche.download.fetch"}, {"celery.chord"}, True),
        ({"a"}, set(), False),
        (set(), {"a"}, False),
    ],
)
def test_an_application_is_told_by_its_own_tasks(
    ours: set[str], theirs: set[str], same: bool
) -> None:
    assert same_application(ours, theirs) is same


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (65, "1 min 5 s"), (3600, "1 h"), (200_000, "2 d 7 h")]
)
def test_a_duration_in_its_two_largest_units(seconds: float, text: str) -> None:
    assert duration(seconds) == text
