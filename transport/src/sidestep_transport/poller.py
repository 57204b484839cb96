"""Waits for the broker, for what is finished elsewhere, and for time to pass."""

# kombu has no types, and what extends it cannot have all of its own.
# mypy: disable-error-code="no-untyped-call, misc, has-type, no-any-return"

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
import weakref
from queue import Empty
from typing import TYPE_CHECKING, Any

from kombu.log import get_logger
from kombu.transport import redis as stock
from kombu.utils.eventio import ERR, READ

from sidestep_transport.channel import FETCH

if TYPE_CHECKING:
    from sidestep_transport.channel import Channel

logger = get_logger(__name__)

BEAT_S = 1.0
LONGEST_WAIT_S = 1.0
"""Without an event loop nobody else would notice that time has passed."""
DELIVERING_S = 0.005
"""So long messages are handed over in one go. In a solo worker that is to do them: control commands wait, and so does
what it has finished, for one job or this long."""


class Waker:
    """A pair of sockets: to write to one ends a wait for the other."""

    def __init__(self) -> None:
        self.reader, self._writer = socket.socketpair()
        self.reader.setblocking(False)
        self._writer.setblocking(False)
        self._is_set = False

    def set(self) -> None:
        """End the wait, of now or the next; from any thread."""
        if not self._is_set:
            self._is_set = True
            with contextlib.suppress(OSError):
                self._writer.send(b"\0")

    def clear(self) -> None:
        """The wait has ended."""
        with contextlib.suppress(OSError):
            self.reader.recv(64)
        self._is_set = False

    def close(self) -> None:
        """No more waits."""
        self.reader.close()
        self._writer.close()


