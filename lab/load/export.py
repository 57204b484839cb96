"""A load test for other programs: JSON as the command line prints it, CSV by second, .hlog, JUnit XML. Pure."""

from __future__ import annotations

import csv
import io
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from datetime import UTC, datetime
from typing import Any

from lab.load.hdr import Histogram
from lab.load.limit import Limit, Probe
from lab.load.model import QUANTILES, SCHEMA, Holds, Outcome, Tick
from lab.model import Estimate, Ledger

CSV_QUANTILES = (0.5, 0.9, 0.99, 1.0)
NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 forbids (2.2), even written out."""


def as_json(outcome: Outcome) -> dict[str, Any]:
    """What `sidestep load --json` prints: times in seconds; null where there is nothing to say."""
    return {
        "schema": SCHEMA,
        "scenario": outcome.scenario.name,
        "valid": outcome.valid,
        "ledger": _ledger(outcome.ledger),
        "offered_hz": finite(outcome.offered_hz),
        "throughput_hz": finite(outcome.throughput_hz),
        "latency_s": quantiles(outcome.spans.latency),
        "latency_uncorrected_s": quantiles(outcome.spans.uncorrected),
        "wait_s": quantiles(outcome.spans.wait),
        "service_s": quantiles(outcome.spans.service),
        "lag_s": quantiles(outcome.lag),
        "kinds": {
            name: {"ledger": _ledger(kind.ledger), "latency_s": quantiles(kind.spans.latency)}
            for name, kind in outcome.kinds.items()
        },
        "thresholds": [
            {"says": one.says, "value": finite(one.value), "bound": finite(one.bound), "unit": one.unit, "ok": one.ok}
            for one in outcome.judged
        ],
        "faults": [fault.says for fault in outcome.faults],
        "notes": list(outcome.notes),
    }


def limit_json(limit: Limit) -> dict[str, Any]:
    """What `sidestep load --find-limit --json` prints of the search."""
    return {
        "held_hz": limit.held_hz,
        "broke_hz": limit.broke_hz,
        "interval_hz": limit.interval_hz and list(limit.interval_hz),
        "refused": limit.refused or None,
        "probes": [_probe(probe) for probe in limit.probes],
    }


def _probe(probe: Probe) -> dict[str, Any]:
    return {
        "rate_hz": probe.rate_hz,
        "seen": str(probe.seen),
        "because": probe.because,
        "offered_hz": finite(probe.offered_hz),
        "done_hz": finite(probe.done_hz),
        "growth_hz": estimate_json(probe.growth_hz),
        "p99_s": finite(probe.p99_s),
        "lag_p99_s": finite(probe.lag_p99_s),
    }


def estimate_json(estimate: Estimate | None) -> dict[str, Any] | None:
    """An estimate; an endless bound is null, since JSON has no infinity."""
    if estimate is None:
        return None
    return {
        "value": finite(estimate.value),
        "low": finite(estimate.low),
        "high": finite(estimate.high),
        "n": estimate.n,
    }


def _ledger(ledger: Ledger) -> dict[str, int]:
    return {name: getattr(ledger, name) for name in ("issued", "done", "failed", "lost", "duplicated")}


def quantiles(histogram: Histogram) -> dict[str, float | None]:
    """The figures of a distribution, in seconds; null where nothing was counted."""
    values = histogram.quantiles_s(tuple(QUANTILES.values()))
    return {name: finite(float(value)) for name, value in zip(QUANTILES, values, strict=True)}


def finite(value: float | None) -> float | None:
    """The value; None for what JSON cannot hold."""
    return None if value is None or not math.isfinite(value) else value


def as_csv(outcome: Outcome) -> str:
    """One row a tick: what was due, sent and ended, what waited, latency and lag in seconds."""
    kinds = sorted({name for tick in outcome.ticks for name in tick.kinds})
    queues = sorted({name for tick in outcome.ticks for name in tick.depth})
    workers = sorted({name for tick in outcome.ticks for name in tick.workers})
    columns: dict[str, Callable[[Tick], object]] = {
        "at_s": lambda t: f"{t.at_s:.6g}",
        "length_s": lambda t: f"{t.length_s:.6g}",
        "phase": lambda t: t.phase,
        "due": lambda t: t.whole.due,
        "sent": lambda t: t.whole.sent,
        "done": lambda t: t.whole.done,
        "failed": lambda t: t.whole.failed,
        "in_flight": lambda t: t.in_flight,
        "unacked": lambda t: "" if t.unacked is None else t.unacked,
        "generator_rss_bytes": lambda t: t.generator_rss_bytes,
        "watch_rss_bytes": lambda t: t.watch_rss_bytes,
    }
    for field in fields(Holds):
        columns[field.name] = lambda t, name=field.name: _known(getattr(t.holds, name))  # type: ignore[misc]
    for q in CSV_QUANTILES:
        name = "max" if q == 1 else f"p{q * 100:g}"
        columns[f"latency_{name}_s"] = lambda t, q=q: _cell(t.latency, q)  # type: ignore[misc]
    for q in (0.5, 0.99, 1.0):
        name = "max" if q == 1 else f"p{q * 100:g}"
        columns[f"lag_{name}_s"] = lambda t, q=q: _cell(t.lag, q)  # type: ignore[misc]
    for queue in queues:
        columns[f"depth[{queue}]"] = lambda t, queue=queue: t.depth.get(queue, "")  # type: ignore[misc]
    for kind in kinds:
        columns[f"done[{kind}]"] = lambda t, kind=kind: t.kinds[kind].done if kind in t.kinds else 0  # type: ignore[misc]
        columns[f"failed[{kind}]"] = lambda t, kind=kind: t.kinds[kind].failed if kind in t.kinds else 0  # type: ignore[misc]
    for worker in workers:
        columns[f"ended[{worker}]"] = lambda t, worker=worker: t.workers.get(worker, 0)  # type: ignore[misc]
        columns[f"failed[worker {worker}]"] = lambda t, worker=worker: t.worker_failed.get(worker, 0)  # type: ignore[misc]
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow([_safe(name) for name in columns])
    rows.writerows([column(tick) for column in columns.values()] for tick in outcome.ticks)
    return out.getvalue()


def _known(value: int | None) -> int | str:
    return "" if value is None else value


def _cell(histogram: Histogram, q: float) -> str:
    return f"{histogram.quantile_s(q):.6g}" if len(histogram) else ""


def _safe(name: str) -> str:
    """A heading that no spreadsheet takes for a formula."""
    return f"'{name}" if name[:1] in {"=", "+", "-", "@"} else name


def as_hlog(outcome: Outcome) -> str:
    """An HdrHistogram log, version 1.3; the unit of its histograms is the nanosecond, of interval maxima the ms.

    By tick, with two digits: `latency` (from due), `lag` and `wait`. Over the whole measured window, with three:
    `latency-whole`, `uncorrected-whole`, `lag-whole`, `wait-whole` and `service-whole`.
    """
    began_s = _epoch_s(outcome.started_at)
    lines = [
        "#[Histogram log format version 1.3]",
        f"#[StartTime: {began_s:.3f} (seconds since epoch), {outcome.started_at or 'not known'}]",
        '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"',
    ]
    for tick in outcome.ticks:
        for tag, histogram in (("latency", tick.latency), ("lag", tick.lag), ("wait", tick.wait)):
            lines += _interval(tag, tick.at_s, tick.length_s, histogram)
    start, end = outcome.window_s
    for tag, histogram in (
        ("latency-whole", outcome.spans.latency),
        ("uncorrected-whole", outcome.spans.uncorrected),
        ("lag-whole", outcome.lag),
        ("wait-whole", outcome.spans.wait),
        ("service-whole", outcome.spans.service),
    ):
        lines += _interval(tag, start, end - start, histogram)
    return "\n".join(lines) + "\n"


def _interval(tag: str, at_s: float, length_s: float, histogram: Histogram) -> Iterator[str]:
    if len(histogram):
        yield f"Tag={tag},{at_s:.3f},{length_s:.3f},{histogram.max_ns / 1e6:.3f},{histogram.encoded()}"


def _epoch_s(moment: str) -> float:
    try:
        return datetime.fromisoformat(moment).astimezone(UTC).timestamp()
    except ValueError:
        return 0.0


def as_junit(outcome: Outcome) -> str:
    """JUnit's XML: one case for each threshold, and one that says whether the run can be believed at all.

    In a run that is INVALID, thresholds are skipped: neither a pass nor a failure of it means anything.
    """
    name = f"sidestep.load.{outcome.scenario.name}"
    broken = 0 if not outcome.valid else sum(not one.ok for one in outcome.judged)
    suite = ET.Element(
        "testsuite",
        _attributes(
            name=name,
            tests=str(len(outcome.judged) + 1),
            failures=str(broken),
            errors=str(int(not outcome.valid)),
            skipped=str(0 if outcome.valid else len(outcome.judged)),
            time=f"{outcome.wall_s:.3f}",
            **({"timestamp": outcome.started_at} if outcome.started_at else {}),
        ),
    )
    believed = ET.SubElement(suite, "testcase", _attributes(classname=name, name="the run is valid"))
    if outcome.faults:
        says = "; ".join(fault.says for fault in outcome.faults)
        ET.SubElement(believed, "error", _attributes(type="invalid", message=says))
    for one in outcome.judged:
        case = ET.SubElement(suite, "testcase", _attributes(classname=name, name=one.says))
        if not outcome.valid:
            ET.SubElement(case, "skipped", _attributes(message="the run is INVALID"))
        elif not one.ok:
            seen = (
                "there is nothing to say it of" if one.value is None else f"it was {one.value:.6g} {one.unit}".strip()
            )
            ET.SubElement(case, "failure", _attributes(type="threshold", message=f"{one.says}: {seen}"))
    ET.indent(suite)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(suite, encoding="unicode") + "\n"


def _attributes(**values: str) -> dict[str, str]:
    return {name: NOT_XML.sub("\N{REPLACEMENT CHARACTER}", value) for name, value in values.items()}


EXPORTS: Mapping[str, Callable[[Outcome], str]] = {"csv": as_csv, "hlog": as_hlog, "junit": as_junit}
"""Options of `sidestep load` that write a file, and what they write."""
