"""From experiments to a suite on disk: plans, runs, saves after every trial, resumes what was stopped."""

from __future__ import annotations

import contextlib
import fcntl
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from lab import broker as brokers
from lab.arenas import attached, compose, flower
from lab.crew import Member
from lab.environment import SAME_MACHINE, SAME_SITTING, cores, fingerprint, free_memory_bytes, noise_floor
from lab.halving import expected_halving_s, halved, is_halved
from lab.interpreters import ask, free_threaded, resolve
from lab.model import FREE_THREADED, BadInput, Experiment, Setup, Suite, Trial
from lab.plan import expected_s, plan
from lab.runner import RETAKES, Runner, is_disturbed
from lab.session import Session, open_session, written_with
from lab.store import FILE, SuiteFile, load
from tasks.pools import POOLS


@dataclass(frozen=True, slots=True)
class Order:
    """What the user wants measured, and how."""

    experiments: tuple[Experiment, ...]
    directory: Path
    quick: bool = False
    repeats: int | None = None
    seed: int = 0
    broker_url: str | None = field(default=None, repr=False)  # may hold a password
    force: bool = False
    persist: bool = False
    """Whether a server of our own keeps an append-only file."""
    python: str | None = None
    arena: str | None = None
    """Where the workers run, instead of where each experiment wants them."""
    machines: Mapping[str, Member] | None = None
    """Those that are attached; None before anybody has looked."""

    def repeats_of(self, experiment: Experiment) -> int:
        """How often each setup of the experiment runs."""
        return self.repeats or (experiment.quick_repeats if self.quick else experiment.repeats)

    def halvings_of(self, experiment: Experiment) -> int:
        """How often the gap that holds a break-even is halved."""
        return 0 if self.quick else experiment.halvings

    def trials(self, experiment: Experiment, *, cores: int) -> tuple[list[Trial], dict[str, str]]:
        """The trials that can run here, and for each setup that cannot, why."""
        able: list[Setup] = []
        left_out: dict[str, str] = {}
        for setup in experiment.setups(cores=cores, quick=self.quick):
            placed = place(setup, self.arena, self.machines)
            if not isinstance(placed, str) and placed.arena == "compose" and self.broker_url:
                placed = compose.OWN_BROKER
            if reason := placed if isinstance(placed, str) else cannot_run(placed, self.python):
                with_codec = "" if setup.codec == "json" else f" {setup.codec}"
                left_out[f"{experiment.name} · {setup.label}{with_codec}"] = reason
            elif not isinstance(placed, str):
                able.append(placed)
        repeats = self.repeats_of(experiment)
        return plan(experiment, able, seed=self.seed, repeats=repeats, quick=self.quick, python=self.python), left_out


def place(setup: Setup, arena: str | None, machines: Mapping[str, Member] | None = None) -> Setup | str:
    """The setup as the arena runs it, or why it does not. None is where the setup itself wants to run.

    Attached machines have the pool and the slots that their workers were started with, whatever the setup says.
    """
    if arena is None or arena == setup.arena:
        return setup
    if setup.arena == "local":
        return f"it measures one machine; leave out --arena {arena}"
    if arena == "local":
        return "it needs several machines: leave --arena out, or use --arena attached"
    if machines is None:
        return replace(setup, arena=arena, cpus=None)
    one = attached.alike(machines)
    if setup.nodes > len(machines):
        return f"it needs {setup.nodes} machines and {len(machines)} take part; {attached.HOW}"
    return replace(setup, arena=arena, cpus=None, pool=one.pool, concurrency=one.slots)


NO_FREE_THREADED = "no free-threaded Python is on PATH (python3.14t or python3.13t); SIDESTEP_FREE_THREADED names one"


