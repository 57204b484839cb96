"""The search for the highest rate that can be kept up finds a known one, and says so when it cannot."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.load import doubts, limit
from lab.load.limit import Limit, Probe, Seen
from lab.load.model import Search
from lab.load.search import planned, with_jobs_left
from lab.load.thresholds import parse
from lab.model import BadInput, Estimate, Fault
from lab.stats import mean
from tests import loaded
from tests.simulator import QUEUE_S

CAPACITY_HZ = 1 / (loaded.WORK_MS / 1e3 + QUEUE_S + 5e-6)
"""Of the simulator's solo worker: one job after the other, each its work, its handling and its mark."""


def search_with(search: Search, look: Callable[[float, int], Seen | Probe]) -> Limit:
    probes: list[Probe] = []
    while (rate := limit.next_rate(search, probes)) is not None:
        seen = look(rate, len(probes))
        probes.append(Probe(rate, seen, "it was so") if isinstance(seen, Seen) else seen)
    return limit.answer(search, probes)


def breaking_above(capacity_hz: float) -> Callable[[float, int], Seen]:
    return lambda rate, _: Seen.BREAKS if rate > capacity_hz else Seen.HOLDS


def simulated(seed: int, *, is_random: bool, for_s: float = 10.0, thresholds: tuple[str, ...] = ()) -> Limit:
    search = Search(20.0, 500.0, for_s=for_s)
    conditions = tuple(parse(one, kinds=("spin",)) for one in thresholds)

    def look(rate: float, number: int) -> Probe:
        outcome = loaded.outcome(
            rate, for_s + 1, seed=seed * 1000 + number, random=is_random, run_noise=0.01, thresholds=conditions
        )
        return limit.probe(search, rate, outcome)

    return search_with(search, look)


@pytest.mark.parametrize("is_random", [False, True], ids=["evenly spaced jobs", "poisson arrivals"])
def test_a_known_capacity_lies_in_the_interval_in_nineteen_of_twenty_searches(is_random: bool):
    # Given a worker of the simulator, whose capacity is known
    # When it is searched for with different seeds; a refusal counts as a miss
    found = [simulated(seed, is_random=is_random).interval_hz for seed in range(20)]
    # Then it lies in as many as the docs say
    hits = [pair for pair in found if pair and pair[0] <= CAPACITY_HZ <= pair[1]]
    assert len(hits) >= 19


def test_evenly_spaced_jobs_find_it_to_about_ten_per_cent():
    found = simulated(1, is_random=False)
    assert found.interval_hz is not None
    assert found.interval_hz[1] / found.interval_hz[0] < 1.25


def test_a_threshold_on_latency_puts_the_limit_below_the_capacity():
    # Given a p99 that an M/D/1 queue keeps only up to a part of its capacity
    found = simulated(2, is_random=True, for_s=20.0, thresholds=("p99 < 40ms",))
    # Then whatever held kept it, and the answer is a lower rate than without
    assert found.held_hz is not None
    assert found.held_hz < 0.9 * CAPACITY_HZ
    assert any("p99 < 40ms" in probe.because for probe in found.probes if probe.seen is Seen.BREAKS)


def test_growth_covers_the_truth_where_the_queue_overflows():
    # Given 3000 random walks that drift by 5 jobs a second
    rng, hits = random.Random(1), 0
    for _ in range(3000):
        backlog = [0.0]
        for _ in range(20):
            backlog.append(backlog[-1] + 5 + rng.gauss(0, 10))
        # When their growth is estimated
        grown = limit.growth(backlog)
        assert grown is not None
        hits += grown.low <= 5 <= grown.high
    # Then 92 of 100 intervals hold it, as the docs say: ten steps cannot tell their own correlation well, and three
    # repeats must agree
    assert hits >= 0.92 * 3000


