"""Every job that was sent is accounted for."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lab.model import LabError, Ledger
from lab.observe import MARKS, observe
from producer.publish import Sent
from tasks.timeline import DONE, FAILED, GIL

START_NS = 5_000
RIGHT, WRONG = 42, 43


def sent(n: int) -> list[Sent]:
    """Jobs due every 10 ns, each sent 1 ns late."""
    return [Sent(seq, START_NS + 10 * seq, START_NS + 10 * seq + 1) for seq in range(n)]


def marks_of(*rows: tuple[int, int, int]) -> NDArray[Any]:
    """Marks of (number, flags, checksum), each job starting 100 ns after the first due and 10 ns after the last."""
    marks = np.zeros(len(rows), dtype=[*MARKS.descr, ("worker", "<i8")])
    for i, (seq, flags, checksum) in enumerate(rows):
        started = START_NS + 100 + 10 * i
        ended = started + 7 if flags else 0
        marks[i] = (1, seq, started - 50, started, ended, 5 if flags else 0, 77, checksum, flags, 0, 3)
    return marks


def account(n: int, *rows: tuple[int, int, int]) -> Ledger:
    return observe(sent(n), marks_of(*rows), expected=lambda _: RIGHT)[1]


@pytest.mark.parametrize(
    ("rows", "ledger"),
    [
        ([(0, DONE, RIGHT)], Ledger(issued=1, done=1, failed=0, lost=0)),
        ([(0, DONE | GIL, RIGHT)], Ledger(issued=1, done=1, failed=0, lost=0)),
        ([(0, FAILED, 0)], Ledger(issued=1, done=0, failed=1, lost=0)),
        ([(0, FAILED, RIGHT)], Ledger(issued=1, done=0, failed=1, lost=0)),
        ([(0, DONE, WRONG)], Ledger(issued=1, done=0, failed=1, lost=0, wrong=1)),
        ([], Ledger(issued=1, done=0, failed=0, lost=1)),
        # Begun and never ended: its worker was killed, and nobody took it up again
        ([(0, 0, 0)], Ledger(issued=1, done=0, failed=0, lost=1)),
        # Begun, killed, taken up again and ended: once is enough
        ([(0, 0, 0), (0, DONE, RIGHT)], Ledger(issued=1, done=1, failed=0, lost=0)),
        ([(0, DONE, RIGHT)] * 2, Ledger(issued=1, done=1, failed=0, lost=0, duplicated=1)),
        ([(0, DONE, RIGHT)] * 3, Ledger(issued=1, done=1, failed=0, lost=0, duplicated=1)),
        ([(0, DONE, RIGHT), (0, FAILED, 0)], Ledger(issued=1, done=0, failed=1, lost=0, duplicated=1)),
        ([(0, DONE, WRONG), (0, DONE, RIGHT)], Ledger(issued=1, done=0, failed=1, lost=0, duplicated=1, wrong=1)),
    ],
)
def test_a_job_is_done_failed_or_lost(rows, ledger: Ledger):
    assert account(1, *rows) == ledger


def test_each_job_is_held_to_its_own_result():
    rows = [(0, DONE, 100), (1, DONE, 101), (2, DONE, 101)]
    _, ledger = observe(sent(3), marks_of(*rows), expected=lambda seq: 100 + seq)
    assert ledger == Ledger(issued=3, done=2, failed=1, lost=0, wrong=1)


any_mark = st.tuples(
    st.integers(0, 15), st.sampled_from([0, DONE, FAILED, DONE | GIL]), st.sampled_from([RIGHT, WRONG])
)


@given(st.integers(0, 12), st.lists(any_mark, max_size=40))
def test_the_ledger_adds_up_whatever_the_workers_did(n: int, rows: Sequence[tuple[int, int, int]]):
    # Given marks in any order and number, some of jobs that were never sent
    samples, ledger = observe(sent(n), marks_of(*rows), expected=lambda _: RIGHT)
    # Then each job is counted under one heading, as counting by hand does
    ends = {seq: [(flags, value) for s, flags, value in rows if s == seq and flags] for seq in range(n)}
    right = [seq for seq, them in ends.items() if them and all(f & DONE and v == RIGHT for f, v in them)]
    assert ledger.issued == n == ledger.done + ledger.failed + ledger.lost
    assert ledger.done == len(right)
    assert ledger.lost == sum(not them for them in ends.values())
    assert ledger.duplicated == sum(len(them) > 1 for them in ends.values())
    assert ledger.wrong == sum(any(f & DONE and v == WRONG for f, v in them) for them in ends.values())
    # And each that ended has one sample, in order of numbers
    assert (samples.due_ns // 10).tolist() == [seq for seq, them in ends.items() if them]


def test_a_sample_holds_what_both_sides_saw_in_time_since_the_first_due():
    # Given two jobs, the second of which ended first
    samples, _ = observe(sent(2), marks_of((1, DONE, RIGHT), (0, DONE | GIL, RIGHT)), expected=lambda _: RIGHT)
    assert samples.due_ns.tolist() == [0, 10]
    assert samples.sent_ns.tolist() == [1, 11]
    assert samples.received_ns.tolist() == [60, 50]
    assert samples.started_ns.tolist() == [110, 100]
    assert samples.ended_ns.tolist() == [117, 107]
    assert samples.cpu_ns.tolist() == [5, 5]
    assert samples.gil.tolist() == [1, 0]
    # And the parts of each latency sum to the whole
    assert (samples.lag_s + samples.wait_s + samples.service_s).tolist() == pytest.approx(samples.latency_s.tolist())


def test_a_job_that_measures_is_right_whatever_it_returns_and_its_value_is_kept():
    # Given three jobs that measure something, of which one raised, and one with a result that can be wrong
    rows = [(0, DONE, 7), (1, DONE, 2**32 - 1), (2, FAILED, 0), (3, DONE, WRONG)]
    samples, ledger = observe(sent(4), marks_of(*rows), expected=lambda seq: RIGHT if seq == 3 else None)
    assert ledger == Ledger(issued=4, done=2, failed=2, lost=0, wrong=1)
    # Then what was measured is there, and a checksum is no measurement
    assert samples.value.tolist() == [7, 2**32 - 1, 0, 0]


def test_the_value_of_a_job_that_ran_twice_is_that_of_its_first_end():
    samples, ledger = observe(sent(1), marks_of((0, DONE, 7), (0, DONE, 9)), expected=lambda _: None)
    assert samples.value.tolist() == [7]
    assert ledger == Ledger(issued=1, done=1, failed=0, lost=0, duplicated=1)


def test_jobs_that_run_beside_are_told_apart_by_their_numbers_and_counted_with_all():
    # Given four jobs of which the odd ones run beside, and one of those is lost
    rows = [(seq, DONE, RIGHT) for seq in (3, 0, 2)]
    samples, ledger = observe(sent(4), marks_of(*rows), expected=lambda _: RIGHT, beside=lambda seq: seq % 2 == 1)
    assert samples.beside.tolist() == [0, 0, 1]
    assert ledger == Ledger(issued=4, done=3, failed=0, lost=1)
    # Then each load has its own samples, with all their columns
    assert samples.own.due_ns.tolist() == [0, 20]
    assert samples.others.due_ns.tolist() == [30]
    assert samples.others.started_ns.tolist() == [100]
    assert len(samples.own) + len(samples.others) == len(samples)


def test_without_a_word_nothing_runs_beside_and_nothing_is_measured():
    samples, _ = observe(sent(2), marks_of((0, DONE, RIGHT), (1, DONE, RIGHT)), expected=lambda _: RIGHT)
    assert samples.beside.tolist() == samples.value.tolist() == [0, 0]
    assert samples.own is samples
    assert len(samples.others) == 0


def test_no_marks_at_all_make_no_samples():
    samples, ledger = observe(sent(2), marks_of(), expected=lambda _: None, beside=lambda _: True)
    assert len(samples) == len(samples.own) == len(samples.others) == 0
    assert ledger == Ledger(issued=2, done=0, failed=0, lost=2)


def test_latency_counts_from_due_and_not_from_sent():
    samples, _ = observe(sent(1), marks_of((0, DONE, RIGHT)), expected=lambda _: RIGHT)
    assert samples.latency_s.tolist() == pytest.approx([107e-9])
    assert samples.lag_s.tolist() == pytest.approx([1e-9])
    assert samples.stalled_s.tolist() == pytest.approx([2e-9])


def test_the_first_end_of_a_job_that_ran_twice_is_its_sample():
    samples, _ = observe(sent(1), marks_of((0, 0, 0), (0, DONE, RIGHT), (0, DONE, RIGHT)), expected=lambda _: RIGHT)
    assert samples.started_ns.tolist() == [110]


def test_a_job_whose_receipt_nobody_saw_keeps_a_zero_there():
    marks = marks_of((0, DONE, RIGHT))
    marks["received_ns"] = 0
    assert observe(sent(1), marks, expected=lambda _: RIGHT)[0].received_ns.tolist() == [0]


def test_threads_are_numbered_from_0_in_order_of_appearance_and_workers_by_their_tape():
    marks = marks_of(*((seq, DONE, RIGHT) for seq in range(4)))
    marks["worker"], marks["thread"] = [9, 4, 9, 6], [2**63, 5, 5, 2**63]
    samples, _ = observe(sent(4), marks, expected=lambda _: RIGHT)
    assert samples.worker.tolist() == [9, 4, 9, 6]
    assert samples.thread.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(
    "numbers",
    [{"done": 1, "failed": 0, "lost": 0}, {"done": 3, "failed": 0, "lost": -1}, {"done": 2, "failed": 1, "lost": 0}],
)
def test_a_ledger_that_does_not_add_up_cannot_be_made(numbers: dict[str, int]):
    with pytest.raises(LabError, match="does not add up"):
        Ledger(issued=2, **numbers)
