"""Runs trials: a fresh arena, the load, the drain, the samples, the bill."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import redis

from lab import resources
from lab.arenas.arena import Arena
from lab.arenas.celery_worker import APART_QUEUE, CeleryWorkers
from lab.arenas.executor import ExecutorProgram
from lab.broker import remove_keys
from lab.checks import faults
from lab.model import LabError, Ledger, Load, Resources, Run, Samples, Setup, Trial
from lab.observe import Progress, Tapes, job_id, observe
from lab.plan import expected_s
from lab.session import Session
from producer.pacers import Closed, Pacer, Replay, merged
from producer.payloads import fill, is_same_for_all
from producer.publish import Parcel, Sender, Sent, publish
from tasks.app import make_app
from tasks.jobs import JOBS
from tasks.registry import checksum
from tasks.settings import Settings

LOOK_S = 0.01
"""Between two looks at the tapes: they lie in mapped memory, which rings no bell."""
PATIENCE = 5.0
PATIENCE_S = 20.0
"""A run may take this many times, and this much longer, than expected before its missing jobs count as lost."""
BROKER_TIMEOUT_S = 30.0
"""How long the lab waits for one answer of the broker."""
RETAKES = 2
"""A run on a noisy machine is taken again this often before its fault stands."""
NOISE = frozenset({"noisy_machine"})


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs trials of one session, one at a time."""

    session: Session
    cores: int
    retakes: int = RETAKES
    idle: Callable[[], None] = lambda: None
    """Called now and then while nothing urgent happens, such as to draw a progress bar."""

    def run(self, trial: Trial) -> Run:
        """Run the trial; again, up to `retakes` times, when others used the machine meanwhile.

        Raises LabError when its workers do not come up.
        """
        retakes = 0
        while True:
            run = replace(self._once(trial), retakes=retakes)
            run = replace(run, faults=faults(run))
            if retakes == self.retakes or not is_noisy(run):
                return run
            retakes += 1

    def _once(self, trial: Trial) -> Run:
        nonce = secrets.randbits(63)
        directory = self.session.children.directory / f"trial-{nonce:016x}"
        tapes = Tapes(directory / "tapes")
        tapes.directory.mkdir(parents=True)
        try:
            jobs = _Jobs(self.session, trial.setup, nonce)
            run_it = self._queued if trial.setup.queued else self._bare
            with self.session.awake(trial.setup):
                return run_it(trial, jobs, directory, tapes)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def _queued(self, trial: Trial, jobs: _Jobs, directory: Path, tapes: Tapes) -> Run:
        setup, session = trial.setup, self.session
        settings = Settings(
            broker=session.broker.url,
            key_prefix=f"{session.prefix}{jobs.nonce:016x}:",
            preset=setup.preset,
            prefetch=setup.prefetch,
            acks_late=setup.acks_late,
            switch_interval_s=setup.switch_interval_s,
            tape_dir=str(tapes.directory) if setup.marks else None,
        )
        queue = _Queue(session.client, settings.key_prefix, _queues(setup, settings))
        # Only ours: a broker that hangs must not hang the lab. Workers keep what users get.
        app = make_app(settings, socket_timeout_s=BROKER_TIMEOUT_S)
        session.say_alive()
        arena = CeleryWorkers(
            session.children, setup, python=session.python(setup), settings=settings, directory=directory
        )
        try:
            self._warm_up(setup, jobs, app, queue, arena, tapes)

            def parcel(seq: int) -> Parcel:
                apart = setup.apart is not None and jobs.beside(seq)
                name = APART_QUEUE if apart else settings.queue
                return Parcel(job_id(jobs.nonce, seq), JOBS[jobs.name(seq)].task_name, name, jobs.args(seq))

            sender = Sender(app, parcel)
            sender.prepare(*queue.names)
            progress = Progress(tapes, jobs.nonce)
            asked, snoop = resources.counters_before(
                session.client, queue.held, queues=len(queue.names), local=session.broker.is_local
            )
            before, looks = self._snapshot(arena, asked), queue.looks
            start_ns = time.monotonic_ns()
            ended_s = self._ends(progress, start_ns, arena, trial)
            sent = list(publish(jobs.pacer, sender, ended_s=ended_s, idle=self.idle))
            sender.close()
            drained_ns = self._drain(trial, progress, queue, arena, len(sent))
            looks = queue.looks - looks
            asked = resources.counters_after(session.client, local=session.broker.is_local)
            after = self._snapshot(arena, asked)
            samples, ledger = observe(sent, tapes.marks(jobs.nonce), expected=jobs.expected, beside=jobs.beside)
            if not setup.marks:
                left = queue.held()
                # Without marks the broker's word is all there is: what it no longer holds was acknowledged.
                ledger = Ledger(issued=len(sent), done=len(sent) - left, failed=0, lost=left)
            drained_s = None if drained_ns is None else (drained_ns - sent[0].due_ns) / 1e9
            bill = self._bill(trial, arena, before, after, sent, samples)
            if session.broker.pid is not None:
                own_in, own_out = snoop.share(looks)
                bill = replace(
                    bill,
                    commands=resources.commands_between(before, after, looks=looks, queues=len(queue.names)),
                    bytes_in=after.bytes_in - before.bytes_in - own_in,
                    bytes_out=after.bytes_out - before.bytes_out - own_out,
                )
            if drained_s is not None:
                bill = replace(bill, drained_s=drained_s)
            if drained_s is not None and not len(samples):
                bill = replace(bill, wall_s=drained_s)
            words = arena.last_words() if ledger.lost else ""
            return Run(trial, samples, ledger, bill, processes=tuple(tapes.headers()), last_words=words)
        finally:
            arena.close()
            app.close()
            with contextlib.suppress(redis.RedisError):  # the broker may be why we are leaving
                remove_keys(session.client, settings.key_prefix)

    def _bare(self, trial: Trial, jobs: _Jobs, directory: Path, tapes: Tapes) -> Run:
        setup = trial.setup
        if isinstance(setup.pacer, Closed):
            raise LabError(f"{setup.label}: a closed load needs workers to wait for; it cannot run without a queue")
        due_ns = [round(due * 1e9) for due in jobs.pacer.due_s()]
        program = ExecutorProgram(
            self.session.children,
            setup,
            python=self.session.python(setup),
            directory=directory,
            tape_dir=tapes.directory,
            nonce=jobs.nonce,
            due_ns=due_ns,
            jobs=[(jobs.name(seq), jobs.args(seq), jobs.beside(seq)) for seq in range(len(due_ns))],
            broker_url=self.session.broker.url,
        )
        try:
            before = self._snapshot(program, resources.BrokerCounters())
            start_ns, sent_ns = program.go(timeout_s=_limit_s(trial, self.cores))
            after = self._snapshot(program, resources.BrokerCounters())
            pairs = enumerate(zip(due_ns, sent_ns, strict=True))
            sent = [Sent(seq, start_ns + due, moment, moment) for seq, (due, moment) in pairs]
            samples, ledger = observe(sent, tapes.marks(jobs.nonce), expected=jobs.expected, beside=jobs.beside)
            bill = self._bill(trial, program, before, after, sent, samples)
            return Run(trial, samples, ledger, bill, processes=tuple(tapes.headers()))
        finally:
            program.close()

    def _bill(
        self,
        trial: Trial,
        arena: Arena,
        before: resources.Snapshot,
        after: resources.Snapshot,
        sent: Sequence[Sent],
        samples: Samples,
    ) -> Resources:
        """What the run cost, but for what the broker says."""
        start_ns = sent[0].due_ns
        # Without a single end, all the time that was waited for one.
        last_ns = int(samples.ended_ns.max()) if len(samples) else after.at_ns - start_ns
        steal = None if after.steal_s is None or before.steal_s is None else after.steal_s - before.steal_s
        queued = trial.setup.queued
        has_cpu = before.broker_cpu_s is not None and after.broker_cpu_s is not None
        return Resources(
            wall_s=last_ns / 1e9,
            boot_s=arena.boot_s,
            worker_cpu_s=after.worker_cpu_s - before.worker_cpu_s,
            worker_pss_bytes=resources.pss_bytes(arena.processes()),
            context_switches=after.context_switches - before.context_switches,
            broker_cpu_s=(after.broker_cpu_s or 0.0) - (before.broker_cpu_s or 0.0) if has_cpu else None,
            producer_cpu_s=after.producer_cpu_s - before.producer_cpu_s,
            others_cpu_s=resources.others_cpu_s(before, after),
            steal_s=steal,
            fed_s=max(s.taken_ns for s in sent) / 1e9 - start_ns / 1e9 if queued else 0.0,
            gil_enabled=bool(arena.about["gil_enabled"]),
            python=str(arena.about["python"]),
        )

    def _snapshot(self, arena: Arena, broker: resources.BrokerCounters) -> resources.Snapshot:
        return resources.snapshot(arena.processes(), self.session.helpers, broker)

    def _warm_up(self, setup: Setup, jobs: _Jobs, app: Any, queue: _Queue, arena: CeleryWorkers, tapes: Tapes) -> None:
        """Fill every slot at once with sleeping jobs, so that each thread and child exists; then one real one a slot.

        Over when the last of them has ended: an early acknowledgement says only that it has begun. Without marks the
        broker's word is all there is, so such setups should acknowledge late. Raises LabError when it does not end.
        """
        served = [(queue.names[0], jobs.loads[0], setup.slots)]
        if setup.apart:
            served.append((queue.names[1], jobs.loads[1], setup.apart_concurrency))
        every_slot = [(name, load, slots) for name, load, slots in served for _ in range(slots)]
        for kinds in (
            # Long enough that the first still sleeps when the last is fetched: a worker fetches some hundred a second.
            [(name, JOBS["snooze"], {"ms": 20 + 4 * slots}) for name, _, slots in every_slot],
            [(name, load.job, load.args(0)) for name, load, _ in every_slot],
        ):
            nonce, count = secrets.randbits(63), len(kinds)
            parcels = [
                Parcel(job_id(nonce, seq), job.task_name, name, args) for seq, (name, job, args) in enumerate(kinds)
            ]
            sender = Sender(app, parcels.__getitem__)
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

    def _ends(self, progress: Progress, start_ns: int, arena: Arena, trial: Trial) -> Iterator[float]:
        """When jobs ended, in seconds since the start, as they do: what a closed load waits for."""
        given, deadline = 0, time.monotonic() + _limit_s(trial, self.cores)
        while arena.alive() and time.monotonic() < deadline:
            ended = progress.ended_ns()
            for moment in ended[given:]:
                yield (moment - start_ns) / 1e9
            if given == len(ended):
                time.sleep(CLOSED_LOOK_S)
            given = len(ended)

    def _drain(self, trial: Trial, progress: Progress, queue: _Queue, arena: Arena, issued: int) -> int | None:
        """Wait until every job has ended and is acknowledged, or there is no more hope.

        Returns the moment when the broker held nothing, in ns of CLOCK_MONOTONIC, if the setup watches the broker.
        """
        watch = trial.setup.watch_broker
        deadline = time.monotonic() + _limit_s(trial, self.cores)
        while arena.alive() and time.monotonic() < deadline:
            if watch and (empty_ns := queue.empty_since_ns()):
                return empty_ns
            if not watch and len(progress.ended_ns()) >= issued:
                break
            self.idle()
            time.sleep(LOOK_S)
        # The last acknowledgements belong to the price of the jobs; they follow within a moment.
        settle = time.monotonic() + SETTLE_S
        while not watch and arena.alive() and queue.held() and time.monotonic() < settle:
            time.sleep(LOOK_S)
        return None


