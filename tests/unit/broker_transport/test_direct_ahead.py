"""What a loop fetches ahead: handed out as places become free, given back when none do."""

from __future__ import annotations

import asyncio
import time

from cloche.broker.keys import Keys
from cloche.broker.lease.fetch import Fetched
from cloche.broker.lease.lease import Lease
from cloche.broker.loop_driver import MAX_LOOKAHEAD, Lookahead


class Consumer:
    """One with places, which sees what comes and what goes back."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.seen: list[str] = []
        self.returned: list[str] = []
        self.lease = Lease(Keys(), 30)
        self.ahead = Lookahead(self.lease, lambda: self.places, self.deliver, self.give_back)

    def deliver(self, batch: list[Fetched]) -> None:
        self.seen += [one.field for one in batch]
        self.places -= len(batch)

    def give_back(self, fields: list[str]) -> None:
        self.returned += fields

    def fetch(self, *numbers: int, queue: str = "q") -> None:
        fetched = [Fetched(f"{number}/{queue}", queue, b"") for number in numbers]
        self.lease.answered(object(), [one.field for one in fetched])
        self.ahead.take_in(fetched)


async def until(consumer: Consumer, field: str) -> None:
    end = time.monotonic() + 10
    while field not in consumer.seen and field not in consumer.returned:
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


def test_the_rest_is_handed_out_in_order_as_places_become_free() -> None:
    async def run() -> None:
        found = Consumer(2)
        found.fetch(1, 2, 3, 4)
        assert found.seen == ["1/q", "2/q"]
        assert len(found.ahead) == 2
        found.places = 1
        for _ in range(3):
            found.ahead.room()
        assert len(found.ahead) == 2  # in the loop's next turn, not in the caller's
        await asyncio.sleep(0)
        assert found.seen == ["1/q", "2/q", "3/q"]
        found.fetch(5)
        assert found.seen == ["1/q", "2/q", "3/q"]
        found.places = 5
        found.ahead.room()
        await asyncio.sleep(0)
        assert found.seen == [f"{number}/q" for number in range(1, 6)]

    asyncio.run(run())


def test_what_may_not_begin_for_long_goes_back() -> None:
    async def run() -> None:
        found = Consumer(1)
        found.fetch(1, 2, 3)
        await until(found, "3/q")
        assert found.returned == ["2/q", "3/q"]
        assert len(found.ahead) == 0
        assert found.ahead.wanted == 0

    asyncio.run(run())


def test_what_a_lost_lease_took_is_not_delivered() -> None:
    async def run() -> None:
        found = Consumer(1)
        found.lease.consumer = "me"
        found.fetch(1, 2)
        found.lease.lose("me")
        found.places = 5
        found.fetch(3)
        assert found.seen == ["1/q", "3/q"]

    asyncio.run(run())


def test_a_cancelled_queues_messages_go_back_at_once() -> None:
    async def run() -> None:
        found = Consumer(0)
        found.fetch(1, queue="kept")
        found.fetch(2, queue="cancelled")
        found.ahead.keep(frozenset({"kept"}))
        await until(found, "2/cancelled")
        assert found.returned == ["2/cancelled"]
        assert found.ahead.drop() == ["1/kept"]

    asyncio.run(run())


def test_as_many_as_ended_lately_are_wanted_and_none_where_tasks_are_long() -> None:
    found = Consumer(1)
    assert found.ahead.wanted == 0

    def becomes(wanted: int, ended: int) -> None:
        end = time.monotonic() + 10
        while found.ahead.wanted != wanted:
            assert time.monotonic() < end
            for _ in range(ended):
                found.ahead.acked()
            time.sleep(0.01)

    becomes(MAX_LOOKAHEAD, 10_000)
    becomes(0, 0)
