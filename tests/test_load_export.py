"""What other programs get of a load test, and what two of them side by side say."""

import csv
import io
import json
import math
import os
import random
import re
import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from lab.cli import cli
from lab.load import export, hdr
from lab.load.batches import Side, chance, from_batches, from_runs, holm, ratio
from lab.load.compare import Change, compare
from lab.load.limit import answer
from lab.load.measures import BY_NAME, estimate
from lab.load.model import Attached, Holds, Judged, Outcome, Search
from lab.load.tables import grown
from lab.load.thresholds import parse
from lab.model import BadInput, Fault, Ledger
from tests import loaded

THRESHOLDS = tuple(parse(says, kinds=("spin",)) for says in ("p99 < 5s", "p50 < 1ms", "lost == 0"))


def an_outcome(**changed: object) -> Outcome:
    return replace(loaded.outcome(60, 12, thresholds=THRESHOLDS), **changed)  # type: ignore[arg-type]


INVALID = (Fault("late_generator", "the generator was late"),)


def test_json_is_what_the_command_line_promises():
    # Given
    outcome = an_outcome()
    # When it goes through JSON
    body = json.loads(json.dumps(export.as_json(outcome), allow_nan=False))
    # Then
    assert (body["schema"], body["scenario"], body["valid"]) == (1, "steady", True)
    whole = outcome.ledger.issued
    assert body["ledger"] == {"issued": whole, "done": whole, "failed": 0, "lost": 0, "duplicated": 0}
    for name in ("latency_s", "latency_uncorrected_s", "lag_s"):
        assert list(body[name]) == ["p50", "p90", "p99", "p999", "max"]
    assert [(row["says"], row["ok"]) for row in body["thresholds"]] == [
        ("p99 < 5s", True),
        ("p50 < 1ms", False),
        ("lost == 0", True),
    ]


def test_json_says_null_where_there_is_nothing_to_say():
    nothing = hdr.Histogram()
    outcome = an_outcome(lag=nothing, judged=(Judged("p99 < 1s", None, 1.0, False, "s"),))
    body = export.as_json(outcome)
    assert set(body["lag_s"].values()) == {None}
    assert body["thresholds"][0]["value"] is None
    assert json.dumps(body, allow_nan=False)


def test_csv_has_a_row_a_tick_whose_jobs_add_up():
    outcome = an_outcome()
    rows = list(csv.DictReader(io.StringIO(export.as_csv(outcome))))
    assert len(rows) == len(outcome.ticks)
    assert sum(int(row["done"]) for row in rows) == outcome.ledger.done
    assert sum(int(row["done[spin]"]) for row in rows) == outcome.ledger.done
    assert sum(int(row["ended[w0 1]"]) for row in rows) == outcome.ledger.done
    assert [row["phase"] for row in rows[:2]] == ["warm-up", "measured"]
    assert float(rows[5]["latency_p50_s"]) == pytest.approx(outcome.ticks[5].latency.quantile_s(0.5), rel=1e-5)


def growing(outcome: Outcome) -> Outcome:
    """A worker that keeps a megabyte a second, on a broker that holds still."""
    ticks = tuple(
        replace(tick, holds=Holds(50_000_000 + 1_048_576 * i, 2_000_000, 7)) for i, tick in enumerate(outcome.ticks)
    )
    return replace(outcome, ticks=ticks)


def test_memory_and_connections_are_in_the_csv_and_empty_where_nobody_can_say():
    for outcome, held in ((growing(an_outcome()), ["50000000", "2000000", "7"]), (an_outcome(), ["", "", ""])):
        first = next(csv.DictReader(io.StringIO(export.as_csv(outcome))))
        assert [first[name] for name in ("worker_pss_bytes", "broker_used_bytes", "broker_clients")] == held


