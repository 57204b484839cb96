"""A break-even is found by bisection: each job length follows from what is measured so far."""

import itertools
import math
from dataclasses import replace

import pytest

from experiments.catalogue import EXPERIMENTS
from lab.axes import work_ms
from lab.halving import expected_halving_s, halved, is_halved, middle
from lab.measure import Order, same_setups
from lab.model import BadInput, BreakEven, Experiment, Run, Suite
from lab.plan import plan
from lab.stats import bracket, estimate, selects, sides
from tests.simulator import QUEUE_S, run_experiment, simulate

WITH_HALVINGS = [experiment for experiment in EXPERIMENTS.values() if experiment.halvings]
EVEN = EXPERIMENTS["break-even"]
QUEUE = EVEN.claims[0].measure
PAYS_MS = 2 * QUEUE_S * 1e3 / (2 - 1) / 2
"""Where two processes that each lose QUEUE_S a job are as quick as one that loses none: (w + q) / 2 = w."""


def measured(experiment: Experiment, steps: int) -> list[Run]:
    """All planned trials on the simulator, then so many steps of the bisection."""
    trials = plan(experiment, cores=2)
    runs = [simulate(trial, cores=2) for trial in trials]
    for step in range(steps):
        runs += [simulate(trial, cores=2) for trial in halved(experiment, trials, runs, step, seed=0)]
    return runs


def gap(runs: list[Run]) -> float:
    found = bracket(QUEUE, runs)
    assert found
    return math.log(found[1] / found[0])


def test_each_step_halves_the_gap_in_which_the_break_even_lies():
    gaps = [gap(measured(EVEN, steps)) for steps in range(EVEN.halvings + 1)]
    for wide, narrow in itertools.pairwise(gaps):
        assert narrow == pytest.approx(wide / 2, rel=0.05)


def test_bisection_finds_the_break_even_that_the_simulator_has():
    runs = measured(EVEN, EVEN.halvings)
    # A plain loop's job is as long as its work and what the loop costs, which is a tenth of the queue
    found = estimate(QUEUE, runs)
    assert found
    assert found.low <= PAYS_MS * 1.15
    assert found.high >= PAYS_MS * 0.95
    assert found.high / found.low < 1.3


@pytest.mark.parametrize("experiment", WITH_HALVINGS, ids=lambda e: e.name)
def test_a_step_measures_both_sides_at_the_same_new_length_in_every_repeat(experiment: Experiment):
    trials = plan(experiment, cores=2)
    declared = {trial.setup for trial in trials}
    runs = [simulate(trial, cores=2) for trial in trials]
    evens = [claim.measure for claim in experiment.claims if isinstance(claim.measure, BreakEven)]
    assert evens
    assert all(even.axis == "work_ms" for even in evens)
    new = halved(experiment, trials, runs, 0, seed=0)
    assert new
    assert {trial.repeat for trial in new} == set(range(experiment.repeats))
    assert len(new) == len(set(new)) == experiment.repeats * len({trial.setup for trial in new})
    for even in evens:
        if found := bracket(even, runs):
            lengths = [{work_ms(t.setup) for t in new if selects(side, t.setup)} for side in sides(even)]
            assert all(middle(*found) in side for side in lengths)
    # And what is new differs from what was declared in the length of its jobs alone
    assert all(is_halved(trial.setup, declared) and trial.setup not in declared for trial in new)
    assert expected_halving_s(experiment, trials, cores=2) > 0


def test_a_break_even_beyond_the_lengths_that_were_tried_is_not_searched_for():
    trials = plan(EVEN, cores=2)
    # Given runs in which the queue pays for no length: both of its processes share one core
    runs = [simulate(trial, cores=1) for trial in trials]
    assert bracket(QUEUE, runs) is None
    new = halved(EVEN, trials, runs, 0, seed=0)
    assert not any(selects(QUEUE.of, trial.setup) for trial in new)


def test_a_step_follows_from_the_steps_before_it_alone_so_that_a_stopped_run_goes_on_with_the_same_lengths():
    trials, runs = plan(EVEN, cores=2), measured(EVEN, 2)
    first = halved(EVEN, trials, runs, 0, seed=0)
    assert first == halved(EVEN, trials, [run for run in runs if run.trial in trials], 0, seed=0)
    assert {trial.setup for trial in first} <= {run.trial.setup for run in runs}


def test_a_suite_with_lengths_found_by_bisection_is_continued_and_one_with_other_setups_is_not():
    trials, runs = plan(EVEN, cores=2), tuple(measured(EVEN, 1))
    suite = Suite({}, (EVEN.name,), runs, 0, {EVEN.name: EVEN.repeats})
    same_setups(suite, trials, frozenset({EVEN.name}))
    with pytest.raises(BadInput, match="declared before"):
        same_setups(suite, trials)
    changed = replace(EVEN, base=replace(EVEN.base, acks_late=True))
    with pytest.raises(BadInput, match="declared before"):
        same_setups(suite, plan(changed, cores=2), frozenset({EVEN.name}))


def test_a_quick_look_has_no_bisection(tmp_path):
    assert Order((EVEN,), tmp_path, quick=True).halvings_of(EVEN) == 0
    assert Order((EVEN,), tmp_path).halvings_of(EVEN) == EVEN.halvings
    assert run_experiment(EVEN, quick=True).runs