def is_noisy(run: Run) -> bool:
    """Whether others used the machine meanwhile, so that the trial is better taken again."""
    return any(fault.check in NOISE for fault in run.faults)


CLOSED_LOOK_S = 0.001
"""A closed load answers an end within a millisecond; the rest of its lag is in its own histogram."""
SETTLE_S = 2.0
EMPTY_LOOKS = 3
"""A message is in flight for well under a millisecond; looks are ten milliseconds apart."""


def _queues(setup: Setup, settings: Settings) -> tuple[str, ...]:
    return (settings.queue, APART_QUEUE) if setup.apart else (settings.queue,)


class _Jobs:
    """A trial's jobs by number: what each gets, what it must return, when it is due."""

    def __init__(self, session: Session, setup: Setup, nonce: int) -> None:
        self.nonce = nonce
        self.loads = [_Load(session, setup, load) for load in setup.loads]
        # A closed load waits for its own ends and cannot be planned beforehand; nothing may run beside it.
        self._plan = merged([load.pacer for load in setup.loads]) if setup.beside else None
        self.pacer: Pacer = Replay(tuple(due for due, _, _ in self._plan)) if self._plan else setup.pacer

    def load_of(self, seq: int) -> tuple[int, int]:
        """Which load job `seq` belongs to, and its number there."""
        return self._plan[seq][1:] if self._plan else (0, seq)

    def beside(self, seq: int) -> bool:
        """Whether it only runs beside the setup's own jobs."""
        return self.load_of(seq)[0] > 0

    def args(self, seq: int) -> dict[str, Any]:
        """Its arguments."""
        which, number = self.load_of(seq)
        return self.loads[which].args(number)

    def name(self, seq: int) -> str:
        """Its kind."""
        return self.loads[self.load_of(seq)[0]].job.name

    def expected(self, seq: int) -> int | None:
        """The checksum that it must return; None where it measures something."""
        which, number = self.load_of(seq)
        return self.loads[which].expected(number)


