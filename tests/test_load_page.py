"""What is seen of a load test: the page, the terminal while it runs, and what Prometheus gets."""

import io
import re
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from rich.console import Console

from lab.load import charts, hdr, limit
from lab.load.charts import Series
from lab.load.hdr import COARSE_DIGITS, of
from lab.load.live import LiveView, line, screen
from lab.load.model import ErrorGroup, Holds, Outcome, Search, Tick
from lab.load.page import page
from lab.load.prometheus import MetricsServer, address, watching
from lab.load.tables import measured
from lab.load.thresholds import judge_all, parse
from lab.model import BadInput, Fault
from lab.report.units import NONE, number
from tests import loaded

THRESHOLDS = tuple(parse(says, kinds=("spin",)) for says in ("p99 < 5s", "p50 < 1ms", "lost == 0"))
EMPTY_TAGS = {"meta", "link", "br", "hr", "img", "input", "path", "use"}


def base() -> Outcome:
    return loaded.outcome(60, 15, thresholds=THRESHOLDS)


def searched() -> tuple[Outcome, limit.Limit]:
    search, probes = Search(20.0, 500.0, for_s=8.0, repeats=1, most=6), []
    while (rate := limit.next_rate(search, probes)) is not None:
        probes.append(limit.probe(search, rate, outcome := loaded.outcome(rate, 9, random=False)))
    return outcome, limit.answer(search, probes)


HOSTILE = "<script>alert(1)</script>\x1b[31m"


def variants() -> Iterator[tuple[str, Outcome]]:
    outcome = base()
    yield "as it is", outcome
    holds = tuple(replace(t, holds=Holds(10**8 + 10**6 * i, 10**6, 5)) for i, t in enumerate(outcome.ticks))
    yield "what is held is known", replace(outcome, ticks=holds)
    yield "invalid", replace(outcome, faults=(Fault("late_generator", "the generator was late"),))
    yield "cut short", replace(outcome, ticks=outcome.ticks[:1])
    nothing = hdr.Histogram()
    empty = loaded.Spans()
    ticks = tuple(Tick(float(i), 1.0, loaded.Tally(), phase="measured") for i in range(5))
    bare = replace(outcome, spans=empty, lag=nothing, kinds={}, workers={}, ticks=ticks, environment={})
    yield "nothing ended", replace(bare, judged=judge_all(replace(bare, kinds=outcome.kinds)))
    kind = replace(outcome.kinds["spin"])
    yield (
        "hostile",
        replace(
            outcome,
            scenario=replace(
                outcome.scenario, name=HOSTILE, about=HOSTILE, text=f'url = "redis://u:secret@host/0" # {HOSTILE}'
            ),
            kinds={"spin": kind, HOSTILE: kind},
            workers={HOSTILE: outcome.workers["w0 1"]},
            errors=(ErrorGroup(HOSTILE, HOSTILE, 3, (HOSTILE,)),),
            ticks=tuple(replace(tick, depth={HOSTILE: 3, "b": 4}) for tick in outcome.ticks),
            last_words=HOSTILE,
            notes=(HOSTILE,),
        ),
    )


PAGES = dict(variants())


