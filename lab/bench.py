"""One queued trial: workers of its own, warm, its queue, its load, and what it cost."""

from __future__ import annotations

import contextlib
import gc
import itertools
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import psutil
import redis
from celery.exceptions import TimeoutError as CeleryTimeout

from lab import resources, wire
from lab.arenas.attached import PROBE_QUEUE, QUEUES, AttachedMachines, alike, crew
from lab.arenas.celery_worker import APART_QUEUE, CeleryWorkers
from lab.arenas.compose import SimulatedMachines
from lab.arenas.flower import Flower
from lab.broker import remove_keys
from lab.checks import GIL_BACK
from lab.jobs import Jobs
from lab.model import LabError, Ledger, Run, Setup, Trial
from lab.observe import Progress, Tapes, ended_numbers, job_id, observe, observe_steps
from lab.session import Session
from producer.pacers import Burst
from producer.publish import Parcel, Sender, Sent, publish
from tasks import knobs
from tasks.app import make_app
from tasks.jobs import JOBS
from tasks.registry import checksum
from tasks.settings import Settings

LOOK_S = 0.01
"""Between two looks at the tapes: they lie in mapped memory, which rings no bell."""
CLOSED_LOOK_S = 0.001
"""A closed load answers an end within a millisecond; the rest of its lag is in its own histogram."""
DRAIN_LOOK_S = 0.0025
"""Between two looks at a queue whose drain is timed: the error of the end, against some looks' work for the broker."""
SETTLE_S = 2.0
PATIENCE_S = 20.0
COLLECT_TIMEOUT_S = 30.0
HEARINGS = 3
"""How often the workers are warmed up so that a Flower hears of it."""
EMPTY_LOOKS = 3
"""A message is in flight for well under a millisecond; so many looks in a row, 10 ms apart, must find nothing."""
BROKER_TIMEOUT_S = 30.0
"""How long the lab waits for one answer of the broker."""


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """While it is open the collector rests: a pass over a large suite takes 10 ms and makes jobs late."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


class Bench:
    """A trial's workers, ready when this is entered. Raises LabError when they do not come up or do not get warm.

    The load may be cut into slices, to take turns with other benches: `go` does one slice, `run` says what happened,
    in times that let the slices follow each other without a gap.
    """

    def __init__(self, trial: Trial, session: Session, nonce: int, directory: Path, *, limit_s: float) -> None:
        self.trial, self._session, self._directory = trial, session, directory
        self._limit_s = limit_s
        self._tapes = Tapes(directory / "tapes")
        self._tapes.directory.mkdir(parents=True)
        setup = trial.setup
        self._jobs = Jobs(session, setup, nonce)
        self._settings = Settings(
            broker=session.address(setup),
            key_prefix=f"{session.prefix}{nonce:016x}:",
            preset=setup.preset,
            knobs=",".join(setup.knobs or ()),
            prefetch=setup.prefetch,
            acks_late=setup.acks_late,
            switch_interval_s=setup.switch_interval_s,
            tape_dir=str(self._tapes.directory) if setup.marks else None,
            codec=setup.codec,
            results=None if _kept(setup) is None else _kept(setup) != "ignored",
            steps=setup.steps,
            beats=setup.heartbeat_s is not None,
            dead_letters=False,
        )
        if setup.arena == "attached":
            # Their workers were started under a prefix that is theirs, and take other jobs from its other queues.
            prefix = alike(crew(session.client)).key_prefix
            self._settings = replace(self._settings, key_prefix=prefix, queue=f"{QUEUES}{nonce:016x}")
        self._queue = _Queue(session.client, self._settings.key_prefix, _queues(setup, self._settings))
        if setup.arena == "attached":
            self._queue.stale = self._queue.held()
        self._spent: list[tuple[resources.Snapshot, resources.Snapshot]] = []
        self._own_looks = 0
        self._snoop = resources.Snoop()
        self._sent: list[Sent] = []
        self._slices: list[_Slice] = []
        self._collected_s = 0.0
        self._watched_s, self._heard = 0.0, 0

    def __enter__(self) -> Bench:
        session = self._session
        # Only ours: a broker that hangs must not hang the lab. Workers keep what users get.
        # What is turned is turned at the workers: whoever sends to them is the same for all.
        told = replace(self._settings, preset="default", knobs="")
        self._app = make_app(told, socket_timeout_s=BROKER_TIMEOUT_S)
        session.say_alive()
        self._arena = self._new_arena()
        try:
            self._warm_up()
            self._await_watcher()
            self._sender = self._new_sender(self._parcel)
            self._sender.prepare(*self._queue.names)
            self._message_bytes = self._probe()
            self._progress = Progress(self._tapes, self._jobs.nonce)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _new_arena(self) -> CeleryWorkers | SimulatedMachines | AttachedMachines:
        setup, session, settings = self.trial.setup, self._session, self._settings
        match setup.arena:
            case "compose":
                return SimulatedMachines(session.engine, setup, settings=settings, directory=self._directory)
            case "attached":
                return AttachedMachines(
                    settings.broker,
                    self._app,
                    setup,
                    turn=self.trial.repeat,
                    queue=settings.queue,
                    tapes=self._tapes.directory,
                    key_prefix=settings.key_prefix,
                    watch=session.watch,
                    say=session.say,
                )
        python = session.python(setup)
        return CeleryWorkers(session.children, setup, python=python, settings=settings, directory=self._directory)

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._arena.close()
        self._app.close()
        if isinstance(self._arena, AttachedMachines):
            return  # the prefix is that of the machines, and they have taken their leave
        with contextlib.suppress(redis.RedisError):  # the broker may be why we are leaving
            remove_keys(self._session.client, self._settings.key_prefix)

    def processes(self) -> list[psutil.Process]:
        """The workers, their children, and what watches them."""
        return [*self._arena.processes(), *self._watchers()]

    @property
    def _flower(self) -> Flower | None:
        return self._arena.flower if isinstance(self._arena, CeleryWorkers) else None

    def _watchers(self) -> list[psutil.Process]:
        """What runs beside the workers to watch them: none of it is counted as theirs."""
        return self._flower.processes() if self._flower else []

    def _new_sender(self, parcel_of: Callable[[int], Parcel]) -> Sender:
        setup = self.trial.setup
        return Sender(
            self._app,
            parcel_of,
            serializer=setup.codec,
            compression=setup.compression,
            argsrepr=setup.argsrepr,
            base64=setup.base64,
            ignore_result=_kept(setup) in {None, "ignored"},
            # One command a message, as Celery itself sends it, so that commands per job are those of real work.
            most_in_push=1,
        )

    def _probe(self) -> dict[str, int]:
        """Put the first job's message where no worker looks, and see what the broker holds."""
        sender = self._new_sender(lambda seq: self._parcel(seq)._replace(queue=PROBE_QUEUE))
        key = self._settings.key_prefix + PROBE_QUEUE
        try:
            sender.prepare(PROBE_QUEUE)
            sender([0])
            return wire.anatomy(str(self._session.client.lindex(key, 0)).encode())
        finally:
            sender.close()
            self._session.client.delete(key)

    def _parcel(self, seq: int) -> Parcel:
        jobs, setup = self._jobs, self.trial.setup
        apart = setup.apart is not None and jobs.beside(seq)
        where = APART_QUEUE if apart else self._settings.queue
        return Parcel(job_id(jobs.nonce, seq), JOBS[jobs.name(seq)].task_name, where, jobs.args(seq))

    def _warm_up(self) -> None:
        """Fill every slot at once with sleeping jobs, so that each thread and child exists; then one real one a slot.

        Over when the last of them has ended: an early acknowledgement says only that it has begun. Without marks the
        broker's word is all there is, so such setups should acknowledge late. Raises LabError when it does not end.
        """
        setup, jobs, queue, tapes, arena = self.trial.setup, self._jobs, self._queue, self._tapes, self._arena
        served = [(queue.names[0], jobs.loads[0], setup.slots)]
        if setup.apart:
            served.append((queue.names[1], jobs.loads[1], setup.apart_concurrency))
        every_slot = [(name, load, slots) for name, load, slots in served for _ in range(slots)]
        # Long enough that the first still sleeps when the last is fetched: a worker fetches some hundred a second.
        sleeping = [(name, JOBS["snooze"], {"ms": 20 + 4 * slots}) for name, _, slots in every_slot]
        waves = [sleeping, [(name, load.job, load.args(0)) for name, load, _ in every_slot]]
        patient_until = time.monotonic() + PATIENCE_S
        while waves:
            kinds = waves.pop(0)
            nonce, count = secrets.randbits(63), len(kinds)
            parcels = [
                Parcel(job_id(nonce, seq), job.task_name, name, args) for seq, (name, job, args) in enumerate(kinds)
            ]
            sender = self._new_sender(parcels.__getitem__)
            sender(range(count))
            sender.close()
            progress = Progress(tapes, nonce)
            deadline = time.monotonic() + PATIENCE_S
            while not (
                len(progress.ended_ns()) >= count and not queue.held() if setup.marks else queue.empty_since_ns()
            ):
                if not arena.alive():
                    raise LabError(f"{setup.label}: the worker ended while it warmed up: {arena.last_words()}")
                if time.monotonic() > deadline:
                    raise LabError(f"{setup.label}: the worker did not end {count} jobs to warm up; is it stuck?")
                time.sleep(LOOK_S)
            # A machine that was told to listen does so when its last question to the broker has been answered.
            if not waves and isinstance(arena, AttachedMachines) and (missing := arena.missing()):
                if time.monotonic() > patient_until:
                    raise LabError(f"{setup.label}: {', '.join(sorted(missing))} took no job to warm up; is it stuck?")
                waves = [sleeping]

    def _await_watcher(self) -> None:
        """Until whoever watches hears the workers, and is at rest. Raises LabError when it hears nothing."""
        if (flower := self._flower) is None:
            return
        for _ in range(HEARINGS):
            if flower.hears():
                break
            self._warm_up()  # it may have begun to listen only after those jobs
        else:
            raise LabError(f"{self.trial.setup.label}: Flower hears nothing of the worker's jobs")
        flower.rest()
        self._heard = flower.ended()

    @_no_garbage_collection()
    def go(self, part: int, parts: int, *, others: Sequence[psutil.Process], idle: Callable[[], None]) -> None:
        """Send slice number `part` of `parts` and wait until its jobs have ended.

        `others` are processes of ours that this trial does not measure. A load of more than one part must be a burst.
        """
        session, queue = self._session, self._queue
        asked, self._snoop = resources.counters_before(
            session.client, queue.held, queues=len(queue.names), local=session.broker.is_local
        )
        others, flower = [*others, *self._watchers()], self._flower
        watched_s = flower.cpu_s() if flower else 0.0
        before, looks = resources.snapshot(self._arena.processes(), others, asked), queue.looks
        first, ended_before = len(self._sent), len(self._progress.ended_ns())
        sent = self._send(part, parts, first, idle)
        drained_ns = self._drain(ended_before + len(sent), idle)
        if not sent:
            return  # fewer jobs than parts
        self._own_looks += queue.looks - looks
        self._collect([s.seq for s in sent])
        asked = resources.counters_after(session.client, local=session.broker.is_local)
        self._spent.append((before, resources.snapshot(self._arena.processes(), others, asked)))
        if flower:
            # It lags behind the workers: what it still has to do belongs to these jobs, and to nobody else's time.
            flower.rest()
            self._watched_s += flower.cpu_s() - watched_s
        ends = self._progress.ended_ns()[ended_before:]
        self._slices.append(
            _Slice(first, len(sent), sent[0].due_ns, drained_ns or max(ends, default=time.monotonic_ns()), drained_ns)
        )
        self._sent += sent

    def _collect(self, seqs: Sequence[int]) -> None:
        """Read the results as the setup says, and time it. Raises LabError for one that is not there or is wrong."""
        how, backend = self.trial.setup.results, self._app.backend
        if how not in {"get", "bulk"}:
            return
        ids = [job_id(self._jobs.nonce, seq) for seq in seqs]
        begun = time.monotonic()
        try:
            if how == "get":
                values = [self._app.AsyncResult(one).get(timeout=COLLECT_TIMEOUT_S) for one in ids]
            else:
                found = dict(backend.get_many(ids, timeout=COLLECT_TIMEOUT_S, interval=LOOK_S))
                values = [found[one]["result"] for one in ids]
        except (CeleryTimeout, TimeoutError, KeyError):
            raise LabError(f"{self.trial.setup.label}: not every result was in the backend") from None
        self._collected_s += time.monotonic() - begun
        wrong = sum(self._wrong(seq, value) for seq, value in zip(seqs, values, strict=True))
        if wrong:
            raise LabError(f"{self.trial.setup.label}: {wrong} of {len(ids)} results are not what the jobs returned")

    def _wrong(self, seq: int, value: Any) -> bool:
        expected = self._jobs.expected(seq)
        return expected is not None and checksum(value) != expected

    def _send(self, part: int, parts: int, first: int, idle: Callable[[], None]) -> list[Sent]:
        pacer, send = self._jobs.pacer, self._sender
        if parts == 1:
            return list(publish(pacer, send, ended_s=self._ends(time.monotonic_ns()), idle=idle))
        if not isinstance(pacer, Burst):
            raise LabError(f"{self.trial.setup.label}: only a burst can be sent in parts")
        size = pacer.size * (part + 1) // parts - first
        sent = publish(Burst(size), lambda seqs: send([first + seq for seq in seqs]), idle=idle) if size else ()
        return [replace(s, seq=first + s.seq) for s in sent]

    def _ends(self, start_ns: int) -> Iterator[float]:
        """When jobs ended, in seconds since the start, as they do: what a closed load waits for."""
        given, deadline = 0, time.monotonic() + self._limit_s
        while self._arena.alive() and time.monotonic() < deadline:
            ended = self._progress.ended_ns()
            for moment in ended[given:]:
                yield (moment - start_ns) / 1e9
            if given == len(ended):
                time.sleep(CLOSED_LOOK_S)
            given = len(ended)

    def _drain(self, count: int, idle: Callable[[], None]) -> int | None:
        """Wait until `count` jobs have ended and are acknowledged, or there is no more hope.

        Returns the moment when the broker held nothing, in ns of CLOCK_MONOTONIC, if the setup watches the broker.
        """
        watch, queue, arena = self.trial.setup.watch_broker, self._queue, self._arena
        deadline = time.monotonic() + self._limit_s
        while arena.alive() and time.monotonic() < deadline:
            if watch and (empty_ns := queue.empty_since_ns()):
                return empty_ns
            if not watch and len(self._progress.ended_ns()) >= count:
                break
            idle()
            time.sleep(DRAIN_LOOK_S if watch else LOOK_S)
        # The last acknowledgements belong to the price of the jobs; they follow within a moment.
        settle = time.monotonic() + SETTLE_S
        while not watch and arena.alive() and queue.held() and time.monotonic() < settle:
            time.sleep(LOOK_S)
        return None

    def run(self) -> Run:
        """What happened in all slices."""
        self._sender.close()
        setup, session, spent = self.trial.setup, self._session, self._spent
        sent, marks, processes = self._sent, self._tapes.marks(self._jobs.nonce), self._tapes.headers()
        attached = self._arena if isinstance(self._arena, AttachedMachines) else None
        if attached:
            attached.settle()
            marks, processes = attached.corrected(marks, processes), attached.told(processes)
        shifts = _shifts(self._slices)
        firsts = np.array([s.first for s in self._slices])
        sent = [
            Sent(s.seq, s.due_ns - shift, s.sent_ns - shift, s.taken_ns - shift, s.encoded_ns - shift)
            for s, shift in ((s, int(shifts[np.searchsorted(firsts, s.seq, "right") - 1])) for s in sent)
        ]
        by_mark = shifts[np.searchsorted(firsts, marks["seq"].astype(np.int64), "right") - 1]
        for name in ("received_ns", "started_ns", "ended_ns"):
            marks[name] = np.where(marks[name] == 0, 0, marks[name] - by_mark)
        samples, ledger = observe(sent, marks, expected=self._jobs.expected, beside=self._jobs.beside)
        steps = None
        if setup.steps:
            records = self._tapes.steps(self._jobs.nonce)
            for name in ("readable_ns", "fetched_ns"):
                records[name] -= shifts[np.searchsorted(firsts, records["seq"].astype(np.int64), "right") - 1]
            steps = observe_steps(sent, records, ended_numbers(marks, len(sent)))
        if not setup.marks:
            left = self._queue.held()
            # Without marks the broker's word is all there is: what it no longer holds was acknowledged.
            ledger = Ledger(issued=len(sent), done=len(sent) - left, failed=0, lost=left)
        # Each part was fed by itself; what the workers waited for is the sum.
        fed_ns = sum(
            max(s.taken_ns for s in self._sent[p.first : p.first + p.count]) - p.start_ns for p in self._slices
        )
        bill = replace(resources.bill(self._arena, spent, sent, samples), fed_s=fed_ns / 1e9)
        bill = replace(bill, message_bytes=self._message_bytes, sent_by=self._sender.path)
        if setup.results in {"get", "bulk"}:
            bill = replace(bill, collect_s=self._collected_s)
        if flower := self._flower:
            bill = replace(bill, watcher_cpu_s=self._watched_s, watcher_ends=flower.ended() - self._heard)
        if attached:
            # Their agents say what the workers used; nothing else of other machines is known here.
            bill = replace(bill, worker_cpu_s=attached.cpu_s, worker_pss_bytes=None, context_switches=None)
        if session.broker.pid is not None:
            own_in, own_out = self._snoop.share(self._own_looks, readings=len(spent))
            queues = len(self._queue.names)
            bill = replace(
                bill,
                commands=resources.commands_between(spent, looks=self._own_looks, queues=queues),
                bytes_in=sum(after.bytes_in - before.bytes_in for before, after in spent) - own_in,
                bytes_out=sum(after.bytes_out - before.bytes_out for before, after in spent) - own_out,
            )
        if all(s.drained_ns for s in self._slices):
            drained_s = sum(s.end_ns - s.start_ns for s in self._slices) / 1e9
            bill = replace(bill, drained_s=drained_s, wall_s=bill.wall_s if len(samples) else drained_s)
        words = self._arena.last_words() if ledger.lost else ""
        if bill.gil_enabled and bill.python.endswith("t") and isinstance(self._arena, CeleryWorkers):
            words = " | ".join(filter(None, (words, self._arena.line_with(GIL_BACK))))
        return Run(
            self.trial,
            samples,
            ledger,
            bill,
            processes=tuple(processes),
            last_words=words,
            steps=steps,
            changes=attached.changes(self._slices[0].start_ns) if attached and self._slices else (),
            beats_ns=tuple(int(beat) - self._slices[0].start_ns for beat in self._tapes.beats() if self._slices),
        )


