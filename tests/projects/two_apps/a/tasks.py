"""One of two applications of the same name on one server."""

import os

from celery import Celery

app = Celery("tasks", broker=os.environ["PROJECT_BROKER"], backend=os.environ["PROJECT_BROKER"])
app.conf.task_default_queue = "queue-a"
app.conf.beat_schedule = {"every-second": {"task": "tasks.tick_a", "schedule": 1.0}}


@app.task
def tick_a():
    with open("ticks", "a") as ticks:
        ticks.write("a\n")


@app.task
def which():
    return "a"
