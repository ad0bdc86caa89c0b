"""Settings that Celery reads when it needs them, with an error in them."""

from celery import Celery

app = Celery("proj")
app.config_from_object("conf")
