"""What a broken connection leaves undone, for the next connection of this process to the same broker."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field

Address = tuple[object, ...]
"""Where messages lie: host or path, port, database and the keys' names."""


@dataclass(slots=True)
class Estate:
    """All of it may be done twice, and by anybody."""

    acks: set[str] = field(default_factory=set)
    """Delivery tags of finished messages whose end the broker may not have heard of."""
    records: set[str] = field(default_factory=set)
    """Keys that tell what fetches gave whose answer was never read."""
    unread: list[tuple[str, str, bytes]] = field(default_factory=list)
    """Tag, queue and message, newest first, of what was fetched and delivered to nobody."""

    def __bool__(self) -> bool:
        return bool(self.acks or self.records or self.unread)


_estates: dict[Address, Estate] = {}
_turn = threading.RLock()


def leave(address: Address, estate: Estate) -> None:
    """Add to what is left undone there."""
    with _turn:
        kept = _estates.setdefault(address, Estate())
        kept.acks |= estate.acks
        kept.records |= estate.records
        kept.unread += estate.unread


def is_due(address: Address) -> bool:
    """Whether something is left undone there."""
    return address in _estates


def claim(address: Address) -> Estate:
    """Take all of it; who cannot do it leaves it again."""
    with _turn:
        return _estates.pop(address, Estate())


def _forget() -> None:
    # A forked child is not who owes this: its parent is.
    global _turn  # noqa: PLW0603  it may have been held while the process forked
    _turn = threading.RLock()
    _estates.clear()


os.register_at_fork(after_in_child=_forget)
