"""The report: one suite in, the same page out, and every number in it can be traced."""

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from rich.console import Console

from experiments.catalogue import EXPERIMENTS
from lab.model import (
    SAMPLE_COLUMNS,
    Arms,
    Claim,
    Estimate,
    Experiment,
    Fault,
    Finding,
    FrozenArgs,
    Ledger,
    Load,
    Nanoseconds,
    Ratio,
    Resources,
    Run,
    Samples,
    Setup,
    Suite,
    Trial,
    Verdict,
)
from lab.report import tables, text
from lab.report.caveats import caveats
from lab.report.groups import groups, rate_hz
from lab.report.page import page
from lab.report.speedup import busy_share, speedups
from lab.report.svg import THEME
from lab.report.swimlane import lanes, pack, stalled_share
from lab.report.tables import TABLES, latency
from lab.report.units import interval, number, plain
from lab.stats import throughput_hz
from lab.verdict import judge_all
from producer.pacers import Burst, Constant
from producer.payloads import Calibrated, Payload
from tests.fakes import make_resources, make_run, make_samples
from tests.simulator import simulate

GOLDEN = Path(__file__).parent / "golden"
HOSTILE = "<script>alert(1)</script> & \"quotes\" 'single' [bold red]x[/] \x1b[31m \x00 \ud800 </style> --> ]]>"
SPIN = Setup(job="spin", args=FrozenArgs({"loops": Calibrated(ms=10)}), pacer=Burst(8))

CLAIM = Claim(
    id="pools/prefork",
    says="Two processes are nearly twice as fast as one.",
    measure=Ratio("throughput_hz", of={"pool": "prefork", "concurrency": 2}, to={"pool": "prefork", "concurrency": 1}),
    why="Each has an interpreter of its own.",
    advice="Use prefork.",
    at_least=1.6,
)
POOLS = Experiment(
    name="pools",
    question="Which pool is faster?",
    base=SPIN,
    arms=(Arms({"pool": ("prefork", "threads"), "concurrency": (1, 2)}),),
    claims=(
        CLAIM,
        replace(
            CLAIM,
            id="pools/threads",
            says="Two threads are no faster than one.",
            measure=Ratio(
                "throughput_hz", {"pool": "threads", "concurrency": 2}, {"pool": "threads", "concurrency": 1}
            ),
            at_least=-math.inf,
            at_most=1.1,
        ),
    ),
    repeats=3,
    quick_repeats=3,
)


