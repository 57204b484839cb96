"""What a consumer has received and not finished."""

# kombu has no types, and what extends it cannot have all of its own.
# mypy: disable-error-code="no-untyped-call, misc, has-type, no-any-return"

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from kombu.transport import redis as stock
from kombu.transport import virtual

if TYPE_CHECKING:
    from sidestep_transport.channel import Channel


class Acks:
    """Delivery tags that are finished and not yet told to the broker; any thread may add one."""

    def __init__(self) -> None:
        self._tags: list[str] = []
        self._turn = threading.RLock()
        self._since_s = 0.0

    @property
    def age_s(self) -> float:
        """For how long the oldest of them has been here; 0 when there is none."""
        return time.monotonic() - self._since_s if self._tags else 0.0

    def __bool__(self) -> bool:
        return bool(self._tags)

    def add(self, *tags: str) -> None:
        """One more, or some again whose fate is not known."""
        with self._turn:
            if not self._tags:
                self._since_s = time.monotonic()
            self._tags.extend(tags)

    def take(self) -> list[str]:
        """All of them; the caller now owes them."""
        if not self._tags:
            return []
        with self._turn:
            tags, self._tags = self._tags, []
        return tags


class QoS(stock.QoS):
    """Keeps count as kombu does, and leaves it to the channel to tell the broker."""

    channel: Channel

    def append(self, message: Any, delivery_tag: Any) -> None:
        """Keep a delivery, which the broker has noted as unacknowledged when it gave it away."""
        if self.channel.was_noted(str(delivery_tag)):
            virtual.QoS.append(self, message, delivery_tag)
            self.channel.poller.start_heart()
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: Any) -> None:
        """Finish a delivery; the broker is told with the next batch."""
        message = self._delivered.get(delivery_tag)
        virtual.QoS.ack(self, delivery_tag)
        self.channel.finish(str(delivery_tag), was_redelivered=_was_redelivered(message))

    def reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        """Drop a delivery, or send its message to the end of its queue."""
        if not requeue:
            self.ack(delivery_tag)
            return
        self.channel.restore([str(delivery_tag)], to_the_end=True)
        virtual.QoS.ack(self, delivery_tag)

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:  # noqa: ARG002  kombu's
        """Put a message back on its queue."""
        self.channel.restore([str(tag)], to_the_end=leftmost)

    def restore_unacked(self, client: Any = None) -> None:  # noqa: ARG002  kombu's
        """Put everything back that was delivered and not finished, in the order in which it came."""
        self.channel.flush()
        self._flush()
        self.channel.restore([str(tag) for tag in reversed(self._delivered)])
        self._delivered.clear()

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Put back what is not finished, once; at exit, what is finished is told first."""
        self.channel.return_waiting()
        self.channel.flush_or_leave()
        super().restore_unacked_once(stderr)

    def restore_visible(self, start: int = 0, num: int | None = 10, interval: int = 10) -> None:  # noqa: ARG002  kombu's
        """Put back what nobody has renewed for the visibility timeout."""
        # kombu asks when it connects, too; after an interruption others have to renew first.
        if self.channel.may_sweep:
            self.channel.sweep()

    def leave(self) -> dict[str, Any]:
        """Give up what is delivered and not finished: the messages by tag."""
        left = {str(tag): message for tag, message in list(self._delivered.items()) if tag not in self._dirty}
        self._delivered.clear()
        return left

    def held(self) -> list[str]:
        """The tags that are delivered and not finished; from any thread."""
        while True:
            try:
                return [str(tag) for tag in list(self._delivered) if tag not in self._dirty]
            except RuntimeError:  # it changed while it was copied
                continue


def _was_redelivered(message: Any) -> bool:
    headers = getattr(message, "headers", None)
    return isinstance(headers, dict) and bool(headers.get("redelivered"))