@dataclass(frozen=True, slots=True)
class _Slice:
    """A part of a load, in ns of CLOCK_MONOTONIC."""

    first: int
    """The number of its first job."""
    count: int
    start_ns: int
    end_ns: int
    drained_ns: int | None


def _shifts(slices: Sequence[_Slice]) -> np.ndarray:
    """By how many ns each slice must come earlier so that it begins where the one before it ends."""
    shifts = [0]
    for before, after in itertools.pairwise(slices):
        shifts.append(after.start_ns - before.end_ns + shifts[-1])
    return np.array(shifts, dtype=np.int64)


def _queues(setup: Setup, settings: Settings) -> tuple[str, ...]:
    return (settings.queue, APART_QUEUE) if setup.apart else (settings.queue,)


def _kept(setup: Setup) -> str | None:
    """What becomes of results: as the setup says, or one of its knobs."""
    if setup.results is not None:
        return setup.results
    kept = knobs.results(knobs.turned(setup.preset, setup.knobs or ()))
    return None if kept is None else "stored" if kept else "ignored"


@dataclass(slots=True)
class _Queue:
    """The jobs that the broker still holds."""

    client: redis.Redis
    prefix: str
    names: tuple[str, ...]
    stale: int = 0
    """Deliveries to workers that are gone: nobody will acknowledge them, and they are not ours."""
    looks: int = 0
    """How often it was asked: those commands are the lab's own and no part of a job's price."""

    def held(self) -> int:
        """Queued, or delivered and not yet acknowledged."""
        self.looks += 1
        with self.client.pipeline(transaction=True) as pipe:
            for name in self.names:
                pipe.llen(self.prefix + name)
            pipe.hlen(self.prefix + "unacked")
            return max(0, int(sum(pipe.execute())) - self.stale)

    def empty_since_ns(self) -> int:
        """When the broker was first seen to hold nothing, if it still does some looks later; else 0.

        One look is not enough: between a worker's BRPOP and its HSET a message is on neither side.
        """
        seen_ns = time.monotonic_ns()
        for look in range(EMPTY_LOOKS):
            if look:
                time.sleep(LOOK_S)
            if self.held():
                return 0
        return seen_ns
