"""How a suite is measured and judged, and what it cannot say: the same words under every report."""

from __future__ import annotations

from collections.abc import Sequence

from lab.model import Finding
from lab.report.units import number, plural

METHOD = (
    (
        "Blocks",
        "Each repeat runs every setup of the experiment once, in an order shuffled by the suite's seed, so that a "
        "machine that slows down halfway slows every setup alike. Ratios are taken inside a repeat, never across "
        "repeats.",
    ),
    (
        "Fresh processes",
        "Each trial starts its own workers (or its own program, for the setups called bare) and ends them. Before "
        "the clock starts, every slot of a worker has slept at the same time as all others and done one real job; "
        "booting and warming up are no part of any result. Setups whose difference is a per cent or so stand ready "
        "together and take turns, part by part, within one run. A trial during which other programs took more of the "
        "machine than allowed, or in which one job in a hundred was sent late by more than a tenth of its latency, is "
        "taken again, at most twice; that choice looks at their CPU time and at lag beside latency, never at which way "
        "a claim comes out.",
    ),
    (
        "Intervals",
        "The 95 % intervals of ratios, throughput and CPU time are Student t intervals on logarithms over repeats, "
        "those of shares and of claims about one figure alone on the figures themselves: jobs within one run "
        "are not independent, so n counts repeats and never jobs. Round brackets are something "
        "else: the lowest and the highest repeat.",
    ),
    (
        "Verdicts",
        "The whole interval is judged, not the point: supported when all of it keeps the predicted bound, refuted "
        "when all of it misses, else inconclusive. A fault on any run that a claim looks at makes it invalid. "
        "Verdicts are not stored: they follow from the samples whenever the report is made.",
    ),
    (
        "Latency",
        "It counts from the moment a job was due, not from when it was sent, so a late producer cannot hide a slow "
        "queue. Percentiles are exact, from the raw samples of all repeats together.",
    ),
    (
        "CPU and stalled",
        "A job's CPU time is read from its own thread's clock where it starts and where it ends. What is left of "
        "its time is stalled. In a pool of greenlets that thread is shared, so there the CPU time is an upper "
        "bound.",
    ),
    (
        "A job's way",
        "Where an experiment marks the steps, a job's way is cut at twelve moments into parts that add up to it: "
        "all clocks are one clock. Two of kombu's methods and its decoders are wrapped for that, which costs some "
        "microseconds a job, in these experiments alone. A run is invalid whose parts miss the whole by more than 2 %, "
        "or whose steps disagree so much with the moment in which Celery told of the job, which is read apart.",
    ),
    (
        "Serializers and messages",
        "What a serializer costs is timed in one process, without queue and garbage collection: the median of rounds "
        "whose number is fixed beforehand. A payload that is refused, or comes back as anything else, gets no figure. "
        "The size of a message is that of the first job's, taken from the broker. Distance to the broker is a relay "
        "on this machine that holds every byte back for half of the time each way; it keeps them in order "
        "and many of them under way at once. It copies each byte once more: compare with the relay at 0 ms.",
    ),
)
"""Heading and paragraph."""

LIMITS = (
    "Producer, broker and workers share this machine's cores. At full load they compete, so absolute rates are "
    "lower than with a broker elsewhere; the setups called bare have no broker and no producer.",
    "Workers start without gossip, mingle and heartbeat, and nothing keeps results unless a setup says so: a worker "
    "with Celery's defaults has a little more to do.",
    "Payloads are made up, from a seed. Shape decides what a serializer costs as much as size does: measure your own.",
    "One machine, one operating system, one set of versions, and jobs made for the purpose. Differences between "
    "machines are not in any interval.",
    "Repeats follow each other within minutes: what changes from day to day is not in any interval either.",
    "The Student t interval takes the logarithms of the repeats for independent and about normal. With three to five "
    "repeats that cannot be checked.",
    "Adding repeats until a claim is decided makes a verdict by chance more likely: choose their number first and "
    "run a new suite.",
    "CPU time of whole processes is counted in ticks of 10 ms; on a short run a tick is visible.",
)


def by_chance(findings: Sequence[Finding]) -> str:
    """What to expect of so many intervals without any correction."""
    k = sum(finding.estimate is not None and finding.estimate.n > 1 for finding in findings)
    return (
        f"No correction is made for testing many claims. Of {plural(k, 'interval')} at 95 % about "
        f"{number(k / 20, 2)} would miss the true value by chance alone; a verdict is wrong only where the miss "
        "lies across the bound."
    )
