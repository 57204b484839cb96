"""Estimates that know how sure they are."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.model import Arms, Estimate, Experiment, Ledger, Ratio, Run
from lab.plan import plan
from lab.stats import (
    MEASURES,
    MOST_REPEATS,
    blocks,
    estimate,
    mean,
    mean_of_logs,
    quantile,
    repeats_to_decide,
    t_probability,
    t_quantile,
)
from producer.pacers import Burst
from producer.payloads import Calibrated
from tests.fakes import SETUP, make_resources, make_run, make_samples
from tests.simulator import simulate

# Two-sided 95 %: NIST/SEMATECH e-Handbook of Statistical Methods, table 1.3.6.7.2, and to more places where printed so.
TABLE_95 = {
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    9: 2.262,
    10: 2.228,
    29: 2.045,
    30: 2.042,
    100: 1.984,
}
TABLE_99 = {1: 63.657, 2: 9.925, 4: 4.604, 9: 3.250, 30: 2.750, 100: 2.626}


@pytest.mark.parametrize(("df", "t"), TABLE_95.items())
def test_t_is_that_of_the_published_table(df: int, t: float):
    assert t_quantile(df) == pytest.approx(t, abs=0.0005)


@pytest.mark.parametrize(("df", "t"), TABLE_99.items())
def test_t_of_another_confidence_is_that_of_the_published_table(df: int, t: float):
    assert t_quantile(df, 0.99) == pytest.approx(t, abs=0.0005)


@pytest.mark.parametrize("df", [1, 2, 3, 10, 77])
@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_the_chance_of_a_quantile_is_its_confidence(df: int, confidence: float):
    assert t_probability(t_quantile(df, confidence), df) == pytest.approx(confidence, abs=1e-9)


def test_student_with_many_degrees_of_freedom_is_normal():
    assert t_quantile(5000) == pytest.approx(1.9599, abs=0.001)


def test_an_interval_is_worked_out_as_by_hand():
    # Given five logarithms around ln 2 with a standard deviation of 0.1 sqrt(2.5)
    values = [2 * math.exp(0.1 * step) for step in (-2, -1, 0, 1, 2)]
    # Then the interval is the mean -+ 2.776 s / sqrt(5)
    half = 2.776445 * 0.1 * math.sqrt(2.5) / math.sqrt(5)
    estimate = mean_of_logs(values)
    assert estimate is not None
    assert (estimate.value, estimate.n) == (pytest.approx(2), 5)
    assert estimate.low == pytest.approx(2 * math.exp(-half), rel=1e-6)
    assert estimate.high == pytest.approx(2 * math.exp(half), rel=1e-6)


def test_the_interval_of_a_plain_mean_is_worked_out_as_by_hand():
    half = 2.776445 * math.sqrt(2.5) / math.sqrt(5)
    assert mean([1, 2, 3, 4, 5]) == Estimate(3, pytest.approx(3 - half), pytest.approx(3 + half), 5)


def test_nothing_measured_is_no_estimate_and_one_block_is_no_certainty():
    assert mean_of_logs([]) is None
    assert mean([]) is None
    assert mean_of_logs([2.0]) == Estimate(2.0, 0.0, math.inf, 1)
    assert mean([2.0]) == Estimate(2.0, -math.inf, math.inf, 1)


positive = st.floats(1e-6, 1e6)


@given(st.lists(positive, min_size=2, max_size=30))
def test_a_ratio_turned_over_is_the_interval_turned_over(values: list[float]):
    over, under = mean_of_logs(values), mean_of_logs([1 / v for v in values])
    assert over
    assert under
    assert over.low <= over.value * (1 + 1e-9)
    assert over.value <= over.high * (1 + 1e-9)
    assert math.log(under.value) == pytest.approx(-math.log(over.value), abs=1e-6)
    if over.low > 1e-200 and over.high < 1e200:  # two wild values make an interval beyond any float
        assert math.log(under.low) == pytest.approx(-math.log(over.high), abs=1e-6)
        assert math.log(under.high) == pytest.approx(-math.log(over.low), abs=1e-6)


WALL = Ratio("throughput_hz", of={"concurrency": 2}, to={"concurrency": 1})
ONE, TWO = replace(SETUP, concurrency=1), replace(SETUP, concurrency=2)


def run(concurrency: int, repeat: int, wall_s: float) -> Run:
    return make_run(setup=TWO if concurrency == 2 else ONE, repeat=repeat, wall_s=wall_s)


def test_a_ratio_is_taken_inside_each_block():
    # Given a second repeat on a machine that has become ten times slower
    runs = [run(1, 0, 2), run(2, 0, 1), run(2, 1, 10), run(1, 1, 30)]
    assert blocks(WALL, runs) == pytest.approx([2, 3])


def test_a_block_with_one_side_missing_is_left_out():
    assert blocks(WALL, [run(1, 0, 2), run(2, 1, 1), run(1, 2, 3), run(2, 2, 1)]) == pytest.approx([3])
    assert estimate(WALL, [run(1, 0, 2)]) is None


def test_several_setups_on_one_side_are_their_geometric_mean():
    four = replace(SETUP, concurrency=4)
    runs = [make_run(setup=four, wall_s=1), run(2, 0, 4), run(1, 0, 8)]
    either = Ratio("throughput_hz", of={"pool": "prefork"}, to={"concurrency": 1})
    assert blocks(either, runs) == pytest.approx([8 / (1 * 4 * 8) ** (1 / 3)])


def test_a_block_without_a_number_is_left_out():
    unread = [make_run(setup=s, resources=make_resources(worker_pss_bytes=None)) for s in (ONE, TWO)]
    read = [make_run(setup=s, repeat=1) for s in (ONE, TWO)]
    weight = Ratio("pss_bytes_per_slot", of={"concurrency": 2}, to={"concurrency": 1})
    assert blocks(weight, [*unread, *read]) == pytest.approx([0.5])


EXPERIMENT = Experiment(
    name="made-up",
    question="Do two slots do twice as much?",
    base=replace(SETUP, args={"loops": Calibrated(ms=25)}, pacer=Burst(8)),
    arms=(Arms({"concurrency": (1, 2)}),),
    claims=(),
)
CALM = {"block_noise": 0.0, "run_noise": 0.0, "job_noise": 0.0}


def test_what_slows_a_whole_repeat_cancels_in_its_ratio():
    # Given repeats that differ by half, alike for all their setups, and nothing else that varies
    runs = [simulate(t, **{**CALM, "block_noise": 0.5}) for t in plan(EXPERIMENT, repeats=5)]
    assert max(r.resources.wall_s for r in runs) > 1.5 * min(r.resources.wall_s for r in runs)
    # Then the ratio is exact all the same
    found = estimate(WALL, runs)
    assert estimate is not None
    assert estimate.low == pytest.approx(2, rel=0.002)
    assert estimate.high == pytest.approx(2, rel=0.002)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    # Given a machine whose repeats differ by a fifth and whose runs differ by 5 % beside, and a speed-up of just 2
    exact = estimate(WALL, [simulate(t, **CALM) for t in plan(EXPERIMENT, repeats=1)])
    assert exact is not None
    assert exact.value == pytest.approx(2, rel=0.001)
    draws, covered = 1000, 0
    for seed in range(draws):
        trials = plan(EXPERIMENT, repeats=5, seed=seed)
        runs = [simulate(t, seed=seed, block_noise=0.2, run_noise=0.05, job_noise=0) for t in trials]
        # When the ratio is estimated from five repeats
        found = estimate(WALL, runs)
        assert estimate is not None
        covered += estimate.low <= exact.value <= estimate.high
    # Then 95 of 100 intervals hold the truth
    assert 0.92 <= covered / draws <= 0.98


@pytest.mark.parametrize("repeats", [2, 3, 5, 10])
def test_the_interval_covers_the_truth_however_few_the_repeats(repeats: int):
    rng, draws = random.Random(repeats), 2000
    intervals = [mean_of_logs([rng.lognormvariate(1.0, 0.3) for _ in range(repeats)]) for _ in range(draws)]
    assert 0.93 <= sum(e.low <= math.e <= e.high for e in intervals if e) / draws <= 0.97


scattered = st.lists(st.floats(0.5, 2), min_size=2, max_size=12)


@settings(max_examples=40)
@given(scattered, st.floats(0.3, 3))
def test_repeats_to_decide_is_the_first_number_whose_interval_would_be_clear_of_the_bound(values, bound: float):
    # Given how values scatter
    logs = [math.log(v) for v in values]
    distance, deviation = abs(np.mean(logs) - math.log(bound)), float(np.std(logs, ddof=1))

    def margin(n: int) -> float:  # how far the interval of n such values would stay clear of the bound
        return float(distance - t_quantile(n - 1) * deviation / math.sqrt(n))

    needed = repeats_to_decide(values, bound)
    if needed is None:
        assert margin(MOST_REPEATS) < 1e-9
    else:
        assert len(values) < needed <= MOST_REPEATS
        assert margin(needed) > -1e-9
        assert needed == len(values) + 1 or margin(needed - 1) < 1e-9


def test_repeats_to_decide_of_a_known_case():
    # Given a mean 10 % above the bound and a standard deviation of 20 %; then t(n-1) 0.2 / sqrt(n) < 0.1 from n = 18 on
    values = [math.exp(0.1 + 0.2 * step) for step in (-1, 0, 1)]
    assert repeats_to_decide(values, 1.0) == 18


def test_too_little_to_say_how_many_repeats_would_decide():
    assert repeats_to_decide([], 1.0) is None
    assert repeats_to_decide([2.0], 1.0) is None
    assert repeats_to_decide([2.0, 2.1], 0.0) is None


@pytest.mark.parametrize(
    ("q", "value"), [(0.0, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.51, 3), (0.75, 3), (0.99, 4), (1.0, 4)]
)
def test_a_quantile_is_a_value_that_was_measured(q: float, value: float):
    assert quantile(np.array([4.0, 2.0, 3.0, 1.0]), q) == value


def test_the_quantile_of_nothing_is_not_a_number():
    assert math.isnan(quantile(np.array([]), 0.5))


def test_each_measure_is_what_its_name_says():
    # Given two slots, eight jobs of which one was lost, four seconds, and samples with known ends
    samples = make_samples(due_ns=[0, 0, 10**9], ended_ns=[10**9, 3 * 10**9, 3 * 10**9], cpu_ns=[10**9, 10**9, 10**9])
    resources = make_resources(wall_s=4.0, drained_s=5.0, worker_pss_bytes=70_000_000)
    measured = make_run(
        setup=TWO, samples=samples, ledger=Ledger(issued=8, done=6, failed=1, lost=1), resources=resources
    )
    assert {name: measure(measured) for name, measure in MEASURES.items()} == {
        "throughput_hz": 7 / 4,
        "drain_hz": 8 / 5,
        "worker_cpu_s_per_job": 0.8 / 8,
        "pss_bytes": 70_000_000,
        "pss_bytes_per_slot": 35_000_000,
        "latency_p50_s": 2.0,
        "latency_p99_s": 3.0,
        "cores_used": 3 / 4,
    }


def test_what_was_not_measured_is_not_a_number():
    unread = make_run(resources=make_resources(drained_s=None, worker_pss_bytes=None))
    for name in ("drain_hz", "pss_bytes", "pss_bytes_per_slot", "latency_p50_s", "latency_p99_s"):
        assert math.isnan(MEASURES[name](unread)), name
