"""A load test's figures as tables, made once for terminal and page. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from lab.load.compare import Comparison
from lab.load.hdr import Histogram
from lab.load.limit import Limit, growth
from lab.load.measures import BY_NAME, MS, estimate, spelt
from lab.load.model import Judged, Outcome, Tick, Watch
from lab.model import Estimate, Ledger
from lab.report.tables import Column, Table
from lab.report.units import MIB, NONE, has_interval, number, sure

SHOWN = (0.5, 0.9, 0.99, 0.999)
HEADLINES = ("throughput", "latency p50", "latency p99")
"""The figures that come first, with an interval from within the run."""
EXACT = "Percentiles are to three digits; one is shown where at least one job lies beyond it."


def cell(histogram: Histogram, q: float) -> str:
    """A percentile in ms; nothing where not one job lies beyond it, for then it is but the longest."""
    if not len(histogram):
        return NONE
    if q < 1 and len(histogram) * (1 - q) < 1 - 1e-9:
        return NONE
    return number(histogram.quantile_s(q) * MS, decimals=3)


def measured(one: Judged) -> str:
    """What a threshold was held against, in a unit that people read."""
    if one.value is None or not math.isfinite(one.value):
        return "nothing to say it of"
    if one.unit == "s":
        return f"{number(one.value * MS, decimals=3)} ms" if abs(one.value) < 10 else f"{number(one.value)} s"
    if one.unit == "jobs":
        return f"{one.value:.0f} jobs" if one.value == round(one.value) else f"{number(one.value)} jobs"
    return f"{number(one.value)} {one.unit}".strip()


def thresholds(outcome: Outcome) -> Table | None:
    """Each threshold, what was measured, and whether it holds; None where there are none."""
    if not outcome.judged:
        return None
    words = {True: "holds", False: "BROKEN"}
    rows = tuple(
        (one.says, measured(one), words[one.ok] if outcome.valid else "not judged: the run is INVALID")
        for one in outcome.judged
    )
    return Table("Thresholds", (Column("threshold"), Column("measured"), Column("verdict")), rows)


def headlines(outcome: Outcome) -> Table:
    """The figures of the run with intervals from batches of its own seconds."""
    rows, told = [], []
    for name in HEADLINES:
        found, how = estimate(BY_NAME[name], outcome)
        rows.append((name, sure(found), BY_NAME[name].unit, str(found.n) if found and has_interval(found) else NONE))
        told.append(how if found and has_interval(found) else f"{name} has no interval: {how}")
    said = "; ".join(dict.fromkeys(told))
    note = (
        f"In brackets the 95 % interval from within this one run ({said}). What differs from one start of the workers "
        "to the next is not in it: repeat the run for that."
    )
    columns = (Column("figure"), Column("value", "[95 %]"), Column("unit"), Column("n", "batches"))
    return Table("The run in three figures", columns, tuple(rows), (note,))


def headline_lines(outcome: Outcome) -> list[str]:
    """The same for a terminal: a line for each that has an interval, and one for each reason why others have none."""
    lines, without = [], dict[str, list[str]]()
    for name in HEADLINES:
        found, how = estimate(BY_NAME[name], outcome)
        if found and has_interval(found):
            lines.append(f"{name} {sure(found)} {BY_NAME[name].unit} (95 % from {how})")
        elif found:
            without.setdefault(how, []).append(name)
    return [*lines, *(f"no interval for {', '.join(names)}: {why}" for why, names in without.items())]


def ledger(outcome: Outcome) -> Table:
    """Every job, accounted for, by kind and in all; of the whole run with warm-up."""
    names = ("issued", "done", "failed", "lost", "duplicated")
    rows = [(name, *_counts(kind.ledger, names), str(kind.retried)) for name, kind in outcome.kinds.items()]
    if len(rows) != 1:
        rows.append(("all", *_counts(outcome.ledger, names), str(outcome.retried)))
    note = (
        "Of the whole run, with the warm-up: issued = done + failed + lost. Duplicated and retried are counted beside."
    )
    columns = (Column("kind"), *map(Column, names), Column("retried", "attempts"))
    return Table("Every job, accounted for", columns, tuple(rows), (note,))


def _counts(one: Ledger, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(getattr(one, name)) for name in names)


def latency(outcome: Outcome) -> Table:
    """The distributions of the whole measured window."""
    spans = outcome.spans
    rows = (
        ("latency, from due", spans.latency),
        ("uncorrected, from sent", spans.uncorrected),
        ("generator's lag", outcome.lag),
        ("time in queue", spans.wait),
        ("service", spans.service),
    )
    notes = [
        "Latency counts from the moment a job was due. The uncorrected row counts from when it was really sent, as a "
        "generator would that forgets its own lateness: where the two differ, that one flatters.",
        EXACT,
    ]
    if outcome.observation.watch is Watch.RESULTS:
        notes.append("Time in queue and service are not known: only the end of a job is seen.")
    return Table(
        "Where the time went",
        (Column("what"), *_quantile_columns(), Column("mean", "ms"), Column("n", "jobs")),
        tuple(
            (
                name,
                *(cell(h, q) for q in (*SHOWN, 1.0)),
                number(h.mean_s * MS, decimals=3) if len(h) else NONE,
                str(len(h)),
            )
            for name, h in rows
        ),
        tuple(notes),
    )


def _quantile_columns() -> tuple[Column, ...]:
    return (*(Column(spelt(q), "ms", only_wide=q in {0.9, 0.999}) for q in SHOWN), Column("max", "ms"))


def kinds(outcome: Outcome) -> Table | None:
    """Each kind of job; None where there is only one."""
    if len(outcome.kinds) < 2:
        return None
    begin, end = outcome.window_s
    rows = tuple(
        (
            name,
            number(kind.done_measured / (end - begin)),
            *(cell(kind.spans.latency, q) for q in (0.5, 0.99, 1.0)),
            cell(kind.spans.wait, 0.5),
            cell(kind.spans.wait, 0.99),
            cell(kind.spans.service, 0.5),
            cell(kind.spans.service, 0.99),
        )
        for name, kind in outcome.kinds.items()
    )
    columns = (
        Column("kind"),
        Column("done", "jobs/s"),
        *(Column(name, "ms") for name in ("p50", "p99", "max")),
        Column("queue p50", "ms", only_wide=True),
        Column("queue p99", "ms", only_wide=True),
        Column("service p50", "ms", only_wide=True),
        Column("service p99", "ms", only_wide=True),
    )
    return Table("By kind of job", columns, rows)


def workers(outcome: Outcome) -> Table | None:
    """Each worker process; None where nobody saw any."""
    if not outcome.workers:
        return None
    rows = tuple(
        (
            name,
            one.pool,
            str(one.done),
            str(one.failed),
            number((one.done + one.failed) / outcome.wall_s) if outcome.wall_s else NONE,
            *(cell(one.wait, q) for q in (0.5, 0.99)),
            *(cell(one.service, q) for q in (0.5, 0.99)),
        )
        for name, one in outcome.workers.items()
    )
    columns = (
        Column("worker"),
        Column("pool"),
        Column("done"),
        Column("failed"),
        Column("ended", "a second"),
        Column("queue p50", "ms", only_wide=True),
        Column("queue p99", "ms", only_wide=True),
        Column("service p50", "ms"),
        Column("service p99", "ms"),
    )
    return Table("By worker process", columns, rows)


def errors(outcome: Outcome) -> Table | None:
    """What failed, and ids to look for in the workers' logs; None where nothing did."""
    if not outcome.errors:
        return None
    rows = tuple((one.says, one.kind or NONE, str(one.count), ", ".join(one.samples)) for one in outcome.errors)
    columns = (Column("error"), Column("kind"), Column("attempts"), Column("ids of some", only_wide=True))
    return Table("Errors", columns, rows)


