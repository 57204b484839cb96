"""What it costs to write a value and to read it again, and whether it comes back as it was."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable
from datetime import datetime
from datetime import time as time_of_day
from decimal import Decimal
from enum import StrEnum
from typing import Any

from tasks.codecs import CODECS, COMPRESSIONS, Codec, Compression
from tasks.registry import Nature, job
from tasks.shapes import SHAPES, make

REFUSED = 2**32 - 1
"""Instead of a measurement: the codec raised."""
CHANGED = 2**32 - 2
"""Instead of a measurement: something else arrived, without an error."""


class Step(StrEnum):
    """What `transcode` returns."""

    ENCODE = "encode"
    DECODE = "decode"
    SIZE = "size"


# Nanoseconds to write or read a byte of records once, as a first look at them on one machine said, and only to choose
# the rounds: what is many times faster or slower is measured just as well, it only takes less or more time.
CODEC_NS_PER_BYTE = {"json": 12.0, "msgpack": 5.0, "pickle": 4.0, "pickle5": 4.0, "yaml": 2500.0}
COMPRESSION_NS_PER_BYTE = {"gzip": 20.0, "zlib": 20.0, "bz2": 100.0, "lzma": 500.0, "brotli": 4000.0}
OTHERS_NS_PER_BYTE = 3.0
CALL_NS = 500.0
ROUND_NS = 1_000_000.0
"""So long that reading the clock, some 50 ns, is lost in it, even where the costs above are far too high."""
ALL_NS = 100_000_000.0
MOST_ROUNDS, FEWEST_ROUNDS = 25, 3
"""Odd, so that the median is one of them."""


def once_ns(codec: str, compression: str | None, size_bytes: int) -> float:
    """Roughly how long one operation takes; text and numbers may take five times as long, and bytes almost nothing."""
    per_byte = CODEC_NS_PER_BYTE.get(codec, OTHERS_NS_PER_BYTE)
    if compression:
        per_byte += COMPRESSION_NS_PER_BYTE.get(compression, OTHERS_NS_PER_BYTE)
    return CALL_NS + per_byte * size_bytes


def rounds(codec: str, compression: str | None, size_bytes: int) -> tuple[int, int]:
    """How many rounds, and how many operations in each: fixed by what is measured, never by the clock.

    A round holds as many operations as would take 1 ms at the costs above; there are as many rounds as would take
    0.1 s, but 3 to 25 of them and an odd number.
    """
    once = once_ns(codec, compression, size_bytes)
    operations = max(1, int(ROUND_NS / once))
    count = min(max(int(ALL_NS / (operations * once)), FEWEST_ROUNDS), MOST_ROUNDS)
    return count - 1 + count % 2, operations


class Way:
    """From a value to bytes and back, as kombu goes it. Raises RuntimeError for what is not installed here."""

    def __init__(self, codec: Codec, compression: Compression | None = None) -> None:
        self._encode, self._decode = codec.encode, codec.decode
        self._compression = compression
        if compression and (why := compression.missing):
            raise RuntimeError(why)

    def there(self, value: Any) -> bytes:
        """The body of a message that holds the value."""
        text = self._encode(value)
        body = text.encode() if isinstance(text, str) else text
        return self._compression.compress(body) if self._compression else body

    def back(self, body: bytes) -> Any:
        """What a worker makes of it."""
        return self._decode(self._compression.decompress(body) if self._compression else body)

    def carries(self, value: Any) -> int | None:
        """REFUSED or CHANGED, or None where the value comes back as it was."""
        try:
            arrived = self.back(self.there(value))
        except Exception:  # whatever it is, somebody refused
            return REFUSED
        return None if same(value, arrived) else CHANGED


def way(codec: str, compression: str | None) -> Way:
    """The way by its names. Raises ValueError for one that there is not, RuntimeError for what is not installed."""
    if codec not in CODECS:
        raise ValueError(f"codec must be one of {', '.join(CODECS)}, not {codec!r}")
    if compression is not None and compression not in COMPRESSIONS:
        raise ValueError(f"compression must be None or one of {', '.join(COMPRESSIONS)}, not {compression!r}")
    return Way(CODECS[codec], COMPRESSIONS[compression] if compression else None)


def median_ns(operation: Callable[[Any], Any], argument: Any, count: int, operations: int) -> float:
    """Median over rounds of what one operation took. The collector of garbage rests meanwhile, as in `timeit`."""
    taken = []
    collecting = gc.isenabled()
    gc.disable()
    try:
        for _ in range(count):
            begun = time.perf_counter_ns()
            for _ in range(operations):
                operation(argument)
            taken.append((time.perf_counter_ns() - begun) / operations)
    finally:
        if collecting:
            gc.enable()
    return statistics.median(taken)


@job(Nature.HOLDS_GIL, measures=True)
def transcode(codec: str, compression: str | None, shape: str, size_bytes: int, step: str) -> int:
    """Nanoseconds to encode or to decode a payload once, or its size in bytes when encoded.

    Compression is part of each step. Time is the median over rounds, see `rounds`. REFUSED or CHANGED where a round
    trip, made first, does not bring the payload back as it was; measurements end below both, at 4.3 s. Raises
    ValueError for a name that there is not, and RuntimeError for a package that is not installed here.
    """
    if step not in list(Step):
        raise ValueError(f"step must be one of {', '.join(Step)}, not {step!r}")
    if shape not in SHAPES:
        raise ValueError(f"shape must be one of {', '.join(SHAPES)}, not {shape!r}")
    path = way(codec, compression)
    payload = make(shape, size_bytes)
    if (failed := path.carries(payload)) is not None:
        return failed
    body = path.there(payload)
    match step:
        case Step.SIZE:
            measured: float = len(body)
        case Step.ENCODE:
            measured = median_ns(path.there, payload, *rounds(codec, compression, size_bytes))
        case _:
            measured = median_ns(path.back, body, *rounds(codec, compression, size_bytes))
    return min(round(measured), CHANGED - 1)


_NOTHING = object()


def same(sent: Any, arrived: Any) -> bool:
    """Whether what arrived is what was sent, type by type and all the way down; the order of keys does not count.

    Stricter than ==: 1 is not 1.0 nor True, a tuple is no list, 0.0 is not -0.0, NaN is NaN, 1.0 is not Decimal's 1.00,
    and a moment has its offset from UTC. A value may contain itself.
    """
    pairs, met = [(sent, arrived)], set[tuple[int, int]]()
    while pairs:  # a list of what is left to compare: recursion would end at depths that some codecs carry
        one, other = pairs.pop()
        if type(one) is not type(other):
            return False
        if isinstance(one, dict | list | tuple | set | frozenset):
            if len(one) != len(other):
                return False
            if (id(one), id(other)) in met:
                continue
            met.add((id(one), id(other)))
            if isinstance(one, list | tuple):
                pairs.extend(zip(one, other, strict=True))
                continue
            # A key that is equal may still be of another type, so both are compared like all else.
            keys = {key: key for key in other}
            for key in one:
                twin = keys.get(key, _NOTHING)
                if twin is _NOTHING:
                    return False
                pairs.append((key, twin))
                if isinstance(one, dict):
                    pairs.append((one[key], other[twin]))
        elif not _same_plain(one, other):
            return False
    return True


def _same_plain(one: Any, other: Any) -> bool:
    """As `same`, for two values of one type that hold no others."""
    match one:
        case float():
            if math.isnan(one):
                return math.isnan(other)
            return bool(one == other) and math.copysign(1, one) == math.copysign(1, other)
        case Decimal():
            return bool(one.as_tuple() == other.as_tuple())
        case datetime() | time_of_day():
            return bool(one == other and one.utcoffset() == other.utcoffset())
        case _:
            return bool(one == other)