def test_what_grows_in_a_run_is_told_with_an_interval_and_what_is_not_known_is_said():
    # Given a worker that grows by 1 MiB a second
    outcome = growing(an_outcome())
    table = grown(outcome)
    assert table is not None
    rows = {row[0]: row for row in table.rows}
    # Then over the measured window it grew by one for each second, and the broker by nothing
    seconds = len(outcome.measured) - 2
    assert rows["workers' memory, MiB"][1].startswith(f"{seconds:.2f}"[:4])
    assert rows["connections to the broker"][2:] == ("7", "7", "7")
    # And a producer's connections that are gone at the very end are no change
    last = replace(outcome.measured[-1], holds=Holds(1, 1, 3))
    gone = tuple(last if tick.at_s == last.at_s else tick for tick in outcome.ticks)
    assert grown(replace(outcome, ticks=gone)) == table
    # And of workers of somebody else it is said that nobody knows
    attached = replace(outcome, scenario=replace(outcome.scenario, attached=Attached()))
    others = replace(attached, ticks=tuple(replace(t, holds=Holds(None, 1, 7)) for t in outcome.ticks))
    table = grown(others)
    assert table is not None
    assert "workers' memory, MiB" not in {row[0] for row in table.rows}
    assert any("not known: somebody else runs them" in note for note in table.notes)


def test_the_log_of_histograms_holds_every_job_under_its_tag():
    # Given
    outcome = an_outcome()
    lines = export.as_hlog(outcome).splitlines()
    # Then it says which version it is of, and when it began
    assert lines[0] == "#[Histogram log format version 1.3]"
    assert lines[1].startswith("#[StartTime: 1767323045.000 (seconds since epoch)")
    # And each row can be read back
    held: Counter[str] = Counter()
    for line in lines[3:]:
        tag, at_s, length_s, max_ms, encoded = line.removeprefix("Tag=").split(",")
        histogram = hdr.decoded(encoded)
        assert float(length_s) > 0 <= float(at_s)
        assert histogram.quantile_s(1.0) * 1e3 == pytest.approx(float(max_ms), rel=0.02, abs=1e-3)
        held[tag] += len(histogram)
    assert held["latency"] == held["lag"] == outcome.ledger.done
    assert held["latency-whole"] == held["uncorrected-whole"] == len(outcome.spans.latency)


def cases(outcome: Outcome) -> dict[str, list[str]]:
    suite = ET.fromstring(export.as_junit(outcome))  # noqa: S314  our own text
    assert int(suite.attrib["tests"]) == len(suite)
    return {case.attrib["name"]: [part.tag for part in case] for case in suite}


def test_junit_has_a_case_for_each_threshold_and_one_for_the_run():
    assert cases(an_outcome()) == {
        "the run is valid": [],
        "p99 < 5s": [],
        "p50 < 1ms": ["failure"],
        "lost == 0": [],
    }


def test_junit_passes_no_threshold_of_an_invalid_run():
    assert cases(an_outcome(faults=INVALID)) == {
        "the run is valid": ["error"],
        "p99 < 5s": ["skipped"],
        "p50 < 1ms": ["skipped"],
        "lost == 0": ["skipped"],
    }


def test_junit_is_xml_whatever_a_fault_says():
    strange = an_outcome(faults=(Fault("x", "bell \x07 <b> & \ud800"),))
    assert "the run is valid" in cases(strange)


def test_a_search_goes_into_json_without_infinities():
    found = answer(Search(1.0, 10.0), [])
    assert json.dumps(export.limit_json(found), allow_nan=False)


# ------------------------------------------------ side by side


def changes(before: list[Outcome], after: list[Outcome], **options: bool) -> dict[str, Change]:
    return {row.measure.name: row.change for row in compare(before, after, **options).rows}


LONG_S = 60.0


def test_twice_the_work_is_worse_and_half_of_it_better():
    # Given two runs at the same rate, one of them with jobs of half the length
    slow, quick = loaded.outcome(40, LONG_S, work_ms=20.0), loaded.outcome(40, LONG_S, seed=1, work_ms=10.0)
    # Then
    assert changes([slow], [quick], any_load=True)["latency p50"] is Change.BETTER
    assert changes([quick], [slow], any_load=True)["latency p50"] is Change.WORSE


def test_a_run_is_the_same_as_itself():
    outcome = loaded.outcome(60, LONG_S, random=False)
    found = changes([outcome], [outcome])
    assert found["throughput"] is Change.SAME
    assert Change.BETTER not in found.values()
    assert Change.WORSE not in found.values()


