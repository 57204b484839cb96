"""Estimates that know how sure they are."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab import bill, usl
from lab.model import (
    Arms,
    BreakEven,
    Estimate,
    Experiment,
    FrozenArgs,
    Ledger,
    Level,
    Load,
    Ratio,
    Run,
    ScalingLaw,
    Trial,
)
from lab.plan import plan
from lab.stats import (
    MEASURES,
    MOST_REPEATS,
    blocks,
    crossing,
    estimate,
    mean,
    mean_of_logs,
    quantile,
    reordered,
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
    assert found is not None
    assert found.low == pytest.approx(2, rel=0.002)
    assert found.high == pytest.approx(2, rel=0.002)


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
        assert found is not None
        covered += found.low <= exact.value <= found.high
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
    s = 10**9
    samples = make_samples(
        due_ns=[0, 0, s],
        sent_ns=[0, s // 2, s],
        received_ns=[s // 4, s // 2, s],
        started_ns=[s // 2, s, 2 * s],
        ended_ns=[s, 3 * s, 3 * s],
        cpu_ns=[s, s, s],
        thread=[0, 1, 0],
        value=[8, 20, 24],
    )
    resources = make_resources(
        wall_s=4.0, drained_s=5.0, worker_pss_bytes=70_000_000, commands={"brpop": 9, "hset": 7}, gil_enabled=False
    )
    measured = make_run(
        setup=replace(TWO, args=FrozenArgs(rounds=8)),
        samples=samples,
        ledger=Ledger(issued=8, done=6, failed=1, lost=1),
        resources=resources,
    )
    nan = pytest.approx(math.nan, nan_ok=True)
    assert {
        name: measure(measured) for name, measure in MEASURES.items() if name not in OF_DELIVER | set(bill.MEASURES)
    } == {
        "throughput_hz": 7 / 4,
        "drain_hz": 8 / 5,
        "worker_cpu_s_per_job": 0.8 / 8,
        "pss_bytes": 70_000_000,
        "pss_bytes_per_slot": 35_000_000,
        "latency_p50_s": 2.0,
        "latency_p99_s": 3.0,
        "cores_used": 3 / 4,
        "beside_hz": nan,  # nothing runs beside it
        "beside_p99_s": nan,
        "wait_p99_s": 1.0,
        "fetch_p50_s": 0.0,
        "ack_gap_p50_s": nan,  # its steps were not marked
        "heartbeat_late_s": nan,  # nor its heartbeats
        "held_p50_s": 0.5,
        "service_p50_s": 1.0,
        "service_mean_s": 3.5 / 3,
        "round_us": 1e6 / 8,
        "gap_p50_s": 1.0,
        "slots_busy": (0.5 + 2 + 1) / (2 * 3),
        "boot_s": 1.0,
        "commands_per_job": 16 / 8,
        "lost_updates": 1 - 24 / (8 * (3 + 2)),
        "disorder": 0.0,
        "gil_on": 0.0,
        "watcher_cpu_s_per_job": nan,  # nothing watches
    }


OF_DELIVER = {"refused_things", "changed_things", "not_intact"}
"""Measures of one job's own, tested beside it."""


def test_an_acknowledgements_gap_counts_from_the_jobs_end_and_only_where_it_comes_late():
    # Given a run of jobs with steps, of which the first's acknowledgement was not seen
    late = simulate(Trial("x", replace(SETUP, pacer=Burst(4), steps=True, acks_late=True), 0))
    assert late.steps
    ended = late.samples.ended_ns
    acked = np.where(np.arange(4) == 0, 0, ended + 7_000_000)
    late = replace(late, steps=replace(late.steps, acked_ns=acked))
    assert MEASURES["ack_gap_p50_s"](late) == pytest.approx(0.007)
    # When it is an early one, it has no gap
    early = replace(late, trial=replace(late.trial, setup=replace(late.trial.setup, acks_late=None)))
    assert math.isnan(MEASURES["ack_gap_p50_s"](early))


