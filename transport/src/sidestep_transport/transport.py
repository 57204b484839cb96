"""The transport itself: kombu's for Redis, with another way of consuming."""

# kombu has no types, and what extends it cannot have all of its own.
# mypy: disable-error-code="no-untyped-call, misc, has-type"

from __future__ import annotations

from typing import Any

from kombu.transport import redis as stock

from sidestep_transport.channel import Channel
from sidestep_transport.poller import Poller


class Transport(stock.Transport):
    """Shares queues, keys and settings with kombu's own Redis transport, in both directions."""

    Channel = Channel
    cycle: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Consume inside kombu's event loop."""
        super().register_with_event_loop(connection, loop)
        self.cycle.attach(loop)
