"""A worker of single processes, each of which fetches for itself: starts them, watches over them, ends them.

Run as `python -m tasks.processes COUNT NAME APP [OPTION OF celery worker]...`, which is what `sidestep worker --pool
processes` does. Each process is a Celery worker of its own with the pool `tasks.solo`; what they print comes out here,
line by line. This one only waits: for a signal, for a line, for a death.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

from tasks.restarts import COULD_NOT, Deaths

READY_VAR = "SIDESTEP_READY_FD"
"""Names the file descriptor on which a worker of our app says that it is up, see `tasks.hooks`; if set, so do we."""
ASSUMED_UP_S = 30.0
"""Workers of other apps do not say it: one that has lived so long is up."""
LONGEST_LINE = 1 << 16
"""Bytes that are kept of a line whose end is not there yet."""
PIECE = 1 << 16
MOST_LAST_WORDS = 100
"""Pieces: more than a pipe holds."""
DONE, FAILED = 0, 1
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Stop(IntEnum):
    """How urgently the processes shall end."""

    NOT = 0
    WARM = 1
    """Each finishes its job."""
    COLD = 2
    """Each lets go of its job."""
    KILLED = 3


TELLS: Mapping[Stop, signal.Signals] = {Stop.WARM: signal.SIGTERM, Stop.COLD: signal.SIGQUIT}


def urgency(now: Stop, signum: int) -> Stop:
    """What a signal makes of it: as with Celery, SIGTERM is warm, SIGQUIT cold, each Ctrl-C more urgent."""
    if signum == signal.SIGINT or (signum == signal.SIGQUIT and now >= Stop.COLD):
        return Stop(min(now + 1, Stop.KILLED))
    return max(now, Stop.COLD if signum == signal.SIGQUIT else Stop.WARM)


def names(pattern: str, count: int) -> list[str]:
    """One family of node names: `celery@%h` becomes `celery-1@%h`, `celery-2@%h` and so on."""
    name, _, host = pattern.rpartition("@")
    return [f"{name or 'celery'}-{number}@{host or '%h'}" for number in range(1, count + 1)]


def command(name: str, app: str, options: Sequence[str], *, quiet: bool = False) -> list[str]:
    """The worker that is one process of the family. `options` may hold a pool, a concurrency, a name: these win.

    A quiet one shows no banner.
    """
    celery = [sys.executable, "-m", "celery", *(("-q",) if quiet else ()), "-A", app, "worker"]
    end = options.index("--") if "--" in options else len(options)
    ours = ("-P", "custom", "-c", "1", "-n", name)
    return [*celery, *options[:end], *ours, *options[end:]]


class Lines:
    """What a process says on one of its streams, passed on in whole lines with its name before each."""

    def __init__(self, source: int, target: int, name: str) -> None:
        self.source = source
        self._target, self._before, self._rest = target, f"{name} | ".encode(), b""

    def pass_on(self) -> bool:
        """Pass on what is there; returns whether more may come."""
        try:
            piece = os.read(self.source, PIECE)
        except BlockingIOError:
            return True
        whole, end, self._rest = (self._rest + piece).rpartition(b"\n")
        if self._rest and (not piece or len(self._rest) > LONGEST_LINE):
            whole, end, self._rest = whole + end + self._rest, b"\n", b""
        if end:
            write(self._target, b"".join(self._before + line + b"\n" for line in whole.split(b"\n")))
        return bool(piece)


def write(target: int, text: bytes) -> None:
    """Write all of it; where nobody reads any more it is lost, and nothing else is."""
    while text:
        try:
            text = text[os.write(target, text) :]
        except BlockingIOError:  # somebody else made our terminal so
            select.select([], [target], [])
        except OSError:
            return


@dataclass
class Process:
    """One place in the family: the process that holds it now, or when the next one is started."""

    name: str
    deaths: Deaths = field(default_factory=Deaths)
    running: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    due_s: float | None = 0.0
    """When it is started next, on the supervisor's clock; None while it runs, and when it is not wanted any more."""
    about: dict[str, object] | None = None
    """What it said when it was up."""

    @property
    def short(self) -> str:
        """Its name without the machine's."""
        return self.name.partition("@")[0]


