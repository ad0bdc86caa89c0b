"""Execution logs in a FastAPI application: the example, run as a person would run it."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI, Request

from cloche.app import create_app
from cloche.contrib.fastapi import Logger, RunId, lifespan, logs_router
from cloche.errors import ClocheError
from cloche.settings import load
from cloche.settings.model import ServiceSettings
from cloche.testing import PostgresProcess, free_port, wait_until
from tests.acceptance.stack import Stack
from tests.integration.web.stack import serving

EXAMPLE = Path(__file__).parents[3] / "examples" / "roadmap"
WISH = {
    "topic": "Gardening",
    "goals": ["Soil", "Seeds", "Water", "Light and shade", "Pruning roses", "Compost heaps"],
    "weeks": 3,
}
STEPS = {"request", "plan", "write", "write/draft", "write/find", "write/review"}


@contextmanager
def _api(directory: Path, environ: dict[str, str]) -> Iterator[httpx2.Client]:
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
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
                wait_until(lambda: _answers(client) or process.poll(), "the application", 40)
                assert process.poll() is None, (directory / "api.log").read_text()
                yield client
        finally:
            process.terminate()
            assert process.wait(20) in (0, -15), (directory / "api.log").read_text()
            assert "Traceback" not in (directory / "api.log").read_text()


def _answers(client: httpx2.Client) -> bool:
    try:
        return client.get("/openapi.json").status_code == 200
    except httpx2.TransportError:
        return False


@contextmanager
def _running(directory: Path, database: str | None) -> Iterator[tuple[httpx2.Client, Stack]]:
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
            assert found.status_code in (200, 404), found.text
            body: dict[str, Any] = found.json()
            told = {step["path"] for step in body.get("steps", ())}
            # Batches are written side by side: the last record may be there before others.
            return body if body["status"] == "succeeded" and told == STEPS else None

        trace = wait_until(finished, "the run to be told", 40)
        assert trace is not None
        steps = {step["path"]: step for step in trace["steps"]}
        # Some questions had no answer at first; each was asked again.
        assert steps["write/draft"]["finished"] - steps["write/draft"]["retries"] == 6
        assert sum(step["retries"] for step in steps.values()) >= 1
        assert set(trace["agents"]) == {"architect", "writer", "finder", "reviewer"}
        tasks = {one["task_id"] for one in trace["records"]} - {None}
        assert tasks == {sent.json()["task"]}
        errors = client.get("/api/logs/errors", params={"run": run}).json()
        assert errors["groups"] == []
        summary = client.get("/api/logs/summary", params={"run": run}).json()
        assert summary["agents"]["writer"] >= 12
        other = client.post("/roadmaps", json={**WISH, "topic": "Bread"}).json()
        wait_until(lambda: client.get(other["trace"]).status_code == 200, "it to be told", 20)

        def written() -> dict[str, Any] | None:
            body: dict[str, Any] = client.get(other["trace"]).json()
            assert body["errors"] == []
            assert body["status"] in ("waiting", "running", "succeeded"), body
            return body if body["roadmap"] else None

        shown = wait_until(written, "the roadmap", 30)
        assert shown is not None
        assert [len(week) for week in shown["roadmap"]["weeks"]] == [2, 2, 2]
        assert "you can use seeds in bread" in shown["roadmap"]["weeks"][0][0]["text"].lower()
        # The same records on the operators' page.
        page = httpx2.get(f"{stack.dashboard}/logs/runs/garden/1")
        assert page.status_code == 200
        assert "draft" in page.text


def test_the_documentation_of_the_api_knows_its_parameters() -> None:
    api = FastAPI()
    api.include_router(logs_router("/log"))
    paths = api.openapi()["paths"]
    names = {one["name"] for one in paths["/log"]["get"]["parameters"]}
    assert {"run", "level", "text", "limit", "before"} <= names
    trace = paths["/log/runs/{run}/trace"]["get"]["parameters"]
    assert [(one["name"], one["in"]) for one in trace] == [("run", "path")]


def test_without_its_lifespan_it_says_what_is_missing() -> None:
    api = FastAPI()
    api.include_router(logs_router())

    async def ask() -> None:
        transport = httpx2.ASGITransport(api)
        async with httpx2.AsyncClient(transport=transport, base_url="http://here") as client:
            await client.get("/api/logs")

    with pytest.raises(ClocheError, match="not open"):
        asyncio.run(ask())


def test_a_run_id_from_outside_is_a_plain_word(tmp_path: Path, broker_url: str) -> None:
    settings = load({"broker.url": broker_url, "run_dir": str(tmp_path)}, environ={}).settings
    told: list[str] = []

    @asynccontextmanager
    async def own(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        told.append("begins")
        yield {"mine": 7}
        told.append("ends")

    api = FastAPI(lifespan=lifespan(create_app("t", settings), settings, also=own))

    api.state.close = lambda: None  # what our own server calls when it stops

    @api.get("/")
    def say(request: Request, log: Logger, run: RunId) -> dict[str, Any]:
        record = log.info("web", "say", "said")
        return {"run": run, "record": record.run_id, "mine": request.state.mine}

    with (
        serving(api, ServiceSettings(port=free_port())) as running,
        httpx2.Client(base_url=running.url) as client,
    ):
        named = client.get("/", headers={"x-run-id": "order/7"})
        assert named.json() == {"run": "order/7", "record": "order/7", "mine": 7}
        assert named.headers["x-run-id"] == "order/7"
        for odd in ("", "two words", "x" * 300, "<b>"):
            answer = client.get("/", headers={"x-run-id": odd}).json()
            assert re.fullmatch("[0-9a-f]{32}", answer["run"])
            assert answer["record"] == answer["run"]
    assert told == ["begins", "ends"]
