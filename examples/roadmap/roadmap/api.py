"""What programs ask: POST starts a roadmap, GET tells how far it is and, at last, what it says."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field

from cloche.contrib.fastapi import Logger, Reader, RunId, lifespan, logs_router
from cloche.logs.read.filter import LogFilter
from roadmap.workflow import app, write_roadmap

Goal = Annotated[str, Field(min_length=2, max_length=80)]


class Wish(BaseModel):
    """What somebody wants to learn."""

    topic: str = Field(min_length=2, max_length=80)
    goals: list[Goal] = Field(min_length=1, max_length=50)
    weeks: int = Field(4, ge=1, le=52)


def create() -> FastAPI:
    """The application. In production, say who may read the logs: logs_router(dependencies=…)."""
    api = FastAPI(title="Roadmaps", lifespan=lifespan(app))
    api.include_router(logs_router())
    api.post("/roadmaps", status_code=202)(start)
    api.get("/roadmaps/{run_id}")(show)
    return api


async def start(wish: Wish, log: Logger, run_id: RunId) -> dict[str, str]:
    """Start one. ``X-Run-ID`` names the run; without it, it gets a name."""
    log.info("api", "request", f"a roadmap of {wish.topic} is wanted", details=wish.model_dump())
    sent = await write_roadmap.adelay(run_id, **wish.model_dump())
    return {"run": run_id, "task": sent.id, "trace": f"/roadmaps/{run_id}"}


def show(run_id: str, reader: Reader) -> dict[str, Any]:
    """How far it is: each step with its time; the roadmap when it is done."""
    trace = reader.trace(run_id)
    if trace is None:
        raise HTTPException(404, f"nothing is known of {run_id} yet")
    return {
        "run": run_id,
        "status": trace.status or "waiting",
        "seconds": round(trace.seconds, 3),
        "steps": [
            {
                "step": step.path,
                "state": step.state,
                "times": step.finished,
                "tried_again": step.retries,
                "milliseconds": step.busy_ms,
            }
            for step in trace.steps
        ],
        "agents": trace.agents,
        "errors": [group.message for group in reader.errors(LogFilter(run=run_id)).groups],
        "roadmap": _result(task_ids={record.task_id for record in trace.records}),
    }


def _result(task_ids: set[str | None]) -> Any:
    """What the task returned, if it is over."""
    for task_id in task_ids - {None}:
        result = write_roadmap.AsyncResult(task_id)
        if result.successful():
            return result.result
    return None
