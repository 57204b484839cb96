"""The messages that workers could not read: to look at, and to send once more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import redis

from tasks.dead_letters import COUNTS, LIST, Letter

# The record goes and the message comes in one step, so two people cannot resend it twice.
# KEYS: list, counts, queue.  ARGV: record, message.
RESEND = """
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then return 0 end
redis.call('HINCRBY', KEYS[2], 'bytes', -#ARGV[1])
redis.call('LPUSH', KEYS[3], ARGV[2])
return 1
"""


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of dead letters so far."""

    kept: int
    """Those in the list now."""
    all: int
    """Those ever written, resent and dropped ones too."""
    dropped: int
    """The oldest ones that had to make room."""
    size_bytes: int
    """Of the list now."""


def dead_letters(client: redis.Redis, prefix: str) -> list[Letter]:
    """The letters under an app's key prefix, oldest first. Raises ValueError where the list holds anything else."""
    return [Letter.from_record(record) for record in cast(list[str], client.lrange(prefix + LIST, 0, -1))]


def counts(client: redis.Redis, prefix: str) -> Counts:
    """How many letters there are and were."""
    fields: dict[Any, Any] = cast(dict[Any, Any], client.hgetall(prefix + COUNTS))
    numbers = {name if isinstance(name, str) else name.decode(): int(number) for name, number in fields.items()}
    kept = client.llen(prefix + LIST)
    return Counts(kept, numbers.get("all", 0), numbers.get("dropped", 0), numbers.get("bytes", 0))


def resend(client: redis.Redis, prefix: str, letter: Letter) -> bool:
    """Put the message back on its queue, byte for byte, and take the letter off the list.

    False where the list no longer holds it. Of a queue's priorities it gets the first.
    """
    keys = (prefix + LIST, prefix + COUNTS, prefix + letter.queue)
    return bool(client.eval(RESEND, 3, *keys, letter.to_record(), letter.message))
