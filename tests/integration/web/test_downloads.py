"""The whole life of a download through the service's API."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cloche.testing import wait_until
from tests.integration.web.fixtures import Stack
from tests.integration.web.stack import Running, Source, events_of

_MIB = 1024 * 1024


@pytest.fixture
def client(service: Running) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=service.url) as made:
        yield made


def _request(client: httpx2.Client, url: str, **more: object) -> dict[str, Any]:
    answer = client.post("/api/downloads", json={"url": url, **more})
    assert answer.status_code in (200, 202), answer.text
    body: dict[str, Any] = answer.json()
    assert answer.headers["location"] == f"/api/downloads/{body['id']}"
    return body


def _finished(client: httpx2.Client, id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        body: dict[str, Any] = client.get(f"/api/downloads/{id}").json()
        return body if body["state"] in ("done", "failed", "cancelled") else None

    return wait_until(look, f"the end of download {id}")


@pytest.fixture
def done(client: httpx2.Client, files: Source) -> dict[str, Any]:
    """A finished download of 300,000 bytes."""
    files.rate = 0
    body = _request(client, files.add("résumé 北京.zip", 300_000))
    body = _finished(client, body["id"])
    assert body["state"] == "done", body
    return body


def test_asked_watched_fetched_and_cached(client: httpx2.Client, files: Source) -> None:
    files.rate = 4 * _MIB
    url = files.add("life.bin", 4 * _MIB)
    asked = client.post("/api/downloads", json={"url": url})
    assert asked.status_code == 202
    body = asked.json()
    seen = [(name, json.loads(data)) for name, data in events_of(client, body["links"]["events"])]
    assert [name for name, _ in seen][-1] == "done"
    received = [download["received"] for _, download in seen]
    assert received == sorted(received)
    assert len(set(received)) > 2
    last = seen[-1][1]
    assert last["sha256"] == files.sha256("life.bin")
    content = client.get(last["links"]["file"]).content
    assert hashlib.sha256(content).hexdigest() == files.sha256("life.bin")

    again = client.post("/api/downloads", json={"url": url})
    assert again.status_code == 200
    assert again.json()["cached"] is True
    assert files.requests.count("GET life.bin") == 1


def test_a_file_has_validators_and_a_name_in_any_language(
    client: httpx2.Client, done: dict[str, Any]
) -> None:
    answer = client.get(f"/files/{done['id']}")
    assert answer.headers["etag"] == f'"{done["sha256"]}"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"].startswith("attachment")
    assert (
        "filename*=UTF-8''r%C3%A9sum%C3%A9%20%E5%8C%97%E4%BA%AC.zip"
        in (answer.headers["content-disposition"])
    )
    same = client.get(f"/files/{done['id']}", headers={"if-none-match": f'"{done["sha256"]}"'})
    assert same.status_code == 304
    assert same.content == b""
    head = client.head(f"/files/{done['id']}")
    assert head.status_code == 200
    assert head.headers["content-length"] == "300000"
    assert head.content == b""


@pytest.mark.parametrize(
    ("asked", "status", "first", "last"),
    [
        ("bytes=0-9", 206, 0, 9),
        ("bytes=299990-", 206, 299_990, 299_999),
        ("bytes=-5", 206, 299_995, 299_999),
        ("bytes=100-9999999", 206, 100, 299_999),
        ("bytes=oops", 200, 0, 299_999),
        ("lines=1-2", 200, 0, 299_999),
    ],
)
def test_ranges(
    client: httpx2.Client,
    files: Source,
    done: dict[str, Any],
    asked: str,
    status: int,
    first: int,
    last: int,
) -> None:
    answer = client.get(f"/files/{done['id']}", headers={"range": asked})
    assert answer.status_code == status
    assert answer.content == files.files["résumé 北京.zip"][first : last + 1]
    if status == 206:
        assert answer.headers["content-range"] == f"bytes {first}-{last}/300000"


def test_a_range_beyond_the_end_is_416(client: httpx2.Client, done: dict[str, Any]) -> None:
    answer = client.get(f"/files/{done['id']}", headers={"range": "bytes=300000-"})
    assert answer.status_code == 416
    assert answer.headers["content-range"] == "bytes */300000"


def test_if_range_of_another_version_gets_the_whole_file(
    client: httpx2.Client, done: dict[str, Any]
) -> None:
    headers = {"range": "bytes=5-9", "if-range": '"another"'}
    assert client.get(f"/files/{done['id']}", headers=headers).status_code == 200
    headers["if-range"] = f'"{done["sha256"]}"'
    assert client.get(f"/files/{done['id']}", headers=headers).status_code == 206


@pytest.mark.skipif(shutil.which("curl") is None, reason="NO CURL")
def test_curl_goes_on_where_it_stopped(
    service: Running, files: Source, done: dict[str, Any], tmp_path: Path
) -> None:
    part = tmp_path / "part.zip"
    part.write_bytes(files.files["résumé 北京.zip"][:123_456])
    url = f"{service.url}/files/{done['id']}"
    subprocess.run(["curl", "-sSf", "-C", "-", "-o", part, url], check=True, timeout=30)
    assert hashlib.sha256(part.read_bytes()).hexdigest() == done["sha256"]


def test_a_range_that_fits_is_enough_and_refusals_are_problems(
    client: httpx2.Client, done: dict[str, Any]
) -> None:
    def ask(asked: str) -> httpx2.Response:
        return client.get(f"/files/{done['id']}", headers={"range": asked})

    assert ask("bytes=0-1,300000-").content == client.get(f"/files/{done['id']}").content[:2]
    for ignored in ("bytes=5-2", "bytes=0-1,9-3", "bytes=" + ",".join(["0-1"] * 99)):
        assert ask(ignored).status_code == 200
    for beyond in ("bytes=300000-", "bytes=-0", "bytes=400000-500000,600000-"):
        answer = ask(beyond)
        assert (answer.status_code, answer.json()["status"]) == (416, 416)
        assert answer.headers["content-type"] == "application/problem+json"


def test_a_download_that_is_over_can_be_removed(client: httpx2.Client, files: Source) -> None:
    files.rate = 0
    ids = [
        _finished(client, _request(client, files.add(f"gone-{n}.bin", 1000 + n))["id"])["id"]
        for n in range(2)
    ]
    assert client.delete(f"/api/downloads/{ids[0]}?remove=true").json()["state"] == "done"
    assert client.post(f"/downloads/{ids[1]}/remove").status_code == 303
    for id in ids:
        assert client.get(f"/api/downloads/{id}").status_code == 404
        assert client.get(f"/files/{id}").status_code == 404
        assert client.delete(f"/api/downloads/{id}?remove=true").status_code == 404


def test_openapi_tells_errors_and_files_as_what_they_are(client: httpx2.Client) -> None:
    paths = client.get("/api/openapi.json").json()["paths"]
    for path, operations in paths.items():
        for method, operation in operations.items():
            for status, response in operation["responses"].items():
                if status >= "400":
                    kinds = set(response["content"])
                    assert kinds == {"application/problem+json"}, (path, method, status)
    assert {"200", "202"} <= paths["/api/downloads/{id}/retry"]["post"]["responses"].keys()
    assert {"206", "304", "416"} <= paths["/files/{id}"]["get"]["responses"].keys()


def test_cancel_ends_the_stream_and_retry_begins_anew(client: httpx2.Client, files: Source) -> None:
    files.rate = _MIB
    body = _request(client, files.add("slow.bin", 20 * _MIB))
    stream = events_of(client, body["links"]["events"])
    for name, data in stream:
        if name == "progress" and json.loads(data)["received"] > 0:
            break
    file = client.get(f"/files/{body['id']}")
    assert file.status_code == 409
    assert client.delete(f"/api/downloads/{body['id']}").status_code == 200
    assert [name for name, _ in stream][-1] == "cancelled"
    files.rate = 0
    again = client.post(f"/api/downloads/{body['id']}/retry")
    assert again.status_code == 202
    assert _finished(client, body["id"])["state"] == "done"


def test_thirty_viewers_all_see_the_end(
    client: httpx2.Client, service: Running, files: Source
) -> None:
    files.rate = 2 * _MIB
    body = _request(client, files.add("popular.bin", 4 * _MIB))
    ends: list[str] = []

    def view() -> None:
        with httpx2.Client(base_url=service.url) as own:
            ends.append([name for name, _ in events_of(own, body["links"]["events"])][-1])

    viewers = [threading.Thread(target=view) for _ in range(30)]
    for viewer in viewers:
        viewer.start()
    for viewer in viewers:
        viewer.join(30)
    assert ends == ["done"] * 30


def test_what_cannot_be_done_says_what_why_and_fix(client: httpx2.Client, files: Source) -> None:
    refused = client.post("/api/downloads", json={"url": "http://10.0.0.1/x"})
    assert refused.status_code == 422
    assert refused.headers["content-type"] == "application/problem+json"
    body = refused.json()
    assert "10.0.0.1" in body["title"]
    assert body["detail"]
    assert body["fix"]
    wrong = client.post("/api/downloads", json={"url": "http://x.test/", "max_size": "much"})
    assert wrong.status_code == 422
    assert "max_size" in wrong.json()["detail"]
    unknown = client.post("/api/downloads", json={"url": "http://x.test/", "colour": "red"})
    assert "colour" in unknown.json()["detail"]
    assert client.get("/api/downloads/nope").status_code == 404
    assert client.get("/files/nope").status_code == 404
    assert client.get("/nope").headers["content-type"] == "application/problem+json"


def test_a_list_without_a_download_is_empty(client: httpx2.Client) -> None:
    page = client.get("/api/downloads", params={"before": 0})
    assert page.status_code == 200
    assert page.json() == {"downloads": [], "next": None}


def test_the_list_is_paged_newest_first(client: httpx2.Client, files: Source) -> None:
    files.rate = 0
    wanted = [_request(client, files.add(f"page-{n}.bin", 10))["id"] for n in range(5)]
    for id in wanted:
        _finished(client, id)
    found: list[str] = []
    address: str | None = "/api/downloads?limit=2"
    while address and len(found) < 5:
        body = client.get(address).json()
        found += [download["id"] for download in body["downloads"]]
        address = body["next"]
    assert found[:5] == wanted[::-1]


def test_the_state_of_any_task(client: httpx2.Client, stack: Stack) -> None:
    climb = stack.app.tasks["tests.integration.web.sample.climb"].delay(20, 0.1)

    def state(wanted: str) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            body: dict[str, Any] = client.get(f"/api/tasks/{climb.id}").json()
            return body if body["state"] == wanted else None

        return wait_until(look, wanted)

    assert state("PROGRESS")["progress"]["of"] == 20
    assert state("SUCCESS")["result"] == "arrived"
    unknown = client.get("/api/tasks/never-was").json()
    assert (unknown["state"], unknown["known"]) == ("PENDING", False)


def test_a_pickled_result_is_never_loaded(client: httpx2.Client, stack: Stack) -> None:
    import pickle

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path(stack.directory / "sprung").write_text, ("x",))

    key = stack.app.backend.get_key_for_task("trap")
    stack.app.backend.client.set(key, pickle.dumps({"status": "SUCCESS", "result": Trap()}))
    body = client.get("/api/tasks/trap")
    assert body.status_code == 200
    assert body.json()["state"] == "UNREADABLE"
    assert not (stack.directory / "sprung").exists()


def test_readiness_tells_broker_results_database_and_workers(client: httpx2.Client) -> None:
    def look() -> dict[str, Any] | None:
        body: dict[str, Any] = client.get("/readyz").json()
        return body if body["checks"]["workers"]["ok"] else None

    body = wait_until(look, "the worker seen")
    assert body["status"] == "ready"
    assert list(body["checks"]) == ["broker", "results", "database", "workers"]


def test_openapi_has_examples(client: httpx2.Client) -> None:
    document = client.get("/api/openapi.json").json()
    assert "/api/downloads/{id}/events" in document["paths"]
    assert document["components"]["schemas"]["DownloadRequest"]["examples"]
    assert document["components"]["schemas"]["DownloadView"]["examples"]
