"""What the numbers say of a claim: the whole interval is judged, never the point."""

import math
from dataclasses import replace

import pytest

from experiments import EXPERIMENTS
from lab.model import Claim, Fault, Ratio, Run, Verdict
from lab.verdict import judge, judge_all
from tests.fakes import SETUP, make_run
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
    assert "about 17 repeats would decide" in because


def test_a_claim_right_at_its_bound_is_not_promised_a_decision():
    because = judge(claim(at_least=2.0), runs(1.0, 4.0, 1.0, 4.0), cores=2).because
    assert "more repeats are unlikely to decide" in because


def test_after_one_repeat_more_repeats_are_the_remedy():
    because = judge(claim(at_least=1.6), runs(2.0), cores=2).because
    assert "unlikely" not in because
    assert "repeat" in because


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