def test_two_runs_of_one_truth_rarely_differ():
    # Given pairs of runs that differ by chance alone, at a load where seconds hang together
    pairs = [[loaded.outcome(80, LONG_S, seed=2 * i + side) for side in (0, 1)] for i in range(30)]
    # When they are compared
    found = [changes([a], [b], any_load=True)["latency p90"] for a, b in pairs]
    # Then about one in twenty may say that they differ
    assert sum(one in {Change.BETTER, Change.WORSE} for one in found) <= 4
    # And it is not that nothing could be said of any of them
    assert any(compare([a], [b], any_load=True).rows[2].ratio for a, b in pairs)


def of_two_kinds(seed: int, *, failed: int = 0, **changed: object) -> Outcome:
    """A run of jobs of two kinds, whose speed differs by a few percent from one start to the next."""
    whole = loaded.outcome(60, 12, seed=seed, run_noise=0.03, **changed)  # type: ignore[arg-type]
    other = loaded.outcome(60, 12, seed=1000 + seed, run_noise=0.03, **changed)  # type: ignore[arg-type]
    n = whole.ledger.issued
    ledger = Ledger(n, n - failed, failed, 0)
    one, two = (replace(run.kinds["spin"], ledger=ledger, retried=failed) for run in (whole, other))
    return replace(whole, ledger=ledger, retried=failed, kinds={"spin": one, "echo": two})


def test_of_comparisons_without_a_change_hardly_one_in_twenty_fails():
    # Given 120 comparisons of three runs a side, a few of whose jobs fail, and among which nothing changed
    rng, false = random.Random(3), 0
    pool = [of_two_kinds(seed, failed=rng.choice((0, 1, 2))) for seed in range(60)]
    for _ in range(120):
        drawn = rng.sample(pool, 6)
        found = changes(drawn[:3], drawn[3:], any_load=True)
        # When any of the forty figures would fail a pull request
        assert len(found) > 40
        false += Change.WORSE in found.values()
    # Then that is at most about one comparison in twenty, and not one in five
    assert false / 120 <= 0.05


def test_with_no_margin_left_the_figures_together_still_err_once_in_twenty():
    # Given 2000 sets of ten figures that just touch the margin, each seen by two times four runs
    rng, false = random.Random(7), 0
    for _ in range(2000):
        chances = []
        for _ in range(10):
            before, after = ([100 * math.exp(rng.gauss(at, 0.05)) for _ in range(4)] for at in (0.0, math.log(1.05)))
            first, second = from_runs(before), from_runs(after)
            assert not isinstance(first, str)
            assert not isinstance(second, str)
            chances.append(chance(first, second, margin=math.log(1.05)))
        false += any(holm(chances))
    # Then hardly more than one set in twenty tells a false difference: 0.05 and two standard errors
    assert false / 2000 <= 0.06


def test_a_difference_that_is_sure_and_small_is_no_reason_to_fail():
    # Given runs that scatter by a thousandth, and ones that are 2 % slower
    base = loaded.outcome(40, 12)
    before, after = ([replace(base, worker_cpu_s=cpu_s * (1 + i / 1000)) for i in range(3)] for cpu_s in (10.0, 10.2))
    # Then they count as the same; when one looks closer they are worse
    found = {row.measure.name: row for row in compare(before, after).rows}["workers' CPU time a job"]
    assert found.ratio is not None
    assert found.ratio.low > 1
    assert found.change is Change.SAME
    rows = compare(before, after, within=0.005, figures=["workers' CPU time a job"]).rows
    assert [row.change for row in rows] == [Change.WORSE]


def test_every_metric_is_compared_and_so_is_each_kind_of_job():
    slow = [of_two_kinds(seed, failed=300, work_ms=14.0) for seed in range(5)]
    quick = [of_two_kinds(10 + seed) for seed in range(5)]
    rows = {row.measure.name: row for row in compare(slow, quick, any_load=True).rows}
    for name in ("latency mean", "service mean", "failed", "retried", "spin: failed", "echo: service p50"):
        assert rows[name].change is Change.BETTER, rows[name]
    for name in ("latency max", "depth, deepest", "wrong", "lost", "spin: latency p99", "echo: done twice or more"):
        assert name in rows
    assert "spin: generator's lag p99" not in rows


