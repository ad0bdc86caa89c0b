"""The workflow as one coroutine task: plan, write every concept at once, review, put together."""

from __future__ import annotations

import asyncio
from typing import Any

from cloche import ExecutionLogger, async_task, create_app
from cloche.logs.run import WorkflowRun
from roadmap.agents import NoAnswer, Rules, draft, outline, resources, review

app = create_app("roadmap")
log = ExecutionLogger(app)
model = Rules()


@async_task(app=app, name="tasks.roadmap.write")
async def write_roadmap(run_id: str, topic: str, goals: list[str], weeks: int) -> dict[str, Any]:
    """A roadmap; its records are found under ``run_id``."""
    async with log.run(run_id, name=f"roadmap {topic}", on_error=apologise) as run:
        plan = run.step("plan", agent="architect", retries=3, delay=0.1, retry_on=NoAnswer)
        phases = await plan.execute(outline, model, topic, goals, weeks)
        run.log("info", f"{len(goals)} goals in {len(phases)} weeks")
        async with run.step("write"):
            concepts = await asyncio.gather(
                *(_concept(run, topic, goal) for phase in phases for goal in phase)
            )
        texts = iter(concepts)
        return {
            "topic": topic,
            "weeks": [[next(texts) for _ in phase] for phase in phases],
        }


async def _concept(run: WorkflowRun, topic: str, goal: str) -> dict[str, Any]:
    """One goal: written, provided with resources, reviewed."""
    about = {"concept_id": goal, "retries": 3, "delay": 0.1, "retry_on": NoAnswer}
    text = await run.step("draft", agent="writer", **about).execute(draft, model, topic, goal)
    links = await run.step("find", agent="finder", **about).execute(resources, model, topic, goal)
    wrong = await run.step("review", agent="reviewer", **about).execute(review, model, text)
    if wrong:
        raise ValueError(f"the text about {goal} was not accepted: {wrong}")
    return {"goal": goal, "text": text, "resources": links}


async def apologise(run: WorkflowRun) -> None:
    """Told after a run failed: here would be an e-mail to whoever waits for it."""
    run.log("warning", "whoever waits for it would be told now", details={"why": str(run.error)})
