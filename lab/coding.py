"""What codecs do to values on this machine: how long they take, how many bytes they make, what they change."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum
from random import Random
from typing import Any
from uuid import UUID

from lab.model import Estimate
from lab.stats import mean_of_logs
from tasks.carriers import Outcome
from tasks.codecs import CODECS
from tasks.transcode import CHANGED, Way, median_ns, once_ns, rounds, way


@dataclass(frozen=True, slots=True)
class Cargo:
    """A value with a name, and its size as compact JSON in UTF-8."""

    name: str
    size_bytes: int
    value: Any


@dataclass(frozen=True, slots=True)
class Bill:
    """What it costs to write one payload in one way and to read it again."""

    codec: str
    compression: str | None
    payload: str
    payload_bytes: int
    outcome: Outcome
    """Of a round trip; the rest is none where it does not bring the payload back as it was."""
    coded_bytes: int | None = None
    encode_ns: tuple[float, ...] = ()
    """One operation's time in each round; so are those below, in the same order."""
    decode_ns: tuple[float, ...] = ()

    @property
    def way(self) -> str:
        """The codec and the compression, as in `json + zstd`."""
        return f"{self.codec} + {self.compression}" if self.compression else self.codec

    @property
    def encode(self) -> Estimate | None:
        """Nanoseconds to write it once, over rounds."""
        return mean_of_logs(self.encode_ns)

    @property
    def decode(self) -> Estimate | None:
        """Nanoseconds to read it once, over rounds."""
        return mean_of_logs(self.decode_ns)

    @property
    def both_ns(self) -> tuple[float, ...]:
        """Both together, round by round."""
        return tuple(there + back for there, back in zip(self.encode_ns, self.decode_ns, strict=True))


def expected_s(ways: Iterable[tuple[str, str | None]], sizes_bytes: Iterable[int], count: int) -> float:
    """Roughly how long `bills` takes for these ways, payloads of these sizes and so many rounds."""
    pairs = [(codec, compression, size) for codec, compression in ways for size in sizes_bytes]
    # There and back, in each round and once beforehand.
    return sum(2 * once_ns(*pair) * (rounds(*pair)[1] * count + 1) for pair in pairs) / 1e9


def bills(
    ways: Sequence[tuple[str, str | None]], payloads: Sequence[Cargo], *, count: int, seed: int = 0
) -> list[Bill]:
    """The bill of each payload each way, in the order given.

    Each way is tried out first. Then every round measures all that carry their payload once, in an order of its own
    drawn with `seed`, so that a machine that slows down does so for all.
    """
    found: list[Bill] = []
    clocked: list[_Clocked] = []
    for payload in payloads:
        for codec, compression in ways:
            path = way(codec, compression)
            outcome, body = _outcome(path.carries(payload.value)), None
            if outcome is Outcome.AS_IT_WAS:
                body = path.there(payload.value)
                operations = rounds(codec, compression, payload.size_bytes)[1]
                clocked.append(_Clocked(len(found), path, payload.value, body, operations, [], []))
            size = None if body is None else len(body)
            found.append(Bill(codec, compression, payload.name, payload.size_bytes, outcome, size))
    random = Random(seed)
    for _ in range(count):
        for one in random.sample(clocked, len(clocked)):
            one.clock()
    for one in clocked:
        found[one.place] = replace(found[one.place], encode_ns=tuple(one.encode_ns), decode_ns=tuple(one.decode_ns))
    return found


@dataclass(frozen=True, slots=True)
class _Clocked:
    """A bill in the making, at its place among all."""

    place: int
    path: Way
    value: Any
    body: bytes
    operations: int
    encode_ns: list[float]
    decode_ns: list[float]

    def clock(self) -> None:
        """One round there, one back: where it is short, the median of three thirds, so that one stall is no result."""
        thirds = (3, self.operations // 3) if self.operations >= 3 else (1, self.operations)
        self.encode_ns.append(median_ns(self.path.there, self.value, *thirds))
        self.decode_ns.append(median_ns(self.path.back, self.body, *thirds))


def quickest_first(same_payload: Iterable[Bill]) -> list[Bill]:
    """By the geometric mean of rounds there and back; those that did not carry it come last."""

    def mean_ns(bill: Bill) -> float:
        estimate = mean_of_logs(bill.both_ns)
        return estimate.value if estimate else math.inf

    return sorted(same_payload, key=mean_ns)


def times(bill: Bill, best: Bill) -> Estimate | None:
    """How many times longer than the best one it took, there and back, round by round; None where one has none."""
    return mean_of_logs([own / its for own, its in zip(bill.both_ns, best.both_ns, strict=False)])


class Colour(Enum):
    """As applications name their states."""

    RED = "red"


@dataclass(frozen=True)
class Order:
    """As applications spell their records."""

    number: int


def nested(levels: int) -> Any:
    """A list that holds a list that holds a list, and so on."""
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


CENTRAL_EUROPE = timezone(timedelta(hours=2))
VALUES: Mapping[str, Callable[[], Any]] = {
    "bytes": lambda: b"\x00\xff",
    "tuple": lambda: (1, 2),
    "set": lambda: {1, 2},
    "dict with int keys": lambda: {1: "one", 2: "two"},
    "datetime at UTC": lambda: datetime(2024, 7, 1, 12, 30, 15, 123456, tzinfo=UTC),
    "datetime at +02:00": lambda: datetime(2024, 7, 1, 12, 30, 15, 123456, tzinfo=CENTRAL_EUROPE),
    "datetime without a zone": lambda: datetime(2024, 7, 1, 12, 30, 15, 123456),
    "date": lambda: date(2024, 7, 1),
    "time of day": lambda: time(12, 30, 15),
    "timedelta": lambda: timedelta(minutes=5),
    "Decimal": lambda: Decimal("1.10"),
    "UUID": lambda: UUID("12345678-1234-5678-1234-567812345678"),
    "Enum": lambda: Colour.RED,
    "dataclass": lambda: Order(7),
    "NaN": lambda: math.nan,
    "infinity": lambda: math.inf,
    "-0.0": lambda: -0.0,
    "int of 20 digits": lambda: int("7" * 20),
    "int of 100 digits": lambda: int("7" * 100),
    "lone surrogate": lambda: "\ud800",
    "list 200 deep": lambda: nested(200),
    "list 1000 deep": lambda: nested(1000),
}
"""What applications hand over and some codec does not carry."""


def fidelity(codecs: Iterable[str] = CODECS) -> dict[str, dict[str, Outcome]]:
    """What becomes of each of VALUES with each codec that is installed here, found by a round trip."""
    paths = {name: way(name, None) for name in codecs if CODECS[name].missing is None}
    found: dict[str, dict[str, Outcome]] = {}

    def look() -> None:
        for what, make in VALUES.items():
            found[what] = {name: _outcome(path.carries(make())) for name, path in paths.items()}

    # On a stack of its own: how deep one may nest must not hang on who asks.
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return found


def _outcome(failed: int | None) -> Outcome:
    if failed is None:
        return Outcome.AS_IT_WAS
    return Outcome.CHANGED if failed == CHANGED else Outcome.REFUSED
