"""What the numbers say of a claim: the whole interval is judged, never the point."""

import math
from dataclasses import replace

import pytest

from experiments.catalogue import EXPERIMENTS
from lab.compare import compare, welch
from lab.model import BreakEven, Claim, Estimate, Fault, FrozenArgs, Level, Ratio, Run, Verdict
from lab.verdict import judge, judge_all
from producer.payloads import Calibrated
from tests.fakes import SETUP, make_run, make_samples
from tests.simulator import run_experiment

ONE, TWO, OTHER = (replace(SETUP, concurrency=n) for n in (1, 2, 3))
RATIO = Ratio("throughput_hz", of={"concurrency": 2}, to={"concurrency": 1})


def claim(*, at_least: float = -math.inf, at_most: float = math.inf, needs_cores: int = 1) -> Claim:
    return Claim(
        id="made-up/twice",
        says="Two slots do twice as much as one.",
        measure=RATIO,
        why="So it was made up.",
        advice="Take two.",
        at_least=at_least,
        at_most=at_most,
        needs_cores=needs_cores,
    )


def runs(*ratios: float) -> list[Run]:
    """Runs in which two slots are `ratios` times as fast as one, repeat by repeat."""
    made = []
    for repeat, ratio in enumerate(ratios):
        pace_s = 1.0 + repeat
        made += [
            make_run(setup=TWO, repeat=repeat, wall_s=pace_s),
            make_run(setup=ONE, repeat=repeat, wall_s=pace_s * ratio),
        ]
    return made


STEADY = (1.98, 2.0, 2.02, 1.99, 2.01)  # 95 % interval 1.98 … 2.02
WILD = (1.2, 2.0, 3.0, 1.5, 2.6)  # 95 % interval 1.3 … 3.0


@pytest.mark.parametrize(
    ("ratios", "bound", "verdict"),
    [
        (STEADY, {"at_least": 1.6}, Verdict.SUPPORTED),
        (STEADY, {"at_least": 2.5}, Verdict.REFUTED),
        (STEADY, {"at_least": 2.0}, Verdict.INCONCLUSIVE),
        (STEADY, {"at_most": 2.5}, Verdict.SUPPORTED),
        (STEADY, {"at_most": 1.6}, Verdict.REFUTED),
        (STEADY, {"at_most": 2.0}, Verdict.INCONCLUSIVE),
        # The point is well inside the bound, but the interval is not: no verdict
        (WILD, {"at_least": 1.6}, Verdict.INCONCLUSIVE),
        (WILD, {"at_most": 2.5}, Verdict.INCONCLUSIVE),
        # The point is outside, but the interval is not
        (WILD, {"at_least": 2.5}, Verdict.INCONCLUSIVE),
        (WILD, {"at_most": 1.6}, Verdict.INCONCLUSIVE),
        (WILD, {"at_least": 1.1}, Verdict.SUPPORTED),
        (WILD, {"at_least": 4.0}, Verdict.REFUTED),
        ((2.0,), {"at_least": 1.0}, Verdict.INCONCLUSIVE),
        ((2.0,), {"at_most": 3.0}, Verdict.INCONCLUSIVE),
        ((), {"at_least": 1.0}, Verdict.INVALID),
    ],
)
def test_the_whole_interval_is_judged(ratios, bound, verdict: Verdict):
    finding = judge(claim(**bound), runs(*ratios), cores=2)
    assert finding.verdict is verdict, finding.because
    assert "\n" not in finding.because
    assert (finding.estimate.n if finding.estimate else 0) == len(ratios)


def test_a_verdict_says_what_was_predicted():
    assert "at least 1.6" in judge(claim(at_least=1.6), runs(*STEADY), cores=2).because
    assert "at most 1.6 was predicted" in judge(claim(at_most=1.6), runs(*STEADY), cores=2).because


def test_an_undecided_claim_says_how_many_repeats_would_decide():
    # Given a mean 0.197 above the bound and a scatter of 0.379, in logarithms: t(n-1) 0.379 / sqrt(n) < 0.197 from 17
    because = judge(claim(at_least=1.6), runs(*WILD), cores=2).because
    assert "about 12 more repeats than these 5 would decide, with even odds: --repeats 17" in because


def test_a_claim_right_at_its_bound_is_not_promised_a_decision():
    because = judge(claim(at_least=2.0), runs(1.0, 4.0, 1.0, 4.0), cores=2).because
    assert "more repeats are unlikely to decide" in because


