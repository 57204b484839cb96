"""A TCP relay that puts a server farther away: every byte arrives later, and none is slower.

Each direction gets half of the round trip. What is on its way stays on its way: bytes are held until they are due, not
one chunk after the other, so throughput stays what it was. Only bytes are late: to connect takes no longer than
without it, where a real distance would take one round trip.
Run as `python -m lab.relay --to 127.0.0.1:6379 --rtt-ms 5`: it prints its port, on loopback.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import math
import random
import resource
import select
import selectors
import socket
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NoReturn

LIMIT_BYTES = 64 * 2**20
"""In one direction of one connection; at 5 ms it is reached at 25 GB/s, or by a reader that does not read."""
CHUNK_BYTES = 64 * 1024
"""More than twice as much costs five times the time for every small message: its buffer is mapped and given back."""
EARLY_NS = 50_000
"""A wait ends about so late; it is made so much shorter, and what is left is spent looking at the clock."""
MOST_CHUNKS = 64
"""In one call of the kernel; it takes up to 1024."""
LONGEST_MS = 10_000.0
RESET = struct.pack("ii", 1, 0)
"""As SO_LINGER: close at once and tell the other end that the connection broke."""


class End(Enum):
    """How one side stopped sending."""

    CLOSED = "closed"
    BROKEN = "broken"


class DelayLine:
    """What is on its way in one direction: it comes out `delay_ns` after it went in, and never before what went first.

    `extra_ns` is asked for each piece how much later it comes. Time is handed in; pure.
    """

    def __init__(
        self, delay_ns: int, *, extra_ns: Callable[[], int] = lambda: 0, limit_bytes: int = LIMIT_BYTES
    ) -> None:
        self._delay_ns, self._extra_ns, self._limit_bytes = delay_ns, extra_ns, limit_bytes
        self._held: deque[tuple[int, memoryview | End]] = deque()
        self._last_ns = 0
        self.held_bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether it wants no more for now; what is put in nevertheless is not lost."""
        return self.held_bytes >= self._limit_bytes

    @property
    def due_ns(self) -> int | None:
        """When the next piece comes out; None when nothing is on its way."""
        return self._held[0][0] if self._held else None

    def put(self, piece: bytes | End, now_ns: int) -> None:
        """A piece goes in."""
        self._last_ns = max(self._last_ns, now_ns + self._delay_ns + self._extra_ns())
        if isinstance(piece, End):
            self._held.append((self._last_ns, piece))
        elif piece:
            self._held.append((self._last_ns, memoryview(piece)))
            self.held_bytes += len(piece)

    def due(self, now_ns: int) -> list[memoryview] | End | None:
        """What has come out and was not taken: up to 64 pieces, or the end when it is next, or None. It stays."""
        pieces: list[memoryview] = []
        for due_ns, piece in self._held:
            if due_ns > now_ns or len(pieces) == MOST_CHUNKS:
                break
            if isinstance(piece, End):
                return pieces or piece
            pieces.append(piece)
        return pieces or None

    def take(self, size_bytes: int) -> None:
        """So many bytes from the front are gone."""
        self.held_bytes -= size_bytes
        while size_bytes:
            due_ns, piece = self._held.popleft()
            if isinstance(piece, End):
                raise ValueError(f"{size_bytes} bytes more than came before the end")
            if len(piece) > size_bytes:
                self._held.appendleft((due_ns, piece[size_bytes:]))
                return
            size_bytes -= len(piece)

    def take_end(self) -> None:
        """The end is taken: after it may come another, of a connection that broke later."""
        _, piece = self._held.popleft()
        if not isinstance(piece, End):
            raise ValueError("bytes come before the end")

    def clear(self) -> None:
        """All that is on its way is lost."""
        self._held.clear()
        self.held_bytes = 0


