"""A load test as one HTML file: the verdict, then what it looked like, then machine and method. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from lab.load import charts, tables
from lab.load.charts import Series
from lab.load.limit import Limit
from lab.load.model import Judged, Outcome, Tick
from lab.report.charts import Chart
from lab.report.html import escape, paragraph, table
from lab.report.machine import fingerprint
from lab.report.page import figure
from lab.report.style import CSS
from lab.report.units import number, plural

OWN_CSS = """
pre { overflow-x: auto; background: var(--box); padding: .8rem 1rem; font-size: .85rem; white-space: pre-wrap; }
.card.holds { border-left: 6px solid var(--s3); }
.card.broken { border-left: 6px double var(--s6); }
.card.skipped { border-left: 6px dotted var(--s4); }
"""
SECRET = re.compile(r"(\w+://)[^@/\s\"']*@")
"""User and password in a URL."""
STARS = r"\1***@"

MOST_QUEUES = 6
"""More lines than this nobody can tell apart."""

METHOD = (
    (
        "Latency",
        "A job's latency counts from the moment it was due, by a schedule that was fixed before the run and waits for "
        "nobody. A generator that falls behind therefore makes latency worse, never better. Uncorrected latency "
        "counts from when the job was really sent; it is shown so that one can see what the usual way would have "
        "hidden (Gil Tene's coordinated omission).",
    ),
    (
        "What counts",
        "Jobs due during the warm-up are sent and accounted for and count in no latency. Latency is that of jobs that "
        "ended well; those that failed or were lost stand in the ledger. Throughput is what ended well within the "
        "measured window. Charts show the whole run; dashed uprights are where the measured window begins and ends.",
    ),
    (
        "Percentiles",
        "They come from HdrHistograms with three significant digits (two for those of single seconds), merged by "
        "adding counts, never from averages of percentiles. The longest is exact.",
    ),
    (
        "Intervals",
        "One run is one draw. Intervals here are from batches of its own seconds, long enough that neighbouring "
        "batches no longer hang together, and what correlation is left widens them. What differs from one start of "
        "the workers to the next is in none of them: compare several runs with `sidestep compare`.",
    ),
    (
        "INVALID",
        "A run is INVALID, and no threshold of it means anything, when the generator could not keep its schedule, when "
        "the broker died, or when the ledger does not add up: what was measured is shown all the same.",
    ),
)


def page(outcome: Outcome, limit: Limit | None = None) -> str:
    """The whole page; the same outcome gives the same bytes. With `limit`, what a search found comes first."""
    body = "\n".join(line for section in SECTIONS for line in section(outcome, limit))
    title = f"Sidestep load test: {outcome.scenario.name}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}{OWN_CSS}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def answers(outcome: Outcome, limit: Limit | None) -> Iterator[str]:
    """What was asked, and what came of it."""
    yield f"<header>\n<h1>Load test: {escape(outcome.scenario.name)}</h1>"
    if outcome.scenario.about:
        yield paragraph(outcome.scenario.about)
    yield paragraph(limit_summary(limit) if limit else summary(outcome), "summary")
    yield from (paragraph(fault.says, "doubt") for fault in outcome.faults)
    yield from (paragraph(note, "note") for note in outcome.notes)
    environment = outcome.environment
    yield paragraph(
        f"{environment.get('cpu', 'Unknown CPU')}, {environment.get('cores', '?')} cores, Python "
        f"{environment.get('python', '?')}, {environment.get('broker', 'broker unknown')}; begun "
        f"{outcome.started_at or 'at an unknown time'}, seed {outcome.scenario.seed}."
    )
    links = [*([("limit", "Limit")] if limit else []), ("answers", "Thresholds")]
    links += [
        ("time", "Over time"),
        ("latency", "Latency"),
        ("jobs", "Jobs"),
        ("machine", "Machine"),
        ("method", "Method"),
    ]
    items = "".join(f'<li><a href="#{target}">{escape(text)}</a></li>' for target, text in links)
    yield f'<nav aria-label="Contents"><ul>{items}</ul></nav>\n</header>\n<main>'


def thresholds(outcome: Outcome, limit: Limit | None) -> Iterator[str]:
    """Each threshold and what was measured."""
    yield _begin("answers", "Thresholds of the last run" if limit else "Thresholds")
    if not outcome.judged:
        yield paragraph("The scenario has no thresholds.")
    yield '<div class="cards">'
    yield from (card(one, valid=outcome.valid) for one in outcome.judged)
    yield "</div>"
    if not limit:
        yield table(tables.headlines(outcome))
    yield "</section>"


def summary(outcome: Outcome) -> str:
    """The verdict in a sentence or two."""
    ledger = outcome.ledger
    jobs = (
        f"{plural(ledger.issued, 'job')} issued: {ledger.done} done, {ledger.failed} failed, {ledger.lost} lost, "
        f"{ledger.duplicated} duplicated."
    )
    if not outcome.valid:
        return f"INVALID: its figures must not be used. {jobs}"
    broken = sum(not one.ok for one in outcome.judged)
    if not outcome.judged:
        return f"Valid; no thresholds were set. {jobs}"
    if broken:
        return f"{broken} of {plural(len(outcome.judged), 'threshold')} broken. {jobs}"
    every = "The one threshold holds." if len(outcome.judged) == 1 else f"All {len(outcome.judged)} thresholds hold."
    return f"{every} {jobs}"


def limit_summary(limit: Limit) -> str:
    """What the search found, in a sentence or two."""
    if limit.interval_hz is None or limit.held_hz is None or limit.broke_hz is None:
        return f"No answer: {limit.refused}."
    low, high = limit.interval_hz
    return (
        f"The highest rate that can be kept up lies between {number(low)} and {number(high)} jobs/s: "
        f"{number(limit.held_hz)} held every time, {number(limit.broke_hz)} broke every time, in "
        f"{plural(len(limit.probes), 'run')}."
    )


def card(one: Judged, *, valid: bool) -> str:
    """One threshold."""
    css, symbol, word = ("holds", "✓", "holds") if one.ok else ("broken", "✗", "broken")
    if not valid:
        css, symbol, word = "skipped", "∅", "not judged: the run is invalid"
    return (
        f'<article class="card {css}">\n<p class="verdict"><span aria-hidden="true">{symbol}</span> {word}</p>\n'
        f"<h3>{escape(one.says)}</h3>\n"
        f'<p class="figure"><strong>{escape(tables.measured(one))}</strong></p>\n</article>'
    )


def searched(_: Outcome, limit: Limit | None) -> Iterator[str]:
    """Each rate that was tried, and the evidence."""
    if limit is None:
        return
    yield _begin("limit", "The highest rate that can be kept up")
    yield paragraph(limit_summary(limit))
    rows = [(one.rate_hz, one.p99_s, str(one.seen)) for one in limit.probes]
    says = (
        "One mark for each run; the band is the interval of the answer. A rate holds when the thresholds hold and the "
        "backlog, beyond doubt, hardly grows; it breaks when one breaks or the backlog grows; in between it is unclear."
    )
    yield from _charts([charts.rates_tried("c-limit", "Rates tried", rows, limit.interval_hz, says=says)])
    yield table(tables.probes(limit))
    reasons = "".join(
        f"<li>{escape(f'{number(one.rate_hz, 4)} jobs/s {one.seen}: {one.because}')}</li>" for one in limit.probes
    )
    yield f"<h3>In the order in which they were tried</h3>\n<ol>{reasons}</ol>"
    yield paragraph("What follows is the last run alone, as an example of what a run looks like.")
    yield "</section>"


def over_time(outcome: Outcome, _: Limit | None) -> Iterator[str]:
    """Rates, backlog and latency, second by second."""
    ticks = outcome.ticks
    yield _begin("time", "Over time")
    if len(ticks) < 2:
        yield paragraph("The run was too short for a chart over time.")
        yield "</section>"
        return
    tick_s, window = ticks[0].length_s, outcome.window_s
    rates = [
        _series("offered", ticks, lambda tick: tick.due_hz),
        _series("sent", ticks, lambda tick: tick.sent_hz),
        _series("done", ticks, lambda tick: tick.done_hz),
    ]
    if any(tick.whole.failed for tick in ticks):
        rates.append(_series("failed attempts", ticks, lambda tick: tick.whole.failed / tick.length_s))
    backlog = [_series("in flight (sent, not ended)", ticks, lambda tick: tick.in_flight)]
    queues = sorted({name for tick in ticks for name in tick.depth})
    if queues:
        backlog.append(_series("waiting in the broker", ticks, _waiting))
    if any(tick.unacked is not None for tick in ticks):
        backlog.append(_series("fetched, not acknowledged", ticks, lambda tick: _or_nan(tick.unacked)))
    lags = [
        _series("p99 of the tick", ticks, lambda tick: tick.lag.quantile_s(0.99) * 1e3),
        _series("longest of the tick", ticks, lambda tick: tick.lag.max_s * 1e3),
    ]
    yield from _charts(
        [
            charts.over_time(
                "c-rates", "Rates", rates, unit="jobs/s", tick_s=tick_s, marks_s=window,
                says="Offered is what was due; sent is what the generator handed over; done is what ended well.",
            ),
            charts.over_time(
                "c-depth", "Backlog", backlog, unit="jobs", tick_s=tick_s, marks_s=window, highest=True,
                says="What was under way at the end of each tick.",
            ),
            charts.heat(
                "c-heat", "Latency over time", [tick.latency for tick in ticks], tick_s=tick_s, marks_s=window,
                says="Jobs by when they ended and how long after they were due.",
            ),
            charts.over_time(
                "c-lag", "The generator's lag", lags, unit="ms", tick_s=tick_s, marks_s=window, highest=True,
                says="How late jobs were handed over. Where it is not small against the latency, the run is INVALID.",
            ),
        ]
    )  # fmt: skip
    yield from _charts(_held(ticks, tick_s, window))
    if held := tables.grown(outcome):
        yield table(held)
    if len(queues) > 1:
        cut = f" The first {MOST_QUEUES}." if len(queues) > MOST_QUEUES else ""
        parts = [_queue(name, ticks) for name in queues[:MOST_QUEUES]]
        yield from _charts(
            [
                charts.over_time(
                    "c-queues", "Waiting by queue", parts, unit="jobs", tick_s=tick_s, marks_s=window, highest=True,
                    says=f"Messages that waited in each queue.{cut}",
                )
            ]
        )  # fmt: skip
    yield "</section>"


def _held(ticks: Sequence[Tick], tick_s: float, window: Sequence[float]) -> Iterator[Chart | None]:
    """Memory and connections, of what tells of them."""
    memory: list[Series] = []
    clients: list[Series] = []
    for name, unit, one, of in tables.GROWING:
        if any(of(tick) is not None for tick in ticks):
            values = tuple(float("nan") if (held := of(tick)) is None else held / one for tick in ticks)
            (memory if unit else clients).append(Series(name, values))
    yield charts.over_time(
        "c-memory", "Memory", memory, unit="MiB", tick_s=tick_s, marks_s=window, highest=True,
        says="What was held at the end of each tick; of workers, what they share counts once.",
    )  # fmt: skip
    yield charts.over_time(
        "c-clients", "Connections", clients, unit="connections", tick_s=tick_s, marks_s=window, highest=True,
        says="Connections to the broker at the end of each tick, with those of the load test itself.",
    )  # fmt: skip


def _queue(name: str, ticks: Sequence[Tick]) -> Series:
    return _series(name, ticks, lambda tick: tick.depth.get(name, float("nan")))


def _waiting(tick: Tick) -> float:
    return float(tick.depth_all) if tick.depth else float("nan")


def _or_nan(value: int | None) -> float:
    return float("nan") if value is None else float(value)


def _series(name: str, ticks: Sequence[Tick], of: Callable[[Tick], float]) -> Series:
    return Series(name, tuple(float(of(tick)) for tick in ticks))


def latency(outcome: Outcome, _: Limit | None) -> Iterator[str]:
    """Distributions, whole and in parts."""
    spans = outcome.spans
    yield _begin("latency", "Latency")
    drawn = [
        charts.percentiles(
            "c-hdr", "Latency, corrected and uncorrected",
            [("corrected: from due", spans.latency), ("uncorrected: from sent", spans.uncorrected)],
            says="Each further nine has as much room as the one before. Where the lines part, the generator was late, "
            "and the lower one hides it.",
        ),
        charts.percentiles(
            "c-parts", "Time in queue against service",
            [("time in queue: from sent to started", spans.wait), ("service: from started to ended", spans.service)],
            says="Where the queue's line lies above the service's, jobs wait longer for a slot than they work; where "
            "it lies below, only faster jobs help. The percentiles of parts do not add up to those of the whole.",
        ),
    ]  # fmt: skip
    if len(outcome.kinds) > 1:
        lines = [(name, kind.spans.latency) for name, kind in outcome.kinds.items()]
        drawn.append(
            charts.percentiles("c-kinds", "Latency by kind of job", lines[:6], says="From due, for each kind of job.")
        )
    yield from _charts(drawn)
    yield table(tables.latency(outcome))
    yield "</section>"


def jobs(outcome: Outcome, _: Limit | None) -> Iterator[str]:
    """Every job, by kind and by worker, and what went wrong."""
    yield _begin("jobs", "Jobs")
    made = (
        tables.ledger(outcome),
        tables.kinds(outcome),
        tables.workers(outcome),
        tables.errors(outcome),
        tables.generator(outcome),
    )
    yield from (table(one) for one in made if one)
    if outcome.last_words:
        yield f"<h3>The workers' last words</h3>\n<pre>{_block(outcome.last_words)}</pre>"
    yield "</section>"


def machine(outcome: Outcome, _: Limit | None) -> Iterator[str]:
    """What machine and software the results belong to, and what was asked for."""
    yield _begin("machine", "Machine and scenario")
    pairs = fingerprint(outcome.environment)
    yield f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(text)}</dd>' for name, text in pairs.items())}</dl>"
    if outcome.scenario.text:
        yield f"<h3>The scenario</h3>\n<pre>{_block(SECRET.sub(STARS, outcome.scenario.text))}</pre>"
    yield "</section>"


def _block(text: str) -> str:
    return "\n".join(map(escape, text.splitlines()))


def method(outcome: Outcome, _: Limit | None) -> Iterator[str]:
    """How it was measured, and what that cannot say."""
    yield _begin("method", "Method")
    for heading, text in METHOD:
        yield f"<h3>{escape(heading)}</h3>\n{paragraph(text)}"
    seen = outcome.observation
    yield "<h3>How ends were seen</h3>"
    yield paragraph(f"By {seen.watch}. It costs: {seen.costs}. It misses: {seen.misses}.")
    yield "</section>\n</main>"


def _begin(target: str, heading: str) -> str:
    return (
        f'<section id="{target}" aria-labelledby="{target}-heading">\n<h2 id="{target}-heading">{escape(heading)}</h2>'
    )


def _charts(drawn: Iterable[Chart | None]) -> Iterator[str]:
    yield '<div class="charts">'
    yield from (figure(chart) for chart in drawn if chart)
    yield "</div>"


Section = Callable[[Outcome, Limit | None], Iterator[str]]
SECTIONS: tuple[Section, ...] = (answers, searched, thresholds, over_time, latency, jobs, machine, method)
