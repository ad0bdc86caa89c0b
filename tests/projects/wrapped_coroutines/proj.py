import asyncio
import os

from celery import Celery
from kombu import Queue
from own import async_task

app = Celery("proj", broker=os.environ["PROJECT_BROKER"], backend=os.environ["PROJECT_BROKER"])
# Its tasks have a queue of their own; the default one is somebody else's.
app.conf.task_queues = [Queue("mail")]


@async_task(app, name="mail.send", queue="mail")
async def send(n):
    await asyncio.sleep(0)
    return n + 1