def test_a_backlog_that_only_stands_does_not_grow():
    # Given 100 backlogs that go up and down around one level
    rng, hits, widths, straights = random.Random(2), 0, 0.0, 0.0
    for _ in range(100):
        backlog = [100 + rng.gauss(0, 5) for _ in range(31)]
        # When their growth is estimated, and the same blocks are taken for unrelated
        grown, straight = limit.growth(backlog), mean([(backlog[i + 3] - backlog[i]) / 3 for i in range(0, 30, 3)])
        assert grown is not None
        assert straight is not None
        hits += grown.low <= 0 <= grown.high
        widths, straights = widths + grown.high - grown.low, straights + straight.high - straight.low
    # Then none of them is said to grow, and the interval knows that what is added is taken away again
    assert hits >= 95
    assert widths < 0.75 * straights


def test_too_few_ticks_say_nothing_of_growth():
    assert limit.growth([1, 2, 3, 4, 5]) is None
    assert limit.growth([1, 2, 3, 4, 5, 6]) is not None


def test_both_edges_are_repeated_and_the_answer_lies_between_them():
    # Given a queue that breaks above 333 jobs/s, always
    found = search_with(Search(10.0, 10_000.0, repeats=4), breaking_above(333.0))
    # Then
    assert found.held_hz is not None
    assert found.broke_hz is not None
    assert found.held_hz <= 333 < found.broke_hz
    assert found.broke_hz / found.held_hz <= 1.05 + 1e-9
    for edge in (found.held_hz, found.broke_hz):
        assert sum(probe.rate_hz == edge for probe in found.probes) == 4


def test_a_repeat_that_disagrees_widens_the_interval():
    # Given a queue that near its limit holds on some days and breaks on others
    rng = random.Random(3)

    def look(rate: float, _: int) -> Seen:
        return Seen.BREAKS if rate > 300 * (1 + rng.gauss(0, 0.1)) else Seen.HOLDS

    found = search_with(Search(10.0, 10_000.0, most=60), look)
    # Then the interval spans the days, and does not claim the precision of a single one
    assert found.interval_hz is not None
    assert found.interval_hz[0] < 300 < found.interval_hz[1]
    assert found.interval_hz[1] / found.interval_hz[0] > 1.1


def test_it_refuses_where_the_generator_is_the_limit_and_says_what_held():
    # Given workers that could do 5000 jobs/s and a generator that can offer 800
    found = search_with(Search(10.0, 10_000.0), lambda rate, _: Seen.GENERATOR if rate > 800 else Seen.HOLDS)
    # Then
    assert found.interval_hz is None
    assert "the generator is the limit" in found.refused
    assert found.held_hz is not None
    assert 700 < found.held_hz <= 800


def test_a_generator_that_fails_even_at_the_lowest_rate_is_not_asked_for_ever():
    found = search_with(Search(10.0, 1000.0, repeats=3, most=30), lambda *_: Seen.GENERATOR)
    assert sum(probe.rate_hz == 10.0 for probe in found.probes) == 3
    assert "the generator is the limit" in found.refused


def test_a_generator_that_fails_far_above_the_limit_does_not_matter():
    def look(rate: float, _: int) -> Seen:
        return Seen.GENERATOR if rate > 800 else Seen.BREAKS if rate > 333 else Seen.HOLDS

    found = search_with(Search(10.0, 100_000.0), look)
    assert not found.refused
    assert found.held_hz is not None
    assert found.broke_hz is not None
    assert found.held_hz <= 333 < found.broke_hz


def test_a_run_that_the_generator_spoilt_by_mishap_is_tried_again():
    # Given a generator that fails once, at a rate far below what it manages else
    failed: list[float] = []

    def look(rate: float, number: int) -> Seen:
        if number == 3:
            failed.append(rate)
            return Seen.GENERATOR
        return breaking_above(333.0)(rate, number)

    found = search_with(Search(10.0, 10_000.0), look)
    # Then it costs a run, and no width
    assert sum(probe.rate_hz == failed[0] for probe in found.probes) >= 2
    assert found.held_hz is not None
    assert found.broke_hz is not None
    assert found.broke_hz / found.held_hz <= 1.05 + 1e-9


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (Seen.BREAKS, "no rate held"),
        (Seen.HOLDS, "search up to a higher rate"),
        (Seen.UNCLEAR, "try each rate for longer"),
        (Seen.GENERATOR, "the generator is the limit"),
    ],
)
def test_it_refuses_where_every_run_says_the_same(seen: Seen, words: str):
    found = search_with(Search(10.0, 1000.0), lambda *_: seen)
    assert found.interval_hz is None
    assert words in found.refused


