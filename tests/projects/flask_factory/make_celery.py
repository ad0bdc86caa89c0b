"""The application by a proxy: what ``set_default`` has made the current one."""

from celery import current_app
from task_app import create_app

flask_app = create_app()
celery_app = current_app