def test_a_figure_that_there_is_not_is_refused_with_those_that_there_are():
    one = loaded.outcome(60, 12)
    with pytest.raises(BadInput, match="no figure 'p99'; there are: throughput, latency p50"):
        compare([one], [one], figures=["p99"])


def test_what_is_too_short_cannot_be_said():
    short = [loaded.outcome(60, 12, seed=seed, warmup_s=1.0) for seed in (0, 1)]
    rows = {row.measure.name: row for row in compare(short[:1], short[1:], any_load=True).rows}
    assert rows["latency p99"].change is Change.CANNOT_SAY
    assert "too short" in rows["latency p99"].because


def test_several_runs_a_side_are_compared_run_by_run():
    slow = [loaded.outcome(40, 12, seed=seed, work_ms=20.0) for seed in range(3)]
    quick = [loaded.outcome(40, 12, seed=seed, work_ms=10.0) for seed in range(3)]
    rows = {row.measure.name: row for row in compare(slow, quick, any_load=True).rows}
    # Then even short runs can be compared, and what one run cannot tell
    assert rows["latency p50"].change is rows["service p50"].change is Change.BETTER
    assert rows["latency p50"].because == "3 runs"
    assert rows["latency p50"].ratio is not None
    assert rows["latency p50"].ratio.n == 3


def test_one_run_against_several_is_refused():
    one = loaded.outcome(60, 12)
    with pytest.raises(BadInput, match="one run a side, or two and more on both"):
        compare([one], [one, one])


def test_different_loads_are_refused_unless_asked_for():
    before, after = loaded.outcome(40, 12), loaded.outcome(80, 12)
    with pytest.raises(BadInput, match="the loads differ"):
        compare([before], [after])
    assert any("the loads differ" in note for note in compare([before], [after], any_load=True).notes)


def test_nothing_can_be_said_of_an_invalid_run():
    good, bad = an_outcome(), an_outcome(faults=INVALID)
    found = compare([good], [bad])
    assert {row.change for row in found.rows} == {Change.CANNOT_SAY}
    assert "INVALID" in found.notes[0]


def test_no_loss_among_few_jobs_proves_little():
    few, many = loaded.outcome(60, 12), loaded.outcome(90, 60)
    assert changes([few], [few])["lost"] is Change.CANNOT_SAY  # 3 / 720 is more than a thousandth
    assert changes([many], [many])["lost"] is Change.SAME


def test_more_failures_are_worse():
    def failing(share: float) -> Outcome:
        base = loaded.outcome(90, LONG_S, random=False)
        ticks = tuple(
            replace(tick, whole=replace(tick.whole, failed=round(tick.whole.done * share) + i % 2))
            for i, tick in enumerate(base.ticks)
        )
        n, failed = base.ledger.issued, round(base.ledger.issued * share)
        return replace(base, ticks=ticks, ledger=Ledger(n, n - failed, failed, 0))

    assert changes([failing(0.02)], [failing(0.2)])["failed"] is Change.WORSE
    assert changes([failing(0.2)], [failing(0.02)])["failed"] is Change.BETTER


def test_batches_of_a_process_that_hangs_together_cover_its_mean():
    # Given 200 runs of 240 seconds whose neighbours correlate by 0.5, around 100
    rng, hits, said = random.Random(5), 0, 0
    for _ in range(200):
        level, values = rng.gauss(0, 1 / math.sqrt(1 - 0.25)), []
        for _ in range(240):
            level = 0.5 * level + rng.gauss(0, 1)
            values.append(100 + 5 * level)
        # When two halves of the truth are compared with a constant
        found = from_batches(values, lambda some: sum(some) / len(some))
        if isinstance(found, str):
            continue
        said += 1
        against = ratio(Side(100.0, 0.0, 1.0, found.n, ""), found)
        hits += against.low <= 1 <= against.high
    # Then nearly all can be said, and 19 in 20 of them hold it
    assert said >= 190
    assert hits / said >= 0.92


