from datetime import timedelta

from shop.celery import celery


@celery.task
def add(a, b):
    return a + b


@celery.task
def mail(wait):
    return wait / timedelta(seconds=1)
