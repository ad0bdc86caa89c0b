"""What makes two errors the same."""

from __future__ import annotations

import pytest

from cloche.logs.read.error_groups import fingerprint, normalised


@pytest.mark.parametrize(
    ("message", "pattern"),
    [
        ("connection to 10.0.0.7:5432 refused", "connection to [n] refused"),
        ("task 01890a5d-ac96-774b-bcce-b302099a8057 lost", "task [id] lost"),
        ("object at 0x7f00AB gone", "object at [hex] gone"),
        ("commit 8f3a91bc is bad", "commit [hex] is bad"),
        ("deadbeef and facade are words", "deadbeef and facade are words"),
        ("no module named 'shop.mail'", "no module named [text]"),
        ("it can't and won't", "it can't and won't"),
        ("took 1,234.5 ms\n\tat  last", "took [n] ms at last"),
    ],
)
def test_what_varies_is_taken_out(message: str, pattern: str) -> None:
    assert normalised(message) == pattern


def test_category_and_step_tell_equal_messages_apart() -> None:
    one = fingerprint("http", "fetch", "timed out after 3 s")
    assert one == fingerprint("http", "fetch", "timed out after 30 s")
    assert one != fingerprint("http", "store", "timed out after 3 s")
    assert one != fingerprint("db", "fetch", "timed out after 3 s")
    assert fingerprint("a", "b", "") != fingerprint("ab", None, "")


def test_a_long_message_is_cut() -> None:
    assert len(normalised("word " * 10_000)) == 300
