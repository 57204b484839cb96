"""Joins what was sent with what the workers marked into samples, and accounts for every job."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.model import STEP_COLUMNS, LabError, Ledger, Samples, Steps
from producer.publish import Sent
from tasks.steps import STEP
from tasks.timeline import ACKED, BEAT, CAPACITY, DONE, GIL, HEADER_BYTES, MARK, SCHEMA, STEPS, TAPE_BYTES, boot_id

MARKS = np.dtype(
    [
        ("nonce", ">u8"),
        ("seq", ">u8"),
        ("received_ns", "<i8"),
        ("started_ns", "<i8"),
        ("ended_ns", "<i8"),
        ("cpu_ns", "<i8"),
        ("thread", "<u8"),
        ("checksum", "<u4"),
        ("flags", "<u2"),
        ("reserved", "<u2"),
    ]
)
assert MARKS.itemsize == MARK.size  # noqa: S101  the two spellings of a mark must agree

AFTER = ("peeking_ns", "peeked_ns", "decoding_ns", "decoded_ns", "finished_ns")
STEP_RECORDS = np.dtype(
    [
        ("nonce", ">u8"),
        ("seq", ">u8"),
        ("readable_ns", "<i8"),
        ("fetched_ns", "<i8"),
        *((name, "<u4") for name in AFTER),
        ("spare", "<u4", (2,)),
        ("flags", "<u2"),
        ("reserved", "<u2"),
    ]
)
"""A job's steps, in the place of a mark; those of AFTER count from `fetched_ns`. With ACKED that is when the job was
acknowledged, and nothing else counts."""
assert STEP_RECORDS.itemsize == STEP.size == MARK.size  # noqa: S101  a tape holds either


def job_id(nonce: int, seq: int) -> str:
    """The id of a trial's job number `seq`: a UUID made of the trial's 64-bit nonce and the number."""
    return str(uuid.UUID(int=nonce << 64 | seq))


@dataclass(frozen=True, slots=True)
class Tapes:
    """The tapes in a directory, read while they are written and after."""

    directory: Path

    def _whole(self) -> list[Path]:
        """The tapes that have their full size; one that is only being made holds no mark yet."""
        return [path for path in sorted(self.directory.glob("*.tape")) if path.stat().st_size == TAPE_BYTES]

    def marks(self, nonce: int) -> NDArray[Any]:
        """Every mark of the trial so far, with a column `worker` beside: the tape's place among `headers`."""
        parts = []
        for number, path in enumerate(self._whole()):
            marks: NDArray[Any] = np.memmap(path, dtype=MARKS, mode="r", offset=HEADER_BYTES, shape=(CAPACITY,))
            # A mark is begun before it is ended, and one after the other: the first without a start ends the tape.
            used = int(np.argmin(marks["started_ns"] != 0)) if marks["started_ns"][-1] == 0 else CAPACITY
            own = np.array(marks[:used][marks["nonce"][:used] == nonce])
            parts.append((number, own[own["flags"] & STEPS == 0]))
        with_worker = np.dtype([*MARKS.descr, ("worker", "<i8")])
        joined = np.zeros(sum(len(own) for _, own in parts), dtype=with_worker)
        at = 0
        for number, own in parts:
            for name in MARKS.names or ():
                joined[name][at : at + len(own)] = own[name]
            joined["worker"][at : at + len(own)] = number
            at += len(own)
        return joined

    def steps(self, nonce: int) -> NDArray[Any]:
        """The steps of every job of the trial that has finished, and when each was acknowledged, in no order."""
        parts = [np.zeros(0, STEP_RECORDS)]
        for path in self._whole():
            records = np.memmap(path, dtype=STEP_RECORDS, mode="r", offset=HEADER_BYTES, shape=(CAPACITY,))
            parts.append(np.array(records[(records["nonce"] == nonce) & (records["flags"] & STEPS != 0)]))
        return np.concatenate(parts)

    def beats(self) -> NDArray[np.int64]:
        """When workers came to send a heartbeat, in order, in ns of CLOCK_MONOTONIC."""
        parts = [np.zeros(0, np.int64)]
        for path in self._whole():
            marks = np.memmap(path, dtype=MARKS, mode="r", offset=HEADER_BYTES, shape=(CAPACITY,))
            parts.append(np.array(marks["started_ns"][marks["flags"] & BEAT != 0], dtype=np.int64))
        return np.sort(np.concatenate(parts))

    def headers(self) -> list[dict[str, Any]]:
        """What each process said of itself, in the order that `worker` counts.

        Raises LabError for marks of another boot or another format.
        """
        headers: list[dict[str, Any]] = []
        for path in self._whole():
            with path.open("rb") as file:
                text = file.read(HEADER_BYTES).rstrip(b"\0")
            if not text:
                headers.append({})  # its process ended, or is only now starting, before it could say anything
                continue
            header = json.loads(text)
            if header["schema"] != SCHEMA:
                raise LabError(
                    f"marks of format {header['schema']}, expected {SCHEMA}: worker and lab differ; update both"
                )
            # What a machine that is attached said has been put into our time already.
            if header["boot_id"] != boot_id() and "machine" not in header:
                raise LabError("marks come from another boot or machine, whose clock cannot be compared with this one")
            headers.append(header)
        return headers