def cannot_run(setup: Setup, python: str | None = None) -> str | None:  # noqa: PLR0911  one a reason
    """Why the setup cannot run on this installation, or None. `python` is the interpreter of setups that name none."""
    if setup.python == FREE_THREADED and free_threaded() is None:
        return NO_FREE_THREADED
    if reason := next((row.missing for row in written_with(setup) if row.missing), None):
        return reason
    if setup.events == "flower" and (reason := flower.missing()):
        return reason
    if setup.arena == "compose" and (reason := compose.missing()):
        return reason
    if setup.arena != "local":
        return "other machines have a Python of their own; leave --python out" if python or setup.python else None
    if setup.queued:
        pools = (setup.pool, setup.apart) if setup.apart else (setup.pool,)
        return next((reason for pool in pools if (reason := POOLS[pool].missing)), None) or _too_large(setup)
    chosen = setup.python or python
    version = ask(resolve(chosen)).version if chosen else platform.python_version()
    if setup.pool == "interpreters" and tuple(map(int, version.split(".")[:2])) < (3, 14):
        return "InterpreterPoolExecutor needs Python 3.14 or newer"
    return None


PREFORK_SLOT_BYTES = 23_800_000
"""What `io-slots` measured with 100 slots on Linux: PSS of a prefork worker's whole tree, per slot."""


MEMORY_SHARE = 0.8
"""Of what is free: with less to spare the machine swaps what it measures, or kills it."""


def _too_large(setup: Setup) -> str | None:
    """Why the setup's processes do not fit into memory; None where they do."""
    if POOLS[setup.pool].shares_gil:
        return None
    needs, free = setup.slots * PREFORK_SLOT_BYTES, free_memory_bytes()
    if needs <= MEMORY_SHARE * free:
        return None
    return (
        f"{setup.slots} {setup.pool} slots need about {needs / 1e9:.0f} GB of memory, "
        f"{PREFORK_SLOT_BYTES / 1e6:.0f} MB each, and of {free / 1e9:.0f} GB that are free they may take "
        f"{MEMORY_SHARE:.0%}: run it on a larger machine"
    )


@dataclass(frozen=True, slots=True)
class Step:
    """Something that just happened: a trial is about to start (`trial`), or has ended and is saved in `suite`."""

    experiment: Experiment | None
    """None in the very first step, before any trial."""
    trial: Trial | None
    suite: Suite
    expected_s: float = 0.0
    """Of the trial that starts; in the first step, of all trials together."""
    complete: bool = False
    """The last trial of the experiment has ended."""


def measure(order: Order, *, say: Callable[[str], None], idle: Callable[[], None] = lambda: None) -> Iterator[Step]:
    """Run what is ordered, yielding a step at the start and end of every trial.

    The suite is saved after every trial, and one that is already in the directory is continued. Raises BadInput when
    it was measured on another machine or with other settings, and LabError when something does not come up.
    """
    if order.arena == "attached" and not order.broker_url:
        raise BadInput("attached machines listen on a broker of yours: name it with --broker URL")
    if order.persist and order.broker_url:
        raise BadInput("--persist is for the embedded server; a broker of yours persists as it is set up to")
    order = _possible(order)
    with (
        open_session(order.broker_url, force=order.force, persist=order.persist, say=say) as session,
        _alone_in(order.directory),
    ):
        if order.arena == "attached":
            machines = attached.crew(session.client)
            attached.remove_stale(session.client, session.broker.url, attached.alike(machines).key_prefix)
            order = _possible(replace(order, machines=machines))
            _tell(order, say)
            session.watch.present.update(order.machines or ())
        yield from _in_session(order, session, idle)


def _possible(order: Order) -> Order:
    """The order, if anything of it can run here. Raises BadInput with the reason where nothing can."""
    here = cores()
    planned = [order.trials(experiment, cores=here) for experiment in order.experiments]
    if planned and not any(trials for trials, _ in planned):
        reasons = list(dict.fromkeys(why for _, left_out in planned for why in left_out.values()))
        raise BadInput(f"nothing of this can run here: {reasons[0]}")
    return order


def _tell(order: Order, say: Callable[[str], None]) -> None:
    """Who takes part, before anything is measured."""
    machines = order.machines or {}
    one = attached.alike(machines)
    say(f"{len(machines)} machines take part, {one.pool} {one.slots} each: {', '.join(sorted(machines))}")


