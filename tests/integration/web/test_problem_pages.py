"""A refusal is a page where a person's browser asks, a notice in a form, else a problem."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest

from tests.integration.web.stack import Running

BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


@pytest.fixture(params=["service", "dashboard"])
def client(request: pytest.FixtureRequest) -> Iterator[httpx2.Client]:
    running: Running = request.getfixturevalue(request.param)
    with httpx2.Client(base_url=running.url) as made:
        yield made


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "words"),
    [
        ("GET", "/nothing/here", {}, 404, "There is nothing here"),
        ("PUT", "/login", {"sec-fetch-site": "cross-site"}, 403, "another site sent this request"),
        ("GET", "/", {"host": "evil.example"}, 421, "not called &#39;evil.example&#39;"),
        ("POST", "/static/cloche.css", {}, 405, "Method Not Allowed"),
        ("GET", "/%3Cscript%3Ealert(1)%3C/script%3E", {}, 404, "There is nothing here"),
    ],
)
def test_a_browser_gets_a_page(
    client: httpx2.Client,
    method: str,
    path: str,
    headers: dict[str, str],
    status: int,
    words: str,
) -> None:
    answer = client.request(method, path, headers={**BROWSER, **headers})
    assert (answer.status_code, answer.headers["content-type"]) == (
        status,
        "text/html; charset=utf-8",
    )
    assert words in answer.text
    assert f"Status {status}" in answer.text
    assert "<script>alert" not in answer.text
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert int(answer.headers["content-length"]) == len(answer.content)


def test_a_form_of_a_page_gets_a_notice(client: httpx2.Client) -> None:
    answer = client.post("/nothing", headers={"hx-request": "true"})
    assert answer.status_code == 404
    assert answer.text.startswith('<div class="notice bad" role="alert">')


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/nothing/here", {}),
        ("/nothing/here", {"accept": "application/json"}),
        ("/api/nothing", BROWSER),
    ],
)
def test_a_program_gets_problem_details(
    client: httpx2.Client, path: str, headers: dict[str, str]
) -> None:
    answer = client.get(path, headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
    assert answer.json()["title"] == "Not Found"
    assert client.head("/nothing/here", headers=BROWSER).status_code == 404


def test_a_file_that_is_not_there_is_told_as_a_page(service: Running) -> None:
    answer = httpx2.get(f"{service.url}/files/nope", headers=BROWSER)
    assert answer.status_code == 404
    assert "There is no download" in answer.text
    assert "It never was, or it has been removed." in answer.text
