"""What several runs of one mix share: the broker, and workers that are warm or that somebody else runs."""

from __future__ import annotations

import contextlib
import importlib.util
import secrets
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import psutil
import redis
from kombu.exceptions import KombuError, OperationalError

from lab import broker as brokers
from lab import environment, resources
from lab.arenas.celery_worker import CeleryWorkers
from lab.broker import Broker
from lab.children import Children
from lab.load.apps import BROKER_TIMEOUT_S, Address, make_app
from lab.load.arguments import Arguments
from lab.load.idents import TAG_BITS, job_id
from lab.load.model import Attached, Crew, Holds, Scenario, Watch
from lab.load.possible import at
from lab.load.scenario import is_redis
from lab.load.sending import LOOK_S
from lab.load.watch import Events, Folder, Marks, Results, Watching
from lab.model import BadInput, FrozenArgs, LabError, Setup
from lab.session import Session, open_session
from producer.pacers import Burst
from producer.payloads import Calibrated
from producer.publish import Parcel, Sender
from tasks.jobs import JOBS
from tasks.settings import Settings

WARM_S = 60.0
"""How long workers may take to get warm."""
ASK_S = (0.5, 2.0)
"""How long running workers may take to answer, one try after the other."""
SILENT = "a worker says which queues it serves, and not which tasks it knows"
"""It is asked again; who never says so is trusted."""
PRIORITY_STEPS, PRIORITY_SEPARATOR = (3, 6, 9), "\x06\x16"
"""Kombu keeps a list for each of its four steps of priority on Redis; the first has the queue's own name."""


def _nothing(*_: object) -> None:
    """For callers that need not be told."""


