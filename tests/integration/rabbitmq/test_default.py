"""A project whose application names no broker: Celery's producers send to its own default."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cloche.broker.connection import choice
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