def test_after_one_repeat_more_repeats_are_the_remedy():
    because = judge(claim(at_least=1.6), runs(2.0), cores=2).because
    assert "unlikely" not in because
    assert "4 more" in because
    assert "--repeats 5" in because


def test_what_was_not_measured_says_how_to_measure_it():
    because = judge(claim(at_least=1.6), [], cores=2).because
    assert "sidestep run made-up" in because
    assert "--out" in because


def test_a_machine_with_too_few_cores_cannot_judge():
    finding = judge(claim(at_least=1.6, needs_cores=4), runs(*STEADY), cores=2)
    assert finding.verdict is Verdict.INVALID
    assert "4" in finding.because
    assert "2" in finding.because
    assert judge(claim(at_least=1.6, needs_cores=4), runs(*STEADY), cores=4).verdict is Verdict.SUPPORTED


@pytest.mark.parametrize("at", range(4))
def test_one_fault_on_either_side_of_one_repeat_makes_a_claim_invalid(at: int):
    measured = runs(2.0, 2.0)
    measured[at] = replace(measured[at], faults=(Fault("late_producer", "the producer was late: lower the rate"),))
    finding = judge(claim(at_least=1.6), measured, cores=2)
    assert finding.verdict is Verdict.INVALID
    assert finding.because == "the producer was late: lower the rate"
    # And the number is shown all the same
    assert finding.estimate
    assert finding.estimate.value == pytest.approx(2)


def test_several_faults_are_counted_and_one_that_repeats_is_said_once():
    late, lost = Fault("late_producer", "late"), Fault("incomplete_ledger", "lost")
    measured = [replace(run, faults=(late, lost)) for run in runs(2.0, 2.0)]
    assert judge(claim(at_least=1.6), measured, cores=2).because == "late (and 1 more)"


def test_a_fault_on_a_run_that_the_claim_does_not_look_at_is_none_of_its_business():
    stranger = make_run(setup=OTHER, faults=(Fault("late_producer", "late"),))
    finding = judge(claim(at_least=1.6), [*runs(*STEADY), stranger], cores=2)
    assert finding.verdict is Verdict.SUPPORTED


@pytest.mark.parametrize(
    ("measure", "check", "verdict"),
    [
        ("latency_p50_s", "late_tail", Verdict.SUPPORTED),
        ("fetch_p50_s", "late_tail", Verdict.SUPPORTED),
        ("latency_p99_s", "late_tail", Verdict.INVALID),
        ("throughput_hz", "late_tail", Verdict.INVALID),
        ("latency_p50_s", "late_producer", Verdict.INVALID),
    ],
)
def test_one_late_job_in_a_hundred_spoils_no_median_and_all_else(measure: str, check: str, verdict: Verdict):
    samples = make_samples(sent_ns=[0, 0], received_ns=[3_000_000] * 2, ended_ns=[9_000_000] * 2)
    measured = [replace(run, samples=samples, faults=(Fault(check, "late"),)) for run in runs(*STEADY)]
    finding = judge(replace(claim(at_least=0), measure=replace(RATIO, measure=measure)), measured, cores=2)
    assert finding.verdict is verdict
    assert (finding.because == "late") is (verdict is Verdict.INVALID)


def level_runs(*lost: float) -> list[Run]:
    """Repeats in which such a share of 100 additions is missing at the end."""
    setup = replace(ONE, args=FrozenArgs(rounds=50))
    return [
        make_run(setup=setup, repeat=n, samples=make_samples(ended_ns=[1], value=[round(100 * (1 - share))]))
        for n, share in enumerate(lost)
    ]


@pytest.mark.parametrize(
    ("lost", "bound", "verdict"),
    [
        # Nothing lost, ever, is just what "at most 0" says
        ((0, 0, 0, 0, 0), {"at_most": 0.0}, Verdict.SUPPORTED),
        ((0, 0, 0, 0, 0), {"at_least": 0.01}, Verdict.REFUTED),
        ((0.5, 0.52, 0.49, 0.5, 0.51), {"at_most": 0.0}, Verdict.REFUTED),
        ((0.5, 0.52, 0.49, 0.5, 0.51), {"at_least": 0.01}, Verdict.SUPPORTED),
        # One loss in one repeat is not nothing, and not enough to be sure either
        ((0, 0, 0, 0, 0.1), {"at_most": 0.0}, Verdict.INCONCLUSIVE),
        ((0,), {"at_most": 0.0}, Verdict.INCONCLUSIVE),
        ((), {"at_most": 0.0}, Verdict.INVALID),
    ],
)
def test_a_level_is_judged_as_it_is_and_may_be_nothing(lost, bound, verdict: Verdict):
    level = replace(claim(**bound), measure=Level("lost_updates", of={"concurrency": 1}))
    finding = judge(level, level_runs(*lost), cores=2)
    assert finding.verdict is verdict, finding.because
    assert "\n" not in finding.because


