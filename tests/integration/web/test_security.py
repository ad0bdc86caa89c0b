"""Who may use the servers: names, origins, tokens, headers."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from pydantic import SecretStr

from cloche.errors import SettingsError
from cloche.settings import Settings
from cloche.testing import free_port
from cloche.web.dashboard import create_dashboard
from cloche.web.security import allowed_host
from cloche.web.service import create_service
from tests.integration.web.fixtures import Stack
from tests.integration.web.stack import Running, serving

_TOKEN = "a long and random secret"


@pytest.fixture
def client(service: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url) as made:
        yield made


def _with(settings: Settings, section: str, **values: object) -> Settings:
    changed = getattr(settings, section).model_copy(update=values)
    return settings.model_copy(update={section: changed})


@pytest.fixture
def guarded(stack: Stack) -> Iterator[Running]:
    """A dashboard with a token."""
    settings = _with(stack.settings, "dashboard", token=SecretStr(_TOKEN), port=free_port())
    with serving(create_dashboard(stack.app, settings), settings.dashboard) as running:
        yield running


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "", "a b", "[::1"])
def test_a_foreign_host_name_is_refused(client: httpx.Client, host: str) -> None:
    answer = client.get("/api/downloads", headers={"host": host})
    assert answer.status_code in (400, 421)
    assert "downloads" not in answer.text


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000", "app.localhost"])
def test_loopback_names_are_ours(client: httpx.Client, host: str) -> None:
    assert client.get("/api/downloads", headers={"host": host}).status_code == 200


def test_further_names_are_ours_when_listed() -> None:
    assert allowed_host("cloche.example.org:8000", ["cloche.example.org"])
    assert allowed_host("a.example.org", [".example.org"])
    assert not allowed_host("badexample.org", [".example.org"])
    assert allowed_host("192.168.1.5:8000", [])
    assert allowed_host("anything", ["*"])


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "http://evil.example"},
        {"origin": "http://localhost:1"},
        {"origin": "null"},
    ],
)
def test_a_cross_site_post_is_refused(client: httpx.Client, headers: dict[str, str]) -> None:
    for path in ("/downloads", "/api/downloads"):
        answer = client.post(path, headers=headers, json={"url": "http://127.0.0.1:1/forged"})
        assert answer.status_code == 403, path
        assert answer.headers["content-type"] == "application/problem+json"
    listed = client.get("/api/downloads").json()["downloads"]
    assert not [download for download in listed if "forged" in download["url"]]


def test_our_own_page_and_curl_may_post(client: httpx.Client, service: Running) -> None:
    for headers in ({"sec-fetch-site": "same-origin"}, {"origin": service.url}, {}):
        answer = client.post("/api/downloads", headers=headers, json={"url": "nonsense"})
        assert answer.status_code == 422


def test_every_answer_carries_the_policy(client: httpx.Client) -> None:
    for path in ("/", "/api/downloads", "/static/cloche.css", "/nope", "/healthz"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"], path
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"


def test_pages_hold_no_inline_script_or_style(client: httpx.Client) -> None:
    page = client.get("/").text
    assert "<style" not in page
    assert " style=" not in page
    assert "<script>" not in page


def test_a_wider_bind_without_a_token_is_refused(stack: Stack) -> None:
    for section, create in (("service", create_service), ("dashboard", create_dashboard)):
        with pytest.raises(SettingsError, match=r"no token"):
            create(stack.app, _with(stack.settings, section, host="0.0.0.0"))


def test_without_the_token_nothing_is_told(guarded: Running) -> None:
    with httpx.Client(base_url=guarded.url) as client:
        for path in ("/", "/api/snapshot", "/api/tasks", "/live"):
            refused = client.get(path)
            assert refused.status_code == 401, path
            assert refused.headers["www-authenticate"] == "Bearer"
        assert client.get("/healthz").status_code == 200
        ready = client.get("/readyz")
        assert ready.status_code == 200
        assert "detail" not in ready.text
        for wrong in ("Bearer nope", "Bearer", f"Basic {_TOKEN}"):
            assert client.get("/api/tasks", headers={"authorization": wrong}).status_code == 401


def test_the_token_opens_the_api(guarded: Running) -> None:
    headers = {"authorization": f"Bearer {_TOKEN}"}
    with httpx.Client(base_url=guarded.url, headers=headers) as client:
        assert client.get("/api/tasks").status_code == 200
        assert "detail" in client.get("/readyz").text


def test_signing_in_sets_a_cookie_that_is_not_the_token(guarded: Running) -> None:
    with httpx.Client(base_url=guarded.url) as client:
        to_login = client.get("/", headers={"accept": "text/html"})
        assert to_login.status_code == 303
        assert to_login.headers["location"] == "/login?next=/"
        wrong = client.post("/login", data={"token": "guess", "next": "/"})
        assert wrong.status_code == 403
        right = client.post("/login", data={"token": _TOKEN, "next": "//evil.example"})
        assert right.status_code == 303
        assert right.headers["location"] == "/"
        cookie = right.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert _TOKEN not in cookie
        assert client.get("/api/tasks").status_code == 200


def test_a_rebound_probe_learns_nothing_but_yes_or_no(client: httpx.Client) -> None:
    answer = client.get("/readyz", headers={"host": "evil.example"})
    assert answer.status_code == 200
    assert "detail" not in answer.text
