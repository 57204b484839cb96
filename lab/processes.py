"""What `--pool processes` makes of the options of `celery worker`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from lab.environment import cores
from lab.model import BadInput

POOL = "processes"
"""For Celery alone an old alias of prefork; here a family of single processes."""
MOST = 512
NAME = "celery@%h"
"""Celery's own."""

_SEVERAL = "there are several"
REFUSED: Mapping[str, str] = {
    "time_limit": "nobody outside a process watches its job; use --pool prefork for it",
    "soft_time_limit": "a process hears nothing while it runs its job; use --pool prefork for it",
    "max_tasks_per_child": "a process is replaced when it dies, and not before; use --pool prefork for it",
    "max_memory_per_child": "a process is replaced when it dies, and not before; use --pool prefork for it",
    "autoscale": "the number of processes is that of -c; use --pool prefork for it",
    "pool_start_method": "no process is forked off another",
    "beat": "each process would send every scheduled job; run `celery beat` beside it",
    "schedule_filename": "each process would send every scheduled job; run `celery beat` beside it",
    "scheduler": "each process would send every scheduled job; run `celery beat` beside it",
    "purge": "each process would purge whenever it starts; run `celery purge` before it",
    "detach": "it stays in the foreground, where a service manager wants it",
    "pidfile": f"{_SEVERAL} processes; a service manager knows the supervisor's",
    "uid": "a process that changes its user would outlive the supervisor; start it as that user",
    "gid": "a process that changes its group would outlive the supervisor; start it as that group",
}
"""Celery's names of options that a family cannot keep, and why."""


@dataclass(frozen=True, slots=True)
class Family:
    """How many processes, and what they are called."""

    count: int
    name: str = NAME
    """A pattern as Celery's `-n`; each process has its number in it."""


def family(options: Sequence[str]) -> Family | None:
    """The family that these options of `celery worker` ask for; None where they ask for another pool.

    Raises BadInput for an option that goes with prefork alone, and for a number that is none.
    """
    if not any(POOL in option for option in options):
        return None
    given = _read(options)
    if given is None or given.get("pool") != POOL:
        return None
    for name, why in REFUSED.items():
        if given.get(name) is not None:
            raise BadInput(f"--pool {POOL} has no --{name.replace('_', '-')}: {why}")
    for option in ("statedb", "logfile"):
        if (path := given.get(option)) and "%n" not in path:
            raise BadInput(
                f"--{option} {path}: {_SEVERAL} processes, and each needs a file of its own: put %n, its name, into "
                "the path"
            )
    return Family(_count(given.get("concurrency")), given.get("hostname") or NAME)


def _count(text: str | None) -> int:
    if not text or text in ("0", "auto"):
        return cores()
    if not (text.isascii() and text.isdigit() and int(text) <= MOST):
        raise BadInput(f"--concurrency is a number of processes from 1 to {MOST}, or auto, not {text!r}")
    return int(text)


def _read(options: Sequence[str]) -> dict[str, Any] | None:
    """The options as Celery's own parser understands them; None where it does not, and will say so itself."""
    from celery.bin.worker import worker  # noqa: PLC0415  a quarter of a second, and no other pool needs it

    parser = worker.make_parser(click.Context(worker, ignore_unknown_options=False))
    try:
        return dict(parser.parse_args(list(options))[0])
    except click.UsageError:
        return None
