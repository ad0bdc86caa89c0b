"""Which addresses and URLs the guard lets through."""

from __future__ import annotations

import asyncio
from ipaddress import ip_address

import pytest

from cloche.errors import EgressRefusedError, SettingsError
from cloche.tasks.egress import EgressGuard

GUARD = EgressGuard(setting="download.allow_networks")


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0",
        "10.1.2.3",
        "100.64.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "172.16.0.1",
        "192.0.0.1",
        "192.0.2.1",
        "192.168.1.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::808:808",
        "2002:7f00:1::",
        "2001:0:7f00:1::1",
        "2607:f8b0::5efe:10.0.0.1",
        "2001:db8::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
    ],
)
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    with pytest.raises(EgressRefusedError) as caught:
        GUARD.check_address("name.example", ip_address(address))
    assert "name.example" in caught.value.what
    assert "download.allow_networks" in caught.value.fix


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"]
)
def test_public_addresses_pass(address: str) -> None:
    GUARD.check_address("name.example", ip_address(address))


def test_an_allowed_network_passes_in_each_of_its_writings_and_no_other() -> None:
    guard = EgressGuard(["10.0.0.0/8"], setting="s")
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a01:203"):
        guard.check_address("h", ip_address(address))
    with pytest.raises(EgressRefusedError):
        guard.check_address("h", ip_address("127.0.0.1"))


def test_a_network_that_is_none_is_a_settings_error() -> None:
    with pytest.raises(SettingsError, match="s contains 'lan'"):
        EgressGuard(["lan"], setting="s")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://example.org/x", "scheme"),
        ("file:///etc/passwd", "scheme"),
        ("example.org/x", "scheme"),
        ("http://", "names no host"),
        ("http:///x", "names no host"),
        ("http://user@example.org/", "user name or password"),
        ("http://user:secret@example.org/", "user name or password"),
        ("http://[::1]/", "loopback"),
        ("http://[::1", "Not a URL"),
        ("http://169.254.169.254/", "link-local"),
        ("http://example.org:99999/", "names no host and port"),
        ("http://exa mple.org/", "names no host and port"),
        (f"http://example.org/{'x' * 9000}", "too long"),
    ],
)
def test_urls_that_cannot_be_fetched_are_refused_with_the_reason(url: str, reason: str) -> None:
    with pytest.raises(EgressRefusedError) as caught:
        GUARD.check_url(url)
    assert reason in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "127.1", "017700000001"])
def test_other_writings_of_loopback_are_seen_through(host: str) -> None:
    with pytest.raises(EgressRefusedError, match="loopback"):
        asyncio.run(GUARD.addresses(host, 80))
