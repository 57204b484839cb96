"""One repeat of a suite as a trace that Perfetto and chrome://tracing open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lab.model import BadInput, Nanoseconds, Run, Suite
from lab.report.caveats import runs_of, shown
from lab.report.groups import Group, groups
from lab.report.swimlane import pack
from lab.report.tables import is_green
from lab.report.units import plain

Event = dict[str, Any]


def trace(suite: Suite, *, repeat: int | None = None) -> Mapping[str, Any]:
    """Trace events by the Chrome format: a process for each setup, a track for each slot, all from the first due.

    `repeat` counts from 1, as people do; None is the first there is. Raises BadInput when no run has it. A job's
    number is its place among the samples of its run, from 0. Times are whole microseconds, rounded down: what touches
    in the samples touches here, and a fraction cannot make two jobs overlap.
    """
    chosen = _chosen(suite, repeat)
    events: list[Event] = []
    pid = 0
    for name, _ in shown(suite, ()):
        for group in groups(runs_of(suite, name)):
            for run in group.runs:
                if run.trial.repeat == chosen:
                    pid += 1
                    events += _process(pid, f"{name} · {group.label}", group, run)
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"repeat": chosen + 1}}


def _chosen(suite: Suite, repeat: int | None) -> int:
    there = sorted({run.trial.repeat for run in suite.runs})
    if not there:
        raise BadInput("the suite holds no run to trace; `sidestep run` with the same --out completes it")
    if repeat is None:
        return there[0]
    if repeat - 1 not in there:
        raise BadInput(f"there is no repeat {repeat} in the suite; it has {_spelled([n + 1 for n in there])}")
    return repeat - 1


def _spelled(numbers: Sequence[int]) -> str:
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def _process(pid: int, name: str, group: Group, run: Run) -> Iterator[Event]:
    """The setup's names, then each job's waiting and running."""
    yield _named("process_name", plain(name), pid, 0)
    samples, setup = run.samples, run.trial.setup
    if not len(samples):
        return  # without marks nobody saw the single jobs
    green = is_green(group)
    track = _tracks(run, green=green)
    names = _track_names(track, samples.worker, "lane" if green else "slot")
    yield from (_named("thread_name", told, pid, i + 1) for i, told in enumerate(names))
    began = np.where(samples.received_ns != 0, samples.received_ns, samples.sent_ns)
    began = np.minimum(began, samples.started_ns)
    ended = np.maximum(samples.ended_ns, samples.started_ns)
    draw = _beside if _overlap(track, began, ended) else _in_line
    columns = (track, began // 1000, samples.started_ns // 1000, ended // 1000, samples.beside, samples.cpu_ns)
    stalled_ms = (samples.stalled_s * 1e3).tolist()
    rows = zip(*(column.tolist() for column in columns), stalled_ms, strict=True)
    for number, (on, begin, start, end, beside, cpu_ns, stalled) in enumerate(rows):
        job = setup.beside.job if beside and setup.beside else setup.job
        tid = on + 1
        yield from draw(pid, tid, number, begin, start - begin)
        yield {
            **_complete(job, "running", pid, tid, start, end - start),
            "args": {"job": number, "CPU ms": cpu_ns / 1e6, "stalled ms": round(stalled, 6)},
        }


def _tracks(run: Run, *, green: bool) -> Nanoseconds:
    """The track of each job. One track a thread; greenlets, of which each job has its own, share as few as can be."""
    s = run.samples
    if green:
        return pack(s.worker, s.started_ns, s.ended_ns)
    # Threads are packed too: damaged marks may show two jobs at once on one, which a track cannot.
    pairs = sorted(set(zip(s.worker.tolist(), s.thread.tolist(), strict=True)))
    number_of = {pair: i for i, pair in enumerate(pairs)}
    owner = [number_of[pair] for pair in zip(s.worker.tolist(), s.thread.tolist(), strict=True)]
    lane = pack(np.array(owner, dtype=np.int64), s.started_ns, s.ended_ns)
    # In order of the threads' numbers, not of their first jobs.
    ordered = {at: i for i, (_, at) in enumerate(sorted(set(zip(owner, lane.tolist(), strict=True))))}
    return np.array([ordered[at] for at in lane.tolist()], dtype=np.int64)


def _track_names(track: Nanoseconds, worker: Nanoseconds, kind: str) -> list[str]:
    """`process 1, slot 2` for each track, both counted from 1."""
    process_of = dict(sorted(set(zip(track.tolist(), worker.tolist(), strict=True))))
    names, seen = [], dict.fromkeys(process_of.values(), 0)
    for process in process_of.values():
        seen[process] += 1
        names.append(f"process {process + 1}, {kind} {seen[process]}")
    return names


def _overlap(track: Nanoseconds, began: Nanoseconds, ended: Nanoseconds) -> bool:
    """Whether some job began to wait on a track where the one before still ran."""
    order = np.lexsort((ended, began, track))
    same = np.diff(track[order]) == 0
    return bool(np.any((began[order][1:] < ended[order][:-1])[same]))


def _in_line(pid: int, tid: int, number: int, begin: int, us: int) -> Iterator[Event]:
    yield {**_complete("waiting", "waiting", pid, tid, begin, us), "args": {"job": number}}


def _beside(pid: int, tid: int, number: int, begin: int, us: int) -> Iterator[Event]:
    """Waiting as an asynchronous span, which may overlap others: on one track spans may only follow each other."""
    # A local id: job 3 of one setup must not be taken for job 3 of another.
    common = {"name": "waiting", "cat": "waiting", "pid": pid, "tid": tid, "id2": {"local": hex(number)}}
    yield {**common, "ph": "b", "ts": begin, "args": {"job": number}}
    yield {**common, "ph": "e", "ts": begin + us}


def _complete(name: str, kind: str, pid: int, tid: int, ts: int, dur: int) -> Event:
    return {"name": name, "cat": kind, "ph": "X", "pid": pid, "tid": tid, "ts": ts, "dur": dur}


def _named(what: str, name: str, pid: int, tid: int) -> Event:
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}