def test_it_refuses_where_the_runs_were_not_enough_to_repeat_the_edges():
    found = search_with(Search(10.0, 10_000.0, repeats=3, most=6), breaking_above(333.0))
    assert found.interval_hz is None
    assert "6 runs were not enough" in found.refused


@given(st.lists(st.sampled_from(list(Seen)), min_size=1, max_size=40), st.integers(6, 40))
def test_whatever_it_sees_it_ends_and_stays_between_its_bounds(answers: list[Seen], most: int):
    search = Search(10.0, 1000.0, most=most)
    found = search_with(search, lambda _, number: answers[number % len(answers)])
    assert 1 <= len(found.probes) <= most
    assert all(10.0 <= probe.rate_hz <= 1000.0 for probe in found.probes)
    # Either an answer or a reason, never both
    assert (found.interval_hz is None) == bool(found.refused)
    if found.interval_hz:
        assert found.interval_hz[0] < found.interval_hz[1]


SEARCH = Search(10.0, 1000.0, for_s=10.0)


@pytest.mark.parametrize(
    ("grown", "broken", "generator", "seen"),
    [
        (Estimate(0.0, -1.0, 1.0, 9), [], "", Seen.HOLDS),
        (Estimate(30.0, 25.0, 35.0, 9), [], "", Seen.BREAKS),
        (Estimate(3.0, -5.0, 11.0, 9), [], "", Seen.UNCLEAR),
        (Estimate(0.0, -1.0, 1.0, 9), ["p99 < 1s"], "", Seen.BREAKS),
        (Estimate(0.0, -1.0, 1.0, 9), [], "it was late", Seen.GENERATOR),
        # What a late generator broke by its lateness says nothing of the workers
        (Estimate(0.0, -1.0, 1.0, 9), ["p99 < 1s"], "it was late", Seen.GENERATOR),
        # What a late generator did send was already too much
        (Estimate(30.0, 25.0, 35.0, 9), [], "it was late", Seen.BREAKS),
        (None, [], "", Seen.UNCLEAR),
    ],
)
def test_a_rate_holds_only_when_that_is_beyond_doubt(
    grown: Estimate | None, broken: list[str], generator: str, seen: Seen
):
    assert limit.classify(SEARCH, 500.0, grown, broken, generator=generator)[0] is seen


def test_the_faults_of_the_generator_are_those_that_a_run_can_have():
    assert all(callable(getattr(doubts, name)) for name in limit.GENERATOR_CHECKS)


def test_clocks_that_disagree_end_a_search_for_they_do_not_mend_by_themselves():
    outcome = replace(loaded.outcome(50, 12), faults=(Fault("clocks_disagree", "its clock is behind"),))
    assert limit.probe(SEARCH, 50.0, outcome).is_last


def test_a_run_that_something_else_made_invalid_is_unclear():
    outcome = replace(loaded.outcome(50, 12), faults=(Fault("broker_died", "the broker has gone"),))
    found = limit.probe(SEARCH, 50.0, outcome)
    assert (found.seen, found.because) == (Seen.UNCLEAR, "the broker has gone")


