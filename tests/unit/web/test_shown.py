"""What pages make of data that is odd, long or old."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cloche.errors import ClocheError
from cloche.health.checks import Scene
from cloche.records import Health, QueueSeen, Snapshot
from cloche.settings import Settings
from cloche.web.dashboard import overview
from cloche.web.pages import SHOWN, cut, render, stamp, visible

HIDDEN = "\x1b[31m\x00\u202egpj.exe\u2069\rend"


def test_what_a_page_would_hide_is_written_out() -> None:
    told = render("notice.html", problem=ClocheError(HIDDEN, why="a\n\tb\r\nc"))
    assert r"\x1b[31m\x00\u202egpj.exe\u2069\rend" in told
    assert "a\n\tb\r\nc" in told, "ends of lines and tabs are none of it"


def test_other_text_stays_as_it_is() -> None:
    for text in ("plain", "学习路线图", "مرحبا\u200fבעולם", "ø\u0301", "👩\u200d🔧", ""):
        assert visible(text) == text
    assert visible(3) == 3


def test_a_search_field_gives_back_what_was_typed() -> None:
    told = render("login.html", section="service", next=f"/{HIDDEN}", wrong=False)
    assert f'value="/{HIDDEN}"' in told


def test_megabytes_are_cut_and_counted() -> None:
    assert cut("x" * SHOWN) == "x" * SHOWN
    told = cut("x" * 1_000_000)
    assert len(told) < SHOWN + 100
    assert told.endswith("… [the first 20,000 of 1,000,000 characters; JSON has them all]")


def test_a_time_has_its_day_unless_it_is_today() -> None:
    today = datetime.now(UTC).replace(hour=0, minute=5, second=9, microsecond=7_000)
    assert stamp(today) == "00:05:09.007"
    assert stamp(today.replace(year=today.year - 3, month=2, day=3)).endswith("-02-03 00:05:09.007")
    within = today - timedelta(days=1) if today.timetuple().tm_yday > 1 else today
    assert within == today or stamp(within) == f"{within:%b %d} 00:05:09.007"


def _snapshot(queues: int) -> Snapshot:
    many = tuple(QueueSeen(f"queue-{number:04}", number) for number in range(queues))
    return Snapshot(1.0, (Health("broker", True),), queues=many)


def test_of_hundreds_of_queues_the_fullest_are_shown() -> None:
    queues = _snapshot(250).queues
    shown = overview._fullest(queues)
    assert [queue.length for queue in shown] == list(range(200, 250))
    told = render("dashboard/queues.html", snapshot=_snapshot(250), queues=shown)
    assert "and 200 more, with fewer messages" in told
    assert ">249<" in told
    assert "more, with fewer" not in render(
        "dashboard/queues.html",
        snapshot=_snapshot(3),
        queues=overview._fullest(_snapshot(3).queues),
    )


def test_hundreds_of_troubles_are_counted() -> None:
    snapshot = Snapshot(
        1.0, tuple(Health(f"check-{number}", False, "away") for number in range(90))
    )
    told = render(
        "dashboard/verdict.html",
        **overview.verdict(Scene(Settings(), snapshot)),
        gaps=(),
        unseen=(),
        most=overview.TROUBLES,
    )
    assert "no worker answers" in told
    assert told.count(": away") == overview.TROUBLES - 1
    assert "and 71 more" in told
