"""The ways a Celery worker can run jobs side by side."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

# eventlet warns of itself when celery/__init__.py imports it; what it says is said in `legacy` below, so the raw
# warning is not shown as well. In PYTHONWARNINGS' form, which cannot match the message: that
# starts with a line break.
EVENTLET_WARNING_FILTER = "ignore::Warning:celery"


@dataclass(frozen=True, slots=True)
class Pool:
    """One value of the worker's `-P` option."""

    name: str
    shares_gil: bool
    """All slots of one worker run under one interpreter lock."""
    green: bool
    """Slots are greenlets of one thread that take turns only where they wait."""
    needs: str | None = None
    """The module that must be installed."""
    legacy: str | None = None
    """Why new work should not start here."""
    single_slot: bool = False
    """The pool ignores `-c`: one job at a time."""

    @property
    def missing(self) -> str | None:
        """What to install before this pool can run, or None."""
        if self.needs is None or importlib.util.find_spec(self.needs):
            return None
        return f"pool {self.name!r} needs {self.needs}; try: pip install 'sidestep[{self.needs}]'"


POOLS = {
    pool.name: pool
    for pool in (
        Pool("solo", shares_gil=True, green=False, single_slot=True),
        Pool("prefork", shares_gil=False, green=False),
        Pool("threads", shares_gil=True, green=False),
        Pool(
            "eventlet",
            shares_gil=True,
            green=True,
            needs="eventlet",
            legacy="its own maintainers have retired it and say not to use it for new work; gevent is the living kin",
        ),
        Pool("gevent", shares_gil=True, green=True, needs="gevent"),
    )
}
