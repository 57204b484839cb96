"""Jobs that carry something."""

from __future__ import annotations

from typing import Any

from tasks.cpu import spin
from tasks.registry import Nature, job


@job(Nature.HOLDS_GIL)
def echo(payload: Any) -> Any:
    """Return the payload: what is left is the cost of moving it."""
    return payload


def _carried(payload: Any, loops: int) -> int:  # noqa: ARG001  the work changes nothing
    return len(payload)


@job(Nature.HOLDS_GIL, expect=_carried)
def carry(payload: Any, loops: int) -> int:
    """Do `loops` units of the job `spin` and return the payload's length: work that has something to carry."""
    spin(loops)
    return len(payload)
