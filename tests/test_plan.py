"""Which trials, in which order."""

import sys
from collections import Counter
from dataclasses import replace

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.catalogue import EXPERIMENTS
from lab import measure
from lab.environment import free_memory_bytes
from lab.measure import Order, cannot_run, continued, same_setups
from lab.model import FREE_THREADED, UP_TO_CORES, Arms, BadInput, Experiment, Load, Setup, Trial, up_to
from lab.plan import expected_s, plan
from producer.pacers import Burst, Constant
from producer.payloads import Calibrated, EachJob, Upstream
from tests.fakes import SETUP
from tests.simulator import run_experiment

MANY = Experiment(
    name="made-up",
    question="In which order?",
    base=SETUP,
    arms=(
        Arms({"pool": ("threads", "prefork"), "concurrency": (1, 2, 3, 4)}),
        Arms({"pool": ("solo",)}, in_quick=False),
    ),
    claims=(),
    repeats=6,
    quick={"pacer": Burst(2)},
    quick_repeats=2,
)


def order(trials: list[Trial], repeat: int) -> list[Setup]:
    return [trial.setup for trial in trials if trial.repeat == repeat]


@given(st.integers(), st.integers(1, 8), st.integers(1, 16))
def test_every_repeat_holds_each_setup_once(seed: int, repeats: int, cores: int):
    trials = plan(MANY, seed=seed, repeats=repeats, cores=cores)
    setups = MANY.setups(cores=cores)
    for repeat in range(repeats):
        assert Counter(order(trials, repeat)) == Counter(setups)
    assert len(trials) == repeats * len(setups)


def test_a_repeat_is_over_before_the_next_begins():
    repeats = [trial.repeat for trial in plan(MANY)]
    assert repeats == sorted(repeats)


def test_each_repeat_has_an_order_of_its_own():
    trials = plan(MANY)
    orders = {tuple(setup.label for setup in order(trials, repeat)) for repeat in range(6)}
    assert len(orders) == 6


def test_the_same_seed_is_the_same_plan_and_another_is_another():
    assert plan(MANY, seed=1) == plan(MANY, seed=1)
    assert plan(MANY, seed=1) != plan(MANY, seed=2)


def test_experiments_do_not_share_an_order():
    other = replace(MANY, name="another")
    assert [trial.setup for trial in plan(MANY)] != [trial.setup for trial in plan(other)]


def test_planning_leaves_the_setups_it_was_given_as_they_are():
    given_ = MANY.setups(cores=2)
    before = list(given_)
    plan(MANY, given_)
    assert given_ == before


def test_only_the_setups_that_were_given_are_planned():
    chosen = MANY.setups(cores=2)[:2]
    assert {trial.setup for trial in plan(MANY, chosen)} == set(chosen)


def test_another_interpreter_is_every_setups():
    trials = plan(MANY, python="/opt/python3.14t/bin/python")
    assert {trial.setup.python for trial in trials} == {"/opt/python3.14t/bin/python"}
    assert {trial.setup.python for trial in plan(MANY)} == {None}
    # And it changes nothing else
    assert [replace(trial.setup, python=None) for trial in trials] == [trial.setup for trial in plan(MANY)]


def test_an_experiment_that_compares_interpreters_keeps_its_own():
    # Given an experiment that compares two interpreters
    both = replace(MANY, arms=(Arms({"python": (None, FREE_THREADED, "/opt/python3.12")}),))
    # When the user asks for a third
    planned = {trial.setup.python for trial in plan(both, python="/opt/python3.13")}
    # Then the comparison stays as it was declared
    assert planned == {None, FREE_THREADED, "/opt/python3.12"}


HOG = Load("spin", {"loops": Calibrated(100)}, Burst(2))
ALONE, BESIDE = replace(SETUP, beside=None), replace(SETUP, beside=HOG)


def test_what_runs_beside_is_a_load_of_the_setup_after_its_own():
    assert ALONE.loads == (Load(SETUP.job, SETUP.args, SETUP.pacer),)
    assert BESIDE.loads == (*ALONE.loads, HOG)


@pytest.mark.parametrize(
    ("setup", "label"),
    [
        (BESIDE, "prefork 2"),
        (replace(BESIDE, pool="threads", concurrency=8, apart="prefork"), "threads 8 + prefork 1"),
        (replace(BESIDE, pool="gevent", apart="prefork", apart_concurrency=3), "gevent 2 + prefork 3"),
        (replace(BESIDE, queued=False, pool="threads", apart="processes"), "bare threads 2 + processes 1"),
        (replace(BESIDE, nodes=2, apart="solo"), "prefork 2x2 + solo"),
        (replace(BESIDE, queued=False, pool="serial", apart="serial"), "bare serial + serial"),
    ],
)
def test_a_label_names_the_worker_apart_with_its_slots(setup: Setup, label: str):
    assert setup.label == label


