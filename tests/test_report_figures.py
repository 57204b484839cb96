"""Claims that are no ratios, curves, the scaling law, and the advice on top: what they say is what was measured."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from dataclasses import replace

import pytest

from experiments.catalogue import EXPERIMENTS
from lab.cli import estimate_json
from lab.model import (
    Arms,
    BreakEven,
    Claim,
    Curve,
    Estimate,
    Experiment,
    Finding,
    FrozenArgs,
    Ledger,
    Level,
    Load,
    Measure,
    Run,
    ScalingLaw,
    Setup,
    Suite,
    Verdict,
)
from lab.predictions import convoy_s
from lab.report import curves, figures
from lab.report.answers import ROWS, answers
from lab.report.charts import forest, line_style
from lab.report.explain import explanation
from lab.report.groups import groups
from lab.report.page import page
from lab.report.scaling import law, laws
from lab.report.tables import Table
from lab.report.units import TIMES, sure
from lab.report.words import conditions, measure
from lab.usl import Usl
from lab.verdict import judge_all
from producer.pacers import Burst
from producer.payloads import Calibrated, Text
from tests.fakes import make_resources, make_run
from tests.simulator import run_experiment
from tests.test_report import Outline, printed

BASE = Setup(job="spin", args=FrozenArgs({"loops": Calibrated(ms=10)}), pacer=Burst(8), pool="prefork")


def claim_about(measure: Measure, **bounds: float) -> Claim:
    return Claim(id="a/b", says="So it is.", measure=measure, why="Because.", advice="Do it.", **bounds)


def finding_of(measure: Measure, estimate: Estimate | None, **bounds: float) -> Finding:
    return Finding(claim_about(measure, **bounds), estimate, Verdict.SUPPORTED, "the whole interval")


EVEN = BreakEven(of={"pool": "prefork"}, to={"pool": "serial"})
CASES = [
    (Level("round_us", {}), {"at_most": 1.0}, "at most 1 µs"),
    (Level("slots_busy", {}), {"at_least": 0.6}, "at least 0.6 of the slots' time"),
    (Level("latency_p99_s", {}), {"at_most": 0.05}, "at most 50 ms"),
    (Level("pss_bytes", {}), {"at_most": 2.0 * 2**20}, "at most 2 MiB"),
    (EVEN, {"at_most": 10.0}, "at most 10 ms"),
    (ScalingLaw({}), {"at_most": 0.1}, "at most 0.1 of the curve"),
]


@pytest.mark.parametrize(("measure", "bounds", "shown"), CASES)
def test_a_bound_carries_its_unit_wherever_it_is_shown(measure: Measure, bounds: dict[str, float], shown: str) -> None:
    claim = claim_about(measure, **bounds)
    experiment = Experiment("a", "Is it so?", BASE, (), (claim,))
    finding = Finding(claim, Estimate(0.7, 0.65, 0.75, 3), Verdict.SUPPORTED, f"the whole interval is {claim.bound}")
    suite = Suite({"cores": 2}, ("a",), (), 0, {"a": 3})
    assert figures.bound(claim) == shown
    assert shown in explanation(experiment, claim)["prediction"]
    reads, prints = Outline(page(suite, [finding], [experiment])).reads, printed(suite, experiment, [finding])
    for text in (reads, " ".join(prints.split())):
        assert f"the whole interval is {shown}" in text
    assert TIMES not in figures.brief(finding)


def test_advice_fits_the_verdict_that_it_stands_beneath() -> None:
    claim = replace(claim_about(Level("round_us", {}), at_most=1.0), advice="Do.", otherwise="Do not.")
    experiment = Experiment("a", "Is it so?", BASE, (), (claim,))
    for verdict, own, other in ((Verdict.SUPPORTED, "Do.", "Do not."), (Verdict.REFUTED, "Do not.", "Do.")):
        finding = Finding(claim, Estimate(0.7, 0.65, 0.75, 3), verdict, "so it is")
        # Then page and explanation say what to do, and not the opposite
        reads = Outline(page(Suite({"cores": 2}, ("a",), (), 0, {"a": 3}), [finding], [experiment])).reads
        assert own in reads
        assert other not in reads
        assert explanation(experiment, claim, verdict)["what to do about it"] == own
        assert other not in explanation(experiment, claim, verdict).values()
    # And before there is a verdict both are told
    assert {"Do.", "Do not."} <= set(explanation(experiment, claim).values())


def test_a_claim_is_explained_by_its_own_jobs_and_by_which_setups_take_turns() -> None:
    def method(claim_id: str) -> str:
        experiment = EXPERIMENTS[claim_id.partition("/")[0]]
        return explanation(experiment, next(c for c in experiment.claims if c.id == claim_id))["method"]

    watched = method("observer-cost/threads-digest")
    assert "digest (about 10 ms of one core)" in watched
    assert "noop" not in watched
    assert "differ in marks alone side by side" in watched
    assert "spin (about 25 ms of one core)" in method("gil-cpu/threads")
    assert "side by side" not in method("gil-cpu/threads")


@pytest.mark.parametrize(
    ("estimate", "shown"),
    [
        (Estimate(8.3, 7.9, 8.8, 5), "8.30 ms [7.90-8.80]"),
        (Estimate(0.3, 0.3, 0.3, 5), "0.300 ms or less [0.300-0.300]"),
        (
            Estimate(math.inf, 3.0, math.inf, 5),
            "never within the lengths measured in some repeats; in others from 3.00",
        ),
        (Estimate(math.inf, math.inf, math.inf, 5), "never within the lengths measured in any of 5 repeats"),
        (Estimate(8.3, 0.0, math.inf, 1), "8.30 ms one repeat: no interval"),
    ],
)
def test_a_break_even_says_where_it_pays_or_that_it_never_does(estimate: Estimate, shown: str) -> None:
    assert figures.brief(finding_of(EVEN, estimate, at_most=10)).replace("\N{EN DASH}", "-").startswith(shown)


def test_a_level_of_zero_is_a_figure_and_its_interval_is_not_lost() -> None:
    finding = finding_of(Level("lost_updates", {}), Estimate(0.0, 0.0, 0.0, 3), at_most=0)
    assert figures.brief(finding) == "0 of the additions [0\N{EN DASH}0]"
    assert figures.bound(finding.claim) == "at most 0 of the additions"


def test_the_chart_of_ratios_has_no_place_for_anything_else() -> None:
    assert forest("k", [finding_of(Level("round_us", {}), Estimate(0.0, -0.1, 0.1, 3))], []) is None


def test_endless_intervals_can_be_written_as_json() -> None:
    assert json.dumps(estimate_json(Estimate(0.5, -math.inf, math.inf, 1)), allow_nan=False)


def rated(setup: Setup, hz: float, *, repeat: int = 0) -> Run:
    """A run that did so many jobs in a second."""
    return make_run(
        setup=setup, repeat=repeat, ledger=Ledger(round(hz), round(hz), 0, 0), resources=make_resources(wall_s=1.0)
    )


def test_a_curve_divides_inside_each_repeat_by_what_lies_at_the_same_x() -> None:
    # Given a machine twice as fast in the second repeat, on which two slots do 1.5 times the work of one
    curve = Curve("c", y="throughput_hz", x="work_ms", where={"concurrency": 2}, to={"concurrency": 1})
    runs = [
        rated(replace(BASE, args=FrozenArgs({"loops": Calibrated(ms=ms)}), concurrency=c), hz * pace, repeat=repeat)
        for repeat, pace in enumerate((1, 2))
        for ms, one in ((1, 1000), (10, 100))
        for c, hz in ((1, one), (2, one * 1.5))
    ]
    # Then each point is 1.5, without any doubt
    (line,) = curves.lines(curve, runs)
    assert [(p.x, p.y.value, p.y.low, p.y.high) for p in line.points] == [
        (x, *([pytest.approx(1.5)] * 3)) for x in (1, 10)
    ]


def test_lines_are_named_by_what_differs_and_nothing_else() -> None:
    pools = [("prefork", True, 2), ("serial", False, 1), ("processes", False, 2)]
    setups = [
        replace(BASE, pool=pool, queued=queued, concurrency=c, args=FrozenArgs({"loops": Calibrated(ms=ms)}))
        for pool, queued, c in pools
        for ms in (1, 10)
    ]
    found = curves.lines(Curve("c", y="throughput_hz", x="work_ms"), [rated(setup, 10) for setup in setups])
    assert [line.name for line in found] == ["prefork", "bare serial", "bare processes"]
    assert [len(line.points) for line in found] == [2, 2, 2]


def test_a_line_of_workers_apart_stays_one_line_however_many_slots_they_have() -> None:
    hogs = [Load("spin", FrozenArgs({"loops": Calibrated(ms=4)}), Burst(n)) for n in (1, 2)]
    here = [replace(BASE, beside=hog) for hog in hogs]
    apart = [replace(BASE, beside=hog, apart="prefork", apart_concurrency=hog.pacer.count) for hog in hogs]
    runs = [make_run(setup=setup) for setup in (*here, *apart)]
    drawn = curves.lines(Curve("t", "boot_s", "computing"), runs)
    assert [[point.x for point in line.points] for line in drawn] == [[1, 2], [1, 2]]
    assert len({line.name for line in drawn}) == 2


def test_loads_that_grow_with_the_slots_do_not_break_a_line() -> None:
    setups = [replace(BASE, concurrency=c, pacer=Burst(20 * c)) for c in (1, 10)]
    (line,) = curves.lines(Curve("c", y="throughput_hz", x="slots"), [rated(setup, 10) for setup in setups])
    assert [p.x for p in line.points] == [1, 10]


def test_a_prediction_is_drawn_in_the_charts_own_unit_and_compared_with_the_points() -> None:
    experiment = EXPERIMENTS["convoy"]
    curve = next(c for c in experiment.charts if c.predicted and c.x == "switch_interval_ms")

    suite = run_experiment(experiment, quick=True, cores=2)
    measured = curves.lines(curve, suite.runs)
    (theory,) = curves.theories(curve, measured)

    points = [p for line in measured for p in line.points]
    assert dict(theory.says) == {p.x: pytest.approx(1e3 * convoy_s(p.setup)) for p in points}
    chart = curves.draw("k", curve, suite.runs)
    assert chart
    assert "measured over predicted is" in chart.caption
    assert theory.name in " ".join(chart.drawing.split())


@pytest.mark.parametrize("log", [True, False])
def test_a_curve_of_zeros_and_one_of_a_single_repeat_can_be_drawn(log: bool) -> None:
    curve = Curve("c", y="gil_on", x="slots", log=log)
    runs = [
        make_run(setup=replace(BASE, concurrency=c), resources=make_resources(gil_enabled=False)) for c in (1, 2, 4)
    ]
    chart = curves.draw("k", curve, runs)
    assert chart
    assert "One repeat: no intervals." in chart.caption
    assert curves.draw("k", curve, runs[:1]) is None


def test_a_break_even_is_marked_on_its_curve_with_its_interval() -> None:
    experiment = EXPERIMENTS["break-even"]
    curve = next(c for c in experiment.charts if isinstance(c, Curve))
    suite = run_experiment(experiment, quick=True, cores=2)
    findings = judge_all([experiment], suite)
    reached = [f for f in findings if isinstance(f.claim.measure, BreakEven) and f.estimate]
    assert reached
    plain, marked = (curves.draw("k", curve, suite.runs, findings=some) for some in ((), findings))
    assert plain
    assert marked
    for finding in reached:
        # Then its name and figure are beneath the chart, and its mark is in it
        name = finding.claim.id.rpartition("/")[2]
        assert f"Break-even, {name} (diamond): {sure(finding.estimate)} ms." in marked.caption
        assert f">{name}<" in marked.drawing
        assert f">{name}<" not in plain.drawing
    # And it is on no chart of something else
    assert curves.meetings(replace(curve, x="slots"), findings, suite.runs) == []
    assert curves.meetings(replace(curve, y="boot_s"), findings, suite.runs) == []


TRUE = Usl(1000, 0.05, 0.002)


def scaled(loads: tuple[int, ...], repeats: int = 3, true: Usl = TRUE) -> list[Run]:
    return [
        rated(replace(BASE, concurrency=n), true.throughput_hz(n), repeat=repeat)
        for repeat in range(repeats)
        for n in loads
    ]


def test_the_scaling_laws_coefficients_are_found_again() -> None:
    table = law(ScalingLaw({"pool": "prefork"}), scaled((1, 2, 3, 4, 6, 8, 64)), cores=8)
    assert isinstance(table, Table)
    cells = {row[0]: row[1].partition(" ")[0] for row in table.rows}
    assert float(cells["\N{GREEK SMALL LETTER SIGMA}, contention"]) == pytest.approx(0.05, abs=0.005)
    assert float(cells["\N{GREEK SMALL LETTER KAPPA}, coherency"]) == pytest.approx(0.002, abs=0.0005)
    # And where the best n lies beyond all that was fitted, it is not guessed at
    assert dict(row[:2] for row in table.rows)["N*, best n"] == "beyond 8, the largest load fitted: not extrapolated"


def test_the_best_n_within_the_cores_has_an_interval() -> None:
    true = Usl(1000, 0.05, 0.04)
    table = law(ScalingLaw({"pool": "prefork"}), scaled((1, 2, 3, 4, 6, 8), true=true), cores=8)
    assert isinstance(table, Table)
    cell = dict(row[:2] for row in table.rows)["N*, best n"]
    assert float(cell.partition(" ")[0]) == pytest.approx(math.sqrt(0.95 / 0.04), rel=0.05)
    assert "[" in cell


def test_the_fitted_law_is_drawn_within_the_cores_and_no_further() -> None:
    curve = next(c for c in EXPERIMENTS["scaling-law"].charts if isinstance(c, Curve))
    runs = scaled((1, 2, 3, 4, 6, 8, 64))
    (theory,) = curves.theories(curve, curves.lines(curve, runs), cores=8)
    assert theory.says == {n: pytest.approx(TRUE.throughput_hz(n), rel=0.05) for n in (1, 2, 3, 4, 6, 8)}
    chart = curves.draw("k", curve, runs, cores=8)
    assert chart
    assert theory.name in " ".join(chart.drawing.split())
    assert "beyond them nothing is predicted" in chart.caption
    # And with too few loads within the cores nothing is
    assert curves.theories(curve, curves.lines(curve, runs), cores=4) == []


def test_too_few_loads_within_the_cores_are_one_sentence_and_no_table() -> None:
    claims = [claim_about(ScalingLaw({"pool": "prefork"})), claim_about(Level("boot_s", {}))]
    assert list(laws(claims, scaled((1, 2, 3, 4, 6, 8)), cores=2)) == [
        "Universal Scalability Law: 2 loads lie within this machine's 2 cores; 6 are needed; nothing is said beyond "
        "the cores."
    ]


def known(verdicts: Mapping[str, Verdict]) -> list[Finding]:
    claims = {c.id: c for e in EXPERIMENTS.values() for c in e.claims}
    return [Finding(claims[name], Estimate(1.5, 1.4, 1.6, 5), verdict, "x") for name, verdict in verdicts.items()]


def test_every_rule_rests_on_claims_that_exist_and_has_words_for_each_outcome() -> None:
    ids = {claim.id for e in EXPERIMENTS.values() for claim in e.claims}
    for row in ROWS:
        assert set(row.rests_on) <= ids
        for rule in row.rules:
            assert set(rule.says) == {"".join(c) for c in itertools.product("sr", repeat=len(rule.rests_on))}


def test_advice_follows_the_verdicts_and_names_what_was_not_measured() -> None:
    said = answers(known({"gil-cpu/threads": Verdict.SUPPORTED, "gil-cpu/prefork": Verdict.SUPPORTED}))
    assert [answer.work for answer in said] == ["CPU-bound work", "I/O-bound work", "Mixed work", "Short jobs"]
    assert [part.says for part in said[0].parts] == [
        "In pure Python use prefork with one process a core; a second thread adds next to nothing.",
        "Not measured: gil-release.",
    ]
    assert [part.says for part in said[1].parts] == ["Not measured: io-fanout, io-slots."]


@pytest.mark.parametrize("verdict", [Verdict.INVALID, Verdict.INCONCLUSIVE])
def test_no_advice_is_given_on_what_was_not_decided(verdict: Verdict) -> None:
    said = answers(known({"gil-cpu/threads": Verdict.SUPPORTED, "gil-cpu/prefork": verdict}))
    assert said[0].parts[0].says == f"No advice: gil-cpu/prefork is {verdict.value}."
    said = answers(known({"gil-cpu/threads": Verdict.SUPPORTED}))
    assert said[0].parts[0].says == "No advice: gil-cpu/prefork is not measured."


def test_a_suite_that_bears_on_no_advice_has_none() -> None:
    assert answers(known({"observer-cost/solo-noop": Verdict.SUPPORTED})) == []


def test_advice_comes_first_on_page_and_terminal_and_links_to_its_claims() -> None:

    experiment = EXPERIMENTS["gil-cpu"]
    suite = run_experiment(experiment, quick=True, cores=2)
    html = page(suite, judge_all([experiment], suite), [experiment])
    outline = Outline(html)
    assert "claim-gil-cpu-threads" in outline.targets
    assert set(outline.targets) <= set(outline.ids)
    prints = " ".join(printed(suite, experiment).split())
    for text in (outline.reads, prints):
        assert text.index("CPU-bound work →") < text.index(experiment.claims[0].says)
        assert "a second thread adds next to nothing" in text
        assert "good for a look, not for a decision" in text


def test_an_experiments_own_charts_stand_on_its_page() -> None:

    arms = (Arms({"concurrency": (1, 2)}),)
    experiment = Experiment(
        "a", "Is it so?", BASE, arms, (), charts=(Curve("Jobs <against> slots", "boot_s", "slots"),)
    )
    html = page(run_experiment(experiment, quick=True, cores=2), [], [experiment])
    assert "Jobs <against> slots." in Outline(html).reads


def test_many_kinds_of_work_are_summed_up_in_a_few_lines() -> None:
    setups = [
        replace(BASE, args=FrozenArgs({"loops": Calibrated(ms=ms)}), beside=beside)
        for ms in (1, 3, 10)
        for beside in (None, Load("spin", FrozenArgs({"loops": Calibrated(ms=400)}), Burst(2)))
    ]
    assert conditions(groups([make_run(setup=setup) for setup in setups])) == [
        "Jobs: spin (about 1 ms of one core); spin (about 3 ms of one core); spin (about 10 ms of one core).",
        "Load: 8 jobs, all due at once.",
        "Beside them: 2 spin jobs (about 400 ms of one core).",
    ]


def test_setups_stand_in_the_order_of_their_sizes_and_say_what_differs_in_few_words() -> None:
    sizes = [replace(BASE, job="echo", args=FrozenArgs({"payload": Text(n)})) for n in (1_000_000, 1_000, 100_000)]
    assert [group.label for group in groups([make_run(setup=setup) for setup in sizes])] == [
        f"prefork 1 \N{MIDDLE DOT} payload of {size}" for size in ("1 kB", "100 kB", "1 MB")
    ]
    hogs = [replace(BASE, beside=Load("spin", FrozenArgs({"loops": Calibrated(ms=ms)}), Burst(1))) for ms in (4, 400)]
    assert [group.label for group in groups([make_run(setup=setup) for setup in (BASE, *hogs)])] == [
        f"prefork 1 \N{MIDDLE DOT} {beside}"
        for beside in ("nothing beside", "beside 1 spin of 4 ms", "beside 1 spin of 400 ms")
    ]


def test_no_two_lines_of_a_chart_look_alike_even_without_colour() -> None:
    shapes = [(style["marker"], str(style["linestyle"])) for style in map(line_style, range(24))]
    assert len(set(shapes)) == len(shapes)


def test_several_setups_behind_a_level_are_a_plain_mean() -> None:
    setups = [replace(BASE, concurrency=c) for c in (1, 2)]
    said = measure(Level("boot_s", {"pool": "prefork"}), groups([make_run(setup=setup) for setup in setups]))
    assert said == "time to start: prefork (mean of 2 setups)"
