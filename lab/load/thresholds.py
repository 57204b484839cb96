"""Thresholds: conditions such as `p99 < 500ms`, read from text and held against an outcome. Pure."""

from __future__ import annotations

import difflib
import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from lab.load.hdr import Histogram
from lab.load.model import Judged, Outcome, Spans, Threshold, Watch

OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
UNITS_S: Mapping[str, float] = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
UNITS_HZ: Mapping[str, float] = {"": 1.0, "/s": 1.0, "/min": 1 / 60, "/h": 1 / 3600}
SECONDS, RATE, JOBS, SHARE = "s", "jobs/s", "jobs", ""


class ThresholdError(ValueError):
    """A threshold that cannot be judged; the message says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of an outcome."""

    unit: str
    of: Callable[[Outcome, str | None], float]
    """For a kind, or for all; not a number where there is nothing to say it of."""
    per_kind: bool = True
    needs_start: bool = False
    """Only where the moment is seen at which a job starts."""


def _spans(outcome: Outcome, kind: str | None) -> Spans:
    return outcome.kinds[kind].spans if kind else outcome.spans


def _window_s(outcome: Outcome) -> float:
    begin, end = outcome.window_s
    return end - begin


def _throughput(outcome: Outcome, kind: str | None) -> float:
    return outcome.kinds[kind].done_measured / _window_s(outcome) if kind else outcome.throughput_hz


def _offered(outcome: Outcome, kind: str | None) -> float:
    return outcome.kinds[kind].issued_measured / _window_s(outcome) if kind else outcome.offered_hz


def _ledger(name: str) -> Callable[[Outcome, str | None], float]:
    def of(outcome: Outcome, kind: str | None) -> float:
        return float(getattr(outcome.kinds[kind].ledger if kind else outcome.ledger, name))

    return of


def _errors(outcome: Outcome, kind: str | None) -> float:
    ledger = outcome.kinds[kind].ledger if kind else outcome.ledger
    return (ledger.failed + ledger.lost) / ledger.issued if ledger.issued else math.nan


def _retried(outcome: Outcome, kind: str | None) -> float:
    return float(outcome.kinds[kind].retried if kind else outcome.retried)


def _deepest(outcome: Outcome, _: str | None) -> float:
    return float(max((tick.depth_all for tick in outcome.measured if tick.depth), default=math.nan))


def _left(outcome: Outcome, _: str | None) -> float:
    """What waited at the end of the measured window."""
    looked = [tick for tick in outcome.measured if tick.depth]
    return float(looked[-1].depth_all) if looked else math.nan


METRICS: Mapping[str, Metric] = {
    "throughput": Metric(RATE, _throughput),
    "offered": Metric(RATE, _offered),
    "issued": Metric(JOBS, _ledger("issued")),
    "done": Metric(JOBS, _ledger("done")),
    "failed": Metric(JOBS, _ledger("failed")),
    "lost": Metric(JOBS, _ledger("lost")),
    "duplicated": Metric(JOBS, _ledger("duplicated")),
    "wrong": Metric(JOBS, _ledger("wrong")),
    "retried": Metric(JOBS, _retried),
    "errors": Metric(SHARE, _errors),
    "depth": Metric(JOBS, _deepest, per_kind=False),
    "left": Metric(JOBS, _left, per_kind=False),
}
"""Beside these there are the figures of a distribution, see `find`."""
OF_SPANS: Mapping[str, Callable[[Spans], Histogram]] = {
    "": lambda spans: spans.latency,
    "latency": lambda spans: spans.latency,
    "uncorrected": lambda spans: spans.uncorrected,
    "wait": lambda spans: spans.wait,
    "service": lambda spans: spans.service,
}
"""What may stand before a figure: `wait p99`. `lag` may too, for the whole run."""
_FIGURE = re.compile(r"(?:(?P<what>[a-z]+)\s+)?(?P<figure>p(?P<percent>\d{1,2}(?:\.\d+)?)|p999|p9999|max|min|mean)")
_FORM = re.compile(r"(?:(?P<kind>[^:<>=!]+):)?\s*(?P<metric>[^<>=!]+?)\s*(?P<op><=|>=|==|!=|<|>)\s*(?P<bound>[^<>=!]+)")
_NUMBER = re.compile(r"(?P<number>[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*(?P<unit>[a-zµ/%]*)")
_SPOKEN = ("p50", "p99", "max", "mean", "wait p99", "service p99", "lag p99", "uncorrected p99")


