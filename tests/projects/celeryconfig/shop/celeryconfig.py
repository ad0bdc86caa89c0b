import os

from celery.schedules import crontab

broker_url = os.environ["PROJECT_BROKER"]
result_backend = os.environ["PROJECT_BROKER"]
timezone = "Europe/Berlin"
task_serializer = "pickle"
accept_content = ["pickle", "json"]
task_routes = {"shop.tasks.mail": {"queue": "mail"}}
task_default_queue = "shop"
worker_prefetch_multiplier = 1
beat_schedule = {
    "every-night": {"task": "shop.tasks.add", "schedule": crontab(hour=3, minute=0), "args": (1, 2)}
}
