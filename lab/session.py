"""What the trials of one sitting share: the broker, the slow HTTP server, and how much work a millisecond is."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psutil
import redis

from lab import awake, environment, interpreters
from lab.arenas.attached import Watch
from lab.arenas.compose import Engine
from lab.broker import (
    ALIVE_S,
    PREFIX,
    SESSION_DIGITS,
    Broker,
    alive_key,
    own_server,
    remove_keys,
    remove_stale_keys,
    users_broker,
)
from lab.children import Children, kill, tree
from lab.model import BadInput, LabError, Load, Setup
from producer.payloads import Calibrated, Referred, Upstream, calibrated
from tasks.codecs import CODECS, COMPRESSIONS, PACKAGES, Codec, Compression
from tasks.jobs import JOBS
from tasks.references import Reference, Where, drop, put

CALIBRATION_TIMEOUT_S = 60


@dataclass
class Session:
    """Open while trials run. Everything it starts ends with it."""

    children: Children
    broker: Broker
    say: Callable[[str], None] = lambda _: None
    """Tells the user of something that takes long."""
    _units_per_ms: dict[tuple[str, str], float] = field(default_factory=dict)
    _upstreams: dict[float, tuple[str, subprocess.Popen[Any]]] = field(default_factory=dict)
    _relays: dict[float, tuple[str, subprocess.Popen[Any]]] = field(default_factory=dict)
    _references: dict[Referred, Reference] = field(default_factory=dict)
    _payloads: dict[Referred, bytes] = field(default_factory=dict)
    _spinners: list[subprocess.Popen[Any]] = field(default_factory=list)
    _pythons: dict[tuple[object, ...], str] = field(default_factory=dict)

    prefix: str = field(default_factory=lambda: f"{PREFIX}{secrets.token_hex(SESSION_DIGITS // 2)}:")
    """Of every key of this session."""
    known_units: Mapping[str, float] = field(default_factory=dict)
    """Calibrations of the suite that is continued: its jobs must stay the same."""
    watch: Watch = field(default_factory=Watch)
    """Machines that are attached."""
    _engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """What simulates machines; asked for the first time it makes their image."""
        if self._engine is None:
            self._engine = Engine(self.children, self.broker, self.client)
            self.say("making the image of the simulated machines; a minute the first time, seconds later")
            assert self._engine.image  # noqa: S101  makes it
        return self._engine

    def end_engine(self) -> None:
        """Remove the simulated machines and their network."""
        if self._engine is not None:
            self._engine.close()

    def say_alive(self) -> None:
        """Tell later sessions on the same broker that our keys are not left over."""
        if self.broker.pid is None:
            self.client.set(alive_key(self.prefix), "1", ex=ALIVE_S)

    @cached_property
    def client(self) -> redis.Redis:
        """The lab's own connection to the broker."""
        return self.broker.client()

    @contextlib.contextmanager
    def awake(self, setup: Setup) -> Iterator[None]:
        """While it is open, no core sleeps, if the setup asks for that and this system can."""
        # Under a quota the loops would use up what the workers need.
        if not (setup.keep_awake and awake.SUPPORTED) or environment.cgroup_cores() is not None:
            yield
            return
        try:
            for core in sorted(os.sched_getaffinity(0)):
                spinner = self.children.start(
                    [sys.executable, "-m", "lab.awake", str(core)],
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    python_path=_root(),
                )
                self._spinners.append(spinner)
                assert spinner.stdout  # noqa: S101  it was asked for as a pipe
                if not spinner.stdout.readline():
                    raise LabError("cannot keep the cores awake: idle-priority processes are refused here")
            yield
        finally:
            for spinner in self._spinners:
                kill(spinner)
            self._spinners.clear()

    @property
    def helpers(self) -> list[psutil.Process]:
        """Our processes that no trial measures."""
        servers = [server for _, server in (*self._upstreams.values(), *self._relays.values())]
        return [process for helper in (*servers, *self._spinners) for process in tree(helper)]

    def python(self, setup: Setup) -> str:
        """The interpreter that runs the setup: ours, or an environment made for the one it names."""
        if setup.python is None and not setup.packages:
            return sys.executable
        path = interpreters.resolve(setup.python)
        needs = {need for load in setup.loads if (need := JOBS[load.job].needs)}
        needs |= {PACKAGES.get(need, need) for row in written_with(setup) if (need := row.needs)}
        modules = tuple(sorted(needs))
        pools = (setup.pool, setup.apart) if setup.apart else (setup.pool,)
        key = (path, pools, modules, setup.packages)
        if key not in self._pythons:
            self._pythons[key] = interpreters.with_celery(
                path, pools=pools, modules=modules, packages=setup.packages, say=self.say
            )
        return self._pythons[key]

    def units(self, setup: Setup, load: Load) -> dict[Calibrated, int]:
        """How many units of its job each amount of work is that one of the setup's loads asks for.

        Found once per job and interpreter, in a fresh process of that interpreter.
        """
        python = CONTAINER if setup.arena == "compose" else self.python(setup)
        return {
            amount: max(1, round(amount.ms * self._per_ms(python, amount.like or load.job)))
            for amount in calibrated(load.args)
        }

    def _per_ms(self, python: str, job: str) -> float:
        key = (python, job)
        if key not in self._units_per_ms:
            self._units_per_ms[key] = self.known_units.get(_calibrated(*key)) or self._calibrate(python, job)
        return self._units_per_ms[key]

    def prepare(self, setup: Setup) -> None:
        """Find or make whatever the setup needs before its trials: an environment, a calibration, a server."""
        self.python(setup)
        if setup.arena == "compose":
            assert self.engine.address  # noqa: S101  makes the network
        for load in setup.loads:
            self.units(setup, load)
            self.url(load)
        self.address(setup)

    @property
    def calibration(self) -> dict[str, float]:
        """Units per millisecond, by job and interpreter: those known before, and those that were needed since."""
        found = {_calibrated(python, job): units for (python, job), units in self._units_per_ms.items()}
        return {**self.known_units, **found}

    def _calibrate(self, python: str, job: str) -> float:
        arguments = ("-m", "tasks.calibrate", job)
        # In the image the jobs run on another Python; without a quota, for CPU time is CPU time.
        command = self.engine.python(*arguments) if python == CONTAINER else [python, *arguments]
        child = self.children.start(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            out, err = child.communicate(timeout=CALIBRATION_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            raise LabError(
                f"calibrating {job!r} took more than {CALIBRATION_TIMEOUT_S} s; is the machine overloaded?"
            ) from None
        if child.returncode:
            words = err.decode("utf-8", "replace").strip().splitlines()
            raise LabError(f"cannot calibrate {job!r} with {python}: {words[-1] if words else 'it said nothing'}")
        return float(out)

    def references(self, load: Load) -> dict[Referred, Reference]:
        """What the load's jobs refer to, put where they will find it; it stays there until the session ends."""
        for value in load.args.values():
            if isinstance(value, Referred) and value not in self._references:
                self._references[value] = put(value.via, self._payload(value), self._where)
        return self._references

    def one_more(self, wanted: Referred) -> Reference:
        """The payload once more, put for one job, which takes it away."""
        return {**put(wanted.via, self._payload(wanted), self._where), "once": True}

    def _payload(self, wanted: Referred) -> bytes:
        # Made once: to make it takes longer than to put it, and is not what is asked about.
        if wanted not in self._payloads:
            self._payloads[wanted] = wanted.payload
        return self._payloads[wanted]

    @property
    def _where(self) -> Where:
        return Where(f"{self.prefix}payload:", self.children.directory, self.client)

    def drop_references(self) -> None:
        """Take away all that `references` has put somewhere."""
        for reference in self._references.values():
            drop(reference, self._where)
        self._references.clear()

    def address(self, setup: Setup) -> str:
        """URL of the broker for the setup's workers and producer: through a relay where it is to be farther away.

        Raises BadInput for a broker with TLS, whose certificate is for another address than the relay's.
        """
        url = self.broker.url
        if setup.rtt_ms is None:
            return url
        parts = urlsplit(url)
        if parts.scheme != "redis":
            raise BadInput("a relay cannot stand before a broker with TLS; measure distance without --broker rediss://")
        if setup.rtt_ms not in self._relays:
            target = f"{parts.hostname}:{parts.port or 6379}"
            relay = self.children.start(
                [sys.executable, "-m", "lab.relay", "--to", target, "--rtt-ms", str(setup.rtt_ms)],
                stdout=subprocess.PIPE,
                python_path=_root(),
                cwd=str(self.children.directory),
            )
            assert relay.stdout  # noqa: S101  it was asked for as a pipe
            port = relay.stdout.readline().strip()
            if not port:
                raise LabError("the relay before the broker did not start; is the loopback interface up?")
            self._relays[setup.rtt_ms] = (f"127.0.0.1:{int(port)}", relay)
        user, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}{at}{self._relays[setup.rtt_ms][0]}"))

    def url(self, load: Load) -> str:
        """Where the load's HTTP server listens; empty when it needs none."""
        means = {value.mean_ms for value in load.args.values() if isinstance(value, Upstream)}
        if not means:
            return ""
        mean_ms = means.pop()
        if mean_ms not in self._upstreams:
            server = self.children.start(
                [sys.executable, "-m", "lab.upstream", "--mean-ms", str(mean_ms)],
                stdout=subprocess.PIPE,
                python_path=_root(),
                cwd=str(self.children.directory),
            )
            assert server.stdout  # noqa: S101  it was asked for as a pipe
            port = server.stdout.readline().strip()
            if not port:
                raise LabError("the HTTP server for `fetch` did not start; is the loopback interface up?")
            self._upstreams[mean_ms] = (f"http://127.0.0.1:{int(port)}/", server)
        return self._upstreams[mean_ms][0]


CONTAINER = "container"
"""Stands for the Python of the simulated machines."""


def _calibrated(python: str, job: str) -> str:
    """The name under which a calibration is kept: of the job alone where it runs on an interpreter like ours."""
    if python == CONTAINER:
        return f"{job} in a container"
    version = _version(python)
    return job if version == _version(sys.executable) else f"{job} on {version}"


@cache
def _version(python: str) -> str:
    return interpreters.ask(python).version


def written_with(setup: Setup) -> list[Codec | Compression]:
    """The codec and the compression of the setup's messages, and those that its jobs try."""
    names: list[tuple[object, object]] = [(setup.codec, setup.compression)]
    names += [(load.args.get("codec"), load.args.get("compression")) for load in setup.loads]
    codecs = [CODECS[str(codec)] for codec, _ in names if codec in CODECS]
    return [*codecs, *(COMPRESSIONS[str(name)] for _, name in names if name in COMPRESSIONS)]


def _root() -> Path:
    return Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def open_session(
    url: str | None = None, *, force: bool = False, persist: bool = False, say: Callable[[str], None] = lambda _: None
) -> Iterator[Session]:
    """A session on the broker at `url`, or on a server of our own. Raises BadInput or LabError, see `lab.broker`."""
    with contextlib.ExitStack() as stack:
        broker = users_broker(url, force=force) if url else None
        children = stack.enter_context(Children())
        if broker is None:
            broker = stack.enter_context(own_server(children, persist=persist))
        session = Session(children, broker, say)
        stack.callback(session.client.close)
        if broker.pid is None:
            remove_stale_keys(session.client)
        try:
            yield session
        finally:
            session.end_engine()
            with contextlib.suppress(redis.RedisError):  # the broker may be why we are leaving
                session.drop_references()
            if broker.pid is None:
                with contextlib.suppress(redis.RedisError):  # the broker may be why we are leaving
                    remove_keys(session.client, session.prefix)
