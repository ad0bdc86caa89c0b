"""An API with a cache at REDIS_URL and a database at DATABASE_URL, neither of them Celery's."""

import os
import sqlite3

from celery import Celery
from fastapi import FastAPI

CACHE = os.environ["REDIS_URL"]
DATABASE = os.environ["DATABASE_URL"].removeprefix("sqlite:///")
celery = Celery("api", broker=os.environ["PROJECT_BROKER"], backend=os.environ["PROJECT_BROKER"])
api = FastAPI()


@celery.task(name="api.count")
def count(more):
    with sqlite3.connect(DATABASE) as database:
        return database.execute("select count(*) from users").fetchone()[0] + more


@api.post("/count/{more}")
def start(more: int):
    return {"id": count.delay(more).id}
