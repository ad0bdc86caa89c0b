"""A heartbeat in its file: read whole while it is written over."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from cloche.process import table
from cloche.process.heartbeat import DIRECTORY, Heartbeat, HeartbeatFile, heartbeats, read_heartbeat

PULSE = Heartbeat(
    node="one@here",
    pid=1,
    started=2.5,
    boot=table.boot_id(),
    at=3.25,
    turned=3.0,
    connected=True,
    queues=("ä", "b"),
    pool="prefork",
    slots=2,
    active=1,
    reserved=2,
    processed=3,
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / DIRECTORY).mkdir()
    return tmp_path


def test_it_is_read_as_it_was_written_a_shorter_one_too(directory: Path) -> None:
    file = HeartbeatFile(directory, PULSE.node)
    long = replace(PULSE, queues=tuple(f"queue-{number}" for number in range(100)))
    for heartbeat in (PULSE, long, PULSE):
        file.write(heartbeat)
        assert list(heartbeats(directory)) == [heartbeat]
    assert read_heartbeat(file.path) == PULSE
    file.remove()
    assert read_heartbeat(file.path) is None
    file.write(long)
    assert read_heartbeat(file.path) == long


def test_a_file_that_somebody_removed_is_made_anew(directory: Path) -> None:
    file = HeartbeatFile(directory, PULSE.node)
    file.write(PULSE)
    file.path.unlink()
    file.write(PULSE)
    assert read_heartbeat(file.path) == PULSE


@pytest.mark.parametrize("text", ["", "{", "[]", '{"node": "x", "crc": 1}', "null"])
def test_what_is_no_pulse_is_none(directory: Path, text: str) -> None:
    file = HeartbeatFile(directory, PULSE.node)
    file.path.write_text(text)
    assert read_heartbeat(file.path) is None


def test_a_torn_one_is_not_believed(directory: Path) -> None:
    file = HeartbeatFile(directory, PULSE.node)
    file.write(PULSE)
    torn = file.path.read_text().replace('"processed": 3', '"processed": 4')
    file.path.write_text(torn)
    assert read_heartbeat(file.path) is None


def test_readers_meet_whole_ones_only(directory: Path) -> None:
    file = HeartbeatFile(directory, PULSE.node)
    file.write(PULSE)
    over = threading.Event()

    def write() -> None:
        number = 0
        while not over.is_set():
            number += 1
            file.write(replace(PULSE, processed=number, reserved=number, at=number + 0.5))

    writer = threading.Thread(target=write)
    writer.start()
    until = time.monotonic() + 0.5
    seen = 0
    while time.monotonic() < until:
        found = read_heartbeat(file.path)
        if found is not None:
            assert found.processed == found.reserved or found == PULSE
            seen += 1
    over.set()
    writer.join()
    assert seen
