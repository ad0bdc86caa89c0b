"""One module; broker and results are named in the code."""

import os

import redis
from celery import Celery

app = Celery("proj", broker=os.environ["PROJECT_BROKER"], backend=os.environ["PROJECT_BROKER"])


@app.task
def add(a, b):
    return a + b


@app.task(bind=True)
def state_while_it_runs(self):
    return self.AsyncResult(self.request.id).state


@app.task
def own_client():
    """As locks, rate limits and other schedulers connect: they know nothing of Cloche's URLs."""
    urls = app.conf.broker_url, app.conf.result_backend
    return [redis.Redis.from_url(url).ping() for url in urls]


@app.on_after_configure.connect
def schedule(sender, **kwargs):
    sender.add_periodic_task(3600, add.s(1, 1), name="hourly")