@contextlib.contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Hold the directory: two runs that wrote one file would lose each other's trials."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / ".lock").open("w")
    except OSError as error:
        raise BadInput(f"cannot write to {directory}: {error.strerror}; choose another place with --out") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"another run is writing to {directory}; choose another --out, or wait for it") from None
        yield


def _in_session(order: Order, session: Session, idle: Callable[[], None]) -> Iterator[Step]:
    here = cores()
    file = SuiteFile(order.directory)
    old = load(order.directory) if (order.directory / FILE).exists() else None
    planned = {e.name: order.trials(e, cores=here) for e in order.experiments}
    environment = {**fingerprint(), "noise_floor": noise_floor(), "broker": brokers.version(session.client)}
    environment["broker_is_own"] = session.broker.pid is not None
    if order.persist:
        environment["broker"] += " with an append-only file"
    if order.python:
        # The version, not the path: reports are shown around.
        environment["workers_python"] = ask(order.python).version
    suite = Suite(
        environment=environment,
        experiments=tuple(planned),
        runs=(),
        seed=order.seed,
        repeats={e.name: order.repeats_of(e) for e in order.experiments},
        quick=order.quick,
        left_out={label: why for _, left_out in planned.values() for label, why in left_out.items()},
    )
    if old:
        suite = continued(suite, old)
        same_setups(suite, [trial for trials, _ in planned.values() for trial in trials], _halving(order))
        session.known_units = old.environment.get("units_per_ms", {})
    # A quick look must stay quick on a busy machine too.
    runner = Runner(session, here, retakes=1 if order.quick else RETAKES, idle=idle)
    planned_s = sum(expected_s(t, cores=here) for ts, _ in planned.values() for t in pending(ts, suite))
    planned_s += sum(_halving_s(order, e, planned[e.name][0], suite, cores=here) for e in order.experiments)
    yield Step(None, None, suite, planned_s)
    begun_s = time.monotonic()
    for setup in dict.fromkeys(t.setup for trials, _ in planned.values() for t in pending(trials, suite)):
        session.prepare(setup)
    for experiment in order.experiments:
        declared = planned[experiment.name][0]
        for step in range(-1, order.halvings_of(experiment)):
            # First what is declared, then what follows from it.
            own = suite.only(experiment.name).runs
            trials = declared if step < 0 else halved(experiment, declared, own, step, seed=order.seed)
            for setup in dict.fromkeys(trial.setup for trial in pending(trials, suite)):
                session.prepare(setup)
            for together in turns(experiment, trials, pending(trials, suite)):
                yield Step(experiment, together[0], suite, sum(expected_s(trial, cores=here) for trial in together))
                if order.quick and runner.retakes and time.monotonic() - begun_s > planned_s:
                    session.say("later than planned: runs that are disturbed are no longer taken again")
                    runner = replace(runner, retakes=0)
                try:
                    runs = runner.together(together)
                except attached.TooFew as short:
                    session.say(str(short))
                    yield Step(experiment, None, suite)
                    continue
                environment = {**suite.environment, "units_per_ms": session.calibration}
                others = tuple(r for r in suite.runs if r.trial not in together)  # disturbed ones that are replaced now
                suite = replace(suite, runs=(*others, *runs), environment=environment)
                # Saved after every trial: a crash at trial 40 must not cost the first 39.
                file.save(suite)
                yield Step(experiment, None, suite)
        yield Step(experiment, None, suite, complete=True)


def _halving_s(order: Order, experiment: Experiment, declared: Sequence[Trial], suite: Suite, *, cores: int) -> float:
    """About how long it takes to halve what is not halved yet."""
    steps = order.halvings_of(experiment)
    whole_s = expected_halving_s(experiment, declared, cores=cores)
    if not steps or pending(declared, suite):
        return steps * whole_s
    own = suite.only(experiment.name).runs
    for step in range(steps):
        trials = halved(experiment, declared, own, step, seed=order.seed)
        if not trials:
            return 0.0
        if pending(trials, suite):
            return (steps - step) * whole_s
    return 0.0


