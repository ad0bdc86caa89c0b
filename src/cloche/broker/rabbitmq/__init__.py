"""Queues, delays and dead letters on RabbitMQ."""
