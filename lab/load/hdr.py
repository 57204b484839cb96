"""HdrHistogram: counts of durations at a fixed relative precision, in the bucket layout of hdrhistogram.org. Pure.

The layout is the one of Gil Tene's HdrHistogram (Java, C and others read it): values below 2^(half + 1) have a bucket
each, and every further power of two is cut into 2^half buckets, where 2^(half + 1) is the first power of two that is at
least 2 * 10^digits. So a bucket is never wider than 1/10^digits of its value. Durations are whole nanoseconds.

Our own rather than the package `hdrhistogram`: that records one value a call, while a tape gives thousands at once.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]

DIGITS, COARSE_DIGITS = 3, 2
"""Significant digits of the histograms of a whole run, and of those of one second of it."""
HIGHEST_NS = 24 * 3600 * 10**9
"""The longest duration that has a bucket of its own; longer ones count as this, beside the exact maximum."""

_COOKIE = 0x1C849303 | 0x10
_COMPRESSED_COOKIE = 0x1C849304 | 0x10
_HEADER = struct.Struct(">iiiiqqd")
"""Version 2 of the encoding: cookie, payload's length, normalizing offset, digits, lowest, highest, ratio."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Which bucket a duration belongs to."""

    digits: int = DIGITS
    highest_ns: int = HIGHEST_NS
    lowest_ns: int = 1
    half_bits: int = field(init=False)
    unit_bits: int = field(init=False)
    length: int = field(init=False)
    """How many buckets there are."""

    def __post_init__(self) -> None:
        if not 1 <= self.digits <= 5:
            raise ValueError(f"a histogram has 1 to 5 significant digits, not {self.digits}")
        half_bits = math.ceil(math.log2(2 * 10**self.digits)) - 1
        unit_bits = int(math.log2(self.lowest_ns))
        powers, beyond = 1, 1 << (half_bits + 1 + unit_bits)
        while beyond <= self.highest_ns:
            beyond, powers = beyond << 1, powers + 1
        object.__setattr__(self, "half_bits", half_bits)
        object.__setattr__(self, "unit_bits", unit_bits)
        object.__setattr__(self, "length", (powers + 1) << half_bits)

    def buckets(self, values_ns: NDArray[Any]) -> NDArray[np.int64]:
        """The bucket of each value; below 0 counts as 0, beyond the highest as the highest."""
        values = np.clip(np.asarray(values_ns, dtype=np.int64), 0, self.highest_ns)
        mask = ((1 << (self.half_bits + 1)) - 1) << self.unit_bits
        # frexp gives the bit length of a whole number below 2^53 exactly; 24 hours are below 2^47 ns.
        bits = np.frexp((values | mask).astype(np.float64))[1].astype(np.int64)
        power = bits - (self.unit_bits + self.half_bits + 1)
        within = values >> (power + self.unit_bits)
        return np.asarray(((power + 1) << self.half_bits) + within - (1 << self.half_bits), dtype=np.int64)

    def lows_ns(self, buckets: NDArray[Any]) -> NDArray[np.int64]:
        """The smallest value of each bucket."""
        power, within = self._parts(buckets)
        return np.asarray(within << (power + self.unit_bits), dtype=np.int64)

    def highs_ns(self, buckets: NDArray[Any]) -> NDArray[np.int64]:
        """The largest value of each bucket."""
        power, within = self._parts(buckets)
        return np.asarray(((within + 1) << (power + self.unit_bits)) - 1, dtype=np.int64)

    def _parts(self, buckets: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        buckets = np.asarray(buckets, dtype=np.int64)
        half = 1 << self.half_bits
        power = (buckets >> self.half_bits) - 1
        within = (buckets & (half - 1)) + half
        return np.maximum(power, 0), np.where(power < 0, within - half, within)


@cache
def layout(digits: int = DIGITS) -> Layout:
    """The layout of our own histograms with so many digits."""
    return Layout(digits)


def _nothing() -> Counts:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """Counts of durations, as a value: only the buckets that hold any are kept. Two merged equal one over both."""

    layout: Layout = field(default_factory=layout)
    buckets: Counts = field(default_factory=_nothing)
    """Numbers of the buckets that hold any, rising; int64 of shape (n,)."""
    counts: Counts = field(default_factory=_nothing)
    """How many each holds; int64 of shape (n,)."""
    min_ns: int = 0
    max_ns: int = 0
    """The exact extremes; 0 where there is nothing."""
    sum_ns: int = 0
    """The exact sum."""

    @property
    def count(self) -> int:
        """How many durations."""
        return int(self.counts.sum())

    def __len__(self) -> int:
        return self.count

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        exact = (self.layout, self.min_ns, self.max_ns, self.sum_ns)
        return (
            exact == (other.layout, other.min_ns, other.max_ns, other.sum_ns)
            and np.array_equal(self.buckets, other.buckets)
            and np.array_equal(self.counts, other.counts)
        )

    __hash__ = None  # type: ignore[assignment] # it holds arrays

    @property
    def mean_s(self) -> float:
        """The exact mean; not a number where there is nothing."""
        return self.sum_ns / self.count / 1e9 if len(self) else math.nan

    @property
    def max_s(self) -> float:
        """The exact maximum; not a number where there is nothing."""
        return self.max_ns / 1e9 if len(self) else math.nan

    @property
    def min_s(self) -> float:
        """The exact minimum; not a number where there is nothing."""
        return self.min_ns / 1e9 if len(self) else math.nan

    def quantile_s(self, q: float) -> float:
        """The smallest duration that a share `q` of all does not exceed, to the precision of its bucket.

        It is the bucket's upper end and never above the maximum, so it is never below the exact one. Not a number
        where there is nothing.
        """
        return float(self.quantiles_s((q,))[0])

    def quantiles_s(self, qs: Sequence[float]) -> NDArray[np.float64]:
        """Several quantiles at once, see `quantile_s`."""
        if not len(self):
            return np.full(len(qs), math.nan)
        cumulated = np.cumsum(self.counts)
        # A product such as 0.99 * 100 may come out a hair above the whole number that it is.
        ranks = [max(1, math.ceil(round(q * int(cumulated[-1]), 6))) for q in qs]
        at = np.minimum(np.searchsorted(cumulated, ranks, side="left"), len(cumulated) - 1)
        highs = np.minimum(self.layout.highs_ns(self.buckets[at]), self.max_ns)
        if self.max_ns > self.layout.highest_ns:
            # Of what has no bucket of its own, only the exact maximum is known.
            highs = np.where(at == len(cumulated) - 1, self.max_ns, highs)
        return np.asarray(highs / 1e9, dtype=np.float64)

    def share_above(self, limit_s: float) -> float:
        """Which share lies above `limit_s`, to the precision of its bucket; not a number where there is nothing."""
        if not len(self):
            return math.nan
        over = self.layout.lows_ns(self.buckets) > limit_s * 1e9
        return float(self.counts[over].sum() / self.counts.sum())

    def moment_s2(self) -> float:
        """The mean square, in s², from the middles of the buckets; not a number where there is nothing."""
        if not len(self):
            return math.nan
        middles = (self.layout.lows_ns(self.buckets) + self.layout.highs_ns(self.buckets)) / 2e9
        return float((self.counts * middles**2).sum() / self.counts.sum())

    def merged(self, *others: Histogram) -> Histogram:
        """All of them as one. Raises ValueError where layouts differ."""
        every = [one for one in (self, *others) if len(one)]
        if any(one.layout != self.layout for one in every):
            raise ValueError("histograms of different layouts cannot be merged; coarsen one first")
        if not every:
            return self
        buckets, place = np.unique(np.concatenate([one.buckets for one in every]), return_inverse=True)
        counts = np.zeros(len(buckets), dtype=np.int64)
        np.add.at(counts, place, np.concatenate([one.counts for one in every]))
        return Histogram(
            self.layout,
            buckets,
            counts,
            min(one.min_ns for one in every),
            max(one.max_ns for one in every),
            sum(one.sum_ns for one in every),
        )

    def coarse(self, digits: int = COARSE_DIGITS) -> Histogram:
        """The same with fewer digits; each bucket goes to the one that its smallest value lies in."""
        target = Layout(digits, self.layout.highest_ns, self.layout.lowest_ns)
        if target == self.layout:
            return self
        buckets, place = np.unique(target.buckets(self.layout.lows_ns(self.buckets)), return_inverse=True)
        counts = np.zeros(len(buckets), dtype=np.int64)
        np.add.at(counts, place, self.counts)
        return Histogram(target, buckets, counts, self.min_ns, self.max_ns, self.sum_ns)

    def encoded(self) -> str:
        """As every HdrHistogram library reads it: version 2, compressed, in base64. Holds no exact extremes or sum."""
        payload = _packed(self.buckets, self.counts)
        plain = self.layout
        header = _HEADER.pack(_COOKIE, len(payload), 0, plain.digits, plain.lowest_ns, plain.highest_ns, 1.0)
        body = zlib.compress(header + payload)
        return base64.b64encode(struct.pack(">ii", _COMPRESSED_COOKIE, len(body)) + body).decode()


def decoded(text: str, *, min_ns: int | None = None, max_ns: int | None = None, sum_ns: int | None = None) -> Histogram:
    """A histogram from its encoded form; what is not told exactly is read off the buckets. Raises ValueError."""
    try:
        raw = base64.b64decode(text, validate=True)
        cookie, size = struct.unpack_from(">ii", raw)
        if cookie != _COMPRESSED_COOKIE or size > len(raw) - 8:
            raise ValueError("it is no compressed histogram of version 2")
        unpacker = zlib.decompressobj()
        plain = unpacker.decompress(raw[8 : 8 + size], MOST_BYTES)
        cookie, length, _, digits, lowest, highest, _ = _HEADER.unpack_from(plain)
        if cookie != _COOKIE or unpacker.unconsumed_tail or length > len(plain) - _HEADER.size:
            raise ValueError("it is no histogram of version 2")
        if not (1 <= lowest < highest <= 1 << 52):
            raise ValueError("its bounds are impossible")
        spread = Layout(digits, highest, lowest)
        buckets, counts = _unpacked(plain[_HEADER.size : _HEADER.size + length], spread.length)
    except (struct.error, zlib.error) as error:
        raise ValueError(f"the histogram cannot be read: {error}") from None
    if not len(buckets):
        return Histogram(spread)
    lows, highs = spread.lows_ns(buckets), spread.highs_ns(buckets)
    return Histogram(
        spread,
        buckets,
        counts,
        int(lows[0]) if min_ns is None else min_ns,
        int(highs[-1]) if max_ns is None else max_ns,
        round(float((counts * ((lows + highs) / 2)).sum())) if sum_ns is None else sum_ns,
    )


MOST_BYTES = 9 * (1 << 22)
"""Of an encoded histogram: more than any layout of ours can fill, so that a file cannot make us fill the memory."""


def _packed(buckets: Counts, counts: Counts) -> bytes:
    """ZigZag LEB128 of 64 bits in at most 9 bytes; a run of empty buckets is one negative number."""
    out, following = bytearray(), 0
    for bucket, count in zip(buckets.tolist(), counts.tolist(), strict=True):
        if bucket > following:
            _put(out, following - bucket)
        _put(out, count)
        following = bucket + 1
    return bytes(out)


def _put(out: bytearray, value: int) -> None:
    rest = (value << 1) ^ (value >> 63)
    rest &= (1 << 64) - 1
    for _ in range(8):
        if rest < 0x80:
            out.append(rest)
            return
        out.append((rest & 0x7F) | 0x80)
        rest >>= 7
    out.append(rest)  # the ninth byte has all of its eight bits


def _unpacked(payload: bytes, length: int) -> tuple[Counts, Counts]:
    buckets: list[int] = []
    counts: list[int] = []
    at = bucket = 0
    while at < len(payload):
        value, shift = 0, 0
        while True:
            if at >= len(payload):
                raise ValueError("the histogram ends within a number")
            byte, at = payload[at], at + 1
            value |= (byte if shift == 56 else byte & 0x7F) << shift
            shift += 7
            if byte < 0x80 or shift > 56:
                break
        number = (value >> 1) ^ -(value & 1)
        if number <= 0:
            bucket += -number or 1
            continue
        if bucket >= length:
            raise ValueError("the histogram has more buckets than its layout")
        buckets.append(bucket)
        counts.append(number)
        bucket += 1
    return np.array(buckets, dtype=np.int64), np.array(counts, dtype=np.int64)


class Recorder:
    """Counts durations as they come, thousands at a time; `value` is what it holds so far. Constant in size."""

    def __init__(self, digits: int = DIGITS) -> None:
        self._layout = layout(digits)
        self._counts: Counts = np.zeros(self._layout.length, dtype=np.int64)
        self._min_ns, self._max_ns, self._sum_ns = 0, 0, 0
        self._any = False

    def record(self, values_ns: NDArray[Any] | Iterable[int]) -> None:
        """Count these; a negative duration counts as 0."""
        values = np.asarray(values_ns if isinstance(values_ns, np.ndarray) else list(values_ns), dtype=np.int64)
        if not len(values):
            return
        values = np.maximum(values, 0)
        np.add.at(self._counts, self._layout.buckets(values), 1)
        low, high = int(values.min()), int(values.max())
        self._min_ns = min(self._min_ns, low) if self._any else low
        self._max_ns = max(self._max_ns, high)
        self._sum_ns += int(values.sum())
        self._any = True

    def add(self, other: Histogram) -> None:
        """Count all that another holds. Raises ValueError where layouts differ."""
        if not len(other):
            return
        if other.layout != self._layout:
            raise ValueError("histograms of different layouts cannot be added; coarsen one first")
        self._counts[other.buckets] += other.counts
        self._min_ns = min(self._min_ns, other.min_ns) if self._any else other.min_ns
        self._max_ns = max(self._max_ns, other.max_ns)
        self._sum_ns += other.sum_ns
        self._any = True

    def clear(self) -> None:
        """Forget everything."""
        self._counts[:] = 0
        self._min_ns = self._max_ns = self._sum_ns = 0
        self._any = False

    @property
    def value(self) -> Histogram:
        """What it holds."""
        buckets = np.nonzero(self._counts)[0].astype(np.int64)
        return Histogram(self._layout, buckets, self._counts[buckets], self._min_ns, self._max_ns, self._sum_ns)


def of(values_ns: NDArray[Any] | Iterable[int], digits: int = DIGITS) -> Histogram:
    """A histogram of these durations; a negative one counts as 0."""
    values = np.asarray(values_ns if isinstance(values_ns, np.ndarray) else list(values_ns), dtype=np.int64)
    spread = layout(digits)
    if not len(values):
        return Histogram(spread)
    values = np.maximum(values, 0)
    buckets, counts = np.unique(spread.buckets(values), return_counts=True)
    return Histogram(
        spread,
        buckets.astype(np.int64),
        counts.astype(np.int64),
        int(values.min()),
        int(values.max()),
        int(values.sum()),
    )
