"""One producer of a load test: sends its share of the jobs when they are due, and says how late it was.

Run as `python -m lab.load.generator`. It reads one line of JSON, the order; says that it is ready; reads the moment of
the first job; and sends. Once a tick, and at its end, it writes a line of JSON. In a closed stage it reads the ends
that its users wait for. Its memory does not grow with the number of jobs.
"""

from __future__ import annotations

import base64
import gc
import heapq
import json
import os
import resource
import select
import signal
import sys
import time
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import redis
from kombu.exceptions import KombuError, OperationalError
from numpy.typing import NDArray

from lab.load import store
from lab.load.apps import Address, make_app
from lab.load.arguments import Arguments
from lab.load.books import Issued
from lab.load.draws import chosen, stream
from lab.load.hdr import Histogram, Recorder, layout
from lab.load.idents import job_id
from lab.load.model import Scenario, Stage
from lab.load.shapes import moments
from lab.load.stages import Block, stage_blocks
from lab.model import LabError
from producer.publish import Parcel, Sender

BATCH = 200
"""Most jobs in one write. All of them say that they were sent when the first is begun, for their ids are made before
they are; how late they are counts until the broker has taken the last."""
HELD = 2000
"""Figures that wait for their histogram: what it costs to take them in comes at once, and must not make jobs late."""
PAGE_BYTES = resource.getpagesize()


Send = Callable[[range], object]
"""Hands over the jobs at these places of the batch that is set."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a producer is told."""

    scenario: Scenario
    address: Address
    tag: int
    """Names the run in the ids of its jobs."""
    units_per_ms: Mapping[str, float]
    """Of each kind that is calibrated."""
    window_s: tuple[float, float]
    tick_s: float
    index: int = 0
    producers: int = 1
    null: bool = False
    """Make every message and send none."""

    def to_line(self) -> bytes:
        """As one line of JSON. It holds the broker's password, so it goes through a pipe."""
        return (
            json.dumps(
                {
                    "scenario": store.packed(self.scenario),
                    "address": store.packed(self.address) | {"url": self.address.url},
                    "tag": self.tag,
                    "units_per_ms": dict(self.units_per_ms),
                    "window_s": list(self.window_s),
                    "tick_s": self.tick_s,
                    "index": self.index,
                    "producers": self.producers,
                    "null": self.null,
                }
            ).encode()
            + b"\n"
        )

    @classmethod
    def from_line(cls, line: bytes) -> Order:
        """From such a line."""
        raw = json.loads(line)
        scenario = store.unpacked(Scenario, raw.pop("scenario"))
        address = Address(**raw.pop("address"))
        begin, end = raw.pop("window_s")
        return cls(scenario=scenario, address=address, window_s=(begin, end), **raw)


@dataclass(slots=True)
class Feed:
    """The batch that is being sent: what `Sender` asks for, place by place."""

    tag: int
    names: Sequence[tuple[str, str, float | str | None, float | None, int]]
    """Of each kind: task, queue, eta, expires, priority."""
    args: Sequence[Arguments]
    seqs: Sequence[int] = (0,)
    kinds: Sequence[int] = (0,)
    due_us: Sequence[int] = (0,)
    sent_us: int = 0

    def parcel(self, place: int) -> Parcel:
        """The job at this place of the block."""
        kind, seq, due_us = self.kinds[place], self.seqs[place], self.due_us[place]
        task, queue, eta, expires, priority = self.names[kind]
        lag_us = self.sent_us - due_us
        name = job_id(self.tag, kind, seq, due_us, lag_us if lag_us > 0 else 0)
        return Parcel(name, task, queue, self.args[kind].of(seq), eta, expires, priority)


def feed_of(order: Order) -> Feed:
    """What an order's jobs are made of."""
    scenario = order.scenario
    names: list[tuple[str, str, float | str | None, float | None, int]] = [
        (k.task, k.queue, k.eta if k.eta is not None else k.countdown_s, k.expires_s, k.priority)
        for k in scenario.kinds
    ]
    args = [
        Arguments(kind, seed=scenario.seed, units_per_ms=order.units_per_ms.get(kind.name, 0.0))
        for kind in scenario.kinds
    ]
    return Feed(order.tag, names, args)


