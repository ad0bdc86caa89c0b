"""RabbitMQ with one queue, not the default one, and results that go back to the caller as
messages."""

import os

from celery import Celery
from kombu import Queue

app = Celery("proj", broker=os.environ["PROJECT_RABBIT"], backend="rpc://")
app.conf.task_queues = [Queue("rpc-results")]


@app.task(queue="rpc-results")
def add(a, b):
    return a + b