def test_an_undecided_level_counts_the_repeats_on_its_own_scale():
    # Given a mean of 2 % above the bound and a scatter of 4.5 %: t(n-1) 4.47 / sqrt(n) < 2 from n = 22 on
    level = replace(claim(at_most=0.0), measure=Level("lost_updates", of={"concurrency": 1}))
    because = judge(level, level_runs(0, 0, 0, 0, 0.1), cores=2).because
    assert "--repeats 22 in a new suite" in because


def lengths(short: float, long: float, *, repeat: int) -> list[Run]:
    """Runs of jobs of 1 and 100 ms in which two slots are so many times as fast as one."""
    runs = []
    for ms, ratio in ((1.0, short), (100.0, long)):
        args = FrozenArgs(loops=Calibrated(ms))
        runs += [
            make_run(setup=replace(ONE, args=args), repeat=repeat, wall_s=ratio),
            make_run(setup=replace(TWO, args=args), repeat=repeat, wall_s=1.0),
        ]
    return runs


PAYS, NEVER = (0.5, 2.0), (0.5, 0.9)  # from 10 ms on, and never
SOON = (0.9, 2.0)  # from some 2 ms on


def test_a_break_even_without_an_end_is_not_promised_a_decision_and_says_what_else_helps():
    # Given one repeat in which it never paid, and two in which it did
    even = replace(claim(at_most=10.0), measure=BreakEven(of={"concurrency": 2}, to={"concurrency": 1}))
    measured = [run for n, ratios in enumerate((SOON, SOON, NEVER)) for run in lengths(*ratios, repeat=n)]
    because = judge(even, measured, cores=2).because
    assert "in 1 of 3 repeats it never paid" in because
    assert "no number of more repeats" in because
    assert "--quick" in because


@pytest.mark.parametrize(
    ("ratios", "at_most", "verdict"),
    [
        ((PAYS, PAYS, PAYS), 11, Verdict.SUPPORTED),
        ((PAYS, PAYS, PAYS), 9, Verdict.REFUTED),
        ((NEVER, NEVER, NEVER), 1000, Verdict.REFUTED),
        ((PAYS, PAYS, NEVER), 1000, Verdict.INCONCLUSIVE),
        ((PAYS, PAYS, NEVER), 9, Verdict.REFUTED),
        ((NEVER,), 1000, Verdict.INCONCLUSIVE),
        ((PAYS,), 1000, Verdict.INCONCLUSIVE),
        ((), 1000, Verdict.INVALID),
    ],
)
def test_a_break_even_that_is_never_reached_is_beyond_every_bound(ratios, at_most: float, verdict: Verdict):
    even = replace(claim(at_most=at_most), measure=BreakEven(of={"concurrency": 2}, to={"concurrency": 1}))
    measured = [run for n, pair in enumerate(ratios) for run in lengths(*pair, repeat=n)]
    finding = judge(even, measured, cores=2)
    assert finding.verdict is verdict, finding.because
    assert "\n" not in finding.because


def test_a_fault_on_a_run_that_a_level_looks_at_makes_it_invalid():
    level = replace(claim(at_most=0.0), measure=Level("lost_updates", of={"concurrency": 1}))
    faulty = [replace(run, faults=(Fault("incomplete_ledger", "lost"),)) for run in level_runs(0, 0)]
    assert judge(level, faulty, cores=2).verdict is Verdict.INVALID
    # And one of a setup that it does not look at does not
    stranger = make_run(setup=OTHER, faults=(Fault("incomplete_ledger", "lost"),))
    assert judge(level, [*level_runs(0, 0), stranger], cores=2).verdict is Verdict.SUPPORTED


