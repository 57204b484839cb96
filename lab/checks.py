"""Reasons to distrust a run, each with its remedy."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from lab import bill
from lab.model import Fault, Run, Samples
from lab.stats import MEASURES, quantile
from producer.pacers import Burst, Closed

MAX_LAG_SHARE = 0.10  # of the latency at the same quantile; beyond it the producer is part of the result
MAX_FEED_SHARE = 0.50  # of a burst's makespan; beyond it the workers may have waited for the producer
MAX_APART = 0.02  # of the whole way
MAX_OTHERS_CORES = 0.25  # more than a quarter of a core used by strangers shifts ratios on a small machine
MAX_BOUND_OF_SPAN = 0.01  # of a run's length; a throughput is wrong by no more than that
MAX_BOUND_SHARE = 0.10  # of the median latency or wait
MAX_OVER_QUOTA, QUOTA_PERIOD_S, TICK_S = 0.10, 0.1, 0.02
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
        elif says := _late(jobs, "half", 0.5):
            yield f"{setup.label}: {says}"


def late_tail(run: Run) -> Iterator[str]:
    """All but 1 % of the jobs were sent nearly when they were due.

    Like with like: what makes 1 % of the jobs late cannot move the median, nor 3 ms a p99 of a second.
    """
    setup, samples = run.trial.setup, run.samples
    if not setup.queued or setup.steps:
        return  # where every step is marked, lag is a part of its own, and claims are about means
    for load, jobs in zip(setup.loads, (samples.own, samples.others), strict=False):
        if isinstance(load.pacer, Closed | Burst) or _late(jobs, "half", 0.5):
            continue
        if says := _late(jobs, "1 %", 0.99):
            yield f"{setup.label}: {says}"


def _late(jobs: Samples, share: str, q: float) -> str:
    """What is wrong, if this share of the jobs was sent so late that it shows in their latency; else nothing."""
    if not len(jobs):
        return ""
    lag, latency = quantile(jobs.lag_s, q), quantile(jobs.latency_s, q)
    if lag <= MAX_LAG_SHARE * latency:
        return ""
    return (
        f"the producer sent {share} of its jobs {lag * 1e3:.1f} ms or more late (that share's latency is "
        f"{latency * 1e3:.1f} ms or more): lower the rate, or give the producer its own core"
    )


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
    # What begins on one machine and ends on another may run back by what is not known of their clocks.
    slack_ns = round(clock_bound_s(run) * 1e9)
    apart = (s.sent_ns < s.due_ns) | (s.ended_ns < s.started_ns) | (s.started_ns + slack_ns < s.sent_ns)
    between = known & ((s.received_ns + slack_ns < s.sent_ns) | (s.started_ns < s.received_ns))
    backwards = int(np.sum(apart | between))
    if backwards:
        yield (
            f"{run.trial.setup.label}: {backwards} jobs have times that run back: the clocks of producer and worker"
            " differ; run both in one boot of one machine"
        )


def clock_bound_s(run: Run) -> float:
    """By how much a moment on one machine can be wrong against one on another, either way; 0 on one machine."""
    return max((int(one.get("clock_bound_ns", 0)) for one in run.processes), default=0) / 1e9


def unsure_clocks(run: Run) -> Iterator[str]:
    """The clocks of several machines agree well enough for the length of the run."""
    bound_s, wall_s = clock_bound_s(run), run.resources.wall_s
    if bound_s > MAX_BOUND_OF_SPAN * wall_s:
        yield (
            f"{run.trial.setup.label}: a machine's clock is known to {bound_s * 1e3:.2f} ms only, and the run took "
            f"{wall_s:.3f} s (at most {MAX_BOUND_OF_SPAN:.0%} is allowed): {NEARER}"
        )


def unsure_waits(run: Run) -> Iterator[str]:
    """The clocks of several machines agree well enough for the times that begin on one and end on another."""
    bound_s, samples = clock_bound_s(run), run.samples.own
    if not bound_s or not len(samples):
        return
    for name, seconds in (("latency", samples.latency_s), ("wait", samples.wait_s)):
        middle_s = quantile(seconds, 0.5)
        if bound_s > MAX_BOUND_SHARE * middle_s:
            yield (
                f"{run.trial.setup.label}: a machine's clock is known to {bound_s * 1e3:.2f} ms only, and the median "
                f"{name} is {middle_s * 1e3:.2f} ms (at most {MAX_BOUND_SHARE:.0%} is allowed), so what is said of "
                f"latencies and waits does not hold: {NEARER}"
            )
            return


NEARER = "put the broker nearer to the machines, or measure longer jobs"
MEDIANS = frozenset({name for name in MEASURES if name.endswith("_p50_s")})
SPOILS: Mapping[str, frozenset[str]] = {
    "late_tail": frozenset(MEASURES) - MEDIANS,
    "unsure_waits": frozenset({"latency_p50_s", "latency_p99_s", "wait_p99_s", "fetch_p50_s", "beside_p99_s"}),
}
"""Checks whose faults concern these measures alone; those of all others concern every measure."""


def machine_left(run: Run) -> Iterator[str]:
    """Every machine that the trial was to run on was there to its end."""
    for change in run.changes:
        if change.worked and not change.joined:
            yield (
                f"{run.trial.setup.label}: machine {change.machine} left {change.at_s:.1f} s after the first job was "
                "due: start `sidestep worker` there again, and run again"
            )


def quota_not_kept(run: Run) -> Iterator[str]:
    """No simulated machine had more of a core than it was to have."""
    setup, resources = run.trial.setup, run.resources
    if setup.cpus is None or not resources.wall_s:
        return
    used = resources.worker_cpu_s / resources.wall_s / setup.nodes
    # A quota is given for a tenth of a second at once, so a short run may end just after one was used up.
    allowed = (
        setup.cpus * (1 + MAX_OVER_QUOTA) + setup.cpus * QUOTA_PERIOD_S / resources.wall_s + TICK_S / resources.wall_s
    )
    if used > allowed:
        yield (
            f"{setup.label}: each simulated machine used {used:.2f} of a core and was to have {setup.cpus:g}: the "
            "engine keeps no quota: does this kernel have the cgroup controller `cpu`?"
        )


def steps_do_not_add_up(run: Run) -> Iterator[str]:
    """The parts of the jobs' way are the whole way, and the plain marks bear them out."""
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
    strayed = float(np.sum(bill.strayed_s(run)))
    if strayed > MAX_APART * abs(whole):
        yield (
            f"{run.trial.setup.label}: what Celery told of the jobs lies outside of their steps by "
            f"{strayed / (abs(whole) or 1):.1%} of the way (at most {MAX_APART:.0%} is allowed): some steps are "
            "those of other jobs: run again; if it stays so, this version of Celery decodes messages in another order"
        )


