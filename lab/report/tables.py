"""The evidence as tables, computed once for terminal and page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from itertools import pairwise
from typing import Any

import numpy as np

from lab.axes import codec, compression, shape, size_bytes
from lab.bill import MEASURES as OF_THE_WAY
from lab.bill import (
    argument_text_bytes,
    base64_bytes,
    body_bytes,
    coded_bytes,
    coding_us,
    collect_s_per_job,
    decode_us,
    encode_us,
    header_bytes,
    message_bytes,
    overhead_s,
)
from lab.model import FrozenArgs, Ledger, Run, Seconds, Setup
from lab.report import loads
from lab.report.groups import Group, rate_hz
from lab.report.loads import offered_hz
from lab.report.speedup import busy_share, computing_s, service_s, speedups, stalled_s
from lab.report.units import MIB, NONE, TIMES, TO, number, share, spread, sure
from lab.stats import (
    additions,
    beside_hz,
    disorder,
    latency_p50_s,
    lost_updates,
    mean,
    pss_bytes_per_slot,
    quantile,
    reordered,
    round_us,
    slots_busy,
    watcher_cpu_s_per_job,
    worker_cpu_s_per_job,
)
from producer.pacers import Burst, Closed
from producer.payloads import Cycle
from tasks.carriers import THINGS, Outcome, unpack
from tasks.jobs import JOBS, Nature
from tasks.pools import POOLS
from tasks.transcode import CHANGED


@dataclass(frozen=True, slots=True)
class Column:
    """A heading, with its unit."""

    name: str
    unit: str = ""
    only_wide: bool = False
    """Left out where there are 80 columns of text."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells that are ready to be shown; the first cell names its row."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


Make = Callable[[Sequence[Group]], Table | None]
SETUP = Column("setup")
MS = 1e3
hop_part_s = OF_THE_WAY["hop_part_s"]
KEEPS_UP = 0.95
"""Below this share of the offered rate the queue grew: the last job of an open load always ends a little late."""


ARRIVED: Mapping[int, str] = {Outcome.AS_IT_WAS: "as it was", Outcome.CHANGED: "changed", Outcome.REFUSED: "refused"}


def arrivals(groups: Sequence[Group]) -> Table | None:
    """What became of each thing that was handed over, by carrier; None where no job did that."""
    carried = [g for g in groups if g.setup.job == "deliver" and any(len(run.samples.own) for run in g.runs)]
    if not carried:
        return None
    names = [str(g.setup.args.get("through", NONE)) for g in carried]
    # Two columns of one carrier differ in what else the setups say.
    units = [g.label if names.count(name) > 1 else "" for g, name in zip(carried, names, strict=True)]
    columns = (Column("thing"), *map(Column, names, units))
    outcomes = [_outcomes(g) for g in carried]
    rows = tuple((thing.name, *(found[i] for found in outcomes)) for i, thing in enumerate(THINGS))
    notes = (
        "Each cell is a real journey, there and back, in every job of every repeat. As it was: the same type and the "
        "same value, or the same use of it. Changed: something else arrived, and nobody was told. Refused: the sender "
        "or the receiver raised.",
        "thread hands a pointer to another thread; pickle is multiprocessing's, both ends in one process; prefork is "
        "the pipe from a worker's parent to its children; the others are the body of a Celery message.",
    )
    return Table("What arrives", columns, rows, notes)


def _outcomes(group: Group) -> list[str]:
    """A cell for each of THINGS; one that was not alike every time shows all that was seen."""
    seen = {int(value) for run in group.runs for value in run.samples.own.value}
    by_thing = zip(*map(unpack, sorted(seen)), strict=True)
    return [" or ".join(ARRIVED.get(digit, NONE) for digit in sorted(set(digits))) for digits in by_thing]


def counts_itself(group: Group) -> bool:
    """Whether the jobs return what is measured, each a step of it: how long they took themselves says nothing."""
    return isinstance(group.setup.args.get("step"), Cycle)


