"""Runs a scenario at one rate after the other, until the highest that can be kept up is known."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace

from lab.load import limit
from lab.load.limit import Limit, Probe
from lab.load.model import Outcome, Scenario, Search, Tick
from lab.load.run import run_on
from lab.load.stand import Stand
from lab.model import BadInput, Fault


def search_of(scenario: Scenario, *, low_hz: float | None = None, high_hz: float | None = None) -> Search:
    """The scenario's own [search], with other ends where they are given. Raises BadInput without any, or for nonsense.

    Without a table the search goes from a tenth of the scenario's highest rate to ten times of it.
    """
    if scenario.is_closed:
        raise BadInput(f"{scenario.path}: a closed load has no rate to search for; use open stages")
    search = scenario.search
    if search is None:
        if not scenario.peak_hz:
            raise BadInput(f"{scenario.path}: the stages name no rate; say where to search in a table [search]")
        search = Search(scenario.peak_hz / 10, scenario.peak_hz * 10)
    changed = replace(search, low_hz=low_hz or search.low_hz, high_hz=high_hz or search.high_hz)
    asked = "--low and --high: " if low_hz or high_hz else f"{scenario.path}:{search.line}: " if search.line else ""
    return limit.check(changed, asked)


def find(
    scenario: Scenario,
    search: Search,
    *,
    force: bool = False,
    fresh: bool = False,
    say: Callable[[str], None],
    on_tick: Callable[[Tick], None],
    on_rate: Callable[[Scenario, int], None] = lambda *_: None,
) -> Iterator[tuple[Outcome, Limit]]:
    """Each run, and what all of them so far add up to. `fresh` starts new workers for every run.

    `on_rate` is told of each run before it starts, and its number.
    """
    probes: list[Probe] = []
    with contextlib.ExitStack() as stack:
        stand: Stand | None = None
        while (rate_hz := limit.next_rate(search, probes)) is not None:
            if stand is None:
                stand = stack.enter_context(Stand(scenario, force=force, say=say))
            probing = planned(scenario, search, rate_hz, len(probes))
            on_rate(probing, len(probes) + 1)
            outcome = run_on(stand, probing, on_tick=on_tick)
            probes.append(limit.probe(search, rate_hz, outcome))
            if fresh and not scenario.attached:
                stack.close()
                stand = None
            elif limit.next_rate(search, probes) is not None and (left := stand.clear()):
                outcome = with_jobs_left(outcome, left)
                probes[-1] = limit.probe(search, rate_hz, outcome)
            yield outcome, limit.answer(search, probes)


def with_jobs_left(outcome: Outcome, left: int) -> Outcome:
    """The outcome of a run after which no other can be made: the next would have its jobs to do besides."""
    says = (
        f"{left} jobs of the run were still queued or under way after another {outcome.scenario.drain_s:g} s, and the "
        "next would have had to do them too: search up to a lower rate, or drain longer"
    )
    return replace(outcome, faults=(*outcome.faults, Fault("jobs_left", says)))


def planned(scenario: Scenario, search: Search, rate_hz: float, number: int) -> Scenario:
    """What the run of this number, counted from 0, sends at this rate."""
    # Another seed for each run: what the arrivals of one happened to be must not decide them all.
    probing = scenario.at(rate_hz, for_s=search.for_s, arrivals=search.arrivals, seed=scenario.seed + number)
    # What overflows need not be waited for longer than it took to overflow; what is postponed must be.
    postponed_s = max(kind.countdown_s or 0.0 for kind in scenario.kinds)
    return replace(probing, drain_s=min(scenario.drain_s, search.for_s + postponed_s))
