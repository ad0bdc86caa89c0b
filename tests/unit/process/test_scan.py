"""Which command lines start a worker."""

from __future__ import annotations

import shlex

import pytest

from cloche.process.scan import looks_like_worker

WORKERS = [
    "celery -A proj worker",
    "/srv/venv/bin/celery --app proj.celery:app worker -l INFO -Q a,b",
    "/usr/bin/python3.11 /srv/venv/bin/celery -A proj worker --beat",
    "python -m celery -A proj -b redis://x worker -n w1@%h",
    "python -X dev -W error -m celery --app=proj worker",
    "/usr/bin/python3 -u /srv/lib/celery/__main__.py -A proj worker",
    "python -m cloche worker --name mail --like mail --supervised",
    "/srv/venv/bin/python /srv/venv/bin/cloche worker -Q mail",
    "python manage.py celery worker",
    "'[celeryd: celery@box:MainProcess] -active- (worker -A proj)'",
]
OTHERS = [
    "",
    "celery -A worker beat",
    "celery -A proj inspect active",
    "celery -A proj multi start worker",
    "celery --workdir worker flower",
    "python -m cloche up",
    "python -m cloche start worker",
    "python -c worker",
    "python",
    "gunicorn worker:app",
    "vim celery worker",
    "'[celeryd: celery@box:ForkPoolWorker-2]'",
    "'[celeryd: celery@box:Beat]'",
]


@pytest.mark.parametrize("line", WORKERS)
def test_a_workers_command_line_is_recognised(line: str) -> None:
    assert looks_like_worker(shlex.split(line))


@pytest.mark.parametrize("line", OTHERS)
def test_others_are_not(line: str) -> None:
    assert not looks_like_worker(shlex.split(line))