def generator(outcome: Outcome) -> Table:
    """How the load was made, and what that took."""
    made = outcome.generator
    rows = (
        ("offered", f"{number(outcome.offered_hz)} jobs/s"),
        ("sent", f"{number(outcome.sent_hz)} jobs/s"),
        ("processes", str(made.producers)),
        ("messages made by", made.path),
        ("CPU time", f"{number(made.cpu_s)} s"),
        ("memory, first and most", f"{number(made.rss_first_bytes / MIB)} and {number(made.rss_bytes / MIB)} MiB"),
        ("lag p50, p99, max", f"{cell(outcome.lag, 0.5)}, {cell(outcome.lag, 0.99)}, {cell(outcome.lag, 1.0)} ms"),
        ("broker took a batch in, p50 and p99", f"{cell(made.taken, 0.5)} and {cell(made.taken, 0.99)} ms"),
    )
    return Table("The generator", (Column("what"), Column("value")), rows)


GROWING: tuple[tuple[str, str, float, Callable[[Tick], int | None]], ...] = (
    ("workers' memory", "MiB", MIB, lambda tick: tick.holds.worker_pss_bytes),
    ("broker's memory", "MiB", MIB, lambda tick: tick.holds.broker_used_bytes),
    ("connections to the broker", "", 1, lambda tick: tick.holds.broker_clients),
    ("generator's memory", "MiB", MIB, lambda tick: tick.generator_rss_bytes or None),
    ("watching process' memory", "MiB", MIB, lambda tick: tick.watch_rss_bytes or None),
)
"""What should not grow in a long run: in words, its unit, how many of ours that is, and where a tick keeps it."""


