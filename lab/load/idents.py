"""The id of a job says all that the observer must know of it, so that nobody keeps a list of the jobs under way. Pure.

The 128 bits of the UUID, from the left: 22 bits that name the run, 6 the kind, 36 the job's number, 38 when it was due
and 26 how much later it was sent, both in microseconds. The marks of our own workers and Celery's events carry the id.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

TAG_BITS, KIND_BITS, SEQ_BITS, DUE_BITS, LAG_BITS = 22, 6, 36, 38, 26
MOST_KINDS = 1 << KIND_BITS
MOST_JOBS = 1 << SEQ_BITS
"""6.9e10."""
LONGEST_S = (1 << DUE_BITS) / 1e6
"""76 hours."""
MOST_LAG_US = (1 << LAG_BITS) - 1
"""67 seconds; a job that is sent later says so much."""


def job_id(tag: int, kind: int, seq: int, due_us: int, lag_us: int) -> str:
    """The id of a job, as a UUID is written."""
    high = tag << 42 | kind << 36 | seq
    low = due_us << 26 | (lag_us if lag_us < MOST_LAG_US else MOST_LAG_US)
    text = f"{high:016x}{low:016x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class Idents(NamedTuple):
    """What ids say; int64 arrays of shape (n,)."""

    tag: NDArray[np.int64]
    kind: NDArray[np.int64]
    seq: NDArray[np.int64]
    due_ns: NDArray[np.int64]
    """From the first moment of the run."""
    sent_ns: NDArray[np.int64]
    """The same."""


def read(high: NDArray[Any], low: NDArray[Any]) -> Idents:
    """What ids say whose halves are these unsigned 64-bit numbers."""
    high, low = high.astype(np.uint64), low.astype(np.uint64)
    due_us = (low >> np.uint64(LAG_BITS)).astype(np.int64)
    lag_us = (low & np.uint64(MOST_LAG_US)).astype(np.int64)
    return Idents(
        (high >> np.uint64(KIND_BITS + SEQ_BITS)).astype(np.int64),
        ((high >> np.uint64(SEQ_BITS)) & np.uint64(MOST_KINDS - 1)).astype(np.int64),
        (high & np.uint64(MOST_JOBS - 1)).astype(np.int64),
        due_us * 1000,
        (due_us + lag_us) * 1000,
    )


def tag_of(text: str) -> int | None:
    """Which run the id of a job as it is written belongs to; None for an id that is no UUID."""
    known = halves(text)
    return None if known is None else known[0] >> (KIND_BITS + SEQ_BITS)


def halves(text: str) -> tuple[int, int] | None:
    """The two halves of an id as it is written; None for an id that is no UUID."""
    digits = text.replace("-", "")
    if len(digits) != 32:
        return None
    try:
        return int(digits[:16], 16), int(digits[16:], 16)
    except ValueError:
        return None