def coding(groups: Sequence[Group]) -> Table | None:
    """What it costs to write each payload and to read it; None where no job did that."""
    coded = [g for g in groups if counts_itself(g)]
    if not coded:
        return None
    rows = tuple(
        (
            _payload(g.setup),
            _coded(g, lambda g: sure(g.estimate(encode_us))),
            _coded(g, lambda g: sure(g.estimate(decode_us))),
            _coded(g, lambda g: spread(g.values(coded_bytes), decimals=0)),
            str(len(g.runs)),
        )
        for g in coded
    )
    columns = (
        Column("payload"),
        Column("encode", "µs [95 %]"),
        Column("decode", "µs [95 %]"),
        Column("size", "bytes"),
        Column("n", "repeats"),
    )
    notes = (
        "Median time of one operation within a repeat, without garbage collection; then the geometric mean over "
        "repeats. Before that the payload makes the way there and back once: refused, it raised; changed, something "
        "else came back.",
    )
    return Table("What a serializer costs", columns, rows, notes)


def _payload(setup: Setup) -> str:
    packed = "" if compression(setup) == "none" else f" + {compression(setup)}"
    return f"{codec(setup)}{packed} \N{MIDDLE DOT} {shape(setup)} \N{MIDDLE DOT} {loads.size(size_bytes(setup))}"


def _coded(group: Group, say: Callable[[Group], str]) -> str:
    values = [coding_us(run) for run in group.runs]
    if any(map(math.isinf, values)):
        return "refused"
    if any(CHANGED in run.samples.own.value for run in group.runs):
        return "changed"
    return say(group)


def races(groups: Sequence[Group]) -> Table | None:
    """How many additions were lost, and how the order of ends changes; None where no job counts."""
    if not any(g.setup.job == "tally" and g.jobs for g in groups):
        return None
    rows = tuple(
        (
            g.label,
            spread(g.values(_added), decimals=0),
            spread(g.values(_lost), decimals=0),
            spread(g.values(disorder), 100),
            spread([reordered(one, other) for one, other in pairwise(g.runs)], 100),
            str(len(g.runs)),
        )
        for g in groups
    )
    columns = (
        SETUP,
        Column("additions", "(range)"),
        Column("lost", "(range)"),
        Column("ended out of order", "% of pairs (range)"),
        Column("from run to run", "% of pairs (range)", only_wide=True),
        Column("n", "repeats"),
    )
    notes = (
        "Lost are additions that the counter lacks at the end. Out of order: pairs of jobs that ended in another order "
        "than they were sent. From run to run: pairs that ended in another order than in the repeat before, where the "
        "same jobs were sent in the same order.",
    )
    return Table("Lost updates, and the order of ends", columns, rows, notes)


def _added(run: Run) -> float:
    return float(additions(run) or math.nan) if run.trial.setup.job == "tally" else math.nan


def _lost(run: Run) -> float:
    return lost_updates(run) * _added(run)


def rounds(groups: Sequence[Group]) -> Table | None:
    """What taking a lock costs, by kind and number of threads; None where no job does that."""
    held = [g for g in groups if g.setup.job == "hold"]
    if not held:
        return None
    kinds = list(dict.fromkeys(str(g.setup.args.get("kind")) for g in held))
    rows = tuple(
        (kind, str(g.setup.slots), sure(price), share(price.value / MS) if price else NONE, str(len(g.runs)))
        for kind in kinds
        for g in sorted(held, key=lambda g: g.setup.slots)
        if g.setup.args.get("kind") == kind
        for price in (g.estimate(round_us),)
    )
    columns = (
        Column("kind"),
        Column("threads"),
        Column("one round", "µs [95 %]"),
        Column("of a 1 ms job"),
        Column("n", "repeats"),
    )
    notes = (
        "A round takes and gives back, or puts and gets; `nothing` is the loop around it. Median over jobs of the time "
        "from started to ended, which with several threads holds the others' turns too.",
    )
    return Table("What a lock costs", columns, rows, notes)


