"""The real ``cloche`` command, in processes of its own: exit codes, messages, no leaks."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

import cloche.cli
from cloche.cli.lazy import Lazy
from tests import commands

SECRET = "hunter2hunter2"
Run = Callable[..., subprocess.CompletedProcess[str]]

#: Exercises every kind of error through the real ``main()``.
BROKEN = """
import sys
import click
from cloche import cli, errors
from cloche.cli.lazy import Lazy

@click.command()
def fail():
    raise {expression}

sys.modules["broken"] = type(sys)("broken")
sys.modules["broken"].fail = fail
cli.CommandGroup.commands_by_name["fail"] = Lazy("broken:fail", "")
cli.main()
"""


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a command in an empty directory with nothing set but what is given."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environ = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **variables}
        if arguments[:1] != ("-c",):
            return commands.cloche(*arguments, cwd=tmp_path, env=environ)
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    return run


def test_the_installed_command_and_the_module_are_the_same(run: Run) -> None:
    script = Path(sys.executable).with_name("cloche")
    installed = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60)
    assert installed.returncode == 0
    assert installed.stdout == run("--version").stdout
    assert re.fullmatch(r"cloche \d\S+\n", installed.stdout)


def test_show_tells_the_origin_of_what_was_changed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "cloche.toml").write_text('[broker]\nurl = "redis://h/0"\n')
    done = run("config", "show", "--origin", "--changed", "-A", "proj", CLOCHE_STOP__SOFT="7")
    assert done.returncode == 0
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["app", "proj", "--app"],
        ["broker.url", "redis://h/0", "cloche.toml:2"],
        ["stop.soft", "7.0", "CLOCHE_STOP__SOFT"],
    ]


def test_show_writes_json(run: Run) -> None:
    shown = json.loads(run("config", "show", "--json", "--set", "results.expires=90m").stdout)
    assert shown["results.expires"] == {
        "value": "90m",
        "origin": {"kind": "cli", "where": "--set results.expires"},
    }
    assert shown["families.download.queue"]["value"] == "download_queue"


def test_nothing_changed_is_shown_as_nothing(run: Run) -> None:
    done = run("config", "show", "--changed")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_explain_names_winner_losers_and_celery_keys(run: Run, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("REDIS_URL=redis://weak/0\n")
    done = run("config", "explain", "broker.url", CLOCHE_BROKER__URL="redis://strong/0")
    facts = [re.split(r"\s{2,}", line.strip()) for line in done.stdout.splitlines()]
    assert ["value", "redis://strong/0"] in facts
    assert ["from", "CLOCHE_BROKER__URL"] in facts
    assert ["instead of", "redis://weak/0", "(.env:1 (REDIS_URL))"] in facts
    assert ["Celery", "broker_url = cloche+redis://strong/0", "(where tasks travel)"] in facts


@pytest.mark.parametrize(
    ("key", "celery"),
    [
        ("broker.lease", ["broker_transport_options['lease']"]),
        ("broker.health_check_interval", [
            "broker_transport_options['health_check_interval']",
            "redis_backend_health_check_interval",
        ]),
        ("stop.soft", ["worker_soft_shutdown_timeout"]),
        ("service.port", []),
    ],
)  # fmt: skip
def test_explain_knows_every_celery_key_a_setting_becomes(
    run: Run, key: str, celery: list[str]
) -> None:
    explained = json.loads(run("config", "explain", key, "--json").stdout)
    assert [entry["key"] for entry in explained["celery"]] == celery
    assert explained["restart"]


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("broker.ulr", "unknown setting 'broker.ulr' - did you mean 'broker.url'?"),
        ("stop", "'stop' is a table\n  fix: ask for one of: stop.soft, stop.grace"),
        ("workers.main.pool", "nothing named 'main' is set in workers"),
        ("workers.main", "'workers.main' is a table"),
    ],
)
def test_explain_refuses_what_is_no_setting(run: Run, key: str, message: str) -> None:
    done = run("config", "explain", key)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {message}")


def test_validate_tells_every_problem_and_exits_2(run: Run, tmp_path: Path) -> None:
    (tmp_path / "cloche.toml").write_text("[broker]\nulr = 1\n")
    done = run("config", "validate", CLOCHE_SERVICE__PORT="x")
    assert done.returncode == 2
    assert "cloche.toml:2: unknown setting 'broker.ulr'" in done.stderr
    assert "CLOCHE_SERVICE__PORT: service.port = 'x'" in done.stderr
    assert "Traceback" not in done.stderr
    as_json = run("config", "validate", "--json", CLOCHE_SERVICE__PORT="x")
    assert as_json.returncode == 2
    assert len(json.loads(as_json.stdout)["problems"]) == 2


def test_validate_exits_0_when_all_is_well(run: Run) -> None:
    done = run("config", "validate", REDIS_URL="redis://h")
    assert (done.returncode, done.stdout) == (0, "settings are valid, 1 set\n")


def test_init_never_overwrites_unless_forced(run: Run, tmp_path: Path) -> None:
    assert run("config", "init").returncode == 0
    written = (tmp_path / "cloche.toml").read_text()
    (tmp_path / "cloche.toml").write_text("# mine\n")
    refused = run("config", "init")
    assert refused.returncode == 2
    assert "exists already" in refused.stderr
    assert (tmp_path / "cloche.toml").read_text() == "# mine\n"
    assert run("config", "init", "--force").returncode == 0
    assert (tmp_path / "cloche.toml").read_text() == written


COMMANDS = (
    ("config", "show"),
    ("config", "show", "--origin", "--changed"),
    ("config", "show", "--json"),
    ("config", "explain", "broker.url"),
    ("config", "explain", "broker.url", "--json"),
    ("config", "explain", "results.url"),
    ("config", "explain", "database.url"),
    ("config", "explain", "service.token"),
    ("config", "explain", "service.token", "--json"),
    ("config", "validate"),
    ("config", "validate", "--json"),
    ("config", "init", "--force"),
    ("config", "reference"),
    ("--debug", "config", "show"),
)


@pytest.mark.parametrize("well", [True, False], ids=["valid", "malformed"])
@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_ever_shows_a_secret(
    run: Run, tmp_path: Path, command: tuple[str, ...], well: bool
) -> None:
    (tmp_path / ".env").write_text(f"DATABASE_URL=postgres://u:{SECRET}@h/d\n")
    (tmp_path / "cloche.toml").write_text(
        f'[broker]\nurl = "redis://u:{SECRET}@low/0"\n[dashboard]\ntoken = "{SECRET}"\n'
    )
    environ = {
        "REDIS_URL": f"redis://:{SECRET}@h/0?password={SECRET}",
        "CELERY_RESULT_BACKEND": f"db+postgresql://u:{SECRET}@h/d",
        "CLOCHE_SERVICE__TOKEN": SECRET,
    }
    if not well:
        environ |= {"CLOCHE_BROKER__URL": SECRET, "CLOCHE_STOP__SOFT": f"redis://:{SECRET}@h"}
    done = run(*command, **environ)
    needs_settings = command[1] not in ("init", "reference")
    assert done.returncode == (2 if needs_settings and not well else 0)
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("expression", "code"),
    [
        ("errors.ClocheError('x')", 1),
        ("errors.SettingsError('x')", 2),
        ("errors.BrokerError('x', fault=errors.BrokerFault.REFUSED)", 3),
        ("errors.PortTakenError('x', port=1, free=2)", 4),
        ("errors.AppError('x')", 5),
        ("errors.DatabaseError('x')", 6),
        ("KeyboardInterrupt", 130),
        ("click.UsageError('x')", 2),
    ],
)
def test_every_error_ends_the_process_with_its_code(run: Run, expression: str, code: int) -> None:
    done = run("-c", BROKEN.format(expression=expression), "fail")
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def test_on_a_terminal_the_label_of_an_error_is_red(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0) as terminal:
        process = subprocess.Popen(
            [sys.executable, "-m", "cloche", "config", "explain", "nonsense"],
            cwd=tmp_path, stdin=theirs, stdout=theirs, stderr=theirs,
        )  # fmt: skip
        os.close(theirs)
        assert terminal.read(100).startswith(b"\x1b[31m\x1b[1merror:\x1b[0m unknown setting")
        assert process.wait(60) == 2


@pytest.mark.parametrize(("before", "variables"), [(["--debug"], {}), ([], {"CLOCHE_DEBUG": "1"})])
def test_the_traceback_is_shown_when_asked_for(
    run: Run, before: list[str], variables: dict[str, str]
) -> None:
    expression = "errors.BrokerError('no', why='w', fix='f', fault=errors.BrokerFault.DNS)"
    done = run("-c", BROKEN.format(expression=expression), *before, "fail", **variables)
    assert done.returncode == 3
    assert "Traceback" in done.stderr
    assert done.stderr.endswith("error: no\n  why: w\n  fix: f\n")


def test_a_reader_that_goes_away_ends_the_command_quietly(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "cloche", "config", "reference"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as errors:
        assert errors.read() == b""
    assert process.wait(60) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["confg"], "there is no command 'confg' - did you mean 'config'?"),
        (["config", "shw"], "did you mean 'show'?"),
        (["config", "show", "--changd"], "did you mean --changed?"),
        (["config", "show", "--set", "hunter2"], "--set takes KEY=VALUE"),
    ],
)
def test_a_slip_of_the_pen_is_answered_with_what_was_meant(
    run: Run, arguments: list[str], message: str
) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    assert message.lower().replace("'", "") in done.stderr.lower().replace("'", "")
    assert "hunter2" not in done.stderr


def test_help_imports_no_command(run: Run) -> None:
    code = "import sys; from cloche.cli import main\ntry: main(['--help'])\nfinally: "
    code += "print(sorted({'pydantic', 'celery', 'sqlalchemy', 'fastapi'} & set(sys.modules)))"
    assert run("-c", code).stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", list(cloche.cli.CommandGroup.commands_by_name))
def test_the_list_of_commands_says_what_each_says_itself(name: str) -> None:
    lazy: Lazy = cloche.cli.CommandGroup.commands_by_name[name]
    assert lazy.load().get_short_help_str(limit=200) == lazy.summary


def _examples(command: click.Command) -> list[str]:
    """The examples in the help of a command and of those below it."""
    found = re.findall(r"^\s*\$ (.+)$", command.help or "", re.M)
    assert found, f"{command.name} has no examples"
    below = command.commands.values() if isinstance(command, click.Group) else ()
    return found + [example for each in below for example in _examples(each)]


CONFIG = cloche.cli.CommandGroup.commands_by_name["config"].load()


@pytest.mark.parametrize("example", _examples(CONFIG))
def test_every_example_in_the_help_runs(run: Run, example: str) -> None:
    program, *arguments = example.split()
    assert program == "cloche"
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
