"""Which broker to use: the configured one, a running local one, or one of our own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from kombu import Connection

from cloche.broker.connection.probe import probe
from cloche.broker.embedded.broker import EmbeddedBroker
from cloche.broker.embedded.server import Version
from cloche.errors import BrokerError, BrokerFault
from cloche.records import BrokerFacts
from cloche.settings import mask_url
from cloche.settings.model import BrokerSettings

#: The server that other programs and tutorials start.
LOCAL_HOST, LOCAL_PORT = "127.0.0.1", 6379
#: What Celery connects to where an application names no broker (kombu.Connection).
CELERYS_DEFAULT = "amqp://guest:guest@localhost:5672//"
#: A local server answers within milliseconds or is not worth having.
_LOCAL_TIMEOUT = 0.5


@dataclass(frozen=True, slots=True)
class Choice:
    """The broker to use and why. Exactly one of ``url`` and ``embedded`` tells where it is.

    ``facts`` are known of a local server only: a configured one has not been asked yet.
    ``notes`` are sentences worth telling: what was passed over, what to be aware of.
    """

    kind: Literal["configured", "local", "embedded"]
    url: str | None = field(default=None, repr=False)
    facts: BrokerFacts | None = None
    embedded: EmbeddedBroker | None = None
    notes: tuple[str, ...] = ()

    @property
    def survives(self) -> bool | None:
        """Whether messages survive a stop of the broker; None where it is not known."""
        if self.embedded is not None:
            return self.embedded.survives
        return self.facts.persistent if self.facts is not None else None

    def describe(self) -> str:
        """One line for the banner, without secrets."""
        if self.embedded is not None:
            return f"{self.embedded.describe()}, run by {self.embedded.server.origin}"
        if self.facts is not None:
            return f"running {self.facts.server} at {self.facts.url} ({self.facts.persistence})"
        return f"configured {mask_url(self.url or '')}"


def choose(
    settings: BrokerSettings, run_dir: Path, *, host: str = LOCAL_HOST, port: int = LOCAL_PORT
) -> Choice:
    """Configured URL, else a running local server at ``host:port``, else an embedded broker.

    ``settings.embedded`` "always" takes the embedded one in any case, "never" in none.
    Raises BrokerError where nothing is left.
    """
    url = settings.url.get_secret_value() if settings.url is not None else None
    if settings.embedded == "always":
        passed = (f"{mask_url(url)} is not used: broker.embedded is 'always'",) if url else ()
        return _embedded(settings, run_dir, passed)
    if url:
        return Choice("configured", url=url)
    facts, objection = look_local(host, port)
    if facts is not None:
        return Choice("local", url=facts.url, facts=facts, notes=_cautions(facts))
    if settings.embedded == "never":
        raise BrokerError(
            "There is no broker to use",
            fault=BrokerFault.REFUSED,
            why=f"no URL is set, broker.embedded is 'never', and {objection}",
            fix="set broker.url (or REDIS_URL), or set broker.embedded to 'auto'",
        )
    return _embedded(settings, run_dir, (objection,))


def find_local(host: str = LOCAL_HOST, port: int = LOCAL_PORT) -> str | None:
    """The URL of a usable server that answers at ``host:port`` without a password."""
    facts, _ = look_local(host, port)
    return facts.url if facts is not None else None


def find_celerys_default() -> str | None:
    """The URL of the broker that Celery itself takes where none is named, if it answers there."""
    connection = Connection(CELERYS_DEFAULT, connect_timeout=_LOCAL_TIMEOUT)
    transport = connection.transport
    try:
        transport.close_connection(transport.establish_connection())
    except (OSError, *transport.connection_errors, *transport.channel_errors):
        return None
    return CELERYS_DEFAULT


def look_local(host: str = LOCAL_HOST, port: int = LOCAL_PORT) -> tuple[BrokerFacts | None, str]:
    """What is known of a usable local server, or None and why there is none."""
    url = f"redis://{host}:{port}/0"
    try:
        facts = probe(url, connect_timeout=_LOCAL_TIMEOUT, socket_timeout=_LOCAL_TIMEOUT)
    except BrokerError as error:
        if error.fault is BrokerFault.REFUSED:
            return None, f"nothing listens at {host}:{port}"
        return None, f"the server at {host}:{port} was passed over: {error.what}"
    version = Version.parse(facts.server)
    if version is not None and not version.recent_enough:
        return None, f"the server at {host}:{port} was passed over: {version} is too old"
    return facts, ""


def _cautions(facts: BrokerFacts) -> tuple[str, ...]:
    """What a server that others set up may do to our messages."""
    cautions = []
    if facts.persistent is False:
        cautions.append(f"the server at {facts.url} loses all messages when it stops")
    if facts.policy not in ("", "noeviction"):
        cautions.append(
            f"the server at {facts.url} may drop messages when its memory is full "
            f"(maxmemory-policy {facts.policy}; noeviction would refuse new ones instead)"
        )
    return tuple(cautions)


def _embedded(settings: BrokerSettings, run_dir: Path, notes: tuple[str, ...]) -> Choice:
    embedded = EmbeddedBroker(run_dir / "broker", fsync=settings.fsync, port=settings.port)
    return Choice("embedded", embedded=embedded, notes=notes + embedded.server.passed_over)
