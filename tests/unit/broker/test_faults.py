"""Faults that no server here can be made to show: the texts are the servers' own."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import redis
from redis._parsers.base import BaseParser

from cloche.broker.connection.address import parse_address
from cloche.broker.connection.faults import explain
from cloche.broker.embedded.server import ServerProgram, Version
from cloche.broker.embedded.startup_diagnosis import startup_diagnosis
from cloche.errors import BrokerError, BrokerFault

SERVER = ServerProgram(Path("/opt/valkey-server"), Version("valkey", (9, 1, 2)), "PATH")
DATA = Path("data")
AT = parse_address("redis://:s3cret@broker.example:6379/2")


@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        ("DENIED Redis is running in protected mode because …", BrokerFault.PERMISSION),
        ("NOREPLICAS Not enough good replicas to write.", BrokerFault.READ_ONLY),
        ("MASTERDOWN Link with MASTER is down", BrokerFault.READ_ONLY),
        ("MISCONF Errors writing to the AOF file: No space left on device", BrokerFault.FULL),
        ("ERR AUTH <password> called without any password configured", BrokerFault.AUTH),
        ("ERR invalid password", BrokerFault.AUTH),
        ("WRONGPASS invalid username-password pair or user is disabled.", BrokerFault.AUTH),
        ("ERR SELECT is not allowed in cluster mode", BrokerFault.OTHER),
        ("ERR something new", BrokerFault.OTHER),
    ],
)
def test_an_error_reply_is_a_fault(reply: str, fault: BrokerFault) -> None:
    found = explain(BaseParser.parse_error(reply), AT)  # type: ignore[no-untyped-call]
    assert found.fault is fault
    assert "broker.example:6379" in found.what
    assert "s3cret" not in str(found)


def test_an_unreachable_network_is_a_timeout() -> None:
    error = redis.ConnectionError("Error 113 connecting")
    error.__cause__ = OSError(errno.EHOSTUNREACH, "No route to host")
    assert explain(error, AT).fault is BrokerFault.TIMEOUT


def test_a_socket_of_another_user_is_a_permission_fault() -> None:
    assert explain(PermissionError(errno.EACCES, "denied"), AT).fault is BrokerFault.PERMISSION


def test_a_remote_server_is_not_told_to_be_started_here() -> None:
    found = explain(ConnectionRefusedError(errno.ECONNREFUSED, "refused"), AT)
    assert found.fault is BrokerFault.REFUSED
    assert "systemctl" not in found.fix
    assert "firewall" in found.fix


@pytest.mark.parametrize(
    ("line", "fault", "what"),
    [
        ("# Can't handle RDB format version 80", BrokerFault.OTHER, "cannot read the data"),
        ("# Error writing to AOF: No space left on device", BrokerFault.FULL, "cannot keep"),
        ("# Can't open the append-only file: Permission denied", BrokerFault.PERMISSION, "keep"),
        ("# Something new", BrokerFault.OTHER, "ended"),
    ],
)
def test_a_servers_last_words_are_explained(line: str, fault: BrokerFault, what: str) -> None:
    lines = [f"line {number}" for number in range(20)] + [line]
    found = startup_diagnosis(lines, SERVER, DATA, 6379)
    assert isinstance(found, BrokerError)
    assert found.fault is fault
    assert what in found.what
    assert line in found.why
    assert "line 1\n" not in found.why


def test_a_damaged_base_file_is_not_cut_but_kept_aside() -> None:
    words = "# Unexpected end of file reading the append only file appendonly.aof.1.base.rdb"
    found = startup_diagnosis([words], SERVER, DATA, 6379)
    assert "check-aof" not in found.fix
    assert "cp -a" in found.fix
