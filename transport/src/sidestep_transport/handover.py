"""What a broken connection leaves undone, for the next connection of this process to the same broker."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Address = tuple[object, ...]
"""Where messages lie: host or path, port, database and the keys' names."""


@dataclass(slots=True)
class Estate:
    """All of it may be done twice, and by anybody."""

    acks: set[str] = field(default_factory=set)
    """Delivery tags of finished messages whose end the broker may not have heard of."""
    records: set[tuple[str, int]] = field(default_factory=set)
    """Keys that tell what fetches gave, and the number of the one whose answer was never read."""
    unread: list[tuple[str, str, bytes]] = field(default_factory=list)
    """Tag, queue and message, newest first, of what was fetched and delivered to nobody."""

    def __bool__(self) -> bool:
        return bool(self.acks or self.records or self.unread)


_estates: dict[Address, Estate] = {}
_held: dict[Address, dict[str, weakref.ref[Any]]] = {}
_interrupted: set[Address] = set()
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


def keep(address: Address, held: Mapping[str, Any]) -> None:
    """Deliveries of a channel that is gone, on which this process may still work: as long as their messages live."""
    if held:
        with _turn:
            _held.setdefault(address, {}).update({tag: weakref.ref(message) for tag, message in held.items()})


def kept(address: Address) -> list[str]:
    """The tags of those on which somebody may still work."""
    if address not in _held:
        return []
    with _turn:
        alive = {tag: of for tag, of in _held.pop(address, {}).items() if of() is not None}
        if alive:
            _held[address] = alive
        return list(alive)


def release(address: Address, *tags: str) -> None:
    """They are finished, returned, or somebody else's."""
    if address in _held:
        with _turn:
            for tag in tags:
                _held.get(address, {}).pop(tag, None)


def interrupt(address: Address) -> None:
    """A connection there broke, and perhaps not only ours."""
    _interrupted.add(address)


def was_interrupted(address: Address) -> bool:
    """Whether one broke since this process began."""
    return address in _interrupted


def _forget() -> None:
    # A forked child is not who owes this: its parent is.
    global _turn  # noqa: PLW0603  it may have been held while the process forked
    _turn = threading.RLock()
    _estates.clear()
    _held.clear()
    _interrupted.clear()


os.register_at_fork(after_in_child=_forget)