@dataclass(slots=True)
class Log:
    """What is said of a tick; times are ns from the first moment of the run."""

    kinds: int
    tick_ns: int
    window_ns: tuple[int, int]
    tick: int = 0
    due: dict[int, list[int]] = field(default_factory=dict)
    sent: list[int] = field(default_factory=list)
    measured: list[int] = field(default_factory=list)
    lag: Recorder = field(default_factory=Recorder)
    lag_measured: Recorder = field(default_factory=Recorder)
    lag_closed: Recorder = field(default_factory=Recorder)
    taken: Recorder = field(default_factory=Recorder)
    lags: list[int] = field(default_factory=list)
    """Not yet in the histogram: one by one each would cost more than its job."""
    lags_measured: list[int] = field(default_factory=list)
    lags_closed: list[int] = field(default_factory=list)
    takes: list[int] = field(default_factory=list)
    is_closed: bool = False
    """Whether users wait for what is sent now."""
    last_ns: int = 0
    """When the last batch had been taken."""
    total: int = 0

    def __post_init__(self) -> None:
        self.sent, self.measured = [0] * self.kinds, [0] * self.kinds

    def batch(self, kinds: Sequence[int], due_us: Sequence[int], sent_ns: int, taken_ns: int) -> None:
        """Count some jobs that were sent at once; each is as late as the broker was in taking all of them."""
        begin, end = self.window_ns
        measured = self.lags_closed if self.is_closed else self.lags_measured
        tick_us = self.tick_ns // 1000
        for kind, us in zip(kinds, due_us, strict=True):
            tick = us // tick_us
            row = self.due.get(tick)
            if row is None:
                row = self.due[tick] = [0] * self.kinds
            row[kind] += 1
            self.sent[kind] += 1
            if begin <= us * 1000 <= end:
                self.measured[kind] += 1
                measured.append(taken_ns - us * 1000)
            else:
                self.lags.append(taken_ns - us * 1000)
        self.takes.append(taken_ns - sent_ns)
        self.last_ns = taken_ns
        self.total += len(kinds)
        if len(self.lags) + len(measured) + len(self.takes) > HELD:
            self._record()

    def _record(self) -> None:
        for recorder, values in (
            (self.lag, self.lags),
            (self.lag_measured, self.lags_measured),
            (self.lag_closed, self.lags_closed),
            (self.taken, self.takes),
        ):
            recorder.record(np.array(values, dtype=np.int64))
            values.clear()

    def line(self) -> dict[str, Any]:
        """What is said of this tick; the next begins."""
        self._record()
        said = {
            "tick": self.tick,
            "due": self.due,
            "sent": self.sent,
            "measured": self.measured,
            "lag": sparse(self.lag.value),
            "lag_measured": sparse(self.lag_measured.value),
            "lag_closed": sparse(self.lag_closed.value),
            "taken": sparse(self.taken.value),
            "total": self.total,
            "last_s": self.last_ns / 1e9,
            "rss": rss_bytes(),
            "cpu_s": time.process_time(),
        }
        self.due, self.sent, self.measured = {}, [0] * self.kinds, [0] * self.kinds
        for recorder in (self.lag, self.lag_measured, self.lag_closed, self.taken):
            recorder.clear()
        return said


def sparse(histogram: Histogram) -> list[Any]:
    """A histogram for the pipe: quicker to write than its encoded form, and a late producer is what must not be."""
    return [
        base64.b64encode(histogram.buckets.astype("<i8").tobytes()).decode(),
        base64.b64encode(histogram.counts.astype("<i8").tobytes()).decode(),
        histogram.min_ns,
        histogram.max_ns,
        histogram.sum_ns,
    ]


def _thick(raw: Sequence[Any]) -> Histogram:
    buckets, counts = (np.frombuffer(base64.b64decode(text), dtype="<i8").astype(np.int64) for text in raw[:2])
    return Histogram(layout(), buckets, counts, raw[2], raw[3], raw[4])


def issued(said: Mapping[str, Any]) -> Issued:
    """What a producer said of a tick."""
    return Issued(
        said["tick"],
        {int(tick): np.array(counts, dtype=np.int64) for tick, counts in said["due"].items()},
        np.array(said["sent"], dtype=np.int64),
        np.array(said["measured"], dtype=np.int64),
        _thick(said["lag"]),
        _thick(said["lag_measured"]),
        _thick(said["lag_closed"]),
        _thick(said["taken"]),
    )