def test_a_run_that_drifts_from_end_to_end_is_refused():
    found = from_batches([100.0 + i for i in range(60)], lambda some: sum(some) / len(some))
    assert isinstance(found, str)
    assert "hang together" in found


def test_one_run_alone_has_no_spread_over_runs():
    assert isinstance(from_runs([1.0]), str)
    assert isinstance(from_runs([1.0, 0.0]), str)
    side = from_runs([2.0, 8.0])
    assert isinstance(side, Side)
    assert side.value == pytest.approx(4.0)


def test_a_percentile_that_few_jobs_lie_beyond_has_no_interval():
    outcome = loaded.outcome(60, LONG_S)
    known, how = estimate(BY_NAME["latency p50"], outcome)
    assert known is not None
    assert known.low < known.value < known.high, how
    unknown, why = estimate(BY_NAME["latency p99.9"], outcome)
    assert unknown is not None
    assert math.isinf(unknown.high)
    assert "p99.9 takes 5000 jobs" in why


# ------------------------------------------------ the example for CI


def test_the_example_for_ci_names_only_verbs_and_options_that_there_are():
    # Given every call of sidestep in the workflow
    yaml = pytest.importorskip("yaml", reason="the extra `codecs` is not installed")
    example = Path(__file__).parent.parent / "docs" / "examples" / "load-gate.yml"
    jobs = yaml.safe_load(example.read_text("utf-8"))["jobs"]
    scripts = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    calls = [call for script in scripts for call in re.findall(r"bin/sidestep (\w[^\n|]*)", script)]
    assert len(calls) == 3
    for call in calls:
        verb, *rest = shlex.split(call)
        known = {option for param in cli.commands[verb].params for option in param.opts}
        # Then the command line knows it, with all its options
        assert {word for word in rest if re.fullmatch(r"--\w[\w-]*", word)} <= known, call
    # And the first keeps what a reviewer wants to see
    assert "--junit" in calls[0]
    # And figures that the comparison names are ones that there are
    words = shlex.split(calls[2])
    named = [words[i + 1] for i, word in enumerate(words) if word == "--figure"]
    assert named
    assert set(named) <= set(BY_NAME)


def test_both_sides_of_the_example_for_ci_work_on_one_scenario_which_the_base_need_not_have(tmp_path: Path):
    # Given the loop of the workflow, on a base without the scenario, and stand-ins for celery and sidestep
    yaml = pytest.importorskip("yaml", reason="the extra `codecs` is not installed")
    example = Path(__file__).parent.parent / "docs" / "examples" / "load-gate.yml"
    steps = yaml.safe_load(example.read_text("utf-8"))["jobs"]["no-slower"]["steps"]
    (loop,) = (step["run"] for step in steps if "bin/sidestep load" in step.get("run", ""))
    (tmp_path / "head" / "load").mkdir(parents=True)
    (tmp_path / "base").mkdir()
    (tmp_path / "head" / "load" / "gate.toml").write_text("")
    said = tmp_path / "said"
    for name, script in {
        "base/bin/celery": "touch worker.pid; [ $3 = inspect ] || { /bin/sleep 60 & echo $! > worker.pid; }",
        "head/bin/celery": "touch worker.pid; [ $3 = inspect ] || { /bin/sleep 60 & echo $! > worker.pid; }",
        "bin/sleep": "exec /bin/sleep 0.02",
        "sidestep/bin/sidestep": f'[ -f "$2" ] || exit 2; echo "$2 $4" >> {said}',
    }.items():
        file = tmp_path / "tmp" / name
        file.parent.mkdir(parents=True)
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
    # When it runs as GitHub runs it
    loop = loop.replace("1 2 3 4 5", "1").replace("/tmp/", f"{tmp_path}/tmp/")  # noqa: S108  the workflow's own machine
    environ = {**os.environ, "GITHUB_WORKSPACE": str(tmp_path), "SCENARIO": "load/gate.toml"}
    environ["PATH"] = os.pathsep.join((str(tmp_path / "tmp" / "bin"), environ["PATH"]))
    done = subprocess.run(
        ["/bin/bash", "-e", "-c", loop], env=environ, capture_output=True, text=True, timeout=120, check=False
    )
    # Then every run of either side is of the head's file
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in said.read_text().splitlines()]
    assert {file for file, _ in rows} == {f"{tmp_path}/head/load/gate.toml"}
    assert {out.rpartition("/")[2].partition("-")[0] for _, out in rows} == {"base", "head"}


