"""The main job: a person asks for a URL and gets the file, through the whole running stack."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from cloche.testing import wait_until
from tests.acceptance.source import Source, digest
from tests.acceptance.stack import Stack

MIB = 1024**2
#: Size of the big file; the full 200 MiB of the promise takes seconds on two cores.
BIG = 200 * MIB


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with Stack(tmp_path_factory.mktemp("job")) as running:
        yield running


@pytest.fixture
def client(stack: Stack) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=stack.service, timeout=30) as client:
        yield client


def until_final(client: httpx2.Client, identifier: str, deadline: float = 60) -> dict[str, Any]:
    def final() -> dict[str, Any] | None:
        state: dict[str, Any] = client.get(f"/api/downloads/{identifier}").json()
        return state if state["state"] in ("done", "failed", "cancelled") else None

    found = wait_until(final, "the download to end", deadline)
    assert found is not None
    return found


def pool_memory(stack: Stack) -> int:
    """Most resident bytes of any process of the download worker."""
    workers = [
        p for p in stack.processes() if "--like" in p.cmdline() and "download" in p.cmdline()
    ]
    family = [*workers, *(child for worker in workers for child in worker.children())]
    sizes = []
    for process in family:
        try:
            sizes.append(process.memory_info().rss)
        except psutil.NoSuchProcess:
            continue
    return max(sizes, default=0)


def test_a_big_file_over_a_connection_that_drops_twice_arrives_whole(
    stack: Stack, client: httpx2.Client
) -> None:
    with Source() as source:
        warm = client.post("/api/downloads", json={"url": source.url(MIB, "warm.bin")}).json()
        assert until_final(client, warm["id"])["state"] == "done"
        before, peak, received = pool_memory(stack), 0, [0]
        source.drops = 2
        asked = client.post("/api/downloads", json={"url": source.url(BIG)})
        assert asked.status_code == httpx2.codes.ACCEPTED
        identifier = asked.json()["id"]
        while True:
            now = client.get(f"/api/downloads/{identifier}").json()
            received.append(now["received"])
            peak = max(peak, pool_memory(stack))
            if now["state"] in ("done", "failed", "cancelled"):
                break
            time.sleep(0.05)
        assert now["state"] == "done", now
        assert received == sorted(received), "progress never goes back"
        assert now["sha256"] == digest(BIG)
        assert [r for r in source.requests if r != "whole"], "it resumed by Range"
        assert peak - before < 50 * MIB
        with client.stream("GET", f"/files/{identifier}") as answer:
            seen = hashlib.sha256()
            for piece in answer.iter_bytes():
                seen.update(piece)
        assert seen.hexdigest() == digest(BIG)


def test_the_second_request_for_a_url_is_answered_from_the_cache(client: httpx2.Client) -> None:
    with Source() as source:
        url = source.url(MIB, "cached.bin")
        first = client.post("/api/downloads", json={"url": url}).json()
        until_final(client, first["id"])
        requests = len(source.requests)
        again = client.post("/api/downloads", json={"url": url})
        assert again.status_code == httpx2.codes.OK
        assert again.json()["cached"] is True
        assert len(source.requests) == requests


def test_a_running_download_can_be_cancelled(client: httpx2.Client) -> None:
    with Source() as source:
        source.gate.clear()
        asked = client.post("/api/downloads", json={"url": source.url(50 * MIB, "slow.bin")}).json()
        path = f"/api/downloads/{asked['id']}"
        wait_until(lambda: client.get(path).json()["received"] > 0, "bytes to arrive")
        client.delete(path)
        assert until_final(client, asked["id"], 10)["state"] == "cancelled"


def test_curl_does_the_same(stack: Stack, tmp_path: Path) -> None:
    curl = shutil.which("curl")
    assert curl, "curl is part of the promise: install it"

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [curl, "-sS", "--fail", *arguments],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
            timeout=30,
        )
        return done.stdout

    with Source() as source:
        url = source.url(3 * MIB, "curled.bin")
        answer = run("--json", f'{{"url": "{url}"}}', f"{stack.service}/api/downloads")
        identifier = httpx2.Response(200, text=answer).json()["id"]
        wait_until(
            lambda: '"done"' in run(f"{stack.service}/api/downloads/{identifier}"), "done", 30
        )
        target = tmp_path / "curled.bin"
        run("-o", str(target), f"{stack.service}/files/{identifier}")
        os.truncate(target, MIB)  # a broken transfer to the person, continued with -C
        run("-C", "-", "-o", str(target), f"{stack.service}/files/{identifier}")
        assert hashlib.sha256(target.read_bytes()).hexdigest() == digest(3 * MIB)


def test_an_address_inside_the_network_is_refused_with_the_reason(client: httpx2.Client) -> None:
    answer = client.post("/api/downloads", json={"url": "http://169.254.169.254/latest/meta-data"})
    assert answer.status_code in (400, 403, 422)
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert "169.254.169.254" in answer.text


def test_the_dashboard_tells_of_workers_queues_and_the_tasks_just_run(stack: Stack) -> None:
    def told() -> bool:
        page = httpx2.get(stack.dashboard + "/", timeout=10).text
        return all(word in page for word in ("download_queue", "cloche.download.fetch", "worker@"))

    wait_until(told, "the dashboard to show them", 20)
