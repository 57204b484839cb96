"""Keeps account of a run as its jobs end: histograms, counts, one bit a job. No more memory for ten million jobs. Pure.

Ends come in batches, as arrays. A job is known by its number; three bits say whether it has ended well, has failed, and
has ended again after it had ended well. A job that fails and is tried again is done once it ends well; until then it
has failed. Only its first good end counts in a histogram.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.load.hdr import COARSE_DIGITS, Histogram, Recorder, of
from lab.load.idents import Idents
from lab.load.model import Holds, Spans, Tally, Tick
from lab.model import Ledger

Ints = NDArray[np.int64]
_GROWTH_BYTES = 1 << 20
EARLY_NS = 1_000_000
"""An end so long before its job was sent cannot be: clocks of machines that are kept together are as near as that."""
"""Bits are added for eight million jobs at once."""


class Bits:
    """One bit a job."""

    def __init__(self) -> None:
        self._bytes = np.zeros(0, dtype=np.uint8)

    def of(self, seqs: Ints) -> NDArray[np.bool_]:
        """Which of these jobs have it."""
        self._reach(seqs)
        return np.asarray((self._bytes[seqs >> 3] >> (seqs & 7).astype(np.uint8)) & 1, dtype=np.bool_)

    def set(self, seqs: Ints) -> None:
        """Give it to these."""
        self._reach(seqs)
        np.bitwise_or.at(self._bytes, seqs >> 3, np.left_shift(np.uint8(1), (seqs & 7).astype(np.uint8)))

    def _reach(self, seqs: Ints) -> None:
        if len(seqs) and (needed := (int(seqs.max()) >> 3) + 1) > len(self._bytes):
            size = (needed // _GROWTH_BYTES + 1) * _GROWTH_BYTES
            self._bytes = np.concatenate((self._bytes, np.zeros(size - len(self._bytes), dtype=np.uint8)))


@dataclass(frozen=True, slots=True, eq=False)
class Ends:
    """Attempts that ended, as somebody saw them; arrays of shape (n,), times in ns of CLOCK_MONOTONIC."""

    idents: Idents
    started_ns: Ints
    """0 where nobody saw the start."""
    ended_ns: Ints
    good: NDArray[np.bool_]
    """Whether it returned."""
    sums: Ints
    """Checksums of what was returned; -1 where nobody knows."""
    workers: Sequence[str]
    """Names of the workers, that `worker` counts."""
    worker: Ints

    def __len__(self) -> int:
        return len(self.ended_ns)


@dataclass(frozen=True, slots=True, eq=False)
class Issued:
    """What one producer did in one tick. Arrays hold one number a kind."""

    tick: int
    due: Mapping[int, Ints]
    """Jobs sent now, by the tick in which they were due."""
    sent: Ints
    measured: Ints
    """Of those, how many were due in the measured window."""
    lag: Histogram
    """From due until the broker had taken them, of jobs that were not."""
    lag_measured: Histogram
    """Of jobs of open stages that were due in the measured window."""
    lag_closed: Histogram
    """Of those of closed stages."""
    taken: Histogram
    """How long the broker took for each batch."""


@dataclass(slots=True)
class _Kind:
    """The account of one kind of job."""

    sent: int = 0
    done: int = 0
    failed: int = 0
    duplicated: int = 0
    wrong: int = 0
    retried: int = 0
    due_measured: int = 0
    done_measured: int = 0
    latency: Recorder = field(default_factory=Recorder)
    uncorrected: Recorder = field(default_factory=Recorder)
    wait: Recorder = field(default_factory=Recorder)
    service: Recorder = field(default_factory=Recorder)

    @property
    def spans(self) -> Spans:
        """As a value."""
        return Spans(self.latency.value, self.uncorrected.value, self.wait.value, self.service.value)

    @property
    def ledger(self) -> Ledger:
        """As a value."""
        # What somebody ran and nobody is known to have sent is no job of ours.
        lost = max(0, self.sent - self.done - self.failed)
        return Ledger(self.done + self.failed + lost, self.done, self.failed, lost, self.duplicated, self.wrong)


@dataclass(slots=True)
class _Worker:
    """The account of one worker process."""

    done: int = 0
    failed: int = 0
    begun_ns: int | None = None
    """The least from sent to started; below 0 where clocks disagree."""
    wait: Recorder = field(default_factory=lambda: Recorder(COARSE_DIGITS))
    service: Recorder = field(default_factory=lambda: Recorder(COARSE_DIGITS))


@dataclass(slots=True)
class _Tick:
    """The account of one stretch of time."""

    tallies: NDArray[np.int64]
    """One row a kind: due, sent, done, failed."""
    workers: dict[str, int] = field(default_factory=dict)
    worker_failed: dict[str, int] = field(default_factory=dict)
    depth: dict[str, int] = field(default_factory=dict)
    unacked: int | None = None
    latency: Histogram = field(default_factory=lambda: of((), COARSE_DIGITS))
    lag: Histogram = field(default_factory=lambda: of((), COARSE_DIGITS))
    wait: Histogram = field(default_factory=lambda: of((), COARSE_DIGITS))
    rss_bytes: int = 0
    holds: Holds = field(default_factory=Holds)
    watch_rss_bytes: int = 0
    kind_latency: dict[str, Histogram] = field(default_factory=dict)
    worker_latency: dict[str, Histogram] = field(default_factory=dict)


DETAILED_TICKS = 4
"""Of so many ticks, the last, latency is known by kind and worker: whoever looks on is told of each shortly after."""
DUE, SENT, DONE, FAILED = range(4)


class Books:
    """The account of a run. Times are ns of CLOCK_MONOTONIC; ticks count from `start_ns`."""

    def __init__(
        self,
        names: Sequence[str],
        *,
        start_ns: int,
        window_s: tuple[float, float],
        tick_s: float = 1.0,
        countdowns_s: Sequence[float] = (),
        etas_ns: Sequence[int | None] = (),
        expected: Mapping[int, Callable[[int], int]] | None = None,
    ) -> None:
        """`names` are the kinds; `countdowns_s` is how long each is not to be run, `etas_ns` the moment before which
        none of it is; `expected` says of some kinds, by their place, which checksum a job must return."""
        self.names, self.start_ns, self.window_s, self.tick_s = tuple(names), start_ns, window_s, tick_s
        self._held_ns = np.array([round(1e9 * s) for s in countdowns_s] or [0] * len(self.names), dtype=np.int64)
        # A moment that has long been is none.
        self._not_before_ns = np.array([eta or 0 for eta in etas_ns] or [0] * len(self.names), dtype=np.int64)
        self._expected = expected or {}
        self._done, self._failed, self._again = Bits(), Bits(), Bits()
        self.kinds = [_Kind() for _ in self.names]
        self.workers: dict[str, _Worker] = {}
        self.lag, self.lag_open, self.taken = Recorder(), Recorder(), Recorder()
        self._ticks: dict[int, _Tick] = {}
        self._detailed, self._newest = set[int](), 0
        self.last_end_ns = 0
        self.early = 0
        """Jobs that ended before they were sent."""

    # ------------------------------------------------ what producers say

    def issued(self, issued: Issued) -> None:
        """What a producer says of one tick."""
        for tick, counts in issued.due.items():
            self._tick(tick).tallies[:, DUE] += counts
        row = self._tick(issued.tick)
        row.tallies[:, SENT] += issued.sent
        row.lag = row.lag.merged(*(lag.coarse() for lag in (issued.lag, issued.lag_measured, issued.lag_closed)))
        self.lag_open.add(issued.lag_measured)
        for lag in (issued.lag_measured, issued.lag_closed):
            self.lag.add(lag)
        self.taken.add(issued.taken)
        for place, kind in enumerate(self.kinds):
            kind.sent += int(issued.sent[place])
            kind.due_measured += int(issued.measured[place])

    def looked(
        self,
        tick: int,
        *,
        depth: Mapping[str, int],
        unacked: int | None,
        rss_bytes: int,
        watch_rss_bytes: int = 0,
        holds: Holds,
    ) -> None:
        """What broker, producers, workers and whoever watches held at the end of a tick."""
        row = self._tick(tick)
        row.depth, row.unacked, row.holds = dict(depth), unacked, holds
        row.rss_bytes, row.watch_rss_bytes = rss_bytes, watch_rss_bytes

    # ------------------------------------------------ what workers say

    def ended(self, ends: Ends) -> None:
        """Attempts that ended, in any order."""
        if not len(ends):
            return
        order = np.argsort(ends.ended_ns, kind="stable")
        ids = Idents(*(column[order] for column in ends.idents))
        started, ended, good = ends.started_ns[order], ends.ended_ns[order], ends.good[order].copy()
        sums, worker = ends.sums[order], ends.worker[order]
        self.last_end_ns = max(self.last_end_ns, int(ended[-1]))
        wrong = self._wrong(ids, good, sums)
        good &= ~wrong
        ticks = self._tick_of(ended)
        self._count_tries(ids, good)
        self._count_failures(ids, good, wrong, ticks)
        first = self._first_good(ids, good)
        self._count_good(ids, started, ended, first, ticks, ends, worker)
        self._count_workers(ends.workers, worker, good, ticks)
        self._forget_details(int(ticks.max()))

    def unseen(self, seqs: Ints) -> NDArray[np.bool_]:
        """Which of these jobs have not ended before, in whatever way."""
        return ~(self._done.of(seqs) | self._failed.of(seqs))

    def _wrong(self, ids: Idents, good: NDArray[np.bool_], sums: Ints) -> NDArray[np.bool_]:
        wrong = np.zeros(len(good), dtype=np.bool_)
        for place, expected in self._expected.items():
            for at in np.nonzero(good & (ids.kind == place) & (sums >= 0))[0]:
                wrong[at] = sums[at] != expected(int(ids.seq[at]))
        return wrong

    def _first_good(self, ids: Idents, good: NDArray[np.bool_]) -> Ints:
        """The places of each job's first good end; what came after it is a duplicate."""
        places = np.nonzero(good)[0]
        _, unique = np.unique(ids.seq[places], return_index=True)
        first = places[np.sort(unique)]
        fresh = first[~self._done.of(ids.seq[first])]
        # Any end of a job that had ended well before, in this batch or an earlier one.
        rank = np.full(len(good), np.iinfo(np.int64).max, dtype=np.int64)
        rank[fresh] = fresh
        before = self._done.of(ids.seq)
        seqs, place = np.unique(ids.seq, return_inverse=True)
        earliest = np.full(len(seqs), np.iinfo(np.int64).max, dtype=np.int64)
        np.minimum.at(earliest, place, rank)
        later = before | (np.arange(len(good)) > earliest[place])
        self._count_again(ids, later)
        return fresh

    def _count_again(self, ids: Idents, later: NDArray[np.bool_]) -> None:
        places = np.nonzero(later)[0]
        if not len(places):
            return
        seqs, unique = np.unique(ids.seq[places], return_index=True)
        fresh = ~self._again.of(seqs)
        self._again.set(seqs[fresh])
        for kind, count in _by_kind(ids.kind[places[unique[fresh]]]):
            self.kinds[kind].duplicated += count

    def _count_tries(self, ids: Idents, good: NDArray[np.bool_]) -> None:
        """An end of a job whose last try had failed is another try."""
        over = self._done.of(ids.seq)
        had_failed = self._failed.of(ids.seq) & ~over
        if good.all() and not had_failed.any():
            return
        failing: dict[int, bool] = {}
        ended_well = set(ids.seq[over].tolist())
        for seq, kind, well, before in zip(
            ids.seq.tolist(), ids.kind.tolist(), good.tolist(), had_failed.tolist(), strict=True
        ):
            if seq in ended_well:
                continue  # a duplicate, however it ends
            if failing.get(seq, before):
                self.kinds[kind].retried += 1
            failing[seq] = not well
            if well:
                ended_well.add(seq)

    def _count_failures(self, ids: Idents, good: NDArray[np.bool_], wrong: NDArray[np.bool_], ticks: Ints) -> None:
        bad = np.nonzero(~good)[0]
        for kind, count in _by_kind(ids.kind[wrong]):
            self.kinds[kind].wrong += count
        for tick, kind in zip(ticks[bad].tolist(), ids.kind[bad].tolist(), strict=True):
            self._tick(tick).tallies[kind, FAILED] += 1
        if not len(bad):
            return
        seqs, unique = np.unique(ids.seq[bad], return_index=True)
        fresh = ~self._failed.of(seqs)
        self._failed.set(seqs[fresh])
        open_ones = fresh & ~self._done.of(seqs)
        for kind, count in _by_kind(ids.kind[bad[unique[open_ones]]]):
            self.kinds[kind].failed += count

    def _count_good(
        self,
        ids: Idents,
        started: Ints,
        ended: Ints,
        first: Ints,
        ticks: Ints,
        ends: Ends,
        worker: Ints,
    ) -> None:
        if not len(first):
            return
        seqs, kinds = ids.seq[first], ids.kind[first]
        mended = self._failed.of(seqs)
        self._done.set(seqs)
        held, eta = self._held_ns[kinds], self._not_before_ns[kinds]
        due = np.maximum(self.start_ns + ids.due_ns[first] + held, eta)
        sent = np.maximum(self.start_ns + ids.sent_ns[first] + held, eta)
        began, end = started[first], ended[first]
        window = self._in_window(ids.due_ns[first])
        ended_in = self._in_window(end - self.start_ns)
        seen = began > 0
        # A histogram takes them for 0: they are counted, so that nobody takes them for quick.
        self.early += int((end < sent - EARLY_NS).sum())
        for kind in np.unique(kinds):
            mine, row = kinds == kind, self.kinds[kind]
            row.done += int(mine.sum())
            row.failed -= int((mine & mended).sum())
            row.done_measured += int((mine & ended_in).sum())
            counted = mine & window
            row.latency.record((end - due)[counted])
            row.uncorrected.record((end - sent)[counted])
            row.wait.record((began - sent)[counted & seen])
            row.service.record((end - began)[counted & seen])
        for tick in np.unique(ticks[first]):
            now, told = ticks[first] == tick, self._tick(int(tick))
            self._detailed.add(int(tick))
            np.add.at(told.tallies[:, DONE], kinds[now], 1)
            told.latency = told.latency.merged(of((end - due)[now], COARSE_DIGITS))
            told.wait = told.wait.merged(of((began - sent)[now & seen], COARSE_DIGITS))
            for places, names, kept in (
                (kinds, self.names, told.kind_latency),
                (worker[first], ends.workers, told.worker_latency),
            ):
                for place in np.unique(places[now]):
                    mine = of((end - due)[now & (places == place)], COARSE_DIGITS)
                    name = names[place]
                    kept[name] = kept[name].merged(mine) if name in kept else mine
        for place in np.unique(worker[first]):
            account, own = self._worker(ends.workers[place]), (worker[first] == place) & seen
            if own.any():
                least = int((began - sent)[own].min())
                account.begun_ns = least if account.begun_ns is None else min(account.begun_ns, least)
            mine = own & window
            account.wait.record((began - sent)[mine])
            account.service.record((end - began)[mine])

    def _forget_details(self, newest: int) -> None:
        self._newest = max(self._newest, newest)
        for number in [number for number in self._detailed if number <= self._newest - DETAILED_TICKS]:
            self._detailed.discard(number)
            self._ticks[number].kind_latency.clear()
            self._ticks[number].worker_latency.clear()

    def _count_workers(self, names: Sequence[str], worker: Ints, good: NDArray[np.bool_], ticks: Ints) -> None:
        for place in np.unique(worker):
            mine, name = worker == place, names[place]
            account = self._worker(name)
            account.done += int((mine & good).sum())
            account.failed += int((mine & ~good).sum())
            for which, kept in ((mine, "workers"), (mine & ~good, "worker_failed")):
                for tick, count in zip(*np.unique(ticks[which], return_counts=True), strict=True):
                    told = getattr(self._tick(int(tick)), kept)
                    told[name] = told.get(name, 0) + int(count)

    # ------------------------------------------------ what it all comes to

    @property
    def done(self) -> int:
        """Jobs that have ended well."""
        return sum(kind.done for kind in self.kinds)

    @property
    def failed(self) -> int:
        """Jobs that have failed, and have not ended well since."""
        return sum(kind.failed for kind in self.kinds)

    @property
    def sent(self) -> int:
        """Jobs that producers say they have sent."""
        return sum(kind.sent for kind in self.kinds)

    @property
    def ledger(self) -> Ledger:
        """Over all kinds."""
        each = [kind.ledger for kind in self.kinds]
        return Ledger(*(sum(getattr(one, name) for one in each) for name in Ledger.__dataclass_fields__))

    @property
    def spans(self) -> Spans:
        """Over all kinds."""
        each = [kind.spans for kind in self.kinds]
        return Spans(
            *(
                getattr(each[0], name).merged(*(getattr(s, name) for s in each[1:]))
                for name in Spans.__dataclass_fields__
            )
        )

    def tick(self, number: int, *, in_flight: int) -> Tick:
        """One tick, as far as it is known."""
        row, at_s = self._tick(number), number * self.tick_s
        begin, end = self.window_s
        phase = "warm-up" if at_s < begin - 1e-9 else "measured" if at_s < end - 1e-9 else "drain"
        return Tick(
            at_s=at_s,
            length_s=self.tick_s,
            whole=Tally(*(int(n) for n in row.tallies.sum(axis=0))),
            kinds={name: Tally(*(int(n) for n in row.tallies[k])) for k, name in enumerate(self.names)},
            workers=dict(sorted(row.workers.items())),
            worker_failed=dict(sorted(row.worker_failed.items())),
            depth=row.depth,
            unacked=row.unacked,
            in_flight=in_flight,
            latency=row.latency,
            lag=row.lag,
            wait=row.wait,
            phase=phase,
            generator_rss_bytes=row.rss_bytes,
            holds=row.holds,
            watch_rss_bytes=row.watch_rss_bytes,
            kind_latency=dict(row.kind_latency),
            worker_latency=dict(row.worker_latency),
        )

    @property
    def in_flight(self) -> int:
        """Jobs sent and not ended, as far as everybody has said so."""
        return max(0, self.sent - self.done - self.failed)

    def ticks(self) -> tuple[Tick, ...]:
        """All of them, in order, without gaps."""
        found, sent, done, tries = [], 0, 0, 0
        for number in range(max(self._ticks, default=-1) + 1):
            row = self._tick(number).tallies.sum(axis=0)
            sent, done, tries = sent + int(row[SENT]), done + int(row[DONE]), tries + int(row[FAILED])
            # A failed try is not yet a failed job; in the end only `failed` of them are.
            found.append(self.tick(number, in_flight=max(0, sent - done - min(tries, self.failed))))
        return tuple(found)

    def _tick(self, number: int) -> _Tick:
        found = self._ticks.get(number)
        if found is None:
            found = self._ticks[number] = _Tick(np.zeros((len(self.names), 4), dtype=np.int64))
        return found

    def _tick_of(self, moments_ns: Ints) -> Ints:
        return np.maximum((moments_ns - self.start_ns) // round(self.tick_s * 1e9), 0).astype(np.int64)

    def _in_window(self, moments_ns: Ints) -> NDArray[np.bool_]:
        begin, end = self.window_s
        return np.asarray((moments_ns >= begin * 1e9) & (moments_ns <= end * 1e9), dtype=np.bool_)

    def _worker(self, name: str) -> _Worker:
        if name not in self.workers:
            self.workers[name] = _Worker()
        return self.workers[name]


def _by_kind(kinds: NDArray[Any]) -> list[tuple[int, int]]:
    """How many there are of each kind."""
    return [(int(kind), int(count)) for kind, count in zip(*np.unique(kinds, return_counts=True), strict=True)]
