"""What arrives of a thing that is handed over is found by handing it over."""

import concurrent.futures
import gc
import io
import math
import multiprocessing
import os
import threading
import warnings
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kombu.exceptions import EncodeError
from rich.console import Console

from experiments.sendable import experiment
from lab.environment import cores
from lab.model import FrozenArgs, Run, Setup, Suite, Trial, Verdict
from lab.report import text
from lab.report.groups import groups
from lab.report.page import page
from lab.report.tables import arrivals
from lab.report.units import NONE
from lab.runner import Runner
from lab.session import open_session
from lab.stats import MEASURES, changed_things, not_intact, refused_things
from lab.verdict import judge_all
from producer.pacers import Burst
from tasks.carriers import CARRIERS, MOST_THINGS, THINGS, Outcome, Thing, deliver, outcome, outcomes, pack, unpack
from tests.fakes import make_run, make_samples

NAMES = [thing.name for thing in THINGS]
DECLARED = ("thread", "pickle", "prefork", "json")
OBJECTS_OF_ONE_PROCESS = {"lambda", "local function", "open file", "threading.Lock", "generator"}

# Of each carrier, what it does not hand over as it was; all else it does. By what the language and the formats are.
REFUSED = {
    "thread": set(),
    "pickle": {*OBJECTS_OF_ONE_PROCESS, "error of 2 arguments"},
    "prefork": {*OBJECTS_OF_ONE_PROCESS, "error of 2 arguments", "socket"},
    "json": {*OBJECTS_OF_ONE_PROCESS, "error of 2 arguments", "socket", "module's function", "set"},
    "yaml": {*OBJECTS_OF_ONE_PROCESS, "error of 2 arguments", "socket", "module's function"},
    "msgpack": {
        *{*OBJECTS_OF_ONE_PROCESS, "error of 2 arguments", "socket", "module's function", "set"},
        *{"datetime at +02:00", "int of 100 digits", "dict with int keys", "lone surrogate"},
    },
}
CHANGED = {
    "thread": set(),
    "pickle": set(),
    "prefork": set(),
    "json": {"tuple", "dict with int keys"},
    "yaml": {"tuple"},
    "msgpack": {"tuple"},
}


def skip_if_missing(carrier: str) -> None:
    if carrier in {"yaml", "msgpack"}:
        pytest.importorskip(carrier)


def known(carrier: str, thing: str) -> Outcome:
    if thing in REFUSED[carrier]:
        return Outcome.REFUSED
    return Outcome.CHANGED if thing in CHANGED[carrier] else Outcome.AS_IT_WAS


def test_everything_that_is_known_is_about_a_thing_and_every_carrier_is_known():
    assert set(REFUSED) == set(CHANGED) == set(CARRIERS)
    assert set().union(*REFUSED.values(), *CHANGED.values()) <= set(NAMES)


@pytest.mark.parametrize("thing", THINGS, ids=NAMES)
@pytest.mark.parametrize("carrier", CARRIERS)
def test_what_arrives_is_what_the_language_lets_through(carrier: str, thing: Thing):
    skip_if_missing(carrier)
    assert outcome(thing, CARRIERS[carrier]) is known(carrier, thing.name)


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_job_returns_every_things_outcome_and_the_same_each_time(carrier: str):
    skip_if_missing(carrier)
    number = deliver(carrier)
    assert unpack(number) == tuple(known(carrier, name) for name in NAMES)
    assert deliver(carrier) == number


@pytest.mark.parametrize("thing", THINGS, ids=NAMES)
def test_nothing_of_another_type_counts_as_the_same(thing: Thing):
    # Given carriers that deliver something else altogether; then it is changed, however much it looks alike
    for other in (None, "nan", [1, 2], {"1": "one"}):
        assert outcome(thing, lambda _, other=other: other) is Outcome.CHANGED


@pytest.mark.parametrize(
    ("name", "arrives"),
    [
        ("lambda", lambda number: number + 2),
        ("threading.Lock", threading.Lock()),
        ("generator", (number for number in (1, 2))),
        ("bytes", b"\x00"),
        ("tuple", (1, 3)),
        ("NaN", 0.0),
        ("int of 100 digits", int(float("7" * 100))),
        ("lone surrogate", "?"),
    ],
)
def test_something_else_of_the_same_type_is_changed(name: str, arrives: Any):
    thing = THINGS[NAMES.index(name)]
    assert outcome(thing, lambda _: arrives) is Outcome.CHANGED


def test_the_same_moment_in_another_zone_is_changed():
    thing = THINGS[NAMES.index("datetime at +02:00")]
    assert outcome(thing, lambda sent: sent.astimezone(UTC)) is Outcome.CHANGED


