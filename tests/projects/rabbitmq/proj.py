"""RabbitMQ with queues of the project's own: classic ones, on an exchange of its own."""

import os

from celery import Celery
from kombu import Exchange, Queue

app = Celery("proj", broker=os.environ["PROJECT_RABBIT"], backend=os.environ["PROJECT_BROKER"])
orders = Exchange("orders", type="topic")
app.conf.task_queues = [
    Queue("orders.new", orders, routing_key="order.new", max_priority=5),
    Queue("orders.paid", orders, routing_key="order.paid"),
]
app.conf.task_default_queue = "orders.new"
app.conf.task_default_exchange = "orders"
app.conf.task_default_exchange_type = "topic"
app.conf.task_default_routing_key = "order.new"


@app.task
def add(a, b):
    return a + b


@app.task(queue="orders.paid")
def paid(a):
    return a
