"""A load test while it runs: a screen on a terminal, a plain line every few seconds in a pipe."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Column, Table
from rich.text import Text

from lab.load.hdr import Histogram
from lab.load.measures import merged
from lab.load.model import Tick
from lab.report.units import NONE, number, plain

RECENT_TICKS = 5
"""Rates and percentiles are those of the last so many ticks: one alone jumps, more than these lag behind."""
LINE_EVERY_S, MOST_LINES = 5.0, 400
"""A run for a night says no more lines than one for half an hour."""
SHOWN = (("p50", 0.5), ("p99", 0.99), ("max", 1.0))
RATES = ("done/s", "failed/s")
NO_QUEUES: Mapping[str, str] = {}
MOST_QUEUES = 4
"""In a plain line, the deepest first."""
MOST_ROWS = 12
"""Of a list of workers: a terminal is some 24 lines high."""


class LiveView:
    """Hand it every tick as it ends; it draws when that is due. Nothing is drawn from a thread of its own."""

    def __init__(self, console: Console, *, name: str, planned_s: float, queues: Mapping[str, str] = NO_QUEUES) -> None:
        """`queues` says to which queue the jobs of each kind go."""
        self._queues = queues
        self._console, self._name, self._planned_s = console, name, planned_s
        self._recent: deque[Tick] = deque(maxlen=RECENT_TICKS)
        self._failed, self._said_s = 0, -math.inf
        self._every_s = max(LINE_EVERY_S, planned_s / MOST_LINES)
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> LiveView:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()

    def tick(self, tick: Tick) -> None:
        """A tick has ended."""
        self._recent.append(tick)
        self._failed += tick.whole.failed
        recent = tuple(self._recent)
        if self._live:
            self._live.update(
                screen(recent, name=self._name, planned_s=self._planned_s, failed=self._failed, queues=self._queues)
            )
            self._live.refresh()
        elif (now_s := tick.at_s + tick.length_s) - self._said_s >= self._every_s:
            self._said_s = now_s
            self._console.print(line(recent, failed=self._failed), soft_wrap=True)


def line(recent: Sequence[Tick], *, failed: int) -> str:
    """The last ticks in one line."""
    last = recent[-1]
    parts = [
        f"{last.at_s + last.length_s:.0f} s",
        *([] if last.phase == "measured" else [last.phase]),
        f"offered {number(_rate(recent, lambda t: t.whole.due))}/s",
        f"done {number(_rate(recent, lambda t: t.whole.done))}/s",
        f"in flight {last.in_flight}",
        f"waiting {_waiting(last)}{_by_queue(last)}",
        f"p50 {_ms(_latency(recent), 0.5)}",
        f"p99 {_ms(_latency(recent), 0.99)}",
        f"lag p99 {_ms(_lag(recent), 0.99)}",
        f"failed {failed}",
    ]
    return "  ".join(parts)


def screen(
    recent: Sequence[Tick], *, name: str, planned_s: float, failed: int, queues: Mapping[str, str] = NO_QUEUES
) -> RenderableType:
    """The last ticks on one screen: all jobs, then by kind, queue and worker."""
    last = recent[-1]
    seconds = math.fsum(tick.length_s for tick in recent)
    head = Text.assemble(
        (plain(name), "bold"),
        f"  {last.at_s + last.length_s:.0f} of {planned_s:.0f} s  ",
        (last.phase, "bold" if last.phase == "measured" else "yellow"),
    )
    whole = Table(box=None, pad_edge=False, show_header=False)
    for row in (
        (
            f"last {seconds:.0f} s",
            f"offered {number(_rate(recent, lambda t: t.whole.due))} jobs/s",
            f"sent {number(_rate(recent, lambda t: t.whole.sent))} jobs/s",
            f"done {number(_rate(recent, lambda t: t.whole.done))} jobs/s",
        ),
        (
            "now",
            f"in flight {last.in_flight}",
            f"waiting {_waiting(last)}",
            f"fetched {NONE if last.unacked is None else last.unacked}",
        ),
        ("latency", *(f"{words} {_ms(_latency(recent), q)}" for words, q in SHOWN)),
        ("generator's lag", *(f"{words} {_ms(_lag(recent), q)}" for words, q in SHOWN)),
    ):
        whole.add_row(*row)
    errors = Text(f"failed {failed} in all", style="bold red" if failed else "")
    tables = Columns([Padding(table, (1, 4, 0, 0)) for table in _tables(recent, queues) if table.row_count])
    return Group(head, whole, errors, tables)


def _tables(recent: Sequence[Tick], of_kinds: Mapping[str, str]) -> list[Table]:
    last = recent[-1]
    seconds = math.fsum(tick.length_s for tick in recent)
    kinds = Table("kind", *map(_right, (*RATES, "p50", "p99")), box=None, pad_edge=False)
    for name in sorted({kind for tick in recent for kind in tick.kinds}):
        took = _together(recent, "kind_latency", {name})
        kinds.add_row(plain(name), *_done_and_failed(recent, {name}, seconds), _ms(took, 0.5), _ms(took, 0.99))
    queues = Table("queue", *map(_right, ("waiting", *RATES, "p99")), box=None, pad_edge=False)
    for name, depth in sorted(last.depth.items()):
        own = {kind for kind, queue in of_kinds.items() if queue == name}
        rates = _done_and_failed(recent, own, seconds) if own else (NONE, NONE)
        queues.add_row(plain(name), str(depth), *rates, _ms(_together(recent, "kind_latency", own), 0.99))
    workers = Table("worker", *map(_right, ("ended/s", "failed/s", "p99")), box=None, pad_edge=False)
    ended, failed = (
        [sum(getattr(tick, of).get(name, 0) for tick in recent) / seconds for name in _workers(recent)]
        for of in ("workers", "worker_failed")
    )
    rows = list(zip(_workers(recent), ended, failed, strict=True))
    for name, ended_hz, failed_hz in rows[:MOST_ROWS]:
        took = _together(recent, "worker_latency", {name})
        workers.add_row(plain(name), number(ended_hz), number(failed_hz), _ms(took, 0.99))
    if others := rows[MOST_ROWS:]:
        sums = (math.fsum(rates) for rates in (ended[MOST_ROWS:], failed[MOST_ROWS:]))
        workers.add_row(f"{len(others)} more", *map(number, sums), NONE)
    return [kinds, queues, workers]


def _together(recent: Sequence[Tick], by: str, names: Collection[str]) -> Histogram:
    """Latency of these kinds, or workers; empty where none of their jobs ended."""
    found = [getattr(tick, by)[name] for tick in recent for name in names if name in getattr(tick, by)]
    return found[0].merged(*found[1:]) if found else Histogram()


def _done_and_failed(recent: Sequence[Tick], kinds: Collection[str], seconds: float) -> tuple[str, str]:
    tallies = [tick.kinds[name] for tick in recent for name in kinds if name in tick.kinds]
    done, failed = (sum(getattr(one, what) for one in tallies) / seconds for what in ("done", "failed"))
    return number(done), number(failed)


def _workers(recent: Sequence[Tick]) -> list[str]:
    return sorted({name for tick in recent for name in tick.workers})


def _right(words: str) -> Column:
    return Column(words, justify="right")


def _rate(recent: Sequence[Tick], of: Callable[[Tick], int]) -> float:
    seconds = math.fsum(tick.length_s for tick in recent)
    return sum(map(of, recent)) / seconds if seconds else math.nan


def _waiting(tick: Tick) -> str:
    return str(tick.depth_all) if tick.depth else NONE


def _by_queue(tick: Tick) -> str:
    """What waits in each queue, where there are several."""
    if len(tick.depth) < 2:
        return ""
    rows = sorted(tick.depth.items(), key=lambda row: (-row[1], row[0]))
    more = f", {len(rows) - MOST_QUEUES} more" if len(rows) > MOST_QUEUES else ""
    return f" ({', '.join(f'{plain(name)} {depth}' for name, depth in rows[:MOST_QUEUES])}{more})"


def _latency(recent: Sequence[Tick]) -> Histogram:
    return merged(recent, lambda tick: tick.latency)


def _lag(recent: Sequence[Tick]) -> Histogram:
    return merged(recent, lambda tick: tick.lag)


def _ms(histogram: Histogram, q: float) -> str:
    if not len(histogram):
        return NONE
    seconds = histogram.quantile_s(q)
    return f"{number(seconds * 1e3)} ms" if seconds < 10 else f"{number(seconds)} s"