class Progress:
    """How many jobs of a trial have ended so far, cheaply enough to ask a hundred times a second."""

    def __init__(self, tapes: Tapes, nonce: int) -> None:
        self._tapes, self._nonce = tapes, nonce
        self._tape: dict[Path, _Reel] = {}
        self._ended: list[int] = []

    def ended_ns(self) -> list[int]:
        """When each job that has ended did so, in ns of CLOCK_MONOTONIC, in the order they were noticed."""
        for path in self._tapes.directory.glob("*.tape"):
            if path not in self._tape and path.stat().st_size == TAPE_BYTES:
                self._tape[path] = _Reel(path)
        for reel in self._tape.values():
            for mark in reel.ended():
                if mark["nonce"] == self._nonce and not mark["flags"] & STEPS:
                    self._ended.append(int(mark["ended_ns"]))
        return self._ended


class _Reel:
    """One tape, read on from where the last look stopped."""

    def __init__(self, path: Path) -> None:
        self._marks = np.memmap(path, dtype=MARKS, mode="r", offset=HEADER_BYTES, shape=(CAPACITY,))
        self._started, self._flags = self._marks["started_ns"], self._marks["flags"]
        self._begun = 0
        self._under_way: list[int] = []

    def ended(self) -> Iterator[Any]:
        """The marks of jobs that ended since the last look, however long others of the same tape take."""
        while self._begun < CAPACITY and self._started[self._begun]:
            self._under_way.append(self._begun)
            self._begun += 1
        still: list[int] = []
        for index in self._under_way:
            if self._flags[index]:
                yield self._marks[index]
            else:
                still.append(index)
        self._under_way = still


def ended_numbers(marks: NDArray[Any], issued: int) -> NDArray[np.int64]:
    """The numbers of the jobs that ended, in order: those of the rows that `observe` returns."""
    seqs = marks["seq"].astype(np.int64)
    return np.unique(seqs[(marks["flags"] != 0) & (seqs < issued)])


