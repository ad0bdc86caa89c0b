"""Where a process that is started alone finds its broker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloche.errors import BrokerError
from cloche.launch.environment import join
from cloche.settings import load
from cloche.testing import BrokerProcess
from cloche.testing.server import free_port


@pytest.fixture
def in_its_own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    yield
    os.environ.clear()  # what joins tells its children
    os.environ.update(before)


def test_alone_it_takes_the_local_server_that_the_launcher_would(
    in_its_own_directory: None,
) -> None:
    with BrokerProcess() as server:
        found = join(load(environ={}), port=server.port)
        assert found.settings.broker.url is not None
        assert found.settings.broker.url.get_secret_value() == f"redis://127.0.0.1:{server.port}/0"


def test_alone_it_does_not_where_only_the_embedded_one_is_wanted(
    in_its_own_directory: None,
) -> None:
    with (
        BrokerProcess() as server,
        pytest.raises(BrokerError, match=r"and broker\.embedded is 'always'"),
    ):
        join(load({"broker.embedded": "always"}, environ={}), port=server.port)


def test_where_there_is_none_it_says_where_it_has_looked(in_its_own_directory: None) -> None:
    port = free_port()
    with pytest.raises(BrokerError, match=f"and nothing listens at 127.0.0.1:{port}") as error:
        join(load(environ={}), port=port)
    assert "run `cloche up`" in str(error.value)
