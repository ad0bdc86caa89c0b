"""Smart start: a broker that was asked before anything depends on it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from cloche.backoff import Backoff
from cloche.broker.connection.choice import Choice, choose
from cloche.broker.connection.probe import probe_with_retries
from cloche.broker.embedded.broker import EmbeddedBroker
from cloche.errors import BrokerError
from cloche.process.interrupt import Interrupt
from cloche.process.spec import ProcessSpec
from cloche.settings import Settings
from cloche.settings.celery_keys import plain_url
from cloche.settings.model import BrokerSettings

#: What a person on a terminal may answer when the broker cannot be used.
Answer = Literal["retry", "embedded", "quit"]
Ask = Callable[[BrokerError], Answer]
Say = Callable[[str], None]

_BETWEEN_TRIES = Backoff(first=0.5, factor=2, limit=5)
#: Seconds the embedded broker may take to close its files.
_GRACE = 15.0
#: Seconds it may take to load its data.
_LOADING = 300.0


@dataclass(frozen=True)
class SettledBroker:
    """The broker of this run. ``survives`` says whether messages outlive a stop of it."""

    url: str
    describe: str
    survives: bool | None
    embedded: EmbeddedBroker | None = None


def resolve_broker(settings: Settings, say: Say, ask: Ask | None = None) -> SettledBroker:
    """Choose the broker and make sure it works: asked up to ``broker.start_tries`` times.

    ``ask`` (a terminal) is asked what to do when it does not; without it BrokerError is
    raised. The embedded one is not started here: see :func:`broker_spec`.
    """
    wanted = settings.broker
    while True:
        choice = choose(wanted, settings.run_dir)
        for note in choice.notes:
            say(note)
        if choice.embedded is not None:
            return _embedded(choice, choice.embedded, say)
        try:
            return _asked(choice, wanted, say)
        except BrokerError as error:
            answer = ask(error) if ask is not None else "quit"
            if answer == "quit":
                raise
            if answer == "embedded":
                wanted = wanted.model_copy(update={"embedded": "always"})


def _asked(choice: Choice, wanted: BrokerSettings, say: Say) -> SettledBroker:
    url = plain_url(choice.url or "")

    def failed(attempt: int, error: BrokerError, delay: float) -> None:
        say(f"{error.what} (try {attempt} of {wanted.start_tries}, again in {delay:g} s)")

    with Interrupt() as interrupt:
        facts = choice.facts or probe_with_retries(
            url,
            tries=wanted.start_tries,
            backoff=_BETWEEN_TRIES,
            on_failure=failed,
            connect_timeout=wanted.connect_timeout,
            socket_timeout=wanted.socket_timeout,
            sleep=interrupt.sleep,
        )
    return SettledBroker(url, f"{choice.kind} {facts.server} at {facts.url}", facts.persistent)


def _embedded(choice: Choice, embedded: EmbeddedBroker, say: Say) -> SettledBroker:
    reclaimed = embedded.reclaim()
    if reclaimed is not None:
        say(reclaimed.describe())
    embedded.command()  # so that port and password are settled, and what is wrong is told now
    return SettledBroker(embedded.url, choice.describe(), embedded.survives, embedded)


def broker_spec(embedded: EmbeddedBroker) -> ProcessSpec:
    """The embedded broker as a supervised process. It outlives a killed launcher until the
    workers have given their tasks back (the guard stops it last)."""

    async def ready() -> bool:
        return await asyncio.to_thread(embedded.ready)

    return ProcessSpec(
        name="broker",
        command=embedded.command(),
        ready=ready,
        ready_timeout=_LOADING,
        stop_signals=((signal.SIGTERM, _GRACE),),
        dies_with_launcher=False,
        keeps_data=True,
    )