def observe(
    sent: Sequence[Sent],
    marks: NDArray[Any],
    *,
    expected: Callable[[int], int | None],
    beside: Callable[[int], bool] = lambda _: False,
) -> tuple[Samples, Ledger]:
    """One sample a job that ended, in order of numbers, and the ledger over all that were sent.

    `expected` gives the checksum that the job of a number must return, or None where it measures something and any
    result is right; `beside` says which jobs only run beside the setup's own. A job with several marks counts once as
    done or failed, and its first end is its sample; the others are duplicates.
    """
    issued = len(sent)
    seqs = marks["seq"].astype(np.int64)
    ended = marks[(marks["flags"] != 0) & (seqs < issued)]
    order = np.lexsort((ended["ended_ns"], ended["seq"]))
    ended = ended[order]
    numbers, first, times = np.unique(ended["seq"].astype(np.int64), return_index=True, return_counts=True)
    wanted = [expected(int(seq)) for seq in ended["seq"]]
    right = np.array(
        [
            mark["flags"] & DONE and (want is None or mark["checksum"] == want)
            for mark, want in zip(ended, wanted, strict=True)
        ],
        dtype=bool,
    )
    measures = np.array([want is None for want in wanted], dtype=bool)
    returned = (ended["flags"] & DONE) != 0
    every_time_right = np.logical_and.reduceat(right, first) if len(first) else np.zeros(0, bool)
    ever_wrong = np.logical_or.reduceat(returned & ~right, first) if len(first) else np.zeros(0, bool)
    ledger = Ledger(
        issued=issued,
        done=int(np.sum(every_time_right)),
        failed=int(np.sum(~every_time_right)),
        lost=issued - len(numbers),
        duplicated=int(np.sum(times > 1)),
        wrong=int(np.sum(ever_wrong)),
    )
    start_ns = sent[0].due_ns if sent else 0
    due = np.array([s.due_ns for s in sent], dtype=np.int64)[numbers] - start_ns
    sent_ns = np.array([s.sent_ns for s in sent], dtype=np.int64)[numbers] - start_ns
    one = ended[first]
    received = one["received_ns"].astype(np.int64)
    samples = Samples(
        due_ns=due,
        sent_ns=sent_ns,
        received_ns=np.where(received == 0, 0, received - start_ns),
        started_ns=one["started_ns"].astype(np.int64) - start_ns,
        ended_ns=one["ended_ns"].astype(np.int64) - start_ns,
        cpu_ns=one["cpu_ns"].astype(np.int64),
        worker=one["worker"].astype(np.int64),
        thread=_renumber(one["thread"]),
        gil=((one["flags"] & GIL) != 0).astype(np.int64),
        beside=np.array([beside(int(seq)) for seq in numbers], dtype=np.int64),
        value=np.where(measures[first], one["checksum"].astype(np.int64), 0),
    )
    return samples, ledger


def observe_steps(sent: Sequence[Sent], records: NDArray[Any], numbers: NDArray[np.int64]) -> Steps:
    """The steps of the jobs with these numbers, in their order; a job that left none has zeros.

    Of a job that ran more often than once it is the steps that were written first.
    """
    start_ns = sent[0].due_ns if sent else 0
    acked = (records["flags"] & ACKED) != 0
    one, acks = _first_of_each(records[~acked]), _first_of_each(records[acked])
    columns = {name: np.zeros(len(numbers), np.int64) for name in STEP_COLUMNS}
    for row, number in enumerate(numbers):
        if (ack := acks.get(int(number))) is not None:
            columns["acked_ns"][row] = int(ack["fetched_ns"]) - start_ns
        if (record := one.get(int(number))) is None:
            continue
        fetched = int(record["fetched_ns"]) - start_ns
        columns["encoded_ns"][row] = sent[number].encoded_ns - start_ns
        columns["taken_ns"][row] = sent[number].taken_ns - start_ns
        columns["readable_ns"][row] = int(record["readable_ns"]) - start_ns
        columns["fetched_ns"][row] = fetched
        for name in AFTER:
            columns[name][row] = fetched + int(record[name])
    return Steps(**columns)


def _first_of_each(records: NDArray[Any]) -> dict[int, Any]:
    """Job number -> the first of its records."""
    _, first = np.unique(records["seq"], return_index=True)
    return {int(record["seq"]): record for record in records[first]}


def _renumber(values: NDArray[Any]) -> NDArray[np.int64]:
    """0, 1, 2 … in order of first appearance."""
    unique, index, inverse = np.unique(values, return_index=True, return_inverse=True)
    rank = np.empty(len(unique), dtype=np.int64)
    rank[np.argsort(index)] = np.arange(len(unique))
    return rank[inverse] if len(values) else np.zeros(0, np.int64)
