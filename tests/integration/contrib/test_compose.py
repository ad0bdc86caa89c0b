"""The example's compose.yaml, read as Compose reads it: merge keys, references, commands.

There is no engine here that could run it. Where the Docker client has Compose, it checks too.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from cloche.cli import cloche
from cloche.settings import load
from tests.acceptance.test_docs import parse
from tests.integration.contrib.test_fastapi import EXAMPLE

FILE = EXAMPLE / "compose.yaml"
SECRETS = {"POSTGRES_PASSWORD": "p", "DASHBOARD_TOKEN": "a-token-for-tests", "FLOWER_PASSWORD": "f"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    text = re.sub(r"\$\{(\w+):\?[^}]*\}", lambda found: SECRETS[found[1]], FILE.read_text())
    assert "${" not in text
    read: dict[str, Any] = yaml.safe_load(text)
    return read


def test_it_brings_everything_the_example_needs(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services) >= {"app", "postgres", "redis", "worker", "beat", "dashboard", "flower"}
    for name, service in services.items():
        assert service.get("image") or (EXAMPLE / service["build"] / "Dockerfile").exists(), name
        for needed, how in service.get("depends_on", {}).items():
            assert needed in services
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[needed]
        for volume in service.get("volumes", []):
            assert volume.partition(":")[0] in compose["volumes"]
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} would be open to the network"


def test_its_commands_and_settings_are_understood(compose: dict[str, Any]) -> None:
    ours = {
        name: one
        for name, one in compose["services"].items()
        if one.get("command", [""])[0] == "cloche"
    }
    assert set(ours) == {"worker", "beat", "dashboard"}
    image = dict(
        pair.split("=", 1) for line in (EXAMPLE / "Dockerfile").read_text().splitlines()
        if line.startswith("ENV ") for pair in line.split()[1:]
    )  # fmt: skip
    for service in ours.values():
        parse(cloche, service["command"][1:])
        environ = {key: str(value) for key, value in {**image, **service["environment"]}.items()}
        settings = load(environ=environ, directory=EXAMPLE, guest=False).settings  # create_app()
        assert settings.app == "roadmap.workflow"
        assert settings.broker.url is not None
        assert settings.database.url is not None
    assert settings.dashboard.token is not None