def per_megabyte(groups: Sequence[Group]) -> Table | None:
    """What each megabyte adds to a job's way; None where steps were not marked for two sizes of one setup."""
    alike: dict[Setup, list[Group]] = {}
    for g in groups:
        if g.setup.steps and g.setup.payload_bytes:
            same = replace(g.setup, args=FrozenArgs(), pacer=Burst(1))
            alike.setdefault(same, []).append(g)
    rows = []
    for some in alike.values():
        by_size = sorted(some, key=lambda g: g.setup.payload_bytes)
        small, large = by_size[0], by_size[-1]
        if small.setup.payload_bytes < large.setup.payload_bytes:
            each = (_slopes(small, large, measure) for measure in (hop_part_s, overhead_s))
            rows.append((large.label, *(sure(mean(slopes), MS) for slopes in each), str(len(large.runs))))
    if not rows:
        return None
    columns = (
        SETUP,
        Column("hop to the slot", "ms per MB [95 %]"),
        Column("whole way", "ms per MB [95 %]"),
        Column("n", "repeats"),
    )
    notes = (
        "Slope between the smallest and the largest payload of the same setup, inside each repeat: what one more "
        "megabyte adds. The way is all but the job itself.",
    )
    return Table("The price of a megabyte", columns, tuple(rows), notes)


def _slopes(small: Group, large: Group, measure: Callable[[Run], float]) -> list[float]:
    """Seconds per megabyte in every repeat that has both."""
    below = {run.trial.repeat: measure(run) for run in small.runs}
    megabytes = (large.setup.payload_bytes - small.setup.payload_bytes) / 1e6
    found = [(measure(run) - below.get(run.trial.repeat, math.nan)) / megabytes for run in large.runs]
    return [slope for slope in found if math.isfinite(slope)]


def messages(groups: Sequence[Group]) -> Table | None:
    """What a message is made of; None where no payload is sent and messages travel in Celery's own way."""
    sent = [g for g in groups if g.values(message_bytes)]
    if not sent or not (loads.messages(g.setup for g in sent) or any(g.setup.payload_bytes for g in sent)):
        return None
    columns = (SETUP, *(Column(name, unit) for name, unit, _ in ANATOMY), Column("n", "repeats"))
    rows = tuple(
        (g.label, *(spread(g.values(measure), decimals=0) for _, _, measure in ANATOMY), str(len(g.runs))) for g in sent
    )
    notes = (
        "The first job's message, as the broker holds it. The rest: headers, properties, and the JSON around them. "
        "Ids and times make messages of one setup differ by some bytes; round brackets are the range of the repeats.",
    )
    return Table("What a message is made of", columns, rows, notes)


ANATOMY: tuple[tuple[str, str, Callable[[Run], float]], ...] = (
    ("message", "bytes", message_bytes),
    ("body", "bytes", body_bytes),
    ("base64", "bytes", base64_bytes),
    ("text", "bytes", argument_text_bytes),
    ("the rest", "bytes", header_bytes),
)


def collected(groups: Sequence[Group]) -> Table | None:
    """What it takes to read the results; None where nobody does."""
    read = [g for g in groups if g.values(collect_s_per_job)]
    if not read:
        return None
    rows = tuple((g.label, sure(g.estimate(collect_s_per_job), MS), str(len(g.runs))) for g in read)
    columns = (SETUP, Column("time per result", "ms [95 %]"), Column("n", "repeats"))
    notes = ("Read when all of them are there, so that nobody waits for a job; no part of the throughput.",)
    return Table("Reading the results", columns, rows, notes)


def throughput(groups: Sequence[Group]) -> Table | None:
    """How many jobs a second."""
    if not groups:
        return None
    rows = tuple((g.label, sure(g.estimate(rate_hz)), str(len(g.values(rate_hz)))) for g in groups)
    columns = (SETUP, Column("throughput", "jobs/s [95 %]"), Column("n", "repeats"))
    return Table("Throughput", columns, rows, tuple(_throughput_notes(groups)))


def _throughput_notes(groups: Sequence[Group]) -> list[str]:
    notes = ["Geometric mean over n repeats, each in fresh processes; in brackets the 95 % interval."]
    offered = sorted({rate for g in groups if (rate := offered_hz(g.setup.pacer))})
    if offered:
        rates = ", ".join(number(rate) for rate in offered)
        notes.append(f"The load offers {rates} jobs/s and the last jobs end after it: no setup can exceed that rate.")
    if any(g.setup.watch_broker for g in groups):
        notes.append("Timed at the broker: from the first job due until nothing was queued or unacknowledged.")
    return notes


