"""Who may use the servers: names, origins, tokens, headers."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

import httpx2
import pytest
from pydantic import SecretStr

from cloche.errors import SettingsError
from cloche.settings import Settings, load
from cloche.testing import free_port
from cloche.web.auth import allowed_host
from cloche.web.dashboard.app import create_dashboard
from cloche.web.downloads.app import create_service
from tests.integration.web.fixtures import Stack
from tests.integration.web.stack import Running, serving

_TOKEN = "a long and random secret"


@pytest.fixture
def client(service: Running) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=service.url) as made:
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
def test_a_foreign_host_name_is_refused(client: httpx2.Client, host: str) -> None:
    answer = client.get("/api/downloads", headers={"host": host})
    assert answer.status_code in (400, 421)
    assert "downloads" not in answer.text


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000", "app.localhost"])
def test_loopback_names_are_ours(client: httpx2.Client, host: str) -> None:
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
def test_a_cross_site_post_is_refused(client: httpx2.Client, headers: dict[str, str]) -> None:
    for path in ("/downloads", "/api/downloads"):
        answer = client.post(path, headers=headers, json={"url": "http://127.0.0.1:1/forged"})
        assert answer.status_code == 403, path
        assert answer.headers["content-type"] == "application/problem+json"
    listed = client.get("/api/downloads").json()["downloads"]
    assert not [download for download in listed if "forged" in download["url"]]


def test_our_own_page_and_curl_may_post(client: httpx2.Client, service: Running) -> None:
    for headers in ({"sec-fetch-site": "same-origin"}, {"origin": service.url}, {}):
        answer = client.post("/api/downloads", headers=headers, json={"url": "nonsense"})
        assert answer.status_code == 422


def test_every_answer_carries_the_policy(client: httpx2.Client) -> None:
    for path in ("/", "/api/downloads", "/static/cloche.css", "/nope", "/healthz"):
        headers = client.get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"], path
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"


def test_pages_hold_no_inline_script_or_style(client: httpx2.Client) -> None:
    page = client.get("/").text
    assert "<style" not in page
    assert " style=" not in page
    assert "<script>" not in page


def test_a_wider_bind_without_a_token_is_refused(stack: Stack) -> None:
    for section, create in (("service", create_service), ("dashboard", create_dashboard)):
        with pytest.raises(SettingsError, match=r"no token"):
            create(stack.app, _with(stack.settings, section, host="0.0.0.0"))


def test_without_the_token_nothing_is_told(guarded: Running) -> None:
    with httpx2.Client(base_url=guarded.url) as client:
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
    with httpx2.Client(base_url=guarded.url, headers=headers) as client:
        assert client.get("/api/tasks").status_code == 200
        assert "detail" in client.get("/readyz").text


def test_signing_in_sets_a_cookie_that_is_not_the_token(guarded: Running) -> None:
    with httpx2.Client(base_url=guarded.url) as client:
        to_login = client.get("/", headers={"accept": "text/html"})
        assert to_login.status_code == 303
        assert to_login.headers["location"] == "/login?next=/"
        asked = "/logs/runs/a%3Fb%20c?level=error&text=two%20words"
        to_login = client.get(asked, headers={"accept": "text/html"})
        form = client.get(to_login.headers["location"]).text
        (target,) = re.findall(r'name="next" value="([^"]*)"', form)
        assert html.unescape(target) == asked
        wrong = client.post("/login", data={"token": "guess", "next": "/"})
        assert wrong.status_code == 403
        there = client.post("/login", data={"token": _TOKEN, "next": asked})
        assert there.headers["location"] == asked
        client.cookies.clear()
        right = client.post("/login", data={"token": _TOKEN, "next": "//evil.example"})
        assert right.status_code == 303
        assert right.headers["location"] == "/"
        cookie = right.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert _TOKEN not in cookie
        assert client.get("/api/tasks").status_code == 200


def test_a_rebound_probe_learns_nothing_but_yes_or_no(client: httpx2.Client) -> None:
    answer = client.get("/readyz", headers={"host": "evil.example"})
    assert answer.status_code == 200
    assert "detail" not in answer.text


def test_an_answer_to_what_nobody_foresaw_has_the_headers_and_tells_nothing(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a secret of the code")

    settings = _with(stack.settings, "dashboard", port=free_port())
    monkeypatch.setattr("cloche.web.dashboard.app.LiveTasks.recent", fail)
    with (
        serving(create_dashboard(stack.app, settings), settings.dashboard) as running,
        httpx2.Client(base_url=running.url) as client,
    ):
        answer = client.get("/api/tasks")
        assert answer.status_code == 500
        assert answer.headers["content-type"] == "application/problem+json"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "secret" not in answer.text
        assert client.get("/api/snapshot").status_code == 200


@pytest.mark.parametrize("how", ["login", "bearer", "cookie"])
def test_guessing_is_slowed_and_an_old_token_is_no_guess(stack: Stack, how: str) -> None:
    settings = _with(stack.settings, "dashboard", token=SecretStr(_TOKEN), port=free_port())

    def ask(client: httpx2.Client, token: str) -> int:
        if how == "login":
            return client.post("/login", data={"token": token}).status_code
        name = "authorization" if how == "bearer" else "cookie"
        value = f"Bearer {token}" if how == "bearer" else f"cloche-dashboard={token}"
        return client.get("/api/tasks", headers={name: value}).status_code

    with (
        serving(create_dashboard(stack.app, settings), settings.dashboard) as running,
        httpx2.Client(base_url=running.url) as client,
    ):
        refused = {ask(client, "the-token-of-yesterday") for _ in range(30)}
        assert refused == {403 if how == "login" else 401}
        asked = [ask(client, f"guess-{number}") for number in range(20)]
        assert asked[:8] == [403 if how == "login" else 401] * 8
        assert set(asked[10:]) == {429}
        if how != "cookie":
            assert ask(client, _TOKEN) == 429, "or the guesses would be looked at after all"
        assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize("token", ["", "   ", "short"])
def test_a_token_that_protects_nothing_is_refused_with_the_settings(token: str) -> None:
    with pytest.raises(SettingsError, match="protects nothing"):
        load({"service.token": token}, environ={})
    with pytest.raises(SettingsError, match="no token"):
        load({"dashboard.host": "0.0.0.0"}, environ={})
