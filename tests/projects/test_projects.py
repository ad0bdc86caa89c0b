"""Existing projects run unchanged: before Cloche, beside it, and after it has gone."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import redis

from cloche.testing import BrokerProcess, RabbitProcess, wait_until
from tests.projects.conftest import OpenProject
from tests.projects.harness import Project


def call(task: str, arguments: str, *, many: int = 1) -> str:
    """A producer and reader of the project's own: what each caller gets, and what is stored."""
    module, _, name = task.rpartition(".")
    return (
        f"from {module} import {name}\n"
        f"sent = [{name}.delay({arguments}) for _ in range({many})]\n"
        "print({str(one.get(timeout=30)) for one in sent}, {one.state for one in sent})"
    )


def goes_on(
    project: Project, program: str, expected: str, *worker: str, queues: str | None = None
) -> None:
    """The whole visit: what the project's own code sees is the same at every step.

    ``worker``: options of the stock worker. ``queues``: what Cloche's has to consume.
    """
    project.start_stock_worker(*worker)
    assert project.python(program) == expected, "before"
    project.stop_stock_workers()

    project.cloche("start")
    assert project.python(program) == expected, "beside, with Cloche's workers alone"
    assert project.cloche("health").endswith("healthy\n")
    rows = {row["name"]: row for row in project.json("ps")["processes"]}
    assert not {"download", "service", "dashboard"} & rows.keys(), "nobody asked for them"
    assert queues in (None, ",".join(rows["worker"]["queues"]))
    assert sum(row["processed"] or 0 for row in rows.values()) >= 1
    names = {task["name"] for task in project.json("tasks")}
    assert not [name for name in names if name.startswith(("tasks.maint", "cloche."))], names

    project.start_stock_worker(*worker)
    assert project.python(program) == expected, "beside, with workers of both kinds"
    assert "stopped" in project.cloche("stop", named=False)
    assert project.python(program) == expected, "after"


def test_a_plain_module(open_project: OpenProject, server: BrokerProcess) -> None:
    project = open_project("plain", "proj")
    goes_on(project, call("proj.add", "2, 3", many=20), "{'5'} {'SUCCESS'}")
    project.cloche("start")
    # As a page that shows whatever is not PENDING as the result relies on it.
    assert project.python(call("proj.state_while_it_runs", "")) == "{'PENDING'} {'SUCCESS'}"
    assert project.python(call("proj.own_client", "")) == "{'[True, True]'} {'SUCCESS'}"
    (hourly,) = project.json("schedules")["schedules"]
    assert (hourly["name"], hourly["task"]) == ("hourly", "proj.add")
    assert "ready" in project.cloche("restart", named=False)
    assert project.cloche("health", named=False).endswith("healthy\n")
    assert project.python(call("proj.add", "2, 3")) == "{'5'} {'SUCCESS'}"
    shown = project.cloche("config", "explain", "broker.url")
    assert "app.conf.broker_url" in shown
    assert server.url.split("@")[-1] in shown


def test_a_package_with_settings_of_its_own(open_project: OpenProject) -> None:
    project = open_project("celeryconfig", "shop.celery")
    program = (
        "from datetime import timedelta\nfrom shop.tasks import add, mail\n"
        "late = add.apply_async((1, 2), countdown=1)\n"
        "print(mail.delay(timedelta(minutes=1)).get(timeout=30), late.get(timeout=30))"
    )
    goes_on(project, program, "60.0 3", "-Q", "shop,mail")


def test_django_with_results_and_schedules_in_its_database(open_project: OpenProject) -> None:
    project = open_project("django_db", "shop", DJANGO_SETTINGS_MODULE="shop.settings")
    project.run("-m", "django", "migrate")
    program = (
        "import django; django.setup()\nfrom shop.tasks import count_users\n"
        "print(count_users.delay(7).get(timeout=30))"
    )
    goes_on(project, program, "7")
    rows = project.python(
        "import django; django.setup()\n"
        "from django_celery_beat.models import PeriodicTask\n"
        "from django_celery_results.models import TaskResult\n"
        "print(sorted(PeriodicTask.objects.values_list('name', flat=True)),"
        " {one.status for one in TaskResult.objects.all()})"
    )
    assert rows == "['celery.backend_cleanup', 'tick'] {'SUCCESS'}"
    with sqlite3.connect(project.directory / "db.sqlite3") as database:
        tables = {row[0] for row in database.execute("select name from sqlite_master")}
    assert not [name for name in tables if "cloche" in name or "alembic" in name]


def test_a_flask_factory(open_project: OpenProject) -> None:
    project = open_project("flask_factory", "make_celery")
    program = (
        "from make_celery import flask_app\nfrom task_app import greet\n"
        "print(greet.delay('you').get(timeout=30))"
    )
    goes_on(project, program, "hello you")