def test_a_change_is_the_ratio_of_two_suites_with_its_interval():
    # Given a second suite whose figures are twice those of the first, and scatter as they do
    first = [0.95, 1.0, 1.05]
    change = welch(first, [2 * value for value in first])
    assert change is not None
    assert change.value == pytest.approx(2)
    assert 1.7 < change.low < 2 < change.high < 2.3
    assert welch([1.0, 1.0], [3.0, 3.0]) == Estimate(pytest.approx(3), pytest.approx(3), pytest.approx(3), 2)
    assert welch([1.0], first) is None


@pytest.mark.parametrize("name", ["races", "no-gil", "break-even"])
def test_suites_whose_figures_are_nothing_or_endless_can_be_compared(name: str):
    # Given claims about levels of exactly 0, and break-evens that are never reached
    experiment = EXPERIMENTS[name]
    suite = run_experiment(experiment, quick=True)
    slow = replace(suite, runs=tuple(slowed(run) for run in suite.runs))
    changes = compare([experiment], suite, slow)
    # Then every claim has its two findings, and a ratio where there is one
    assert [change.after.claim for change in changes] == list(experiment.claims)
    for change in changes:
        values = [finding.estimate.value for finding in (change.before, change.after) if finding.estimate]
        assert change.ratio is None or all(0 < value < math.inf for value in values)


def slowed(run: Run) -> Run:
    """The same run, but that workers behind a queue, and processes, take ten times as long."""
    factor = 1 if run.trial.setup.pool == "serial" else 10
    return replace(run, resources=replace(run.resources, wall_s=factor * run.resources.wall_s))


def verdicts(name: str, **how) -> dict[str, Verdict]:
    experiment = EXPERIMENTS[name]
    findings = judge_all(EXPERIMENTS.values(), run_experiment(experiment, **how))
    assert [finding.claim for finding in findings] == list(experiment.claims)
    return {finding.claim.id.removeprefix(f"{name}/"): finding.verdict for finding in findings}


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("cores", [2, 8])
def test_the_lab_finds_the_truth_of_a_simulated_gil(cores: int, quick: bool):
    assert set(verdicts("gil-cpu", cores=cores, quick=quick).values()) == {Verdict.SUPPORTED}


def test_the_lab_finds_that_a_simulated_interpreter_has_no_gil():
    found = verdicts("gil-cpu", gil=False)
    assert {name: found[name] for name in ("threads", "bare-threads")} == dict.fromkeys(
        ("threads", "bare-threads"), Verdict.REFUTED
    )
    assert {name: found[name] for name in ("prefork", "bare-processes")} == dict.fromkeys(
        ("prefork", "bare-processes"), Verdict.SUPPORTED
    )


def test_the_lab_does_not_judge_speed_ups_on_one_core():
    assert set(verdicts("gil-cpu", cores=1).values()) == {Verdict.INVALID}


def test_the_lab_finds_what_marks_cost():
    # Given marks that cost 5 microseconds, as measured; then they are cheap, and at a millisecond they are not
    assert set(verdicts("observer-cost", mark_s=5e-6).values()) == {Verdict.SUPPORTED}
    assert set(verdicts("observer-cost", mark_s=1e-3, quick=True).values()) == {Verdict.REFUTED}


def test_only_experiments_that_were_asked_for_are_judged():
    suite = run_experiment(EXPERIMENTS["gil-release"])
    judged = judge_all(EXPERIMENTS.values(), suite)
    assert {finding.claim.id.partition("/")[0] for finding in judged} == {"gil-release"}
    # And one that was asked for and not run is not left out in silence
    judged = judge_all(EXPERIMENTS.values(), replace(suite, experiments=("gil-cpu",)))
    assert {finding.verdict for finding in judged} == {Verdict.INVALID}


def test_a_claim_that_cannot_be_tested_here_says_why():
    # Given an experiment of which the arms on another interpreter were left out, as there is none
    suite = run_experiment(EXPERIMENTS["no-gil"])
    kept = tuple(run for run in suite.runs if run.trial.setup.python is None)
    without = replace(suite, runs=kept, left_out={"no-gil · threads 1": "no such Python", "gil-cpu · x": "another"})
    # Then each claim is there, INVALID, with that reason and no other experiment's
    findings = judge_all(EXPERIMENTS.values(), without)
    assert [finding.claim for finding in findings] == list(EXPERIMENTS["no-gil"].claims)
    assert {(f.verdict, f.because) for f in findings} == {(Verdict.INVALID, "it cannot be tested here: no such Python")}
