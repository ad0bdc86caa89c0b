"""``cloche logs`` on a database with records in it."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloche.database import Database
from cloche.testing import clean_environ
from tests import commands
from tests.integration.logs_read.rows import made, put

Run = Callable[..., str]


@pytest.fixture
def environ(database: Database, tmp_path: Path) -> dict[str, str]:
    url = database.url.render_as_string(hide_password=False)
    put(
        database,
        [
            made("run started", after=-90, run_id="r1", details={"status": "running"}),
            made("asked", after=-80, run_id="r1", step="ask", agent="writer", duration_ms=9000.0,
                 category="llm"),
            made("no answer after 30 s", "error", after=-70, run_id="r1", step="ask",
                 category="llm", duration_ms=30.5,
                 details={"traceback": "Traceback (most recent call last):\n  KeyError"}),
            made("no answer after 31 s", "error", after=-60, run_id="r1", step="ask",
                 category="llm"),
            made("another run", after=-50, run_id="r2"),
        ],
    )  # fmt: skip
    return clean_environ(CLOCHE_DATABASE__URL=url, CLOCHE_RUN_DIR=str(tmp_path), NO_COLOR="1")


@pytest.fixture
def run(environ: dict[str, str], tmp_path: Path) -> Run:
    def start(*words: str, code: int = 0) -> str:
        done = commands.cloche("logs", *words, cwd=tmp_path, env=environ)
        assert done.returncode == code, done.stderr + done.stdout
        assert "Traceback (most recent call last):\n  File" not in done.stderr
        return done.stdout if code == 0 else done.stderr

    return start


def _json(text: str) -> Any:
    return json.loads(text)


def test_every_question_is_answered_in_words_and_in_json(run: Run) -> None:
    lines = run("query", "--run", "r1").splitlines()
    assert next(line for line in lines if "no answer" in line).split()[2] == "ERROR"
    assert lines[0].endswith("test: run started run=r1")
    assert "llm ask: asked (writer) 9.00 s" in lines[1]
    assert "    Traceback (most recent call last):" in lines
    found = _json(run("query", "--text", "answer", "--limit", "1", "--json"))
    assert [one["message"] for one in found["records"]] == ["no answer after 31 s"]
    older = run("query", "--text", "answer", "--before", found["older"])
    assert "after 30 s" in older
    assert "after 31 s" not in older

    told = run("trace", "r1")
    assert re.search(r"run r1: running, 30 s, 4 records \(2 info, 2 error\)", told)
    assert re.search(r"^ask +·+━+ +9\.03 s +3 +failed", told, re.M)
    assert _json(run("trace", "r1", "--json"))["steps"][0]["path"] == "ask"

    told = run("summary", "--run", "r1")
    assert "4 records" in told
    assert re.search(r"^ask +2 +1 +30\.5 ms +9\.00 s +9\.00 s +9\.03 s", told, re.M)
    assert _json(run("summary", "--json"))["total"] == 5

    told = run("errors")
    assert re.search(r"^ +2 .* llm ask +no answer after 31 s", told, re.M)
    assert _json(run("errors", "--json"))["groups"][0]["count"] == 2


def test_an_export_goes_to_a_file_or_the_output(run: Run, tmp_path: Path) -> None:
    run("export", "--run", "r1", "-o", str(tmp_path / "out.jsonl"))
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert next(json.loads(line)["message"] for line in lines) == "run started"
    rows = list(csv.DictReader(io.StringIO(run("export", "--format", "csv", "--level", "error"))))
    assert [row["category"] for row in rows] == ["llm", "llm"]


def test_old_records_leave(run: Run, database: Database) -> None:
    assert "0 records" in run("expire", "--dry-run")
    assert _json(run("expire", "--keep", "1d", "--json"))["rows"] == 0


def test_wrong_use_is_told(run: Run) -> None:
    assert "an age as 15m" in run("query", "--since", "soon", code=2)
    assert "nothing is logged of run r9" in run("trace", "r9", code=1)
    assert "invalid" in run("query", "--level", "loud", code=2).lower()
    assert "--keep" in run("expire", "--keep", "long", code=2)
    assert run("query", "--run", "nobody") == ""


def test_tail_shows_what_is_there_and_what_arrives(
    environ: dict[str, str], database: Database, tmp_path: Path
) -> None:
    following = subprocess.Popen(
        [sys.executable, "-m", "cloche", "logs", "tail", "-n", "1", "--json"],
        cwd=tmp_path,
        env={**environ, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert following.stdout is not None
        assert json.loads(following.stdout.readline())["message"] == "another run"
        put(database, [made("arrives", after=0.5)])
        assert json.loads(following.stdout.readline())["message"] == "arrives"
        following.send_signal(2)
        assert following.wait(10) == 130
    finally:
        following.kill()
        following.communicate()
