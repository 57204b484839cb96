"""How the lab sees that jobs have ended: by marks of our own workers, by Celery's events, or by the result backend."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import redis
from kombu.exceptions import OperationalError
from numpy.typing import NDArray

from lab.load.books import Ends
from lab.load.idents import halves, read, tag_of
from lab.load.model import ErrorGroup, Observation, Watch
from lab.observe import MARKS
from tasks.timeline import CAPACITY, DONE, HEADER_BYTES, STEPS, TAPE_BYTES

MOST_GROUPS, MOST_SAMPLES = 50, 5
"""Of failures that say something different, and of jobs named for each."""
MOST_LOG_BYTES = 8 << 20
LISTEN_S = 5.0
"""How long a subscription may take to stand."""
SILENT_S = 30.0
"""Without a sign of a worker that sends one every two seconds."""
_RAISED = re.compile(r"Task (\S+)\[([0-9a-f-]{32,36})\] raised unexpected: (.*)")
_ADDRESS = re.compile(r"0x[0-9a-f]{6,}")


class Watching(Protocol):
    """Sees ends. What a way of watching cannot know has its answer here."""

    about: Observation

    def begin(self, tag: int, names: Sequence[str]) -> None:
        """A run begins, with this tag in the ids of its jobs and kinds of these names."""
        ...

    def ended(self) -> Iterator[Ends]:
        """What of the run has ended since the last time."""
        ...

    def errors(self) -> tuple[ErrorGroup, ...]:
        """What failures said."""
        ...

    def close(self) -> None:
        """Stop watching; safe to call twice."""
        ...

    def trouble(self) -> str:
        """Why nothing more will be seen; empty as long as all is well."""
        return ""

    def under_way(self) -> int:
        """How many jobs had begun and not ended at the last look; 0 where that is not to be seen."""
        return 0

    def gone(self) -> str:
        """Which workers of somebody else have died, so that a run is of no use; empty as long as none has."""
        return ""

    def left(self) -> Sequence[str]:
        """Those that said good-bye."""
        return ()

    def heard_s(self) -> Mapping[str, float]:
        """Of each worker whose clock may not be ours, the least from a moment by its clock until it was heard of."""
        return {}


class Groups:
    """Failures of one run's jobs by what they say, bounded."""

    def __init__(self, tag: int = -1, names: Sequence[str] = ()) -> None:
        self._tag, self._names = tag, names
        self._found: dict[tuple[str, str], list[Any]] = {}

    def add(self, job: str, says: str) -> None:
        """One failure; of other runs' jobs none."""
        if (known := halves(job)) is None:
            return
        ids = read(np.array(known[:1], dtype=np.uint64), np.array(known[1:], dtype=np.uint64))
        tag, kind = int(ids.tag[0]), int(ids.kind[0])
        if tag != self._tag or kind >= len(self._names):
            return
        # Two objects' addresses are no two errors.
        key = (self._names[kind], _ADDRESS.sub("0x…", " ".join(says.split()))[:300])
        if key not in self._found and len(self._found) >= MOST_GROUPS:
            key = (key[0], "other failures")
        row = self._found.setdefault(key, [0, []])
        row[0] += 1
        if len(row[1]) < MOST_SAMPLES:
            row[1].append(job)

    @property
    def value(self) -> tuple[ErrorGroup, ...]:
        """The commonest first."""
        rows = sorted(self._found.items(), key=lambda row: (-row[1][0], row[0]))
        return tuple(ErrorGroup(kind, says, count, tuple(jobs)) for (kind, says), (count, jobs) in rows)


# ---------------------------------------------------------------- marks


class Folder(NamedTuple):
    """Where the workers of one crew leave their tapes and their logs."""

    pool: str
    tapes: Path
    logs: Path


