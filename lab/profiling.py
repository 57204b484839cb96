"""Where a worker's CPU time goes while it does jobs that do nothing: what py-spy sampled, by whose code it was."""

from __future__ import annotations

import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lab.bench import Bench
from lab.children import kill, last_words, tree
from lab.model import BadInput, Estimate, LabError, Setup, Trial
from lab.session import Session
from lab.stats import mean, mean_of_logs
from producer.pacers import Burst

RATE_HZ = 200
"""Samples a second. Each stops the worker for well under a millisecond."""
START_TIMEOUT_S = 30.0
LIMIT_S = 120.0
LOOK_S = 0.02
SLOTS = {"solo": 1, "prefork": 2, "threads": 2, "eventlet": 10, "gevent": 10}
OTHER = "other Python"


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose code it is, by where its file lies."""

    name: str
    files: re.Pattern[str]


def _owner(name: str, files: str) -> Owner:
    return Owner(name, re.compile(files))


OWNERS: tuple[Owner, ...] = (
    _owner("redis-py", r"/(redis|hiredis)/"),
    _owner("kombu's Redis transport", r"/kombu/transport/|/tasks/one_client\.py"),
    _owner(
        "the event loop", r"/kombu/asynchronous/|/kombu/utils/eventio\.py|/celery/worker/loops\.py|/(eventlet|gevent)/"
    ),
    _owner("kombu, messages and the rest", r"/kombu/"),
    _owner("Celery's tracer", r"/celery/app/(trace|task)\.py|/celery/utils/threads\.py"),
    _owner("the result backend", r"/celery/backends/|/celery/result\.py"),
    _owner("events", r"/celery/events/"),
    _owner("the pool", r"/celery/concurrency/|/billiard/|/concurrent/futures/|/multiprocessing/"),
    _owner("Celery's consumer", r"/celery/worker/"),
    _owner("Celery, signals and the rest", r"/(celery|vine)/"),
    _owner("Sidestep's marks", r"/tasks/(hooks|timeline|steps)\.py"),
    _owner("the task itself", r"/tasks/"),
)
"""The first that fits a file has it."""
KERNEL = "the kernel: sockets, polls, wakes"
"""System time, which no sample has: a thread lets go of the GIL where it calls the kernel."""
NAMES = (KERNEL, *(owner.name for owner in OWNERS), OTHER)
FRAME = re.compile(r"\((?P<file>.+):\d+\)$")


@dataclass(frozen=True, slots=True)
class Profile:
    """How many samples there were of threads that had the GIL."""

    samples: int
    own: Mapping[str, int]
    """By the owner of the innermost frame that has one: what the standard library does is whoever's who called it."""
    inclusive: Mapping[str, int]
    """By every owner that is anywhere on the stack: itself and whatever it calls."""


def profile(folded: str) -> Profile:
    """What py-spy's raw format holds: a line a stack, outermost frame first, with a count behind it.

    Raises ValueError for text that is something else.
    """
    own, inclusive, samples = Counter[str](), Counter[str](), 0
    for line in folded.splitlines():
        stack, _, count = line.rpartition(" ")
        owners = [name for frame in stack.split(";") if (name := owner(frame))]
        samples += int(count)
        own[owners[-1] if owners else OTHER] += int(count)
        inclusive.update(dict.fromkeys(set(owners) or {OTHER}, int(count)))
    return Profile(samples, own, inclusive)


def owner(frame: str) -> str | None:
    """Whose code a frame `function (file:line)` is; None for the standard library and whatever else."""
    found = FRAME.search(frame)
    return next((one.name for one in OWNERS if found and one.files.search(found["file"])), None)


@dataclass(slots=True)
class Bill:
    """What workers of one pool paid per job, repeat by repeat; CPU seconds of the worker's whole process tree."""

    pool: str
    profiles: list[Profile] = field(default_factory=list)
    user_s: list[float] = field(default_factory=list)
    kernel_s: list[float] = field(default_factory=list)

    @property
    def cpu(self) -> Estimate | None:
        """CPU seconds per job."""
        return mean_of_logs([user + kernel for user, kernel in zip(self.user_s, self.kernel_s, strict=True)])

    def seconds(self, name: str) -> Estimate | None:
        """CPU seconds per job of this owner."""
        return mean(self._seconds(name))

    def share(self, name: str) -> Estimate | None:
        """The part of all CPU time that is this owner's own."""
        return mean(self._of_all(self._seconds(name)))

    def inclusive(self, name: str) -> Estimate | None:
        """The part of all CPU time with this owner anywhere on the stack, without the kernel's."""
        return mean(self._of_all([p.inclusive.get(name, 0) / p.samples * s for p, s in self._sampled()]))

    def _seconds(self, name: str) -> list[float]:
        if name == KERNEL:
            return self.kernel_s
        return [p.own.get(name, 0) / p.samples * s for p, s in self._sampled()]

    def _sampled(self) -> list[tuple[Profile, float]]:
        return list(zip(self.profiles, self.user_s, strict=True))

    def _of_all(self, seconds: Sequence[float]) -> list[float]:
        return [one / (user + k) for one, user, k in zip(seconds, self.user_s, self.kernel_s, strict=True)]