def grown(outcome: Outcome) -> Table | None:
    """What should not grow, and by how much it did in the measured window; None where nothing of it is known."""
    rows = []
    for name, unit, one, of in GROWING:
        # At the end of the last tick the producers have gone, and their connections with them.
        values = [held / one for tick in outcome.measured[:-1] if (held := of(tick)) is not None]
        if not values:
            continue
        tick_s = outcome.measured[0].length_s
        found = growth(values, tick_s)
        whole_s = (len(values) - 1) * tick_s
        by = found and Estimate(found.value * whole_s, found.low * whole_s, found.high * whole_s, found.n)
        shown = (number(value) if unit else f"{value:.0f}" for value in (values[0], max(values), values[-1]))
        rows.append((f"{name}, {unit}" if unit else name, sure(by), *shown))
    if not rows:
        return None
    notes = [
        "Of the measured window. In brackets an interval from ten blocks of it, meant for 95 %; in simulations it "
        "holds 92 or 93 of 100. What grows in the first minutes and then no more is no leak: let the run be long.",
    ]
    if outcome.scenario.attached:
        notes.append(
            "How much memory the workers hold is not known: somebody else runs them. The broker's figures are of all "
            "that it serves."
        )
    columns = (
        Column("what"),
        Column("grew by", "[95 %]"),
        *(Column(name, only_wide=name == "most") for name in ("first", "most", "last")),
    )
    return Table("What should not grow", columns, tuple(rows), tuple(notes))


def probes(limit: Limit) -> Table:
    """Every rate that was tried, in order of rate, and the evidence."""
    rows = tuple(
        (
            number(one.rate_hz, 4),
            str(one.seen),
            number(one.offered_hz, 4),
            number(one.done_hz, 4),
            sure(one.growth_hz),
            number(one.p99_s * MS, decimals=3),
            number(one.lag_p99_s * MS, decimals=3),
        )
        for one in sorted(limit.probes, key=lambda one: one.rate_hz)
    )
    columns = (
        Column("rate", "jobs/s"),
        Column("it"),
        Column("offered", "jobs/s"),
        Column("done", "jobs/s"),
        Column("backlog grows by", "jobs/s [95 %]"),
        Column("latency p99", "ms"),
        Column("lag p99", "ms"),
    )
    return Table("Rates that were tried", columns, rows)


def comparison(found: Comparison) -> Table:
    """Two load tests side by side."""
    rows = []
    for row in found.rows:
        if row.ratio is not None:
            change = f"\N{MULTIPLICATION SIGN}{sure(row.ratio)}"
        else:
            change = NONE if row.difference is None else f"{sure(row.difference)} points"
        rows.append(
            (f"{row.measure.name}, {row.measure.unit}", number(row.before), number(row.after), change, str(row.change))
        )
    columns = (
        Column("figure"),
        Column("before"),
        Column("after"),
        Column("after / before", "[95 %]"),
        Column("so it is"),
    )
    reasons: dict[str, list[str]] = {}
    for row in found.rows:
        reasons.setdefault(row.because, []).append(row.measure.name)
    notes = tuple(f"{', '.join(names)}: {why}" for why, names in reasons.items() if why and why not in found.notes)
    return Table("Before and after", columns, tuple(rows), (*notes, *found.notes))
