"""Loads and arguments in words."""

from __future__ import annotations

from lab.model import FrozenArgs, Load
from producer.pacers import Burst, Closed, Constant, Pacer, Poisson, Ramp, Replay, Steps
from producer.payloads import Args, Calibrated, EachJob, Sometimes, Text, Upstream


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
            return f"{name} of {_size(size_bytes)}"
        case EachJob():
            return ""
        case _:
            return f"{name} {value}"


def _size(size_bytes: int) -> str:
    for unit, size in (("MB", 1_000_000), ("kB", 1_000)):
        if size_bytes >= size:
            return f"{size_bytes / size:g} {unit}"
    return f"{size_bytes} bytes"
