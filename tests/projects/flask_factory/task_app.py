"""A Flask factory whose tasks run in the application's context, as Flask's documentation has it."""

import os

from celery import Celery, Task, shared_task
from flask import Flask, current_app


def celery_init_app(app):
    class FlaskTask(Task):
        def __call__(self, *args, **kwargs):
            with app.app_context():
                return self.run(*args, **kwargs)

    celery_app = Celery(app.name, task_cls=FlaskTask)
    celery_app.config_from_object(app.config["CELERY"])
    celery_app.set_default()
    app.extensions["celery"] = celery_app
    return celery_app


def create_app():
    app = Flask(__name__)
    url = os.environ["PROJECT_BROKER"]
    app.config.update(GREETING="hello ", CELERY={"broker_url": url, "result_backend": url})
    celery_init_app(app)
    return app


@shared_task(ignore_result=False)
def greet(name):
    return current_app.config["GREETING"] + name
