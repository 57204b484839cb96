"""What `sidestep load --find-limit` does: search, show each rate as it is tried, and keep every run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from lab.load import after, export, searches, store
from lab.load.after import Wanted
from lab.load.limit import Limit, Probe
from lab.load.live import LiveView
from lab.load.model import SCHEMA, Outcome, Scenario, Search, Tick
from lab.load.search import find
from lab.report.units import number, plural

DONE, INVALID, INTERRUPTED = 0, 3, 130


class _Screen:
    """A live view for each run, one after the other."""

    def __init__(self, notes: Console, on_tick: Callable[[Tick], None]) -> None:
        self._notes, self._also = notes, on_tick
        self._view: LiveView | None = None

    def begin(self, planned: Scenario, run: int) -> None:
        """A run starts."""
        name = f"{planned.name}, run {run}: {number(planned.peak_hz, 4)} jobs/s"
        if not self._notes.is_terminal:
            self._notes.print(name, soft_wrap=True)
        self._view = LiveView(
            self._notes, name=name, planned_s=planned.planned_s, queues={one.name: one.queue for one in planned.kinds}
        )
        self._view.__enter__()

    def tick(self, tick: Tick) -> None:
        """A tick has ended."""
        if self._view:
            self._view.tick(tick)
        self._also(tick)

    def end(self) -> None:
        """The run has ended."""
        if self._view:
            self._view.__exit__(None, None, None)
            self._view = None


def find_limit(
    asked: Scenario,
    search: Search,
    *,
    directory: Path,
    wanted: Wanted,
    human: Console,
    notes: Console,
    force: bool,
    fresh: bool,
    want_json: bool,
    on_tick: Callable[[Tick], None],
) -> int:
    """Search, say what was found, write it down. The exit code: 0 with an answer, 3 without, 130 after Ctrl-C."""
    human.print(
        f"searching from {number(search.low_hz)} to {number(search.high_hz)} jobs/s: "
        f"{number(asked.warmup_s + search.for_s)} s a run, at most {plural(search.most, 'run')}",
        soft_wrap=True,
    )
    screen, rates_hz = _Screen(notes, on_tick), list[float]()
    outcome: Outcome | None = None
    limit: Limit | None = None
    try:
        for outcome, limit in find(
            asked,
            search,
            force=force,
            fresh=fresh,
            say=lambda words: notes.print(words, style="dim"),
            on_tick=screen.tick,
            on_rate=screen.begin,
        ):
            screen.end()
            rates_hz.append(limit.probes[-1].rate_hz)
            # Kept after every run: Ctrl-C at the last must not cost the first.
            store.save(outcome, searches.run_folder(directory, len(rates_hz)))
            searches.save(directory, search, rates_hz)
            human.print(probe_line(limit.probes[-1]), soft_wrap=True)
    finally:
        screen.end()
    assert outcome is not None  # noqa: S101  a search tries one rate at least
    assert limit is not None  # noqa: S101
    for line in limit_lines(limit):
        human.print(line, soft_wrap=True)
    for name, path in after.write(outcome, wanted, limit):
        human.print(f"{name}: {path}", soft_wrap=True)
    human.print(f"result: {directory}", soft_wrap=True)
    if want_json:
        print(json.dumps(as_json(asked.name, limit), ensure_ascii=False, allow_nan=False))
    if any(fault.check == "interrupted" for fault in outcome.faults):
        return INTERRUPTED
    return INVALID if limit.refused else DONE


def as_json(name: str, limit: Limit) -> dict[str, object]:
    """What --json prints of a search."""
    return {"schema": SCHEMA, "scenario": name, "valid": not limit.refused, "limit": export.limit_json(limit)}


def probe_line(probe: Probe) -> str:
    """One run in one line."""
    return f"{number(probe.rate_hz, 4)} jobs/s {probe.seen}: {probe.because}"


def limit_lines(limit: Limit) -> list[str]:
    """What the search found, in words."""
    if limit.interval_hz is None or limit.held_hz is None or limit.broke_hz is None:
        return [f"NO ANSWER: {limit.refused}"]
    low, high = limit.interval_hz
    return [
        f"LIMIT: between {number(low)} and {number(high)} jobs/s",
        f"  {number(limit.held_hz, 4)} jobs/s held every time, {number(limit.broke_hz, 4)} broke every time; "
        f"{plural(len(limit.probes), 'run')} in all. The lower end allows for the growth that could not be seen.",
    ]
