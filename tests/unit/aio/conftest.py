"""An application whose tasks run where they are called."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import Celery, _state


@pytest.fixture(autouse=True)
def _no_shared_task_is_left_behind() -> Iterator[None]:
    """Celery gives shared tasks to every application of the process, later ones too."""
    before = set(_state._on_app_finalizers)
    yield
    _state._on_app_finalizers.intersection_update(before)


@pytest.fixture
def app() -> Iterator[Celery]:
    """In memory, eager."""
    own = Celery("unit", broker="memory://", backend="cache+memory://", set_as_current=False)
    own.conf.task_always_eager = True
    yield own
    own.close()