class Outline(HTMLParser):
    """Whether tags close in order, and what they point to."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        known = {name: value or "" for name, value in attrs}
        if "id" in known:
            self.ids.append(known["id"])
        if known.get("href", "").startswith("#"):
            self.links.append(known["href"][1:])
        elif known.get("href") or known.get("src"):
            self.loads.append(str(known))
        if tag in {"script", "iframe", "object", "embed"}:
            self.loads.append(tag)
        if tag not in EMPTY_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in EMPTY_TAGS:
            assert self.open.pop() == tag


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_well_formed_loads_nothing_and_has_each_id_once(name: str):
    text = page(PAGES[name])
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    assert outline.loads == []
    assert len(outline.ids) == len(set(outline.ids))
    assert set(outline.links) <= set(outline.ids)
    assert "url(http" not in text


@pytest.mark.parametrize("name", PAGES)
def test_the_same_outcome_gives_the_same_bytes(name: str):
    assert page(PAGES[name]) == page(replace(PAGES[name]))


def test_the_axis_of_what_is_counted_has_no_halves():
    # Given twenty seconds in which up to two jobs wait
    drawn = charts.over_time("c", "C", [Series("one", (2.0, 1.0) * 10)], says="", unit="jobs")
    assert drawn is not None
    told = [text.strip() for text in re.findall(r">([^<>]+)<", drawn.drawing)]
    # Then
    assert {"0", "1", "2"} <= set(told)
    assert not {"0.5", "1.5"} & set(told)


def test_every_threshold_is_answered_and_a_broken_one_counted():
    text = page(PAGES["as it is"])
    assert "1 of 3 thresholds broken" in text
    for one in PAGES["as it is"].judged:
        assert one.says.replace("<", "&lt;") in text
        assert measured(one) in text


def test_an_invalid_run_says_so_first_and_judges_no_threshold():
    text = page(PAGES["invalid"])
    assert text.index("INVALID: its figures must not be used") < text.index("<h2")
    assert "the generator was late" in text
    assert "✓" not in text


def test_hostile_words_are_shown_and_never_obeyed():
    text = page(PAGES["hostile"])
    assert "<script" not in text
    assert "\x1b" not in text
    assert "&lt;script&gt;" in text
    assert "secret" not in text


def test_a_page_of_a_search_puts_the_answer_before_the_last_run():
    outcome, found = searched()
    text = page(outcome, found)
    assert found.interval_hz is not None, found.refused
    assert text.index("The highest rate that can be kept up lies between") < text.index("Thresholds of the last run")
    assert text.count("<li>") >= len(found.probes)


def test_a_long_run_makes_no_larger_charts():
    # Given an hour of ticks
    tick = base().ticks[5]
    hour = [replace(tick, at_s=float(i)) for i in range(3600)]
    short = charts.heat("a", "t", [one.latency for one in hour[:60]], says="")
    long = charts.heat("a", "t", [one.latency for one in hour], says="")
    assert short is not None
    assert long is not None
    # Then its heat map has no more cells than a minute's, and the line chart says what a point is
    assert len(long.drawing) < 1.5 * len(short.drawing)
    lines = charts.over_time("b", "t", [Series("x", tuple(float(i) for i in range(3600)))], says="", unit="jobs")
    assert lines is not None
    assert "mean of 18 ticks" in lines.caption


def test_a_heat_map_counts_every_job():
    # Given jobs of 1 ms and of 1 s
    ticks = [hdr.of([1_000_000] * 90 + [1_000_000_000] * 10, 2)] * 4
    drawn = charts.heat("a", "t", ticks, says="")
    assert drawn is not None
    assert "400 jobs over 4 s; the fullest cell holds 90" in drawn.drawing


def test_the_curve_of_percentiles_ends_at_the_longest_job():
    histogram = hdr.of([int(1e6) * i for i in range(1, 1001)])
    drawn = charts.percentiles("a", "t", [("x", histogram)], says="")
    assert drawn is not None
    assert "p50 500 ms, p90 900 ms, p99 990 ms, longest 1000 ms of 1000 jobs" in drawn.drawing


# ------------------------------------------------ while it runs


def test_a_pipe_gets_a_plain_line_every_few_seconds():
    # Given a console that is no terminal
    out = io.StringIO()
    with LiveView(Console(file=out, width=200), name="steady", planned_s=15) as view:
        # When twelve ticks end
        for tick in base().ticks[:12]:
            view.tick(tick)
    # Then there are three lines without control characters
    lines = out.getvalue().splitlines()
    assert [text.split()[0] for text in lines] == ["1", "6", "11"]
    assert "warm-up" in lines[0]
    assert re.search(r"offered [\d.]+/s  done [\d.]+/s  in flight \d+  waiting \d+  p50 [\d.]+ ms  p99 ", lines[1])
    assert "\x1b" not in out.getvalue()


def test_a_terminal_gets_one_screen_that_is_gone_at_the_end():
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, height=40)
    with LiveView(console, name="steady", planned_s=15) as view:
        for tick in base().ticks[:3]:
            view.tick(tick)
    assert "in flight" in out.getvalue()
    assert out.getvalue().endswith("\x1b[2K")  # its last line is wiped


def test_the_screen_shows_kinds_queues_and_workers():
    out = io.StringIO()
    ticks = base().ticks[3:6]
    Console(file=out, width=100).print(screen(ticks, name="steady", planned_s=15, failed=2))
    text = out.getvalue()
    for words in ("steady", "spin", "jobs", "w0 1", "failed 2 in all", "generator's lag"):
        assert words in text


def test_the_screen_shows_what_fails_by_queue_and_worker():
    # Given three seconds in which six attempts failed, all in one queue and on one worker
    tally = loaded.Tally(done=10, failed=2)
    ticks = [
        Tick(float(i), 1.0, tally, {"a": tally, "b": loaded.Tally(done=5)}, {"w 1": 12, "w 2": 5}, {"w 1": 2},
             {"one": 7, "two": 0})
        for i in range(3)
    ]  # fmt: skip
    out = io.StringIO()
    Console(file=out, width=120).print(screen(ticks, name="x", planned_s=3, failed=6, queues={"a": "one", "b": "two"}))
    rows = [" ".join(text.split()) for text in out.getvalue().splitlines()]
    for words in ("one 7 10.0 2.00", "two 0 5.00 0", "w 1 12.0 2.00", "w 2 5.00 0"):
        assert any(words in row for row in rows), (words, rows)
    # And in a pipe the line says what waits where
    assert "waiting 7 (one 7, two 0)" in line(ticks, failed=6)


def test_the_screen_shows_latency_by_kind_queue_and_worker():
    # Given two seconds in which jobs of one kind took 10 ms and those of the other 500, on a worker each
    tally, each = loaded.Tally(done=10), {"quick": of([10_000_000] * 10, COARSE_DIGITS)}
    slow = of([500_000_000] * 10, COARSE_DIGITS)
    ticks = [
        Tick(
            float(i),
            1.0,
            tally,
            {"quick": tally, "slow": tally},
            {"w 1": 10, "w 2": 10, "w 3": 0},
            depth={"one": 0, "two": 0},
            kind_latency={**each, "slow": slow},
            worker_latency={"w 1": each["quick"], "w 2": slow},
        )
        for i in range(2)
    ]
    out = io.StringIO()
    Console(file=out, width=160).print(
        screen(ticks, name="x", planned_s=3, failed=0, queues={"quick": "one", "slow": "two"})
    )
    rows = [" ".join(text.split()) for text in out.getvalue().splitlines()]
    ten, half = (re.escape(f"{number(one.quantile_s(0.99) * 1e3)} ms") for one in (each["quick"], slow))
    for words in (
        rf"quick 10.0 0 {ten} {ten}",
        rf"slow 10.0 0 {half} {half}",
        rf"one 0 10.0 0 {ten}",
        rf"two 0 10.0 0 {half}",
        rf"w 1 10.0 0 {ten}",
        rf"w 2 10.0 0 {half}",
        rf"w 3 0 0 {NONE}",
    ):
        assert any(re.search(words, row) for row in rows), (words, rows)


def test_a_tick_without_any_job_shows_no_figure():
    text = line([Tick(0.0, 1.0, loaded.Tally())], failed=0)
    assert f"p50 {NONE}  p99 {NONE}" in text


# ------------------------------------------------ Prometheus


def scraped(server: MetricsServer) -> dict[str, float]:
    parser = pytest.importorskip("prometheus_client.parser")
    text = urllib.request.urlopen(server.url, timeout=10).read().decode()  # noqa: S310  our own, on the loopback
    samples = [sample for family in parser.text_string_to_metric_families(text) for sample in family.samples]
    return {" ".join((one.name, *_others(one.labels))): one.value for one in samples}


def _others(labels: dict[str, str]) -> list[str]:
    return [value for name, value in sorted(labels.items()) if name != "scenario"]


def test_prometheus_sees_what_the_ticks_add_up_to():
    pytest.importorskip("prometheus_client", reason="the extra `metrics` is not installed")
    outcome = base()
    with MetricsServer("127.0.0.1:0", scenario="steady") as server:
        for tick in outcome.ticks:
            server.tick(tick)
        found = scraped(server)
    # Then counters and histograms agree with the ledger
    assert found["sidestep_load_sent_total"] == outcome.ledger.issued
    assert found["sidestep_load_done_total spin"] == outcome.ledger.done
    assert found["sidestep_load_ended_total w0 1"] == outcome.ledger.done
    assert found["sidestep_load_latency_seconds_count"] == outcome.ledger.done
    assert found["sidestep_load_latency_seconds_bucket +Inf"] == outcome.ledger.done
    assert found["sidestep_load_in_flight"] == 0
    assert "sidestep_load_waiting jobs" in found


def test_a_port_that_is_taken_is_one_line():
    pytest.importorskip("prometheus_client", reason="the extra `metrics` is not installed")
    with (
        MetricsServer("127.0.0.1:0", scenario="a") as first,
        pytest.raises(BadInput, match="cannot serve metrics"),
        MetricsServer(first.url.removeprefix("http://").removesuffix("/metrics"), scenario="b"),
    ):
        pass


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("127.0.0.1:9809", ("127.0.0.1", 9809)),
        (":9809", ("127.0.0.1", 9809)),
        ("9809", ("127.0.0.1", 9809)),
        ("[::1]:1", ("::1", 1)),
    ],
)
def test_metrics_listen_on_the_loopback_unless_told_otherwise(text: str, found: tuple[str, int]):
    assert address(text) == found


@pytest.mark.parametrize("text", ["", "localhost", "host:port", "1:99999"])
def test_an_address_that_is_none_is_refused(text: str):
    with pytest.raises(BadInput, match="HOST:PORT"):
        address(text)


def test_without_an_address_nobody_listens():
    with watching(None, scenario="steady", say=pytest.fail) as told:
        told(base().ticks[0])
