"""The way out: which URLs, addresses and certificates tasks may trust (SSRF guard).

A name is resolved once, every address of it is checked, and the connection goes to an
address that was checked: a name that answers differently the second time (DNS rebinding)
gains nothing. Sources: the IANA special-purpose registries (RFC 6890) as `ipaddress` knows
them, RFC 6052 (NAT64), RFC 3056 (6to4), RFC 4380 (Teredo), RFC 5214 (ISATAP).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from pathlib import Path

import certifi
import httpx2

from cloche.errors import EgressRefusedError, SettingsError

Address = IPv4Address | IPv6Address

Network = IPv4Network | IPv6Network

#: (host, port) to the addresses of the host, in the order they should be tried.
Resolver = Callable[[str, int], Awaitable[Sequence[str]]]

#: IPv6 addresses given out so far; all others lead nowhere public.
_GLOBAL_UNICAST = IPv6Network("2000::/3")

_NAT64 = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))

_V4_COMPATIBLE = IPv6Network("::/96")

#: Middle of an ISATAP interface identifier: 0000:5efe or 0200:5efe before the IPv4 address.
_ISATAP = (0x00005EFE, 0x02005EFE)

_MAX_URL = 8192


def trusting(ca_file: Path | None) -> ssl.SSLContext:
    """A client's TLS context; raises `SettingsError` when ``ca_file`` cannot be used."""
    context = ssl.create_default_context(cafile=certifi.where())
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except OSError as error:  # ssl.SSLError is one
            raise SettingsError(
                f"download.ca_file cannot be used: {ca_file}.",
                why=str(error),
                fix="It must be a file of certificates in PEM form that this process may read.",
            ) from error
    return context


def bundle(ca_file: Path) -> str:
    """All of them in PEM form, for programs that read one file; raises as `trusting` does."""
    return "".join(map(ssl.DER_cert_to_PEM_cert, trusting(ca_file).get_ca_certs(True)))


async def resolve(host: str, port: int) -> list[str]:
    """The addresses the system's resolver knows, without duplicates."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class EgressGuard:
    """Says yes to public addresses and to the networks of ``allow``, no to all others.

    ``setting`` is the setting that fills ``allow``; refusals name it. ``resolver`` is
    replaced in tests. All methods raise `EgressRefusedError`.
    """

    def __init__(
        self, allow: Iterable[str] = (), *, setting: str, resolver: Resolver = resolve
    ) -> None:
        self._allowed = tuple(_network(text, setting) for text in allow)
        self._setting = setting
        self._resolve = resolver

    def check_url(self, url: str) -> httpx2.URL:
        """What can be said without asking the resolver: scheme, credentials, literal address."""
        try:
            parsed = httpx2.URL(url)
        except (httpx2.InvalidURL, TypeError) as error:
            raise EgressRefusedError(f"Not a URL: {url[:200]!r}.", why=str(error)) from error
        if len(url) > _MAX_URL:
            raise EgressRefusedError(
                "The URL is too long.", why=f"It has {len(url)} characters, of at most {_MAX_URL}."
            )
        if parsed.scheme not in ("http", "https"):
            raise EgressRefusedError(
                f"{url[:200]!r} cannot be fetched.",
                why=f"Its scheme is {parsed.scheme!r}; only http and https are.",
                fix="Write the URL with https:// or http:// in front.",
            )
        if parsed.userinfo:
            raise EgressRefusedError(
                f"The URL of {parsed.host} carries a user name or password.",
                why="It would be kept in the database, in logs and in the broker.",
                fix="Use a URL without credentials, for example a signed one.",
            )
        if not parsed.host or not 0 < (parsed.port or 80) < 65536 or "%20" in parsed.host:
            raise EgressRefusedError(f"The URL {url[:200]!r} names no host and port.")
        literal = _literal(parsed.host)
        if literal is not None:
            self.check_address(parsed.host, literal)
        return parsed

    def check_address(self, host: str, address: Address) -> None:
        """Refuse an address of ``host`` that is neither public nor allowed."""
        for candidate in _meanings(address):
            if any(candidate in network for network in self._allowed):
                continue
            reason = _not_public(candidate)
            if reason:
                seen = str(address) if candidate == address else f"{address} ({candidate})"
                raise EgressRefusedError(
                    f"{host} must not be contacted: its address {seen} is {reason}.",
                    why="Requests from tasks reach services that outsiders must not reach.",
                    fix=f"If you mean it, add {candidate} or its network to {self._setting}.",
                )

    async def addresses(self, host: str, port: int) -> list[Address]:
        """All addresses of a host, every one of them checked.

        Raises `OSError` (`socket.gaierror`) when the name cannot be resolved.
        """
        literal = _literal(host)
        texts = [str(literal)] if literal else await self._resolve(host, port)
        found = [ip_address(text) for text in texts]
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, f"{host} has no address")
        for address in found:
            self.check_address(host, address)
        return found


class GuardedTransport(httpx2.AsyncBaseTransport):
    """Sends each request to a checked address of its host, over a connection of its own.

    TLS still names and verifies the host; redirects come through here again.
    """

    def __init__(self, guard: EgressGuard, *, ca_file: Path | None = None) -> None:
        self._guard = guard
        # A kept connection is found again by address; it might be another host's.
        limits = httpx2.Limits(max_keepalive_connections=0)
        self._inner = httpx2.AsyncHTTPTransport(
            verify=trusting(ca_file), trust_env=False, limits=limits, http2=False
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Resolve, check, pin; the next address is tried where one does not answer."""
        url = self._guard.check_url(str(request.url))
        addresses = await self._addresses(request, url)
        for address in addresses[:-1]:
            try:
                return await self._send(request, url, address)
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                continue
        return await self._send(request, url, addresses[-1])

    async def _addresses(self, request: httpx2.Request, url: httpx2.URL) -> list[Address]:
        limit = request.extensions.get("timeout", {}).get("connect")
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            async with asyncio.timeout(limit):
                return await self._guard.addresses(ascii_host(url), port)
        except TimeoutError as error:
            raise httpx2.ConnectTimeout(f"resolving {url.host} took too long") from error
        except OSError as error:
            raise httpx2.ConnectError(f"{url.host} cannot be resolved: {error}") from error

    async def _send(
        self, request: httpx2.Request, url: httpx2.URL, address: Address
    ) -> httpx2.Response:
        pinned = httpx2.Request(
            request.method,
            url.copy_with(host=str(address)),
            headers=request.headers,  # Host among them, as the original URL has it
            stream=request.stream,
            extensions={**request.extensions, "sni_hostname": ascii_host(url)},
        )
        return await self._inner.handle_async_request(pinned)

    async def aclose(self) -> None:
        await self._inner.aclose()


