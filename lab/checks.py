"""Reasons to distrust a run, each with its remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from lab import bill
from lab.model import Fault, Run
from lab.stats import quantile
from producer.pacers import Burst, Closed

MAX_LAG_SHARE = 0.10  # of the latency at the same quantile; beyond it the producer is part of the result
MAX_FEED_SHARE = 0.50  # of a burst's makespan; beyond it the workers may have waited for the producer
MAX_APART = 0.02  # of the whole way
MAX_OTHERS_CORES = 0.25  # more than a quarter of a core used by strangers shifts ratios on a small machine
MAX_STEAL_CORES = 0.10  # taken by the hypervisor; a run with more measures the neighbours


def late_producer(run: Run) -> Iterator[str]:
    """The producer kept up with its own plan, for each of the loads that run beside each other."""
    setup, samples = run.trial.setup, run.samples
    if not setup.queued:
        return  # without a queue nobody feeds
    for load, jobs in zip(setup.loads, (samples.own, samples.others), strict=False):
        if isinstance(load.pacer, Closed):
            continue  # a closed load is late by its nature
        if isinstance(load.pacer, Burst):
            # All jobs are due at once, so lag is only how long the feeding took; it is known without marks too.
            fed_s, wall_s = run.resources.fed_s, run.resources.wall_s
            if setup.beside:  # the bill is that of both loads
                fed_s, wall_s = float(max(jobs.lag_s, default=0.0)), float(max(jobs.latency_s, default=0.0))
            if fed_s > MAX_FEED_SHARE * wall_s:
                yield (
                    f"{setup.label}: feeding the queue took {fed_s:.2f} s of the {wall_s:.2f} s run: workers "
                    "may have waited for the producer: make the jobs longer, or give the producer its own core"
                )
        elif len(jobs):
            # Like with like: what makes 1 % of the jobs late cannot move the median, nor 3 ms a p99 of a second.
            # Where every step is marked, lag is a part of its own, and claims are about means.
            for share, q in (("half", 0.5),) if setup.steps else (("half", 0.5), ("1 %", 0.99)):
                lag, latency = quantile(jobs.lag_s, q), quantile(jobs.latency_s, q)
                if lag > MAX_LAG_SHARE * latency:
                    yield (
                        f"{setup.label}: the producer sent {share} of its jobs {lag * 1e3:.1f} ms or more late (that "
                        f"share's latency is {latency * 1e3:.1f} ms or more): lower the rate, or give the producer its "
                        "own core"
                    )
                    break


def incomplete_ledger(run: Run) -> Iterator[str]:
    """Every job ended once, and right."""
    ledger, label = run.ledger, run.trial.setup.label
    if ledger.lost:
        words = f" (the worker's last words: {run.last_words})" if run.last_words else ""
        yield f"{label}: {ledger.lost} of {ledger.issued} jobs never ended: look for a crash of the worker{words}"
    if ledger.failed:
        yield (
            f"{label}: {ledger.failed} of {ledger.issued} jobs failed ({ledger.wrong} with a wrong result): "
            "run the job by hand, `sidestep worker` shows the error"
        )
    if ledger.duplicated:
        yield f"{label}: {ledger.duplicated} jobs ran twice or more: the visibility timeout must exceed the longest job"


def noisy_machine(run: Run) -> Iterator[str]:
    """Nobody else used the machine meanwhile."""
    resources = run.resources
    for seconds, limit, who, remedy in (
        (resources.others_cpu_s, MAX_OTHERS_CORES, "other programs used", "close them"),
        (resources.steal_s, MAX_STEAL_CORES, "the hypervisor took away", "measure on a quieter host"),
    ):
        if seconds is not None and seconds > limit * resources.wall_s and seconds > SMALLEST_NOISE_S:
            yield (
                f"{run.trial.setup.label}: {who} {seconds / resources.wall_s:.2f} cores during the run "
                f"(at most {limit:g} is allowed): {remedy} and run again"
            )


SMALLEST_NOISE_S = 0.05  # the kernel counts CPU time in ticks of 10 ms per core; five of them can be chance


def impossible_times(run: Run) -> Iterator[str]:
    """Every job was sent, received, started and ended in this order."""
    s = run.samples
    known = s.received_ns != 0
    apart = (s.sent_ns < s.due_ns) | (s.ended_ns < s.started_ns) | (s.started_ns < s.sent_ns)
    between = known & ((s.received_ns < s.sent_ns) | (s.started_ns < s.received_ns))
    backwards = int(np.sum(apart | between))
    if backwards:
        yield (
            f"{run.trial.setup.label}: {backwards} jobs have times that run back: the clocks of producer and worker"
            " differ; run both in one boot of one machine"
        )


def steps_do_not_add_up(run: Run) -> Iterator[str]:
    """The parts of the jobs' way are the whole way."""
    if run.steps is None:
        return
    whole = float(np.sum(bill.whole_s(run)))
    apart = abs(sum(float(np.sum(part)) for part in bill.parts_s(run).values()) - whole)
    missing = int(np.sum(run.steps.finished_ns == 0))
    if missing or apart > MAX_APART * abs(whole):
        yield (
            f"{run.trial.setup.label}: the parts of the jobs' way miss the whole by {apart / (abs(whole) or 1):.1%} "
            f"(at most {MAX_APART:.0%} is allowed), and {missing} jobs left no steps: run again; if it stays so, this "
            "version of kombu or Celery moves messages in another way"
        )


def gil_came_back(run: Run) -> Iterator[str]:
    """A free-threaded interpreter stayed free-threaded."""
    # An arm that asks for other packages wants to know what they do.
    if (
        run.resources.python.endswith("t")
        and not run.trial.setup.packages
        and (run.resources.gil_enabled or int(np.sum(run.samples.gil)))
    ):
        yield (
            f"{run.trial.setup.label}: an extension module switched the GIL of this free-threaded interpreter back on: "
            "remove the module from its environment (hiredis is a usual one)"
        )


CHECKS: tuple[Callable[[Run], Iterator[str]], ...] = (
    incomplete_ledger,
    late_producer,
    noisy_machine,
    impossible_times,
    steps_do_not_add_up,
    gil_came_back,
)


def faults(run: Run) -> tuple[Fault, ...]:
    """What every check says of the run."""
    return tuple(Fault(check.__name__, says) for check in CHECKS for says in check(run))
