"""Whether a process that has died is started again, and when. Pure."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
SETTLED_S = 60.0
"""A process that was up for so long has nothing to do with the deaths before it."""
TRIES = 5
"""Deaths in a row before a process was up that show that it will never be."""
COULD_NOT = 2
"""Celery's exit status, and ours, for what no second try can mend: an unknown option, an app that is not there."""


@dataclass(frozen=True, slots=True)
class Deaths:
    """How often a process has died, since it last had run for long."""

    in_row: int = 0
    at_start: int = 0
    """Of these, the last ones that came before it was up."""

    def after(self, lived_s: float, *, was_up: bool, status: int) -> Deaths:
        """These and one more. `status` is as in `subprocess`: negative for a signal."""
        if not was_up:
            return Deaths(self.in_row + 1, TRIES if status == COULD_NOT else self.at_start + 1)
        return Deaths(1 if lived_s >= SETTLED_S else self.in_row + 1)

    @property
    def wait_s(self) -> float:
        """How long until it is started again: not at all after the first death, then twice as long each time.

        A job that kills its process comes back with its message, so this bounds what such a job can cost.
        """
        if self.in_row < 2:
            return 0.0
        return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(self.in_row - 2, 16))

    @property
    def is_hopeless(self) -> bool:
        """Whether it shall not be started again."""
        return self.at_start >= TRIES
