"""Whatever is wrong is refused where it is written, all at once, with its origin."""

from __future__ import annotations

from pathlib import Path

import pytest
from celery import Celery

from cloche import create_app, harden
from cloche.errors import SettingsError
from cloche.settings import load


def _problems(
    directory: Path,
    cli: dict[str, object] | None = None,
    environ: dict[str, str] | None = None,
    **files: str,
) -> tuple[str, ...]:
    for name, text in files.items():
        (directory / {"env": ".env"}.get(name, f"{name}.toml")).write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(cli, environ=environ or {}, directory=directory, guest=False)
    assert caught.value.exit_code == 2
    return caught.value.problems


def test_an_unknown_setting_is_refused_in_every_source(tmp_path: Path) -> None:
    problems = _problems(
        tmp_path,
        cli={"stop.grase": "1"},
        environ={"CLOCHE_BROKER_URL": "redis://h"},
        env="CLOCHE_BEAT__ENABLE=1\n",
        cloche='app = "a"\n\n[broker]\nulr = "x"\n',
        pyproject="[tool.cloche.download]\n\nmax_sise = 1\n",
    )
    assert problems == (
        "--set stop.grase: unknown setting 'stop.grase' - did you mean 'stop.grace'?",
        "CLOCHE_BROKER_URL: unknown setting 'broker_url' - did you mean 'broker.url' "
        "(CLOCHE_BROKER__URL)?",
        ".env:1 (CLOCHE_BEAT__ENABLE): unknown setting 'beat.enable' - did you mean "
        "'beat.enabled' (CLOCHE_BEAT__ENABLED)?",
        "cloche.toml:4: unknown setting 'broker.ulr' - did you mean 'broker.url'?",
        "pyproject.toml:3: unknown setting 'download.max_sise' - did you mean 'download.max_size'?",
    )


def test_nothing_is_suggested_where_nothing_is_near(tmp_path: Path) -> None:
    assert _problems(tmp_path, cloche="zzzzz = 1\n") == ("cloche.toml:1: unknown setting 'zzzzz'",)


def test_an_unknown_table_is_told_once(tmp_path: Path) -> None:
    assert _problems(tmp_path, cloche="[brokr]\nurl = 1\nport = 2\n") == (
        "cloche.toml:1: unknown setting 'brokr' - did you mean 'broker'?",
    )


def test_an_unknown_part_of_a_route_is_found_on_its_line(tmp_path: Path) -> None:
    text = '[[routes]]\npattern = "a"\nqueue = "b"\n[[routes]]\nqueue = "c"\npatern = "d"\n'
    problems = _problems(tmp_path, cloche=text)
    assert "cloche.toml:6: unknown setting 'routes.1.patern' - did you mean 'pattern'?" in problems


def test_all_problems_of_all_kinds_are_told_at_once(tmp_path: Path) -> None:
    problems = _problems(
        tmp_path,
        cli={"timezone": "Mars/Olympus"},
        environ={
            "CLOCHE_SERVICE__PORT": "99999",
            "CLOCHE_ROUTES": "not json",
            "REDIS_URL": "http://h",
        },
        env="not an assignment\n",
        cloche='nonsense = 1\n[download]\nallow_networks = ["10.0.0.0/8",\n  "10.0.0.1/8"]\n'
        'max_size = "big"\n[stop]\ngrace = 1\n',
    )
    expected = [
        "CLOCHE_ROUTES: routes must be a JSON list",
        ".env:1: not NAME=value",
        "cloche.toml:1: unknown setting 'nonsense'",
        "--set timezone: timezone = 'Mars/Olympus': this is not a time zone",
        "CLOCHE_SERVICE__PORT: service.port = '99999': it must be less than or equal to 65535; "
        "wanted: port, at least 1, at most 65535",
        "REDIS_URL: broker.url = 'http://h': there is no broker for http://",
        "cloche.toml:5: download.max_size = 'big': this is not a size",
        "cloche.toml:4: download.allow_networks.1 = '10.0.0.1/8': this is not a network",
        "cloche.toml:7: stop: stop.grace (1 s) must not be below stop.soft (30 s)",
    ]
    for start in expected:
        assert any(problem.startswith(start) for problem in problems), (start, problems)
    assert len(problems) == len(expected)


@pytest.mark.parametrize(
    ("text", "line"), [("a = 1\nb = = 2\n", 2), ("a = 1\n\n[broker\n", 3), ('a = """\n\n', 3)]
)
def test_a_syntax_error_names_file_and_line(tmp_path: Path, text: str, line: int) -> None:
    (problem,) = _problems(tmp_path, cloche=text)
    assert problem.startswith(f"cloche.toml:{line}: not valid TOML")


def test_a_pyproject_that_does_not_mention_us_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("this is = = not TOML")
    assert load(environ={}, directory=tmp_path).changed() == ()


