"""Trials of Celery and its peers: workers of one library, its producer, and what the marks and the broker say."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from lab import interpreters, resources
from lab.children import ROOT, kill, last_words, tree
from lab.model import BadInput, LabError, Setup
from lab.peers import BASE, GAP_S, PEERS, Compared, Killed, Peer, Size, Taken, faults, is_noisy
from lab.session import Session
from producer.pacers import Burst

FOLDER = ROOT / "benchmarks"
"""The libraries' jobs and pins. Only a checkout has it."""
WARM_JOBS = 40
"""Run before anything is timed: connections are made, scripts are loaded."""
BOOT_TIMEOUT_S = 60.0
STALL_S = 30.0
"""A drain in which no job starts for so long has lost the rest."""
LOOK_S = 0.02
"""Between two looks at the marks. The marks hold the times, so looking seldom costs no accuracy."""
OWN_INFOS = 3
"""INFO commands of ours between two readings: one that ends the first, two that begin the second."""
SHORT_S = 0.05  # CPU time is counted in ticks of 10 ms; five of them can be chance

KILL_JOBS, KILL_JOB_S = 24, 0.25
KILL_AFTER = 4
"""Workers are killed when so many jobs have started and one of them runs."""
RECOVER_S = 3
"""For the trial with a kill alone: how long libraries wait before they take back a dead worker's jobs, where it can be
set. By default they wait from a minute to an hour."""
PATIENCE_S = 20.0
"""Longer than any of these waits: a job that did not end so long after the last one counts as lost."""

TRICKLE_S = 1.0

CELL = np.dtype([("started_ns", "<i8"), ("ended_ns", "<i8"), ("starts", "<i8"), ("ends", "<i8")])
"""A mark, as `benchmarks/marks.py` writes it."""


class Marks:
    """The jobs' marks of one trial."""

    def __init__(self, path: Path, count: int) -> None:
        self.path = path
        with path.open("wb") as file:
            file.truncate(count * CELL.itemsize)
        self.cells: Any = np.memmap(path, dtype=CELL, mode="r", shape=(count,))

    def of(self, first: int, count: int) -> Any:
        """The marks of `count` jobs from `first` on."""
        return self.cells[first : first + count]


@dataclass
class Producer:
    """The process that sends a library's jobs."""

    process: subprocess.Popen[bytes]
    log: Path
    what: str

    def ask(self, order: Mapping[str, object] | None, timeout_s: float) -> dict[str, Any]:
        """Its answer to an order; with no order, the first thing it says. Raises LabError when none comes."""
        into, out = self.process.stdin, self.process.stdout
        assert into  # noqa: S101  they were asked for as pipes
        assert out  # noqa: S101
        with contextlib.suppress(BrokenPipeError):  # its end is noticed below
            if order is not None:
                into.write(json.dumps(order).encode() + b"\n")
                into.flush()
        line, deadline = b"", time.monotonic() + timeout_s
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([out], [], [], left)[0]:
                raise LabError(f"the producer of {self.what} took more than {timeout_s:.0f} s; {last_words(self.log)}")
            piece = os.read(out.fileno(), 65536)
            if not piece:
                raise LabError(f"the producer of {self.what} ended: {last_words(self.log)}")
            line += piece
        answer: dict[str, Any] = json.loads(line)
        return answer


