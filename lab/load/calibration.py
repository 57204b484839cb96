"""What the generator itself can do: its ceiling, its punctuality, and the memory it takes over millions of jobs."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from lab.children import kill
from lab.load.books import Issued
from lab.load.generator import Order, issued
from lab.load.hdr import Histogram
from lab.load.model import Arrivals, Kind, Piece, Scenario, Stage
from lab.load.sending import LOOK_S, await_producers, start_producer
from lab.load.stand import Stand
from lab.model import LabError

PACED_HZ, PACED_S = 20_000.0, 5.0
MOST_QUEUED = 2_000_000
"""Messages that are left in a queue of our own; a thousand take about a megabyte of the broker's memory."""
STALLED_S = 60.0


@dataclass(frozen=True, slots=True)
class Memory:
    """What a producer held when it had made so many jobs."""

    jobs: int
    rss_bytes: int
    at_s: float


@dataclass(frozen=True, slots=True)
class Pace:
    """How punctual a paced load was."""

    rate_hz: float
    """Asked for."""
    sent_hz: float
    """From the first job due to the last one handed over."""
    jobs: int
    lag: Histogram
    taken: Histogram
    """How long each batch took to be handed over."""
    cpu_share: float
    """Of one core, all producers together."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What came out."""

    producers: int
    jobs: int
    ceiling_hz: float
    """Messages made a second as fast as it goes, and handed to nobody."""
    memory: tuple[Memory, ...]
    """Of one producer, over all of these jobs."""
    null: Pace
    """Paced, and handed to nobody: what its own loop and this machine's timers cost."""
    queue: Pace
    """Paced, into a queue that nobody reads."""


def calibrate(
    jobs: int,
    *,
    rate_hz: float = PACED_HZ,
    for_s: float = PACED_S,
    producers: int = 1,
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
    on_memory: Callable[[Memory], None] = lambda _: None,
) -> Calibration:
    """Measure the generator on an embedded broker. Raises LabError when that does not come up."""
    kind = Kind("noop", "sidestep.noop", "noop")
    with Stand(_scenario(kind, 1.0, 1.0, seed), say=say) as stand:
        say(f"making {jobs} messages as fast as it goes")
        memory: list[Memory] = []
        # All due within the first millisecond: a producer that is never early never sleeps.
        flood = _scenario(kind, jobs / 1e-3, 1e-3, seed)
        begun = time.monotonic()

        def remember(told: _Told) -> None:
            memory.append(Memory(told.jobs, told.rss_bytes, time.monotonic() - begun))
            on_memory(memory[-1])

        made = _send(stand, flood, 1, null=True, each=remember)
        say(f"pacing {rate_hz:g} jobs/s for {for_s:g} s, handed to nobody")
        paced = _scenario(kind, rate_hz, for_s, seed)
        null = _pace(_send(stand, paced, producers, null=True), rate_hz)
        queued = paced.at(rate_hz, for_s=min(for_s, MOST_QUEUED / rate_hz), arrivals=Arrivals.EVEN)
        say(f"pacing {rate_hz:g} jobs/s for {queued.planned_s:g} s into a queue")
        queue = _pace(_send(stand, queued, producers, null=False), rate_hz)
        stand.clear()
    return Calibration(producers, jobs, made.jobs / (made.wall_s or math.nan), tuple(memory), null, queue)


def _scenario(kind: Kind, rate_hz: float, for_s: float, seed: int) -> Scenario:
    stage = Stage("constant", for_s, (Piece(for_s, rate_hz, rate_hz),))
    return Scenario("calibration", (kind,), (stage,), seed=seed, crews=())


@dataclass(slots=True)
class _Told:
    """What producers have said, all together."""

    jobs: int = 0
    rss_bytes: int = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0
    """From the first job due to the last one handed over."""
    lag: Histogram = field(default_factory=Histogram)
    taken: Histogram = field(default_factory=Histogram)


def _send(
    stand: Stand, scenario: Scenario, producers: int, *, null: bool, each: Callable[[_Told], None] = lambda _: None
) -> _Told:
    """Run producers alone, without anybody who works."""
    orders = [
        Order(
            scenario=scenario,
            address=stand.address,
            tag=1,
            units_per_ms={},
            window_s=(0.0, scenario.planned_s),
            tick_s=1.0,
            index=index,
            producers=producers,
            null=null,
        )
        for index in range(producers)
    ]
    running = [
        start_producer(stand.children, order, name=f"null-{time.monotonic_ns()}-{order.index}") for order in orders
    ]
    told = _Told()
    try:
        await_producers(running)
        start_ns = time.monotonic_ns() + 200_000_000
        for producer in running:
            producer.send(b"%d\n" % start_ns)
        heard = time.monotonic()
        before = [0.0] * len(running)
        while not all(producer.over for producer in running):
            for number, producer in enumerate(running):
                for said in producer.lines():
                    heard = time.monotonic()
                    if "error" in said:
                        raise LabError(f"a producer could not send: {said['error']}")
                    one: Issued = issued(said)
                    told.lag = told.lag.merged(one.lag, one.lag_measured, one.lag_closed)
                    told.taken = told.taken.merged(one.taken)
                    told.jobs += int(one.sent.sum())
                    told.rss_bytes = int(said["rss"])
                    told.cpu_s += float(said["cpu_s"]) - before[number]
                    before[number] = float(said["cpu_s"])
                    told.wall_s = max(told.wall_s, float(said["last_s"]))
                    producer.over = bool(said.get("end"))
                    each(told)
            if time.monotonic() - heard > STALLED_S:
                raise LabError(f"a producer said nothing for {STALLED_S:.0f} s; is the machine overloaded?")
            time.sleep(LOOK_S)
    finally:
        for producer in running:
            kill(producer.process)
    return told


def _pace(told: _Told, rate_hz: float) -> Pace:
    return Pace(
        rate_hz,
        max(told.jobs - 1, 1) / (told.wall_s or math.nan),
        told.jobs,
        told.lag,
        told.taken,
        told.cpu_s / told.wall_s if told.wall_s else 0.0,
    )