GIL_BACK = "The global interpreter lock (GIL) has been enabled to load module"
"""CPython's warning (3.13, import.c), on stderr; the module's name follows in quotes."""


def gil_bringers(stderr: str) -> tuple[str, ...]:
    """The modules that brought the GIL back, by what a free-threaded interpreter wrote on stderr."""
    return tuple(dict.fromkeys(re.findall(rf"{re.escape(GIL_BACK)} '([^']+)'", stderr)))


def gil_came_back(run: Run) -> Iterator[str]:
    """A free-threaded interpreter stayed free-threaded."""
    # An arm that asks for other packages wants to know what they do.
    if (
        run.resources.python.endswith("t")
        and not run.trial.setup.packages
        and (run.resources.gil_enabled or int(np.sum(run.samples.gil)))
    ):
        known = ", ".join(gil_bringers(run.last_words))
        remedy = (
            f"remove {known} from its environment"
            if known
            else "`sidestep doctor` names the module where it can; remove it from the workers' environment"
        )
        yield (
            f"{run.trial.setup.label}: {known or 'an extension module'} switched the GIL of this free-threaded "
            f"interpreter back on: {remedy}"
        )


def deaf_watcher(run: Run) -> Iterator[str]:
    """The Flower that was to listen heard of every job's end."""
    if run.trial.setup.events == "flower" and (heard := run.resources.watcher_ends or 0) < run.ledger.done:
        yield (
            f"{run.trial.setup.label}: Flower heard of {heard} of {run.ledger.done} jobs' ends, so what it cost to "
            "watch them was not measured: is the broker's memory limit for slow listeners too low?"
        )


CHECKS: tuple[Callable[[Run], Iterator[str]], ...] = (
    incomplete_ledger,
    late_producer,
    late_tail,
    noisy_machine,
    impossible_times,
    unsure_clocks,
    unsure_waits,
    machine_left,
    quota_not_kept,
    steps_do_not_add_up,
    gil_came_back,
    deaf_watcher,
)


def faults(run: Run) -> tuple[Fault, ...]:
    """What every check says of the run."""
    return tuple(Fault(check.__name__, says) for check in CHECKS for says in check(run))