def py_spy() -> str:
    """Where it is. Raises BadInput where it is not."""
    beside = Path(sys.executable).parent / "py-spy"
    if found := (str(beside) if beside.exists() else shutil.which("py-spy")):
        return found
    raise BadInput("py-spy is not installed; try: pip install 'sidestep[profile]'")


def measure(
    session: Session,
    pools: Sequence[str],
    *,
    jobs: int,
    repeats: int,
    knobs: tuple[str, ...] = (),
    idle: Callable[[], None] = lambda: None,
) -> list[Bill]:
    """Profile fresh workers of each pool in turn, so many times.

    Raises BadInput without py-spy, and LabError where it may not look into a process.
    """
    program = py_spy()
    bills = [Bill(pool) for pool in pools]
    for repeat in range(repeats):
        # There and back again: what grows steadily hits all alike.
        for bill in bills if repeat % 2 == 0 else reversed(bills):
            setup = Setup(
                job="noop",
                args={},
                pacer=Burst(jobs),
                pool=bill.pool,
                concurrency=SLOTS[bill.pool],
                keep_awake=True,
                knobs=knobs,
            )
            found, user_s, kernel_s = _profiled(session, Trial("profile", setup, repeat), program, idle)
            bill.profiles.append(found)
            bill.user_s.append(user_s)
            bill.kernel_s.append(kernel_s)
    return bills


def _profiled(session: Session, trial: Trial, program: str, idle: Callable[[], None]) -> tuple[Profile, float, float]:
    nonce = secrets.randbits(63)
    directory = session.children.directory / f"profile-{trial.setup.pool}-{trial.repeat}"
    try:
        with (
            session.awake(trial.setup),
            Bench(trial, session, nonce, directory, limit_s=LIMIT_S) as bench,
        ):
            main = bench.processes()[0]
            spy = _Spy(session, program, main.pid, directory)
            try:
                before = _times_s(bench)
                bench.go(0, 1, others=[*session.helpers, *tree(spy.process)], idle=idle)
                after = _times_s(bench)
                folded = spy.told()
            finally:
                spy.close()
            run = bench.run()
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    found = profile(folded)
    if run.ledger.done != run.ledger.issued or not found.samples:
        raise LabError(f"{trial.setup.label}: {run.ledger.done} of {run.ledger.issued} jobs ended; nothing to profile")
    user_s, kernel_s = ((end - begin) / run.ledger.issued for begin, end in zip(before, after, strict=True))
    return found, user_s, kernel_s


def _times_s(bench: Bench) -> tuple[float, float]:
    """User and system time of the worker's whole process tree."""
    times = [process.cpu_times() for process in bench.processes()]
    return sum(one.user for one in times), sum(one.system for one in times)


class _Spy:
    """Py-spy at work on one process and its children."""

    def __init__(self, session: Session, program: str, pid: int, directory: Path) -> None:
        self._out, self._log = directory / "folded.txt", directory / "py-spy.log"
        command = [
            program,
            "record",
            "--pid",
            str(pid),
            "--format",
            "raw",
            "--full-filenames",
            "--subprocesses",
            "--gil",
        ]
        command += ["--rate", str(RATE_HZ), "--duration", str(round(LIMIT_S)), "--output", str(self._out)]
        with self._log.open("wb") as log:
            self.process = session.children.start(command, stdout=log, stderr=log)
        deadline = time.monotonic() + START_TIMEOUT_S
        while "Sampling process" not in self._log.read_text("utf-8", "replace"):
            if self.process.poll() is not None or time.monotonic() > deadline:
                words = last_words(self._log)
                self.close()
                raise LabError(
                    f"py-spy cannot look into the worker ({words}); it must be root, or kernel.yama.ptrace_scope 0"
                )
            time.sleep(LOOK_S)

    def told(self) -> str:
        """Stop it, and what it saw. Raises LabError when it says nothing."""
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(timeout=START_TIMEOUT_S)
            return self._out.read_text("utf-8")
        except (subprocess.TimeoutExpired, OSError):
            raise LabError(f"py-spy left no profile; its last words: {last_words(self._log)}") from None

    def close(self) -> None:
        """End it at once."""
        kill(self.process)
