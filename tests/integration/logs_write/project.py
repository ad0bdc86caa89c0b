"""The application of the workers and producers of these tests; all settings by environment."""

from cloche import ExecutionLogger
from cloche.app import create_app

app = create_app("logs-project")
#: Sends nothing by itself in the time of a test.
log = ExecutionLogger(app, interval=3600, batch=10_000)


@app.task(name="project.say", ignore_result=True)
def say(message: str) -> None:
    """Log from inside a task."""
    log.info("task", "say", message, run_id="tasks")
