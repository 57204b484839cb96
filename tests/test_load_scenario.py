"""Scenario files: what they mean, and what is said of those that mean nothing."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import fields, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from lab.load import doubts, lines, stages, store
from lab.load.books import Books
from lab.load.draws import chosen, drawn, share, shares, stream
from lab.load.hdr import of
from lab.load.model import (
    Arrivals,
    Drawn,
    Generator,
    Holds,
    Judged,
    KindOutcome,
    Observation,
    Outcome,
    Piece,
    Scenario,
    Spans,
    Stage,
    Tally,
    Tick,
    Watch,
    WorkerOutcome,
)
from lab.load.possible import refuse_impossible
from lab.load.scenario import parsed, read
from lab.load.shapes import SHAPES_OF_LOAD
from lab.load.thresholds import METRICS, ThresholdError, find, judge, parse
from lab.load_cli import load
from lab.model import BadInput, Ledger
from producer.pacers import Constant, Ramp, Steps

SHIPPED = sorted((Path(__file__).parent.parent / "scripts" / "load").glob("*.toml"))
FILE = Path("shop.toml")
TEXT = """\
name = "shop"
seed = 7
warmup = "1s"
thresholds = [
    "p99 < 500ms",  # of all
    "lost == 0",
    "throughput >= 0.98 * offered",
    "resize: wait p99 < 2s", "errors < 1%",
]

[[job]]
task = "spin"
name = "resize"
weight = 3
ms = { exponential = 5 }

[[job]]
task = "snooze"
args = { ms = "${MS:-20}" }
queue = "slow"
priority = 6
countdown = "2s"
expires = "1m"

[[stage]]
shape = "ramp"
from = 0
to = "600/min"
for = "10s"

[[stage]]
shape = "sine"
low = 0
high = 20
period = "5s"
for = "10s"
arrivals = "random"