@pytest.mark.parametrize(
    "search",
    [
        Search(0.0, 10.0),
        Search(10.0, 10.0),
        Search(10.0, float("inf")),
        Search(1.0, 10.0, for_s=2.0),
        Search(1.0, 10.0, repeats=0),
        Search(1.0, 10.0, repeats=3, most=5),
        Search(1.0, 10.0, precision=0.0),
        Search(1.0, 10.0, slack=1.0),
    ],
)
def test_a_search_that_cannot_be_made_is_refused(search: Search):
    with pytest.raises(BadInput):
        limit.check(search)


def test_a_search_that_is_broken_off_gives_no_answer():
    # Given a search whose broker dies at the third run
    def look(rate: float, number: int) -> Probe:
        seen = Seen.UNCLEAR if number == 2 else breaking_above(333.0)(rate, number)
        return Probe(rate, seen, "the broker has gone", is_last=number == 2)

    found = search_with(Search(10.0, 10_000.0), look)
    # Then it ends there, with the reason
    assert len(found.probes) == 3
    assert found.interval_hz is None
    assert found.refused == "the search was broken off: the broker has gone"


def test_a_run_of_a_search_waits_no_longer_than_it_lasted_but_for_jobs_that_are_postponed():
    asked = replace(loaded.scenario(50, 12), drain_s=60.0)
    (kind,) = asked.kinds
    assert planned(asked, SEARCH, 50.0, 0).drain_s == 10
    assert planned(replace(asked, kinds=(replace(kind, countdown_s=20.0),)), SEARCH, 50.0, 0).drain_s == 30


def test_a_search_ends_where_the_next_run_would_have_to_do_the_jobs_of_the_last():
    # Given a search whose third run leaves jobs behind in queues of somebody else
    def look(rate: float, number: int) -> Probe:
        run = loaded.outcome(min(rate, 50.0), 12, seed=number)
        return limit.probe(SEARCH, rate, with_jobs_left(run, 7) if number == 2 else run)

    found = search_with(SEARCH, look)
    # Then it ends there, and says how many
    assert len(found.probes) == 3
    assert found.interval_hz is None
    assert found.refused.startswith("the search was broken off: 7 jobs of the run were still queued")


SCENARIO = """
name = "one slot"
warmup = "1s"
drain = "5s"
max_lag = "2s"
thresholds = ["failed == 0"]
[[job]]
task = "snooze"
args = { ms = 50 }
[[stage]]
shape = "constant"
rate = 10
for = "6s"
[search]
from = 5
to = 80
for = "6s"
arrivals = "even"
repeats = 1
most = 3
[workers]
pool = "solo"
"""


@pytest.mark.real
def test_a_real_worker_of_one_slot_holds_what_it_can_and_breaks_above_and_the_folder_tells_it_again(tmp_path: Path):
    # Given a worker that cannot do more than 20 jobs of 50 ms a second
    file, out = tmp_path / "scenario.toml", tmp_path / "out"
    file.write_text(SCENARIO)
    # When its limit is searched for
    done = sidestep("load", str(file), "--find-limit", "--json", "--out", str(out))
    # Then no rate above 20 held, and where it answers the truth is not below the interval
    assert done.returncode in {0, 3}, done.stderr
    assert "Traceback" not in done.stderr
    found = json.loads(done.stdout)["limit"]
    assert {probe["seen"] for probe in found["probes"] if probe["rate_hz"] > 30} <= {"breaks"}
    assert not [probe for probe in found["probes"] if probe["rate_hz"] > 22 and probe["seen"] == "holds"]
    # And the folder says the same again, with a page
    again = sidestep("load-report", str(out), "--json", "--html", str(tmp_path / "again.html"))
    assert json.loads(again.stdout)["limit"] == found
    assert (tmp_path / "again.html").read_bytes() == (out / "report.html").read_bytes()


def sidestep(*words: str) -> "subprocess.CompletedProcess[str]":
    environ = {name: value for name, value in os.environ.items() if not name.startswith("SIDESTEP")}
    command = [sys.executable, "-m", "experiments", *words]
    root = Path(__file__).parent.parent
    return subprocess.run(command, env=environ, cwd=root, capture_output=True, text=True, timeout=180, check=False)