def test_a_heartbeat_is_late_by_what_its_gap_exceeds_the_interval_wherever_the_run_lies_in_it():
    # Given a worker that sends a heartbeat each second, and a run of 3 s
    setup = replace(TWO, heartbeat_s=1)
    samples = make_samples(sent_ns=[0, 0], ended_ns=[1_000_000_000, 3_000_000_000])

    def late_s(*beats_s: float) -> float:
        beats_ns = tuple(round(beat * 1e9) for beat in beats_s)
        return MEASURES["heartbeat_late_s"](replace(make_run(setup=setup, samples=samples), beats_ns=beats_ns))

    # Then the longest gap within it counts, also the one in which it begins, and the one in which it ends
    assert late_s(-0.5, 0.5, 1.7, 2.7, 3.7) == pytest.approx(0.2)
    assert late_s(-0.5, 2.5) == pytest.approx(2)
    assert late_s(-0.5, 0.5, 1.5, 2.5, 6.5) == pytest.approx(3)
    # And none before or after it
    assert late_s(-9, -0.5, 0.5, 1.5, 2.5, 3.5, 9) == pytest.approx(0)
    # And one alone says nothing
    assert math.isnan(late_s(0.5))
    assert math.isnan(late_s(-9, -1))


def test_the_time_to_receive_is_unknown_for_a_job_that_no_worker_saw_come():
    run = make_run(samples=make_samples(sent_ns=[0, 0], received_ns=[0, 3_000_000], ended_ns=[9_000_000] * 2))
    assert MEASURES["fetch_p50_s"](run) == 0.003


def test_what_was_not_measured_is_not_a_number():
    # Given a run without marks on a broker that others use too; then these are unknown
    unread = make_run(resources=make_resources(drained_s=None, worker_pss_bytes=None))
    known = {"throughput_hz", "worker_cpu_s_per_job", "cores_used", "boot_s", "gil_on", "producer_cpu_s_per_job"}
    assert {name for name, measure in MEASURES.items() if not math.isnan(measure(unread))} == known


S = 10**9
HOG = Load("spin", FrozenArgs(loops=1), Burst(2))
MIXED = replace(TWO, beside=HOG)


