"""Plans that cannot come true are refused before anything is started or sent, with the line that says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

from lab.load.model import Scenario
from lab.load.stages import Moments, blocks, no_trace
from lab.model import BadInput

Refusal = tuple[int, str]
"""The line, and what cannot be there."""
MOST_PRODUCER_HZ = 300_000.0
"""Of one producer. A second of a core put 140,000 empty messages into a queue, 200 at once, and made 180,000 for
nobody; twice as many is more than a faster core will do."""


def refuse_impossible(scenario: Scenario, *, now: datetime, producers: int, moments: Moments = no_trace) -> None:
    """Raise BadInput for the first thing in the scenario that cannot be, if it were run `now` by so many producers."""
    checks: tuple[Callable[[], Iterator[Refusal]], ...] = (
        lambda: _too_fast(scenario, producers),
        lambda: _too_late(scenario, now),
        lambda: _too_short(scenario, moments),
    )
    for check in checks:
        for line, says in check():
            raise BadInput(f"{at(scenario, line)}{says}")


def at(scenario: Scenario, line: int) -> str:
    """How a complaint about a line of the scenario's file begins; empty where there is no file."""
    return f"{scenario.path}:{line}: " if scenario.path and line else ""


def _too_fast(scenario: Scenario, producers: int) -> Iterator[Refusal]:
    most_hz = MOST_PRODUCER_HZ * producers
    for stage in scenario.stages:
        if stage.peak_hz > most_hz:
            yield (
                stage.line,
                f"{producers} producer{'s' if producers > 1 else ''} cannot offer {stage.peak_hz:g} jobs/s, at most "
                f"{most_hz:g}: lower the rate, or let more of them send (producers = N)",
            )


def _too_late(scenario: Scenario, now: datetime) -> Iterator[Refusal]:
    over = now + timedelta(seconds=scenario.planned_s + scenario.drain_s)
    for kind in scenario.kinds:
        if kind.countdown_s is not None and kind.countdown_s >= scenario.drain_s:
            yield (
                kind.line,
                f"the last {kind.name!r} would be lost: its countdown of {kind.countdown_s:g} s is not over within the "
                f"drain of {scenario.drain_s:g} s; drain longer, or count down from less",
            )
        if kind.eta is not None and (eta := datetime.fromisoformat(kind.eta)) >= over:
            yield (
                kind.line,
                f"every {kind.name!r} would be lost: its eta is {(eta - over).total_seconds():.0f} s after the end of "
                "the drain; name an earlier one, or a countdown",
            )


def _too_short(scenario: Scenario, moments: Moments) -> Iterator[Refusal]:
    """A count that is reached within the warm-up. Of users nobody knows when they reach it."""
    if scenario.count is None or scenario.is_closed:
        return
    for block in blocks(scenario.stages, seed=scenario.seed, count=scenario.count, moments=moments):
        if block.due_s[-1] >= scenario.warmup_s:
            return
    yield (
        scenario.lines.get("count", 0),
        f"the last of {scenario.count} jobs is due within the warm-up of {scenario.warmup_s:g} s, and nothing is left "
        "to measure: ask for more, or shorten the warm-up",
    )