QUANTILES = ((0.5, "p50", False), (0.9, "p90", True), (0.99, "p99", False), (0.999, "p99.9", True))


def permits(n: int, q: float) -> bool:
    """Whether n values are enough for the quantile to be anything but the largest of them."""
    return n * (1 - q) >= 1 - 1e-9


def latency(groups: Sequence[Group]) -> Table | None:
    """How long from due to ended, over all repeats' jobs; None where no job was seen."""
    seen = [g for g in groups if g.jobs]
    if not seen:
        return None
    columns = (
        SETUP,
        *(Column(name, "ms", only_wide=wide) for _, name, wide in QUANTILES),
        Column("max", "ms"),
        Column("p50 by repeat", "ms", only_wide=True),
        Column("producer lag p50", "ms", only_wide=True),
        Column("producer lag p99", "ms"),
        Column("producer lag max", "ms", only_wide=True),
        Column("n", "jobs"),
    )
    return Table(
        "Latency, from due to ended", columns, tuple(_latency_row(g) for g in groups), tuple(_latency_notes(seen))
    )


def _latency_row(group: Group) -> tuple[str, ...]:
    latency_s = group.pooled(lambda s: s.latency_s)
    medians = group.values(latency_p50_s)
    # Without a queue nobody feeds: what looks like lag is the program's own loop.
    lag_s = group.pooled(lambda s: s.lag_s)
    lags = (_quantile_ms(lag_s, 0.5), _quantile_ms(lag_s, 0.99), _largest_ms(lag_s))
    return (
        group.label,
        *(_quantile_ms(latency_s, q) for q, _, _ in QUANTILES),
        _largest_ms(latency_s),
        _from_to(medians, MS),
        *(lags if group.setup.queued else [NONE] * len(lags)),
        str(group.jobs),
    )


def _quantile_ms(values_s: Seconds, q: float) -> str:
    return number(quantile(values_s, q) * MS, decimals=3) if permits(len(values_s), q) else NONE


def _largest_ms(values_s: Seconds) -> str:
    return number(float(values_s.max()) * MS, decimals=3) if len(values_s) else NONE


def _from_to(values: Sequence[float], scale: float) -> str:
    return f"{number(min(values) * scale)}{TO}{number(max(values) * scale)}" if values else NONE


def _latency_notes(seen: Sequence[Group]) -> list[str]:
    notes = [
        "Exact percentiles of all repeats' jobs together; a percentile is shown when n permits, p99 from 100 jobs on. "
        "Lag is how late the producer sent a job; it is part of the latency."
    ]
    if any(isinstance(g.setup.pacer, Burst) for g in seen):
        notes.append(
            "Where all jobs are due at once, latency is mostly the place in the queue: it says how long the queue "
            "took, not how a job feels under a steady load."
        )
    if any(isinstance(g.setup.pacer, Closed) for g in seen):
        notes.append(
            "In a closed load each client waits for its job, so a slow queue lowers the load and hides itself."
        )
    behind = [g.label for g in seen if not _kept_up(g)]
    if behind:
        notes.append(
            f"{', '.join(behind)} could not keep up with the load, so the queue grew: those latencies, and every ratio "
            "with them, depend on how long the load lasted."
        )
    return notes


def _kept_up(group: Group) -> bool:
    offered = offered_hz(group.setup.pacer)
    estimate = group.estimate(rate_hz)
    if offered is None or estimate is None:
        return True
    # A short load ends with one latency on top: count what was possible, not the bare rate.
    due_s = max(group.setup.pacer.due_s(), default=0.0)
    latest_s = due_s + quantile(group.runs[0].samples.own.service_s, 0.99)
    possible_hz = min(offered, group.setup.pacer.count / latest_s) if latest_s > 0 else offered
    return estimate.value >= KEEPS_UP * possible_hz


