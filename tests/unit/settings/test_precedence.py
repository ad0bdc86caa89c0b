"""Which source wins, per key, and what is remembered of those that lose."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cloche.settings import Origin, OriginCandidate, Resolved, load, to_environ


@dataclass
class Sources:
    """What each source says; a directory for the files."""

    directory: Path
    cli: dict[str, object] = field(default_factory=dict)
    environ: dict[str, str] = field(default_factory=dict)
    app_conf: dict[str, object] = field(default_factory=dict)

    def write(self, name: str, text: str) -> None:
        (self.directory / name).write_text(text)

    def load(self) -> Resolved:
        return load(
            self.cli, environ=self.environ, directory=self.directory, app_conf=self.app_conf
        )


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return Sources(tmp_path)


def _url(host: str) -> str:
    return f"redis://{host}/0"


def _say_everything(sources: Sources) -> None:
    sources.cli["broker.url"] = _url("cli")
    sources.environ["CLOCHE_BROKER__URL"] = _url("env")
    sources.environ["REDIS_URL"] = _url("redis-url")
    sources.write(
        ".env", f"\nCLOCHE_BROKER__URL={_url('dotenv')}\nREDIS_URL={_url('dotenv-redis')}\n"
    )
    sources.write("cloche.toml", f'[broker]\nurl = "{_url("toml")}"\n')
    sources.write("pyproject.toml", f'[tool.cloche]\nbroker.url = "{_url("pyproject")}"\n')
    sources.app_conf["broker_url"] = _url("app")


#: Strongest first: kind, where, host of the URL it gives.
RANKS = [
    ("cli", "--set broker.url", "cli"),
    ("env", "CLOCHE_BROKER__URL", "env"),
    ("dotenv", ".env:2 (CLOCHE_BROKER__URL)", "dotenv"),
    ("file", "cloche.toml:2", "toml"),
    ("file", "pyproject.toml:2", "pyproject"),
    ("app", "app.conf.broker_url", "app"),
    ("well-known", "REDIS_URL", "redis-url"),
    ("well-known", ".env:3 (REDIS_URL)", "dotenv-redis"),
]


def _value(candidate: OriginCandidate) -> str:
    return candidate.value.get_secret_value()  # type: ignore[attr-defined, no-any-return]


def test_all_candidates_are_kept_the_strongest_first(sources: Sources) -> None:
    _say_everything(sources)
    offered = sources.load().candidates["broker.url"]
    assert [(c.origin.kind, c.origin.where, _value(c)) for c in offered] == [
        (kind, where, _url(host)) for kind, where, host in RANKS
    ]


@pytest.mark.parametrize("first", range(len(RANKS)))
def test_without_the_stronger_sources_the_next_one_wins(sources: Sources, first: int) -> None:
    _say_everything(sources)
    silenced = {where for _, where, _ in RANKS[:first]}
    if "--set broker.url" in silenced:
        sources.cli.clear()
    if "app.conf.broker_url" in silenced:
        sources.app_conf.clear()
    for name in list(sources.environ):
        if name in silenced:
            del sources.environ[name]
    lines = [f"CLOCHE_BROKER__URL={_url('dotenv')}", f"REDIS_URL={_url('dotenv-redis')}"]
    kept = [
        "" if any(w.startswith(f".env:{n}") for w in silenced) else line
        for n, line in enumerate(lines, 2)
    ]
    sources.write(".env", "\n" + "\n".join(kept))
    for file in ("cloche.toml", "pyproject.toml"):
        if any(where.startswith(file) for where in silenced):
            (sources.directory / file).unlink()
    resolved = sources.load()
    kind, where, host = RANKS[first]
    assert resolved.settings.broker.url is not None
    assert resolved.settings.broker.url.get_secret_value() == _url(host)
    assert resolved.origin("broker.url") == Origin(kind, where)  # type: ignore[arg-type]


def test_what_celery_reads_before_the_application_is_its_word(sources: Sources) -> None:
    sources.environ["CELERY_BROKER_URL"] = _url("variable")
    sources.app_conf["broker_url"] = _url("app")
    resolved = sources.load()
    places = [c.origin.where for c in resolved.candidates["broker.url"]]
    assert places[:2] == ["CELERY_BROKER_URL, as Celery reads it", "app.conf.broker_url"]
    sources.app_conf["broker_read_url"] = _url("read")
    assert str(sources.load().origin("broker.url")) == "app.conf.broker_read_url"
    sources.environ["CELERY_BROKER_READ_URL"] = _url("elsewhere")
    assert sources.load().origin("broker.url").where.startswith("CELERY_BROKER_READ_URL")


def test_a_dotenv_file_is_not_read_by_celery(sources: Sources) -> None:
    sources.write(".env", f"CELERY_BROKER_URL={_url('dotenv')}\n")
    sources.app_conf["broker_url"] = _url("app")
    assert str(sources.load().origin("broker.url")) == "app.conf.broker_url"


def test_the_database_of_a_project_is_its_own(sources: Sources) -> None:
    sources.environ = {"DATABASE_URL": "mysql://u:p@h/d", "CLOCHE_APP": "proj"}
    assert sources.load().settings.database.url is None
    assert load(environ=sources.environ, directory=sources.directory, guest=False).changed() == (
        "app",
        "database.url",
    )
    sources.environ["CLOCHE_DATABASE__URL"] = "sqlite:///x.db"
    assert str(sources.load().origin("database.url")) == "CLOCHE_DATABASE__URL"


def test_in_a_project_nothing_is_on_that_nobody_asked_for(sources: Sources) -> None:
    sources.cli["app"] = "proj"
    guest = sources.load()
    assert (guest.settings.service.enabled, guest.settings.dashboard.enabled) == (False, False)
    assert guest.settings.families == {}
    assert guest.changed() == ("app",)
    sources.write("cloche.toml", "[service]\nenabled = true\n[families.logs]\nqueue = 'log'\n")
    asked = sources.load().settings
    assert (asked.service.enabled, asked.dashboard.enabled) == (True, False)
    assert sorted(asked.families) == ["download", "logs", "maintenance"], "what these need, too"
    assert asked.families["logs"].queue == "log"


def test_a_projects_variable_that_is_no_broker_is_passed_over(sources: Sources) -> None:
    sources.environ = {"REDIS_URL": "unix:///run/cache.sock", "CLOCHE_APP": "proj"}
    assert sources.load().settings.broker.url is None


def test_what_nobody_set_is_the_default(sources: Sources) -> None:
    resolved = sources.load()
    assert resolved.origin("broker.url") == Origin("default", "default")
    assert resolved.changed() == ()
    assert resolved.settings.broker.url is None


def test_sources_are_merged_key_by_key_not_table_by_table(sources: Sources) -> None:
    sources.write("cloche.toml", "[stop]\nsoft = 10\ngrace = 20\n")
    sources.environ["CLOCHE_STOP__GRACE"] = "25"
    stop = sources.load().settings.stop
    assert (stop.soft, stop.grace) == (10, 25)


@pytest.mark.parametrize(
    ("stronger", "weaker", "key"),
    [
        ("CELERY_BROKER_URL", "REDIS_URL", "broker.url"),
        ("CELERY_RESULT_BACKEND", "CELERY_BACKEND", "results.url"),
    ],
)
def test_the_more_specific_well_known_variable_wins(
    sources: Sources, stronger: str, weaker: str, key: str
) -> None:
    sources.environ = {weaker: _url("weaker"), stronger: _url("stronger")}
    resolved = sources.load()
    assert [c.origin.where for c in resolved.candidates[key]] == [stronger, weaker]


def test_redis_url_is_no_result_backend_of_its_own(sources: Sources) -> None:
    sources.environ["REDIS_URL"] = _url("h")
    assert sources.load().settings.results.url is None


@pytest.mark.parametrize("name", ["CLOCHE_BROKER__URL", "REDIS_URL", "CLOCHE_APP"])
def test_an_empty_variable_counts_as_unset(sources: Sources, name: str) -> None:
    sources.environ[name] = "  "
    assert sources.load().changed() == ()


def test_the_variables_of_the_package_itself_are_no_settings(sources: Sources) -> None:
    sources.environ = {"CLOCHE_INSTANCE": "i", "CLOCHE_PROCESS": "p", "CLOCHE_DEBUG": "1"}
    assert sources.load().changed() == ()


def test_names_of_families_and_workers_work_in_variables(sources: Sources) -> None:
    sources.environ = {
        "CLOCHE_FAMILIES__DOWNLOAD__TIME_LIMIT": "20m",
        "CLOCHE_WORKERS__MAIN__QUEUES": "a, b",
        "CLOCHE_WORKERS__IO__QUEUES": '["c"]',
        "CLOCHE_ROUTES": '[{"pattern": "x.*", "queue": "c"}]',
    }
    resolved = sources.load()
    settings = resolved.settings
    assert settings.families["download"].time_limit == 1200
    assert settings.families["download"].queue == "download_queue", "the default is refined"
    assert settings.workers["main"].queues == ("a", "b")
    assert settings.workers["io"].queues == ("c",)
    assert settings.routes[0].queue == "c"
    assert str(resolved.origin("families.download.time_limit")) == (
        "CLOCHE_FAMILIES__DOWNLOAD__TIME_LIMIT"
    )
    assert resolved.origin("families.download.queue").kind == "default"


def test_the_deeper_variable_wins_over_the_table_as_json(sources: Sources) -> None:
    sources.environ = {
        "CLOCHE_STOP": '{"soft": 1, "grace": 2}',
        "CLOCHE_STOP__GRACE": "3",
    }
    resolved = sources.load()
    assert (resolved.settings.stop.soft, resolved.settings.stop.grace) == (1, 3)
    assert str(resolved.origin("stop.soft")) == "CLOCHE_STOP"


def test_an_empty_table_brings_a_worker_into_being(sources: Sources) -> None:
    sources.write("cloche.toml", "[workers.main]\n")
    assert list(sources.load().settings.workers) == ["main"]


def test_null_takes_a_value_away(sources: Sources) -> None:
    sources.write("cloche.toml", '[workers.main]\nmax_tasks_per_child = "null"\n')
    sources.environ["REDIS_URL"] = _url("h")
    sources.cli["broker.url"] = "null"
    settings = sources.load().settings
    assert settings.workers["main"].max_tasks_per_child is None
    assert settings.broker.url is None


def test_an_option_can_bring_its_own_origin(sources: Sources) -> None:
    sources.cli["app"] = OriginCandidate("proj:app", Origin("cli", "--app"))
    resolved = sources.load()
    assert str(resolved.origin("app")) == "--app"
    assert resolved.overrides() == {"app": OriginCandidate("proj:app", Origin("cli", "--app"))}
    child = load(environ=to_environ(resolved.overrides()), directory=sources.directory)
    assert str(child.origin("app")) == "--app", "a child tells where it really came from"


def test_a_directory_called_dotenv_is_the_projects(sources: Sources) -> None:
    (sources.directory / ".env").mkdir()
    sources.write(".env/production", "REDIS_URL=redis://inner/0\n")
    assert sources.load().settings.broker.url is None


def test_a_dotenv_value_may_use_other_variables(sources: Sources) -> None:
    sources.write(".env", 'HOST=inner\nREDIS_URL="redis://${HOST}:${PORT:-1}/0"\n')
    sources.environ["HOST"] = "outer"
    url = sources.load().settings.broker.url
    assert url is not None
    assert url.get_secret_value() == "redis://outer:1/0"


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgres://u:p@h/d", "postgresql+psycopg://u:p@h/d"),
        ("postgresql://u:p@h/d", "postgresql+psycopg://u:p@h/d"),
        ("postgresql+asyncpg://h/d?ssl=require", "postgresql+psycopg://h/d?sslmode=require"),
        ("sqlite+aiosqlite:///x.db", "sqlite:///x.db"),
    ],
)
def test_any_spelling_of_a_database_becomes_the_driver_we_ship(
    sources: Sources, given: str, used: str
) -> None:
    sources.environ["DATABASE_URL"] = given
    url = sources.load().settings.database.url
    assert url is not None
    assert url.get_secret_value() == used