def guarded_client(
    guard: EgressGuard, *, timeout: httpx2.Timeout, user_agent: str, ca_file: Path | None = None
) -> httpx2.AsyncClient:
    """An HTTP client whose every request passes the guard.

    It follows no redirects by itself, knows no proxies and reads no ``.netrc``. The
    authorities in ``ca_file`` are trusted besides the public ones; raises `SettingsError`
    when it cannot be read.
    """
    return httpx2.AsyncClient(
        transport=GuardedTransport(guard, ca_file=ca_file),
        timeout=timeout,
        headers={"User-Agent": user_agent},
        trust_env=False,
        follow_redirects=False,
    )


def ascii_host(url: httpx2.URL) -> str:
    """The host as DNS and TLS know it.

    `httpx2.URL.host` is the readable form, which Python's resolver and ssl module would
    encode by IDNA 2003: another name than the one in the Host header (straße, strasse).
    """
    return url.raw_host.decode("ascii")


def _network(text: str, setting: str) -> Network:
    try:
        return ip_network(text, strict=False)
    except ValueError as error:
        raise SettingsError(
            f"{setting} contains {text!r}, which is no network.",
            why=str(error),
            fix="Write networks as 10.0.0.0/8, 192.168.1.7 or fd00::/8.",
        ) from error


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _meanings(address: Address) -> list[Address]:
    """The address and the IPv4 addresses that gateways would make of it."""
    if isinstance(address, IPv4Address):
        return [address]
    if address.ipv4_mapped:
        return [address.ipv4_mapped]
    last = IPv4Address(int(address) & 0xFFFFFFFF)
    if address in _NAT64[0]:
        return [last]
    if address in _V4_COMPATIBLE and int(address) > 1:
        return [address, last]
    found: list[Address] = [address]
    if address.sixtofour:
        found.append(address.sixtofour)
    if address.teredo:
        found += address.teredo
    if (int(address) >> 32) & 0xFFFFFFFF in _ISATAP:
        found.append(last)
    return found


def _not_public(address: Address) -> str:
    """Why an address is not a public one; empty if it is."""
    for attribute, reason in (
        ("is_unspecified", "unspecified"),
        ("is_loopback", "loopback: this machine itself"),
        ("is_link_local", "link-local: among them are cloud metadata services"),
        ("is_multicast", "multicast"),
        ("is_reserved", "reserved"),
        ("is_private", "private"),
    ):
        if getattr(address, attribute):
            return reason
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return "not a public IPv6 address"
    return "" if address.is_global else "not public (shared or special-purpose)"
