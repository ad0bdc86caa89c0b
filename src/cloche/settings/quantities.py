"""Sizes and durations as people write them: ``200M``, ``1.5GiB``, ``90s``, ``1h``.

The same types check what a value means beyond its shape: broker schemes, time zones, networks.
"""

from __future__ import annotations

import ipaddress
import re
from datetime import timedelta
from fractions import Fraction
from typing import Annotated
from zoneinfo import ZoneInfo

from kombu.transport import TRANSPORT_ALIASES
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, StringConstraints

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", re.IGNORECASE)
_SIZE_UNITS = {"": 1, "k": 1024, "m": 1024**2, "g": 1024**3, "t": 1024**4}
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*(ms|s|m|h|d|w|)\s*")
_DURATION_UNITS = {"ms": 0.001, "": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_SCHEME = re.compile(r"([a-z][a-z0-9.-]*)(?:\+[a-z0-9+.-]+)?://", re.IGNORECASE)
#: SQLAlchemy dialects Cloche keeps its data in, spelled as people spell them -> our driver.
_DATABASES = {"postgres": "postgresql+psycopg", "postgresql": "postgresql+psycopg"}


# The messages below do not quote the value: it may be a secret in the wrong place, and whoever
# prints them adds it masked.


class Expectation(str):
    """What a value must look like, in words: for messages and the reference."""


def _bytes(value: object) -> object:
    """A size in bytes; units are powers of 1024."""
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value)
    if match is None:
        raise ValueError("this is not a size: write 4096, 200M or 1.5GiB")
    # A float would round what is beyond 2**53.
    return int(Fraction(match[1]) * _SIZE_UNITS[match[2].lower()])


def _seconds(value: object) -> object:
    """A duration in seconds; a bare number is seconds already."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    return float(match[1]) * _DURATION_UNITS[match[2]] if match else value


def age_of(text: str) -> float | None:
    """``"90m"`` -> 5400.0 seconds; None for what is no duration with a unit."""
    match = _DURATION.fullmatch(text)
    return float(match[1]) * _DURATION_UNITS[match[2]] if match and match[2] else None


def duration(seconds: float) -> str:
    """``3600.0`` -> ``1h``: the largest unit that divides it, so that it reads back the same."""
    for unit in ("w", "d", "h", "m"):
        if seconds and seconds % _DURATION_UNITS[unit] == 0:
            return f"{int(seconds // _DURATION_UNITS[unit])}{unit}"
    return f"{seconds!r}s" if seconds % 1 else f"{int(seconds)}s"


def _broker_url(url: SecretStr) -> SecretStr:
    """Refuse a scheme kombu has no transport for. The URL itself is never quoted."""
    for alternative in url.get_secret_value().split(";"):
        match = _SCHEME.match(alternative)
        if match is None:
            raise ValueError("a broker URL starts with a scheme, e.g. redis://localhost:6379/0")
        if match[1] not in TRANSPORT_ALIASES:
            raise ValueError(
                f"there is no broker for {match[1]}:// - "
                "use redis://, rediss://, sentinel://, amqp:// or amqps://"
            )
    return url


def _database_url(url: SecretStr) -> SecretStr:
    """Any spelling of PostgreSQL or SQLite, sync or async, becomes the driver we ship."""
    text = url.get_secret_value()
    match = _SCHEME.match(text)
    if match is None:
        raise ValueError("a database URL starts with a scheme, e.g. postgresql://user@host/name")
    dialect, rest = match[1].lower(), text[match.end() :]
    if dialect == "sqlite":
        return SecretStr(f"sqlite://{rest}")
    if dialect not in _DATABASES:
        return url  # another program's, perhaps: whoever needs a database refuses it
    # asyncpg says ssl=, libpq (psycopg) says sslmode= for the same thing.
    rest = re.sub(r"([?&])ssl=", r"\1sslmode=", rest)
    return SecretStr(f"{_DATABASES[dialect]}://{rest}")


def _network(text: str) -> str:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        raise ValueError(
            "this is not a network: write 127.0.0.0/8 or fd00::/8, no bits after the prefix"
        ) from None
    return text


def _timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError("this is not a time zone: write UTC or Europe/Berlin") from None
    return name


#: Characters below which a token is guessed sooner or later.
TOKEN_LENGTH = 8


def _token(token: SecretStr) -> SecretStr:
    """Blank or short: no secret at all."""
    text = token.get_secret_value().strip()
    if len(text) < TOKEN_LENGTH:
        raise ValueError(
            f"{'a blank' if not text else 'so short a'} token protects nothing: leave it out, or "
            "write a long random secret (openssl rand -hex 32)"
        )
    return SecretStr(text)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _rate(text: str) -> str:
    """A rate limit as Celery reads one: ``10``, ``10/s``, ``10/m``, ``10/h``."""
    if not re.fullmatch(r"\d+(\.\d+)?(/[smh])?", text.strip()):
        raise ValueError("this is not a rate: write 10/s, 10/m or 10/h")
    return text.strip()


Bytes = Annotated[int, BeforeValidator(_bytes), Expectation("size in bytes, e.g. 200M")]
Seconds = Annotated[
    float,
    BeforeValidator(_seconds),
    Field(ge=0, allow_inf_nan=False),
    Expectation("seconds, e.g. 90s"),
]
Age = Annotated[
    timedelta, BeforeValidator(_seconds), Field(ge=timedelta(0)), Expectation("duration, e.g. 1h")
]
Port = Annotated[int, Field(ge=1, le=65535), Expectation("port")]
Token = Annotated[SecretStr, AfterValidator(_token), Expectation("secret of 8 characters and more")]
Rate = Annotated[str, AfterValidator(_rate), Expectation("rate, e.g. 10/m")]
BrokerUrl = Annotated[SecretStr, AfterValidator(_broker_url), Expectation("URL")]
ResultUrl = Annotated[SecretStr, Expectation("URL or name of a result backend")]
DatabaseUrl = Annotated[SecretStr, AfterValidator(_database_url), Expectation("URL")]
Network = Annotated[str, AfterValidator(_network), Expectation("network")]
TimeZone = Annotated[str, AfterValidator(_timezone), Expectation("time zone")]
#: Names become parts of dotted keys, variables and node names.
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