def where_the_rest_went(groups: Sequence[Group]) -> Table | None:
    """Each speed-up over one slot of the same pool as a product; None where one slot was not measured."""
    found = speedups(groups)
    if not found:
        return None
    rows = tuple((s.label, sure(s.total), f"{s.slots:g}", sure(s.busy), sure(s.service), str(s.total.n)) for s in found)
    columns = (
        SETUP,
        Column("speed-up", "times [95 %]"),
        Column("= slots", "times"),
        Column(f"{TIMES} busy share", "times [95 %]"),
        Column(f"{TIMES} pace of a job", "times [95 %]"),
        Column("n", "repeats"),
    )
    notes = (
        f"Exact: speed-up = ratio of slots {TIMES} ratio of the share of slot time with a job under way {TIMES} "
        "time per job with one slot over time per job here. Against the same pool with one slot, inside each "
        "repeat.",
        "A busy share below 1 is time between jobs: queue, acknowledgement, an uneven end. A pace below 1 is jobs that "
        "take longer side by side: the next table says whether on the CPU or stalled.",
    )
    return Table("Where the rest went", columns, rows, notes)


def service(groups: Sequence[Group]) -> Table | None:
    """What a job's time was made of; None where no job was seen."""
    seen = [g for g in groups if g.jobs]
    if not seen:
        return None
    rows = tuple(
        (
            g.label,
            spread(g.values(service_s), MS, decimals=3),
            spread(g.values(computing_s), MS, decimals=3),
            spread(g.values(stalled_s), MS, decimals=3),
            spread(g.values(busy_share), 100),
            str(len(g.values(service_s))),
        )
        for g in seen
    )
    columns = (
        SETUP,
        Column("time per job", "ms (range)"),
        Column("on CPU", "ms (range)"),
        Column("stalled", "ms (range)"),
        Column("slots busy", "% (range)"),
        Column("n", "repeats"),
    )
    notes = [
        "Mean over the jobs of a repeat, then over repeats, with the lowest and the highest repeat. Stalled is "
        "under way but not computing: waiting for the GIL, for a core, or for what the job itself waits for."
    ]
    if any(is_green(g) for g in seen):
        notes.append(
            "Greenlets share one thread, whose CPU clock counts the others' work too: there time on the CPU is an "
            "upper bound and stalled time a lower one."
        )
    return Table("What a job's time was made of", columns, rows, tuple(notes))


def beside(groups: Sequence[Group]) -> Table | None:
    """What became of the other jobs that ran meanwhile; None where there were none."""
    with_others = [g for g in groups if g.setup.beside and any(len(run.samples.others) for run in g.runs)]
    if not with_others:
        return None
    rows = tuple(
        (
            g.label,
            sure(g.estimate(beside_hz)),
            spread(g.values(_others_service_s), MS, decimals=3),
            str(sum(len(run.samples.others) for run in g.runs)),
            str(len(g.values(beside_hz))),
        )
        for g in with_others
    )
    columns = (
        SETUP,
        Column("other jobs", "jobs/s [95 %]"),
        Column("time per other job", "ms (range)"),
        Column("others", "jobs"),
        Column("n", "repeats"),
    )
    notes = (
        "Jobs that ran at the same time; every other table is about the setup's own jobs alone, but for what a worker "
        "costs as a whole.",
    )
    return Table("What ran beside", columns, rows, notes)


def _others_service_s(run: Run) -> float:
    others = run.samples.others.service_s
    return float(others.mean()) if len(others) else float("nan")


def is_green(group: Group) -> bool:
    """Whether the slots are greenlets of one thread."""
    return group.setup.queued and group.setup.pool in POOLS and POOLS[group.setup.pool].green


