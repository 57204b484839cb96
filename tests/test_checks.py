"""Each reason to distrust a run: a run that has it, and one that has just not."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from lab.checks import (
    CHECKS,
    faults,
    gil_came_back,
    impossible_times,
    incomplete_ledger,
    late_producer,
    noisy_machine,
    steps_do_not_add_up,
)
from lab.model import SAMPLE_COLUMNS, STEP_COLUMNS, FrozenArgs, Ledger, Load, Run, Samples, Setup, Steps, Trial
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
        late_producer,
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
        "hiredis",
        # Whoever installs other packages wants to see what they do
        replace_setup(interpreter("3.14.0t", gil_enabled=True, gil=(1, 1)), packages=("hiredis==3.5.0",)),
    ),
    "a GIL during one job": Case(
        gil_came_back,
        interpreter("3.14.0t", gil=(0, 1)),
        "hiredis",
        interpreter("3.14.0", gil_enabled=True, gil=(1, 1)),
    ),
}


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