class _Load:
    """The arguments and expected results of the jobs of one load."""

    def __init__(self, session: Session, setup: Setup, load: Load) -> None:
        self.job = JOBS[load.job]
        self._args_of = load.args
        self._units, self._url = session.units(setup, load), session.url(load)
        self._same = is_same_for_all(load.args)
        self._expected: dict[object, int] = {}
        self._args = self._fill(0)

    def _fill(self, number: int) -> dict[str, Any]:
        return fill(self._args_of, seq=number, units=self._units, url=self._url)

    def args(self, number: int) -> dict[str, Any]:
        """The arguments of job number `number` of this load."""
        return self._args if self._same else self._fill(number)

    def expected(self, number: int) -> int | None:
        """The checksum that it must return; None where it measures something."""
        if self.job.measures:
            return None
        args = self.args(number)
        key = tuple(args.values()) if all(isinstance(v, str | int | float) for v in args.values()) else number
        if key not in self._expected:
            self._expected[key] = checksum(self.job.expect(**args))
        return self._expected[key]


@dataclass(slots=True)
class _Queue:
    """The jobs that the broker still holds."""

    client: redis.Redis
    prefix: str
    names: tuple[str, ...]
    looks: int = 0
    """How often it was asked: those commands are the lab's own and no part of a job's price."""

    def held(self) -> int:
        """Queued, or delivered and not yet acknowledged."""
        self.looks += 1
        with self.client.pipeline(transaction=True) as pipe:
            for name in self.names:
                pipe.llen(self.prefix + name)
            pipe.hlen(self.prefix + "unacked")
            return int(sum(pipe.execute()))

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


def _limit_s(trial: Trial, cores: int) -> float:
    return PATIENCE * expected_s(trial, cores=cores) + PATIENCE_S
