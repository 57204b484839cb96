"""One run of a scenario: producers that send, and an account of every job until all have ended."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import redis

from lab import environment, resources
from lab.children import kill, tree
from lab.load import doubts
from lab.load.arguments import Arguments
from lab.load.books import Books, Ends
from lab.load.generator import Order, issued, rss_bytes
from lab.load.idents import TAG_BITS
from lab.load.model import Generator, Holds, KindOutcome, Outcome, Scenario, Tick, WorkerOutcome
from lab.load.sending import LOOK_S, Sending, await_producers, start_producer
from lab.load.shapes import moments
from lab.load.stages import blocks
from lab.load.stand import Stand, first_line
from lab.load.thresholds import judge_all
from lab.model import Fault

CLOSED_LOOK_S = 0.001
"""Between two looks at what has ended where users of a closed load wait for it; else LOOK_S."""
BEGIN_S = 0.25
"""From the word to go until the first job is due: every producer has read it by then."""
HALT_S = 1.0
"""How long a producer may take to say what it has sent, once it is told to stop."""
LATE_S = 0.15
"""A tick is told so long after its end: until then producers say what they did in it."""
MOST_TICKS = 3600
"""A longer run has longer ticks, so that what remains of it stays small."""
CLOSED_HOLDS_TICKS = 10
"""To add up the memory of a process tree takes some ten milliseconds, for which users of a closed load wait."""
PRODUCER_HZ = 20_000.0
"""What one producer is asked for, unless the scenario says how many there are."""
NOTED_OTHERS_CORES, NOTED_STEAL_CORES = 0.25, 0.10
SETTLED_S = 0.25
"""A message is neither in a queue nor noted as fetched, nor its job begun, for some milliseconds: all looks for so long
must find none."""

OnTick = Callable[[Tick], None]
OnEnds = Callable[[Ends], None]


def _nothing(*_: object) -> None:
    """For callers that need not be told."""


def producers_for(scenario: Scenario) -> int:
    """How many processes send."""
    if scenario.is_closed:
        return 1
    return scenario.producers or max(1, min(environment.cores(), math.ceil(scenario.peak_hz / PRODUCER_HZ)))


def planned_end_s(scenario: Scenario) -> float:
    """When the plan is over: the end of the last stage, or the last job of a count that comes earlier."""
    if scenario.count is None or scenario.is_closed:
        return scenario.planned_s
    last = gap = 0.0
    given = 0
    for block in blocks(
        scenario.stages, seed=scenario.seed, count=scenario.count, moments=lambda stage: moments(Path(stage.trace))
    ):
        if len(block.due_s):
            before = float(block.due_s[-2]) if len(block.due_s) > 1 else last
            last, gap = float(block.due_s[-1]), float(block.due_s[-1]) - before
            given += len(block.due_s)
    return min(scenario.planned_s, last + gap) if given >= scenario.count else scenario.planned_s


def run_on(
    stand: Stand,
    scenario: Scenario,
    *,
    on_tick: OnTick = _nothing,
    idle: Callable[[], None] = _nothing,
    on_ends: OnEnds = _nothing,
) -> Outcome:
    """One run; the scenario must have the mix and the workers of the stand.

    `on_tick` is told each tick shortly after its end, `idle` is called some fifty times a second, and `on_ends` gets
    every end as it is seen. Ctrl-C ends the run early and makes it INVALID; what was measured is in the outcome.
    """
    stand.ready()
    with _Run(stand, scenario, stand.units, on_tick, idle, on_ends) as run:
        return run.go()


def run(
    scenario: Scenario,
    *,
    force: bool = False,
    say: Callable[[str], None] = _nothing,
    on_tick: OnTick = _nothing,
    idle: Callable[[], None] = _nothing,
    on_ends: OnEnds = _nothing,
) -> Outcome:
    """A stand for one run, see `Stand`."""
    with Stand(scenario, force=force, say=say) as stand:
        return run_on(stand, scenario, on_tick=on_tick, idle=idle, on_ends=on_ends)


@dataclass(slots=True)
class _Run:
    """One run, from the first producer's start to the outcome."""

    stand: Stand
    scenario: Scenario
    units: Mapping[str, float]
    on_tick: OnTick
    idle: Callable[[], None]
    on_ends: OnEnds
    tag: int = field(default_factory=lambda: secrets.randbits(TAG_BITS))
    producers: list[Sending] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rss_most_bytes: int = 0
    next_tick: int = 0
    looked: int = 0
    settled_ns: int | None = None
    """Since when nothing more has been seen that could end."""
    holds: Holds = field(default_factory=Holds)
    _books: Books = field(init=False)

    def __enter__(self) -> _Run:
        return self

    def __exit__(self, *_: object) -> None:
        for producer in self.producers:
            kill(producer.process)

    def go(self) -> Outcome:
        """Do it."""
        scenario, stand = self.scenario, self.stand
        end_s = planned_end_s(scenario)
        window = (scenario.warmup_s, max(end_s, scenario.warmup_s + 1e-3))
        tick_s = float(max(1, math.ceil((end_s + scenario.drain_s) / MOST_TICKS)))
        self._start_producers(window, tick_s)
        names = tuple(kind.name for kind in scenario.kinds)
        stand.watch.begin(self.tag, names)
        before = self._snapshot()
        start_ns = time.monotonic_ns() + round(BEGIN_S * 1e9)
        started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._books = Books(
            names,
            start_ns=start_ns,
            window_s=window,
            tick_s=tick_s,
            countdowns_s=[kind.countdown_s or 0.0 for kind in scenario.kinds],
            etas_ns=[_moment_ns(kind.eta) for kind in scenario.kinds],
            expected=self._expected(),
        )
        for producer in self.producers:
            producer.send(b"%d\n" % start_ns)
        try:
            self._follow(start_ns, end_s, tick_s)
        except KeyboardInterrupt:
            at_s = (time.monotonic_ns() - start_ns) / 1e9
            self._fault("interrupted", f"the run was stopped after {max(at_s, 0.0):.0f} s of {end_s:.0f} s")
        except (redis.RedisError, OSError) as error:
            stand.broker_is_silent = True
            self._fault("broker_died", f"the broker stopped answering during the run ({first_line(error)})")
        self._halt()
        after = self._snapshot()
        self._take_in()
        while self._books.start_ns + (self.next_tick + 1) * tick_s * 1e9 <= time.monotonic_ns():
            self._tell_tick()
        return self._outcome(window, started_at, before, after)

    # ------------------------------------------------ producers

    def _start_producers(self, window: tuple[float, float], tick_s: float) -> None:
        count = producers_for(self.scenario)
        children = self.stand.children
        for index in range(count):
            order = Order(
                scenario=replace(self.scenario, text=""),
                address=self.stand.address,
                tag=self.tag,
                units_per_ms=self.units,
                window_s=window,
                tick_s=tick_s,
                index=index,
                producers=count,
            )
            self.producers.append(start_producer(children, order, name=f"{self.tag:06x}-{index}"))
        await_producers(self.producers)

    def _halt(self) -> None:
        """Producers that still send are told to stop, and say what they have sent."""
        deadline = time.monotonic() + HALT_S
        for producer in self.producers:
            if not producer.over:
                producer.process.terminate()
        while not all(producer.over for producer in self.producers) and time.monotonic() < deadline:
            self._listen()
            time.sleep(LOOK_S)

    def _listen(self) -> None:
        """Take in what producers have said."""
        for producer in self.producers:
            for said in producer.lines():
                if "error" in said:
                    producer.error, producer.over = str(said["error"]), True
                elif "tick" in said:
                    self._books.issued(issued(said))
                    producer.total, producer.told = int(said["total"]), int(said["tick"])
                    producer.rss_bytes, producer.cpu_s = int(said["rss"]), float(said["cpu_s"])
                    producer.rss_first_bytes = producer.rss_first_bytes or producer.rss_bytes
                    producer.over = producer.over or bool(said.get("end"))
            producer.look()
        self.rss_most_bytes = max(self.rss_most_bytes, sum(producer.rss_bytes for producer in self.producers))

    # ------------------------------------------------ the loop

    def _follow(self, start_ns: int, end_s: float, tick_s: float) -> None:
        """Watch until everything has ended, or there is no more hope."""
        scenario = self.scenario
        look_s = CLOSED_LOOK_S if scenario.is_closed else LOOK_S
        patience_s = end_s + scenario.drain_s
        over_ns: int | None = None
        while True:
            self._take_in()
            self._tick(start_ns, tick_s)
            now_ns = time.monotonic_ns()
            if why := self._hopeless():
                self._fault(*why)
                return
            if all(producer.over for producer in self.producers):
                over_ns = over_ns or now_ns
                # The plan's last seconds belong to the run, even if all has ended.
                is_over = now_ns >= start_ns + end_s * 1e9 or (scenario.is_closed and scenario.count is not None)
                if is_over and (self._all_ended() or now_ns - over_ns > scenario.drain_s * 1e9):
                    return
            elif now_ns > start_ns + patience_s * 1e9:
                self._fault(
                    "short_generator",
                    f"the generator was not done {scenario.drain_s:g} s after the end of its plan: lower the rate, add "
                    "producers, or give them cores of their own",
                )
                return
            self.idle()
            time.sleep(look_s)

    def _take_in(self) -> None:
        """What has ended, and what producers have said."""
        self._listen()
        for ends in self.stand.watch.ended():
            self.on_ends(ends)
            if self.scenario.is_closed:
                self._tell_ends(ends)
            self._books.ended(ends)

    def _tell_ends(self, ends: Ends) -> None:
        """A closed stage's users wait for these. A job that ends twice wakes its user once."""
        fresh = self._books.unseen(ends.idents.seq)
        pairs = zip(ends.idents.seq[fresh].tolist(), ends.ended_ns[fresh].tolist(), strict=True)
        if line := " ".join(f"{seq},{ended}" for seq, ended in dict(pairs).items()):
            self.producers[0].send(line.encode() + b"\n")

    def _hopeless(self) -> tuple[str, str] | None:
        """Why it is of no use to wait any longer."""
        broken = next((producer.error for producer in self.producers if producer.error), "")
        if broken:
            return "broker_died", f"the load could not be sent to its end: {broken}"
        if not self.stand.alive():
            return "worker_died", f"a worker ended during the run: {self.stand.last_words()}"
        if gone := self.stand.watch.gone():
            return "worker_died", f"a worker ended during the run: {gone}"
        if trouble := self.stand.watch.trouble():
            return "watch_died", f"ends could no longer be seen: {trouble}"
        return None

    def _all_ended(self) -> bool:
        books = self._books
        if books.done + books.failed < sum(producer.total for producer in self.producers):
            return False
        if not books.failed:
            return True
        # What has failed may be tried again as long as the broker holds it, and then for as long as it runs.
        depth, unacked = self.stand.held()
        now_ns = time.monotonic_ns()
        if sum(depth.values()) or unacked or self.stand.watch.under_way():
            self.settled_ns = None
            return False
        self.settled_ns = self.settled_ns or now_ns
        return now_ns - self.settled_ns >= SETTLED_S * 1e9

    def _tick(self, start_ns: int, tick_s: float) -> None:
        """Look at the broker at each tick's end, and tell of the tick once producers have."""
        now_s = (time.monotonic_ns() - start_ns) / 1e9
        while now_s >= (self.looked + 1) * tick_s:
            depth, unacked = self.stand.held()
            rss = sum(producer.rss_bytes for producer in self.producers)
            if self.looked % (CLOSED_HOLDS_TICKS if self.scenario.is_closed else 1) == 0:
                self.holds = self.stand.holds()
            self._books.looked(
                self.looked,
                depth=depth,
                unacked=unacked,
                rss_bytes=rss,
                watch_rss_bytes=rss_bytes(),
                holds=self.holds,
            )
            self.looked += 1
        while self.next_tick < self.looked and now_s >= (self.next_tick + 1) * tick_s + LATE_S:
            told = all(producer.over or producer.told >= self.next_tick for producer in self.producers)
            if not told and now_s < (self.next_tick + 1) * tick_s + 2 * tick_s:
                return  # a producer that stands still is waited for, a little
            self._tell_tick()

    def _tell_tick(self) -> None:
        self.on_tick(self._books.tick(self.next_tick, in_flight=self._books.in_flight))
        self.next_tick += 1

    # ------------------------------------------------ what remains

    def _expected(self) -> dict[int, Callable[[int], int]]:
        """Of the kinds whose results can be checked, what each job must return."""
        found: dict[int, Callable[[int], int]] = {}
        unchecked = []
        for place, kind in enumerate(self.scenario.kinds):
            args = Arguments(kind, seed=self.scenario.seed, units_per_ms=self.units.get(kind.name, 0.0))
            if self.stand.address.is_own and args.can_be_checked:
                found[place] = args.expected
            else:
                unchecked.append(kind.name)
        if unchecked:
            self.notes.append(f"what these return is not checked, only that they do: {', '.join(unchecked)}")
        return found

    def _snapshot(self) -> resources.Snapshot:
        helpers = [process for producer in self.producers for process in tree(producer.process)]
        counters = resources.BrokerCounters(cpu_s=self.stand.broker_cpu_s())
        return resources.snapshot(self.stand.processes(), helpers, counters)

    def _fault(self, check: str, says: str) -> None:
        if all(known.check != check for known in self.faults):
            self.faults.append(Fault(check, says))

    def _outcome(
        self,
        window: tuple[float, float],
        started_at: str,
        before: resources.Snapshot,
        after: resources.Snapshot,
    ) -> Outcome:
        scenario, books, stand = self.scenario, self._books, self.stand
        wall_s = max(0.0, (books.last_end_ns - books.start_ns) / 1e9)
        begin, end = window
        elapsed_s = (after.at_ns - before.at_ns) / 1e9
        if self.faults or (scenario.is_closed and scenario.count is not None):
            # Cut short: what was never tried is no part of any rate.
            end = max(min(end, elapsed_s - BEGIN_S), begin + 1e-3)
        length_s = end - begin
        ticks = books.ticks()
        ledger = books.ledger
        heard_s = stand.watch.heard_s()
        if left := stand.watch.left():
            self.notes.append(f"these workers said good-bye before its end: {', '.join(left)}")
        others_s = resources.others_cpu_s([(before, after)])
        steal_s = None if before.steal_s is None or after.steal_s is None else after.steal_s - before.steal_s
        self._note_others(others_s, steal_s, elapsed_s)
        offered_hz = sum(kind.due_measured for kind in books.kinds) / length_s
        outcome = Outcome(
            scenario=scenario,
            ledger=ledger,
            spans=books.spans,
            lag=books.lag.value,
            kinds={
                name: KindOutcome(kind.ledger, kind.spans, kind.due_measured, kind.done_measured, kind.retried)
                for name, kind in zip(books.names, books.kinds, strict=True)
            },
            workers={
                name: WorkerOutcome(
                    name.rpartition(" ")[0] if stand.address.is_own else "",
                    account.done,
                    account.failed,
                    account.service.value,
                    account.wait.value,
                    heard_s.get(name),
                    None if account.begun_ns is None else account.begun_ns / 1e9,
                )
                for name, account in sorted(books.workers.items(), key=lambda row: _natural(row[0]))
            },
            ticks=ticks,
            window_s=(begin, end),
            offered_hz=offered_hz,
            sent_hz=doubts.sent_hz(ticks, (begin, end), offered_hz),
            throughput_hz=sum(kind.done_measured for kind in books.kinds) / length_s,
            wall_s=wall_s,
            generator=Generator(
                len(self.producers),
                next((producer.path for producer in self.producers), ""),
                sum(producer.cpu_s for producer in self.producers),
                self.rss_most_bytes,
                sum(producer.rss_first_bytes for producer in self.producers),
                books.taken.value,
            ),
            observation=stand.watch.about,
            notes=(),
            errors=stand.watch.errors(),
            retried=sum(kind.retried for kind in books.kinds),
            lag_open=books.lag_open.value,
            early=books.early,
            environment=stand.fingerprint(),
            started_at=started_at,
            others_cpu_s=others_s,
            worker_cpu_s=after.worker_cpu_s - before.worker_cpu_s if stand.address.is_own else None,
            worker_pss_bytes=resources.pss_bytes(stand.processes()) if stand.address.is_own else None,
            broker_cpu_s=_difference(before.broker_cpu_s, after.broker_cpu_s),
            last_words=stand.last_words() if ledger.lost and stand.address.is_own else "",
        )
        found = {fault.check: fault for fault in (*self.faults, *doubts.faults(outcome))}
        return replace(
            outcome,
            judged=judge_all(outcome),
            faults=tuple(found.values()),
            notes=(*self.notes, *doubts.notes(outcome)),
        )

    def _note_others(self, others_s: float, steal_s: float | None, elapsed_s: float) -> None:
        for seconds, limit, who in (
            (others_s if self.stand.address.is_own else None, NOTED_OTHERS_CORES, "other programs used"),
            (steal_s, NOTED_STEAL_CORES, "the hypervisor took away"),
        ):
            if seconds is not None and elapsed_s > 0 and seconds > limit * elapsed_s:
                self.notes.append(
                    f"{who} {seconds / elapsed_s:.2f} cores during the run: latency holds their share too"
                )


def _moment_ns(eta: str | None) -> int | None:
    """A time of day on CLOCK_MONOTONIC."""
    if eta is None:
        return None
    return time.monotonic_ns() + round((datetime.fromisoformat(eta) - datetime.now(UTC)).total_seconds() * 1e9)


def _natural(name: str) -> tuple[str, int]:
    head, _, tail = name.rpartition(" ")
    return (head, int(tail)) if tail.isdigit() else (name, 0)


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before
