"""Ports: real sockets on loopback."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from cloche.errors import PortTakenError, ProcessError
from cloche.process import port


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_taken_port_names_its_owner_and_the_next_free_one(taken: int) -> None:
    with pytest.raises(PortTakenError) as caught:
        port.claim("127.0.0.1", taken)
    error = caught.value
    assert (error.port, error.exit_code) == (taken, 4)
    assert error.free > taken
    assert f"pid {os.getpid()}" in str(error)
    assert str(error.free) in error.fix
    port.claim("127.0.0.1", error.free)


def test_a_free_port_is_claimed_and_stays_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    port.claim("127.0.0.1", free)
    port.claim("localhost", free)
    assert port.owner(free) is None


def test_an_address_of_another_machine_is_not_called_taken() -> None:
    with pytest.raises(ProcessError, match=r"cannot listen on 192\.0\.2\.1") as caught:
        port.claim("192.0.2.1", 8000)
    assert not isinstance(caught.value, PortTakenError)


def test_a_name_nobody_knows_is_not_called_taken() -> None:
    with pytest.raises(ProcessError, match="cannot listen"):
        port.claim("no-such-host.invalid", 8000)


def test_the_port_offered_instead_is_not_one_that_is_spoken_for(taken: int) -> None:
    first = port.next_free("127.0.0.1", taken)
    with pytest.raises(PortTakenError) as caught:
        port.claim("127.0.0.1", taken, spare={first})
    assert caught.value.free > first
