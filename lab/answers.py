"""How soon a worker answers: idle and at half load, with either transport; the figures and what they come to. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from lab import drains
from lab.drains import OURS, POOLS, ROWS, STOCK
from lab.model import Estimate
from lab.peers import Compared, interval, is_noisy
from lab.stats import mean, mean_of_logs, quantile

STILL_S = 3.0
"""A worker is left alone so long: what it says to the broker then, it says to find out that there is nothing."""
LONGEST_GAP_S = 0.2
"""Before a job for an idle worker. Neither transport polls, so longer ones would only take longer."""


@dataclass(frozen=True, slots=True)
class AnswerSize:
    """How much a run measures."""

    blocks: int
    idle_jobs: int
    paced_s: float
    retakes: int = 2

    def expected_s(self, rows: int) -> float:
        """About how long it takes on two cores."""
        return rows * self.blocks * (START_S + STILL_S + self.idle_jobs * (LONGEST_GAP_S / 2 + 0.01) + self.paced_s)


START_S = 4.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One trial: one row in one block. Times in seconds."""

    idle_s: tuple[float, ...]
    """Of each job of an idle worker: from the call that sends it to its first line."""
    half_s: tuple[float, ...]
    """Of each job at half load: from when it was due to its first line."""
    still_hz: float
    """The broker's commands a second while there was nothing to do at all."""
    lag_s: tuple[float, ...] = ()
    """By how much the call that sends it came after it was due, of each job at half load: it had one before to send."""
    missing: int = 0
    others_cores: float = 0.0
    steal_cores: float = 0.0


def arrivals_s(rate_hz: float, length_s: float, chance: Random) -> list[float]:
    """Moments of a Poisson process, in order, in seconds from its beginning; at least one."""
    found = [chance.expovariate(rate_hz)]
    while found[-1] < length_s:
        found.append(found[-1] + chance.expovariate(rate_hz))
    return found[:-1] or found


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of how soon a worker answers; less is better."""

    label: str
    of: Callable[[Answer], float]
    scale: float = 1.0
    """From the figure to what a table shows."""


FIGURES: Mapping[str, Figure] = {
    "idle-p50": Figure("idle, median ms", lambda one: quantile(np.array(one.idle_s), 0.5), 1e3),
    "idle-p99": Figure("idle, p99 ms", lambda one: quantile(np.array(one.idle_s), 0.99), 1e3),
    "half-p50": Figure("half load, median ms", lambda one: quantile(np.array(one.half_s), 0.5), 1e3),
    "half-p99": Figure("half load, p99 ms", lambda one: quantile(np.array(one.half_s), 0.99), 1e3),
    "lag-p99": Figure("of which the producer, p99 ms", lambda one: quantile(np.array(one.lag_s), 0.99), 1e3),
    "still": Figure("commands a second with nothing to do", lambda one: one.still_hz),
}

Answers = Sequence[Mapping[str, Answer]]
"""By row: one mapping for each block."""


def half_rates_hz(compared: Compared) -> dict[str, float]:
    """For each row that answers, half of what stock with the same pool was seen to drain; both sides get the same."""
    found: dict[str, float] = {}
    for pool in POOLS:
        if level := compared.level("drain", f"{STOCK}-{pool}"):
            found |= {f"{side}-{pool}": level.value / 2 for side in (STOCK, OURS)}
    return found


def figure(answers: Answers, name: str, row: str) -> Estimate | None:
    """A row's figure over blocks; None where it was not measured."""
    of = FIGURES[name].of
    values = [of(block[row]) for block in answers if row in block]
    return mean(values) if name == "still" else mean_of_logs([value for value in values if value > 0])


def answer_ratios(answers: Answers) -> dict[str, Estimate]:
    """Ours over stock with the same pool, inside each block, `idle-p50/threads` and so on; below 1 ours is the better.

    `still` is left out where one of them says nothing at all; the producer's lag is neither's.
    """
    found = {}
    for name, row in FIGURES.items():
        for pool in POOLS if name != "lag-p99" else ():
            ours, stock = f"{OURS}-{pool}", f"{STOCK}-{pool}"
            pairs = [(row.of(b[ours]), row.of(b[stock])) for b in answers if ours in b and stock in b]
            ratios = [one / other for one, other in pairs if one > 0 and other > 0]
            if ratios and (estimate := mean_of_logs(ratios)):
                found[f"{name}/{pool}"] = estimate
    return found


def answer_faults(answers: Answers) -> tuple[str, ...]:
    """Reasons to distrust the figures, each with its remedy."""
    found = []
    for name in dict.fromkeys(name for block in answers for name in block):
        label, trials = ROWS[name].label, [block[name] for block in answers if name in block]
        if missing := sum(one.missing for one in trials):
            found.append(f"{label}: {missing} jobs never ran, with no worker killed: look for an error in its log")
        if noisy := sum(map(is_noisy, trials)):
            found.append(f"{label}: others used the machine in {noisy} of {len(trials)} trials: run again")
    return tuple(found)


def as_json(compared: Compared, answers: Answers = ()) -> dict[str, Any]:
    """What --json prints of the drains and, where they were measured, of the answers. See docs/peers.md."""
    body, found = drains.as_json(compared), answer_ratios(answers)
    figures = {
        f"{name}/{row}": estimate
        for name in FIGURES
        for row in dict.fromkeys(row for block in answers for row in block)
        if (estimate := figure(answers, name, row))
    }
    return {
        **body,
        "ratios": {**body["ratios"], **{name: e.value for name, e in found.items()}},
        "intervals": {**body["intervals"], **{name: interval(e) for name, e in found.items()}},
        "answers": {name: e.value for name, e in figures.items()},
        "answer_intervals": {name: interval(e) for name, e in figures.items()},
    }
