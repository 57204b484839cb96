"""A trace shows every job where and when it was, and never two at once on one track."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from experiments.catalogue import EXPERIMENTS
from lab.model import BadInput, Load, Run, Suite
from lab.report.groups import groups
from lab.report.trace import trace
from lab.store import SuiteFile
from producer.pacers import Burst
from tests.fakes import SETUP, make_run, make_samples
from tests.plausible import plausible_suite
from tests.test_cli import one_line, sidestep

MS = 1_000_000


def suite_of(*runs: Run) -> Suite:
    return Suite(environment={"cores": 2}, experiments=("made-up",), runs=runs, seed=0, repeats={"made-up": 1})


def events(suite: Suite, phases: str = "X", repeat: int | None = None) -> list[dict[str, Any]]:
    return [event for event in trace(suite, repeat=repeat)["traceEvents"] if event["ph"] in phases]


def names(suite: Suite, what: str) -> list[str]:
    return [event["args"]["name"] for event in events(suite, "M") if event["name"] == what]


def running(suite: Suite, repeat: int | None = None) -> list[dict[str, Any]]:
    return [event for event in events(suite, repeat=repeat) if event["cat"] == "running"]


def waits(suite: Suite) -> Iterator[tuple[int, int, int, int]]:
    """Process, job, begin and end of each waiting, however it is drawn."""
    begun: dict[tuple[int, str], dict[str, Any]] = {}
    for event in events(suite, "Xbe"):
        if event["cat"] != "waiting":
            continue
        if event["ph"] == "X":
            yield event["pid"], event["args"]["job"], event["ts"], event["ts"] + event["dur"]
        elif event["ph"] == "b":
            assert (event["pid"], event["id2"]["local"]) not in begun
            begun[event["pid"], event["id2"]["local"]] = event
        else:
            first = begun.pop((event["pid"], event["id2"]["local"]))
            yield event["pid"], first["args"]["job"], first["ts"], event["ts"]
    assert not begun


def assert_no_overlap(suite: Suite) -> None:
    tracks: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for event in events(suite):
        tracks.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
    assert tracks
    for spans in tracks.values():
        spans.sort()
        assert all(end <= start for (_, end), (start, _) in pairwise(spans))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_job_of_every_setup_is_there_once_and_no_two_overlap_on_a_track(name: str):
    suite = plausible_suite(EXPERIMENTS[name], repeats=2)
    shown = groups(suite.runs)
    # Then each setup is a process under its own label
    assert names(suite, "process_name") == [f"{name} · {group.label}" for group in shown]
    # And each of its jobs is drawn once, waiting and running, at its own times
    drawn = {(event["pid"], event["args"]["job"]): event for event in running(suite)}
    waited = {(pid, job): (begin, end) for pid, job, begin, end in waits(suite)}
    assert len(drawn) == len(running(suite)) == sum(len(group.runs[0].samples) for group in shown)
    assert waited.keys() == drawn.keys()
    for pid, group in enumerate(shown, 1):
        s = group.runs[0].samples
        for job in range(len(s)):
            event, (begin, end) = drawn[pid, job], waited[pid, job]
            assert event["ts"] == end == s.started_ns[job] // 1000
            assert event["ts"] + event["dur"] == s.ended_ns[job] // 1000
            assert begin == (s.received_ns[job] or s.sent_ns[job]) // 1000
            assert event["args"]["CPU ms"] == s.cpu_ns[job] / 1e6
            assert event["args"]["stalled ms"] == pytest.approx(s.stalled_s[job] * 1e3, abs=1e-5)
            assert event["name"] == (group.setup.beside.job if s.beside[job] else group.setup.job)
    if drawn:
        assert_no_overlap(suite)
    # And each track that is used has a name
    named = {(event["pid"], event["tid"]) for event in events(suite, "M") if event["name"] == "thread_name"}
    assert named == {(event["pid"], event["tid"]) for event in running(suite)}


def test_a_thread_is_a_track_under_its_process():
    # Given two processes, the second with two threads
    samples = make_samples(
        started_ns=[0, 0, MS, MS], ended_ns=[MS, MS, 2 * MS, 2 * MS], worker=[1, 0, 1, 1], thread=[2, 1, 0, 2]
    )
    suite = suite_of(make_run(samples=samples))
    # Then there are three tracks, in the order of processes and threads, and each job is on its own
    assert names(suite, "thread_name") == ["process 1, slot 1", "process 2, slot 1", "process 2, slot 2"]
    assert [event["tid"] for event in running(suite)] == [3, 1, 2, 3]


def test_greenlets_share_as_few_tracks_as_can_be():
    # Given six jobs with a greenlet each, of which never more than two run at once
    starts = [n * MS for n in range(6)]
    samples = make_samples(started_ns=starts, ended_ns=[n + 2 * MS for n in starts], thread=list(range(6)))
    suite = suite_of(make_run(setup=replace(SETUP, pool="gevent", concurrency=4), samples=samples))
    # Then two tracks hold them all
    assert names(suite, "thread_name") == ["process 1, lane 1", "process 1, lane 2"]
    assert [event["tid"] for event in running(suite)] == [1, 2, 1, 2, 1, 2]
    assert_no_overlap(suite)


def test_waiting_stands_before_running_where_there_is_room():
    # Given jobs that come one by one
    samples = make_samples(
        sent_ns=[0, 4 * MS], received_ns=[MS, 5 * MS], started_ns=[2 * MS, 6 * MS], ended_ns=[3 * MS, 7 * MS]
    )
    suite = suite_of(make_run(samples=samples))
    assert [(event["cat"], event["ts"], event["dur"]) for event in events(suite)] == [
        ("waiting", 1000, 1000),
        ("running", 2000, 1000),
        ("waiting", 5000, 1000),
        ("running", 6000, 1000),
    ]


def test_waiting_that_would_overlap_is_drawn_beside_the_tracks():
    # Given two jobs that came at once, for one slot
    samples = make_samples(received_ns=[MS, MS], started_ns=[2 * MS, 3 * MS], ended_ns=[3 * MS, 4 * MS])
    suite = suite_of(make_run(samples=samples))
    # Then only running is on the track, and waiting has the job's number as its id, within its process
    assert {event["cat"] for event in events(suite)} == {"running"}
    assert [(e["ph"], e["ts"], e["id2"]["local"]) for e in events(suite, "be")] == [
        ("b", 1000, "0x0"),
        ("e", 2000, "0x0"),
        ("b", 1000, "0x1"),
        ("e", 3000, "0x1"),
    ]


def test_waiting_counts_from_sent_where_nobody_knows_when_a_job_was_received():
    suite = suite_of(
        make_run(samples=make_samples(sent_ns=[MS], received_ns=[0], started_ns=[3 * MS], ended_ns=[4 * MS]))
    )
    assert list(waits(suite)) == [(1, 0, 1000, 3000)]


def test_damaged_marks_still_give_a_trace_that_can_be_opened():
    # Given two jobs at once on one thread, one that ended before it started, and one received after its start
    samples = make_samples(
        received_ns=[1, 1, 9 * MS], started_ns=[MS, 2 * MS, 8 * MS], ended_ns=[3 * MS, 4 * MS, 7 * MS]
    )
    suite = suite_of(make_run(samples=samples))
    # Then nothing overlaps and no span is shorter than nothing
    assert_no_overlap(suite)
    assert min(event["dur"] for event in events(suite)) == 0
    assert all(begin <= end for _, _, begin, end in waits(suite))


def test_jobs_beside_have_their_own_name():
    setup = replace(SETUP, beside=Load("snooze", {"ms": 1}, Burst(1)))
    samples = make_samples(started_ns=[0, MS], ended_ns=[MS, 2 * MS], beside=[0, 1])
    assert [event["name"] for event in running(suite_of(make_run(setup=setup, samples=samples)))] == ["spin", "snooze"]


def test_a_repeat_can_be_chosen_and_one_that_is_not_there_is_refused_naming_those_that_are():
    # Given a suite with the first and the third of its repeats
    def run(repeat: int) -> Run:
        return make_run(repeat=repeat, samples=make_samples(ended_ns=[(repeat + 1) * MS]))

    suite = suite_of(run(2), run(0))
    assert [event["dur"] for event in running(suite)] == [1000]
    assert [event["dur"] for event in running(suite, repeat=3)] == [3000]
    with pytest.raises(BadInput, match=r"no repeat 2 in the suite; it has 1, 3$"):
        trace(suite, repeat=2)
    with pytest.raises(BadInput, match=r"it has 1 to 4$"):
        trace(suite_of(*map(run, range(4))), repeat=5)
    with pytest.raises(BadInput, match="no run to trace"):
        trace(suite_of())


def test_the_command_line_writes_the_same_trace_each_time_and_names_its_file(tmp_path: Path):
    SuiteFile(tmp_path / "suite").save(plausible_suite(EXPERIMENTS["gil-release"], repeats=2, quick=True))
    written = []
    for name in ("a.json", "b.json"):
        done = sidestep("report", str(tmp_path / "suite"), "--trace", str(tmp_path / name), "--repeat", "2")
        assert done.returncode == 0, done.stderr
        assert str(tmp_path / name) in done.stdout
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]
    held = json.loads(written[0])
    assert held["otherData"] == {"repeat": 2}
    assert any(event["ph"] == "X" for event in held["traceEvents"])
    # And what cannot be done is said in one line
    suite, target = str(tmp_path / "suite"), str(tmp_path / "c.json")
    assert "it has 1, 2" in one_line(sidestep("report", suite, "--trace", target, "--repeat", "3"))
    assert "add --trace" in one_line(sidestep("report", suite, "--repeat", "1"))
    assert "--repeat" in one_line(sidestep("report", suite, "--trace", target, "--repeat", "0"))
    assert "cannot write" in one_line(sidestep("report", suite, "--trace", str(tmp_path / "no" / "where.json")))
    assert not Path(target).exists()
