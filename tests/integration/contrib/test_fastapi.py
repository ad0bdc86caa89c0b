"""Execution logs in a FastAPI application: the example, run as a person would run it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from cloche.testing import PostgresProcess
from tests.acceptance.stack import Stack, free_port, wait_for

EXAMPLE = Path(__file__).parents[3] / "examples" / "roadmap"
WISH = {
    "topic": "Gardening",
    "goals": ["Soil", "Seeds", "Water", "Light and shade", "Pruning roses", "Compost heaps"],
    "weeks": 3,
}


@contextmanager
def _api(directory: Path, environ: dict[str, str]) -> Iterator[httpx.Client]:
    """The example's application under uvicorn, as its own words say."""
    port = free_port()
    with (directory / "api.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "uvicorn", "--factory", "roadmap.api:create"),
                *("--port", str(port), "--app-dir", str(EXAMPLE)),
            ],
            cwd=directory,
            env=environ,
            stdout=log,
            stderr=log,
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
                wait_for("the application", lambda: _answers(client) or process.poll(), 40)
                assert process.poll() is None, (directory / "api.log").read_text()
                yield client
        finally:
            process.terminate()
            assert process.wait(20) in (0, -15), (directory / "api.log").read_text()
            assert "Traceback" not in (directory / "api.log").read_text()


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/openapi.json").status_code == 200
    except httpx.TransportError:
        return False


@contextmanager
def _running(directory: Path, database: str | None) -> Iterator[tuple[httpx.Client, Stack]]:
    environ = {"PYTHONPATH": str(EXAMPLE), "CLOCHE_LOGS__INTERVAL": "0.2"}
    if database is not None:
        environ["DATABASE_URL"] = database
    with (
        Stack(directory, "-A", "roadmap.workflow", environ=environ) as stack,
        _api(directory, stack.environ) as client,
    ):
        yield client, stack


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> Iterator[str | None]:
    if request.param == "sqlite":
        yield None
        return
    postgres: PostgresProcess = request.getfixturevalue("postgres")
    with postgres.database() as url:
        yield url


def test_the_example_writes_a_roadmap_and_tells_how(tmp_path: Path, database: str | None) -> None:
    with _running(tmp_path, database) as (client, stack):
        sent = client.post("/roadmaps", json=WISH, headers={"x-run-id": "garden/1"})
        assert sent.status_code == 202, sent.text
        assert sent.headers["x-run-id"] == "garden/1"
        run = sent.json()["run"]

        def finished() -> dict[str, Any] | None:
            found = client.get("/api/logs/runs/garden/1/trace")
            body: dict[str, Any] = found.json()
            return body if found.status_code == 200 and body["status"] == "succeeded" else None

        trace = wait_for("the run to be told", finished, 40)
        assert trace is not None
        steps = {step["path"]: step for step in trace["steps"]}
        assert {"request", "plan", "write", "write/draft", "write/find", "write/review"} == set(
            steps
        )
        # One in seven questions had no answer; each was asked again.
        assert steps["write/draft"]["finished"] - steps["write/draft"]["retries"] == 6
        assert sum(step["retries"] for step in steps.values()) >= 2
        assert set(trace["agents"]) == {"architect", "writer", "finder", "reviewer"}
        tasks = {one["task_id"] for one in trace["records"]} - {None}
        assert tasks == {sent.json()["task"]}
        errors = client.get("/api/logs/errors", params={"run": run}).json()
        assert errors["groups"] == []
        summary = client.get("/api/logs/summary", params={"run": run}).json()
        assert summary["agents"]["writer"] >= 12
        other = client.post("/roadmaps", json={**WISH, "topic": "Bread"}).json()
        wait_for("it to be told", lambda: client.get(other["trace"]).status_code == 200, 20)
        shown = wait_for(
            "the roadmap", lambda: (b := client.get(other["trace"]).json())["roadmap"] and b, 30
        )
        assert [len(week) for week in shown["roadmap"]["weeks"]] == [2, 2, 2]
        assert "you can use soil in bread" in shown["roadmap"]["weeks"][0][0]["text"].lower()
        # The same records on the operators' page.
        page = httpx.get(f"{stack.dashboard}/logs/runs/garden/1")
        assert page.status_code == 200
        assert "draft" in page.text


def test_the_documentation_of_the_api_knows_its_parameters(tmp_path: Path) -> None:
    from fastapi import FastAPI

    from cloche.contrib.fastapi import logs_router  # after the extras are known to be there

    api = FastAPI()
    api.include_router(logs_router("/log"))
    paths = api.openapi()["paths"]
    names = {one["name"] for one in paths["/log"]["get"]["parameters"]}
    assert {"run", "level", "text", "limit", "before"} <= names
    trace = paths["/log/runs/{run}/trace"]["get"]["parameters"]
    assert [(one["name"], one["in"]) for one in trace] == [("run", "path")]


def test_without_its_lifespan_it_says_what_is_missing() -> None:
    from fastapi import FastAPI
    from starlette.testclient import TestClient

    from cloche.contrib.fastapi import logs_router
    from cloche.errors import ClocheError

    api = FastAPI()
    api.include_router(logs_router())
    with pytest.raises(ClocheError, match="not open"), TestClient(api) as client:
        client.get("/api/logs")
