"""The application and settings of one process, agreed with every other process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from celery import Celery
from pydantic import SecretStr

from cloche.app import harden, load_app, restore
from cloche.app.loading import configure
from cloche.broker.connection.choice import LOCAL_PORT, find_celerys_default, find_local, look_local
from cloche.broker.embedded.broker import EmbeddedBroker
from cloche.errors import BrokerError, BrokerFault
from cloche.settings import (
    Origin,
    OriginCandidate,
    Resolved,
    Settings,
    mask_url,
    reload,
    set_by_app,
    to_environ,
)
from cloche.settings.celery_keys import REDIS_SCHEMES, plain_url, results_url, scheme_of
from cloche.settings.of_app import is_own


@dataclass(frozen=True)
class Environment:
    """A hardened application and the settings it runs with.

    ``own_broker`` is what the application says of its broker, if it says anything.
    """

    app: Celery
    resolved: Resolved
    own_broker: str | None = None

    @property
    def settings(self) -> Settings:
        return self.resolved.settings


def load_environment(resolved: Resolved) -> Environment:
    """The application ``-A`` names and all settings, its own values included; not hardened yet.

    Raises AppError and SettingsError.
    """
    app = load_app(resolved.settings.app)
    configure(app)
    restore(app)  # it may have hardened itself, with what it knew then
    own = _addresses_of(app)[0]
    return Environment(app, _with_celerys_default(app, _again(app, resolved), own), own)


def _with_celerys_default(app: Celery, resolved: Resolved, own: str | None) -> Resolved:
    """In a project whose application names no broker, the one that Celery takes then, if it
    answers: its producers without Cloche send there."""
    settings = resolved.settings
    named = own or settings.broker.url or settings.broker.embedded != "auto"
    if named or is_own(app) or running_embedded(settings):
        return resolved
    url = find_celerys_default()
    if url is None:
        return resolved
    found = OriginCandidate(SecretStr(url), Origin("cli", "Celery's own default"))
    return _again(app, resolved, {"broker.url": found})


def join(resolved: Resolved, *, port: int = LOCAL_PORT) -> Environment:
    """What ``cloche worker``, ``beat``, ``service`` and ``dashboard`` run with.

    The broker is the configured one, else the embedded one of a ``cloche up`` in the same
    run directory, else the local server at ``port`` that a ``cloche up`` would take; with
    ``broker.embedded`` "always" the embedded one in any case. Raises AppError, SettingsError,
    and BrokerError where there is none.
    """
    environment = load_environment(resolved)
    return agree(environment, _configured(environment.settings) or _local(environment, port))


def known_broker(settings: Settings) -> str | None:
    """The broker a stack would use that runs now: configured, embedded, or local."""
    local = find_local() if settings.broker.embedded == "auto" else None
    return _configured(settings) or local


def _configured(settings: Settings) -> str | None:
    url = settings.broker.url
    if url is not None and settings.broker.embedded != "always":
        return url.get_secret_value()
    return running_embedded(settings)


def _local(environment: Environment, port: int) -> str:
    settings = environment.settings
    facts, objection = None, "broker.embedded is 'always'"
    if settings.broker.embedded != "always":
        facts, objection = look_local(port=port)
    if facts is None:
        raise BrokerError(
            f"no broker is configured, no cloche up runs one in {settings.run_dir.absolute()}, "
            f"and {objection}",
            fault=BrokerFault.REFUSED,
            fix="run `cloche up`, or set REDIS_URL or broker.url",
        )
    return facts.url


def agree(
    environment: Environment, broker_url: str, *, where: str = "the broker found here"
) -> Environment:
    """Take ``broker_url``, whatever the application says, and harden.

    An application that names another broker in its code must not part from the rest. ``where``
    says where the URL is from if no source of settings names it.
    """
    app, before = environment.app, environment.resolved
    addresses = {}
    if plain_url(broker_url) != plain_url(_addresses_of(app)[0] or ""):
        addresses["broker_url"] = broker_url
    results = _results(environment, broker_url)
    if results is not None:
        addresses["result_backend"] = results
    url, resolved = before.settings.broker.url, before
    if url is None or plain_url(url.get_secret_value()) != plain_url(broker_url):
        chosen = OriginCandidate(SecretStr(broker_url), Origin("cli", where))
        resolved = _again(app, before, {"broker.url": chosen})
    harden(app, resolved.settings, addresses=addresses)
    return Environment(app, resolved, environment.own_broker)


def child_environ(resolved: Resolved) -> dict[str, str]:
    """Variables that hand the command line's settings, and a broker that no source names, to
    another process. None that the project's own code may read."""
    return to_environ(resolved.overrides())


def differs(environment: Environment) -> str:
    """A sentence where the broker in use is another one than the application names; or none."""
    resolved, own = environment.resolved, environment.own_broker
    url = resolved.settings.broker.url
    if url is None or not own or plain_url(url.get_secret_value()) == plain_url(own):
        return ""
    return (
        f"the application itself names the broker {mask_url(plain_url(own))}: what it sends "
        f"without Cloche goes there, not to the one of {resolved.origin('broker.url')}"
    )


def _again(
    app: Celery, resolved: Resolved, cli: Mapping[str, OriginCandidate] | None = None
) -> Resolved:
    """All sources once more, with what the application, not hardened, says itself."""
    return reload(resolved, cli=cli, app_conf=set_by_app(app.conf), guest=not is_own(app))


def _results(environment: Environment, broker_url: str) -> str | None:
    """Where results go whatever the application says; None: where it says.

    Somebody decided it; or they are on the application's broker, and that is not in use.
    """
    resolved, (broker, results) = environment.resolved, _addresses_of(environment.app)
    if resolved.decided("results.url"):
        return results_url(resolved.settings)
    together = results and broker and _server(results) == _server(broker)
    if (
        resolved.settings.broker.embedded == "always"
        and together
        and scheme_of(results) in REDIS_SCHEMES
    ):
        return broker_url
    return None


def _addresses_of(app: Celery) -> tuple[str | None, str | None]:
    """Broker and results of an application that is not hardened, as Celery reads them."""
    broker, results = app.conf.broker_read_url, app.conf.result_backend
    if isinstance(broker, list):
        broker = ";".join(broker)
    return broker, results if isinstance(results, str) else None


def _server(url: str) -> str:
    return urlsplit(plain_url(url)).netloc


def running_embedded(settings: Settings) -> str | None:
    """The URL of the embedded broker that runs in this run directory now, if one does."""
    return EmbeddedBroker(settings.run_dir / "broker").running_url()