class Stand:
    """A broker and workers for one mix of jobs, ready for runs when this is entered.

    Raises BadInput for a broker that does not answer, a queue that nobody listens on, a task that nobody knows; nothing
    has been sent then. Raises LabError when our own workers do not come up.
    """

    def __init__(self, scenario: Scenario, *, force: bool = False, say: Callable[[str], None] = _nothing) -> None:
        self._scenario, self._force, self._say = scenario, force, say
        self._stack = contextlib.ExitStack()
        self._arenas: list[tuple[Crew, CeleryWorkers]] = []
        self.units: dict[str, float] = {}
        self._has_run = False
        self._attached_to: frozenset[str] = frozenset()
        """Workers of somebody else that our queues are served by, as far as they said so."""
        self.broker_is_silent = False
        """It stopped answering: nobody need wait for its answers again."""

    def __enter__(self) -> Stand:
        try:
            if self._scenario.attached:
                self._attach(self._scenario.attached)
            else:
                self._start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._stack.close()

    # ------------------------------------------------ workers of our own

    def _start(self) -> None:
        scenario = self._scenario
        for kind in scenario.kinds:
            needs = JOBS[str(kind.job)].needs
            if needs and importlib.util.find_spec(needs) is None:
                raise BadInput(f"{at(scenario, kind.line)}the job {kind.job!r} needs {needs}; install it")
        try:
            session = self._stack.enter_context(open_session(scenario.broker or None, force=self._force, say=self._say))
        except BadInput as error:
            raise BadInput(f"{_broker_at(scenario)}{error}") from None
        self._session = session
        session.say_alive()
        prefix = f"{session.prefix}load:"
        self.address = Address(session.broker.url, prefix)
        self.units = self._calibrated(session)
        folders: list[Folder] = []
        self._app = make_app(self.address)
        self._stack.callback(self._app.close)
        for number, crew in enumerate(scenario.crews):
            directory = session.children.directory / f"crew-{number}"
            tapes = directory / "tapes"
            tapes.mkdir(parents=True)
            settings = Settings(
                broker=session.broker.url,
                key_prefix=prefix,
                queue=",".join(crew.queues or scenario.queues),
                preset=crew.preset,
                prefetch=crew.prefetch,
                acks_late=crew.acks_late,
                tape_dir=str(tapes),
                dead_letters=False,
            )
            setup = Setup(
                "noop", FrozenArgs(), Burst(1), pool=crew.pool, concurrency=crew.concurrency, nodes=crew.nodes
            )
            self._say(f"starting {crew.nodes} x {crew.pool} {crew.concurrency}")
            arena = CeleryWorkers(
                session.children, setup, python=sys.executable, settings=settings, directory=directory
            )
            self._stack.callback(arena.close)
            self._arenas.append((crew, arena))
            folders.append(Folder(crew.pool, tapes, directory))
        self.watch: Watching = Marks(folders)
        self._client = self._look_client(session.broker.url)
        self._warm_up()

    def _calibrated(self, session: Session) -> dict[str, float]:
        """How much of its work a millisecond is, of each kind that is calibrated."""
        found: dict[str, float] = {}
        for kind in self._scenario.kinds:
            if kind.job and kind.work_ms is not None and (scales := JOBS[kind.job].scales_with):
                one = Calibrated(1000.0)
                setup = Setup(kind.job, FrozenArgs({scales: one}), Burst(1))
                found[kind.name] = session.units(setup, setup.loads[0])[one] / 1000.0
        return found

    def _warm_up(self) -> None:
        """Fill every slot at once with sleeping jobs, so that each thread and child exists; then do each kind once.

        Raises LabError when they do not end.
        """
        scenario = self._scenario
        first = [
            ((crew.queues or scenario.queues)[0], "snooze", {"ms": 20 + 4 * crew.concurrency * crew.nodes})
            for crew, _ in self._arenas
            for _ in range(crew.concurrency * crew.nodes)
        ]
        second = [
            (
                kind.queue,
                str(kind.job),
                Arguments(kind, seed=scenario.seed, units_per_ms=self.units.get(kind.name, 0.0)).of(0),
            )
            for kind in scenario.kinds
            for _ in range(min(4, sum(crew.concurrency * crew.nodes for crew, _ in self._arenas)))
        ]
        for jobs in (first, second) if self._arenas else ():
            tag = secrets.randbits(TAG_BITS)
            parcels = [
                Parcel(job_id(tag, 0, number, 0, 0), JOBS[job].task_name, queue, args)
                for number, (queue, job, args) in enumerate(jobs)
            ]
            self.watch.begin(tag, ("warm-up",))
            sender = Sender(self._app, parcels.__getitem__)
            sender.prepare(*scenario.queues)
            sender(range(len(parcels)))
            sender.close()
            ended: set[int] = set()
            deadline = time.monotonic() + WARM_S
            while len(ended) < len(parcels):
                for ends in self.watch.ended():
                    ended |= set(ends.idents.seq.tolist())
                self._refuse_dead("while they warmed up")
                if time.monotonic() > deadline:
                    raise LabError(
                        f"the workers ended {len(ended)} of {len(parcels)} jobs to warm up within {WARM_S:.0f} s; "
                        f"their last words: {self.last_words()}"
                    )
                time.sleep(LOOK_S)

    def _refuse_dead(self, when: str) -> None:
        if not self.alive():
            raise LabError(f"a worker ended {when}: {self.last_words()}")

    # ------------------------------------------------ workers of somebody else

    def _attach(self, attached: Attached) -> None:
        scenario = self._scenario
        if not is_redis(scenario.broker):
            raise BadInput(
                f"{_broker_at(scenario)}a load test needs a Redis or Valkey: --broker redis://[:password@]host:port/db "
                "(or rediss://)"
            )
        children = self._stack.enter_context(Children())
        broker = Broker(scenario.broker, None)
        self._session = Session(children, broker, self._say)
        self._client = self._look_client(scenario.broker)
        _refuse_silent(self._client, broker, scenario)
        ignored = attached.watch is not Watch.RESULTS
        self.address = Address(scenario.broker, scenario.key_prefix, is_own=False, ignore_result=ignored)
        self._app = make_app(self.address)
        self._stack.callback(self._app.close)
        self._refuse_unserved(attached)
        self.units = self._calibrated(self._session)
        if attached.watch is Watch.EVENTS:
            self.watch = self._listen()
        else:
            url = attached.results_url or scenario.broker
            try:
                self.watch = Results(url)
            except (redis.RedisError, OSError) as error:
                raise BadInput(
                    f"{at(scenario, attached.line)}no result backend answers at {brokers.shown(url)} "
                    f'({first_line(error)}); name it with results = "redis://…"'
                ) from None
        self._stack.callback(self.watch.close)

    def _refuse_unserved(self, attached: Attached) -> None:
        """Raise BadInput for a queue without a worker, or a task that no worker of it knows; nothing has been sent."""
        complaint = ""
        # A worker that is busy answers late: who seems to be missing is asked again, and given more time.
        for timeout_s in ASK_S:
            if not (complaint := self._unserved(attached, timeout_s)):
                return
        if complaint != SILENT:
            raise BadInput(complaint)

    def _unserved(self, attached: Attached, timeout_s: float) -> str:
        scenario = self._scenario
        inspect = self._app.control.inspect(timeout=timeout_s)
        queues = inspect.active_queues() or {}
        if not queues:
            return (
                f"{at(scenario, attached.line)}no worker answers on the broker "
                f"{brokers.shown(scenario.broker)} within {timeout_s:g} s; is one running, and is its global_keyprefix "
                "named in [broker] key_prefix?"
            )
        served = {name: {str(queue["name"]) for queue in listed} for name, listed in queues.items()}
        known = {
            name: {str(task).split(" ")[0] for task in tasks} for name, tasks in (inspect.registered() or {}).items()
        }
        ours = set(scenario.queues)
        self._attached_to = frozenset(name for name, listed in served.items() if listed & ours)
        for kind in scenario.kinds:
            listening = [name for name, listed in served.items() if kind.queue in listed]
            if not listening:
                every = sorted({queue for listed in served.values() for queue in listed})
                return (
                    f"{at(scenario, kind.line)}no worker listens on the queue {kind.queue!r}; workers listen on: "
                    f"{', '.join(every)}"
                )
            for name in listening:
                if name not in known:
                    return SILENT
                if kind.task not in known[name]:
                    raise BadInput(
                        f"{at(scenario, kind.line)}worker {name} listens on the queue {kind.queue!r} and does "
                        f"not know the task {kind.task!r}; it knows: {', '.join(sorted(known[name])[:20])}"
                    )
        return ""

    def _listen(self) -> Events:
        """Hear events, which workers that publish none are asked to; they are told to stop in the end."""
        control = self._app.control
        stats = control.inspect(timeout=1.0).conf() or {}
        silent = [name for name, conf in stats.items() if not conf.get("worker_send_task_events")]
        events = Events(self._app, self._attached_to)
        if silent:
            control.enable_events(destination=silent)
            # Celery's own word for it; a worker that published events before keeps doing so.
            self._stack.callback(self._hush, silent)
        return events

    def _hush(self, names: list[str]) -> None:
        with contextlib.suppress(redis.RedisError, OperationalError, KombuError, OSError):
            self._app.control.disable_events(destination=names)

    # ------------------------------------------------ both

    def _look_client(self, url: str) -> redis.Redis:
        client: redis.Redis = redis.Redis.from_url(
            url,
            decode_responses=True,
            encoding_errors="replace",
            socket_timeout=BROKER_TIMEOUT_S,
            socket_connect_timeout=BROKER_TIMEOUT_S,
        )
        self._stack.callback(client.close)
        return client

    @property
    def children(self) -> Children:
        """The processes of this stand."""
        return self._session.children

    def processes(self) -> list[psutil.Process]:
        """Our own workers and their children."""
        return [process for _, arena in self._arenas for process in arena.processes()]

    def alive(self) -> bool:
        """Whether our own workers all run."""
        return all(arena.alive() for _, arena in self._arenas)

    def last_words(self) -> str:
        """The ends of our workers' logs."""
        return " | ".join(arena.last_words() for _, arena in self._arenas)

    def held(self) -> tuple[dict[str, int], int | None]:
        """Messages that wait in each queue; and those fetched and not acknowledged, where only our own are counted.

        Raises redis.RedisError where the broker does not answer.
        """
        prefix, queues = self.address.key_prefix, self._scenario.queues
        with self._client.pipeline(transaction=True) as pipe:
            for queue in queues:
                pipe.llen(prefix + queue)
                for step in PRIORITY_STEPS:
                    pipe.llen(f"{prefix}{queue}{PRIORITY_SEPARATOR}{step}")
            pipe.hlen(f"{prefix}unacked")
            answers = [int(answer) for answer in pipe.execute()]
        lists = 1 + len(PRIORITY_STEPS)
        depth = {queue: sum(answers[at * lists : (at + 1) * lists]) for at, queue in enumerate(queues)}
        # Somebody else's broker counts the messages of all of his queues there.
        return depth, answers[-1] if self.address.is_own else None

    def holds(self) -> Holds:
        """Memory of our own workers, and memory and connections of the broker, where it tells.

        Raises redis.RedisError where the broker does not answer.
        """
        own = resources.pss_bytes(self.processes()) if self.address.is_own else None
        try:
            told: dict[str, Any] = {**self._client.info("memory"), **self._client.info("clients")}
        except redis.ResponseError:
            return Holds(own)  # a user may be forbidden to ask
        return Holds(own, told.get("used_memory"), told.get("connected_clients"))

    def clear(self) -> int:
        """Throw away what waits in our own queues, so that the next run begins with none; wait for what is under way.

        Of somebody else's queues nothing is thrown away. Returns how many jobs are left when the drain is over.
        """
        left = 0
        deadline = time.monotonic() + self._scenario.drain_s
        with contextlib.suppress(redis.RedisError):
            while time.monotonic() < deadline:
                if self.address.is_own:
                    for queue in self._scenario.queues:
                        names = [queue, *(f"{queue}{PRIORITY_SEPARATOR}{step}" for step in PRIORITY_STEPS)]
                        self._client.unlink(*(self.address.key_prefix + name for name in names))
                depth, unacked = self.held()
                left = sum(depth.values()) + (unacked or 0)
                if not left:
                    break
                time.sleep(LOOK_S)
        return left

    def ready(self) -> None:
        """Nothing of an earlier run is left, else LabError is raised; and our keys are known to be in use."""
        if self.address.is_own:
            self._session.say_alive()
        if self._has_run and (left := self.clear()):
            raise LabError(f"{left} jobs of the run before are still queued or under way; drain longer")
        self._has_run = True

    @property
    def broker_pid(self) -> int | None:
        """Of a broker that we started."""
        return self._session.broker.pid

    def broker_cpu_s(self) -> float | None:
        """CPU seconds of a broker on this machine so far."""
        if self.broker_is_silent or not self._session.broker.is_local:
            return None
        with contextlib.suppress(redis.RedisError, KeyError):
            return brokers.traffic(self._client)[2]
        return None

    def fingerprint(self) -> dict[str, Any]:
        """Machine, versions and broker."""
        version = "unknown"
        if not self.broker_is_silent:
            with contextlib.suppress(redis.RedisError):
                version = brokers.version(self._client)
        return {**environment.fingerprint(), "broker": version, "broker_is_own": self.broker_pid is not None}


def _broker_at(scenario: Scenario) -> str:
    return at(scenario, scenario.lines.get("broker", 0))


def first_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _refuse_silent(client: redis.Redis, broker: Broker, scenario: Scenario) -> None:
    try:
        client.ping()
    except redis.AuthenticationError:
        raise BadInput(
            f"{_broker_at(scenario)}the broker at {broker.shown} refuses the user or password; check its URL"
        ) from None
    except (redis.RedisError, OSError, ValueError) as error:
        raise BadInput(
            f"{_broker_at(scenario)}no broker answers at {broker.shown} ({first_line(error)}); is it up?"
        ) from None