class Poller(stock.MultiChannelPoller):
    """kombu's poller, with channels that fetch."""

    _channels: set[Channel]

    def __init__(self) -> None:
        super().__init__()
        self._loop: Any = None
        self._waker: Waker | None = None
        self._is_waiting = False
        self._beat_at_s = 0.0
        self._beat_tref: Any = None
        self._comes_back = False
        self._heart: threading.Thread | None = None
        self._heart_pid = 0
        self._stopped = threading.Event()

    # --- kombu's event loop ------------------------------------------------------------------------------------------

    def attach(self, loop: Any) -> None:
        """Work from now on inside kombu's event loop."""
        self._loop = loop
        for name in ("_restore_messages_tref", "_beat_tref"):
            if (entry := getattr(self, name, None)) is not None:
                entry.cancel()
        self._beat_tref = loop.call_repeatedly(min(BEAT_S, self._shortest_s()), self.beat)
        self._waker = self._waker or Waker()
        loop.add_reader(self._waker.reader.fileno(), self._on_wake)

    def _shortest_s(self) -> float:
        return min((min(c.renewal_s, c.sweep_s) for c in self._channels), default=BEAT_S)

    def _on_wake(self) -> None:
        if self._waker is not None:
            self._waker.clear()
        self._hand_over()

    def _hand_over(self) -> None:
        """Deliver what waits, for a short time; the rest comes after the loop's next turn."""
        until_s = time.monotonic() + DELIVERING_S
        try:
            while sum(channel.deliver() for channel in list(self._channels)):
                if time.monotonic() >= until_s:
                    break
        finally:
            if self._waker is not None and any(channel.has_waiting for channel in self._channels):
                self._waker.set()

    @property
    def fds(self) -> dict[int, Any]:
        """The descriptors to wait for; of those in an event loop, only those that it does not know yet."""
        fds: dict[int, Any] = super().fds
        if self._loop is None:
            return fds
        # kombu adds all of them before each wait, at the price of a failing system call each.
        return {fd: channel for fd, channel in fds.items() if not self._is_read(fd)}

    def _is_read(self, fd: int) -> bool:
        # A descriptor may have had another owner, whose entry outlived it.
        callback, _ = self._loop.readers.get(fd) or (None, None)
        return getattr(getattr(callback, "__self__", None), "cycle", None) is self

    # --- both ways ---------------------------------------------------------------------------------------------------

    def connect(self, channel: Channel) -> bool:
        """See to it that the channel's connection is there and waited for; whether it is new."""
        if self._client_registered(channel, channel.client, FETCH):
            return False
        self._register(channel, channel.client, FETCH)
        return True

    def on_poll_start(self) -> None:
        """Send what is due, before each wait."""
        self._update_brpop_polling()
        for channel in list(self._channels):
            if not channel.fetches:
                if channel.active_queues and channel.qos.can_consume():
                    self._register_BRPOP(channel)
            elif channel.active_queues or channel.has_news:
                channel.pump()
                if self._loop is not None and (turn_s := channel.next_turn_s) is not None:
                    self._come_back(turn_s)
            if channel.active_fanout_queues:
                self._register_LISTEN(channel)

    def _come_back(self, turn_s: float) -> None:
        if not self._comes_back and self._waker is not None:
            self._comes_back = True
            self._loop.call_later(turn_s, self._has_come_back)
            # The loop has decided already how long it waits this time: let it decide again.
            self._waker.set()

    def _has_come_back(self) -> None:
        self._comes_back = False

    def on_readable(self, fileno: int) -> Any:
        """Read what came, and deliver."""
        channel, kind = self._fd_to_chan.get(fileno, (None, None))
        if kind != FETCH:
            return super().on_readable(fileno)
        channel.on_readable()
        if self._loop is not None:
            self._hand_over()
        return None

    def handle_event(self, fileno: int, event: int) -> Any:
        """Read what came, without an event loop: whether something was delivered."""
        _, kind = self._fd_to_chan.get(fileno, (None, None))
        if kind != FETCH:
            return super().handle_event(fileno, event)
        if event & (READ | ERR):
            self.on_readable(fileno)
        return None

    def beat(self) -> None:
        """Let every channel do what is due by time."""
        self._beat_at_s = time.monotonic() + min(BEAT_S, self._shortest_s())
        for channel in list(self._channels):
            if not channel.fetches:
                continue
            try:
                channel.beat()
                # A worker that shuts down waits for its last jobs and starts no flights: what is finished, tell here.
                channel.flush_stale()
            except channel.connection_errors:
                logger.debug("the broker does not answer; the next beat tries again", exc_info=True)
                return

    # --- without an event loop ---------------------------------------------------------------------------------------

    def get(self, callback: Any, timeout: float | None = None) -> Any:
        """Deliver one message; raises Empty when none came."""
        if not all(channel.fetches for channel in self._channels):
            return super().get(callback, timeout)
        self._in_protected_read = True
        try:
            self.maybe_refresh_binding_expiry()
            if time.monotonic() >= self._beat_at_s:
                self.beat()
            self.on_poll_start()
            if self._deliver_one() or self._wait(timeout) or self._deliver_one():
                return None
            raise Empty
        finally:
            self._in_protected_read = False
            while self.after_read:
                self.after_read.pop()()

    def _deliver_one(self) -> bool:
        return any(channel.deliver() for channel in list(self._channels))

    def _wait(self, timeout: float | None) -> bool:
        """Wait until something can be read, and read it; whether it was a broadcast, which is delivered at once."""
        waits = [LONGEST_WAIT_S if timeout is None else min(timeout, LONGEST_WAIT_S)]
        if self._waker is None:
            self._waker = Waker()
        self.poller.register(self._waker.reader, READ | ERR)
        self._is_waiting = True
        try:
            # What was finished before anybody could wake us has its turn, too.
            events = self.poller.poll(min([*waits, *self._turns()]))
        finally:
            self._is_waiting = False
        delivered = False
        for fileno, event in events or ():
            if fileno == self._waker.reader.fileno():
                self._waker.clear()
            else:
                delivered = bool(self.handle_event(fileno, event)) or delivered
        return delivered

    def _turns(self) -> list[float]:
        return [turn_s for channel in self._channels if (turn_s := channel.next_turn_s) is not None]

    def wake_if_waiting(self) -> None:
        """A delivery was finished: whoever waits for the broker has something to tell it; from any thread."""
        if self._is_waiting and self._waker is not None:
            self._waker.set()

    # --- leases, where the consumer's own thread may be busy with a job ----------------------------------------------

    def start_heart(self) -> None:
        """See to it that leases are renewed even while a job holds the thread that consumes.

        Not in the parent of prefork's children: it is never busy, and a process with threads should not fork.
        """
        if self._heart is not None and self._heart_pid == os.getpid():
            return
        self._heart_pid = os.getpid()
        if self._loop is not None and "celery.concurrency.asynpool" in sys.modules:
            self._heart = threading.current_thread()  # the event loop's own
            return
        self._heart = threading.Thread(
            target=_keep_alive, args=(weakref.ref(self), self._stopped), name="sidestep-leases", daemon=True
        )
        self._heart.start()

    def renew(self) -> None:
        """Renew what is held, and tell what has been finished for a while; from the heart's thread."""
        for channel in list(self._channels):
            if channel.fetches and not channel.closed:
                try:
                    channel.renew()
                    channel.flush_stale()
                except channel.connection_errors:
                    logger.debug("the broker does not answer; the next beat tries again", exc_info=True)

    def close(self) -> None:
        """Stop waiting, for good."""
        self._stopped.set()
        if self._beat_tref is not None:
            self._beat_tref.cancel()
        if self._waker is not None:
            with contextlib.suppress(Exception):
                if self._loop is not None:
                    self._loop.remove(self._waker.reader.fileno())
                else:
                    self.poller.unregister(self._waker.reader)
            self._waker.close()
            self._waker = None
        super().close()


def _keep_alive(poller_of: weakref.ref[Poller], stopped: threading.Event) -> None:
    while True:
        poller = poller_of()
        if poller is None:
            return
        pause_s = min(BEAT_S, poller._shortest_s())
        del poller
        if stopped.wait(pause_s):
            return
        if (poller := poller_of()) is not None:
            try:
                poller.renew()
            except Exception:
                logger.warning("leases were not renewed", exc_info=True)
        del poller