def turns(experiment: Experiment, trials: Sequence[Trial], wanted: Sequence[Trial]) -> list[list[Trial]]:
    """The wanted trials in their order; those of one repeat that the experiment wants side by side are one turn.

    Such a turn is wanted whole where any of its trials is.
    """
    if experiment.side_by_side is None:
        return [[trial] for trial in wanted]
    groups: dict[Trial, list[Trial]] = {}
    for trial in trials:
        alike = replace(trial.setup, **cast("dict[str, Any]", {experiment.side_by_side: None}))
        groups.setdefault(replace(trial, setup=alike), []).append(trial)
    return [group for group in groups.values() if any(trial in wanted for trial in group)]


def pending(trials: Sequence[Trial], suite: Suite) -> list[Trial]:
    """The trials that the suite does not hold yet, or holds disturbed only."""
    done = {run.trial for run in suite.runs if not is_disturbed(run)}
    return [trial for trial in trials if trial not in done]


def continued(new: Suite, old: Suite) -> Suite:
    """The old suite, to be completed as the new one plans. Raises BadInput when the two do not belong together."""
    if difference := machine_difference(new.environment, old.environment):
        raise BadInput(f"the suite there was measured on another machine ({difference}); choose another --out")
    changed = [key for key in SAME_SITTING if new.environment.get(key) != old.environment.get(key)]
    if "packages" in changed and same_packages(new.environment, old.environment):
        changed.remove("packages")
    if changed:
        raise BadInput(f"the suite there was measured with another {', '.join(changed)}; choose another --out")
    if (new.seed, new.quick, new.environment.get("workers_python")) != (
        old.seed,
        old.quick,
        old.environment.get("workers_python"),
    ):
        raise BadInput("the suite there was measured with another --seed, --quick or --python; choose another --out")
    names = tuple(dict.fromkeys((*old.experiments, *new.experiments)))
    # Runs of an older revision stay: whoever reads the suite is told of each.
    revisions = dict.fromkeys((*str(old.environment.get("revision")).split(", "), str(new.environment.get("revision"))))
    return replace(
        new,
        environment={**new.environment, "revision": ", ".join(revisions)},
        experiments=names,
        runs=old.runs,
        repeats={**old.repeats, **new.repeats},
        left_out={**old.left_out, **new.left_out},
    )


def same_packages(new: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    """Whether whatever the old suite was measured with is here in that version, and nothing since that they would use.

    Codecs do nothing unless a setup names them; but redis-py takes hiredis wherever it is.
    """
    now, then = dict(new.get("packages") or {}), dict(old.get("packages") or {})
    return then.items() <= now.items() and now.get("hiredis") == then.get("hiredis")


def _halving(order: Order) -> frozenset[str]:
    return frozenset(experiment.name for experiment in order.experiments if order.halvings_of(experiment))


def same_setups(suite: Suite, planned: Sequence[Trial], halving: frozenset[str] = frozenset()) -> None:
    """Raise BadInput when the suite holds other setups of a planned experiment: claims would mix old and new ones.

    Those in `halving` add setups with job lengths of their own to the planned ones.
    """
    wanted: dict[str, set[Setup]] = {}
    for trial in planned:
        wanted.setdefault(trial.experiment, set()).add(trial.setup)
    for run in suite.runs:
        name, setup = run.trial.experiment, run.trial.setup
        if name not in wanted or setup in wanted[name] or (name in halving and is_halved(setup, wanted[name])):
            continue
        raise BadInput(f"the suite there holds {name} as it was declared before ({setup.label}); choose another --out")


def machine_difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Where two machines differ, in words; empty when they are alike."""
    return ", ".join(
        f"{key}: {one.get(key)} / {other.get(key)}" for key in SAME_MACHINE if one.get(key) != other.get(key)
    )
