"""A project whose application names no broker: Celery's producers send to its own default."""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from celery import Celery
from celery.schedules import crontab

from cloche.broker.connection import choice
from cloche.cluster.schedules import schedules_seen
from cloche.launch.environment import load_environment
from cloche.settings import load
from cloche.testing import RabbitProcess, free_port

BARE = "from celery import Celery\n\napp = Celery('bare')\n"
OWN = "import cloche\n\napp = cloche.create_app('bare')\n"


def broker_of(directory: Path, app: str, monkeypatch: pytest.MonkeyPatch, **environ: str) -> object:
    (directory / "bare.py").write_text(app)
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "bare", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    url = load_environment(load({"app": "bare"})).settings.broker.url
    for name in environ:
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "bare", raising=False)
    return url and url.get_secret_value()


def test_celerys_default_is_the_broker_where_one_answers(
    rabbit: RabbitProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "CELERYS_DEFAULT", rabbit.url)
    assert broker_of(tmp_path, BARE, monkeypatch) == rabbit.url
    chosen = "redis://elsewhere/0"
    assert broker_of(tmp_path, BARE, monkeypatch, REDIS_URL=chosen) == chosen
    assert broker_of(tmp_path, OWN, monkeypatch) is None, "Cloche's own application has no default"
    for embedded in ("always", "never"):
        found = broker_of(tmp_path, BARE, monkeypatch, CLOCHE_BROKER__EMBEDDED=embedded)
        assert found is None, embedded

    nowhere = f"amqp://guest:guest@127.0.0.1:{free_port()}//"
    monkeypatch.setattr(choice, "CELERYS_DEFAULT", nowhere)
    assert broker_of(tmp_path, BARE, monkeypatch) is None
    stranger = rabbit.url.replace("guest:guest", "guest:wrong")
    monkeypatch.setattr(choice, "CELERYS_DEFAULT", stranger)
    assert broker_of(tmp_path, BARE, monkeypatch) is None, "it lets nobody in"


def test_the_clock_tells_when_a_schedule_is_due_whose_runs_nobody_remembers(app: Celery) -> None:
    app.conf.beat_schedule = {
        "hourly": {"task": "a", "schedule": crontab(minute="5")},
        "often": {"task": "b", "schedule": 60},
    }
    hourly, often = schedules_seen(app, load({}, environ={}).settings).schedules
    assert hourly.next is not None
    assert (hourly.next.minute, hourly.next.second) == (5, 0)
    assert timedelta(0) < hourly.next - datetime.now(UTC) <= timedelta(hours=1)
    assert (hourly.last, hourly.missed, hourly.known) == (None, 0, False)
    assert often.next is None, "a minute after a run that is not known"