class Marks(Watching):
    """Reads the tapes of our own workers as they are written; one that is full and done with is removed."""

    about = Observation(
        Watch.MARKS,
        "two memory writes a job in the worker; nothing travels over the broker",
        "a job that expired, or that a worker dropped unread, leaves no mark and counts as lost",
    )

    def __init__(self, folders: Sequence[Folder]) -> None:
        self._folders = folders
        self._tag, self._kinds = -1, tuple[str, ...]()
        self._reels: dict[Path, _Reel] = {}
        self._names: list[str] = []
        self._processes: dict[tuple[str, str], int] = {}
        self._log_from: dict[Path, int] = {}

    def begin(self, tag: int, names: Sequence[str]) -> None:
        """See `Watching`. What logs say so far is of no concern."""
        self._tag, self._kinds = tag, tuple(names)
        self._log_from = {
            log: log.stat().st_size for folder in self._folders for log in folder.logs.glob("worker-*.log")
        }

    def ended(self) -> Iterator[Ends]:
        """See `Watching`."""
        for folder in self._folders:
            for path in folder.tapes.glob("*.tape"):
                if path not in self._reels and path.stat().st_size == TAPE_BYTES:
                    self._reels[path] = _Reel(path, self._place(folder.pool, path))
        for path, reel in list(self._reels.items()):
            marks = reel.ended()
            if len(marks):
                ids = read(marks["nonce"], marks["seq"])
                own = ids.tag == self._tag
                if own.any():
                    marks, ids = marks[own], type(ids)(*(column[own] for column in ids))
                    yield Ends(
                        ids,
                        marks["started_ns"].astype(np.int64),
                        marks["ended_ns"].astype(np.int64),
                        (marks["flags"] & DONE) != 0,
                        marks["checksum"].astype(np.int64),
                        self._names,
                        np.full(len(marks), reel.place, dtype=np.int64),
                    )
            if reel.is_over:
                # Ten million jobs are 640 MB of tapes.
                del self._reels[path]
                path.unlink(missing_ok=True)

    def under_way(self) -> int:
        """See `Watching`. A job whose process was killed looks so for good."""
        under_way = [reel.under_way() for reel in self._reels.values()]
        return sum(int((read(marks["nonce"], marks["seq"]).tag == self._tag).sum()) for marks in under_way)

    def _place(self, pool: str, path: Path) -> int:
        """Which worker a tape is of: processes of a pool are numbered as they appear."""
        process = (pool, path.name.partition("-")[0])
        if process not in self._processes:
            self._processes[process] = len(self._names)
            same = sum(1 for known, _ in self._processes if known == pool)
            self._names.append(f"{pool} {same}")
        return self._processes[process]

    def errors(self) -> tuple[ErrorGroup, ...]:
        """What the workers' logs say; the first megabytes of them."""
        groups = Groups(self._tag, self._kinds)
        for folder in self._folders:
            for log in sorted(folder.logs.glob("worker-*.log")):
                with contextlib.suppress(OSError), log.open("rb") as file:
                    file.seek(self._log_from.get(log, 0))
                    for line in file.read(MOST_LOG_BYTES).decode("utf-8", "replace").splitlines():
                        if match := _RAISED.search(line):
                            groups.add(match[2], match[3])
        return groups.value

    def close(self) -> None:
        """See `Watching`."""
        self._reels.clear()


