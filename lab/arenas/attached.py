"""Machines that listen on the user's broker: `sidestep worker` runs on each, wherever it is.

Which of them work on a trial is said to their workers by Celery's own remote control: those consume the trial's queue,
the others wait. Marks come over the broker, see `lab.agent`, and are written to tapes here, in the time of this
machine's clock, so that everything behind them is as it is on one machine.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import redis
from numpy.typing import NDArray

from lab.clocks import Comparison, Shift, ask, compared, shift
from lab.crew import BEAT_S, KEYS, NAMES, WANTED, WANTED_S, Batch, Member, member_key
from lab.model import BadInput, Change, LabError, Setup
from lab.observe import MARKS
from tasks.app import make_app
from tasks.settings import Settings
from tasks.timeline import CAPACITY, HEADER_BYTES, MARK, TAPE_BYTES, boot_id

COMPARE_BEATS = 6
"""Clocks are asked for so long, before a run and after it."""
CONTROL_S = 5.0
"""A worker that is up answers within milliseconds."""
SETTLE_S = 3.0
"""Marks come at most a beat after the job's end; a machine that stalls gets some more."""
TIMES = ("received_ns", "started_ns", "ended_ns")
PROBE_QUEUE = "probe"
"""Where one message of each trial is looked at; no worker serves it."""
QUEUES = "trial-"
"""Begins the name of every trial's queue."""
KOMBU = ("", "_kombu.binding.", "_kombu.binding_permanent.")
"""Before a queue's name, in the keys that kombu makes for it."""
HOW = "start `sidestep worker --broker URL` on each machine"


def crew(client: redis.Redis) -> dict[str, Member]:
    """The machines that take part now, by name. Raises BadInput for one of another version."""
    names = sorted(_text(name) for name in cast("set[Any]", client.smembers(NAMES)))
    if not names:
        return {}
    found: dict[str, Member] = {}
    for name, text in zip(names, cast("list[Any]", client.mget([member_key(name) for name in names])), strict=True):
        if text is None:
            client.srem(NAMES, name)  # gone without a word
            continue
        try:
            found[name] = Member.from_json(_text(text))
        except ValueError:
            raise BadInput(f"{name} runs another version of Sidestep: install the same one on every machine") from None
    return found


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def alike(members: Mapping[str, Member]) -> Member:
    """One of the machines, which stands for all. Raises BadInput when there is none, or when they are not alike."""
    if not members:
        raise BadInput(f"no machine listens on this broker: {HOW}, then run again")
    kinds: dict[tuple[str, int, str], list[str]] = {}
    for member in members.values():
        kinds.setdefault((member.pool, member.slots, member.key_prefix), []).append(member.name)
    if len(kinds) > 1:
        said = "; ".join(f"{', '.join(names)}: {pool} {slots}" for (pool, slots, _), names in kinds.items())
        raise BadInput(f"the machines are set up unalike ({said}): start each worker with the same -P and -c")
    return next(iter(members.values()))


def chosen(members: Mapping[str, Member], count: int, turn: int) -> tuple[Member, ...]:
    """So many of the machines; in each turn others come first, so that no machine stands for all smaller numbers."""
    names = sorted(members)
    return tuple(members[names[(turn + i) % len(names)]] for i in range(count))


def remove_stale(client: redis.Redis, url: str, key_prefix: str) -> None:
    """Free the machines from trials of a lab that was killed. Raises BadInput while another lab uses them."""
    if client.exists(WANTED):
        raise BadInput(f"another run uses these machines; wait for its end, or {WANTED_S:.0f} s after it was killed")
    keys = [_text(key) for key in client.scan_iter(match=f"{key_prefix}*{QUEUES}*", count=500)]
    names = {QUEUES + key.rpartition(QUEUES)[2] for key in keys}
    if not names:
        return
    app = make_app(Settings(broker=url, key_prefix=key_prefix), socket_timeout_s=CONTROL_S)
    for name in names:
        app.control.cancel_consumer(name)
        client.delete(*(f"{key_prefix}{before}{name}" for before in KOMBU))
    app.close()


class TooFew(LabError):  # noqa: N818  as `BadInput`
    """Machines have left, and those that are there do not suffice for a trial."""


@dataclass(slots=True)
class Watch:
    """Who was there when we last looked, from trial to trial."""

    present: set[str] = field(default_factory=set)
    changes: list[tuple[int, str, bool]] = field(default_factory=list)
    """When somebody came (True) or left, in ns of CLOCK_MONOTONIC, as far as no run that is kept says so."""


