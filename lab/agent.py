"""Beside a worker on any machine: says that it is there, compares its clock to the broker's, sends its marks.

Run by `sidestep worker` as `python -m lab.agent` with the worker's pipe as standard input. It reads the tapes that the
worker writes, as the lab does on its own machine, and sends what is new a few times a second in one go: no job waits
for it. It ends when the worker does.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import psutil
import redis

from lab.clocks import Probe, ask
from lab.crew import ALIVE_S, BEAT_S, IDLE_BEAT_S, KEPT_S, NAMES, WANTED, Batch, Member, batches, member_key
from tasks.settings import from_env
from tasks.timeline import CAPACITY, DONE, FAILED, HEADER_BYTES, MARK, TAPE_BYTES, boot_id

PROBES = 10
"""As many as are kept: a second of them while a lab measures."""
TIMEOUT_S = 5.0
STARTED_AT, FLAGS_AT = 24, 60
"""Bytes into a mark."""


class Reel:
    """One tape, read on from where the last look stopped."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), TAPE_BYTES, access=mmap.ACCESS_READ)
        self._begun = 0
        self._under_way: list[int] = []
        self.about: dict[str, Any] = {}
        self.read = 0
        """Marks that were read."""

    def ended(self) -> list[bytes]:
        """The marks of jobs that ended since the last look, as they stand there."""
        if not self.about and (header := self._map[:HEADER_BYTES].rstrip(b"\0")):
            self.about = json.loads(header)
        while self._begun < CAPACITY and any(self._part(self._begun, STARTED_AT, 8)):
            self._under_way.append(self._begun)
            self._begun += 1
        found, still = [], []
        for index in self._under_way:
            flags = int.from_bytes(self._part(index, FLAGS_AT, 2), "little")
            if flags & (DONE | FAILED):
                found.append(self._part(index, 0, MARK.size))
            elif not flags:
                still.append(index)  # any other is no mark
        self._under_way = still
        self.read += len(found)
        return found

    def _part(self, index: int, at: int, size: int) -> bytes:
        start = HEADER_BYTES + index * MARK.size + at
        return self._map[start : start + size]


class Reels:
    """All tapes in a folder."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._reels: dict[str, Reel] = {}

    def ended(self, member: str) -> Iterator[Batch]:
        """What is new on each."""
        for path in sorted(self._directory.glob("*.tape")):
            if path.name not in self._reels and path.stat().st_size == TAPE_BYTES:
                self._reels[path.name] = Reel(path)
        for name, reel in self._reels.items():
            marks = reel.ended()
            yield from batches(member, name, reel.about, reel.read - len(marks), marks)


class Agent:
    """Tells the broker of one worker, beat by beat."""

    def __init__(self, client: redis.Redis, member: Member, reels: Reels, worker: psutil.Process) -> None:
        self._client, self._member, self._reels, self._worker = client, member, reels, worker
        self._probes: deque[Probe] = deque(maxlen=PROBES)
        self._unsent: list[Batch] = []

    def beat(self) -> bool:
        """Say that the worker is there, and send its marks if they are wanted; returns whether they are."""
        self._probes.append(ask(self._client.time))
        wanted = cast("bytes | None", self._client.get(WANTED))
        new = list(self._reels.ended(self._member.name))
        # What ended while nobody asked is nobody's.
        self._unsent = [*self._unsent, *new] if wanted else []
        shipped = self._member.shipped + sum(len(batch.marks) // MARK.size for batch in self._unsent)
        member = replace(
            self._member,
            probes=tuple(self._probes),
            cpu_s=tree_cpu_s(self._worker),
            agent_cpu_s=time.process_time(),
            shipped=shipped,
        )
        with self._client.pipeline(transaction=False) as pipe:
            pipe.sadd(NAMES, member.name)
            pipe.set(member_key(member.name), member.to_json(), px=round(ALIVE_S * 1000))
            if wanted and self._unsent:
                pipe.rpush(wanted, *(batch.to_bytes() for batch in self._unsent))
                pipe.expire(wanted, KEPT_S)
            pipe.execute()
        self._member, self._unsent = member, []
        return bool(wanted)

    def leave(self) -> None:
        """Send what is left and say goodbye."""
        with contextlib.suppress(redis.RedisError):
            self.beat()
            with self._client.pipeline(transaction=False) as pipe:
                pipe.delete(member_key(self._member.name))
                pipe.srem(NAMES, self._member.name)
                pipe.execute()


def tree_cpu_s(process: psutil.Process) -> float:
    """CPU seconds of the process and everything under it, those that have ended and been collected too."""
    total = 0.0
    for pid in _tree(process):
        if pid != os.getpid():
            with contextlib.suppress(psutil.Error):
                times = psutil.Process(pid).cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
    return total


def _tree(process: psutil.Process) -> list[int]:
    """The process and its descendants. The kernel's own list of them costs a hundredth of a look at every process."""
    if not Path(f"/proc/{process.pid}/task/{process.pid}/children").exists():
        with contextlib.suppress(psutil.Error):
            return [process.pid, *(one.pid for one in process.children(recursive=True))]
        return []
    found, look_at = [], [process.pid]
    while look_at:
        pid = look_at.pop()
        found.append(pid)
        for listed in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # a thread that has just ended
                look_at += map(int, listed.read_text("ascii").split())
    return found


def main() -> None:
    """Wait until the worker is ready, then tell of it until it has ended."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the worker decides when; we only follow it
        signal.signal(ignored, signal.SIG_IGN)
    parent = os.getppid()
    line = sys.stdin.readline()
    if not line:
        return  # it never got ready
    about, settings = json.loads(line), from_env()
    member = Member(
        name=str(about["name"]),
        pool=str(about["pool"]),
        slots=int(about["slots"]),
        pid=parent,
        boot_id=boot_id(),
        python=str(about["python"]),
        gil_enabled=bool(about["gil_enabled"]),
        key_prefix=settings.key_prefix,
    )
    client = redis.Redis.from_url(settings.broker, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S)
    agent = Agent(client, member, Reels(Path(str(settings.tape_dir))), psutil.Process(parent))
    while os.getppid() == parent:
        wanted = False
        with contextlib.suppress(redis.RedisError, OSError):  # the worker tells of a broker that is gone, and waits too
            wanted = agent.beat()
        time.sleep(BEAT_S if wanted else IDLE_BEAT_S)
    agent.leave()


if __name__ == "__main__":
    main()