def test_whatever_a_carrier_raises_is_a_refusal():
    def no(_: Any) -> Any:
        raise RecursionError("too deep")

    assert {outcome(thing, no) for thing in THINGS} == {Outcome.REFUSED}


@pytest.mark.parametrize("carrier", DECLARED)
def test_everything_that_is_opened_is_closed(carrier: str):
    # Given a process that has delivered once, so that every module is loaded
    deliver(carrier)
    gc.collect()
    before, threads = len(os.listdir("/dev/fd")), threading.active_count()
    # When it delivers again; then nothing is left open, and nothing complains that it was
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        deliver(carrier)
        gc.collect()
    assert (len(os.listdir("/dev/fd")), threading.active_count()) == (before, threads)


def test_all_things_fit_the_32_bits_of_a_mark():
    assert len(THINGS) == len(set(NAMES)) <= MOST_THINGS
    assert pack([Outcome.REFUSED] * MOST_THINGS) < 2**32


@given(st.lists(st.sampled_from(Outcome), min_size=len(THINGS), max_size=len(THINGS)))
def test_outcomes_can_be_read_back_from_their_number(found: list[Outcome]):
    assert unpack(pack(found)) == tuple(found)
    assert 0 <= pack(found) < 2**32


def test_a_carrier_that_nobody_knows_is_named():
    with pytest.raises(ValueError, match=r"one of thread, pickle, prefork, json.*'pigeon'"):
        deliver("pigeon")


def test_a_carrier_that_is_not_installed_is_no_refusal_but_an_error():
    def missing(_: Any) -> Any:
        raise LookupError("no such package")

    with pytest.raises(RuntimeError, match=r"no such package; is the carrier's package installed\?"):
        outcomes(missing)


# What the report makes of it


def run_of(through: str, *values: int, repeat: int = 0, job: str = "deliver") -> Run:
    setup = replace(experiment.base, job=job, args=FrozenArgs(through=through), pacer=Burst(max(1, len(values))))
    n = len(values)
    samples = make_samples(started_ns=[0] * n, ended_ns=[1_000_000 * (i + 1) for i in range(n)], value=values)
    run = make_run(setup=setup, repeat=repeat, samples=samples)
    return replace(run, trial=Trial(experiment.name, setup, repeat))


def suite_of(*runs: Run) -> Suite:
    return Suite(
        environment={"cores": 2}, experiments=(experiment.name,), runs=runs, seed=0, repeats={experiment.name: 3}
    )


def measured() -> Suite:
    """As if it had been run: three repeats, two jobs each."""
    return suite_of(*(run_of(c, *[deliver(c)] * 2, repeat=repeat) for c in DECLARED for repeat in range(3)))


def test_things_are_counted_by_what_became_of_them():
    run = run_of("json", pack([Outcome.REFUSED, Outcome.CHANGED, Outcome.REFUSED]))
    assert (refused_things(run), changed_things(run), not_intact(run)) == (2, 1, 3)
    # And they are known to claims by these names
    assert {"refused_things", "changed_things", "not_intact"} <= set(MEASURES)


@pytest.mark.parametrize("run", [run_of("json", 7, job="tally"), run_of("json")], ids=["another job", "no job"])
def test_nothing_is_counted_where_nothing_was_handed_over(run: Run):
    assert math.isnan(refused_things(run))
    assert math.isnan(changed_things(run))
    assert math.isnan(not_intact(run))
    assert arrivals(groups([run])) is None


def test_every_claim_is_decided_by_what_the_language_does():
    findings = judge_all([experiment], measured())
    assert [finding.claim.id for finding in findings] == [claim.id for claim in experiment.claims]
    assert {finding.claim.id: finding.verdict for finding in findings} == {
        claim.id: Verdict.SUPPORTED for claim in experiment.claims
    }


def test_a_claim_can_be_wrong():
    # Given a thread that changes one thing, and JSON that lets everything through
    suite = suite_of(*(run_of(c, int(c == "thread"), repeat=repeat) for c in DECLARED for repeat in range(3)))
    assert {finding.verdict for finding in judge_all([experiment], suite)} == {Verdict.REFUTED}


def test_the_table_has_a_row_for_each_thing_and_a_column_for_each_carrier():
    table = arrivals(groups(measured().runs))
    assert table is not None
    assert table.title == "What arrives"
    carriers = [column.name for column in table.columns[1:]]
    assert sorted(carriers) == sorted(DECLARED)
    words = {Outcome.AS_IT_WAS: "as it was", Outcome.CHANGED: "changed", Outcome.REFUSED: "refused"}
    assert table.rows == tuple((name, *(words[known(carrier, name)] for carrier in carriers)) for name in NAMES)