class AttachedMachines:
    """Those that work on one trial, listening to its queue when this returns.

    Raises TooFew, and LabError when one of them does not answer.
    """

    flower = None
    """What their events cost is measured on one machine."""

    def __init__(
        self,
        url: str,
        app: Any,
        setup: Setup,
        *,
        turn: int,
        queue: str,
        tapes: Path,
        key_prefix: str,
        watch: Watch,
        say: Callable[[str], None],
    ) -> None:
        begun = time.monotonic()
        self._app, self._queue, self._tapes, self._prefix = app, queue, tapes, key_prefix
        self._client = redis.Redis.from_url(url, socket_timeout=CONTROL_S)
        self._marks_key = f"{KEYS}marks:{queue}"
        self._stop, self._mirrors = threading.Event(), dict[tuple[str, str], _Mirror]()
        self._trouble: Exception | None = None
        self._listening = self._ours = False
        self._watcher = threading.Thread(target=self._watch, name="attached machines", daemon=True)
        self._crew, self._say = watch, say
        self._begun_ns = time.monotonic_ns()
        try:
            found = crew(self._client)
            self._notice(found)
            if len(found) < setup.nodes:
                raise TooFew(
                    f"{setup.label}: it needs {setup.nodes} machines and {len(found)} take part: {HOW} "
                    "that has left, and run again with the same --out"
                )
            self.members = {member.name: member for member in chosen(found, setup.nodes, turn)}
            one = next(iter(self.members.values()))
            self.about: dict[str, Any] = {"pid": one.pid, "python": one.python, "gil_enabled": one.gil_enabled}
            if not self._client.set(WANTED, self._marks_key, px=round(WANTED_S * 1000), nx=True):
                raise LabError("another run uses these machines; wait for its end")
            self._ours = True
            self._begin = self._compare()
            if silent := sorted(self.members.keys() - self._begin.keys()):
                raise LabError(f"{', '.join(silent)}: it says nothing of its clock; is it overloaded, or gone?")
            self._before = self._now()
            self._watcher.start()
            self._consume("add_consumer")
        except BaseException:
            self.close()
            raise
        self.boot_s = time.monotonic() - begun

    def _consume(self, verb: str) -> None:
        """Tell the machines' workers to take jobs of the queue, or not to any more."""
        self._listening = verb == "add_consumer"
        tell = getattr(self._app.control, verb)
        told = tell(self._queue, destination=list(self.members), reply=True, timeout=CONTROL_S)
        answered = {name for reply in told or () for name, said in reply.items() if "ok" in said}
        if silent := sorted(self.members.keys() - answered):
            raise LabError(f"{', '.join(silent)}: the worker does not answer; start it without --without-... options")

    def missing(self) -> set[str]:
        """Machines of which no mark has come yet."""
        return self.members.keys() - {name for name, _ in self._mirrors}

    def processes(self) -> list[psutil.Process]:
        """The workers that run on this very machine, with their children."""
        found: list[psutil.Process] = []
        for member in self.members.values():
            with contextlib.suppress(psutil.Error):
                if member.boot_id == boot_id():
                    worker = psutil.Process(member.pid)
                    found += [worker, *worker.children(recursive=True)]
        return found

    def watchers(self) -> list[psutil.Process]:
        """Nothing watches them."""
        return []

    def alive(self) -> bool:
        """Whether all of them are still there."""
        if self._trouble:
            raise LabError(f"the broker failed while machines were attached to it ({self._trouble}); run again")
        return not any(self._missed(*change) for change in self._crew.changes)

    def last_words(self) -> str:
        """Who left; what their workers said is on their own screens."""
        return ", ".join(f"{change[1]} left" for change in self._crew.changes if self._missed(*change))

    def _missed(self, at_ns: int, name: str, joined: bool) -> bool:
        return not joined and name in self.members and at_ns > self._begun_ns

    def changes(self, start_ns: int) -> tuple[Change, ...]:
        """Who came and who left since the last run that was kept, in seconds after a moment of CLOCK_MONOTONIC."""
        return tuple(
            Change(
                (at_ns - start_ns) / 1e9,
                name,
                joined,
                name in self.members if joined else self._missed(at_ns, name, joined),
            )
            for at_ns, name, joined in self._crew.changes
        )

    def settle(self) -> None:
        """After the last job: compare the clocks once more."""
        self._ends = self._compare()
        now = self._now()
        pairs = {name: (before, now.get(name, before)) for name, before in self._before.items()}
        self.cpu_s = sum(after.cpu_s - before.cpu_s for before, after in pairs.values())
        self._agents_s = {name: after.agent_cpu_s - before.agent_cpu_s for name, (before, after) in pairs.items()}

    def comparisons(self) -> dict[str, Comparison]:
        """Each machine's clock against ours over the run; one that left has only the comparison before it."""
        here = boot_id()
        return {
            name: compared(begin, self._ends.get(name, begin), same_boot=self.members[name].boot_id == here)
            for name, begin in self._begin.items()
        }

    def corrected(self, marks: NDArray[Any], headers: Sequence[Mapping[str, Any]]) -> NDArray[Any]:
        """The marks in our time by both comparisons; the tapes hold them by the first alone."""
        by = {name: one.shift_ns - self._first_shift(name) for name, one in self.comparisons().items()}
        of_worker = np.array([by.get(str(h.get("machine")), 0) for h in headers] or [0], dtype=np.int64)
        for name in TIMES:
            marks[name] = np.where(marks[name] == 0, 0, marks[name] + of_worker[marks["worker"]])
        return marks

    def told(self, headers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """The headers, with what is known of their machines' clocks."""
        known = self.comparisons()
        return [
            {
                **header,
                "clock_shift_ns": known[name].shift_ns,
                "clock_bound_ns": known[name].bound_ns,
                "clock_drift_ns": known[name].drift_ns,
                "agent_cpu_s": self._agents_s.get(name, 0.0),
            }
            if (name := str(header.get("machine"))) in known
            else header
            for header in headers
        ]

    def _first_shift(self, name: str) -> int:
        first = self._begin[name]
        return compared(first, first, same_boot=self.members[name].boot_id == boot_id()).shift_ns

    def _now(self) -> dict[str, Member]:
        return {name: member for name, member in crew(self._client).items() if name in self.members}

    def _compare(self) -> dict[str, Shift]:
        """Ask for a while, here and there, and take what bounds each machine's clock best."""
        ours = []
        for _ in range(COMPARE_BEATS):
            ours.append(ask(self._client.time))
            time.sleep(BEAT_S)
        found = {}
        for name, member in crew(self._client).items():
            # Older ones belong to another time; the pair that is taken lies close together in any case.
            theirs = [probe for probe in member.probes if probe.said_ns >= ours[0].said_ns]
            if name in self.members and theirs:
                found[name] = shift(theirs, ours)
        return found

    def _watch(self) -> None:
        """Until told to stop: who is there, and what marks have come."""
        client = self._client
        while not self._stop.is_set():
            try:
                client.set(WANTED, self._marks_key, px=round(WANTED_S * 1000))
                self._notice(crew(client))
                first = cast("Any", client.blpop([self._marks_key], timeout=BEAT_S))
                for data in [first[1]] if first else []:
                    self._take(data)
                for data in cast("list[bytes] | None", client.lpop(self._marks_key, CAPACITY)) or ():
                    self._take(data)
            except (redis.RedisError, OSError, LabError, ValueError) as error:
                self._trouble = error
                return

    def _notice(self, now: dict[str, Member]) -> None:
        at_ns = time.monotonic_ns()
        for name in sorted(now.keys() ^ self._crew.present):
            self._crew.changes.append((at_ns, name, name in now))
            self._say(f"machine {name} has {'joined' if name in now else 'left'}")
        self._crew.present = set(now)

    def _take(self, data: bytes) -> None:
        batch = Batch.from_bytes(data)
        if batch.member not in self.members:
            return
        key = (batch.member, batch.tape)
        if key not in self._mirrors:
            self._mirrors[key] = _Mirror(self._tapes, batch, self._first_shift(batch.member))
        self._mirrors[key].add(batch)

    def close(self) -> None:
        """Let the machines go, and take away what was in the broker for them; safe to call twice."""
        with contextlib.suppress(redis.RedisError, LabError, OSError):
            if self._listening:
                self._consume("cancel_consumer")
        self._stop.set()
        if self._watcher.is_alive():
            self._watcher.join(CONTROL_S)
        with contextlib.suppress(redis.RedisError):  # the broker may be why we are leaving
            self._client.delete(
                *([WANTED] if self._ours else []),
                self._marks_key,
                *(f"{self._prefix}{before}{name}" for before in KOMBU for name in (self._queue, PROBE_QUEUE)),
            )
        self._ours = False
        self._client.close()


class _Mirror:
    """A tape of another machine, written here again as its marks come, in our time."""

    def __init__(self, directory: Path, batch: Batch, shift_ns: int) -> None:
        self._shift_ns, self._batch, self._directory = shift_ns, batch, directory
        self._expected = 0
        self._used, self._reels = CAPACITY, 0
        self._marks: NDArray[Any] = np.zeros(0, MARKS)

    def add(self, batch: Batch) -> None:
        """Write its marks behind those that are there."""
        if batch.first < self._expected:
            return  # sent twice, because an answer of the broker was lost
        marks = np.frombuffer(batch.marks, dtype=MARKS).copy()
        self._expected = batch.first + len(marks)
        for name in TIMES:
            marks[name] = np.where(marks[name] == 0, 0, marks[name] + self._shift_ns)
        for mark in marks:
            if self._used == CAPACITY:
                self._open()
            self._marks[self._used] = mark
            self._used += 1

    def _open(self) -> None:
        who = hashlib.sha256(f"{self._batch.member} {self._batch.tape}".encode()).hexdigest()[:16]
        path = self._directory / f"{who}-{self._reels}.tape"
        header = json.dumps({**self._batch.about, "machine": self._batch.member}).encode()
        with path.with_suffix(".new").open("w+b") as file:
            file.write(header[:HEADER_BYTES])
            file.truncate(TAPE_BYTES)
            mapped = mmap.mmap(file.fileno(), 0)
        path.with_suffix(".new").rename(path)
        self._marks = np.frombuffer(mapped, dtype=MARKS, offset=HEADER_BYTES, count=CAPACITY)
        self._used, self._reels = 0, self._reels + 1


assert MARKS.itemsize == MARK.size  # noqa: S101  records are copied from one tape to another as they are