def mixed_run() -> Run:
    """Two jobs of the setup's own, of half a second each, and two of eight seconds beside them."""
    samples = make_samples(
        due_ns=[0, 0, 0, S],
        started_ns=[0, 0, 0, S],
        ended_ns=[S // 2, 8 * S, 8 * S, S + S // 2],
        cpu_ns=[0, 8 * S, 8 * S, 0],
        thread=[0, 1, 2, 0],
        beside=[0, 1, 1, 0],
    )
    return make_run(setup=MIXED, samples=samples, wall_s=8.0)


def test_what_runs_beside_the_setups_own_jobs_is_measured_apart_from_them():
    mixed = mixed_run()
    # Given both loads, each has a rate of its own
    assert MEASURES["throughput_hz"](mixed) == 2 / 1.5
    assert MEASURES["beside_hz"](mixed) == 2 / 8
    assert MEASURES["beside_p99_s"](mixed) == 8.0
    # And everything else of single jobs is about the setup's own
    for name in ("latency_p50_s", "latency_p99_s", "service_p50_s"):
        assert MEASURES[name](mixed) == 0.5, name
    assert MEASURES["slots_busy"](mixed) == 1.0 / (2 * 1.5)
    assert MEASURES["disorder"](mixed) == 0.0
    # But the cores are kept busy by all
    assert MEASURES["cores_used"](mixed) == 16 / 8


def test_the_rate_of_jobs_beside_others_counts_from_the_first_of_them():
    samples = make_samples(due_ns=[0, 2 * S, 3 * S], ended_ns=[S, 3 * S, 4 * S], beside=[0, 1, 1])
    assert MEASURES["beside_hz"](make_run(setup=MIXED, samples=samples)) == 2 / 2


def test_a_run_in_which_one_load_never_ended_has_no_rate_of_it():
    samples = make_samples(ended_ns=[S], beside=[1])
    assert math.isnan(MEASURES["throughput_hz"](make_run(setup=MIXED, samples=samples)))
    assert math.isnan(MEASURES["latency_p99_s"](make_run(setup=MIXED, samples=samples)))


@pytest.mark.parametrize(
    ("sent", "gap_s"),
    [
        ([0, 0, 0], 0.5),  # all there: the slot stood idle for half a second twice
        ([0, 0, 9 * S], 0.5),  # the last one was sent only later: that gap is nobody's
        ([0, 3 * S // 2, 9 * S], math.nan),
    ],
)
def test_a_gap_counts_only_where_the_next_job_had_been_sent(sent: list[int], gap_s: float):
    started, ended = [0, 3 * S // 2, 10 * S], [S, 2 * S, 11 * S]
    if sent[2] == 0:
        started[2], ended[2] = 5 * S // 2, 3 * S
    samples = make_samples(sent_ns=sent, received_ns=sent, started_ns=started, ended_ns=ended)
    assert MEASURES["gap_p50_s"](make_run(samples=samples)) == pytest.approx(gap_s, nan_ok=True)


def test_a_gap_is_one_of_a_single_slot():
    # Given three slots: two threads of one process and one of another with the same number, each without a break
    samples = make_samples(
        started_ns=[0, 0, 0, S, S, S],
        ended_ns=[S, S, S, 2 * S, 2 * S, 2 * S],
        worker=[0, 0, 1] * 2,
        thread=[0, 1, 0] * 2,
    )
    assert MEASURES["gap_p50_s"](make_run(samples=samples)) == 0.0
    # And greenlets come and go, so they have none
    assert math.isnan(MEASURES["gap_p50_s"](make_run(setup=replace(SETUP, pool="gevent"), samples=samples)))


def test_a_slot_that_works_for_another_load_is_not_idle():
    # Given one slot that does a job of its own, one beside it, and one of its own again, without a break
    samples = make_samples(started_ns=[0, S, 4 * S], ended_ns=[S, 4 * S, 5 * S], beside=[0, 1, 0])
    assert MEASURES["gap_p50_s"](make_run(setup=MIXED, samples=samples)) == 0.0


@pytest.mark.parametrize(("values", "lost"), [([110, 120], 0.0), ([110, 90], 1 - 90 / 120), ([60, 60], 0.5)])
def test_lost_updates_are_what_is_missing_of_all_additions(values: list[int], lost: float):
    # Given one slot and two jobs of 40 additions each, after one that warmed the slot up
    samples = make_samples(ended_ns=[1, 2], value=values)
    run = make_run(setup=replace(ONE, args=FrozenArgs(rounds=40)), samples=samples)
    assert MEASURES["lost_updates"](run) == lost


def test_a_job_that_added_last_and_ended_before_another_does_not_count_as_a_loss():
    # Given two processes: the one that made the last addition said so a moment sooner than the other ended
    samples = make_samples(ended_ns=[10, 9], value=[159, 160], worker=[0, 1])
    run = make_run(setup=replace(TWO, args=FrozenArgs(rounds=40)), samples=samples)
    assert MEASURES["lost_updates"](run) == 0.0


@pytest.mark.parametrize(
    ("ended", "share"),
    [([1, 2, 3, 4], 0.0), ([4, 3, 2, 1], 1.0), ([2, 1, 3, 4], 1 / 6), ([4, 1, 2, 3], 1 / 2), ([5, 5, 5], 0.0)],
)
def test_disorder_is_the_share_of_pairs_that_changed_places(ended: list[int], share: float):
    assert MEASURES["disorder"](make_run(samples=make_samples(ended_ns=ended))) == share


@given(st.lists(st.integers(0, 30), min_size=2, max_size=12))
def test_disorder_is_counted_pair_by_pair(ended: list[int]):
    pairs = [(a, b) for i, a in enumerate(ended) for b in ended[i + 1 :]]
    found = MEASURES["disorder"](make_run(samples=make_samples(ended_ns=ended)))
    assert found == pytest.approx(sum(a > b for a, b in pairs) / len(pairs))


GIL_ON = Level("gil_on", of={"concurrency": 2})


def test_two_runs_are_as_reordered_as_pairs_of_jobs_changed_places():
    first, second, shorter = (
        make_run(samples=make_samples(ended_ns=ends)) for ends in ([1, 2, 3, 4], [10, 40, 30, 20], [1, 2])
    )
    assert reordered(first, first) == 0
    assert reordered(first, second) == reordered(second, first) == 3 / 6
    assert math.isnan(reordered(first, shorter))


def test_a_level_is_the_measure_itself_repeat_by_repeat():
    # Given two repeats, in the second of which two setups are chosen
    four = replace(SETUP, pool="threads", concurrency=2)
    runs = [run(2, 0, 4), run(1, 0, 1), run(2, 1, 2), make_run(setup=four, repeat=1, wall_s=1)]
    # Then each repeat is their plain mean, and others have no part in it
    level = Level("throughput_hz", of={"concurrency": 2})
    assert blocks(level, runs) == [1.0, 3.0]
    assert estimate(level, runs) == mean([1.0, 3.0])
    assert estimate(level, [run(1, 0, 1)]) is None


def test_a_level_may_be_nothing_at_all():
    off = [make_run(setup=TWO, repeat=n, resources=make_resources(gil_enabled=False)) for n in range(3)]
    assert estimate(GIL_ON, off) == Estimate(0.0, 0.0, 0.0, 3)


def test_a_repeat_whose_level_is_unknown_is_left_out():
    unread = make_run(setup=TWO, resources=make_resources(worker_pss_bytes=None))
    assert blocks(Level("pss_bytes", of={}), [unread, run(2, 1, 1)]) == [50_000_000.0]


LINE = {1.0: 1.0, 10.0: 10.0, 100.0: 100.0}


@pytest.mark.parametrize(
    ("of", "at"),
    [
        # In log-log the ratio rises from 1/2 at 1 to 2 at 10: half way between, in logarithms
        ({1.0: 0.5, 10.0: 20.0, 100.0: 400.0}, math.sqrt(10)),
        # From 1/10 at 10 to 10**0.5 at 100: two thirds of the way
        ({1.0: 0.1, 10.0: 1.0, 100.0: 100 * math.sqrt(10)}, 10 ** (1 + 2 / 3)),
        ({1.0: 2.0, 10.0: 20.0, 100.0: 200.0}, 1.0),  # always: at most the shortest
        ({1.0: 0.5, 10.0: 5.0, 100.0: 50.0}, math.inf),  # never
        ({1.0: 0.5, 10.0: 5.0, 100.0: 100.0}, math.inf),  # even is not more
        ({1.0: 1.0, 10.0: 20.0, 100.0: 400.0}, 1.0),  # just from the shortest on
        # What comes first by chance is not taken for it: the first two are pooled, to sqrt(1.1 / 2) both
        ({1.0: 1.1, 10.0: 5.0, 100.0: 200.0}, 10 ** (1 + math.log(0.55) / (math.log(0.55) - math.log(4)))),
        ({1.0: 2.0, 10.0: 20.0, 100.0: 50.0}, math.inf),  # nor what the longest deny
        ({1.0: 0.5, 1000.0: 2.0}, None),  # only one length on both sides
        ({}, None),
        ({1.0: 0.0, 10.0: 5.0, 100.0: 200.0}, math.sqrt(1000)),  # a run that did nothing says nothing
        ({1.0: 0.0, 10.0: 0.0, 100.0: 200.0}, None),
        ({1.0: math.nan, 10.0: 5.0, 100.0: 200.0}, math.sqrt(1000)),
    ],
)
def test_a_crossing_is_read_off_between_two_neighbours_from_the_right(of: dict[float, float], at: float | None):
    assert crossing(of, LINE) == (at if at is None else pytest.approx(at))


@given(st.floats(-3, 3), st.floats(0.1, 3), st.lists(st.floats(0.01, 1000), min_size=2, max_size=8, unique=True))
def test_a_crossing_of_a_straight_line_is_where_it_crosses(log_at: float, slope: float, xs: list[float]):
    # Given a ratio that in log-log is a straight line through 1 at a known length
    at, to = 10**log_at, dict.fromkeys(xs, 1.0)
    found = crossing({x: (x / at) ** slope for x in xs}, to)
    # Then that is found wherever lengths lie on both sides of it, and else their end
    if max(xs) <= at:
        assert found == math.inf
    elif min(xs) > at:
        assert found == min(xs)
    else:
        assert found == pytest.approx(at, rel=1e-6)


PAYS = BreakEven(of={"concurrency": 2}, to={"concurrency": 1})


def lengths(repeat: int, **speed_ups: float) -> list[Run]:
    """Runs of jobs of 1 and 100 ms in which two slots are so many times as fast as one."""
    runs = []
    for ms, name in ((1.0, "short"), (100.0, "long")):
        for setup in (ONE, TWO):
            sized = replace(setup, args=FrozenArgs(loops=Calibrated(ms)))
            runs.append(make_run(setup=sized, repeat=repeat, wall_s=1 / speed_ups[name] if setup is TWO else 1.0))
    return runs


def test_a_break_even_is_found_in_each_repeat_and_averaged_as_a_ratio_is():
    runs = [*lengths(0, short=0.5, long=2), *lengths(1, short=0.25, long=2)]
    values = [10, 100 ** (2 / 3)]
    assert blocks(PAYS, runs) == pytest.approx(values)
    assert estimate(PAYS, runs) == mean_of_logs(blocks(PAYS, runs))


def test_the_length_of_a_job_is_what_a_plain_loop_took_for_it_in_the_same_repeat():
    # Given jobs that are to take 1 and 100 ms, and a loop in which they took 4 and 64
    loop, queue = replace(ONE, queued=False, pool="serial"), replace(TWO, queued=True)
    runs = []
    for ms, took_ms, speed_up in ((1.0, 4.0, 0.5), (100.0, 64.0, 2.0)):
        for setup, faster in ((loop, 1.0), (queue, speed_up)):
            sized = make_run(setup=replace(setup, args=FrozenArgs(loops=Calibrated(ms))), wall_s=1.0)
            jobs = sized.ledger.done + sized.ledger.failed
            wall_s = jobs * took_ms / 1e3 / faster
            runs.append(replace(sized, resources=replace(sized.resources, wall_s=wall_s)))
    # Then the crossing lies in the middle of those, on a scale of logarithms
    assert blocks(BreakEven(of={"queued": True}, to={"queued": False}), runs) == pytest.approx([16])


def test_a_break_even_that_some_repeat_never_reached_has_no_upper_end():
    once, never = lengths(0, short=0.5, long=2), lengths(1, short=0.5, long=0.9)
    found = estimate(PAYS, [*once, *never])
    assert found == Estimate(math.inf, pytest.approx(10), math.inf, 2)
    assert estimate(PAYS, [*never, *lengths(2, short=0.1, long=0.2)]) == Estimate(math.inf, math.inf, math.inf, 2)
    # And one repeat is no certainty, in this either
    assert estimate(PAYS, never) == Estimate(math.inf, 0.0, math.inf, 1)
    assert estimate(PAYS, []) is None


def test_a_break_even_needs_both_sides_in_one_repeat():
    one, other = lengths(0, short=0.5, long=2), lengths(1, short=0.5, long=2)
    split = [r for r in one if r.trial.setup.concurrency == 1] + [r for r in other if r.trial.setup.concurrency == 2]
    assert blocks(PAYS, split) == []


LAW = ScalingLaw(of={"pool": "prefork"})


def scaled(hz: dict[int, float], repeat: int = 0) -> list[Run]:
    """One run for each concurrency, of four jobs at this rate."""
    return [make_run(setup=replace(SETUP, concurrency=n), repeat=repeat, wall_s=4 / x) for n, x in hz.items()]


def test_a_scaling_law_says_how_far_the_worst_point_lies_from_its_best_curve():
    # Given one repeat on the curve and one in which a single point is 30 % above it
    curve = usl.Usl(100, 0.05, 0.002)
    points = {n: curve.throughput_hz(n) for n in (1, 2, 3, 4, 6, 8)}
    on, off = blocks(LAW, [*scaled(points), *scaled({**points, 4: 1.3 * points[4]}, repeat=1)])
    assert on == pytest.approx(0, abs=1e-9)
    assert 0.1 < off < 0.3
    assert estimate(LAW, scaled(points)) == Estimate(pytest.approx(0, abs=1e-9), -math.inf, math.inf, 1)


def test_too_few_loads_make_no_scaling_law():
    points = {n: 100.0 * n for n in (1, 2, 3, 4, 6)}
    assert blocks(LAW, scaled(points)) == []
    # And one that finished nothing is none
    nothing = make_run(setup=replace(SETUP, concurrency=8), ledger=Ledger(issued=4, done=0, failed=0, lost=4))
    assert blocks(LAW, [*scaled(points), nothing]) == []


@given(
    st.floats(0.1, 1e4), st.floats(0, 0.9), st.floats(0, 0.1), st.lists(st.integers(1, 200), min_size=3, unique=True)
)
def test_the_scaling_laws_fit_finds_the_curve_that_made_the_points(rate: float, s: float, k: float, loads: list[int]):
    curve = usl.Usl(rate, s, k)
    found = usl.fit({n: curve.throughput_hz(n) for n in loads})
    assert min(found.rate_hz, found.contention, found.coherency) >= 0
    assert [found.throughput_hz(n) for n in loads] == pytest.approx([curve.throughput_hz(n) for n in loads], rel=1e-6)


@pytest.mark.parametrize(("s", "k"), [(0, 0), (0.1, 0), (0, 0.01), (0.05, 0.002), (0.9, 0.1)])
def test_the_scaling_laws_fit_is_exact_without_noise(s: float, k: float):
    curve = usl.Usl(250, s, k)
    found = usl.fit({n: curve.throughput_hz(n) for n in (1, 2, 3, 4, 6, 8)})
    assert (found.rate_hz, found.contention, found.coherency) == (
        pytest.approx(250),
        pytest.approx(s, abs=1e-9),
        pytest.approx(k, abs=1e-9),
    )


@given(st.dictionaries(st.integers(1, 64), st.floats(0.1, 1e4), min_size=3, max_size=10))
def test_no_part_of_a_fitted_scaling_law_is_negative(points: dict[int, float]):
    # Given any throughputs, such as ones that grow faster than the loads
    found = usl.fit(points)
    assert found.rate_hz > 0
    assert min(found.contention, found.coherency) >= 0
    assert all(math.isfinite(found.throughput_hz(n)) for n in points)


def test_a_scaling_law_turns_where_more_does_no_more():
    curve = usl.Usl(100, 0.1, 0.01)
    assert curve.best_n == pytest.approx(math.sqrt(0.9 / 0.01))
    assert curve.throughput_hz(curve.best_n) > max(curve.throughput_hz(curve.best_n + d) for d in (-0.5, 0.5))
    assert usl.Usl(100, 0.1, 0).best_n == math.inf
    with pytest.raises(ValueError, match="three"):
        usl.fit({1: 1.0, 2: 2.0})


def test_repeats_to_decide_of_a_plain_mean_of_a_known_case():
    # Given a mean 1 above the bound and a standard deviation of 2; then t(n-1) 2 / sqrt(n) < 1 from n = 18 on
    assert repeats_to_decide([-1.0, 1.0, 3.0], 0.0, logs=False) == 18
    # And values that are infinite promise nothing
    assert repeats_to_decide([1.0, math.inf], 5.0) is None