@dataclass(eq=False, slots=True)
class _Side:
    """One of the two sockets of a connection, and what is on its way to it."""

    socket: socket.socket
    line: DelayLine
    connecting: bool = False
    full: bool = False
    """The kernel takes no more bytes for now."""
    heard_all: bool = False
    """It sends no more."""
    told_all: bool = False
    """It gets no more."""
    interest: int = 0
    """What the selector was last told to look for."""
    scheduled: bool = False
    """Its line's next piece is among those that the relay waits for."""
    other: _Side = field(init=False)


class Relay:
    """Carries bytes between those who connect to `listener` and `target`, for ever."""

    def __init__(
        self,
        listener: socket.socket,
        target: tuple[socket.AddressFamily, tuple[object, ...]],
        *,
        rtt_ms: float,
        jitter_ms: float = 0.0,
        seed: int = 0,
        now_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._listener, self._target, self._now_ns = listener, target, now_ns
        self._delay_ns, self._jitter_ns, self._seed = round(rtt_ms * 5e5), round(jitter_ms * 5e5), seed
        self._connections = 0
        # (due, order, side): the order only decides between equal times.
        self._schedule: list[tuple[int, int, _Side]] = []
        self._order = 0
        self._selector = selectors.DefaultSelector()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)

    def run(self) -> NoReturn:
        """Relay until interrupted."""
        # epoll counts in whole milliseconds, select in microseconds: so select waits, for epoll's own descriptor.
        ready = [self._selector.fileno()]
        while True:
            wait_s = max(self._schedule[0][0] - EARLY_NS - self._now_ns(), 0) / 1e9 if self._schedule else None
            if wait_s != 0 and not select.select(ready, (), (), wait_s)[0]:
                self._deliver()
                continue
            for key, events in self._selector.select(0):
                if key.data is None:
                    self._accept()
                elif events & selectors.EVENT_WRITE:
                    self._writable(key.data)
                if key.data is not None and events & selectors.EVENT_READ:
                    self._read(key.data)
            self._deliver()

    def _accept(self) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            near, _ = self._listener.accept()
            family, address = self._target
            far = socket.socket(family, socket.SOCK_STREAM)
            sides = [_Side(link, self._line(way)) for way, link in enumerate((near, far))]
            self._connections += 1
            for side, other in zip(sides, reversed(sides), strict=True):
                side.other = other
                side.socket.setblocking(False)
                side.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # Whether it worked shows when the socket can be written to.
            far.connect_ex(address)
            sides[1].connecting = True
            for side in sides:
                self._look(side)

    def _line(self, way: int) -> DelayLine:
        if not self._jitter_ns:
            return DelayLine(self._delay_ns)
        # Each direction of each connection draws its own, whatever the others do meanwhile.
        draw, jitter_ns = random.Random(f"{self._seed} {self._connections} {way}").randint, self._jitter_ns
        return DelayLine(self._delay_ns, extra_ns=lambda: draw(0, jitter_ns))

    def _read(self, side: _Side) -> None:
        if side.heard_all:
            return  # to be told that it can be written to has shown that it is gone
        try:
            chunk = side.socket.recv(CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            self._broken(side)
            return
        if not side.other.told_all:
            side.other.line.put(chunk or End.CLOSED, self._now_ns())
            self._plan(side.other)
        side.heard_all = not chunk
        self._look(side)

    def _writable(self, side: _Side) -> None:
        if side.connecting:
            side.connecting = False
            if side.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._broken(side)
                return
        side.full = False
        self._plan(side)
        self._look(side)

    def _plan(self, side: _Side) -> None:
        """Remember when its line's next piece is due, unless it cannot be sent before the socket says so."""
        due_ns = side.line.due_ns
        if due_ns is not None and not (side.scheduled or side.connecting or side.full):
            self._order += 1
            side.scheduled = True
            heapq.heappush(self._schedule, (due_ns, self._order, side))

    def _deliver(self) -> None:
        """Hand on all that is due."""
        while self._schedule and self._schedule[0][0] <= (now_ns := self._now_ns()):
            side = heapq.heappop(self._schedule)[2]
            side.scheduled = False
            if side.socket.fileno() < 0:
                continue
            was_full = side.line.is_full
            pieces = side.line.due(now_ns)
            if isinstance(pieces, End):
                self._end(side, pieces)
                continue
            if pieces:
                self._send(side, pieces)
            self._plan(side)
            if side.full:
                self._look(side)
            if was_full and not side.line.is_full:
                self._look(side.other)

    def _send(self, side: _Side, pieces: Sequence[memoryview]) -> None:
        try:
            side.line.take(side.socket.sendmsg(pieces))
        except BlockingIOError:
            side.full = True
        except OSError:
            self._broken(side)

    def _end(self, side: _Side, end: End) -> None:
        """The end of what the other side sent has reached this one."""
        side.line.take_end()
        if end is End.BROKEN:
            with contextlib.suppress(OSError):
                side.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self._close(side)
            return
        side.told_all = True
        with contextlib.suppress(OSError):  # it may have gone meanwhile
            side.socket.shutdown(socket.SHUT_WR)
        if side.other.told_all and side.line.due_ns is None and side.other.line.due_ns is None:
            self._close(side)
        else:
            self._plan(side)

    def _broken(self, side: _Side) -> None:
        """Nothing goes to this side any more and nothing comes from it; the other one hears of it in time."""
        side.heard_all = side.told_all = True
        side.line.clear()
        side.connecting = side.full = False
        side.other.line.put(End.BROKEN, self._now_ns())
        self._plan(side.other)
        self._look(side)

    def _close(self, side: _Side) -> None:
        for one in (side, side.other):
            if one.interest:
                self._selector.unregister(one.socket)
                one.interest = 0
            one.socket.close()

    def _look(self, side: _Side) -> None:
        """Tell the selector what to look for at this side."""
        reads = not side.heard_all and not side.other.line.is_full
        interest = selectors.EVENT_READ * reads | selectors.EVENT_WRITE * (side.connecting or side.full)
        if interest == side.interest:
            return
        if not side.interest:
            self._selector.register(side.socket, interest, side)
        elif not interest:
            self._selector.unregister(side.socket)
        else:
            self._selector.modify(side.socket, interest, side)
        side.interest = interest


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"lab.relay: {message}\n")


