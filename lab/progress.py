"""What runs, what is left and for how long: a bar on a terminal, plain lines in a pipe."""

from __future__ import annotations

import time

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

REDRAW_S = 0.25
"""Between two drawings. Nothing is drawn from a thread of its own: it would make the producer late."""


class TrialProgress:
    """A bar over the trials of a sitting, measured in expected seconds."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[left]}"),
            console=console,
            auto_refresh=False,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task: TaskID = self._bar.add_task("starting", total=None, left="")
        self._total_s = self._done_s = self._current_s = self._spent_s = 0.0
        self._trial_begun = self._drawn = time.monotonic()

    def __enter__(self) -> TrialProgress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def plan(self, total_s: float) -> None:
        """So many expected seconds lie ahead."""
        self._total_s += total_s

    def start(self, name: str, expected_s: float) -> None:
        """A trial starts."""
        self._current_s, self._trial_begun = expected_s, time.monotonic()
        self._bar.update(self._task, description=name)
        self._draw()

    def end(self) -> None:
        """The trial has ended."""
        self._spent_s += time.monotonic() - self._trial_begun
        self._done_s += self._current_s
        self._current_s = 0.0
        self._draw()

    def idle(self) -> None:
        """Redraw, if that is due: call it when nothing urgent happens."""
        if time.monotonic() - self._drawn >= REDRAW_S:
            self._draw()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        # The plan's guess, corrected by how the trials so far compared with theirs.
        pace = self._spent_s / self._done_s if self._done_s else 1.0
        within = min(self._drawn - self._trial_begun, self._current_s * pace)
        left_s = max(0.0, (self._total_s - self._done_s) * pace - within)
        done_s = self._done_s + (within / pace if pace else 0.0)
        self._bar.update(
            self._task, total=max(self._total_s, 1e-9), completed=done_s, left=f"about {spell(left_s)} left"
        )
        self._bar.refresh()


def spell(seconds: float) -> str:
    """A duration as people say it: `45 s`, `3 min 05 s`."""
    whole = round(seconds)
    return f"{whole} s" if whole < 90 else f"{whole // 60} min {whole % 60:02} s"
