"""Real servers for tests, ours and yours: quick to start, easy to kill, gone with the test run.

::

    with BrokerProcess() as broker:
        app = Celery(broker=broker.url)
        broker.kill()      # kill -9
        broker.start()     # the same port, the same data

    with PostgresProcess() as postgres, postgres.database() as url:
        ...                # an empty database of one's own

    with RabbitProcess() as rabbit:
        app = Celery(broker=rabbit.url)

    with Worker("proj.celery", "-c", "2", log=tmp_path / "worker.log", broker=broker.url) as worker:
        result = add.delay(1, 2)
        wait_until(result.ready, "the result")
        worker.kill()      # kill -9, with its children
"""

from cloche.testing.broker import BrokerProcess
from cloche.testing.postgres import PostgresProcess
from cloche.testing.processes import ChildProcess, Stack, Worker, clean_environ, wait_until
from cloche.testing.rabbitmq import RabbitProcess
from cloche.testing.server import ServerProcess, free_port

__all__ = [
    "BrokerProcess",
    "ChildProcess",
    "PostgresProcess",
    "RabbitProcess",
    "ServerProcess",
    "Stack",
    "Worker",
    "clean_environ",
    "free_port",
    "wait_until",
]