@dataclass
class Rig:
    """What the trials of one run share."""

    session: Session
    pythons: Mapping[str, str]
    """The interpreter of each environment, by its requirements file."""
    versions: dict[str, dict[str, str]] = field(default_factory=dict)
    _trials: int = 0

    @contextlib.contextmanager
    def place(self) -> Iterator[Path]:
        """A folder for one trial, gone afterwards, beside an empty broker."""
        # Ours alone: `measure` takes no other broker.
        self.session.client.flushall()
        self._trials += 1
        folder = self.session.children.directory / f"peer-{self._trials}"
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def env(self, peer: Peer, marks: Marks, recover_s: int = 0) -> dict[str, str]:
        """The environment of a library's processes. The broker's URL travels in it: a process list shows arguments."""
        url = self.session.broker.url
        return {
            # A preset may name a module of `tasks`; nothing else of ours is to be seen.
            "PYTHONPATH": os.pathsep.join(
                (str(FOLDER), str(self.session.children.path), *(str(ROOT / path) for path in peer.paths))
            ),
            "BENCH_BROKER": url,
            "RQ_REDIS_URL": url,
            "BENCH_MARKS": str(marks.path),
            "BENCH_RECOVER_S": str(recover_s),
            "PYTHONUNBUFFERED": "1",
            **peer.env,
        }

    @contextlib.contextmanager
    def workers(self, peer: Peer, env: Mapping[str, str], folder: Path) -> Iterator[Workers]:
        """Its worker processes, killed in the end."""
        log = folder / "workers.log"
        python = Path(self.pythons[peer.requirements])
        workers = Workers([], log, peer.label, peer.says_up)
        try:
            for command in peer.commands:
                words = (*command, *peer.recovering) if env["BENCH_RECOVER_S"] != "0" else command
                program, *rest = (word.format(folder=FOLDER, recover_s=RECOVER_S) for word in words)
                with log.open("ab") as output:
                    workers.processes.append(
                        self.session.children.start(
                            [str(python.with_name(program)), *rest],
                            env=env,
                            stdin=subprocess.DEVNULL,
                            stdout=output,
                            stderr=output,
                            cwd=str(folder),
                        )
                    )
            yield workers
        finally:
            workers.end()

    @contextlib.contextmanager
    def producer(self, peer: Peer, env: Mapping[str, str], folder: Path) -> Iterator[Producer]:
        """The process that sends its jobs, ready to be asked."""
        log = folder / "producer.log"
        with log.open("wb") as output:
            process = self.session.children.start(
                [self.pythons[peer.requirements], str(FOLDER / "send.py"), peer.module, *peer.packages],
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                cwd=str(folder),
                bufsize=0,
            )
        try:
            producer = Producer(process, log, peer.label)
            self.versions[peer.name] = producer.ask(None, BOOT_TIMEOUT_S)["versions"]
            yield producer
        finally:
            kill(process)


