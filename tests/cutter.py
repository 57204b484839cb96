"""A TCP relay that cuts everything after a given byte, once; before and after it only relays."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

UP, DOWN = "up", "down"
"""To the server, from the server."""


@dataclass
class Cutter:
    """Stands in front of a server on loopback."""

    port: int
    server_port: int
    cut: tuple[str, int] | None = None
    """Direction, and how many bytes of it get through, of all connections together."""
    passed: dict[str, int] = field(default_factory=lambda: {UP: 0, DOWN: 0})
    seen: dict[str, bytearray] = field(default_factory=lambda: {UP: bytearray(), DOWN: bytearray()})
    ends: dict[str, list[int]] = field(default_factory=lambda: {UP: [], DOWN: []})
    """Where each piece that was read at once ended."""
    was_cut: bool = False

    def arm(self, cut: tuple[str, int] | None) -> None:
        """Count from zero, and cut there."""
        self.cut, self.was_cut = cut, False
        for direction in (UP, DOWN):
            self.passed[direction] = 0
            self.seen[direction].clear()
            self.ends[direction].clear()

    def let_through(self, direction: str, piece: bytes) -> bytes:
        """As much of it as gets through; `was_cut` is set with the last byte."""
        if self.cut and self.cut[0] == direction and not self.was_cut:
            left = self.cut[1] - self.passed[direction]
            if len(piece) >= left:
                piece, self.was_cut = piece[:left], True
        self.passed[direction] += len(piece)
        self.seen[direction] += piece
        self.ends[direction].append(self.passed[direction])
        return piece


@contextlib.contextmanager
def cutter(server_port: int) -> Iterator[Cutter]:
    """A relay on a port of its own until the block ends."""
    listener = socket.create_server(("127.0.0.1", 0))
    relay = Cutter(listener.getsockname()[1], server_port)
    stop_reader, stop_writer = socket.socketpair()
    thread = threading.Thread(target=_relay, args=(relay, listener, stop_reader), daemon=True)
    thread.start()
    try:
        yield relay
    finally:
        stop_writer.close()
        thread.join(10)
        listener.close()


def _relay(relay: Cutter, listener: socket.socket, stop: socket.socket) -> None:
    other: dict[socket.socket, socket.socket] = {}
    direction: dict[socket.socket, str] = {}
    while True:
        ready, _, _ = select.select([listener, stop, *other], [], [])
        if stop in ready:
            break
        for side in ready:
            if side is listener:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", relay.server_port))
                other.update({client: server, server: client})
                direction.update({client: UP, server: DOWN})
            elif side in other:
                _carry(relay, side, other, direction)
    for side in list(other):
        side.close()


def _carry(
    relay: Cutter, side: socket.socket, other: dict[socket.socket, socket.socket], direction: dict[socket.socket, str]
) -> None:
    was_cut = relay.was_cut
    try:
        piece = side.recv(65536)
        if piece:
            other[side].sendall(relay.let_through(direction[side], piece))
    except OSError:
        piece = b""
    if relay.was_cut and not was_cut:
        for each in list(other):
            each.close()
        other.clear()
    elif not piece:
        for each in (side, other.pop(side)):
            other.pop(each, None)
            each.close()
