"""Loads, arguments and messages in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any

from lab.model import FrozenArgs, Load, Setup
from producer.pacers import Burst, Closed, Constant, Pacer, Poisson, Ramp, Replay, Steps
from producer.payloads import Args, Calibrated, Cycle, EachJob, Payload, Referred, Sometimes, Text, Upstream


def load(pacer: Pacer) -> str:  # noqa: PLR0911  one a kind of load
    """When jobs are due, in words."""
    match pacer:
        case Burst(size):
            return f"{size} jobs, all due at once" if size > 1 else "one job"
        case Constant(rate_hz, duration_s):
            return f"{rate_hz:g} jobs/s for {duration_s:g} s, evenly spaced"
        case Poisson(rate_hz, duration_s, seed):
            return f"{rate_hz:g} jobs/s on average for {duration_s:g} s, Poisson arrivals (seed {seed})"
        case Ramp(low_hz, high_hz, duration_s):
            return f"from {low_hz:g} to {high_hz:g} jobs/s within {duration_s:g} s"
        case Steps(rates_hz, step_s):
            return f"{', '.join(f'{rate:g}' for rate in rates_hz)} jobs/s, {step_s:g} s each"
        case Closed(clients, size, think_s):
            return f"{clients} clients who wait for each job and think for {think_s:g} s: {size} jobs"
        case Replay(moments_s, speed):
            return f"{len(moments_s)} recorded moments at {speed:g} times their speed"
        case _:
            return type(pacer).__name__


def offered_hz(pacer: Pacer) -> float | None:
    """The rate that throughput cannot exceed; None where jobs wait for the workers or the rate changes."""
    return pacer.rate_hz if isinstance(pacer, Constant | Poisson) else None


def beside(other: Load | None) -> str:
    """What runs beside a setup's own jobs, in words."""
    if other is None:
        return "nothing beside"
    count = other.pacer.count
    many = f"{count} {other.job} jobs" if count > 1 else f"one {other.job} job"
    return f"beside {many}" + (f" ({about})" if (about := work(other.args)) else "")


def work(args: Args) -> str:
    """What a job is asked to do, in words."""
    return ", ".join(text for name, value in FrozenArgs(args).items() if (text := _argument(name, value)))


def _argument(name: str, value: object) -> str:  # noqa: PLR0911  one a kind of value
    match value:
        case Calibrated(0):
            return ""
        case Calibrated(ms, like):
            return f"about {ms:g} ms like {like}" if like else f"about {ms:g} ms of one core"
        case Sometimes(usually, rarely, share):
            return f"about {usually.ms:g} ms of one core, {share:.0%} of the jobs {rarely.ms:g} ms"
        case Upstream(mean_ms):
            return f"waits for a service that answers after {mean_ms:g} ms on average"
        case Text(size_bytes):
            return f"{name} of {size(size_bytes)}"
        case Payload(shape, size_bytes):
            return f"{shape} of {size(size_bytes)}"
        case Referred(via, size_bytes, each=each):
            via = f"{via}-each" if each else via
            return f"{size(size_bytes)} {VIA.get(via, via)}"
        case Cycle(values):
            return f"{', '.join(map(str, values))} in turn"
        case EachJob():
            return ""
        case str() | None if name in BARE_ARGUMENTS:
            return "" if value in {None, "none"} else str(value)
        case int() if name == "size_bytes":
            return size(value)
        case _:
            return f"{name} {value}"


BARE_ARGUMENTS = frozenset({"codec", "compression", "shape"})
"""Arguments whose values say what they are."""


def size(size_bytes: float) -> str:
    """So many bytes, kB or MB."""
    for unit, bytes_each in (("MB", 1_000_000), ("kB", 1_000)):
        if size_bytes >= bytes_each:
            return f"{size_bytes / bytes_each:g} {unit}"
    return f"{size_bytes:g} bytes"


VIA: Mapping[str, str] = {
    "redis-each": "in Redis, put and dropped by the job",
    "file-each": "in a file, put and dropped by the job",
    "inline": "in the message",
    "redis": "in Redis",
    "file": "in a file",
    "shm": "in shared memory",
}
"""Where a payload lies, in words."""

RESULTS: Mapping[str | None, str] = {
    None: "no results",
    "ignored": "results ignored",
    "stored": "results stored",
    "get": "results read one by one",
    "bulk": "results read all at once",
}
"""`lab.model.RESULTS` in words."""

MESSAGES: Mapping[str, Callable[[Any], str]] = {
    "codec": str,
    "compression": lambda name: name or "uncompressed",
    "argsrepr": lambda kept: "with argument text" if kept else "no argument text",
    "base64": lambda used: "base64" if used else "no base64",
    "results": lambda how: RESULTS.get(how, f"results {how}"),
    "rtt_ms": lambda ms: "no relay" if ms is None else f"rtt {ms:g} ms",
}
"""Fields of a Setup that say how its messages travel, in words."""
USUAL: Mapping[str, object] = {field.name: field.default for field in fields(Setup) if field.name in MESSAGES}


def messages(setups: Iterable[Setup]) -> str:
    """How these setups' messages travel where one of them leaves Celery's own way, in words; empty where none does."""
    sent = [setup for setup in setups if setup.queued]
    found = {name: list(dict.fromkeys(getattr(setup, name) for setup in sent)) for name in MESSAGES}
    found["rtt_ms"].sort(key=lambda ms: -1.0 if ms is None else ms)
    return "; ".join(
        ", ".join(MESSAGES[name](value) for value in values)
        for name, values in found.items()
        if values and values != [USUAL[name]]
    )
