"""Each reason to distrust a run: a run that has it, and one that has just not."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from lab.checks import (
    CHECKS,
    GIL_BACK,
    deaf_watcher,
    faults,
    gil_bringers,
    gil_came_back,
    impossible_times,
    incomplete_ledger,
    late_producer,
    late_tail,
    machine_left,
    noisy_machine,
    quota_not_kept,
    steps_do_not_add_up,
    unsure_clocks,
    unsure_waits,
)
from lab.children import line_with
from lab.interpreters import stderr_of_imports
from lab.model import SAMPLE_COLUMNS, STEP_COLUMNS, Change, FrozenArgs, Ledger, Load, Run, Samples, Setup, Steps, Trial
from producer.pacers import Burst, Closed, Constant
from producer.payloads import Payload
from tests.fakes import SETUP, make_resources, make_run, make_samples
from tests.simulator import simulate

MS = 1_000_000
CONSTANT, BURST, CLOSED = (replace(SETUP, pacer=pacer) for pacer in (Constant(100, 1), Burst(100), Closed(2, 100)))


@dataclass(frozen=True)
class Case:
    """A run that a check objects to, what it must say, and the nearest run that it accepts."""

    check: Callable[[Run], Iterator[str]]
    doubtful: Run
    says: str
    fine: Run


def ledger(**numbers: int) -> Run:
    return make_run(ledger=Ledger(**{"issued": 4, "done": 4, "failed": 0, "lost": 0, **numbers}))


def lagging(lag_ms: float, *, late: int = 100) -> Samples:
    """A hundred jobs of 30 ms, the last `late` of them sent so much too late."""
    lags = [0] * (100 - late) + [round(lag_ms * MS)] * late
    return make_samples(due_ns=[0] * 100, sent_ns=lags, started_ns=[20 * MS] * 100, ended_ns=[30 * MS] * 100)


def slow_and_lagging(lag_ms: float) -> Samples:
    """A hundred jobs of which two are sent so much too late; those two, and no others, take 200 ms."""
    lags = [0] * 98 + [round(lag_ms * MS)] * 2
    ends = [30 * MS] * 98 + [200 * MS] * 2
    return make_samples(due_ns=[0] * 100, sent_ns=lags, started_ns=[20 * MS] * 100, ended_ns=ends)


def mixed(own: Samples, others: Samples) -> Samples:
    """The samples of two loads that ran beside each other."""
    pairs = {name: [*getattr(own, name), *getattr(others, name)] for name in SAMPLE_COLUMNS}
    return make_samples(**{**pairs, "beside": [0] * len(own) + [1] * len(others)})


def burst(fed_ms: float) -> Samples:
    """Two jobs, the second of which was sent so much too late, and then took until 100 ms after the start."""
    sent, ends = [0, round(fed_ms * MS)], [100 * MS] * 2
    return make_samples(due_ns=[0, 0], sent_ns=sent, received_ns=sent, started_ns=sent, ended_ns=ends)


BESIDE_BURST = replace(CONSTANT, beside=Load("spin", FrozenArgs(loops=1), Burst(2)))
BESIDE_CONSTANT = replace(BURST, beside=Load("spin", FrozenArgs(loops=1), Constant(100, 1)))


def times(**columns: int) -> Run:
    good = {"due_ns": 0, "sent_ns": 10, "received_ns": 20, "started_ns": 30, "ended_ns": 40}
    rows = {name: [value, columns.get(name, value)] for name, value in good.items()}
    return make_run(samples=make_samples(**rows))


def interpreter(python: str, *, gil_enabled: bool = False, gil: tuple[int, ...] = (0, 0)) -> Run:
    resources = make_resources(python=python, gil_enabled=gil_enabled)
    return make_run(samples=make_samples(gil=gil), resources=resources)


def replace_setup(run: Run, **changes: object) -> Run:
    return replace(run, trial=replace(run.trial, setup=replace(run.trial.setup, **changes)))


def machine(wall_s: float = 10.0, *, others_cpu_s: float | None = 0.0, steal_s: float | None = 0.0) -> Run:
    return make_run(resources=make_resources(wall_s=wall_s, others_cpu_s=others_cpu_s, steal_s=steal_s))


def listening(heard: int | None) -> Run:
    """Four jobs that were done, and how many of them Flower heard of."""
    return make_run(setup=replace(SETUP, events="flower"), resources=replace(make_resources(), watcher_ends=heard))


ALL_FINE = ledger()


def with_steps(**moved_ns: int) -> Run:
    """A run of which every step is known, some of them moved by so much."""
    setup = Setup(job="echo", args=FrozenArgs({"payload": Payload("text", 100)}), pacer=Constant(20, 1), steps=True)
    run = simulate(Trial("t", setup, 0))
    columns = {name: getattr(run.steps, name) + moved_ns.get(name, 0) for name in STEP_COLUMNS}
    return replace(run, steps=Steps(**columns))


CASES = {
    "lost": Case(incomplete_ledger, ledger(done=3, lost=1), "1 of 4 jobs", ALL_FINE),
    "failed": Case(incomplete_ledger, ledger(done=2, failed=2), "2 of 4 jobs", ALL_FINE),
    "wrong": Case(incomplete_ledger, ledger(done=3, failed=1, wrong=1), "1 with a wrong result", ALL_FINE),
    "duplicated": Case(incomplete_ledger, ledger(duplicated=2), "2 jobs", ALL_FINE),
    "lag of a tenth of the latency": Case(
        late_producer,
        make_run(setup=CONSTANT, samples=lagging(3.1)),
        "3.1 ms",
        make_run(setup=CONSTANT, samples=lagging(2.9)),
    ),
    "lag of 2 % of the jobs": Case(
        late_tail,
        make_run(setup=CONSTANT, samples=lagging(12.4, late=2)),
        "(that share's latency is 30.0 ms or more)",
        make_run(setup=CONSTANT, samples=lagging(12.4, late=1)),
    ),
    "lag of half the jobs": Case(
        late_producer,
        make_run(setup=CONSTANT, samples=lagging(15)),
        "sent half of its jobs 15.0 ms or more late",
        # A slip of 1 % beside latencies a hundred times as long moves neither of the two
        make_run(setup=CONSTANT, samples=slow_and_lagging(12.4)),
    ),
    "steps that run backwards": Case(
        steps_do_not_add_up,
        with_steps(decoded_ns=-50 * MS),
        "miss the whole",
        with_steps(decoded_ns=0),
    ),
    "lag of a queued load": Case(
        late_producer,
        make_run(setup=CONSTANT, samples=lagging(15)),
        "lower the rate",
        make_run(setup=replace(CONSTANT, queued=False, pool="threads"), samples=lagging(15)),
    ),
    "lag of an open load": Case(
        late_producer,
        make_run(setup=CONSTANT, samples=lagging(15)),
        "its own core",
        make_run(setup=CLOSED, samples=lagging(15)),
    ),
    "a burst that takes half the run to feed": Case(
        late_producer,
        make_run(setup=BURST, resources=make_resources(wall_s=0.03, fed_s=0.016)),
        "0.02 s of the 0.03 s run",
        make_run(setup=BURST, resources=make_resources(wall_s=0.03, fed_s=0.014)),
    ),
    "lag of the setup's own jobs, beside a burst that was on time": Case(
        late_producer,
        make_run(setup=BESIDE_BURST, samples=mixed(lagging(3.1), burst(0))),
        "(that share's latency is 30.0 ms or more)",
        make_run(setup=BESIDE_BURST, samples=mixed(lagging(2.9), burst(0))),
    ),
    "a burst beside them that takes half its time to feed": Case(
        late_producer,
        make_run(setup=BESIDE_BURST, samples=mixed(lagging(0), burst(51))),
        "0.05 s of the 0.10 s run",
        make_run(setup=BESIDE_BURST, samples=mixed(lagging(0), burst(49))),
    ),
    "lag of the jobs beside a burst": Case(
        late_producer,
        make_run(setup=BESIDE_CONSTANT, samples=mixed(burst(0), lagging(15)), resources=make_resources(fed_s=0.99)),
        "15.0 ms",
        # Feeding an even load takes as long as the load; a burst beside it is none the later for that
        make_run(setup=BESIDE_CONSTANT, samples=mixed(burst(0), lagging(0)), resources=make_resources(fed_s=0.99)),
    ),
    "other programs": Case(
        noisy_machine, machine(others_cpu_s=2.6), "other programs used 0.26 cores", machine(others_cpu_s=2.4)
    ),
    "steal": Case(noisy_machine, machine(steal_s=1.1), "the hypervisor took away 0.11 cores", machine(steal_s=0.9)),
    "noise above a tick": Case(
        noisy_machine, machine(0.1, others_cpu_s=0.06), "0.60 cores", machine(0.1, others_cpu_s=0.04)
    ),
    "noise that was seen": Case(
        noisy_machine, machine(others_cpu_s=9.0), "close them", machine(others_cpu_s=None, steal_s=None)
    ),
    "sent before due": Case(impossible_times, times(sent_ns=-1), "1 jobs", times()),
    "received before sent": Case(impossible_times, times(received_ns=9), "clocks", times(received_ns=10)),
    "started before received": Case(impossible_times, times(received_ns=31), "clocks", times(received_ns=30)),
    "started before sent": Case(
        impossible_times, times(received_ns=0, started_ns=9), "clocks", times(received_ns=0, started_ns=10)
    ),
    "ended before started": Case(impossible_times, times(ended_ns=29), "clocks", times(ended_ns=30)),
    "every time wrong, of one job": Case(
        impossible_times, times(sent_ns=-1, received_ns=-2, started_ns=-3, ended_ns=-4), " 1 jobs", times()
    ),
    "no GIL to start with, and then one": Case(
        gil_came_back, interpreter("3.13.5t", gil_enabled=True), "free-threaded", interpreter("3.13.5t")
    ),
    "a GIL that nobody asked for": Case(
        gil_came_back,
        interpreter("3.14.0t", gil_enabled=True, gil=(1, 1)),
        "`sidestep doctor` names the module",
        # Whoever installs other packages wants to see what they do
        replace_setup(interpreter("3.14.0t", gil_enabled=True, gil=(1, 1)), packages=("hiredis==3.5.0",)),
    ),
    "a Flower that missed a job": Case(deaf_watcher, listening(3), "3 of 4 jobs", listening(4)),
    "a Flower that heard nothing": Case(
        deaf_watcher,
        replace_setup(listening(None), events="flower"),
        "0 of 4 jobs",
        replace_setup(listening(None), events="on"),
    ),
    "a GIL during one job": Case(
        gil_came_back,
        replace(
            interpreter("3.14.0t", gil=(0, 1)),
            last_words="<frozen importlib._bootstrap>:488: RuntimeWarning: The global interpreter lock (GIL) has been "
            "enabled to load module 'lib.one', which has not declared that it can run safely without the GIL.",
        ),
        "remove lib.one",
        interpreter("3.14.0", gil_enabled=True, gil=(1, 1)),
    ),
}


SIMULATED = replace(SETUP, arena="compose", cpus=0.2, nodes=4)
ATTACHED = replace(SETUP, arena="attached", nodes=2, pacer=Burst(2))


def on_machines(bound_ms: float, *, ended_ms: float = 100, started_ms: float = 100, wall_s: float = 10.0) -> Run:
    """Two jobs on a machine whose clock is known to so much."""
    samples = make_samples(
        due_ns=[0, 0],
        sent_ns=[0, 0],
        received_ns=[0, 0],
        started_ns=[round(started_ms * MS)] * 2,
        ended_ns=[round(ended_ms * MS)] * 2,
    )
    there = {"machine": "celery@there", "clock_bound_ns": round(bound_ms * MS)}
    return replace(make_run(setup=ATTACHED, samples=samples, wall_s=wall_s), processes=({"machine": "here"}, there))


def left(machine: str, *, joined: bool = False, worked: bool = True) -> Run:
    return replace(on_machines(0), changes=(Change(1.5, machine, joined=joined, worked=worked),))


CASES |= {
    "a clock that is known too little for the run": Case(
        unsure_clocks, on_machines(2.6, wall_s=0.25), "2.60 ms only", on_machines(2.4, wall_s=0.25)
    ),
    "a clock that is known too little for the latency": Case(
        unsure_waits, on_machines(11), "the median latency is 100.00 ms", on_machines(9)
    ),
    "a clock that is known too little for the wait": Case(
        unsure_waits, on_machines(3, started_ms=20), "the median wait is 20.00 ms", on_machines(1, started_ms=20)
    ),
    "a machine that left": Case(machine_left, left("celery@there"), "left 1.5 s", left("late", joined=True)),
    "a machine that left and had nothing to do": Case(
        machine_left, left("celery@there"), "celery@there", left("celery@there", worked=False)
    ),
    "a quota that is not kept": Case(
        quota_not_kept,
        make_run(setup=SIMULATED, resources=replace(make_resources(wall_s=10), worker_cpu_s=10.0)),
        "used 0.25 of a core",
        make_run(setup=SIMULATED, resources=replace(make_resources(wall_s=10), worker_cpu_s=8.5)),
    ),
}


@pytest.mark.parametrize("bound_ms", [0.0, 2.0])
def test_times_of_two_machines_may_run_back_by_what_is_not_known_of_their_clocks(bound_ms: float):
    # Given jobs that started 1 ms before they were sent, by the clock of another machine
    run = on_machines(bound_ms)
    run = replace(run, samples=replace(run.samples, sent_ns=run.samples.started_ns + MS))
    # Then that is impossible only where the clock is known better than that
    found = {fault.check for fault in faults(run)}
    assert ("impossible_times" in found) is (bound_ms < 1)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_check_finds_what_it_looks_for_and_nothing_else(case: Case):
    # Given a run with this one thing wrong; then the check says so, with setup, number and remedy, in one line
    (said,) = case.check(case.doubtful)
    assert case.says in said
    assert said.startswith(f"{case.doubtful.trial.setup.label}: ")
    assert ": " in said.partition(": ")[2], "what to try comes after a second colon"
    assert "\n" not in said
    # And no other check minds
    assert {fault.check for fault in faults(case.doubtful)} == {case.check.__name__}
    # And without it nobody does
    assert faults(case.fine) == ()


def test_every_check_has_a_case_that_triggers_it_and_one_that_does_not():
    assert {case.check for case in CASES.values()} == set(CHECKS)


def test_faults_are_all_that_the_checks_say():
    # Given a run with three things wrong
    run = replace(ledger(done=2, lost=1, failed=1), resources=make_resources(steal_s=0.5))
    # Then each is a fault, under the name of its check
    assert [fault.check for fault in faults(run)] == ["incomplete_ledger", "incomplete_ledger", "noisy_machine"]


def test_a_run_without_marks_is_not_suspected_for_it():
    assert faults(make_run(setup=replace(CONSTANT, marks=False))) == ()


def test_the_module_that_brings_the_gil_back_is_named_by_the_interpreters_own_warning(tmp_path, monkeypatch):
    # Given a module that makes an interpreter warn, beside one that is not there
    warned = "The global interpreter lock (GIL) has been enabled to load module 'noisy.one', which has not"
    (tmp_path / "noisy.py").write_text(f"import warnings\nwarnings.warn({warned!r}, RuntimeWarning)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    # Then importing both tells which it was, once; and what is quiet tells nothing
    assert gil_bringers(stderr_of_imports(sys.executable, ["noisy", "no_such_module"])) == ("noisy.one",)
    assert gil_bringers(stderr_of_imports(sys.executable, ["json"])) == ()
    # And so does a worker's log
    (tmp_path / "worker-0.log").write_text(f"up\n{warned} declared\n")
    assert "noisy.one" in line_with(GIL_BACK, [tmp_path / "none.log", tmp_path / "worker-0.log"])
    assert line_with(GIL_BACK, [tmp_path / "none.log"]) == ""
