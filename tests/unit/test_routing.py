"""Routing and per-family limits: what goes where, and who may override whom."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu import Queue

from cloche.app import create_app, harden, restore
from cloche.app.routing import all_routes, consumed_queues, specificity, unmatched_routes
from cloche.errors import SettingsError
from cloche.settings import Settings, load


def settings(**values: Any) -> Settings:
    return Settings.model_validate(values)


def queue_of(app: Celery, task: str) -> str:
    routed = app.amqp.router.route({}, task)
    name: str = routed["queue"].name
    return name


def test_the_specific_pattern_comes_before_the_general() -> None:
    patterns = ["*", "tasks.*", "tasks.mail.send", "tasks.mail.*", "tasks.ma*", "*.send"]
    assert sorted(patterns, key=specificity) == [
        "tasks.mail.send",
        "tasks.mail.*",
        "tasks.ma*",
        "tasks.*",
        "*.send",
        "*",
    ]


def test_routes_lead_tasks_to_their_queues_whatever_the_order_they_are_written_in() -> None:
    app = create_app(
        settings=settings(
            routes=[
                {"pattern": "*", "queue": "rest"},
                {"pattern": "tasks.mail.*", "queue": "mail"},
                {"pattern": "tasks.mail.urgen?", "queue": "urgent"},
            ]
        )
    )
    assert queue_of(app, "tasks.mail.send") == "mail"
    assert queue_of(app, "tasks.mail.urgent") == "urgent"
    assert queue_of(app, "cloche.download.fetch") == "download_queue"
    assert queue_of(app, "other") == "rest"


def test_an_unrouted_task_goes_to_the_default_queue() -> None:
    assert queue_of(create_app(), "add") == "default"
    assert queue_of(create_app(settings=settings(tasks={"default_queue": "x"})), "add") == "x"


def test_an_existing_application_keeps_its_queue_its_routes_and_its_values() -> None:
    app = Celery("theirs", broker="redis://localhost/3")
    app.conf.task_routes = {"cloche.download.*": {"queue": "theirs"}}
    app.conf.worker_prefetch_multiplier = 7
    app.conf.broker_transport_options = {"socket_timeout": 99}
    done = harden(app, Settings())
    assert queue_of(app, "add") == "celery"
    assert queue_of(app, "cloche.download.fetch") == "theirs"
    assert app.conf.worker_prefetch_multiplier == 7
    assert [kept.key for kept in done.left_alone] == ["worker_prefetch_multiplier"]
    options = app.conf.broker_transport_options
    assert (options["socket_timeout"], options["socket_connect_timeout"]) == (99, 5)


def test_hardening_again_replaces_what_the_first_time_set_and_nothing_else() -> None:
    app = Celery("theirs")
    app.conf.broker_transport_options = {"socket_timeout": 99}
    app.conf.task_annotations = {"*": {"priority": 3}}
    for result_expires in (60, 120):
        harden(app, settings(results={"expires": result_expires}))
    assert app.conf.result_expires.total_seconds() == 120
    assert app.conf.broker_transport_options["socket_timeout"] == 99
    assert len(app.conf.task_routes) == 1
    assert len(app.conf.task_annotations) == 1
    assert len({queue.name for queue in app.conf.task_queues}) == len(app.conf.task_queues)


def test_what_an_application_sets_after_it_was_made_is_its_own() -> None:
    app = create_app("theirs")
    app.conf.worker_prefetch_multiplier = 9
    app.conf.task_routes = {"a": {"queue": "alpha"}}
    app.conf.broker_transport_options["visibility_timeout"] = 7
    harden(app, settings(broker={"socket_timeout": 3}))
    assert app.conf.worker_prefetch_multiplier == 9
    assert queue_of(app, "a") == "alpha"
    assert queue_of(app, "cloche.download.fetch") == "download_queue"
    options = app.conf.broker_transport_options
    assert options["visibility_timeout"] == 7


def test_every_queue_named_anywhere_is_declared_apart_from_the_others() -> None:
    app = create_app(settings=settings(routes=[{"pattern": "a.*", "queue": "alpha"}]))

    @app.task(shared=False, name="asks")
    def asks() -> None: ...

    assert consumed_queues(app)[0] == "default"
    assert set(consumed_queues(app)) == {
        "default",
        "alpha",
        "download_queue",
        "logs",
        "maintenance_queue",
    }
    bindings = {(queue.exchange.name, queue.routing_key) for queue in app.conf.task_queues}
    assert len(bindings) == 5, "two queues that share exchange and key both get every message"


@pytest.mark.parametrize("queues", [[Queue("own")], {"own": {"routing_key": "own"}}])
def test_the_default_queue_is_not_consumed_where_the_declared_ones_leave_it_out(
    queues: object,
) -> None:
    app = Celery("theirs", set_as_current=False)
    app.conf.task_queues = queues
    app.conf.task_routes = {"a": "routed"}
    harden(app, load(environ={}, directory=Path("/nowhere"), guest=True).settings)
    assert consumed_queues(app) == ("own", "routed")
    app.conf.task_queues = None
    harden(app, load(environ={}, directory=Path("/nowhere"), guest=True).settings)
    assert consumed_queues(app) == ("celery", "routed")


def test_what_readers_of_a_projects_results_see_is_celerys_unless_a_setting_says_else() -> None:
    app = Celery("theirs", set_as_current=False)

    def seen() -> tuple[object, ...]:
        conf = app.conf
        return conf.result_expires, conf.result_extended, conf.task_track_started

    stock = seen()
    for guest in (Settings(), load(environ={}, directory=Path("/nowhere"), guest=True).settings):
        harden(app, guest)
        assert seen() == stock
    harden(app, settings(results={"expires": 60, "extended": True}))
    assert seen() == (timedelta(minutes=1), True, False)
    app = create_app(settings=Settings())
    assert seen() == (timedelta(hours=1), True, True)


def test_a_route_that_matches_no_task_is_found() -> None:
    config = settings(routes=[{"pattern": "tasks.mial.*", "queue": "mail"}])
    app = create_app(settings=config)
    assert "tasks.mial.*" in [r.pattern for r in unmatched_routes(app, all_routes(config))]


def test_a_family_gives_its_tasks_retries_and_limits_unless_the_author_did() -> None:
    app = create_app(
        settings=settings(
            families={"mail": {"max_retries": 5, "soft_time_limit": 8, "time_limit": 9}}
        )
    )

    @app.task(shared=False, name="tasks.mail.send")
    def send() -> None: ...

    @app.task(shared=False, name="tasks.mail.special", max_retries=1, time_limit=99)
    def special() -> None: ...

    @app.task(shared=False, name="loose")
    def loose() -> None: ...

    @app.task(shared=False, name="tasks.mail.polls", max_retries=None)
    def polls() -> None: ...

    assert polls.max_retries is None
    assert (send.max_retries, send.default_retry_delay) == (5, 60)
    assert (send.soft_time_limit, send.time_limit) == (8, 9)
    assert (special.max_retries, special.soft_time_limit, special.time_limit) == (1, 8, 99)
    assert (loose.max_retries, loose.default_retry_delay, loose.time_limit) == (3, 60, None)


def test_the_applications_own_annotations_win_over_the_familys() -> None:
    app = Celery("theirs")
    app.conf.task_annotations = {"tasks.mail.own": {"max_retries": 77}, "*": {"priority": 4}}
    harden(app, settings(families={"mail": {"max_retries": 5, "retry_delay": 7}}))

    @app.task(shared=False, name="tasks.mail.own")
    def send() -> None: ...

    assert (send.max_retries, send.default_retry_delay, send.priority) == (77, 7, 4)


def test_tasks_bound_before_hardening_get_their_family_and_are_told_of() -> None:
    app = Celery("theirs")

    @app.task(shared=False, name="tasks.mail.own")
    def send() -> None: ...

    send.bind(app)
    done = harden(app, settings(families={"mail": {"max_retries": 5}}))
    assert send.max_retries == 5
    assert any("tasks.mail.own" in note for note in done.notes)


def test_a_variable_that_celery_would_prefer_unseen_is_a_contradiction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://:geheim@elsewhere/0")
    with pytest.raises(SettingsError, match="CELERY_BROKER_URL") as caught:
        create_app(settings=settings(broker={"url": "redis://localhost/0"}))
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("transport", "broker", "results"),
    [
        ("cloche", "cloche+redis://localhost/3", "cloche+socket:///run/r.sock"),
        ("stock", "redis://localhost/3", None),
    ],
)
def test_an_existing_applications_redis_is_used_through_the_chosen_transport(
    transport: str, broker: str, results: str | None
) -> None:
    """What its own code reads of the addresses is what it wrote."""
    app = Celery("theirs")
    own = {"broker_url": "redis://localhost/3", "result_backend": "redis+socket:///run/r.sock"}
    app.config_from_object(own)
    for _ in range(2):
        harden(app, settings(broker={"transport": transport}))
        assert {key: app.conf[key] for key in own} == own
        assert (app.conf.broker_read_url, app.conf.broker_write_url) == (broker, broker)
        assert app.backend_cls == results
    harden(app, addresses=dict.fromkeys(own, "cloche+redis://elsewhere"))
    assert {app.conf[key] for key in own} == {"redis://elsewhere"}
    assert (app.conf.broker_read_url, app.backend_cls) == ("cloche+redis://elsewhere",) * 2
    restore(app)
    assert (app.conf.broker_read_url, app.backend_cls) == ("redis://localhost/3", None)
    other = Celery("theirs", broker="amqp://localhost//", backend="rpc://")
    harden(other, settings(broker={"transport": transport}))
    assert (other.conf.broker_url, other.conf.result_backend) == ("amqp://localhost//", "rpc://")
