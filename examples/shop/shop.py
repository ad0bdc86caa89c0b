"""A Celery project that knows nothing of Cloche.

Run it:  cloche up -A shop
Ask it:  celery -A shop call shop.add --args '[2, 3]'
"""

from __future__ import annotations

import time

from celery import Celery

app = Celery("shop")
app.conf.task_routes = {"shop.invoice": {"queue": "invoices"}}


@app.task(name="shop.add")
def add(x: int, y: int) -> int:
    return x + y


@app.task(name="shop.invoice")
def invoice(number: int, seconds: float = 0.0) -> str:
    time.sleep(seconds)
    return f"invoice {number}"
