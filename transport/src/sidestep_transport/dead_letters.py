"""Messages that were lost with their workers too often, or that cannot be read: to look at and to resend.

They lie, oldest first, in the list `unacked_dead_letters` (after the `global_keyprefix`; `unacked` is the transport's
option `unacked_key`): a line of JSON with `at`, `queue`, `reason` and, where it is known, `list`, the key of the list
that the message came from; after it the message as it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import redis

LIST = "unacked_dead_letters"


@dataclass(frozen=True, slots=True)
class Letter:
    """One of them."""

    at_s: float
    """When it was given up, in seconds since 1970."""
    queue: str
    reason: str
    key: str
    """Of the list that it came from: its queue, with the `global_keyprefix` before it and the priority behind."""
    message: bytes = field(repr=False)
    record: bytes = field(repr=False)
    """As it lies in the list."""


def read(client: redis.Redis, key: str = LIST) -> Iterator[Letter]:
    """All of them, oldest first. Raises ValueError for what is none."""
    for record in _records(client, key):
        header, _, message = record.partition(b"\n")
        fields = json.loads(header)
        queue = fields["queue"]
        yield Letter(float(fields["at"]), queue, fields["reason"], fields.get("list", queue), message, record)


def _records(client: Any, key: str) -> list[bytes]:
    records: list[bytes] = client.lrange(key, 0, -1)
    return records


RESEND = r"""
-- KEYS: dead letters, queue.  ARGV: record, message. Returns whether the record was there.
local removed = redis.call('LREM', KEYS[1], 1, ARGV[1])
if removed == 1 then redis.call('LPUSH', KEYS[2], ARGV[2]) end
return removed
"""


def resend(client: redis.Redis, letter: Letter, *, to: str | None = None, key: str = LIST) -> bool:
    """Send a letter's message to the end of a queue, its own unless `to` names another; False when it is gone.

    `to` is the key of the list, which a `global_keyprefix` is part of.
    """
    done: Any = client.eval(RESEND, 2, key, to or letter.key, letter.record, letter.message)
    return bool(done)