def cost(groups: Sequence[Group]) -> Table | None:
    """What the jobs cost beside time."""
    if not groups:
        return None
    rows = tuple(
        (
            g.label,
            sure(g.estimate(worker_cpu_s_per_job), MS),
            spread(g.values(pss_bytes_per_slot), 1 / MIB),
            spread(g.values(lambda run: run.resources.boot_s)),
            str(len(g.runs)),
        )
        for g in groups
    )
    columns = (
        SETUP,
        Column("CPU per job", "ms [95 %]"),
        Column("memory per slot", "MiB (range)"),
        Column("boot", "s (range)"),
        Column("n", "repeats"),
    )
    notes = (
        "CPU of the workers' whole process tree, counted by the kernel in ticks of 10 ms for a run. Memory is the "
        "tree's proportional set size at the end, shared by its slots. Boot is no part of any result.",
    )
    return Table("What it cost", columns, rows, notes)


ENOUGH_BUSY = 0.6
"""Share of the slots' time, as the claims of `io-slots` ask for: a slot that stands idle is no bargain."""
MANY_SLOTS = 10
"""From here on what a slot adds outweighs what the worker itself weighs."""


def cheapest(groups: Sequence[Group]) -> Table | None:
    """Which pool's slots weigh least, of those that are busy; None where no two pools had as many slots to fill."""
    rivals: dict[int, list[Group]] = {}
    for g in groups:
        setup = g.setup
        fills = isinstance(setup.pacer, Burst) and setup.pacer.count >= setup.slots >= MANY_SLOTS
        if fills and setup.queued and JOBS[setup.job].nature is Nature.WAITS and g.values(pss_bytes_per_slot):
            rivals.setdefault(setup.slots, []).append(g)
    rows = tuple(_cheapest_row(n, some) for n, some in sorted(rivals.items()) if len(some) > 1)
    if not rows:
        return None
    columns = (
        Column("slots"),
        Column("least memory, busy"),
        Column("memory per slot", "MiB (range)"),
        Column("slots busy", "% (range)"),
        Column("too idle to count", only_wide=True),
    )
    notes = (
        f"Of the pools that keep at least {ENOUGH_BUSY:.0%} of so many slots busy with waits, the one whose slot "
        "weighs least. A pool that could not run here is listed with what was left out.",
    )
    return Table("The cheapest slots that are busy", columns, rows, notes)


def _cheapest_row(slots: int, rivals: Sequence[Group]) -> tuple[str, ...]:
    def average(group: Group, measure: Callable[[Run], float]) -> float:
        values = group.values(measure)
        return math.fsum(values) / len(values) if values else math.nan

    busy = [g for g in rivals if average(g, slots_busy) >= ENOUGH_BUSY]
    idle = ", ".join(g.setup.pool for g in rivals if g not in busy) or NONE
    if not busy:
        return (str(slots), "no pool", NONE, NONE, idle)
    best = min(busy, key=lambda g: average(g, pss_bytes_per_slot))
    return (
        str(slots),
        best.setup.pool,
        spread(best.values(pss_bytes_per_slot), 1 / MIB),
        spread(best.values(slots_busy), 100),
        idle,
    )


def watching(groups: Sequence[Group]) -> Table | None:
    """What it took to listen; None where nobody did."""
    listened = [g for g in groups if g.values(watcher_cpu_s_per_job)]
    if not listened:
        return None
    rows = tuple(
        (
            g.label,
            *(sure(g.estimate(one), MS) for one in (watcher_cpu_s_per_job, worker_cpu_s_per_job)),
            str(len(g.runs)),
        )
        for g in listened
    )
    columns = (
        SETUP,
        Column("CPU of Flower", "ms/job [95 %]"),
        Column("CPU of the worker", "ms/job [95 %]"),
        Column("n", "repeats"),
    )
    notes = (
        "Flower is a neighbour: its CPU is no part of the worker's, and it shares the machine's cores with it. Counted "
        "until it had worked through every event, which may be after the last job has ended.",
    )
    return Table("What it took to listen", columns, rows, notes)


def broker(groups: Sequence[Group]) -> Table | None:
    """What the queue had to do for each job; None where there was none."""
    queued = [g for g in groups if g.setup.queued and any(run.resources.commands for run in g.runs)]
    if not queued:
        return None
    rows = tuple(
        (
            g.label,
            spread(g.values(_per_job(lambda run: sum(run.resources.commands.values())))),
            spread(g.values(_per_job(lambda run: run.resources.bytes_in))),
            spread(g.values(_per_job(lambda run: run.resources.bytes_out))),
            str(len(g.runs)),
        )
        for g in queued
    )
    columns = (
        SETUP,
        Column("commands per job", "(range)"),
        Column("into broker", "B/job (range)"),
        Column("out of broker", "B/job (range)"),
        Column("n", "repeats"),
    )
    notes = ("Everything the broker did during the run, without the looks at the queue by the lab itself.",)
    return Table("What the broker did", columns, rows, notes)