def a_run(
    setup: Setup,
    *,
    repeat: int = 0,
    experiment: str = "pools",
    jobs: int = 8,
    service_s: float = 0.010,
    cpu_share: float = 1.0,
    gap_s: float = 0.001,
    faults: tuple[Fault, ...] = (),
) -> Run:
    """Jobs all due at 0, dealt to the slots in turn, each slot resting `gap_s` before every job."""
    at = np.arange(jobs)
    started = ((at // setup.slots) * (service_s + gap_s) + gap_s) * (1 + repeat / 50)
    ended = started + service_s
    slot = at % setup.slots
    processes = setup.pool in {"prefork", "processes"}
    nothing = np.zeros(jobs, dtype=np.int64)
    samples = Samples(
        due_ns=nothing,
        sent_ns=ns(at * 1e-5),
        received_ns=ns(at * 2e-5),
        started_ns=ns(started),
        ended_ns=ns(ended),
        cpu_ns=ns(np.full(jobs, service_s * cpu_share)),
        worker=slot if processes else nothing,
        thread=at if setup.pool == "gevent" else nothing if processes else slot,
        gil=nothing + 1,
        beside=nothing,
        value=nothing,
    )
    if not setup.marks:
        samples = replace(samples, **dict.fromkeys(samples.__slots__, nothing[:0]))
    resources = Resources(
        wall_s=float(ended.max()) if jobs else 1.0,
        boot_s=0.3,
        worker_cpu_s=jobs * service_s * cpu_share,
        worker_pss_bytes=40 * 2**20,
        context_switches=100,
        commands={"brpop": jobs, "lpush": jobs} if setup.queued else {},
        bytes_in=1000 * jobs if setup.queued else None,
        bytes_out=500 * jobs if setup.queued else None,
        python="3.11.7",
    )
    return Run(Trial(experiment, setup, repeat), samples, Ledger(jobs, jobs, 0, 0), resources, faults)


def ns(seconds: NDArray[Any]) -> Nanoseconds:
    return np.round(seconds * 1e9).astype(np.int64)


def some_runs(repeats: int = 3) -> list[Run]:
    return [
        a_run(
            replace(SPIN, pool=pool, concurrency=slots), repeat=repeat, service_s=service_s, cpu_share=0.010 / service_s
        )
        for repeat in range(repeats)
        for pool, slots, service_s in (
            ("threads", 2, 0.020),
            ("prefork", 1, 0.010),
            ("prefork", 2, 0.0105 + repeat * 1e-4),
            ("threads", 1, 0.010),
        )
    ]


def a_suite(runs: list[Run] | None = None, **changes: Any) -> Suite:
    environment = {
        "cpu": "Test CPU",
        "cores": 2,
        "python": "3.11.7",
        "memory_bytes": 2**30,
        "packages": {"celery": "5.7.0"},
    }
    suite = Suite(
        environment=environment,
        experiments=("pools",),
        runs=tuple(some_runs() if runs is None else runs),
        seed=7,
        repeats={"pools": 3},
    )
    return replace(suite, **changes)


def rendered(suite: Suite, experiment: Experiment = POOLS) -> str:
    return page(suite, judge_all([experiment], suite), [experiment])


def printed(suite: Suite, experiment: Experiment = POOLS, findings: list[Finding] | None = None) -> str:
    console = Console(width=80, file=None, color_system=None)
    with console.capture() as captured:
        for shown in text.render(suite, judge_all([experiment], suite) if findings is None else findings, [experiment]):
            console.print(shown)
    return captured.get()


class Outline(HTMLParser):
    """What a browser would make of the page: open tags, ids, what it points to."""

    VOID = frozenset({"meta", "br", "hr", "img", "input", "link", "path", "use", "rect"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.targets: list[str] = []
        self.tags: list[str] = []
        self.headings: list[int] = []
        self.loads: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._see(tag, attrs)
        if tag not in self.VOID - {"path", "use", "rect"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._see(tag, attrs)

    def _see(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if re.fullmatch(r"h[1-6]", tag):
            self.headings.append(int(tag[1]))
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in {"href", "xlink:href"} and (value or "").startswith("#"):
                self.targets.append((value or "")[1:])
            elif name in {"src", "href", "xlink:href", "data", "srcset", "action"}:
                self.loads.append(f"{name}={value}")
            if name in {"aria-labelledby", "aria-describedby"}:
                self.targets += (value or "").split()
            self.targets += re.findall(r"url\(#([^)]+)\)", value or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open[-1:]:
            self.words.append(data)

    @property
    def reads(self) -> str:
        return " ".join(" ".join(self.words).split())


def variants() -> Iterator[tuple[str, Suite]]:
    yield "a full suite", a_suite()
    yield "no runs at all", a_suite([])
    yield "one repeat", a_suite(some_runs(1))
    yield "two repeats", a_suite(some_runs(2), quick=True)
    yield "no marks", a_suite([a_run(replace(SPIN, pool="prefork", concurrency=c, marks=False)) for c in (1, 2)])
    yield "a fault", a_suite([replace(run, faults=(Fault("noise", HOSTILE),)) for run in some_runs()])
    yield "another experiment", a_suite([a_run(SPIN, experiment="unknown")])
    yield "greenlets", a_suite([a_run(replace(SPIN, pool="gevent", concurrency=4), cpu_share=0.2)])
    yield "a single job", a_suite([a_run(SPIN, jobs=1, repeat=r) for r in range(2)])
    yield (
        "a memory that cannot be read",
        a_suite([replace(run, resources=replace(run.resources, worker_pss_bytes=None)) for run in some_runs()]),
    )
    yield "no CPU time", a_suite([replace(r, resources=replace(r.resources, worker_cpu_s=0.0)) for r in some_runs()])


VARIANTS = dict(variants())
anyhow = pytest.mark.parametrize("name", VARIANTS)


@cache
def page_of(name: str) -> str:
    return rendered(VARIANTS[name])


@anyhow
def test_a_page_is_well_formed_loads_nothing_and_has_each_id_once(name: str) -> None:
    html = page_of(name)
    outline = Outline(html)
    assert outline.open == []
    assert len(outline.ids) == len(set(outline.ids))
    assert set(outline.targets) <= set(outline.ids)
    assert outline.loads == []
    assert not {"script", "link", "img", "iframe", "object"} & set(outline.tags)
    assert not re.search(r"https?://|@import|javascript:", html)
    # And headings go down one step at a time.
    assert outline.headings[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(outline.headings))


@anyhow
def test_the_same_suite_gives_the_same_bytes(name: str) -> None:
    assert rendered(VARIANTS[name]) == page_of(name)
    assert printed(VARIANTS[name]) == printed(VARIANTS[name])


@anyhow
def test_every_claim_is_answered_in_words_on_page_and_terminal(name: str) -> None:
    findings = judge_all([POOLS], VARIANTS[name])
    reads, prints = Outline(page_of(name)).reads, printed(VARIANTS[name])
    for finding in findings:
        assert finding.claim.says in reads
        assert finding.claim.id in prints
        assert finding.verdict.value in reads
        assert finding.verdict.value.upper() in prints


@anyhow
def test_no_line_on_the_terminal_is_longer_than_80_columns(name: str) -> None:
    assert max(map(len, printed(VARIANTS[name]).splitlines())) <= 80


def test_long_labels_wrap_and_no_number_is_cut_short() -> None:
    setups = [
        replace(SPIN, pool="eventlet", concurrency=10, job=job, args=FrozenArgs(), preset=preset, marks=marks)
        for job in ("noop", "digest")
        for preset in ("default", "lossless")
        for marks in (True, False)
    ]
    prints = printed(a_suite([a_run(setup, repeat=r, cpu_share=0.7) for setup in setups for r in range(3)]))
    assert max(map(len, prints.splitlines())) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in prints


def test_a_readers_own_matplotlib_settings_change_nothing() -> None:
    import matplotlib

    before = rendered(a_suite())
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "svg.fonttype": "path", "lines.linewidth": 9}):
        assert rendered(a_suite()) == before


def test_hostile_strings_are_shown_and_never_obeyed() -> None:
    claim = replace(CLAIM, says=HOSTILE, why=HOSTILE, advice=HOSTILE)
    hostile = replace(POOLS, question=HOSTILE, claims=(claim,))
    runs = [replace(run, faults=(Fault("x", HOSTILE),)) for run in some_runs()]
    for i, run in enumerate(runs):
        setup = replace(run.trial.setup, job=HOSTILE)
        runs[i] = replace(run, trial=replace(run.trial, setup=setup))
    suite = a_suite(runs, environment={"cpu": HOSTILE, "cores": 2, HOSTILE: HOSTILE}, left_out={HOSTILE: HOSTILE})
    html, prints = rendered(suite, hostile), printed(suite, hostile)
    outline = Outline(html)
    assert outline.open == []
    assert "script" not in outline.tags
    assert "<script>alert(1)</script>" in outline.reads
    html.encode("utf-8")
    prints.encode("utf-8")
    assert "[bold red]x[/]" in prints
    assert not {"\x1b", "\x00"} & set(html + prints)


def test_one_repeat_has_no_interval_and_says_so() -> None:
    suite = a_suite(some_runs(1))
    assert "one repeat: no interval" in rendered(suite)
    assert "one repeat: no interval" in printed(suite)
    assert not re.search(r"\binf\b|\bnan\b", Outline(rendered(suite)).reads + printed(suite))


def test_quick_and_interrupted_suites_say_so_before_anything_else() -> None:
    suite = a_suite(some_runs(2)[:-1], quick=True)
    reads, prints = Outline(rendered(suite)).reads, printed(suite)
    for shown in (reads, prints):
        assert shown.index("quick: few repeats, wide intervals") < shown.index(CLAIM.says)
        assert shown.index("interrupted: pools has 1 to 2 of 3 repeats") < shown.index(CLAIM.says)


def test_a_complete_suite_is_not_called_interrupted() -> None:
    assert "interrupted" not in rendered(a_suite())
    assert "quick:" not in rendered(a_suite())


def test_an_invalid_claim_shows_its_fault_and_the_list_names_the_repeats() -> None:
    runs = some_runs()
    runs[1] = replace(runs[1], faults=(Fault("noise", "others used 1.3 cores: close them"),))
    suite = a_suite(runs)
    reads = Outline(rendered(suite)).reads
    assert "1 invalid" in reads
    assert "pools, repeat 1: others used 1.3 cores: close them" in reads
    assert "1 of 12 runs had faults" in reads


def test_what_was_left_out_is_listed_with_its_reason() -> None:
    suite = a_suite(left_out={"pools · gevent 2": "gevent is not installed"})
    assert "gevent is not installed" in Outline(rendered(suite)).reads
    assert "pools · gevent 2: gevent is not installed" in printed(suite)


def test_the_speed_up_is_exactly_the_product_of_its_factors() -> None:
    # Given runs that differ in service time, in rest between jobs and from repeat to repeat
    arms = groups(some_runs())
    found = {speedup.label: speedup for speedup in speedups(arms)}
    assert set(found) == {"prefork 2", "threads 2"}
    for label, speedup in found.items():
        product = speedup.slots * speedup.busy.value * speedup.service.value
        assert product == pytest.approx(speedup.total.value, rel=1e-12)
        # And it is the ratio of the throughputs in the table above it
        by_label = {group.label: group for group in arms}
        many, one = (by_label[name].estimate(throughput_hz) for name in (label, label.replace("2", "1")))
        assert many
        assert one
        assert speedup.total.value == pytest.approx(many.value / one.value, rel=1e-9)


def test_two_threads_at_half_pace_lose_it_to_stalled_time() -> None:
    found = {speedup.label: speedup for speedup in speedups(groups(some_runs()))}
    assert found["threads 2"].service.value == pytest.approx(0.5)


@pytest.mark.parametrize("cpu_share", [0.0, 0.25, 1.0, 1.001])
def test_a_swimlane_bar_is_filled_by_the_jobs_share_on_the_cpu(cpu_share: float) -> None:
    run = a_run(replace(SPIN, pool="threads", concurrency=2), cpu_share=cpu_share)
    assert stalled_share(run) == pytest.approx(np.full(8, max(0.0, 1 - cpu_share)))


def test_jobs_on_one_lane_never_overlap_and_lanes_are_as_few_as_can_be() -> None:
    rng = np.random.default_rng(1)
    started = rng.integers(0, 1000, 200)
    ended = started + rng.integers(0, 50, 200)
    worker = rng.integers(0, 2, 200)
    lane = pack(worker, started, ended)
    for one in range(int(lane.max()) + 1):
        mine = np.flatnonzero(lane == one)
        assert len(set(worker[mine].tolist())) == 1
        order = mine[np.argsort(started[mine], kind="stable")]
        assert all(ended[a] <= started[b] for a, b in itertools.pairwise(order))
    moments = np.unique(started)
    busiest = sum(max(int(np.sum((started <= t) & (ended > t) & (worker == w))) for t in moments) for w in (0, 1))
    assert int(lane.max()) + 1 <= busiest + 2  # a job of length 0 may need a place of its own


def test_threads_keep_their_lanes_and_greenlets_are_packed() -> None:
    threads = lanes(groups([a_run(replace(SPIN, pool="threads", concurrency=2))])[0])
    greenlets = lanes(groups([a_run(replace(SPIN, pool="gevent", concurrency=4))])[0])
    assert threads
    assert greenlets
    assert (threads.count, threads.packed) == (2, False)
    assert (greenlets.count, greenlets.packed) == (4, True)


def test_a_long_run_is_cut_and_the_chart_says_what_was_cut() -> None:
    runs = [a_run(replace(SPIN, pool="threads", concurrency=c), jobs=2000) for c in (1, 60)]
    suite = a_suite(runs)
    html = rendered(suite, replace(POOLS, claims=()))
    assert re.search(r"threads 60: 1 process, 16 of 60 threads, \d+ of 2000 jobs", html)
    assert len(html) < 400_000


def test_the_cheapest_slots_are_sought_among_those_that_are_busy() -> None:
    # Given three pools of ten slots: the lightest stands idle, and of the others the second weighs less
    def run(pool: str, pss: int, ended_s: float, slots: int = 10):
        setup = Setup("snooze", FrozenArgs(ms=500), Burst(20), pool, slots)
        ends = [round(ended_s * 1e9)] * 20
        samples = make_samples(ended_ns=ends, started_ns=[end - 400_000_000 for end in ends])
        return make_run(setup=setup, samples=samples, resources=make_resources(worker_pss_bytes=pss))

    runs = [run("prefork", 200 << 20, 1), run("threads", 50 << 20, 1), run("gevent", 40 << 20, 9)]
    table = tables.cheapest(groups(runs))
    assert table
    assert [row[:3] for row in table.rows] == [("10", "threads", "5.00")]
    assert table.rows[0][-1] == "gevent"
    # When none is busy enough, none is named; and one pool alone has no rival
    idle = tables.cheapest(groups([run("threads", 1 << 20, 9), run("gevent", 1 << 20, 9)]))
    assert idle
    assert idle.rows[0][1] == "no pool"
    assert tables.cheapest(groups([run("threads", 1 << 20, 1)])) is None
    assert tables.cheapest(groups([run("threads", 1 << 20, 1, 8), run("gevent", 1 << 20, 1, 8)])) is None


def test_lost_updates_are_counted_and_orders_compared_from_run_to_run() -> None:
    # Given three runs of four jobs that add 10 each in two slots, so 60 additions, of which 15 are missing
    tally = Setup("tally", FrozenArgs(rounds=10, guard="none"), Burst(4), "threads", 2)
    orders = ([1, 2, 3, 4], [1, 2, 3, 4], [4, 3, 2, 1])
    runs = [
        make_run(setup=tally, repeat=i, samples=make_samples(ended_ns=ends, value=[45] * 4))
        for i, ends in enumerate(orders)
    ]
    table = tables.races(groups(runs))
    assert table
    # Then the third run turned every pair round, and the second none
    assert table.rows[0][1:] == ("60", "15", "33.3 (0\N{EN DASH}100)", "50.0 (0\N{EN DASH}100)", "3")
    assert tables.races(groups([make_run()])) is None


def test_a_locks_price_is_shown_by_kind_and_threads_with_its_share_of_a_job() -> None:
    # Given two kinds of locks, each held ten times a job of 1 and of 2 ms
    runs = [
        make_run(
            setup=Setup("hold", FrozenArgs(kind=kind, rounds=10), Burst(2), "threads", slots, queued=False),
            samples=make_samples(ended_ns=[slots * 1_000_000] * 2),
        )
        for kind in ("Lock", "RLock")
        for slots in (2, 1)
    ]
    table = tables.rounds(groups(runs))
    assert table
    assert [row[:4] for row in table.rows] == [
        (kind, threads, us, share)
        for kind in ("Lock", "RLock")
        for threads, us, share in (("1", "100", "10.0 %"), ("2", "200", "20.0 %"))
    ]


def test_the_price_of_a_megabyte_is_the_slope_between_two_sizes() -> None:
    # Given the simulator's ways, whose pipe copies a byte in 10 ns; when 100 bytes and a megabyte go through it
    setups = [
        Setup("carry", FrozenArgs(payload=Payload("records", size), loops=1), Constant(5, 1), steps=True)
        for size in (100, 1_000_000)
    ]
    runs = [simulate(Trial("x", setup, 0), run_noise=0, block_noise=0) for setup in setups]
    table = tables.per_megabyte(groups(runs))
    assert table
    assert table.rows[0][1] == "10.0"
    # And one size alone has no slope
    assert tables.per_megabyte(groups(runs[:1])) is None


def test_percentiles_are_of_pooled_samples_not_averages() -> None:
    # Given 99 fast jobs in one repeat and 101 slow ones in another
    fast, slow = (
        a_run(SPIN, jobs=n, repeat=r, service_s=s, gap_s=0.0) for r, (n, s) in enumerate(((99, 1e-3), (101, 1.0)))
    )
    table = latency(groups([fast, slow]))
    assert table
    pooled = np.sort(np.concatenate([fast.samples.latency_s, slow.samples.latency_s]))
    cells = dict(zip([column.name for column in table.columns], table.rows[0], strict=True))
    assert cells["p50"] == number(float(pooled[99]) * 1e3, decimals=3)
    assert cells["n"] == "200"
    # And 200 jobs say nothing of the worst in a thousand
    assert cells["p99.9"] == "\N{EN DASH}"


def test_a_load_that_outran_a_setup_is_said_to_decide_its_latency() -> None:
    open_load = replace(SPIN, pacer=Constant(rate_hz=1000, duration_s=0.1))
    table = latency(groups([a_run(open_load, jobs=100, service_s=0.05)]))
    assert table
    assert any("prefork 1 could not keep up" in note for note in table.notes)


def test_setups_that_share_a_label_are_told_apart_by_what_differs() -> None:
    both = [replace(SPIN, job=job, marks=marks) for job in ("noop", "spin") for marks in (True, False)]
    labels = [group.label for group in groups([a_run(setup) for setup in both])]
    assert sorted(labels) == sorted(
        f"prefork 1 · {job} · marks {on}" for job in ("noop", "spin") for on in ("on", "off")
    )


def test_arguments_without_a_hash_can_be_grouped() -> None:
    assert len(groups([a_run(replace(SPIN, args={"loops": 3}), repeat=r) for r in range(2)])) == 1


def test_a_run_that_watched_the_broker_is_timed_at_the_broker() -> None:
    run = a_run(replace(SPIN, watch_broker=True, marks=False))
    run = replace(run, resources=replace(run.resources, drained_s=2.0))
    assert rate_hz(run) == 4.0


def test_tables_are_as_wide_as_their_headings() -> None:
    arms = groups(some_runs())
    made = {make.__name__: make(arms) for make in TABLES}
    # Nothing ran beside, nothing was handed over, written or read, and no payload was sent
    assert {name for name, table in made.items() if table is None} == {
        "arrivals", "beside", "cheapest", "coding", "messages", "collected", "races", "rounds", "per_megabyte",
        "watching", "machines"
    }  # fmt: skip
    for table in filter(None, made.values()):
        assert {len(row) for row in table.rows} == {len(table.columns)}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (9.996, "10.0"),
        (0.04912, "0.0491"),
        (134.4, "134"),
        (99.96, "100"),
        (12345.6, "12300"),
        (2.5e7, "2.50e+07"),
        (1e-7, "1.00e-07"),
        (-0.25, "-0.250"),
        (math.inf, "\N{EN DASH}"),
        (math.nan, "\N{EN DASH}"),
    ],
)
def test_numbers_have_three_significant_digits(value: float, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [
        (1.612, 1.9, "[1.61-1.90]"),
        (1.5996, 1.9, "[1.5996-1.9000]"),
        (1.2, 1.5996, "[1.2000-1.5996]"),
        (1.6, 1.9, "[1.60-1.90]"),
    ],
)
def test_rounding_never_moves_an_interval_across_the_bound(low: float, high: float, shown: str) -> None:
    assert interval(Estimate(1.7, low, high, 3), CLAIM).replace("\N{EN DASH}", "-") == shown


def test_a_chart_has_no_colour_that_a_theme_cannot_change() -> None:
    drawings = re.findall(r"<svg.*?</svg>", rendered(a_suite()), re.DOTALL)
    assert len(drawings) == 5
    for drawing in drawings:
        without = re.sub(r"var\(--\w+,#[0-9a-f]{6}\)", "", drawing)
        assert not re.search(r"#[0-9a-fA-F]{6}\b", without)
        assert "<title" in drawing
        assert "<desc" in drawing
    assert not any(sentinel in "".join(drawings) for sentinel in THEME)


def test_a_finding_without_an_estimate_is_shown_with_its_reason() -> None:
    finding = Finding(CLAIM, None, Verdict.INVALID, "not measured: no repeat has both sides of the ratio")
    suite = a_suite([a_run(SPIN)])
    reads = Outline(page(suite, [finding], [POOLS])).reads
    assert "no estimate" in reads
    assert finding.because in reads
    assert "measured nothing" in printed(suite, findings=[finding])


def test_text_of_a_stranger_cannot_steer_the_terminal() -> None:
    assert plain("a\x1b[2Jb\tc\nd") == "a\N{REPLACEMENT CHARACTER}[2Jb c d"


def test_the_golden_page_looks_as_it_did() -> None:
    # Drawings are left out: their bytes belong to a version of matplotlib.
    html = re.sub(r"<svg.*?</svg>", "<svg></svg>", rendered(a_suite()), flags=re.DOTALL)
    html = re.sub(r"<style>.*?</style>", "<style></style>", html, flags=re.DOTALL)
    compare("page.html", html)


def test_the_golden_terminal_looks_as_it_did() -> None:
    compare("terminal.txt", "\n".join(line.rstrip() for line in printed(a_suite()).splitlines()) + "\n")


def compare(name: str, now: str) -> None:
    """To accept a new look, delete the file, run the test twice and read the difference in git."""
    file = GOLDEN / name
    if not file.exists():
        file.write_text(now, "utf-8")
        pytest.fail(f"wrote {file}; read it, then run again")
    assert now == file.read_text("utf-8")


def test_every_measure_has_words() -> None:
    from lab import stats
    from lab.report import words

    assert set(words.MEASURES) == set(stats.MEASURES)


def test_every_measure_axis_and_prediction_has_words_and_a_unit() -> None:
    from lab import axes, predictions, stats
    from lab.report import curves, words

    assert set(words.UNITS) == set(stats.MEASURES)
    assert set(words.AXES) == set(axes.AXES) == set(curves.FIELDS)
    assert set(words.PREDICTIONS) == set(predictions.PREDICTIONS) | set(predictions.FITTED)


def test_latency_waits_and_service_are_of_the_setups_own_jobs() -> None:
    # Given one quick job a slot, and a job beside them that takes a hundred times as long
    run = a_run(replace(SPIN, beside=Load("spin", FrozenArgs(), Burst(1))), jobs=2)
    slow = replace(a_run(SPIN, jobs=1, service_s=1.0).samples, beside=np.ones(1, dtype=np.int64), thread=np.full(1, 9))
    both = Samples(*(np.concatenate([getattr(run.samples, c), getattr(slow, c)]) for c in SAMPLE_COLUMNS))
    (group,) = groups([replace(run, samples=both, resources=replace(run.resources, wall_s=1.0))])
    # Then tables tell them apart
    assert group.jobs == 2
    cells = latency([group])
    assert cells
    assert cells.rows[0][-1] == "2"
    assert max(group.pooled(lambda s: s.latency_s)) < 0.1
    assert busy_share(group.runs[0]) == pytest.approx(0.02 / 0.022)
    others = tables.beside([group])
    assert others
    assert "1000" in others.rows[0]


def test_setups_that_could_not_run_are_not_missed_although_they_share_a_label_and_others_are() -> None:
    # Given a suite of break-even without sub-interpreters, of which several lengths of job have one label
    experiment = EXPERIMENTS["break-even"]
    setups = experiment.setups(cores=2)
    unable = [setup for setup in setups if setup.pool == "interpreters"]
    assert len({setup.label for setup in unable}) < len(unable)
    runs = [
        replace(make_run(setup=setup), trial=Trial("break-even", setup, 0)) for setup in setups if setup not in unable
    ]
    left_out = {f"break-even · {setup.label}": "no sub-interpreters" for setup in unable}

    def missed(runs: list[Run]) -> list[str]:
        suite = a_suite(runs, experiments=("break-even",), repeats={"break-even": 1}, left_out=left_out)
        return [says for says in caveats(suite, [experiment]) if "declared setup" in says]

    # Then none is missed, and one that has no run is
    assert missed(runs) == []
    assert missed(runs[1:]) == [f"break-even: 1 declared setup of {len(setups)} has no run in this suite."]
