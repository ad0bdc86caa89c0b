"""Requests that make no sense: 4xx with a sentence, the same on both databases, never 5xx; and what
the OpenAPI documents say is what happens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from pydantic import SecretStr
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from cloche.contrib.fastapi import lifespan, logs_router
from cloche.settings import Settings
from cloche.settings.model import DatabaseSettings
from cloche.testing import free_port
from cloche.web.dashboard.app import create_dashboard
from cloche.web.downloads.app import create_service
from tests.integration.web.fixtures import Stack
from tests.integration.web.stack import Running, serving

_CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
#: Requests made of each operation.
_EXAMPLES = 8
#: Streams that end with their viewer.
_ENDLESS = ("/live", "/events")
_KINDS = ("service", "dashboard", "router")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def chosen(request: pytest.FixtureRequest, stack: Stack) -> Iterator[Settings]:
    if request.param == "sqlite":
        yield stack.settings
        return
    postgres = request.getfixturevalue("postgres")
    with postgres.database(request.getfixturevalue("migrated")) as url:
        database = DatabaseSettings(url=SecretStr(url))
        yield stack.settings.model_copy(update={"database": database})


@pytest.fixture(scope="module")
def servers(chosen: Settings, stack: Stack) -> Iterator[dict[str, Running]]:
    """Service, dashboard, and the log's router in an application of somebody else."""
    guest = FastAPI(lifespan=lifespan(stack.app, chosen), openapi_url="/api/openapi.json")
    guest.include_router(logs_router())
    guest.state.close = lambda: None
    made = (create_service(stack.app, chosen), create_dashboard(stack.app, chosen), guest)
    ports = [chosen.service.model_copy(update={"port": free_port()}) for _ in made]
    with (
        serving(made[0], ports[0]) as service,
        serving(made[1], ports[1]) as dashboard,
        serving(made[2], ports[2]) as router,
    ):
        yield dict(zip(_KINDS, (service, dashboard, router), strict=True))


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.filterwarnings("ignore::Warning:schemathesis", "ignore::DeprecationWarning")
def test_the_documents_hold_whatever_is_asked(servers: dict[str, Running], kind: str) -> None:
    url = servers[kind].url
    document = schemathesis.openapi.from_url(f"{url}/api/openapi.json")
    tried = 0
    for found in document.get_all_operations():
        operation: Any = found.ok()  # type: ignore[union-attr]
        if operation.path.endswith(_ENDLESS):
            continue

        @given(case=operation.as_strategy())
        @settings(
            max_examples=_EXAMPLES,
            deadline=None,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def ask(case: Any) -> None:
            case.call_and_validate(base_url=url, checks=_CHECKS, timeout=30)

        ask()
        tried += 1
    assert tried >= (5 if kind != "dashboard" else 9)


_MANY = "9" * 5000
_REFUSED = {
    "service": [
        ("GET", "/api/downloads/%00", 404),
        ("GET", "/api/downloads/%00/events", 404),
        ("DELETE", "/api/downloads/%00?remove=true", 404),
        ("POST", "/api/downloads/%00/retry", 404),
        ("GET", "/files/%00", 404),
        ("GET", "/files/%ff%fe/x", 404),
        ("GET", f"/api/downloads/{_MANY}", 404),
        ("GET", "/api/downloads?before=nan", 422),
        ("GET", "/api/downloads?before=1e999", 422),
        ("GET", f"/api/downloads?limit={_MANY}", 422),
        ("GET", "/api/downloads?state=%00", 422),
        ("POST", "/downloads/%00/cancel", 422),
        ("POST", "/downloads/%00/remove", 422),
    ],
    "dashboard": [
        ("GET", "/api/logs?since=9999999999d", 422),
        ("GET", "/api/logs?since=0001-01-01T00:00:00%2B14:00", 422),
        ("GET", "/api/logs?until=9999-12-31T23:59:59-14:00", 422),
        ("GET", "/api/logs?since=1e999w", 422),
        ("GET", "/api/logs?run=%00", 422),
        ("GET", "/api/logs?text=a%00b", 422),
        ("GET", "/api/logs/runs/%00/trace", 422),
        ("GET", "/api/logs/runs/%20/trace", 404),
        ("GET", "/api/logs/%00", 404),
        ("GET", "/api/logs?limit=0", 422),
        ("GET", f"/api/logs?limit={_MANY}", 422),
        ("GET", "/api/logs?before=%00", 422),
        ("GET", f"/api/tasks?limit={_MANY}", 422),
        ("GET", "/api/tasks?limit=%D9%A3", 422),
        ("GET", "/api/tasks/%00", 404),
        ("GET", "/api/nothing", 404),
        ("PUT", "/api/tasks", 405),
    ],
}
_ANSWERED = [
    "/api/logs?until=0001-01-01",
    "/api/logs?since=1900-01-01",
    "/api/logs?after=ffffffff-ffff-ffff-ffff-ffffffffffff",
    "/api/logs?before=00000000-0000-0000-0000-000000000000",
    "/api/logs?text=%22%22%22%20AND%20NEAR(*%20OR%20-",
    "/api/logs?text=%E2%90%80&step=%25_%5C",
    "/logs?since=1h&text=%F0%9F%92%A9",
    "/api/tasks?state=%00",
]


def test_what_makes_no_sense_is_refused_in_words(servers: dict[str, Running]) -> None:
    for kind, asked in _REFUSED.items():
        with httpx2.Client(base_url=servers[kind].url, timeout=30) as client:
            for method, path, status in asked:
                answer = client.request(method, path)
                assert answer.status_code == status, (kind, method, path[:80], answer.text[:300])
                assert "content-security-policy" in answer.headers
                if path.startswith("/api/"):
                    assert answer.headers["content-type"] == "application/problem+json", path[:80]
                    assert answer.json()["title"]
    with httpx2.Client(base_url=servers["dashboard"].url, timeout=30) as client:
        for path in _ANSWERED:
            assert client.get(path).status_code == 200, path


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("&".join("a=1" for _ in range(60)), 400),
        ("url=" + "x" * 40_000, 413),
        ("url=%00&filename=%ff", 422),
        ("max_size=" + "9" * 6000 + "&url=http://example.org/", 422),
        ("", 422),
    ],
)
def test_odd_forms_are_refused(servers: dict[str, Running], body: str, status: int) -> None:
    headers = {"content-type": "application/x-www-form-urlencoded"}
    answer = httpx2.post(f"{servers['service'].url}/downloads", content=body, headers=headers)
    assert answer.status_code == status, answer.text[:300]


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b'{"url": "\\ud800"}',
        b'{"url": "http://example.org/", "filename": "\\udce9"}',
        b'{"url": "http://example.org/", "max_size": 1e400}',
        b'{"url": "http://example.org/", "max_size": ' + b"9" * 5000 + b"}",
        b'{"url": "http://example.org/\\u0000"}',
        b"[" * 100_000,
    ],
)
def test_odd_bodies_are_refused(servers: dict[str, Running], body: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = httpx2.post(f"{servers['service'].url}/api/downloads", content=body, headers=headers)
    assert answer.status_code in (400, 422), answer.text[:300]
    assert answer.headers["content-type"] == "application/problem+json"
