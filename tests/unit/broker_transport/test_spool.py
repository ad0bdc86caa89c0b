"""The spool: a file that keeps order, survives a torn line, and forgets only what was sent."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloche.broker.lease.lease import Acks
from cloche.broker.publish.spool import MessageSpool, Spooled


def one(number: int) -> Spooled:
    return Spooled(f"id-{number}", "q", "", 0, 0.0, f"text {number}", f"task-{number}")


class Away(OSError):
    pass


def test_it_replays_in_order_and_is_empty_afterwards(tmp_path: Path) -> None:
    sent: list[str] = []
    spool = MessageSpool(tmp_path, "x", lambda message: sent.append(message.text))
    spool._start = lambda: None  # type: ignore[method-assign]
    for number in range(5):
        spool.append(one(number))
    assert spool.pending()
    assert spool.replay() == 5
    assert sent == [f"text {number}" for number in range(5)]
    assert not spool.pending()


def test_an_interrupted_replay_keeps_all(tmp_path: Path) -> None:
    sent: list[str] = []

    def send(message: Spooled) -> None:
        if len(sent) == 2:
            raise Away
        sent.append(message.id)

    spool = MessageSpool(tmp_path, "x", send)
    spool._start = lambda: None  # type: ignore[method-assign]
    for number in range(3):
        spool.append(one(number))
    with pytest.raises(Away):
        spool.replay()
    again: list[str] = []
    assert MessageSpool(tmp_path, "x", lambda message: again.append(message.id)).replay() == 3
    assert again == ["id-0", "id-1", "id-2"]  # the server knows the first two by their ids


def test_a_torn_last_line_is_dropped(tmp_path: Path) -> None:
    spool = MessageSpool(tmp_path, "x", lambda _: None)
    spool._start = lambda: None  # type: ignore[method-assign]
    spool.append(one(1))
    with spool.path.open("ab") as file:
        file.write(b'{"id": "torn", "que')
    assert spool.replay() == 1


def test_acknowledgements_keep_their_order_over_a_failed_send() -> None:
    acks = Acks()
    for number in range(5):
        acks.add(f"{number}/q")
    taken = acks.take(3)
    acks.put_back(taken)
    assert acks.take() == [f"{number}/q" for number in range(5)]
    assert acks.missing(5, 3) == 0  # some may have arrived the first time
    assert acks.missing(5, 3) == 2
