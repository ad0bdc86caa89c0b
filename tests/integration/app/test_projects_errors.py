"""What is wrong in a project is told once, with the project's own line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloche.errors import AppError
from cloche.launch.environment import load_environment
from cloche.launch.pools import import_own_modules
from cloche.settings import Resolved, load

APP = 'from celery import Celery\napp = Celery("proj", broker="memory://")\n'


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def resolved(app: str = "proj") -> Resolved:
    return load({"app": app}, environ={})


#: Files of a project, the place that is at fault, and words about it.
FAULTS = {
    "a missing variable, read when Celery reads the settings": (
        {
            "conf.py": "import os\nhosts = os.environ.get('NOT_SET').split(' ')\n",
            "proj.py": APP + 'app.config_from_object("conf")\n',
        },
        "conf.py:2: AttributeError: 'NoneType' object has no attribute 'split'",
    ),
    "the same as the module is imported": (
        {"proj.py": "import os\n" + APP + "os.environ.get('NOT_SET').split(' ')\n"},
        "proj.py:4: AttributeError: 'NoneType' object has no attribute 'split'",
    ),
    "a settings module that is not there": (
        {"proj.py": APP + 'app.config_from_object("no_such_settings")\n'},
        "ModuleNotFoundError: No module named 'no_such_settings'",
    ),
    "a library that refuses what it is given": (
        {"proj.py": "import redis\n" + APP + "redis.Redis.from_url('nonsense')\n"},
        "proj.py:4: ValueError: ",
    ),
    "a line that is no Python": ({"proj.py": APP + "def\n"}, "proj.py:3: SyntaxError: "),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_told_with_the_projects_line(project: Path, fault: str) -> None:
    files, words = FAULTS[fault]
    for name, text in files.items():
        (project / name).write_text(text)
    with pytest.raises(AppError) as caught:
        load_environment(resolved())
    assert words in str(caught.value)
    assert "Traceback" not in str(caught.value)
    assert caught.value.exit_code == 5


def test_a_task_module_that_fails_is_the_applications_error(project: Path) -> None:
    (project / "proj.py").write_text(APP + 'app.conf.include = ["jobs"]\n')
    (project / "jobs.py").write_text("import os\nos.environ['NOT_SET']\n")
    with pytest.raises(AppError, match=r"jobs\.py:2: KeyError: 'NOT_SET'"):
        import_own_modules(load_environment(resolved()).app)


@pytest.mark.parametrize("name", ["proj", "proj:work", "proj.celery", "proj:celery"])
def test_an_application_is_found_as_celery_finds_it(project: Path, name: str) -> None:
    (project / "proj").mkdir()
    (project / "proj" / "__init__.py").write_text("from proj.celery import work\ncelery = work\n")
    (project / "proj" / "celery.py").write_text(APP.replace("app =", "work ="))
    assert load_environment(resolved(name)).app.main == "proj"


def test_a_handler_may_still_change_the_configuration(project: Path) -> None:
    (project / "proj.py").write_text(
        "import cloche\n" + APP + "cloche.harden(app)\n"
        "@app.on_after_configure.connect\n"
        "def late(sender, **_):\n    sender.conf.task_default_queue = 'jobs'\n"
        "    sender.add_periodic_task(60.0, sender.signature('proj.tick'), name='tick')\n"
    )
    environment = load_environment(resolved())
    assert environment.settings.tasks.default_queue == "jobs"
    assert "tick" in environment.app.conf.beat_schedule
