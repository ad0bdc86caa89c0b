from celery import shared_task
from django.contrib.auth.models import User


@shared_task
def tick():
    return "tick"


@shared_task
def count_users(more):
    return User.objects.count() + more
