"""The application asks for a pool that Cloche does not bring."""

import os

from celery import Celery

app = Celery("proj", broker=os.environ["PROJECT_BROKER"], backend=os.environ["PROJECT_BROKER"])
app.conf.worker_pool = "gevent"


@app.task
def add(a, b):
    return a + b
