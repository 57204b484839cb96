"""What a message on the queue is made of, byte by byte."""

from __future__ import annotations

import base64
import json

PARTS = ("body", "base64", "argument text", "headers", "properties", "envelope")
"""The body itself (encoded, and compressed if so); what base64 adds to it; the arguments as text for people; other
headers; properties; and what is left of the JSON around them."""


def anatomy(message: bytes) -> dict[str, int]:
    """The sizes in bytes of the PARTS of one message as kombu writes it; they add up to its length.

    Raises ValueError for what is no such message.
    """
    envelope = json.loads(message)
    carried = envelope.get("body") if isinstance(envelope, dict) else None
    if isinstance(carried, dict):
        # Bytes without an encoding: kombu's JSON puts them into base64 by itself, unless they are text in UTF-8.
        of_bytes = carried.get("__type__") == "base64"
        carried = carried.get("__value__")
    else:
        of_bytes = isinstance(envelope, dict) and (envelope.get("properties") or {}).get("body_encoding") == "base64"
    if not isinstance(carried, str):
        raise ValueError("it is no message of kombu's: no body")
    headers, properties = envelope.get("headers") or {}, envelope.get("properties") or {}
    without = {name: value for name, value in headers.items() if name not in ("argsrepr", "kwargsrepr")}
    # Quotes count with the envelope; escapes within the body with the body.
    written = _size(carried) - 2
    body = len(base64.b64decode(carried)) if of_bytes else written
    sizes = {
        "body": body,
        "base64": written - body,
        "argument text": _size(headers) - _size(without),
        "headers": _size(without),
        "properties": _size(properties),
    }
    return {**sizes, "envelope": len(message) - sum(sizes.values())}


def _size(value: object) -> int:
    # As kombu's encoder spells it: with blanks, and what is not ASCII as escapes.
    return len(json.dumps(value))