@pytest.mark.parametrize(
    ("environ", "start"),
    [
        ({"CLOCHE_TASKS__TIME_LIMIT": "inf"}, "CLOCHE_TASKS__TIME_LIMIT: tasks.time_limit"),
        ({"CLOCHE_DOWNLOAD__MAX_SIZE": "inf"}, "CLOCHE_DOWNLOAD__MAX_SIZE: download.max_size"),
        ({"CLOCHE_BROKER": "redis://h"}, "CLOCHE_BROKER: broker must be a JSON object"),
        ({"CLOCHE_BROKER": "[]"}, "CLOCHE_BROKER: broker must be a JSON object"),
        ({"CLOCHE_APP__X": "1"}, "CLOCHE_APP__X: unknown setting 'app.x'"),
        ({"CLOCHE_WORKERS__MAIN__POOL": "asyncioo"}, "CLOCHE_WORKERS__MAIN__POOL: workers.main"),
        ({"CLOCHE_WORKERS": '{"a b": {"prefetch": 1}}'}, "CLOCHE_WORKERS: workers.a b"),
        ({"CELERY_BROKER_URL": "amqp://h;nope://h2"}, "CELERY_BROKER_URL: broker.url"),
        ({"DATABASE_URL": "h/d"}, "DATABASE_URL: database.url = '****': a database URL starts"),
        ({"CLOCHE_SERVICE__PORT": "8001"}, "CLOCHE_SERVICE__PORT: settings: service.port and"),
        (
            {"CLOCHE_FAMILIES__DOWNLOAD__TIME_LIMIT": "60"},
            "CLOCHE_FAMILIES__DOWNLOAD__TIME_LIMIT: families.download: soft_time_limit (600 s)",
        ),
        (
            {"CLOCHE_TASKS__TIME_LIMIT": "60", "CLOCHE_FAMILIES__X__SOFT_TIME_LIMIT": "90"},
            "CLOCHE_FAMILIES__X__SOFT_TIME_LIMIT, CLOCHE_TASKS__TIME_LIMIT: settings: family x",
        ),
    ],
)
def test_a_malformed_value_names_origin_and_key(
    tmp_path: Path, environ: dict[str, str], start: str
) -> None:
    (problem,) = _problems(tmp_path, environ=environ)
    assert problem.startswith(start)


def test_a_value_where_a_table_belongs_is_refused(tmp_path: Path) -> None:
    assert _problems(tmp_path, cloche="app = 'x'\nbroker = 3\n") == (
        "cloche.toml:2: broker is a table of settings, not a value",
    )


def test_a_tool_table_that_is_none_is_refused(tmp_path: Path) -> None:
    assert _problems(tmp_path, pyproject="[tool]\ncloche = 1\n") == (
        "pyproject.toml:2: tool.cloche is a table of settings: write [tool.cloche]",
    )


def test_a_key_in_quotes_is_told_from_a_dotted_one(tmp_path: Path) -> None:
    assert _problems(tmp_path, cloche='"stop.grace" = 60\n') == (
        "cloche.toml:1: unknown setting 'stop.grace' - write the key without quotes",
    )


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cloche.toml").write_bytes(b"\xff\xfe")
    (problem,) = _problems(tmp_path)
    assert problem.startswith("cloche.toml: the file cannot be read")


@pytest.mark.parametrize("guest", [True, False])
def test_what_cannot_be_read_of_a_projects_files_stops_cloches_own_application_alone(
    tmp_path: Path, guest: bool
) -> None:
    """The rest of the file counts."""
    (tmp_path / ".env").write_text("A=1\n\nnot an assignment\nCLOCHE_STOP__GRACE=77\n")
    (tmp_path / "pyproject.toml").write_bytes("[tool.other]\nname = 'Jürgen'\n".encode("latin-1"))
    said = (".env:3: not NAME=value", "pyproject.toml: the file cannot be read: 'utf-8' codec")
    if guest:
        # So it is where no application is named: another one may run here.
        resolved = load(environ={}, directory=tmp_path)
        assert resolved.settings.stop.grace == 77
        found = resolved.warnings
    else:
        found = _problems(tmp_path)
    assert [one[: len(words)] for one, words in zip(found, said, strict=True)] == list(said)


def test_a_dotenv_file_that_may_not_be_read_is_left_out_by_a_guest(tmp_path: Path) -> None:
    (tmp_path / ".env").symlink_to(tmp_path / ".env")  # root may read all, but not this
    [warning] = load(environ={}, directory=tmp_path, guest=True).warnings
    assert warning.startswith(".env: the file cannot be read: [Errno 40]")
    assert ".env: the file cannot be read" in _problems(tmp_path)[0]


def test_a_hardened_project_is_warned_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / ".env").write_text("oh no\n")
    monkeypatch.chdir(tmp_path)
    harden(Celery("proj"))
    assert [one.message for one in caplog.records] == [".env:1: not NAME=value"]
    with pytest.raises(SettingsError, match=r"\.env:1: not NAME=value"):
        create_app("ours")