# ------------------------------------------------ the same on real workers

SCENARIO = """
name = "short"
warmup = "1s"
drain = "5s"
max_lag = "2s"
thresholds = ["lost == 0", "p50 < 1ms"]
[[job]]
task = "snooze"
args = { ms = 10 }
[[stage]]
shape = "constant"
rate = 20
for = "4s"
[workers]
pool = "solo"
"""


@pytest.mark.real
def test_a_real_run_writes_every_file_and_a_report_of_it_the_same_page(tmp_path: Path):
    # Given a scenario with one threshold that holds and one that cannot
    file, out = tmp_path / "scenario.toml", tmp_path / "out"
    file.write_text(SCENARIO)
    names = {"csv": tmp_path / "a.csv", "hlog": tmp_path / "a.hlog", "junit": tmp_path / "a" / "b.xml"}
    # When it runs
    options = [word for name, path in names.items() for word in (f"--{name}", str(path))]
    done = sidestep("load", str(file), "--out", str(out), "--json", *options)
    # Then the exit code says that one is broken, on stdout there is one object, and every file is there
    assert done.returncode == 1, done.stderr
    body = json.loads(done.stdout)
    assert [row["ok"] for row in body["thresholds"]] == [True, False]
    assert (
        sum(int(row["done"]) for row in csv.DictReader(io.StringIO(names["csv"].read_text()))) == body["ledger"]["done"]
    )
    assert names["hlog"].read_text().startswith("#[Histogram log format")
    # And at each tick it was seen what workers and broker held
    for row in list(csv.DictReader(io.StringIO(names["csv"].read_text())))[:4]:
        assert int(row["worker_pss_bytes"]) > 1_000_000 < int(row["broker_used_bytes"]) * 10
        assert int(row["broker_clients"]) >= 2
    suite = ET.parse(names["junit"]).getroot()  # noqa: S314  our own text
    assert (suite.attrib["tests"], suite.attrib["failures"]) == ("3", "1")
    # And both verbs that report make the same page from the result
    for verb in ("report", "load-report"):
        again = sidestep(verb, str(out), "--html", str(tmp_path / "again.html"))
        assert again.returncode == 1, again.stderr
        assert (tmp_path / "again.html").read_bytes() == (out / "report.html").read_bytes()
    # And it can be compared: with itself nothing is better or worse
    compared = sidestep("compare", str(out), str(out), "--json", "--strict")
    assert compared.returncode == 0, compared.stderr
    assert not {row["change"] for row in json.loads(compared.stdout)["metrics"]} & {"better", "worse"}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["compare", "a"], "name two results"),
        (["compare", "a", "b", "c"], "name two results"),
        (["compare", "a", "--", "b", "--", "c"], "one --"),
        (["compare", "a", "a", "--", "b", "c"], "stands twice"),
        (["load-report", "/no/such/folder"], "there is no load result"),
        (["load", "x.toml", "--low", "5"], "add --find-limit"),
        (["load", "x.toml", "--metrics", "nowhere"], "HOST:PORT"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(words: list[str], complaint: str, tmp_path: Path):
    (tmp_path / "x.toml").write_text(SCENARIO)
    done = sidestep(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def sidestep(*words: str, cwd: Path | None = None) -> "subprocess.CompletedProcess[str]":
    root = Path(__file__).parent.parent
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SIDESTEP")}
    environ["PYTHONPATH"] = str(root)
    command = [sys.executable, "-m", "experiments", *words]
    return subprocess.run(
        command, env=environ, cwd=cwd or root, capture_output=True, text=True, timeout=180, check=False
    )