@dataclass
class Workers:
    """A library's worker processes."""

    processes: list[subprocess.Popen[Any]]
    log: Path
    what: str
    says_up: str = ""

    @property
    def is_up(self) -> bool:
        """Whether all of them have said so, where they say it."""
        return not self.says_up or self.says_up in self.log.read_text("utf-8", "replace")

    def all(self) -> list[psutil.Process]:
        """They and all that they have started."""
        return [member for process in self.processes for member in tree(process)]

    def check(self) -> None:
        """Raise LabError when one has ended."""
        for process in self.processes:
            if process.poll() is not None:
                raise LabError(f"a worker of {self.what} ended by itself: {last_words(self.log)}")

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Stop them (SIGSTOP) while it is open, so that jobs can pile up before workers that are up and warm."""
        stopped = self.all()
        try:
            for member in stopped:
                with contextlib.suppress(psutil.Error):
                    member.suspend()
            yield
        finally:
            for member in reversed(stopped):
                with contextlib.suppress(psutil.Error):
                    member.resume()

    def end(self) -> None:
        """Kill them (SIGKILL), at once; safe to call twice."""
        for process in self.processes:
            kill(process)


def open_rig(
    session: Session,
    peers: Sequence[Peer],
    *,
    newer: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Rig, dict[str, str]]:
    """A rig, with an environment for every row that can have one, and why others cannot.

    `newer` is an interpreter for the rows that need a newer one than this; BadInput if it is none.

    Raises BadInput outside a checkout, LabError when not even Celery's own environment can be made.
    """
    if not FOLDER.is_dir():
        raise BadInput("the peers' jobs and pins lie in the folder benchmarks of a checkout, which is not installed")
    if session.broker.pid is None:
        raise LabError("peers are measured on the embedded server alone: every trial empties it")
    if newer:
        newer = interpreters.ask(str(Path(shutil.which(newer) or newer).absolute())).path
    pythons: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for peer in peers:
        if peer.requirements in pythons or peer.requirements in reasons:
            continue
        try:
            base = interpreter(peer.python, newer)
            pythons[peer.requirements] = interpreters.with_requirements(base, FOLDER / peer.requirements, say=say)
        except LabError as error:
            if peer.requirements == PEERS[BASE].requirements:
                raise
            reasons[peer.requirements] = str(error)
    left_out = {peer.name: reasons[peer.requirements] for peer in peers if peer.requirements in reasons}
    return Rig(session, pythons), left_out


def interpreter(oldest: tuple[int, int], newer: str | None = None) -> str:
    """Ours if it is new enough, else `newer`, else one on PATH. Raises LabError where there is none."""
    if sys.version_info[:2] >= oldest:
        return sys.executable
    if newer:
        return newer
    for minor in range(oldest[1], 15):
        name = f"python{oldest[0]}.{minor}"
        if (path := shutil.which(name)) and _runs(path):
            return path
    raise LabError(f"it needs Python {oldest[0]}.{oldest[1]} or newer, and none is on PATH; --python names one")


def _runs(path: str) -> bool:
    try:
        interpreters.ask(path)
    except LabError:
        return False  # such as a version manager's stand-in for a version that is not chosen
    return True


@contextlib.contextmanager
def awake(session: Session) -> Iterator[None]:
    """While it is open, no core sleeps, if this system can do that: for every row alike."""
    with session.awake(Setup("noop", {}, Burst(1), keep_awake=True)):
        yield


def measure(
    rig: Rig,
    peers: Sequence[Peer],
    size: Size,
    *,
    seed: int = 0,
    left_out: Mapping[str, str] | None = None,
    fill: str = "one",
    step: Callable[[str, Size], None] = lambda _, __: None,
) -> Compared:
    """Run every row once in each block, in shuffled order, and then kill workers of each.

    `fill` is how the jobs to be drained are sent: `one` by one, or in `bulk` where the row can, and then nothing else
    is sent. A row whose processes fail is not tried again; what was measured of the others stands, with the fault.
    """
    chance = random.Random(seed)
    rows = [peer.sized(size.share) for peer in peers]
    blocks: list[dict[str, Taken]] = []
    kills: dict[str, Killed] = {}
    failed: dict[str, str] = {}
    retakes = 0

    def attempt(peer: Peer, words: str, run: Callable[[], None]) -> None:
        # One library that fails must not cost the figures of all others.
        step(f"{peer.label}, {words}", size)
        if peer.name not in failed:
            try:
                run()
            except LabError as error:
                failed[peer.name] = str(error)

    def take(peer: Peer, block: dict[str, Taken]) -> None:
        nonlocal retakes
        for again in range(size.retakes + 1):
            retakes += again > 0
            block[peer.name] = trial(rig, peer, size.idle_jobs, chance, fill=fill)
            if not is_noisy(block[peer.name]):
                return

    def slay(peer: Peer) -> None:
        once = kill_trial(rig, peer)
        kills[peer.name] = kills[peer.name] + once if peer.name in kills else once

    with awake(rig.session):
        for repeat in range(size.repeats):
            block: dict[str, Taken] = {}
            for peer in chance.sample(rows, len(rows)):
                attempt(peer, f"repeat {repeat + 1}", partial(take, peer, block))
            blocks.append(block)
        for peer in rows:
            for _ in range(size.kills):
                attempt(peer, "workers killed", partial(slay, peer))
    why = tuple(failed.values())
    named = {peer.name: peer for peer in peers}
    return Compared(
        blocks, dict(rig.versions), dict(left_out or {}), kills, (*why, *faults(blocks, named)), named, retakes
    )


def trial(rig: Rig, peer: Peer, idle_jobs: int, chance: random.Random, *, fill: str = "one") -> Taken:
    """One row, once: idle latency, sending, draining, sending in bulk. Raises LabError when its workers do not run."""
    idle_first = WARM_JOBS
    first = idle_first + idle_jobs
    bulk_first = first + peer.jobs
    way = fill if peer.bulk else "one"
    bulk_jobs = peer.bulk_jobs if fill == "one" else 0
    with rig.place() as folder:
        marks = Marks(folder / "marks", bulk_first + bulk_jobs)
        env = rig.env(peer, marks)
        with rig.workers(peer, env, folder) as workers, rig.producer(peer, env, folder) as producer:
            warm(producer, workers, marks)
            idle_s = idle(producer, marks, idle_first, idle_jobs, chance) if idle_jobs else []
            helpers = [*rig.session.helpers, *tree(producer.process)]
            with workers.held():
                before = snapshot(rig, workers, helpers)
                order = {"do": "many_naps", "seconds": peer.nap_s} if peer.nap_s else {"do": way}
                sent = producer.ask({**order, "first": first, "count": peer.jobs}, _limit_s(peer.jobs))
                filled = snapshot(rig, workers, helpers)
            await_all(workers, marks, first, peer.jobs)
            time.sleep(SETTLE_S)
            drained = snapshot(rig, workers, helpers)
            bulk: dict[str, Any] = {}
            if bulk_jobs:
                with workers.held():
                    bulk = producer.ask({"do": "bulk", "first": bulk_first, "count": bulk_jobs}, _limit_s(bulk_jobs))
                    workers.end()  # what was sent in bulk is not drained: sending it was the question
        cells = marks.of(first, peer.jobs)
        starts = np.sort(cells["started_ns"][cells["starts"] > 0])
        others_cores, steal_cores = strangers((before, filled), (filled, drained))
        return Taken(
            enqueue_hz=peer.jobs / sent["took_s"],
            bulk_hz=bulk_jobs / bulk["took_s"] if bulk else None,
            drain_hz=_rate_hz(starts[peer.at_once :]),
            idle_s=tuple(idle_s),
            commands=_commands(before, drained, peer.jobs, readings=2),
            drain_commands=_commands(filled, drained, peer.jobs, readings=1),
            missing=peer.jobs - len(starts),
            doubled=int(np.sum(cells["starts"] > 1)),
            others_cores=others_cores,
            steal_cores=steal_cores,
        )


def _rate_hz(starts_ns: Any) -> float:
    """Starts a second, from the first to the last; not a number where there are no two."""
    return (len(starts_ns) - 1) / (float(starts_ns[-1] - starts_ns[0]) / 1e9) if len(starts_ns) > 1 else float("nan")


def strangers(*spells: tuple[resources.Snapshot, resources.Snapshot]) -> tuple[float, float]:
    """Cores that programs of others used, and that the hypervisor took, over spells that follow each other."""
    before, after = spells[0][0], spells[-1][1]
    wall_s = (after.at_ns - before.at_ns) / 1e9
    others_s = resources.others_cpu_s(list(spells))
    steal_s = (after.steal_s or 0.0) - (before.steal_s or 0.0)
    return others_s / wall_s if others_s > SHORT_S else 0.0, steal_s / wall_s if steal_s > SHORT_S else 0.0


def warm(producer: Producer, workers: Workers, marks: Marks) -> None:
    """Send the first jobs and wait until they have run: then everything is up."""
    producer.ask({"do": "one", "first": 0, "count": WARM_JOBS}, BOOT_TIMEOUT_S)
    deadline = time.monotonic() + BOOT_TIMEOUT_S
    while not (np.all(marks.of(0, WARM_JOBS)["ends"]) and workers.is_up):
        workers.check()
        if time.monotonic() > deadline:
            done = int(np.count_nonzero(marks.of(0, WARM_JOBS)["ends"]))
            raise LabError(
                f"{workers.what}: its workers ran {done} of {WARM_JOBS} jobs within {BOOT_TIMEOUT_S:.0f} s; "
                f"their last words: {last_words(workers.log)}"
            )
        time.sleep(LOOK_S)


def idle(
    producer: Producer, marks: Marks, first: int, count: int, chance: random.Random, longest_s: float = GAP_S
) -> list[float]:
    """How long each of `count` jobs took from the call that sent it to its first line, its worker having none."""
    # Every length of pause once, in shuffled order: a library that polls is met at every moment of its poll.
    gaps_s = [longest_s * (n + chance.random()) / count for n in range(count)]
    chance.shuffle(gaps_s)
    answer = producer.ask({"do": "idle", "first": first, "gaps_s": gaps_s, "count": count}, 60 + 2 * count)
    started = marks.of(first, count)["started_ns"]
    pairs = zip(answer["sent_ns"], started, strict=False)
    return [float(at - sent) / 1e9 for sent, at in pairs if at]


def await_all(workers: Workers, marks: Marks, first: int, count: int) -> None:
    """Wait until all have ended, or none has started for long."""
    ends, done, moved = marks.of(first, count)["ends"], -1, time.monotonic()
    while (now := int(np.count_nonzero(ends))) < count:
        workers.check()
        if now != done:
            done, moved = now, time.monotonic()
        elif time.monotonic() - moved > STALL_S:
            return
        time.sleep(LOOK_S)


SETTLE_S = 0.3
"""For the last acknowledgements to reach the broker: they belong to the price of the jobs."""


def snapshot(rig: Rig, workers: Workers, helpers: list[psutil.Process]) -> resources.Snapshot:
    """Every counter of the machine, the workers and the broker, once."""
    return resources.snapshot(workers.all(), helpers, resources.counters_after(rig.session.client, local=True))


def _commands(before: resources.Snapshot, after: resources.Snapshot, jobs: int, *, readings: int) -> dict[str, float]:
    """Commands for each job between two snapshots so many readings apart, without our own."""
    counts = {name: calls - before.commands.get(name, 0) for name, calls in after.commands.items()}
    counts["info"] = counts.get("info", 0) - readings * OWN_INFOS
    return {name: count / jobs for name, count in counts.items() if count > 0}


def _limit_s(jobs: int) -> float:
    """Longest that sending so many may take: the slowest library sends a few hundred a second."""
    return 30.0 + jobs / 50


def kill_trial(rig: Rig, peer: Peer, *, patience_s: float = PATIENCE_S) -> Killed:
    """Kill all workers of a row while jobs run, start new ones, and count what comes back.

    Where a library can be told how long it waits before it takes back a dead worker's jobs, it waits RECOVER_S here.
    """
    with rig.place() as folder:
        marks = Marks(folder / "marks", WARM_JOBS + KILL_JOBS)
        env = rig.env(peer, marks, RECOVER_S)
        with rig.producer(peer, env, folder) as producer:
            with rig.workers(peer, env, folder) as workers:
                warm(producer, workers, marks)
                order = {"do": "nap", "first": WARM_JOBS, "count": KILL_JOBS, "seconds": KILL_JOB_S}
                producer.ask(order, BOOT_TIMEOUT_S)
                cells = marks.of(WARM_JOBS, KILL_JOBS)
                deadline = time.monotonic() + BOOT_TIMEOUT_S
                while np.sum(cells["starts"]) < KILL_AFTER or not np.sum(cells["starts"] > cells["ends"]):
                    workers.check()
                    if time.monotonic() > deadline:
                        raise LabError(f"{peer.label}: no job ran, so none could be killed; {last_words(workers.log)}")
                    time.sleep(LOOK_S / 4)
                workers.end()
            running = np.array(cells["starts"] > cells["ends"])
            with rig.workers(peer, env, folder) as workers:
                _patiently(producer, workers, cells, patience_s)
        ends = np.array(cells["ends"])
        return Killed(
            kills=1,
            sent=KILL_JOBS,
            running=int(np.sum(running)),
            ran_again=int(np.sum(running & (ends > 0))),
            lost=int(np.sum(ends == 0)),
            doubled=int(np.sum(ends > 1)),
        )


def _patiently(producer: Producer, workers: Workers, cells: Any, patience_s: float) -> None:
    """Wait until every job has ended, or none has for longer than any library was told to wait.

    An empty job is sent every second, as real queues are never still: some look for a dead worker's jobs only after
    they have received a new one.
    """
    done = -1
    moved = sent = time.monotonic()
    while (now := int(np.count_nonzero(cells["ends"]))) < len(cells):
        workers.check()
        if now != done:
            done, moved = now, time.monotonic()
        elif time.monotonic() - moved > patience_s:
            return
        if time.monotonic() - sent > TRICKLE_S:
            producer.ask({"do": "one", "first": 0, "count": 1}, BOOT_TIMEOUT_S)
            sent = time.monotonic()
        time.sleep(LOOK_S)