def test_fastapi_beside_a_cache_and_a_database(
    open_project: OpenProject, server: BrokerProcess, tmp_path: Path
) -> None:
    own = tmp_path / "own.db"
    with sqlite3.connect(own) as database:
        database.execute("create table users (id int)")
        database.execute("create table alembic_version (version_num varchar(32))")
        database.execute("insert into alembic_version values ('a1b2c3')")
    cache = f"{server.url.rpartition('/')[0]}/9"
    project = open_project(
        "fastapi_own_database", "main:celery", REDIS_URL=cache, DATABASE_URL=f"sqlite:///{own}"
    )
    program = (
        "from main import start\nfrom main import celery\n"
        "print(celery.AsyncResult(start(5)['id']).get(timeout=30))"
    )
    goes_on(project, program, "5")
    with sqlite3.connect(own) as database:
        tables = {row[0] for row in database.execute("select name from sqlite_master")}
        versions = list(database.execute("select * from alembic_version"))
    assert (tables, versions) == ({"users", "alembic_version"}, [("a1b2c3",)])
    with redis.Redis.from_url(cache) as client:
        assert client.keys("*") == [], "the cache is the project's"


def test_rabbitmq_with_its_own_queues(open_project: OpenProject, rabbit: RabbitProcess) -> None:
    project = open_project("rabbitmq", "proj", PROJECT_RABBIT=rabbit.url)
    program = (
        "from proj import add, paid\n"
        "print(add.apply_async((2, 3), priority=3).get(timeout=30), paid.delay(4).get(timeout=30),"
        " add.apply_async((1, 1), countdown=1).get(timeout=30))"
    )
    goes_on(project, program, "5 4 2")


def test_results_by_rpc(open_project: OpenProject, rabbit: RabbitProcess) -> None:
    project = open_project("rpc_results", "proj", PROJECT_RABBIT=rabbit.url)
    queues = set(rabbit.control("list_queues", "name").split())
    program = call("proj.add", "2, 3", many=20)
    goes_on(project, program, "{'5'} {'SUCCESS'}", queues="rpc-results")
    project.stop_stock_workers()
    lasting = rabbit.control("list_queues", "name", "durable").splitlines()
    new = {line.split()[0] for line in lasting if line.endswith("true")} - queues
    assert new <= {"rpc-results"}, "no queue is left of a worker that looked whether results work"


def test_two_applications_of_one_name_on_one_server(open_project: OpenProject) -> None:
    first, second = (
        open_project(f"two_apps/{name}", "tasks", CLOCHE_BEAT__LOCK="2") for name in "ab"
    )
    for project in (first, second):
        project.cloche("start")
    for name, project in (("a", first), ("b", second)):
        assert project.python(call("tasks.which", "")) == f"{{'{name}'}} {{'SUCCESS'}}"
        ticks = project.directory / "ticks"
        wait_until(ticks.exists, f"runs of {name}'s schedule")
        assert set(ticks.read_text().split()) == {name}
        assert project.cloche("health").endswith("healthy\n")
        (one,) = project.json("schedules")["schedules"]
        assert one["task"] == f"tasks.tick_{name}"


def test_a_package_named_as_cloches_families_are(open_project: OpenProject) -> None:
    project = open_project("package_tasks", "tasks")
    program = (
        "from tasks.download import film\nfrom tasks.logs import write\n"
        "print(film.delay('u').get(timeout=30), write.delay('x').get(timeout=30))"
    )
    goes_on(project, program, "['u', 'celery', [None, None]] the project's own: x")


def test_a_pool_that_cloche_does_not_bring(open_project: OpenProject) -> None:
    project = open_project("gevent_pool", "proj")
    project.cloche("tasks")
    started = project.cloche("start")
    assert "gevent" in started
    assert project.python(call("proj.add", "2, 3", many=20)) == "{'5'} {'SUCCESS'}"
    assert project.cloche("health").endswith("healthy\n")
    assert project.json("ps")["processes"]


def test_coroutines_that_the_project_wraps_itself(open_project: OpenProject) -> None:
    project = open_project("wrapped_coroutines", "proj")
    goes_on(project, call("proj.send", "1", many=20), "{'2'} {'SUCCESS'}", queues="mail")


def test_an_error_in_settings_is_shown_once_with_its_line(open_project: OpenProject) -> None:
    project = open_project("lazy_settings", "proj")
    for command in ("up", "start", "tasks", "health", "ps", "schedules"):
        said = project.cloche(command, code=5)
        assert "conf.py:3" in said, said
        assert "AttributeError" in said
        assert len(said.splitlines()) <= 8, said
