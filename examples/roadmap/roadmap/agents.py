"""The agents. Each is a coroutine that asks a model; the model here is a set of rules, so that
the example runs without a key. To use another one, write a class with the same ``ask``."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from urllib.parse import quote_plus
from zlib import crc32


class NoAnswer(Exception):
    """The model did not answer in time, as models do now and then."""


@dataclass
class Rules:
    """Answers from rules, a little later. About one question in ``misses`` has no answer when it
    is asked for the first time."""

    misses: int = 5
    seconds: float = 0.02
    missed: set[str] = field(default_factory=set, init=False)

    async def ask(self, role: str, about: str) -> str:
        question = f"{role}: {about}"
        await asyncio.sleep(self.seconds)
        if crc32(question.encode()) % self.misses == 0 and question not in self.missed:
            self.missed.add(question)
            raise NoAnswer(f"no answer to {question!r}")
        return question


async def outline(model: Rules, topic: str, goals: list[str], weeks: int) -> list[list[str]]:
    """The architect: goals over weeks, the short ones first, the same number in each."""
    await model.ask("architect", f"{topic} in {weeks} weeks")
    ordered = sorted(goals, key=lambda goal: (len(goal.split()), goal))
    size = -(-len(ordered) // weeks)
    return [ordered[at : at + size] for at in range(0, len(ordered), size)]


async def draft(model: Rules, topic: str, goal: str) -> str:
    """The writer: a text about one goal."""
    answer = await model.ask("writer", f"explain {goal} to somebody who learns {topic}")
    return f"After this you can use {goal.lower()} in {topic.lower()}. ({answer})"


async def resources(model: Rules, topic: str, goal: str) -> list[str]:
    """The finder: where to look further."""
    await model.ask("finder", goal)
    return [f"https://en.wikipedia.org/w/index.php?search={quote_plus(f'{goal} {topic}')}"]


async def review(model: Rules, text: str) -> str:
    """The reviewer: what is wrong with a text; empty when nothing is."""
    await model.ask("reviewer", text)
    return "" if "you can" in text else "it does not say what one can do afterwards"