def _target(text: str) -> tuple[socket.AddressFamily, tuple[object, ...]]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise argparse.ArgumentTypeError(f"must be HOST:PORT, such as 127.0.0.1:6379, not {text!r}")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{host!r} is no host that can be found: {error.strerror}") from None
    family, _, _, _, address = found[0]
    return family, address


def _milliseconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= LONGEST_MS:
        raise argparse.ArgumentTypeError(f"must be from 0 to {LONGEST_MS:.0f} milliseconds, not {text!r}")
    return value


def _be_punctual() -> None:
    # Else Linux lets a wait end up to 50 us late, to wake up less often; other systems have no such file.
    with contextlib.suppress(OSError):
        Path("/proc/self/timerslack_ns").write_text("1")
    # A worker of hundreds of greenlets has hundreds of connections, and each takes two descriptors here.
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    """Relay as the arguments say."""
    parser = _Parser(prog="lab.relay", description="A TCP relay that puts a server farther away.")
    parser.add_argument("--to", type=_target, required=True, metavar="HOST:PORT")
    parser.add_argument("--rtt-ms", type=_milliseconds, required=True, help="added there and back; 0 is the control")
    parser.add_argument(
        "--jitter-ms", type=_milliseconds, default=0.0, help="up to so much more, drawn for each piece, in order"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    _be_punctual()
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        relay = Relay(listener, options.to, rtt_ms=options.rtt_ms, jitter_ms=options.jitter_ms, seed=options.seed)
        print(listener.getsockname()[1], flush=True)
        try:
            relay.run()
        except KeyboardInterrupt:
            sys.exit(0)


if __name__ == "__main__":
    main()