def _per_job(total: Callable[[Run], int | None]) -> Callable[[Run], float]:
    def per_job(run: Run) -> float:
        amount = total(run)
        return float("nan") if amount is None else amount / max(run.ledger.issued, 1)

    return per_job


def ledger(groups: Sequence[Group]) -> Table:
    """Every job, accounted for."""
    rows = tuple(
        (g.label, str(len(g.runs)), *(str(sum(count(run.ledger) for run in g.runs)) for _, count in COUNTS))
        for g in groups
    )
    columns = (SETUP, Column("n", "repeats"), *(Column(name, "jobs") for name, _ in COUNTS))
    notes = ["issued = done + failed + lost; duplicated jobs ran more than once and are counted beside."]
    if any(not g.setup.marks for g in groups):
        notes.append("Without marks a job counts as done when the broker no longer holds it.")
    return Table("Every job accounted for", columns, rows, tuple(notes))


COUNTS: tuple[tuple[str, Callable[[Ledger], int]], ...] = (
    ("issued", lambda ledger: ledger.issued),
    ("done", lambda ledger: ledger.done),
    ("failed", lambda ledger: ledger.failed),
    ("lost", lambda ledger: ledger.lost),
    ("duplicated", lambda ledger: ledger.duplicated),
)


def timed(make: Make) -> Make:
    """The table without setups whose jobs return what is measured: how long those took says nothing."""

    @wraps(make)
    def chosen(groups: Sequence[Group]) -> Table | None:
        return make([g for g in groups if not counts_itself(g)])

    return chosen


def machines(groups: Sequence[Group]) -> Table | None:
    """How well the clock of each attached machine was known, and what it did; None where all ran on one machine."""
    seen: dict[str, list[tuple[Mapping[str, Any], int]]] = {}
    agents: dict[str, dict[int, float]] = {}
    for run in (run for group in groups for run in group.runs):
        for number_, process in enumerate(run.processes):
            if "machine" in process:
                jobs = int(np.sum(run.samples.worker == number_))
                seen.setdefault(str(process["machine"]), []).append((process, jobs))
                # One agent a machine, however many tapes its worker has.
                agents.setdefault(str(process["machine"]), {})[id(run)] = float(process.get("agent_cpu_s", 0.0))
    if not seen:
        return None
    rows = tuple(
        (
            name,
            number(max(int(p.get("clock_bound_ns", 0)) for p, _ in said) / 1e6),
            number(max((int(p.get("clock_drift_ns", 0)) for p, _ in said), key=abs) / 1e6),
            str(sum(jobs for _, jobs in said)),
            number(MS * sum(agents[name].values()) / max(1, sum(jobs for _, jobs in said))),
            str(said[0][0].get("python", NONE)),
        )
        for name, said in sorted(seen.items())
    )
    columns = (
        Column("machine"),
        Column("clock known to", "ms, worst run"),
        Column("clock drifted by", "ms, worst run"),
        Column("jobs"),
        Column("CPU of its agent", "ms/job"),
        Column("Python", only_wide=True),
    )
    notes = (
        "Each machine's clock is compared with the broker's before and after every run, and ours too; a moment on it "
        "is known to the figure in the first column, either way. 0 is this very machine. The agent is the process "
        "beside the worker that compares clocks and sends marks, ten times a second.",
    )
    return Table("Machines", columns, rows, notes)


TABLES: tuple[Make, ...] = (
    arrivals,
    coding,
    races,
    rounds,
    *map(timed, (throughput, where_the_rest_went, service, beside, latency, cost, cheapest)),
    messages,
    per_megabyte,
    watching,
    broker,
    collected,
    machines,
    ledger,
)
