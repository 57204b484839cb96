"""What it costs to move a job: its way in parts, its message in bytes, its codec in microseconds. Pure, over runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping

import numpy as np

from lab.model import Run, Seconds
from producer.payloads import Cycle
from tasks.transcode import CHANGED, REFUSED

PART_NAMES = (
    "lag",
    "encode",
    "broker",
    "fetch",
    "register",
    "peek",
    "hop",
    "decode",
    "call",
    "run",
    "result",
)
"""The parts of a job's way, in their order; `part_s` says from where to where each goes."""


def parts_s(run: Run) -> Mapping[str, Seconds]:
    """How long each part of the way of each of the run's own jobs took: PART_NAMES to arrays of shape (n,).

    A part that would run backwards counts as nothing, so that the parts of a job whose steps are out of order, or
    missing, do not add up to the whole: see `lab.checks.steps_do_not_add_up`. Empty for a run without steps.
    """
    s, steps = run.samples, run.steps
    if steps is None or not len(s):
        return {}
    # Through the broker in one part: when it has the message nobody sees, for its answer to the producer is on the way
    # while an idle worker already has the message.
    moments = (
        s.due_ns,
        s.sent_ns,
        steps.encoded_ns,
        steps.readable_ns,
        steps.fetched_ns,
        steps.peeking_ns,
        steps.peeked_ns,
        steps.decoding_ns,
        steps.decoded_ns,
        s.started_ns,
        s.ended_ns,
        steps.finished_ns,
    )
    own = s.beside == 0
    return {
        name: np.maximum(after - before, 0)[own] / 1e9
        for name, (before, after) in zip(PART_NAMES, itertools.pairwise(moments), strict=True)
    }


def strayed_s(run: Run) -> Seconds:
    """How far the moment in which Celery told of each of the run's own jobs lies outside of what its steps allow.

    That moment is in the job's plain mark, read apart from the steps. It lies between the main process's decoding and
    the slot's, or the steps are another job's. Empty for a run without steps.
    """
    s, steps = run.samples, run.steps
    if steps is None:
        return np.zeros(0)
    early, late = steps.peeked_ns - s.received_ns, s.received_ns - steps.decoding_ns
    strayed = np.where((s.received_ns == 0) | (steps.finished_ns == 0), 0, np.maximum(np.maximum(early, late), 0))
    stray_s: Seconds = strayed[s.beside == 0] / 1e9
    return stray_s


def whole_s(run: Run) -> Seconds:
    """From due to the result being stored, of each of the run's own jobs; empty for a run without steps."""
    if run.steps is None:
        return np.zeros(0)
    whole: Seconds = (run.steps.finished_ns - run.samples.due_ns)[run.samples.beside == 0] / 1e9
    return whole


def _mean_of(name: str) -> Callable[[Run], float]:
    def measure(run: Run) -> float:
        parts = parts_s(run)
        return float(np.mean(parts[name])) if parts else math.nan

    return measure


_run_part_s = _mean_of("run")


def way_s(run: Run) -> float:
    """Mean time from due to the result being stored; not a number for a run without steps."""
    whole = whole_s(run)
    return float(np.mean(whole)) if len(whole) else math.nan


def overhead_s(run: Run) -> float:
    """Mean time of a job's way that is not the job itself; not a number for a run without steps."""
    return way_s(run) - _run_part_s(run)


def message_bytes(run: Run) -> float:
    """Size of one message as the broker holds it; not a number where none was looked at."""
    return _message(run, *run.resources.message_bytes)


def body_bytes(run: Run) -> float:
    """Of those, the encoded body."""
    return _message(run, "body")


def base64_bytes(run: Run) -> float:
    """Of those, what base64 adds."""
    return _message(run, "base64")


def argument_text_bytes(run: Run) -> float:
    """Of those, the arguments as text for people to read."""
    return _message(run, "argument text")


def header_bytes(run: Run) -> float:
    """Of those, the other headers and the properties with their keys, braces and blanks."""
    return _message(run, "headers", "properties", "envelope")


def _message(run: Run, *parts: str) -> float:
    sizes = run.resources.message_bytes
    return float(sum(sizes[part] for part in parts)) if sizes else math.nan


def broker_bytes_per_job(run: Run) -> float:
    """Bytes into and out of the broker for each job; not a number where the broker serves others too."""
    into, out = run.resources.bytes_in, run.resources.bytes_out
    return math.nan if into is None or out is None else (into + out) / max(run.ledger.issued, 1)


def broker_in_bytes_per_job(run: Run) -> float:
    """Of those, what was sent to it: messages, and again when they are noted as unacknowledged."""
    return _each(run, run.resources.bytes_in)


def broker_out_bytes_per_job(run: Run) -> float:
    """Of those, what it sent."""
    return _each(run, run.resources.bytes_out)


def _each(run: Run, total: int | None) -> float:
    return math.nan if total is None else total / max(run.ledger.issued, 1)


def times_through_broker(run: Run) -> float:
    """How many times a message's own size goes into and out of the broker for each job."""
    return broker_bytes_per_job(run) / message_bytes(run)


def collect_s_per_job(run: Run) -> float:
    """Time to read one result, when all are there; not a number where none is read."""
    collected = run.resources.collect_s
    return math.nan if collected is None else collected / max(run.ledger.issued, 1)


def producer_cpu_s_per_job(run: Run) -> float:
    """CPU seconds of the producer for each job; it also looks after the run."""
    return run.resources.producer_cpu_s / max(run.ledger.issued, 1)


def encode_us(run: Run) -> float:
    """Median microseconds to encode the payload once; see `_step` for payloads that do not pass."""
    return _step(run, "encode") / 1e3


def decode_us(run: Run) -> float:
    """Median microseconds to decode it once."""
    return _step(run, "decode") / 1e3


def coding_us(run: Run) -> float:
    """Both together."""
    return encode_us(run) + decode_us(run)


def coded_bytes(run: Run) -> float:
    """Size of the payload, encoded and compressed."""
    return _step(run, "size")


def _step(run: Run, step: str) -> float:
    """Median of what the `transcode` jobs of one step returned.

    Infinite where the codec refuses the payload. Not a number where it changes it, where jobs are missing, or where
    the setup is about something else.
    """
    steps, values = run.trial.setup.args.get("step"), run.samples.own.value
    if not isinstance(steps, Cycle) or step not in steps.values or len(values) != run.ledger.issued:
        return math.nan
    values = values[np.arange(len(values)) % len(steps.values) == steps.values.index(step)]
    if not len(values) or CHANGED in values:
        return math.nan
    return math.inf if REFUSED in values else float(np.median(values))


MEASURES: Mapping[str, Callable[[Run], float]] = {
    **{f"{name}_part_s": _mean_of(name) for name in PART_NAMES},
    **{
        measure.__name__: measure
        for measure in (
            way_s,
            overhead_s,
            message_bytes,
            body_bytes,
            base64_bytes,
            argument_text_bytes,
            header_bytes,
            broker_bytes_per_job,
            broker_in_bytes_per_job,
            broker_out_bytes_per_job,
            times_through_broker,
            collect_s_per_job,
            producer_cpu_s_per_job,
            encode_us,
            decode_us,
            coding_us,
            coded_bytes,
        )
    },
}
"""Those that `lab.stats.MEASURES` holds besides its own."""