def test_setups_that_differ_in_what_runs_beside_are_different_and_can_stand_in_a_set():
    # Given arms that declare the same load twice, in plain dictionaries, and one that differs in it alone
    again = Load("spin", {"loops": Calibrated(100)}, Burst(2))
    more = Load("spin", {"loops": Calibrated(200)}, Burst(2))
    arms = (Arms({"beside": (None, HOG, again)}), Arms({"beside": (more,), "apart": (None, "prefork")}))
    setups = replace(MANY, arms=arms).setups(cores=2)
    # Then each is there once
    assert len(setups) == len(set(setups)) == 4
    assert [setup.beside for setup in setups] == [None, HOG, more, more]
    assert {trial.setup for trial in plan(replace(MANY, arms=arms))} == set(setups)


def test_a_setup_whose_interpreter_is_here_can_run():
    assert cannot_run(replace(SETUP, pool="prefork")) is None
    assert cannot_run(replace(SETUP, queued=False, pool="threads", python=sys.executable)) is None


def test_a_setup_without_a_gil_cannot_run_where_no_such_interpreter_is_found(monkeypatch, tmp_path):
    # Given a machine with no interpreter at all on its PATH; then it is left out, with what to do
    free = replace(SETUP, python=FREE_THREADED)
    monkeypatch.delenv("SIDESTEP_FREE_THREADED", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "SIDESTEP_FREE_THREADED" in str(cannot_run(free))
    assert "SIDESTEP_FREE_THREADED" in str(cannot_run(replace(free, queued=False, pool="threads")))
    # And the interpreter of all others is no substitute
    assert "SIDESTEP_FREE_THREADED" in str(cannot_run(free, sys.executable))
    # When one is named, it can
    monkeypatch.setenv("SIDESTEP_FREE_THREADED", sys.executable)
    assert cannot_run(free) is None


def test_interpreters_side_by_side_need_a_python_that_has_them():
    reason = cannot_run(replace(SETUP, queued=False, pool="interpreters"))
    named = cannot_run(replace(SETUP, queued=False, pool="interpreters", python=sys.executable))
    asked = cannot_run(replace(SETUP, queued=False, pool="interpreters"), sys.executable)
    assert reason == named == asked
    assert (reason is None) is (sys.version_info >= (3, 14))
    assert reason is None or "3.14" in reason


def test_processes_that_do_not_fit_into_memory_are_left_out_with_the_figures(monkeypatch):
    thousand = replace(SETUP, pool="prefork", concurrency=1000)
    # Given a machine with 4 GB to spare; then a thousand processes are refused, and as many threads are not
    monkeypatch.setattr(measure, "free_memory_bytes", lambda: 4_000_000_000)
    assert str(cannot_run(thousand)).startswith(
        "1000 prefork slots need about 24 GB of memory, 24 MB each, and of 4 GB"
    )
    assert cannot_run(replace(thousand, pool="threads")) is None
    assert cannot_run(replace(thousand, concurrency=100)) is None
    # And where they would just fit, since the machine would swap
    monkeypatch.setattr(measure, "free_memory_bytes", lambda: 25_000_000_000)
    assert "80%" in str(cannot_run(thousand))
    # When there is room, they run
    monkeypatch.setattr(measure, "free_memory_bytes", lambda: 64_000_000_000)
    assert cannot_run(thousand) is None


def test_the_memory_that_is_free_is_no_more_than_the_machine_has():
    assert 0 < free_memory_bytes() <= psutil.virtual_memory().total


def test_what_cannot_run_is_left_out_of_the_trials_by_name(monkeypatch, tmp_path):
    # Given no interpreter without a GIL; then the setups that want one are named and the others are planned
    monkeypatch.delenv("SIDESTEP_FREE_THREADED", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    both = replace(MANY, arms=(Arms({"python": (None, FREE_THREADED)}),))
    trials, left_out = Order((both,), tmp_path).trials(both, cores=2)
    assert {trial.setup.python for trial in trials} == {None}
    assert len(trials) == MANY.repeats
    assert list(left_out) == ["made-up · prefork 2"]


def test_quick_has_fewer_repeats_fewer_arms_and_less_work():
    trials = plan(MANY, quick=True)
    assert {trial.repeat for trial in trials} == {0, 1}
    assert {trial.setup.pacer for trial in trials} == {Burst(2)}
    assert {trial.setup.pool for trial in trials} == {"threads", "prefork"}
    # And so many repeats as the user says, if they say so
    assert {trial.repeat for trial in plan(MANY, quick=True, repeats=4)} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("cores", "points"),
    [(1, (1, 2)), (2, (1, 2)), (3, (1, 2, 3)), (4, (1, 2, 3, 4)), (8, (1, 2, 4, 8)), (128, (1, 2, 16, 128))],
)
def test_an_axis_up_to_the_cores_has_at_most_four_points(cores: int, points: tuple[int, ...]):
    assert up_to(cores) == points
    arms = Arms({"concurrency": (UP_TO_CORES,)})
    assert tuple(setup.concurrency for setup in arms.setups(SETUP, cores)) == points


def test_a_setup_that_several_arms_declare_is_measured_once():
    twice = replace(MANY, arms=(*MANY.arms, *MANY.arms))
    assert twice.setups(cores=4) == MANY.setups(cores=4)


@pytest.mark.parametrize(
    ("setup", "about_s"),
    [
        # 60 jobs of 25 ms: one after the other, on two processes, on two threads that share a GIL
        (replace(SETUP, args={"loops": Calibrated(25)}, pacer=Burst(60), pool="solo", concurrency=1), 1.5),
        (replace(SETUP, args={"loops": Calibrated(25)}, pacer=Burst(60), pool="prefork", concurrency=2), 0.75),
        (replace(SETUP, args={"loops": Calibrated(25)}, pacer=Burst(60), pool="threads", concurrency=2), 1.5),
        # Waiting spreads over slots; a load takes at least until its last job is due
        (replace(SETUP, args={"url": Upstream(50), "key": EachJob()}, pacer=Burst(100), concurrency=5), 1.0),
        (replace(SETUP, args={}, pacer=Constant(10, 3)), 3.0),
        # Loads beside each other are due at the same time, and share the slots and the cores
        (replace(SETUP, args={}, pacer=Constant(10, 3), beside=replace(HOG, pacer=Constant(1, 3))), 3.0),
        (replace(SETUP, args={}, pacer=Constant(10, 3), beside=replace(HOG, pacer=Burst(100))), 5.0),
        (replace(SETUP, args={}, pool="threads", pacer=Constant(10, 3), beside=replace(HOG, pacer=Burst(50))), 5.0),
        # A worker apart has slots of its own
        (
            replace(
                SETUP,
                args={},
                pool="threads",
                beside=replace(HOG, pacer=Burst(100)),
                apart="prefork",
                apart_concurrency=2,
            ),
            5.0,
        ),
    ],
)
def test_the_expected_time_is_about_right(setup: Setup, about_s: float):
    boot_s = expected_s(Trial("x", replace(setup, args={}, pacer=Burst(1), beside=None), 0), cores=2)
    assert expected_s(Trial("x", setup, 0), cores=2) - boot_s == pytest.approx(about_s, rel=0.1)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_trial_takes_some_time(name: str):
    assert all(0 < expected_s(trial, cores=2) < 60 for trial in plan(EXPERIMENTS[name]))


def test_setups_that_belong_side_by_side_run_one_after_the_other_in_either_order():
    # Given the experiment that compares marks on with marks off
    experiment = EXPERIMENTS["observer-cost"]
    assert experiment.side_by_side == "marks"
    trials = plan(experiment, cores=2, repeats=6)
    # Then each trial at an even place and the one after it differ in that alone
    pairs = list(zip(trials[::2], trials[1::2], strict=True))
    for one, other in pairs:
        assert replace(one.setup, marks=None) == replace(other.setup, marks=None)
        assert {one.setup.marks, other.setup.marks} == {True, False}
    # And marks come first now and second then, and the pairs in another order each time
    assert {one.setup.marks for one, _ in pairs} == {True, False}
    half = len(pairs) // 6
    assert len({tuple((p.setup.pool, p.setup.job) for p, _ in pairs[i * half : (i + 1) * half]) for i in range(6)}) > 1


def test_a_suite_is_not_continued_with_other_setups_than_it_holds():
    # Given a suite of an experiment whose declaration has changed since
    suite = run_experiment(MANY)
    planned = plan(MANY)
    same_setups(suite, planned)
    changed = replace(MANY, base=replace(MANY.base, acks_late=True))
    # Then it is refused, or claims would take old and new setups for one
    with pytest.raises(BadInput, match="declared before"):
        same_setups(suite, plan(changed))
    # And other experiments in it are nobody's business
    same_setups(suite, plan(replace(changed, name="another")))


OLD = {"celery": "5.7.0", "redis": "8.1.0"}


@pytest.mark.parametrize(
    ("now", "goes_on"),
    [
        (OLD, True),
        ({**OLD, "orjson": "3.13.0"}, True),
        ({**OLD, "hiredis": "3.5.0"}, False),
        ({**OLD, "celery": "5.7.1"}, False),
        ({"celery": "5.7.0"}, False),
    ],
)
def test_a_suite_goes_on_beside_new_packages_unless_its_runs_would_use_them(now: dict[str, str], goes_on: bool):
    old = replace(run_experiment(MANY), environment={"packages": OLD})
    new = replace(old, environment={"packages": now}, runs=())
    if goes_on:
        assert continued(new, old).runs == old.runs
    else:
        with pytest.raises(BadInput, match="another packages"):
            continued(new, old)


def test_a_suite_that_goes_on_names_every_revision_that_measured_it():
    old = replace(run_experiment(MANY), environment={"revision": "aaa"})
    twice = continued(replace(old, environment={"revision": "bbb"}, runs=()), old)
    assert twice.environment["revision"] == "aaa, bbb"
    again = continued(replace(old, environment={"revision": "bbb"}, runs=()), twice)
    assert again.environment["revision"] == "aaa, bbb"


def test_an_append_only_file_is_the_embedded_servers(tmp_path):
    order = Order((MANY,), tmp_path, broker_url="redis://127.0.0.1:1/0", persist=True)
    with pytest.raises(BadInput, match="--persist is for the embedded server"):
        next(measure.measure(order, say=print))
