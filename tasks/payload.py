"""Jobs that carry something."""

from __future__ import annotations

from typing import Any

from tasks.registry import Nature, job


@job(Nature.HOLDS_GIL)
def echo(payload: Any) -> Any:
    """Return the payload: what is left is the cost of moving it."""
    return payload
