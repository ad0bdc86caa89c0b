"""What an outage writes into the log."""

from __future__ import annotations

import pytest
from redis.exceptions import ConnectionError, NoPermissionError

from cloche.broker.connection.outage import Outage


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The transport's: an earlier test's thread may still be speaking of its own."""
    return [record.getMessage() for record in caplog.records if record.name == "cloche.transport"]


def test_an_outage_is_two_lines_however_often_it_is_tried(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage("fetching")
    for _ in range(10):
        outage.failed(ConnectionError("away"))
    assert outage.pausing
    outage.over()
    assert [line.split(" after ")[0] for line in lines(caplog)] == [
        "fetching paused: ConnectionError: away",
        "fetching resumed",
    ]


def test_a_patient_one_does_not_speak_of_what_the_next_attempt_mends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outage = Outage("listening", patient=True)
    for _ in range(3):
        outage.failed(ConnectionError("cut"))
        outage.over()
    assert lines(caplog) == []
    outage.failed(ConnectionError("cut"))
    outage.failed(ConnectionError("away"))
    outage.over()
    assert len(lines(caplog)) == 2


@pytest.mark.parametrize("patient", [False, True])
def test_a_denial_between_successes_is_told_once(
    caplog: pytest.LogCaptureFixture, patient: bool
) -> None:
    outage = Outage("fetching", patient=patient)
    for _ in range(20):
        outage.failed(NoPermissionError("no permission to run 'brpop'"))
        if patient:
            outage.failed(NoPermissionError("no permission to run 'brpop'"))
        outage.over()
    assert len(lines(caplog)) == 2, "paused and resumed"
    assert "ACL LOG" in lines(caplog)[0]
    outage.failed(NoPermissionError("no permission to run 'hset'"))
    outage.failed(NoPermissionError("no permission to run 'hset'"))
    outage.failed(NoPermissionError("no permission to run 'hset'"))
    outage.over()
    assert "hset" in lines(caplog)[2], "another denial is news"
    assert "resumed" in lines(caplog)[3]
