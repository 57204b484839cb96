"""The shapes of load that a scenario file can name, and how each is read."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from lab.load import stages
from lab.load.checked import Table, shown
from lab.load.model import Arrivals, Piece, Stage

MOST_PIECES = 100_000
_MOMENT = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")


def stage_in(table: Table) -> Stage:
    """The stage in a table [[stage]]. Raises BadInput."""
    shape = (
        table.one_of("shape", SHAPES_OF_LOAD, "constant")
        if table.has("shape")
        else table.fail(f"a [[stage]] needs a shape; there are: {', '.join(SHAPES_OF_LOAD)}")
    )
    keys, make = SHAPES_OF_LOAD[shape]
    stage = make(table, f"a {shape} stage")
    table.done(f"a {shape} stage", ("shape", *keys))
    if stage.expected_jobs == 0:
        table.fail("this stage makes no job: its rate is 0 all the time")
    return stage


def _arrivals(table: Table) -> Arrivals:
    return Arrivals(table.one_of("arrivals", Arrivals, Arrivals.EVEN))


def _constant(table: Table, what: str) -> Stage:
    rate, for_s = table.rate_hz("rate", what=what), table.duration_s("for", what=what)
    return Stage("constant", for_s, (Piece(for_s, rate, rate),), line=table.line)


def _poisson(table: Table, what: str) -> Stage:
    rate, for_s = table.rate_hz("rate", what=what), table.duration_s("for", what=what)
    return Stage("poisson", for_s, (Piece(for_s, rate, rate),), Arrivals.RANDOM, line=table.line)


def _ramp(table: Table, what: str) -> Stage:
    low, high = table.rate_hz("from", zero=True, what=what), table.rate_hz("to", zero=True, what=what)
    for_s = table.duration_s("for", what=what)
    return Stage("ramp", for_s, (Piece(for_s, low, high),), _arrivals(table), line=table.line)


def _steps(table: Table, what: str) -> Stage:
    rates, each_s = table.rates_hz("rates", what), table.duration_s("each", what=what)
    pieces = tuple(Piece(each_s, rate, rate) for rate in rates)
    return Stage("steps", each_s * len(rates), pieces, _arrivals(table), line=table.line)


def _spike(table: Table, what: str) -> Stage:
    base, peak = table.rate_hz("base", zero=True, what=what), table.rate_hz("peak", what=what)
    for_s, width_s = table.duration_s("for", what=what), table.duration_s("width", what=what)
    at_s = table.duration_s("at", (for_s - width_s) / 2, zero=True) if for_s > width_s else 0.0
    if at_s + width_s > for_s or for_s <= width_s:
        table.fail(f"the spike of {width_s:g} s at {at_s:g} s does not fit into {for_s:g} s", "width")
    stretches = ((at_s, base), (width_s, peak), (for_s - at_s - width_s, base))
    pieces = tuple(Piece(length, rate, rate) for length, rate in stretches if length > 0)
    return Stage("spike", for_s, pieces, _arrivals(table), line=table.line)


def _on_off(table: Table, what: str) -> Stage:
    rate, idle = table.rate_hz("rate", what=what), table.rate_hz("idle", 0.0, zero=True)
    on_s, off_s = table.duration_s("on", what=what), table.duration_s("off", what=what)
    for_s = table.duration_s("for", what=what)
    if for_s / (on_s + off_s) * 2 > MOST_PIECES:
        table.fail(f"more than {MOST_PIECES // 2} times on and off cannot be meant", "on")
    pieces: list[Piece] = []
    left_s = for_s
    while left_s > 1e-9:
        length, hz = (on_s, rate) if len(pieces) % 2 == 0 else (off_s, idle)
        pieces.append(Piece(min(length, left_s), hz, hz))
        left_s -= length
    return Stage("on-off", for_s, tuple(pieces), _arrivals(table), line=table.line)


def _sine(table: Table, what: str) -> Stage:
    low, high = table.rate_hz("low", zero=True, what=what), table.rate_hz("high", what=what)
    if low >= high:
        table.fail(f"low must be below high, not {low:g} and {high:g}", "low")
    return Stage(
        "sine",
        table.duration_s("for", what=what),
        arrivals=_arrivals(table),
        mean_hz=(low + high) / 2,
        swing_hz=(high - low) / 2,
        period_s=table.duration_s("period", what=what),
        line=table.line,
    )


def _closed(table: Table, what: str) -> Stage:
    table.need("users", what)
    users = table.whole("users", 1, least=1, most=100_000) or 1
    think_s = table.duration_s("think", 0.0, zero=True)
    return Stage("closed", table.duration_s("for", what=what), users=users, think_s=think_s, line=table.line)


def _replay(table: Table, what: str) -> Stage:
    name = table.need("file", what)
    if not isinstance(name, str) or not name:
        table.fail(f"file must name a file of seconds, not {shown(name)}", "file")
    # As seen from the scenario, wherever the command is run.
    trace = table.file.path.parent / name
    speed = table.number("speed", 1.0)
    first = last = None
    jobs = 0
    try:
        for block in moments(trace):
            first = float(block[0]) if first is None else first
            last = float(block[-1])
            jobs += len(block)
    except ValueError as error:
        table.fail(str(error), "file")
    except OSError as error:
        table.fail(f"the trace {name} cannot be read ({error.strerror})", "file")
    if first is None or last is None:
        table.fail(f"the trace {name} holds no moment", "file")
    for_s = (last - first) / speed
    if for_s <= 0:
        table.fail(f"the trace {name} has no length: all of its moments are the same", "file")
    return Stage("replay", for_s, trace=str(trace), trace_jobs=jobs, speed=speed, line=table.line)


def moments(trace: Path) -> Iterator[stages.Seconds]:
    """The moments in a trace, a block at a time: seconds, one a line; blank lines and those with # are skipped.

    Raises ValueError, with the line, for what is no number or goes back in time; OSError for what cannot be read.
    """
    held: list[float] = []
    latest = -math.inf
    with trace.open("r", encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            text = line.partition("#")[0].strip()
            if not text:
                continue
            if not _MOMENT.fullmatch(text):
                raise ValueError(f"{trace}:{number}: {shown(text)} is no number of seconds")
            moment = float(text)
            if moment < latest or not math.isfinite(moment):
                raise ValueError(f"{trace}:{number}: {text} comes before the moment above it")
            held.append(moment)
            latest = moment
            if len(held) == stages.BLOCK:
                yield np.array(held)
                held.clear()
    if held:
        yield np.array(held)


SHAPES_OF_LOAD: Mapping[str, tuple[tuple[str, ...], Callable[[Table, str], Stage]]] = {
    "constant": (("rate", "for"), _constant),
    "poisson": (("rate", "for"), _poisson),
    "ramp": (("from", "to", "for", "arrivals"), _ramp),
    "steps": (("rates", "each", "arrivals"), _steps),
    "spike": (("base", "peak", "for", "at", "width", "arrivals"), _spike),
    "on-off": (("rate", "idle", "on", "off", "for", "arrivals"), _on_off),
    "sine": (("low", "high", "period", "for", "arrivals"), _sine),
    "closed": (("users", "think", "for"), _closed),
    "replay": (("file", "speed"), _replay),
}
"""What each shape is called, its keys, and how it is read."""