def find(name: str) -> Metric:
    """The metric of this name. Raises ThresholdError with the nearest match for any other."""
    name = " ".join(name.split())
    if name in METRICS:
        return METRICS[name]
    if (match := _FIGURE.fullmatch(name)) and (match["what"] or "") in {*OF_SPANS, "lag"}:
        of = _figure(match["figure"], match["percent"])
        what = match["what"] or ""
        if what == "lag":
            return Metric(SECONDS, lambda outcome, _: of(outcome.lag), per_kind=False)
        histogram = OF_SPANS[what]
        return Metric(
            SECONDS,
            lambda outcome, kind: of(histogram(_spans(outcome, kind))),
            needs_start=what in {"wait", "service"},
        )
    close = difflib.get_close_matches(name, [*METRICS, *_SPOKEN], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise ThresholdError(
        f"there is no metric {name!r}{hint} There are: {', '.join((*_SPOKEN, *METRICS))}, and any other percentile"
    )


def _figure(figure: str, percent: str | None) -> Callable[[Histogram], float]:
    if figure in {"max", "min", "mean"}:
        return {"max": lambda h: h.max_s, "min": lambda h: h.min_s, "mean": lambda h: h.mean_s}[figure]
    q = {"p999": 0.999, "p9999": 0.9999}.get(figure) or float(percent or 0) / 100
    return lambda histogram: histogram.quantile_s(q)


def parse(says: str, *, kinds: Iterable[str] = (), watch: Watch = Watch.MARKS, line: int = 0) -> Threshold:
    """A threshold from its text. Raises ThresholdError for what is no threshold or could never be judged."""
    match = _FORM.fullmatch(says.strip())
    if not match:
        raise ThresholdError(f"{says!r} is no threshold; write such as 'p99 < 500ms' or 'resize: p99 < 2s'")
    names = list(kinds)
    kind = match["kind"].strip() if match["kind"] else None
    if kind is not None and kind not in names:
        close = difflib.get_close_matches(kind, names, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else "."
        raise ThresholdError(
            f"{says!r} is about the kind {kind!r}, which there is not{hint} There are: {', '.join(names)}"
        )
    name = " ".join(match["metric"].split())
    metric = _judgeable(says, name, kind, watch)
    left, star, right = match["bound"].partition("*")
    if star or left.strip()[:1].isalpha():
        factor, times = (left, right) if star else ("1", left)
        other = _judgeable(says, times, kind, watch)
        if other.unit != metric.unit:
            raise ThresholdError(f"{says!r} compares {metric.unit or 'a share'} with {other.unit or 'a share'}")
        number = _NUMBER.fullmatch(factor.strip())
        if not number or number["unit"]:
            raise ThresholdError(f"{says!r}: {factor.strip()!r} is no factor; write such as 0.98 * offered")
        return Threshold(says, name, match["op"], float(number["number"]), " ".join(times.split()), kind, line)
    return Threshold(says, name, match["op"], _bound(says, match["bound"].strip(), metric.unit), None, kind, line)


def _judgeable(says: str, name: str, kind: str | None, watch: Watch) -> Metric:
    try:
        metric = find(name)
    except ThresholdError as error:
        raise ThresholdError(f"{says!r}: {error}") from None
    if kind and not metric.per_kind:
        raise ThresholdError(f"{says!r}: {name!r} is known for the whole run only, not for a kind of job")
    if metric.needs_start and watch is Watch.RESULTS:
        raise ThresholdError(f"{says!r}: a result backend does not say when a job started; watch events instead")
    return metric


def _bound(says: str, text: str, unit: str) -> float:
    number = _NUMBER.fullmatch(text)
    if not number:
        raise ThresholdError(f"{says!r}: {text!r} is no number")
    value, written = float(number["number"]), number["unit"]
    if unit == SECONDS:
        if written not in UNITS_S:
            raise ThresholdError(f"{says!r}: {text!r} needs a unit of time; write such as 500ms or 2s")
        return value * UNITS_S[written]
    if unit == RATE and written in UNITS_HZ:
        return value * UNITS_HZ[written]
    if unit == SHARE and written in {"", "%"}:
        return value / 100 if written else value
    if unit == JOBS and not written:
        return value
    raise ThresholdError(f"{says!r}: {written!r} is no unit of {unit or 'a share'}")


def judge(threshold: Threshold, outcome: Outcome) -> Judged:
    """The threshold held against what came out. Where there is nothing to say it of, it does not hold."""
    metric = find(threshold.metric)
    value, bound = metric.of(outcome, threshold.kind), threshold.bound
    if threshold.times:
        bound *= find(threshold.times).of(outcome, threshold.kind)
    known = math.isfinite(value) and math.isfinite(bound)
    return Judged(
        threshold.says,
        value if math.isfinite(value) else None,
        bound,
        known and OPERATORS[threshold.op](value, bound),
        metric.unit,
    )


def judge_all(outcome: Outcome) -> tuple[Judged, ...]:
    """All thresholds of the outcome's scenario."""
    return tuple(judge(threshold, outcome) for threshold in outcome.scenario.thresholds)
