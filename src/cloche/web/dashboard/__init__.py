"""The dashboard: workers, queues, tasks, health."""