def test_outcomes_that_differ_between_jobs_are_all_shown():
    # Given jobs that disagree about the first thing, one of them in a word that there is not
    found = arrivals(groups([run_of("json", 0, 2), run_of("json", 0, 3, repeat=1)]))
    # Then the cell holds all that was seen
    assert found is not None
    assert found.rows[0] == (NAMES[0], f"as it was or refused or {NONE}")
    assert found.rows[1] == (NAMES[1], "as it was")


def test_two_setups_with_one_carrier_are_told_apart():
    other = run_of("json", 0)
    setup = replace(other.trial.setup, pool="threads", concurrency=2)
    found = arrivals(groups([run_of("json", 0), replace(other, trial=replace(other.trial, setup=setup))]))
    assert found is not None
    assert [(c.name, c.unit) for c in found.columns[1:]] == [("json", "bare serial"), ("json", "bare threads 2")]


def test_the_experiment_is_read_on_a_terminal_of_80_columns():
    suite = measured()
    console = Console(file=io.StringIO(), width=80)
    for part in text.render(suite, judge_all([experiment], suite), [experiment]):
        console.print(part)
    lines = console.file.getvalue().splitlines()
    assert "What arrives" in lines
    (tuples,) = [line.split() for line in lines if line.startswith("tuple ")]
    assert sorted(" ".join(tuples[1:]).replace("as it was", "as-it-was").split()) == ["as-it-was"] * 3 + ["changed"]
    assert max(map(len, lines)) <= 80


class Headings(HTMLParser):
    """Everything between tags."""

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())


def test_the_experiment_is_read_as_a_page():
    suite = measured()
    made = page(suite, judge_all([experiment], suite), [experiment])
    reader = Headings()
    reader.feed(made)
    assert {"What arrives", *NAMES, "changed", "refused", "as it was"} <= set(reader.words)
    # The same suite is the same page
    assert made == page(suite, judge_all([experiment], suite), [experiment])


# The real thing


def give_back(thing: Any) -> Any:
    return thing


@pytest.mark.real
def test_a_real_second_process_agrees_with_pickle_inside_one():
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool, ExitStack() as stack:
        for thing in THINGS:
            if thing.name == "error of 2 arguments":
                continue
            sent = thing.make(stack)

            def carry(_: Any, sent: Any = sent) -> Any:
                return pool.submit(give_back, sent).result()

            assert outcome(thing, CARRIERS["pickle"]) is outcome(replace(thing, make=lambda _, s=sent: s), carry)


@pytest.mark.real
def test_what_cannot_be_unpickled_breaks_the_whole_process_pool():
    thing = THINGS[NAMES.index("error of 2 arguments")]
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool, ExitStack() as stack:
        assert pool.submit(give_back, 1).result() == 1
        with pytest.raises(BrokenProcessPool):
            pool.submit(give_back, thing.make(stack)).result()


@pytest.fixture(scope="module")
def runner():
    with open_session() as session:
        yield Runner(session, cores(), retakes=0)


def echoed(runner: Runner, payload: object) -> Run:
    setup = Setup(job="echo", args={"payload": payload}, pacer=Burst(3), pool="prefork")
    return runner.run(Trial("test", setup, 0))


@pytest.mark.real
@pytest.mark.parametrize("carrier", DECLARED)
def test_what_a_measured_job_finds_travels_with_its_mark(runner: Runner, carrier: str):
    setup = replace(experiment.base, args=FrozenArgs(through=carrier))
    run = runner.run(Trial("test", setup, 0))
    assert run.ledger.done == 2
    assert run.samples.value.tolist() == [deliver(carrier)] * 2


@pytest.mark.real
@pytest.mark.parametrize("payload", [(1, 2), {1: "one"}], ids=["tuple", "int key"])
def test_a_prefork_worker_gets_something_else_and_nobody_is_told(runner: Runner, payload: object):
    # Given jobs that return what they got, which the lab compares with what it sent
    ledger = echoed(runner, payload).ledger
    # Then none raised, and each returned something else
    assert (ledger.issued, ledger.done, ledger.wrong, ledger.lost) == (3, 0, 3, 0)


@pytest.mark.real
@pytest.mark.parametrize("payload", [[1, 2], {"1": "one"}, b"\x00\xff", 7 * 10**99], ids=lambda p: type(p).__name__)
def test_a_prefork_worker_gets_as_they_were_the_things_that_json_keeps(runner: Runner, payload: object):
    assert echoed(runner, payload).ledger.done == 3


@pytest.mark.real
@pytest.mark.parametrize("payload", [{1, 2}, give_back, threading.Lock()], ids=["set", "function", "lock"])
def test_what_json_refuses_is_refused_where_the_job_is_sent(runner: Runner, payload: object):
    with pytest.raises(EncodeError):
        echoed(runner, payload)
