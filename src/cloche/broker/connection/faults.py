"""What went wrong with a broker, in plain language, with what mends it.

Error replies are told apart by their first word (Redis protocol: "Simple errors";
server.c ``createSharedObjects``), everything else by exception type and errno.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Callable, Iterator

import redis

from cloche.broker.connection.address import REDIS, Address
from cloche.errors import BrokerError, BrokerFault

#: Faults that asking again cannot mend.
FINAL = frozenset(
    {
        BrokerFault.AUTH,
        BrokerFault.BAD_URL,
        BrokerFault.WRONG_DB,
        BrokerFault.NOT_A_BROKER,
        BrokerFault.TLS,
        BrokerFault.PERMISSION,
    }
)

_EMBEDDED = "unset the broker URL and Cloche runs one itself"


def explain(error: BaseException, at: Address) -> BrokerError:
    """The fault behind what a Redis client (or kombu) raised while talking to ``at``."""
    links = list(_chain(error))
    for recognise in _RECOGNISERS:
        for link in links:
            found = recognise(link, at)
            if found is not None:
                return found
    return BrokerError(
        f"The broker at {at.place} cannot be used",
        fault=BrokerFault.OTHER,
        why=_text(error),
        fix="the server's own log may say more",
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _text(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _tls(error: BaseException, at: Address) -> BrokerError | None:
    if isinstance(error, ssl.SSLCertVerificationError):
        return BrokerError(
            f"The certificate of the broker at {at.place} is not trusted",
            fault=BrokerFault.TLS,
            why=error.verify_message or _text(error),
            fix="name its authority in the URL: ?ssl_ca_certs=/path/to/ca.pem "
            "(or, without any protection, ?ssl_cert_reqs=none)",
        )
    if isinstance(error, ssl.SSLError):
        return BrokerError(
            f"No TLS connection to the broker at {at.place}",
            fault=BrokerFault.TLS,
            why=_text(error),
            fix=f"see what it offers: openssl s_client -connect {at.place}",
        )
    return None


def tls_wanted(at: Address) -> BrokerError:
    """The URL says ``redis://`` and the port speaks TLS."""
    return BrokerError(
        f"The broker at {at.place} expects TLS",
        fault=BrokerFault.TLS,
        why="it answers a TLS handshake and no plain command",
        fix="write rediss:// instead of redis:// in the broker URL",
    )


def tls_refused(at: Address) -> BrokerError:
    """The URL says ``rediss://`` and the port speaks plain Redis."""
    return BrokerError(
        f"The broker at {at.place} does not speak TLS",
        fault=BrokerFault.TLS,
        why="it answers plain commands and no TLS handshake",
        fix="write redis:// instead of rediss://, or give the server tls-port and a certificate",
    )


def _dns(error: BaseException, at: Address) -> BrokerError | None:
    if not isinstance(error, socket.gaierror):
        return None
    return BrokerError(
        f"The broker's host name {at.host!r} has no address",
        fault=BrokerFault.DNS,
        why=error.strerror or _text(error),
        fix=f"check the spelling in the broker URL, then: getent hosts {at.host}",
    )


def _reply(error: BaseException, at: Address) -> BrokerError | None:
    if not isinstance(error, redis.RedisError):
        return None
    code = getattr(error, "status_code", None) or ""
    text = f"{code} {error}".strip()
    for beginning, (fault, what, fix) in _REPLIES.items():
        if text.startswith(beginning):
            return BrokerError(what.format(at=at), fault=fault, why=text, fix=fix.format(at=at))
    return None


