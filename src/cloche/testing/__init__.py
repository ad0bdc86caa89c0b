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
"""

from cloche.testing.broker import BrokerProcess
from cloche.testing.postgres import PostgresProcess
from cloche.testing.rabbitmq import RabbitProcess
from cloche.testing.server import ServerProcess, free_port

__all__ = ["BrokerProcess", "PostgresProcess", "RabbitProcess", "ServerProcess", "free_port"]
