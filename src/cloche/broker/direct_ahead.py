"""Messages fetched on a loop before there is a place for them, and what becomes of them.

Places of short tasks are free for as long as the next fetch takes. So as many more are fetched as
ended lately within AHEAD seconds (none where tasks take long), and handed out as places become
free. What may not begin for AHEAD_LIMIT goes back to its queue, unmarked: nobody has seen it.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import copy_context

from cloche.broker.channel_ahead import AHEAD_LIMIT
from cloche.broker.direct_intake import Deliver
from cloche.broker.fetch import Fetched
from cloche.broker.lease import Lease
from cloche.broker.qos import AHEAD, WINDOW

#: Messages that wait here, at most.
MOST = 200


class Ahead:
    """What one consumer has fetched ahead. In the loop's thread, but for :meth:`settled`.

    ``places()`` says how many messages may be handed to ``deliver`` now, those that wait here not
    counted as handed out; ``give_back`` puts fields back into their queues, in another thread.
    """

    def __init__(
        self,
        claim: Lease,
        places: Callable[[], int],
        deliver: Deliver,
        give_back: Callable[[list[str]], None],
    ) -> None:
        self._claim = claim
        self._places = places
        self._deliver = deliver
        self._give_back = give_back
        self._waiting: deque[Fetched] = deque()
        self._came_at = 0.0
        self._planned = False
        self._timer: asyncio.TimerHandle | None = None
        # Not the context of whoever makes room: what begins is nobody's child.
        self._context = copy_context()
        self._since = time.monotonic()
        self._settled = 0
        self._rate = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def settled(self) -> None:
        """One more has ended. From any thread: a miscount is no harm."""
        self._settled += 1

    @property
    def wanted(self) -> int:
        """How many may wait here now."""
        now = time.monotonic()
        if now - self._since >= WINDOW:
            self._rate = self._settled / (now - self._since)
            self._since, self._settled = now, 0
        return min(MOST, int(self._rate * AHEAD))

    def take_in(self, fetched: list[Fetched]) -> None:
        """Deliver what there are places for; keep the rest."""
        self._waiting.extend(fetched)
        self._came_at = time.monotonic()
        self._hand_out()

    def room(self) -> None:
        """There may be a place: fill it in the loop's next turn, all at once."""
        if self._waiting and not self._planned:
            self._planned = True
            asyncio.get_running_loop().call_soon(self._in_turn, context=self._context)

    def _in_turn(self) -> None:
        self._planned = False
        self._hand_out()

    def _hand_out(self) -> None:
        waiting, held = self._waiting, self._claim.held
        while waiting and (free := self._places()) > 0:
            batch = [waiting.popleft() for _ in range(min(free, len(waiting)))]
            # Without those that a lost lease has given to somebody else.
            self._deliver([one for one in batch if one.field in held])
        if waiting and self._timer is None:
            self._look_in(AHEAD_LIMIT)

    def _look_in(self, seconds: float) -> None:
        self._timer = asyncio.get_running_loop().call_later(
            seconds, self._look, context=self._context
        )

    def _look(self) -> None:
        """Give back what has waited for too long."""
        self._timer = None
        rest = self._came_at + AHEAD_LIMIT - time.monotonic()
        if not self._waiting:
            return
        if rest > 0:
            self._look_in(rest)
            return
        self._rate = 0.0
        self._return(self.drop())

    def keep(self, queues: frozenset[str]) -> None:
        """Only these queues are consumed now: what came from others goes back to them."""
        others = [one for one in self._waiting if one.queue not in queues]
        if others:
            self._waiting = deque(one for one in self._waiting if one.queue in queues)
            self._return([one.field for one in others])

    def drop(self) -> list[str]:
        """The fields of all that wait, which wait here no more."""
        fields = [one.field for one in self._waiting]
        self._waiting.clear()
        return fields

    def _return(self, fields: Iterable[str]) -> None:
        asyncio.get_running_loop().run_in_executor(None, self._give_back, list(fields))