[workers]
pool = "threads"
concurrency = 4
"""


def scenario(text: str = TEXT, **environ: str) -> Scenario:
    return parsed(text, FILE, environ=environ)


def complaint(text: str, **environ: str) -> str:
    with pytest.raises(BadInput) as caught:
        scenario(text, **environ)
    words = str(caught.value)
    assert "\n" not in words, "a complaint is one line"
    return words


def line_of(text: str, words: str) -> int:
    return text[: text.index(words)].count("\n") + 1


# ---------------------------------------------------------------- what a file means


def test_a_scenario_says_what_it_says():
    # When a file is read
    shop = scenario()
    # Then everything in it is there, in seconds and jobs a second
    assert (shop.name, shop.seed, shop.warmup_s, shop.planned_s) == ("shop", 7, 1.0, 20.0)
    resize, snooze = shop.kinds
    assert (resize.task, resize.job, resize.weight, resize.work_ms) == (
        "sidestep.spin",
        "spin",
        3.0,
        Drawn("exponential", (5.0,)),
    )
    assert (snooze.name, snooze.args, snooze.queue, snooze.priority) == ("snooze", {"ms": 20}, "slow", 6)
    assert (snooze.countdown_s, snooze.expires_s) == (2.0, 60.0)
    assert shop.stages[0].pieces == (Piece(10.0, 0.0, 10.0),)
    assert shop.stages[1].arrivals is Arrivals.RANDOM
    assert shop.expected_jobs == pytest.approx(50 + 100)
    assert (shop.queues, shop.peak_hz) == (("jobs", "slow"), 20.0)
    assert [(one.metric, one.bound, one.times, one.kind) for one in shop.thresholds] == [
        ("p99", 0.5, None, None),
        ("lost", 0.0, None, None),
        ("throughput", 0.98, "offered", None),
        ("wait p99", 2.0, None, "resize"),
        ("errors", 0.01, None, None),
    ]


def test_variables_fill_values_and_become_numbers():
    assert scenario(MS="35").kinds[1].args == {"ms": 35}
    assert scenario(MS="1.5").kinds[1].args == {"ms": 1.5}
    # Empty counts as not set, as in a shell
    assert scenario(MS="").kinds[1].args == {"ms": 20}
    # Part of a text stays text, and two dollars are one
    text = TEXT.replace('queue = "slow"', 'queue = "slow-${N:-1}"').replace('"1m"', '"${SOON}"')
    assert scenario(text, N="2", SOON="90s").kinds[1].queue == "slow-2"
    assert "${SOON}" in complaint(TEXT.replace('"1m"', '"$${SOON}"'))


def test_a_variable_that_is_not_set_is_named_with_its_line():
    text = TEXT.replace("${MS:-20}", "${MS}")
    assert complaint(text).startswith(f"shop.toml:{line_of(text, '${MS}')}: the environment variable MS is not set")


BAD = [
    # what stands there, what is written instead, what must be said
    ("weight = 3", "wieght = 3", "did you mean 'weight'?"),
    ('"p99 < 500ms"', '"p99 < 500"', "needs a unit of time"),
    ('"p99 < 500ms"', '"p101 < 5s"', "there is no metric 'p101'"),
    ('"lost == 0"', '"losst == 0"', "did you mean 'lost'?"),
    ('"lost == 0"', '"lost = 0"', "is no threshold"),
    ('"lost == 0"', "7", "a threshold must be text"),
    ("resize: wait", "resizes: wait", "did you mean 'resize'?"),
    ('"resize: wait p99 < 2s"', '"resize: lag p99 < 2s"', "for the whole run only"),
    ("0.98 * offered", "0.98 * p99", "compares jobs/s with s"),
    ("0.98 * offered", "98% * offered", "is no factor"),
    ('"600/min"', "1e9", "is impossible"),
    ('"600/min"', '"fast"', "must be a number of 0 or more"),
    ("from = 0", "from = -5", "must be a number of 0 or more"),
    ("from = 0", "from = nan", "must be a number of 0 or more"),
    ("from = 0\n", "", "a ramp stage needs 'from'"),
    ("from = 0", "rate = 5\nfrom = 0", "a ramp stage has no key 'rate'"),
    ("low = 0", "low = 30", "low must be below high"),
    ('shape = "ramp"', 'shape = "rampe"', "did you mean 'ramp'?"),
    ('task = "spin"', 'task = "spn"', "did you mean 'spin'?"),
    ('task = "spin"', 'task = "shop.tasks.resize"', "attach = true"),
    ('task = "spin"', "task = 5", "task must be the name of a task"),
    ('task = "snooze"', 'task = "spin"', "ms"),
    ("{ exponential = 5 }", "{ exponential = -5 }", "must be above 0"),
    ("{ exponential = 5 }", "{ exponent = 5 }", "ms must be a number above 0"),
    ('args = { ms = "${MS:-20}" }', "args = { sm = 20 }", "does not take these arguments"),
    ('args = { ms = "${MS:-20}" }', "args = 20", "args must be a table"),
    ('args = { ms = "${MS:-20}" }', 'args = { ms = { payload = "recrods:1kB" } }', "did you mean 'records'?"),
    ("priority = 6", "priority = 11", "from 0 to 9"),
    ('expires = "1m"', 'expires = "soon"', "such as 500ms"),
    ('expires = "1m"', 'eta = "2030-01-01T00:00:00"', "not both"),
    ('pool = "threads"', 'pool = "thread"', "did you mean 'threads'?"),
    ('pool = "threads"', 'pool = "solo"', "has one slot"),
    ("concurrency = 4", "concurrency = 0", "from 1 to"),
    ('warmup = "1s"', 'warmup = "1h"', "leaves nothing"),
    ('warmup = "1s"', "warmpu = 1", "did you mean 'warmup'?"),
    ('for = "10s"\n\n[[stage]]', 'for = "200h"\n\n[[stage]]', "is too long"),
    ('name = "shop"', 'name = "shop', "is no TOML"),
    ('name = "shop"', 'name = "shop: all"', "name must be"),
    ('task = "snooze"', 'task = "snooze"\nname = "resize"', "two jobs 'resize'"),
]


@pytest.mark.parametrize(("there", "instead", "said"), BAD)
def test_what_is_wrong_is_said_with_its_line(there: str, instead: str, said: str):
    # Given a file with one mistake
    assert there in TEXT
    text = TEXT.replace(there, instead, 1)
    # When it is read
    words = complaint(text)
    # Then the one line names file, line and what was wrong
    found = re.match(r"shop\.toml:(\d+): ", words)
    assert found, words
    assert said in words
    # And the line is that of the mistake, or of the table that it is missing from
    at = TEXT[: TEXT.index(there)].count("\n") + 1
    assert abs(int(found[1]) - at) <= 4, words


IMPOSSIBLE = [
    ('countdown = "2s"', 'countdown = "30s"', 'task = "snooze"', "would be lost: its countdown of 30 s"),
    ('countdown = "2s"', 'eta = "2030-01-01T12:00:00+00:00"', 'task = "snooze"', "would be lost: its eta is"),
    ("seed = 7", "seed = 7\ncount = 1", "count = 1", "is due within the warm-up"),
    ('to = "600/min"', "to = 900000", 'shape = "ramp"', "1 producer cannot offer 900000 jobs/s"),
]


@pytest.mark.parametrize(("there", "instead", "at", "said"), IMPOSSIBLE)
def test_a_plan_that_cannot_come_true_is_refused_with_its_line(there: str, instead: str, at: str, said: str):
    # Given a file that can be read, and would be of no use
    now = datetime(2029, 1, 1, tzinfo=UTC)
    refuse_impossible(scenario(), now=now, producers=1)
    assert there in TEXT
    text = TEXT.replace(there, instead, 1)
    # When it is asked for
    with pytest.raises(BadInput) as caught:
        refuse_impossible(scenario(text), now=now, producers=1)
    # Then it is refused, in the line that says so or where its table begins
    found = re.match(r"shop\.toml:(\d+): ", str(caught.value))
    assert found, caught.value
    assert abs(int(found[1]) - line_of(text, at)) <= 1
    assert said in str(caught.value)


def test_what_can_come_true_is_not_refused():
    now = datetime(2030, 1, 1, 11, 59, 50, tzinfo=UTC)
    soon = TEXT.replace('countdown = "2s"', 'eta = "2030-01-01T12:00:00+00:00"')
    refuse_impossible(scenario(soon), now=now, producers=1)
    refuse_impossible(scenario(TEXT.replace('to = "600/min"', "to = 900000")), now=now, producers=64)
    refuse_impossible(scenario(TEXT.replace("seed = 7", "seed = 7\ncount = 20")), now=now, producers=1)
    for path in SHIPPED:
        refuse_impossible(
            read(path, environ={}),
            now=now,
            producers=1,
            moments=lambda _: [],
        )


def test_check_refuses_what_a_run_would_refuse(tmp_path: Path):
    # Given a plan that cannot come true, and one that could on a broker that is a Redis
    never, fine = tmp_path / "never.toml", tmp_path / "fine.toml"
    never.write_text(TEXT.replace('countdown = "2s"', 'countdown = "30s"'))
    fine.write_text(TEXT)
    # When they are only read
    for words, said in (
        ([str(never)], "its countdown of 30 s"),
        ([str(fine), "--broker", "amqp://127.0.0.1//"], "needs a Redis"),
    ):
        done = CliRunner().invoke(load, [*words, "--check"])
        # Then each is refused all the same
        assert isinstance(done.exception, BadInput)
        assert said in " ".join(str(done.exception).split())
    assert CliRunner().invoke(load, [str(fine), "--check"]).exit_code == 0


def test_a_search_that_could_not_be_made_is_refused_where_it_is_read():
    text = TEXT + '[search]\nfrom = 1\nto = 20\nfor = "2s"\n'
    assert complaint(text).startswith(f"shop.toml:{line_of(text, '[search]')}: each rate must be tried for")


def test_a_queue_that_no_worker_serves_is_named_with_its_line():
    text = TEXT.replace('pool = "threads"', 'pool = "threads"\nqueues = ["jobs"]')
    words = complaint(text)
    assert words.startswith(f"shop.toml:{line_of(text, 'queue = ')}: no worker listens on the queue 'slow'")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "at least one [[job]]"),
        ('[[job]]\ntask = "noop"\n', "at least one [[stage]]"),
        ('[[job]]\ntask = "noop"\n[[stage]]\nshape = "constant"\nrate = 0\nfor = 5\n', "rate must be a number above 0"),
        ('job = 5\n[[stage]]\nshape = "constant"\n', "[[job]]"),
        ('[[job]]\ntask = "noop"\n[[stage]]\nshape = "steps"\nrates = [0, 0]\neach = 5\n', "makes no job"),
        (
            '[[job]]\ntask = "x.y"\n[[stage]]\nshape = "constant"\nrate = 1\nfor = 5\n[workers]\nattach = true\n',
            "[broker]",
        ),
        ("\x00", "is no TOML"),
    ],
)
def test_a_file_that_is_no_scenario_is_refused(text: str, said: str):
    assert said in complaint(text)


def test_no_complaint_shows_a_password():
    text = TEXT + '[broker]\nurl = "amqp://me:hunter2@127.0.0.1:5672//"\n'
    assert "hunter2" not in complaint(text)
    assert "redis://" in complaint(text)
    # Nor does a scenario's own spelling
    held = scenario(TEXT + '[broker]\nurl = "redis://:hunter2@127.0.0.1:6379/0"\n')
    assert "hunter2" in held.broker
    assert "hunter2" not in repr(replace(held, text=""))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_scenario_that_ships_can_be_run(path: Path):
    # Given one of them and no variable set
    shipped = read(path, environ={})
    # Then it has a word about itself, thresholds, and jobs to send
    assert shipped.name == path.stem
    assert shipped.about
    assert shipped.thresholds
    assert shipped.expected_jobs > 10


def test_at_least_eight_scenarios_ship():
    names = {path.stem for path in SHIPPED}
    assert {"smoke", "steady", "ramp", "spike", "soak", "mixed", "retry-storm", "slow-consumer", "find-limit"} <= names


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path):
    with pytest.raises(BadInput, match="cannot be read"):
        read(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(BadInput, match="no text in UTF-8"):
        read(tmp_path / "bytes.toml")


def test_every_key_is_found_where_it_stands():
    text = 'a = 1\n[t]\nb = """\nx = 1\n"""\nc = [\n  1,\n\n  { d = 2 },  # [\n]\n'
    text += '[[u]]\nv.w = 1\n[[u]]\nv = "]"\n[u.x]\ny = 2\n'
    found = lines.lines(text)
    assert {path: found[path] for path in found if path} == {
        ("a",): 1,
        ("t",): 2,
        ("t", "b"): 3,
        ("t", "c"): 6,
        ("t", "c", 0): 7,
        ("t", "c", 1): 9,
        ("u",): 11,
        ("u", 0): 11,
        ("u", 0, "v", "w"): 12,
        ("u", 1): 13,
        ("u", 1, "v"): 14,
        ("u", 1, "x"): 15,
        ("u", 1, "x", "y"): 16,
    }
    assert lines.nearest(found, ("u", 1, "v", "deep")) == 14


# ---------------------------------------------------------------- when jobs are due


def all_due(*planned: Stage, seed: int = 0, count: int | None = None) -> np.ndarray:
    found = list(stages.blocks(planned, seed=seed, count=count))
    assert [block.first for block in found] == [0, *np.cumsum([len(block.due_s) for block in found])[:-1]]
    return np.concatenate([block.due_s for block in found])


@pytest.mark.parametrize(
    ("stage", "pacer"),
    [
        (Stage("constant", 10, (Piece(10, 33.3, 33.3),)), Constant(33.3, 10)),
        (Stage("ramp", 10, (Piece(10, 5, 50),)), Ramp(5, 50, 10)),
        (Stage("ramp", 10, (Piece(10, 50, 0),)), Ramp(50, 0, 10)),
        (Stage("steps", 9, (Piece(3, 5, 5), Piece(3, 0, 0), Piece(3, 50, 50))), Steps((5, 0, 50), 3)),
    ],
)
def test_evenly_spaced_stages_are_the_producers_own_pacers(stage: Stage, pacer: Constant | Ramp | Steps):
    assert all_due(stage) == pytest.approx(np.array(list(pacer.due_s())), abs=1e-9)


SINE = Stage("sine", 20, mean_hz=50, swing_hz=50, period_s=7)
SPIKE = Stage("spike", 10, (Piece(4, 10, 10), Piece(2, 200, 200), Piece(4, 10, 10)))


@pytest.mark.parametrize("arrivals", list(Arrivals))
@pytest.mark.parametrize("stage", [SINE, SPIKE, Stage("ramp", 10, (Piece(10, 0, 100),))], ids=lambda s: s.shape)
def test_a_stage_makes_as_many_jobs_as_the_area_under_its_rate_at_every_moment(stage: Stage, arrivals: Arrivals):
    # Given a rate that changes
    due = all_due(replace(stage, arrivals=arrivals), seed=3)
    # Then time never runs back, and no job is due outside of the stage
    assert (np.diff(due) >= 0).all()
    assert due[0] >= 0
    assert due[-1] <= stage.for_s
    # And up to any moment there are as many jobs as the area, within one; by chance, within five deviations
    for upto in np.linspace(0.05, 1, 20) * stage.for_s:
        area = area_under(stage, upto)
        allowed = 1 if arrivals is Arrivals.EVEN else 5 * math.sqrt(area) + 1
        assert abs((due < upto).sum() - area) <= allowed


def area_under(stage: Stage, upto: float) -> float:
    t = np.linspace(0, upto, 20_001)
    if stage.shape == "sine":
        rate = stage.mean_hz + stage.swing_hz * np.sin(2 * math.pi * t / stage.period_s)
    else:
        begins = np.cumsum([0, *(piece.for_s for piece in stage.pieces)])
        at = np.minimum(np.searchsorted(begins, t, side="right") - 1, len(stage.pieces) - 1)
        pieces = stage.pieces
        low, high, length = (np.array([getattr(p, n) for p in pieces])[at] for n in ("from_hz", "to_hz", "for_s"))
        rate = low + (high - low) * (t - begins[at]) / length
    return float(np.trapezoid(rate, t))


def test_random_gaps_are_exponential():
    # Given many arrivals at random
    due = all_due(Stage("poisson", 1000, (Piece(1000, 50, 50),), Arrivals.RANDOM), seed=1)
    gaps = np.diff(due) * 50
    # Then their gaps have the mean, the deviation and the tail of an exponential: within five standard errors
    n = len(gaps)
    assert gaps.mean() == pytest.approx(1, abs=5 / math.sqrt(n))
    assert gaps.std() == pytest.approx(1, abs=5 * math.sqrt(2 / n))
    assert (gaps > 3).mean() == pytest.approx(math.exp(-3), abs=5 * math.sqrt(math.exp(-3) / n))


def test_stages_follow_each_other_and_a_count_ends_them():
    first, second = Stage("constant", 2, (Piece(2, 10, 10),)), Stage("constant", 1, (Piece(1, 5, 5),))
    due = all_due(first, second)
    assert len(due) == 25
    assert due[20:].tolist() == [2.0, 2.2, 2.4, 2.6, 2.8]
    assert all_due(first, second, count=22).tolist() == due[:22].tolist()


def test_the_same_seed_is_the_same_load():
    stage = Stage("poisson", 10, (Piece(10, 100, 100),), Arrivals.RANDOM)
    assert all_due(stage, seed=4).tolist() == all_due(stage, seed=4).tolist()
    assert all_due(stage, seed=4).tolist() != all_due(stage, seed=5).tolist()


def test_a_recorded_trace_is_replayed_as_fast_as_asked(tmp_path: Path):
    # Given a file of moments, with a comment
    (tmp_path / "trace.txt").write_text("# seconds\n100.0\n100.5\n\n101.0  # two at once\n101.0\n104.0\n")
    (tmp_path / "replay.toml").write_text(
        '[[job]]\ntask = "noop"\n[[stage]]\nshape = "replay"\nfile = "trace.txt"\nspeed = 2\n'
    )
    # When it is read, then replayed
    replay = read(tmp_path / "replay.toml", environ={})
    from lab.load.shapes import moments

    found = list(stages.blocks(replay.stages, moments=lambda stage: moments(Path(stage.trace))))
    # Then the first moment is 0, and everything takes half as long
    assert (replay.planned_s, replay.expected_jobs) == (2.0, 5)
    assert found[0].due_s.tolist() == [0, 0.25, 0.5, 0.5, 2.0]


@pytest.mark.parametrize(
    ("text", "said"),
    [("1\n0.5\n", "trace.txt:2"), ("1\nsoon\n", "trace.txt:2"), ("", "holds no moment"), ("1\n1\n", "has no length")],
)
def test_a_trace_that_cannot_be_replayed_is_refused_with_its_line(tmp_path: Path, text: str, said: str):
    (tmp_path / "trace.txt").write_text(text)
    (tmp_path / "r.toml").write_text('[[job]]\ntask = "noop"\n[[stage]]\nshape = "replay"\nfile = "trace.txt"\n')
    with pytest.raises(BadInput) as caught:
        read(tmp_path / "r.toml", environ={})
    assert said in str(caught.value)
    assert "r.toml:5:" in str(caught.value)


def test_every_shape_is_read_and_makes_jobs():
    rest = {
        "constant": "rate = 10\nfor = 2",
        "poisson": "rate = 10\nfor = 2",
        "ramp": "from = 0\nto = 10\nfor = 2",
        "steps": "rates = [5, 10]\neach = 1",
        "spike": "base = 1\npeak = 20\nfor = 3\nwidth = 1",
        "on-off": "rate = 10\non = 1\noff = 1\nfor = 4",
        "sine": "low = 0\nhigh = 10\nperiod = 2\nfor = 2",
        "closed": "users = 3\nthink = 0.1\nfor = 2",
    }
    assert set(rest) | {"replay"} == set(SHAPES_OF_LOAD)
    for shape, keys in rest.items():
        made = scenario(f'[[job]]\ntask = "noop"\n[[stage]]\nshape = "{shape}"\n{keys}\n').stages[0]
        assert made.shape == shape
        if made.is_closed:
            assert math.isnan(made.expected_jobs)
            with pytest.raises(ValueError, match="closed"):
                all_due(made)
        else:
            assert abs(len(all_due(made, seed=2)) - made.expected_jobs) < 5 * math.sqrt(made.expected_jobs) + 1


# ---------------------------------------------------------------- chance


@given(st.integers(0, 2**40), st.integers(0, 2**36 - 1))
def test_a_draw_is_the_same_alone_and_among_many(seed: int, seq: int):
    start = stream(seed, "mix")
    assert shares(start, np.array([seq]))[0] == share(start, seq)
    assert 0 <= share(start, seq) < 1


def test_kinds_come_by_their_weights_and_draws_have_their_distribution():
    seqs = np.arange(100_000)
    start = stream(1, "mix")
    kinds = chosen(start, seqs, (3, 1))
    assert (kinds == 0).mean() == pytest.approx(0.75, abs=5 * math.sqrt(0.75 * 0.25 / len(seqs)))
    times = np.array([drawn(Drawn("exponential", (20.0,)), start, seq) for seq in range(20_000)])
    assert times.mean() == pytest.approx(20, abs=5 * 20 / math.sqrt(len(times)))
    assert times.std() == pytest.approx(20, abs=5 * 20 * math.sqrt(2 / len(times)))
    widths = [drawn(Drawn("choice", (320, 640)), start, seq) for seq in range(1000)]
    assert set(widths) == {320, 640}
    # Neighbouring numbers, and streams of other names, know nothing of each other
    ones = shares(start, seqs)
    others = shares(stream(1, "mixed"), seqs)
    for a, b in itertools.pairwise((ones[:-1], ones[1:], others[1:])):
        assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(len(a))


# ---------------------------------------------------------------- thresholds and what remains


def outcome(asked: Scenario, *, latency_ms: float = 100.0, done: int = 98) -> Outcome:
    """One in which nothing is remarkable."""
    spans = Spans(*(of(np.full(done, round(latency_ms * 1e6))) for _ in fields(Spans)))
    ledger = Ledger(100, done, 0, 100 - done)
    books = Books([kind.name for kind in asked.kinds], start_ns=0, window_s=(1.0, 20.0))
    return Outcome(
        scenario=asked,
        ledger=ledger,
        spans=spans,
        lag=of(np.full(100, 1_000_000)),
        kinds={kind.name: KindOutcome(ledger, spans, 100, done) for kind in asked.kinds},
        workers={},
        ticks=books.ticks(),
        window_s=(1.0, 11.0),
        offered_hz=10.0,
        sent_hz=10.0,
        throughput_hz=done / 10,
        wall_s=11.0,
        generator=Generator(1, "template"),
        observation=Observation(Watch.MARKS, "", ""),
    )


@pytest.mark.parametrize(
    ("says", "ok"),
    [
        ("p99 < 500ms", True),
        ("p99 < 0.05s", False),
        ("p99.9 <= 100ms", True),
        ("max < 101ms", True),
        ("mean > 99 ms", True),
        ("uncorrected p50 < 1s", True),
        ("lag p99 < 5ms", True),
        ("wait p50 < 1s", True),
        ("lost == 2", True),
        ("lost == 0", False),
        ("errors < 1%", False),
        ("errors <= 2%", True),
        ("throughput >= 0.98 * offered", True),
        ("throughput >= offered", False),
        ("throughput > 500/min", True),
        ("resize: p99 < 1s", True),
        ("resize: throughput >= 0.99 * offered", False),
        ("done != 98", False),
        ("depth < 10", False),  # nobody looked: there is nothing to say it of
    ],
)
def test_a_threshold_is_held_against_what_came_out(says: str, ok: bool):
    asked = scenario()
    judged = judge(parse(says, kinds=["resize", "snooze"]), outcome(asked))
    assert judged.ok is ok, judged


def test_a_threshold_on_nothing_does_not_hold():
    # Given a run in which no job ended
    empty = replace(outcome(scenario()), spans=Spans())
    for says in ("p99 < 500ms", "p99 > 1ms"):
        judged = judge(parse(says), empty)
        assert (judged.value, judged.ok) == (None, False)


def test_every_metric_can_be_judged_and_misspelt_ones_are_named():
    asked = outcome(scenario())
    for name in METRICS:
        assert isinstance(find(name).of(asked, None), float)
        with pytest.raises(ThresholdError, match=name):
            find(name[:-1] + "x")
    with pytest.raises(ThresholdError, match="does not say when a job started"):
        parse("service p99 < 1s", watch=Watch.RESULTS)


def test_a_late_generator_makes_a_run_invalid_unless_its_lag_is_a_small_part():
    fine = outcome(scenario())
    assert doubts.faults(fine) == ()
    assert doubts.notes(fine) == ()
    # A lag of 8 ms is more than is allowed, and less than a tenth of 100 ms; of 20 ms it is not
    late = replace(fine, lag=of(np.full(100, 8_000_000)))
    assert doubts.faults(late) == ()
    assert "no more than a tenth" in doubts.notes(late)[0]
    assert [f.check for f in doubts.faults(replace(late, kinds=outcome(scenario(), latency_ms=20).kinds))] == [
        "late_generator"
    ]
    # A scenario may allow more; where no job ended, nothing excuses it
    nothing = {name: replace(kind, spans=Spans()) for name, kind in fine.kinds.items()}
    assert doubts.faults(replace(late, kinds=nothing))
    assert not doubts.faults(replace(late, kinds=nothing, scenario=replace(scenario(), max_lag_s=0.01)))
    # A lag that is allowed and no small part is told
    assert "is more than a tenth" in doubts.notes(replace(fine, kinds=outcome(scenario(), latency_ms=5).kinds))[0]
    # One in a hundred is what counts: a rare stall is in the latency anyway
    rare = of(np.array([1_000_000] * 995 + [9_000_000_000] * 5))
    assert doubts.faults(replace(fine, lag=rare)) == ()


def test_slow_jobs_excuse_no_lag_of_quick_ones():
    # Given a generator that is 200 ms late at the median and a second at p99
    fine = outcome(scenario())
    lag = of(np.array([200_000_000] * 95 + [1_000_000_000] * 5))
    # When 6 % of a kind's jobs take 20 s, which is far more than that second, and the others 300 ms
    mixed = of(np.array([300_000_000] * 94 + [20_000_000_000] * 6))
    kinds = {name: replace(kind, spans=Spans(mixed, mixed, mixed, mixed)) for name, kind in fine.kinds.items()}
    # Then its median says that the generator was too late
    found = doubts.faults(replace(fine, lag=lag, kinds=kinds))
    assert [fault.check for fault in found] == ["late_generator"]
    assert "p50" in found[0].says
    # And where all of one kind take 20 s, that excuses nothing of the other
    slow = of(np.full(98, 20_000_000_000))
    (first, one), (second, other) = list(fine.kinds.items())[:2]
    two = {first: replace(one, spans=Spans(slow, slow, slow, slow)), second: other}
    found = doubts.faults(replace(fine, lag=lag, kinds=two))
    assert [fault.check for fault in found] == ["late_generator"]
    assert repr(second) in found[0].says
    # But a kind of which no job was due has no part in it
    none = replace(other, issued_measured=0)
    assert doubts.faults(replace(fine, lag=lag, kinds={**two, second: none})) == ()
    assert doubts.notes(replace(fine, lag=lag, kinds={**two, second: none}))


def test_a_closed_stage_excuses_its_own_jobs_alone():
    # Given a scenario with a closed stage after an open one of 5 s, and a generator that was late
    asked = scenario()
    mixed = replace(asked, stages=(replace(asked.stages[0], for_s=5.0), Stage("closed", 5, users=2)))
    late = of(np.full(100, 50_000_000))
    fine = replace(outcome(mixed), lag=late, window_s=(1.0, 10.0))
    # Then jobs of the closed stage may be late, and jobs of the open one may not
    assert doubts.faults(fine) == doubts.faults(replace(fine, lag_open=of(np.full(50, 1_000_000)))) == ()
    assert [fault.check for fault in doubts.faults(replace(fine, lag_open=late))] == ["late_generator"]
    # And what was not sent within the open stage is missed, whatever was sent in the closed one
    ticks = tuple(Tick(float(at), 1.0, Tally(due=10, sent=9 if at < 5 else 10)) for at in range(10))
    assert [fault.check for fault in doubts.faults(replace(fine, ticks=ticks))] == ["short_generator"]
    whole = tuple(replace(tick, whole=Tally(due=10, sent=10 if tick.at_s < 5 else 9)) for tick in ticks)
    assert doubts.faults(replace(fine, ticks=whole)) == ()


def test_workers_whose_clocks_disagree_make_a_run_invalid():
    # Given latencies of 100 ms, from a worker whose events took 2 ms and whose jobs took 3 ms to begin
    fine = outcome(scenario())

    def with_clock(heard_s: float | None, begun_s: float | None) -> Outcome:
        return replace(fine, workers={"w@far": WorkerOutcome("", 98, 0, heard_s=heard_s, begun_s=begun_s)})

    assert doubts.faults(with_clock(0.002, 0.003)) == ()
    # A way there that is long, with a wait or without, is no clock; neither are clocks that are our own
    assert doubts.faults(with_clock(0.040, 5.0)) == doubts.faults(with_clock(None, -1.0)) == ()
    # When that clock is 60 ms behind, or ahead
    for behind_s in (0.060, -0.060):
        said = doubts.faults(with_clock(0.002 + behind_s, 0.003 - behind_s))
        assert [fault.check for fault in said] == ["clocks_disagree"]
        assert "w@far" in said[0].says
        assert "NTP" in said[0].says
    # Then a median that is far longer excuses it, and jobs that ended before they were sent are never excused
    slow = replace(with_clock(0.062, -0.057), spans=outcome(scenario(), latency_ms=5000).spans)
    assert doubts.faults(slow) == ()
    assert [fault.check for fault in doubts.faults(replace(slow, early=3))] == ["clocks_disagree"]


def test_other_doubts_have_their_cases_too():
    fine = outcome(scenario())
    assert [f.check for f in doubts.faults(replace(fine, sent_hz=9.8))] == ["short_generator"]
    blind = replace(
        fine, ledger=Ledger(100, 0, 0, 100), spans=Spans(), lag=of([]), observation=Observation(Watch.EVENTS, "", "")
    )
    assert [f.check for f in doubts.faults(blind)] == ["nothing_seen"]
    assert doubts.faults(replace(blind, observation=Observation(Watch.MARKS, "", ""))) == ()
    closed = replace(scenario(), stages=(Stage("closed", 5, users=2),))
    assert "closed load" in doubts.notes(replace(fine, scenario=closed))[0]
    books = Books(["k"], start_ns=0, window_s=(0.0, 100.0), tick_s=8.0)
    books.looked(3, depth={}, unacked=None, rss_bytes=5, watch_rss_bytes=7, holds=Holds())
    assert (books.ticks()[3].generator_rss_bytes, books.ticks()[3].watch_rss_bytes) == (5, 7)
    assert "8 s each" in doubts.notes(replace(fine, ticks=books.ticks()))[0]


def test_an_outcome_is_the_same_after_a_round_trip(tmp_path: Path):
    # Given an outcome with something of everything
    asked = scenario(TEXT + '[broker]\nurl = "redis://:hunter2@127.0.0.1:6379/0"\n')
    held = replace(
        outcome(asked), judged=(Judged("lost == 0", 2.0, 0.0, False, "jobs"),), environment={"cores": 2, "list": (1, 2)}
    )
    # When it is written and read
    path = store.save(held, tmp_path / "run")
    again = store.load(tmp_path / "run")
    # Then nothing has changed but that the password is gone
    assert again == replace(held, scenario=replace(asked, broker=""))
    assert "hunter2" not in path.read_text()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"schema": 1', '"schema": 99'),
        lambda text: text.replace('"kind": "load"', '"kind": "suite"'),
        lambda text: text.replace('"issued": 100', '"issued": 99'),
        lambda text: text.replace('"issued": 100', '"issued": "many"'),
        lambda text: re.sub(r'"hdr": "H', '"hdr": "I', text, count=1),
        lambda _: "[]",
        lambda _: "[" * 100_000,
    ],
)
def test_a_damaged_outcome_is_refused_in_one_line(tmp_path: Path, damage):
    path = store.save(outcome(scenario()), tmp_path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(BadInput) as caught:
        store.load(path)
    assert "\n" not in str(caught.value)