class _Reel:
    """One tape, read on from where the last look stopped."""

    def __init__(self, path: Path, place: int) -> None:
        self.place = place
        self._marks = np.memmap(path, dtype=MARKS, mode="r", offset=HEADER_BYTES, shape=(CAPACITY,))
        self._begun = 0
        self._under_way = np.zeros(0, dtype=np.int64)

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it."""
        return self._begun == CAPACITY and not len(self._under_way)

    def under_way(self) -> NDArray[Any]:
        """The marks of jobs that had begun and not ended at the last look."""
        return self._marks[self._under_way]

    def ended(self) -> NDArray[Any]:
        """Copies of the marks of jobs that ended since the last look, however long others of the same tape take."""
        marks, begun = self._marks, self._begun
        while begun < CAPACITY:
            # A mark is begun before it is ended, and one after the other: the first without a start ends the tape.
            look = np.asarray(marks["started_ns"][begun : begun + LOOK_MARKS]) == 0
            fresh = int(np.argmax(look)) if look.any() else len(look)
            begun += fresh
            if fresh < len(look):
                break
        waiting = np.concatenate((self._under_way, np.arange(self._begun, begun, dtype=np.int64)))
        self._begun = begun
        flags = np.asarray(marks["flags"])[waiting]
        over = flags != 0
        self._under_way = waiting[~over]
        found: NDArray[Any] = np.array(marks[waiting[over]])
        kept: NDArray[Any] = found[found["flags"] & STEPS == 0]
        return kept


LOOK_MARKS = 512


# ---------------------------------------------------------------- workers of somebody else


class _Seen(NamedTuple):
    high: int
    low: int
    started_ns: int
    ended_ns: int
    good: bool
    worker: int


class _Heard:
    """What a thread has heard and the run has not yet taken."""

    def __init__(self) -> None:
        self._seen: deque[_Seen] = deque()
        self._names: list[str] = []
        self._places: dict[str, int] = {}

    def add(self, job: str, *, started_ns: int, ended_ns: int, good: bool, worker: str) -> None:
        """One end."""
        if (known := halves(job)) is None:
            return  # somebody else's id
        if worker not in self._places:
            self._places[worker] = len(self._names)
            self._names.append(worker)
        self._seen.append(_Seen(*known, started_ns, ended_ns, good, self._places[worker]))

    def take(self, tag: int) -> Iterator[Ends]:
        """All so far, of the run that the tag names."""
        rows = [self._seen.popleft() for _ in range(len(self._seen))]
        if not rows:
            return
        high, low = (np.array([row[i] for row in rows], dtype=np.uint64) for i in (0, 1))
        ids = read(high, low)
        own = ids.tag == tag
        rest = np.array([row[2:] for row in rows], dtype=np.int64)[own]
        if len(rest):
            yield Ends(
                type(ids)(*(column[own] for column in ids)),
                rest[:, 0],
                rest[:, 1],
                rest[:, 2] != 0,
                np.full(len(rest), -1, dtype=np.int64),
                self._names,
                rest[:, 3],
            )


class Events(Watching):
    """Listens to Celery's events in a thread of its own. Times are the workers' wall clocks, moved to our own."""

    about = Observation(
        Watch.EVENTS,
        "the workers publish two or three events a job, which the broker carries too, and this process reads them",
        "events are best effort: one that is lost makes a job look lost; moments are wall clocks of the workers' "
        "machines, so on another machine their error is the difference of the clocks; an end is seen when the worker's "
        "main process knows of it",
    )
    _OVER: Mapping[str, bool] = {
        "task-succeeded": True,
        "task-failed": False,
        "task-retried": False,
        "task-revoked": False,
        "task-rejected": False,
    }

    def __init__(self, app: Any, workers: Set[str] = frozenset()) -> None:
        """Returns when it listens; `workers` are those whose end is of interest."""
        self._workers, self._offline = frozenset(workers), set[str]()
        self._beat_s: dict[str, float] = {}
        self._app, self._heard, self._groups = app, _Heard(), Groups()
        self._tag = -1
        self._heard_ns: dict[str, int] = {}
        self._begun: dict[str, set[str]] = {}
        """Of each worker the jobs that it has begun and not ended, ours or not."""
        self._beats_while_busy = set[str]()
        self._stands = threading.Event()
        self._receiver: Any = None
        self.lost_connection = ""
        self.heard = 0
        self._over = False
        self._thread = threading.Thread(target=self._listen, name="events", daemon=True)
        self._thread.start()
        self._stands.wait(LISTEN_S)

    def _listen(self) -> None:
        try:
            with self._app.connection_for_read() as connection:
                self._receiver = self._app.events.Receiver(connection, handlers={"*": self._event})
                self._receiver.on_consume_ready = lambda *_, **__: self._stands.set()
                if not self._over:
                    self._receiver.capture(limit=None, timeout=None, wakeup=False)
        except (OperationalError, redis.RedisError, OSError) as error:
            self.lost_connection = str(error).partition("\n")[0] or type(error).__name__
        finally:
            self._stands.set()

    def _event(self, event: Mapping[str, Any]) -> None:
        kind, worker, job = event.get("type"), str(event.get("hostname")), str(event.get("uuid"))
        self.heard += 1
        self._notice(str(kind), worker)
        if kind == "task-started":
            self._begun.setdefault(worker, set()).add(job)
        if kind not in self._OVER:
            return
        self._begun.get(worker, set()).discard(job)
        good = self._OVER[str(kind)]
        # Our own two clocks are compared each time: the time of day may be set while a soak runs.
        now_ns, day_ns = time.monotonic_ns(), time.time_ns()
        took_ns = day_ns - round(float(event["timestamp"]) * 1e9)
        self._heard_ns[worker] = min(took_ns, self._heard_ns.get(worker, took_ns))
        ended_ns = now_ns - took_ns
        runtime = event.get("runtime")
        started_ns = ended_ns - round(float(runtime) * 1e9) if runtime is not None else 0
        self._heard.add(job, started_ns=started_ns, ended_ns=ended_ns, good=good, worker=worker)
        if not good and kind != "task-retried":
            says = event.get("exception") or ("expired" if event.get("expired") else str(kind).partition("-")[2])
            self._groups.add(job, str(says))

    def _notice(self, kind: str, worker: str) -> None:
        """Whether a worker is there."""
        if worker not in self._workers:
            return
        if kind == "worker-offline":
            self._offline.add(worker)
        elif kind in {"worker-online", "worker-heartbeat"}:
            self._offline.discard(worker)
            self._beat_s[worker] = time.monotonic()
            if kind == "worker-online":
                self._begun.pop(worker, None)  # what it had begun before it started anew, it does not do
            elif self._begun.get(worker):
                self._beats_while_busy.add(worker)
        elif worker in self._beat_s:
            self._beat_s[worker] = time.monotonic()

    def begin(self, tag: int, names: Sequence[str]) -> None:
        """See `Watching`."""
        self._tag, self._groups, self._heard_ns = tag, Groups(tag, tuple(names)), {}

    def under_way(self) -> int:
        """See `Watching`."""
        return sum(tag_of(job) == self._tag for jobs in list(self._begun.values()) for job in list(jobs))

    def trouble(self) -> str:
        """See `Watching`."""
        return self.lost_connection

    def ended(self) -> Iterator[Ends]:
        """See `Watching`."""
        yield from self._heard.take(self._tag)

    def errors(self) -> tuple[ErrorGroup, ...]:
        """See `Watching`."""
        return self._groups.value

    def gone(self) -> str:
        """See `Watching`. Who sends no heartbeat is not missed; nor is, in the midst of a job, who sends none then."""
        if self._workers and self._workers <= self._offline:
            return "the last worker that serves these queues said good-bye"
        now_s = time.monotonic()
        for name, beat_s in list(self._beat_s.items()):
            busy_and_mute = self._begun.get(name) and name not in self._beats_while_busy
            if name not in self._offline and now_s - beat_s > SILENT_S and not busy_and_mute:
                return f"{name} has sent no heartbeat for {now_s - beat_s:.0f} s"
        return ""

    def left(self) -> Sequence[str]:
        """See `Watching`."""
        return sorted(self._offline)

    def heard_s(self) -> Mapping[str, float]:
        """See `Watching`."""
        return {name: ns / 1e9 for name, ns in list(self._heard_ns.items())}

    def close(self) -> None:
        """See `Watching`."""
        self._over = True
        if self._receiver is not None:
            self._receiver.should_stop = True
        self._thread.join(LISTEN_S)


class Results(Watching):
    """Listens to what a Redis result backend announces of each result, in a thread of its own."""

    about = Observation(
        Watch.RESULTS,
        "each job stores its result, which stays in the backend until it expires, and announces it",
        "when a job started is not known; an end is seen when its announcement comes, so latency holds the way back "
        "too; an announcement that is lost makes a job look lost; a task with ignore_result announces nothing",
    )

    def __init__(self, url: str) -> None:
        """Returns when it listens. Raises redis.RedisError when the backend does not answer."""
        self._heard, self._groups = _Heard(), Groups()
        self._tag = -1
        self._client = redis.Redis.from_url(url, socket_connect_timeout=LISTEN_S)
        client: Any = self._client
        self._subscription = client.pubsub(ignore_subscribe_messages=False)
        self._subscription.psubscribe("*celery-task-meta-*")
        self._subscription.get_message(timeout=LISTEN_S)
        self.lost_connection = ""
        self.heard = 0
        self._over = False
        self._thread = threading.Thread(target=self._listen, name="results", daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        try:
            while not self._over:
                message: Any = self._subscription.get_message(ignore_subscribe_messages=True, timeout=0.2)
                if message:
                    self._announced(message, time.monotonic_ns())
        except (redis.RedisError, OSError, ValueError) as error:
            if not self._over:
                self.lost_connection = str(error).partition("\n")[0] or type(error).__name__

    def _announced(self, message: Mapping[str, Any], ended_ns: int) -> None:
        self.heard += 1
        job = bytes(message["channel"]).decode("utf-8", "replace").rpartition("celery-task-meta-")[2]
        try:
            told = json.loads(message["data"])
            status, result = str(told.get("status")), told.get("result")
        except (ValueError, AttributeError):
            status, result = "SUCCESS", None  # written by another serializer: that it is there is all we know
        if status not in {"SUCCESS", "FAILURE", "RETRY", "REVOKED"}:
            return  # it has only started
        self._heard.add(job, started_ns=0, ended_ns=ended_ns, good=status == "SUCCESS", worker="result backend")
        if status in {"FAILURE", "REVOKED"}:
            raised = result if isinstance(result, dict) else {}
            says = f"{raised.get('exc_type', status)}: {raised.get('exc_message', '')}"
            self._groups.add(job, says)

    def begin(self, tag: int, names: Sequence[str]) -> None:
        """See `Watching`."""
        self._tag, self._groups = tag, Groups(tag, tuple(names))

    def trouble(self) -> str:
        """See `Watching`."""
        return self.lost_connection

    def ended(self) -> Iterator[Ends]:
        """See `Watching`."""
        yield from self._heard.take(self._tag)

    def errors(self) -> tuple[ErrorGroup, ...]:
        """See `Watching`."""
        return self._groups.value

    def close(self) -> None:
        """See `Watching`."""
        self._over = True
        self._thread.join(LISTEN_S)
        with contextlib.suppress(redis.RedisError, OSError):
            self._subscription.close()
            self._client.close()
