"""An application with schedules of its own."""

from __future__ import annotations

from cloche import create_app

app = create_app("scheduled")
app.conf.beat_schedule = {
    "tick": {"task": "tasks.scheduled.tick", "schedule": 0.5},
    "lost": {"task": "tasks.scheduled.nobody", "schedule": 3600.0},
    "both": {"task": "tasks.scheduled.tick", "schedule": 3600.0},
}


@app.task(name="tasks.scheduled.tick")
def tick(n: int = 0) -> None:
    """Nothing: the tests count messages."""
