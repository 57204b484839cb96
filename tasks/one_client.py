"""Kombu's Redis transport with one client a channel, where kombu 5.7 makes a new one for each command.

A client holds no connection: it takes one from the channel's pool for each command, as the many would. What it costs to
make is what is saved. Used as `broker_transport = "tasks.one_client:Transport"`; whatever travels is the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from kombu.transport import redis


class Channel(redis.Channel):
    """Hands out the same client for as long as its pool is the channel's."""

    _one: Any = None

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """The client that is given, else the channel's own."""
        if client:
            yield client
            return
        # A channel that has lost its connections gets a new pool; a client of the old one would open those again.
        if self._one is None or self._one.connection_pool is not self.pool:
            self._one = self._create_client()  # type: ignore[no-untyped-call]
        yield self._one


class Transport(redis.Transport):
    """The transport to name."""

    Channel = Channel