class Supervisor:
    """Keeps as many processes running as there are names, until it is told to stop or it is pointless."""

    def __init__(
        self,
        pattern: str,
        count: int,
        starts: Callable[[str, bool], Sequence[str]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._family = [Process(name) for name in names(pattern, count)]
        self._name, self._starts, self._clock = pattern.rpartition("@")[0] or "celery", starts, clock
        self._reading = selectors.DefaultSelector()
        self._stop, self._status, self._was_up = Stop.NOT, DONE, False
        self._before_death = _with_parent()

    def run(self) -> int:
        """Supervise until none is left; returns the exit status.

        0 when all ended as they were told, by a signal or by remote control; 1 after a cold shutdown, as Celery's own;
        2 when one could not be started. Takes this process's signal handlers.
        """
        signals = self._hear()
        if not self._before_death:
            self._say("on this system the processes outlive a supervisor that is killed (SIGKILL)")
        while True:
            self._start_due()
            if not any(process.running or process.due_s is not None for process in self._family):
                break
            for key, _ in self._reading.select(self._patience_s()):
                if key.fd == signals:
                    for signum in os.read(signals, PIECE):
                        self._hear_one(signum)
                else:
                    key.data()
            self._bury()
        self._reading.unregister(signals)
        for _ in range(MOST_LAST_WORDS):  # what a job has started may hold a pipe, and is not waited for
            for key, _ in self._reading.select(0) or ():
                key.data()
        return self._status

    def _hear(self) -> int:
        """From now on signals are bytes that can be read; returns where."""
        heard, told = os.pipe()
        for end in (heard, told):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        for known in (*URGENT, signal.SIGCHLD, signal.SIGUSR1):
            if known != signal.SIGHUP or signal.getsignal(known) != signal.SIG_IGN:  # nohup's wish
                signal.signal(known, _nothing)
        self._reading.register(heard, selectors.EVENT_READ)
        return heard

    def _hear_one(self, signum: int) -> None:
        if signum == signal.SIGUSR1:  # Celery writes down where each thread is
            for process in self._family:
                if process.running and self._is_up(process):
                    process.running.send_signal(signum)
        elif signum in URGENT:
            stop = urgency(self._stop, signum)
            if stop > self._stop:
                self._end(stop)

    def _end(self, stop: Stop) -> None:
        """Tell all to end, those that would be started not to be."""
        self._stop = stop
        self._say(SAYS[stop])
        if stop > Stop.WARM:
            self._status = self._status or FAILED
        for process in self._family:
            process.due_s = None
            if process.running and stop in TELLS:
                process.running.send_signal(TELLS[stop])
            elif process.running:
                os.killpg(process.running.pid, signal.SIGKILL)  # it is not collected yet, so the number is its own

    def _patience_s(self) -> float | None:
        due = [process.due_s for process in self._family if process.due_s is not None]
        return max(0.0, min(due) - self._clock()) if due else None

    def _start_due(self) -> None:
        now = self._clock()
        for process in self._family:
            if process.due_s is not None and process.due_s <= now:
                self._start(process)

    def _start(self, process: Process) -> None:
        process.started_s, process.due_s, process.about = self._clock(), None, None
        ready, told = os.pipe()
        environ = {
            "PYTHONUNBUFFERED": "1",  # a line is passed on when it is written
            **os.environ,
            READY_VAR: str(told),
            "CELERY_CUSTOM_WORKER_POOL": "tasks.solo:TaskPool",
        }
        try:
            process.running = running = subprocess.Popen(
                # One banner says what all would say.
                self._starts(process.name, process is not self._family[0] or process.deaths.in_row > 0),
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                pass_fds=(told,),
                # A terminal's Ctrl-C is for the supervisor alone, which tells the others once.
                start_new_session=True,
                preexec_fn=self._before_death,  # noqa: PLW1509  this process has one thread
            )
        except OSError as error:
            os.close(ready)
            self._died(process, f"cannot be started ({error.strerror})", status=FAILED)
            return
        finally:
            os.close(told)
        assert running.stdout  # noqa: S101  they were asked for as pipes
        assert running.stderr  # noqa: S101
        for stream, target in ((running.stdout, 1), (running.stderr, 2)):
            self._read(Lines(os.dup(stream.fileno()), target, process.short))
            stream.close()
        os.set_blocking(ready, False)
        self._reading.register(ready, selectors.EVENT_READ, lambda: self._ready(process, running, ready))

    def _read(self, lines: Lines) -> None:
        os.set_blocking(lines.source, False)

        def pass_on() -> None:
            if not lines.pass_on():
                self._forget(lines.source)

        self._reading.register(lines.source, selectors.EVENT_READ, pass_on)

    def _forget(self, source: int) -> None:
        self._reading.unregister(source)
        os.close(source)

    def _ready(self, process: Process, running: subprocess.Popen[bytes], source: int) -> None:
        """A worker has said that it is up, as it does after each reconnection, or has ended."""
        try:
            said = os.read(source, PIECE)
        except BlockingIOError:
            return
        if not said:
            self._forget(source)
        elif process.running is running and not process.about:
            process.about = json.loads(said.splitlines()[0])
            if all(one.about for one in self._family):
                self._up(process.about)

    def _up(self, about: Mapping[str, object]) -> None:
        """All are up: say so, and to whoever has asked, in the words in which one worker would."""
        pids = " ".join(str(process.running.pid) for process in self._family if process.running)
        self._say(f"{len(self._family)} of {len(self._family)} processes are up: {pids}")
        if not self._was_up and (told := os.environ.get(READY_VAR)):
            host = str(about.get("name", "")).partition("@")[2]
            family = {
                "pid": os.getpid(),
                "name": f"{self._name}@{host}",
                "pool": "processes",
                "slots": len(self._family),
            }
            write(int(told), json.dumps({**about, **family}).encode() + b"\n")
        self._was_up = True

    def _is_up(self, process: Process) -> bool:
        return bool(process.about) or self._clock() - process.started_s >= ASSUMED_UP_S

    def _bury(self) -> None:
        """Collect those that have ended, and decide what comes after them."""
        for process in self._family:
            if process.running is None or (status := process.running.poll()) is None:
                continue
            process.running = None
            if self._stop is Stop.NOT and status != DONE:
                self._died(process, f"died ({_how(status)})", status=status)
            elif self._stop is Stop.NOT:
                self._say(f"{process.short} has ended as it was told, and is not started again")
            elif self._stop is Stop.WARM and status != DONE and self._is_up(process):
                self._say(f"{process.short} did not end well ({_how(status)})")
                self._status = self._status or FAILED

    def _died(self, process: Process, how: str, *, status: int) -> None:
        now = self._clock()
        process.deaths = process.deaths.after(now - process.started_s, was_up=self._is_up(process), status=status)
        if process.deaths.is_hopeless:
            self._status = COULD_NOT
            often = f"{process.deaths.at_start} times in a row " if status != COULD_NOT else ""
            self._say(f"{process.short} {how} {often}before it was up: giving up; its own lines above say why")
            if self._stop is Stop.NOT:
                self._end(Stop.WARM)
            return
        wait_s = process.deaths.wait_s
        process.due_s = now + wait_s
        self._say(f"{process.short} {how}; it is started again {f'in {wait_s:g} s' if wait_s else 'at once'}")

    def _say(self, words: str) -> None:
        write(2, f"{self._name} | [{time.strftime('%Y-%m-%d %H:%M:%S')}] {words}\n".encode())


URGENT = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
SAYS: Mapping[Stop, str] = {
    Stop.WARM: "warm shutdown: each process finishes its job; Ctrl-C or SIGQUIT makes it let go of it",
    Stop.COLD: "cold shutdown: each process lets go of its job; once more kills them",
    Stop.KILLED: "killing all processes",
}


def _nothing(_: int, __: object) -> None:
    """Signals are read from a pipe, see `Supervisor.run`."""


def _how(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"


def _with_parent() -> Callable[[], None] | None:
    """What a new process calls so that the kernel kills it when this one is gone; None where there is no such call.

    A killed supervisor can say nothing more, and a worker whose lines nobody reads cannot end well: its farewell raises
    an error in the middle of its job. So it is killed, and its jobs are given back as those of any killed worker.
    """
    if not sys.platform.startswith("linux"):
        return None
    prctl, parent, kill = ctypes.CDLL(None).prctl, os.getpid(), int(signal.SIGKILL)

    def call() -> None:
        prctl(PR_SET_PDEATHSIG, kill, 0, 0, 0)
        if os.getppid() != parent:  # it died before we asked
            os._exit(FAILED)

    return call


def main() -> None:
    """Supervise until the end."""
    count, pattern, app, *options = sys.argv[1:]

    def starts(name: str, quiet: bool) -> Sequence[str]:
        return command(name, app, options, quiet=quiet)

    sys.exit(Supervisor(pattern, int(count), starts).run())


if __name__ == "__main__":
    main()
