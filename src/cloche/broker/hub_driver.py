"""kombu's poller of many channels, which lets no outage reach the worker."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from kombu.transport import redis as stock

from cloche.broker.connection.outage import ERRORS

#: Our name for the socket of :attr:`Consuming.more` in kombu's table of descriptors.
MORE = "MORE"

#: Seconds between looks whether bindings of queues that expire must be kept alive; an event loop
#: turns every ten seconds at least (kombu/asynchronous/hub.py, fire_timers).
BINDINGS_PERIOD = 1.0

#: The same whether subscriptions live: waiting for wake-ups turns a loop every 5 s, and where none
#: does, ``cloche worker`` turns it every 6 s (worker/heartbeat.py).
LIVES_PERIOD = 4.5


class Poller(stock.MultiChannelPoller):
    """Errors of the server pause a channel instead of restarting Celery's consumer."""

    _bindings_at = _lives_at = 0.0

    def get(self, callback: Any, timeout: float | None = None) -> None:
        """Deliver something. Raises Empty if nothing came within ``timeout`` seconds.

        kombu's gives up after the first reply that brought nothing, and then sleeps for the
        transport option ``polling_interval``; our first reply is often the one of a fetch
        that found empty queues, after which we wait.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        left = timeout
        while True:
            try:
                super().get(callback, left)
                return
            except stock.Empty:
                if time.monotonic() >= deadline:
                    raise
            if timeout is not None:
                left = max(0.0, deadline - time.monotonic())

    def on_poll_start(self) -> None:
        self._update_brpop_polling()
        now = time.monotonic()
        if now >= self._bindings_at:
            self._bindings_at = now + BINDINGS_PERIOD
            self.maybe_refresh_binding_expiry()
        if now >= self._lives_at:
            self._lives_at = now + LIVES_PERIOD
            self.maybe_check_subclient_health()
            self.maybe_check_brpop_health()
        for channel in list(self._channels):
            if not channel.fetching.pausing:
                self._guard(channel, channel.failed, self._fetch, channel)
            if channel.active_fanout_queues and not channel.listening.pausing:
                self._guard(channel, channel.listening_failed, self._listen, channel)

    def _fetch(self, channel: Any) -> None:
        channel.tick()
        if channel.active_queues and channel.qos.can_consume():
            self._register_BRPOP(channel)

    def _listen(self, channel: Any) -> None:
        self._register_LISTEN(channel)

    def _guard(
        self, channel: Any, failed: Callable[[BaseException], None], run: Any, *args: Any
    ) -> Any:
        try:
            return run(*args)
        except ERRORS as error:
            if channel.closed:
                raise
            failed(error)
            return None

    def on_readable(self, fileno: int) -> Any:
        """A socket has something to read. Raises Empty if it brought nothing to deliver.

        Event loops pass over Empty; ``Connection.drain_events`` goes on waiting.
        """
        channel, kind = self._fd_to_chan.get(fileno, (None, None))
        if channel is None:
            return None
        if kind == "LISTEN" and not _socket_of(channel.subclient, fileno):
            self._forget_listening(channel, fileno)
            return None
        if kind == "LISTEN":
            return self._guard(channel, channel.listening_failed, self._hear, channel, fileno)
        if kind == MORE:
            return self._guard(channel, channel.failed, channel.deliver_more)
        return self._guard(channel, channel.failed, super().on_readable, fileno)

    def _hear(self, channel: Any, fileno: int) -> Any:
        # kombu reads at once, and waits for the socket's time-out where nothing has come.
        connection = channel.subclient.connection
        if not connection.can_read(timeout=0):
            return None
        # It lives: redis-py would ask whether it does before it reads the answer to that question.
        connection.next_health_check = time.monotonic() + connection.health_check_interval
        found = super().on_readable(fileno)
        channel.listening.over()
        return found

    def _forget_listening(self, channel: Any, fileno: int) -> None:
        """A descriptor of the subscription's closed socket, which another socket has now.

        redis-py connects anew by itself, past kombu's tables. To read from the subscription
        then would wait for the socket's time-out, at every turn of the loop.
        """
        self._chan_to_sock.pop((channel, channel.subclient, "LISTEN"), None)
        if _socket_of(channel.client, fileno):
            self._fd_to_chan[fileno] = (channel, "BRPOP")
        else:
            self._fd_to_chan.pop(fileno, None)
            self._unregister_from_poll(fileno)

    def watch(self, channel: Any) -> None:
        """Poll the socket that tells of undelivered messages."""
        self._fd_to_chan[channel.more.fileno()] = (channel, MORE)
        self.poller.register(channel.more, self.eventflags)

    def unwatch(self, channel: Any) -> None:
        fileno = channel.more.fileno()
        self._fd_to_chan.pop(fileno, None)
        self._unregister_from_poll(fileno)

    def maybe_restore_messages(self) -> None:
        """Nothing to do: dead consumers are the reaper's."""

    def on_poll_init(self, poller: Any) -> None:
        """Use the event loop's poller."""
        self.poller = poller


def _socket_of(client: Any, fileno: int) -> bool:
    """Whether ``fileno`` is the socket of this client's connection now."""
    sock = getattr(getattr(client, "connection", None), "_sock", None)
    return sock is not None and bool(sock.fileno() == fileno)
