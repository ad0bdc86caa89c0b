"""A run's steps as bars on a common scale, in coordinates of an SVG drawing.

Drawn with attributes only: the content security policy allows no styles in a page.
"""

from __future__ import annotations

from dataclasses import dataclass

from cloche.logs.read.trace import StepTrace, Trace

#: The drawing is so many units wide, whatever the screen is; a bar is never narrower than this.
WIDTH, LEAST = 1000.0, 3.0


@dataclass(frozen=True, slots=True)
class Bar:
    """``x`` and ``width`` in units; ``tone`` is its colour's name; ``title`` is told on hover."""

    x: float
    width: float
    tone: str
    title: str


@dataclass(frozen=True, slots=True)
class Lane:
    """A step and its bars; ``reach`` is the thin line from its first to its last record."""

    step: StepTrace
    reach: Bar
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class Timeline:
    """Lanes in the order of the trace, silences across all of them, and marks of the scale."""

    lanes: tuple[Lane, ...]
    gaps: tuple[Bar, ...]
    marks: tuple[tuple[float, float], ...]  # x, seconds after the beginning


_TONES = {"failed": "bad", "retry": "warn", "cancelled": "warn", "running": "busy"}


def timeline_of(trace: Trace) -> Timeline:
    """The drawing of a trace."""
    seconds = max(trace.seconds, 0.001)

    def bar(begin: float, end: float, tone: str, title: str) -> Bar:
        x = WIDTH * (begin - trace.first) / seconds
        width = max(LEAST, WIDTH * (end - begin) / seconds)
        return Bar(round(min(x, WIDTH - LEAST), 1), round(min(width, WIDTH - x), 1), tone, title)

    lanes = []
    for step in trace.steps:
        # The longest first: what is inside another one's time stays visible.
        spans = sorted(
            (*step.spans, *step.open.values()),
            key=lambda span: span.begin - (span.end or trace.last),
        )
        bars = tuple(
            bar(
                span.begin,
                trace.last if span.end is None else span.end,
                _TONES.get(span.status, "good"),
                f"{span.label} {(span.end or trace.last) - span.begin:.3f} s {span.status}".strip(),
            )
            for span in spans
        )
        lanes.append(Lane(step, bar(step.first, step.last, "", step.path), bars))
    gaps = tuple(
        bar(gap.since, gap.until, "gap", f"nothing for {gap.seconds:.1f} s") for gap in trace.gaps
    )
    return Timeline(tuple(lanes), gaps, tuple(_marks(seconds)))


def _marks(seconds: float) -> list[tuple[float, float]]:
    """Four to ten round times: 1, 2 or 5 of a power of ten seconds apart."""
    apart = 1e-3
    factors = (2.0, 2.5, 2.0)
    number = 0
    while seconds / apart > 8:
        apart *= factors[number % 3]
        number += 1
    count = int(seconds / apart + 1e-9)
    return [(round(WIDTH * n * apart / seconds, 1), n * apart) for n in range(count + 1)]
