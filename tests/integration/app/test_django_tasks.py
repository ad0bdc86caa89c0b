"""Tasks of applications in a Django project, and of classes of one's own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("django")

SETTINGS = """
SECRET_KEY = "x"
INSTALLED_APPS = []
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
"""
CHECK = """
from django.db import transaction
from celery import Celery, shared_task
import cloche

{made}

@shared_task(name="plain")
def plain(): pass

@cloche.async_task(name="coroutine")
async def coroutine(): pass

sent = []
for task in (app.tasks["plain"], app.tasks["coroutine"]):
    task.apply_async = lambda args=None, kwargs=None, **options: sent.append((args, options))
    with transaction.atomic():
        task.delay_on_commit(1)
        task.apply_async_on_commit((2,), countdown=3)
        assert not sent
    assert sent == [((1,), {{}}), ((2,), {{"countdown": 3}})], sent
    sent.clear()
print("adelay" if hasattr(app.tasks["plain"], "adelay") else "plain")
"""


@pytest.mark.parametrize(
    ("made", "told"),
    [
        ('app = cloche.create_app("project")', "adelay"),
        ('app = Celery("project"); cloche.harden(app)', "plain"),
    ],
)
def test_tasks_can_be_sent_when_the_transaction_is_committed(
    tmp_path: Path, made: str, told: str
) -> None:
    (tmp_path / "project_settings.py").write_text(SETTINGS)
    done = run(tmp_path, CHECK.format(made=made), DJANGO_SETTINGS_MODULE="project_settings")
    assert done.stdout.strip() == told, done.stderr[-3000:]


def test_a_task_class_of_a_module_that_imports_the_application(tmp_path: Path) -> None:
    (tmp_path / "made.py").write_text(
        "from celery import Celery\nimport cloche\n"
        'app = Celery("made", task_cls="base:Base")\ncloche.harden(app)\n'
    )
    (tmp_path / "base.py").write_text(
        "from made import app\nfrom celery import Task\nclass Base(Task):\n    mine = app.main\n"
    )
    code = (
        "from made import app\n@app.task(name='x')\ndef x(): pass\n"
        "print(app.tasks['x'].mine, app.tasks['x'].apply_async.__func__.__module__)\n"
    )
    assert run(tmp_path, code).stdout.split() == ["made", "cloche.app.task"]


def run(directory: Path, code: str, **environ: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(directory), *sys.path])
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": path, **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )
