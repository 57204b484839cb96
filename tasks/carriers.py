"""What arrives of a thing that is handed over: to another thread, through a pipe, inside a message."""

from __future__ import annotations

import math
import queue
import socket
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from enum import IntEnum
from typing import Any

from tasks.registry import Nature, job


class Outcome(IntEnum):
    """What became of one thing; it fits two bits, and 3 is free."""

    AS_IT_WAS = 0
    CHANGED = 1
    """Something arrived, without an error, and it was not what was sent."""
    REFUSED = 2
    """The sender or the receiver raised."""


@dataclass(frozen=True, slots=True)
class Thing:
    """Something that a program may want to hand over."""

    name: str
    make: Callable[[ExitStack], Any]
    """A new one; what must be closed again is left with the stack."""
    same: Callable[[Any, Any], bool]
    """Whether what arrived is as good as what was sent; asked only where both have the same type."""


def _plus_one(number: int) -> int:
    return number + 1


def _local_function() -> Callable[[int], int]:
    def plus_one(number: int) -> int:
        return number + 1

    return plus_one


def _does_the_same(sent: Any, arrived: Any) -> bool:
    return bool(arrived(20) == sent(20))


def _open_file(stack: ExitStack) -> Any:
    file = stack.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8"))  # noqa: SIM115  the stack closes it
    file.write("still here")
    return file


def _reads_the_same(_: Any, arrived: Any) -> bool:
    arrived.seek(0)
    return bool(arrived.read() == "still here")


def _is_the_lock(sent: Any, arrived: Any) -> bool:
    with sent:
        return bool(arrived.locked())


SOCKET_TIMEOUT_S = 1.0


def _open_socket(stack: ExitStack) -> socket.socket:
    end = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    end.settimeout(SOCKET_TIMEOUT_S)
    end.bind(("127.0.0.1", 0))
    return end


def _is_the_socket(sent: socket.socket, arrived: socket.socket) -> bool:
    arrived.sendto(b"it is me", sent.getsockname())
    letter, sender = sent.recvfrom(100)
    return letter == b"it is me" and bool(sender == sent.getsockname())


class Overdrawn(Exception):  # noqa: N818  it names what happened
    """An error as programs like to write them: two arguments, of which it makes one sentence for its base class."""

    def __init__(self, account: str, missing: int) -> None:
        super().__init__(f"{account} lacks {missing}")
        self.account, self.missing = account, missing


def _says_the_same(sent: Overdrawn, arrived: Overdrawn) -> bool:
    return (arrived.args, arrived.account, arrived.missing) == (sent.args, sent.account, sent.missing)


def _is_equal(sent: Any, arrived: Any) -> bool:
    return bool(arrived == sent)


def _same_moment_and_zone(sent: datetime, arrived: datetime) -> bool:
    return arrived == sent and arrived.utcoffset() == sent.utcoffset()


CENTRAL_EUROPE = timezone(timedelta(hours=2))

# A result is the outcomes in this order, and reports are made of it: add at the end, and never more than 16.
THINGS: tuple[Thing, ...] = (
    Thing("lambda", lambda _: lambda number: number + 1, _does_the_same),
    Thing("local function", lambda _: _local_function(), _does_the_same),
    Thing("module's function", lambda _: _plus_one, _does_the_same),
    Thing("open file", _open_file, _reads_the_same),
    Thing("threading.Lock", lambda _: threading.Lock(), _is_the_lock),
    Thing("generator", lambda _: (number for number in (1, 2, 3)), lambda _, arrived: list(arrived) == [1, 2, 3]),
    Thing("socket", _open_socket, _is_the_socket),
    Thing("bytes", lambda _: b"\x00\xff", _is_equal),
    Thing("tuple", lambda _: (1, 2), _is_equal),
    Thing("set", lambda _: {1, 2}, _is_equal),
    Thing(
        "datetime at +02:00",
        lambda _: datetime(2024, 7, 1, 12, 30, 15, 123456, tzinfo=CENTRAL_EUROPE),
        _same_moment_and_zone,
    ),
    Thing("NaN", lambda _: math.nan, lambda _, arrived: math.isnan(arrived)),
    Thing("int of 100 digits", lambda _: int("7" * 100), _is_equal),
    Thing("dict with int keys", lambda _: {1: "one", 2: "two"}, _is_equal),
    Thing("error of 2 arguments", lambda _: Overdrawn("savings", 5), _says_the_same),
    Thing("lone surrogate", lambda _: "\ud800", _is_equal),
)
MOST_THINGS = 16
"""Two bits each, in the 32 that travel with a mark."""


def _thread(thing: Any) -> Any:
    """To another thread and back: a pointer."""
    there: queue.Queue[Any] = queue.Queue()
    back: queue.Queue[Any] = queue.Queue()
    other = threading.Thread(target=lambda: back.put(there.get()))
    other.start()
    there.put(thing)
    other.join()
    return back.get()


_sharer = threading.Lock()


def _pickle(thing: Any) -> Any:
    """What multiprocessing, and so a ProcessPoolExecutor, does to an argument: it pickles more than `pickle` does.

    Both ends are this process. A second one would find functions and classes by name in its own copy of the modules,
    so those that only this process has (of `__main__`, patched, made at run time) would be refused there too. In a
    ProcessPoolExecutor what cannot be unpickled breaks the whole pool, instead of raising where the job was sent.
    """
    from multiprocessing import resource_sharer  # noqa: PLC0415  a worker does not need them but for this job
    from multiprocessing.reduction import ForkingPickler  # noqa: PLC0415

    with _sharer:  # it is one for the process: nobody may stop it while another still waits for a descriptor
        try:
            return ForkingPickler.loads(ForkingPickler.dumps(thing))
        finally:
            # A socket goes through a server thread that would stay.
            resource_sharer.stop(SHARER_TIMEOUT_S)


SHARER_TIMEOUT_S = 5.0


def _prefork(thing: Any) -> Any:
    """What the parent of a prefork worker does to whatever it writes into a child's pipe, and the child as it reads.

    Plain pickle, by the very names that Celery and billiard use. Both ends are this process, as above. A job's
    arguments pass this pipe as the parent decoded them from the message, so a refusal is rare there: JSON has refused
    first. Errors on their way back are tried beforehand, and the parent gets a stand-in for one that would be refused.
    """
    from celery.concurrency import asynpool  # noqa: PLC0415  importing Celery takes a quarter of a second

    # `send_job` in asynpool, and `_recv` in billiard's pool.
    return asynpool._pool.pickle_loads(asynpool._pickle.dumps(thing, protocol=asynpool.HIGHEST_PROTOCOL))


def _message(serializer: str) -> Callable[[Any], Any]:
    """As the only argument of a job, in a message of this kind."""

    def carry(thing: Any) -> Any:
        from kombu import serialization  # noqa: PLC0415  the jobs are also used without Celery

        kombu: Any = serialization  # its functions have no types
        accept = kombu.prepare_accept_content([serializer])
        # The body of Celery's protocol 2: positional arguments, named ones, and what else is to be done.
        kind, encoding, body = kombu.dumps(((thing,), {}, {}), serializer=serializer)
        args, _, _ = kombu.loads(body, kind, encoding, accept=accept)
        return args[0]

    return carry


CARRIERS: dict[str, Callable[[Any], Any]] = {
    "thread": _thread,
    "pickle": _pickle,
    "prefork": _prefork,
    "json": _message("json"),
    # Not with every installation, see `deliver`.
    "yaml": _message("yaml"),
    "msgpack": _message("msgpack"),
}
"""Each takes a thing on a real journey and returns what arrives, or raises."""


def outcome(thing: Thing, carry: Callable[[Any], Any]) -> Outcome:
    """What becomes of one thing. Everything that is opened on the way is closed again."""
    with ExitStack() as stack:
        sent = thing.make(stack)
        try:
            arrived = carry(sent)
        except Exception:  # whatever it is, somebody refused
            return Outcome.REFUSED
        if arrived is not sent and hasattr(arrived, "close"):
            stack.callback(arrived.close)
        same = type(arrived) is type(sent) and thing.same(sent, arrived)
        return Outcome.AS_IT_WAS if same else Outcome.CHANGED


def outcomes(carry: Callable[[Any], Any]) -> list[Outcome]:
    """What becomes of each of THINGS. Raises RuntimeError for a carrier that carries nothing at all."""
    try:
        carry("a word")
    except Exception as error:
        raise RuntimeError(f"not even a word arrives: {error}; is the carrier's package installed?") from error
    return [outcome(thing, carry) for thing in THINGS]


def pack(found: Sequence[Outcome]) -> int:
    """The outcomes as one number, base 4, the first thing in the lowest digit."""
    return sum(one << 2 * place for place, one in enumerate(found))


def unpack(number: int) -> tuple[int, ...]:
    """The outcomes of all THINGS, in their order; 3 is none of them, and no reason to fail over a foreign file."""
    return tuple(number >> 2 * place & 3 for place in range(len(THINGS)))


@job(Nature.HOLDS_GIL, measures=True)
def deliver(through: str) -> int:
    """Hand each of THINGS over by this carrier and return what became of them, as `pack` spells it.

    Raises ValueError for a name that is none of CARRIERS, and RuntimeError for a carrier that is not installed here.
    """
    if through not in CARRIERS:
        raise ValueError(f"through must be one of {', '.join(CARRIERS)}, not {through!r}")
    return pack(outcomes(CARRIERS[through]))