def rss_bytes() -> int:
    """Resident memory of this process; the most it ever had, where the system does not tell the present."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class Producer:
    """Sends the jobs of an order when they are due."""

    def __init__(
        self,
        order: Order,
        feed: Feed,
        send: Send,
        say: Say,
        *,
        inbox: Inbox | None = None,
        now_ns: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`say` takes what is said of each tick; `inbox` tells a closed stage which jobs have ended."""
        self._now_ns, self._sleep = now_ns, sleep
        self._order, self._feed, self._send, self._say, self._inbox = order, feed, send, say, inbox
        scenario = order.scenario
        begin, end = order.window_s
        self._log = Log(len(scenario.kinds), round(order.tick_s * 1e9), (round(begin * 1e9), round(end * 1e9)))
        self._mix = stream(scenario.seed, "mix")
        self._weights = [kind.weight for kind in scenario.kinds]
        self._next = 0

    def run(self, start_ns: int) -> int:
        """Send everything; time 0 is `start_ns` of CLOCK_MONOTONIC. Returns how many jobs.

        What was sent is said even when the sending ends in an exception.
        """
        scenario, begin_s = self._order.scenario, 0.0
        try:
            for number, stage in enumerate(scenario.stages):
                self._log.is_closed = stage.is_closed
                if stage.is_closed:
                    self._closed(stage, start_ns, begin_s)
                else:
                    for block in self._stage(stage, number, begin_s):
                        self._block(block, start_ns)
                begin_s += stage.for_s
        except BaseException:
            self._say(self._log.line())
            raise
        self._say({**self._log.line(), "end": True})
        return self._log.total

    def _stage(self, stage: Stage, number: int, begin_s: float) -> Iterator[Block]:
        count = self._order.scenario.count
        for due_s in stage_blocks(stage, seed=self._order.scenario.seed, number=number, moments=_trace):
            own = due_s if count is None else due_s[: max(0, count - self._next)]
            if len(own):
                yield Block(self._next, begin_s + own)
            self._next += len(own)
            if len(own) < len(due_s):
                return

    def _block(self, block: Block, start_ns: int) -> None:
        """Send a producer's own share of a block."""
        order = self._order
        seqs = np.arange(block.first, block.first + len(block.due_s), dtype=np.int64)
        own = seqs % order.producers == order.index
        seqs = seqs[own]
        if not len(seqs):
            return
        # Whole microseconds, as the ids say them.
        due_us = np.round(block.due_s[own] * 1e6).astype(np.int64)
        kinds = chosen(self._mix, seqs, self._weights)
        self._run(seqs.tolist(), kinds.tolist(), due_us.tolist(), start_ns)

    def _run(self, seqs: list[int], kinds: list[int], due_us: list[int], start_ns: int) -> None:
        feed, log, at, count = self._feed, self._log, 0, len(seqs)
        feed.seqs, feed.kinds, feed.due_us = seqs, kinds, due_us
        now, sleep = self._now_ns, self._sleep
        while at < count:
            sent_ns = now() - start_ns
            if sent_ns // log.tick_ns > log.tick:
                self._tick(start_ns)
                continue
            early_ns = due_us[at] * 1000 - sent_ns
            if early_ns > 0:
                # Up to the end of the tick at most, so that it is told of in time.
                sleep(min(early_ns, (log.tick + 1) * log.tick_ns - sent_ns) / 1e9)
                continue
            feed.sent_us = sent_ns // 1000
            end = bisect_right(due_us, feed.sent_us, at, min(at + BATCH, count))
            self._send(range(at, end))
            log.batch(kinds[at:end], due_us[at:end], sent_ns, now() - start_ns)
            at = end

    def _tick(self, start_ns: int) -> None:
        """Say what the tick was, if it is over."""
        tick = (self._now_ns() - start_ns) // self._log.tick_ns
        if tick > self._log.tick:
            self._say(self._log.line())
            self._log.tick = tick

    def _closed(self, stage: Stage, start_ns: int, begin_s: float) -> None:
        """Each user waits for his job to end, thinks, and sends the next, until the stage is over."""
        assert self._inbox is not None  # noqa: S101  main() hands it over where there is a closed stage
        begin_us = round(begin_s * 1e6)
        over_us, think_us = begin_us + round(stage.for_s * 1e6), round(stage.think_s * 1e6)
        waiting = [begin_us] * stage.users  # when each user wants to send; a heap
        count, first = self._order.scenario.count, self._next
        while True:
            now_us = (self._now_ns() - start_ns) // 1000
            self._tick(start_ns)
            if now_us >= over_us or (count is not None and self._next >= count):
                return
            due: list[int] = []
            while waiting and waiting[0] <= now_us and len(due) < BATCH and waiting[0] < over_us:
                if count is not None and self._next + len(due) >= count:
                    break
                due.append(heapq.heappop(waiting))
            if due:
                seqs = list(range(self._next, self._next + len(due)))
                self._next += len(due)
                kinds = chosen(self._mix, np.array(seqs, dtype=np.int64), self._weights).tolist()
                self._run(seqs, kinds, due, start_ns)
            until_us = min(over_us, waiting[0] if waiting else over_us)
            left_s = 0.0 if due else max(0.0, until_us / 1e6 - (self._now_ns() - start_ns) / 1e9)
            for seq, ended_ns in self._inbox.ends(min(left_s, self._order.tick_s)):
                if seq >= first:
                    heapq.heappush(waiting, (ended_ns - start_ns) // 1000 + think_us)


class Inbox:
    """What the run says through the pipe: lines of text."""

    def __init__(self, fd: int) -> None:
        self._fd, self._rest = fd, b""

    def line(self) -> bytes:
        """The next line. Raises LabError when there will be none."""
        while b"\n" not in self._rest:
            self._read()
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def ends(self, wait_s: float) -> Iterator[tuple[int, int]]:
        """Jobs that have ended, and when, in ns: lines of `number,ns number,ns …`; returns at the first of them."""
        if b"\n" not in self._rest:
            if not select.select([self._fd], [], [], wait_s)[0]:
                return
            self._read()
        *full, self._rest = self._rest.split(b"\n")
        for line in full:
            for pair in line.split():
                seq, _, ended = pair.partition(b",")
                yield int(seq), int(ended)

    def _read(self) -> None:
        read = os.read(self._fd, 1 << 16)
        if not read:
            raise LabError("the run that this producer belongs to has ended")
        self._rest += read


def _trace(stage: Stage) -> Iterable[NDArray[np.float64]]:
    return moments(Path(stage.trace))


class NullSend:
    """Makes every message and hands it to nobody: what is left is the generator's own work."""

    def __init__(self, sender: Sender) -> None:
        self._sender = sender
        self._sink = os.open(os.devnull, os.O_WRONLY)

    def __call__(self, places: range) -> None:
        """Encode them, and write them where nothing is kept."""
        for messages in self._sender.encode(places).values():
            os.write(self._sink, b"".join(messages))


Say = Callable[[Mapping[str, Any]], None]


def say(words: Mapping[str, Any]) -> None:
    """One line on stdout."""
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Do as the order on stdin says. What goes wrong is said as `error`."""
    inbox = Inbox(sys.stdin.fileno())

    def stop(*_: object) -> None:
        raise LabError("it was told to stop")

    signal.signal(signal.SIGTERM, stop)
    try:
        order = Order.from_line(inbox.line())
        feed = feed_of(order)
        app = make_app(order.address)
        # The same object each time need not be encoded again; arguments that are drawn are.
        sender = Sender(app, feed.parcel, ignore_result=order.address.ignore_result, encode_once=True)
        sender.prepare(*order.scenario.queues)
        send: Send = NullSend(sender) if order.null else sender
        say({"ready": True, "path": sender.path, "pid": os.getpid(), "rss": rss_bytes()})
        start_ns = int(inbox.line())
        gc.collect()
        gc.freeze()
        # A pass of the collector takes milliseconds, and nothing here makes cycles.
        gc.disable()
        Producer(order, feed, send, say, inbox=inbox).run(start_ns)
        sender.close()
        app.close()
    except (KombuError, OperationalError, redis.RedisError, LabError, OSError, ValueError) as error:
        say({"error": " ".join(str(error).split()) or type(error).__name__})
        sys.exit(1)


if __name__ == "__main__":
    main()