_AUTH = BrokerFault.AUTH
_USER_FIX = "correct user and password in the broker URL: redis://USER:PASSWORD@{at.place}/{at.db}"
_CLUSTER = (
    BrokerFault.OTHER,
    "The server at {at.place} is part of a Redis Cluster, which Celery cannot use",
    "use a single server (with replicas and Sentinel if need be)",
)
_REPLICA = (
    BrokerFault.READ_ONLY,
    "The server at {at.place} is a read-only replica",
    (
        "point the broker URL at its primary: redis-cli INFO replication names it (master_host); "
        "or make this one the primary: REPLICAOF NO ONE"
    ),
)
_REPLIES: dict[str, tuple[BrokerFault, str, str]] = {
    "WRONGPASS": (_AUTH, "The broker at {at.place} refused the user or password", _USER_FIX),
    "ERR invalid password": (_AUTH, "The broker at {at.place} refused the password", _USER_FIX),
    "NOAUTH": (
        _AUTH,
        "The broker at {at.place} asks for a password and the URL has none",
        "write it into the broker URL: redis://:PASSWORD@{at.place}/{at.db}",
    ),
    "ERR AUTH": (
        _AUTH,
        "The broker URL has a password and the server at {at.place} wants none",
        "leave the password out of the broker URL, or set requirepass on the server",
    ),
    "DENIED": (
        BrokerFault.PERMISSION,
        "The broker at {at.place} accepts only clients of its own machine (protected mode)",
        "give the server a password (requirepass) and write it into the broker URL",
    ),
    "LOADING": (
        BrokerFault.LOADING,
        "The broker at {at.place} is still loading its data",
        "wait; it answers when it is done",
    ),
    "READONLY": _REPLICA,
    "MASTERDOWN": _REPLICA,
    "NOREPLICAS": (
        BrokerFault.READ_ONLY,
        "The broker at {at.place} takes no writes: too few of its replicas are connected",
        "bring the replicas back or lower min-replicas-to-write",
    ),
    "ERR DB index": (
        BrokerFault.WRONG_DB,
        "The broker at {at.place} has no database {at.db}",
        (
            "use a lower number at the end of the broker URL (0 always exists), "
            "or raise `databases` in the server's configuration"
        ),
    ),
    "ERR SELECT is not allowed": _CLUSTER,
    "MOVED": _CLUSTER,
    "CROSSSLOT": _CLUSTER,
    "CLUSTERDOWN": _CLUSTER,
    "NOPERM": (
        BrokerFault.PERMISSION,
        "The broker at {at.place} does not let this user do what Celery needs",
        "allow it: ACL SETUSER NAME on ~* &* +@all -@admin",
    ),
    "OOM": (
        BrokerFault.FULL,
        "The broker at {at.place} is full: it reached its maxmemory",
        "raise it (CONFIG SET maxmemory 1gb) or free memory: redis-cli --bigkeys names the largest",
    ),
    "MISCONF": (
        BrokerFault.FULL,
        "The broker at {at.place} takes no writes because it cannot save its data to disk",
        (
            "free disk space or make its data directory writable: "
            "redis-cli CONFIG GET dir names it; the server's log has the reason"
        ),
    ),
    "ERR max number of clients": (
        BrokerFault.FULL,
        "The broker at {at.place} accepts no more connections",
        "close idle clients or raise it: CONFIG SET maxclients 10000",
    ),
}


def replica(at: Address) -> BrokerError:
    """The server says it is a replica, whatever it lets us write."""
    fault, what, fix = _REPLICA
    return BrokerError(
        what.format(at=at), fault=fault, why="what is written to it is lost", fix=fix
    )


def cluster(at: Address) -> BrokerError:
    """The server says it runs in cluster mode."""
    fault, what, fix = _CLUSTER
    return BrokerError(what.format(at=at), fault=fault, why="cluster_enabled is 1", fix=fix)


def _os(error: BaseException, at: Address) -> BrokerError | None:
    if not isinstance(error, OSError):
        return None
    if error.errno in (errno.ECONNREFUSED, errno.ENOENT):
        return BrokerError(
            f"Nothing listens at {at.place}",
            fault=BrokerFault.REFUSED,
            why="no such socket file" if error.errno == errno.ENOENT else "connection refused",
            fix=_start_it(at),
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return BrokerError(
            f"This user may not connect to {at.place}",
            fault=BrokerFault.PERMISSION,
            why=_text(error),
            fix="join the group of the socket file, or widen unixsocketperm on the server",
        )
    if error.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN):
        return _unreachable(at, _text(error))
    return None


def _start_it(at: Address) -> str:
    if at.local:
        service = "redis-server" if at.product == REDIS else f"{at.product}-server"
        return f"start it (systemctl start {service}), or {_EMBEDDED}"
    return (
        f"check that the server runs and listens on that address (bind, port {at.port}) "
        f"and that no firewall refuses it; or {_EMBEDDED}"
    )


def _timeout(error: BaseException, at: Address) -> BrokerError | None:
    if not isinstance(error, redis.TimeoutError | TimeoutError):
        return None
    return _unreachable(at, _text(error))


def _unreachable(at: Address, why: str) -> BrokerError:
    return BrokerError(
        f"The broker at {at.place} did not answer in time",
        fault=BrokerFault.TIMEOUT,
        why=why,
        fix="check host, port and firewall; a slow network needs a higher "
        "broker.connect_timeout or broker.socket_timeout",
    )


def _not_a_broker(error: BaseException, at: Address) -> BrokerError | None:
    if not isinstance(error, redis.InvalidResponse):
        return None
    return BrokerError(
        f"What listens at {at.place} is not a {at.product} server",
        fault=BrokerFault.NOT_A_BROKER,
        why=_text(error),
        fix=f"check host and port in the broker URL; who listens: ss -ltnp 'sport = :{at.port}'",
    )


#: First match wins; the order goes from the particular to the general.
_RECOGNISERS: tuple[Callable[[BaseException, Address], BrokerError | None], ...] = (
    _tls,
    _dns,
    _reply,
    _os,
    _timeout,
    _not_a_broker,
)
