"""Which trials, in which order, and how long they will take."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from lab.model import Experiment, Setup, Trial
from producer.payloads import Calibrated, Upstream

BOOT_S = {"queued": 0.9, "bare": 0.35}
"""Seconds to start, warm and stop an arena on a two-core machine: only for the estimate of the time left."""


def plan(
    experiment: Experiment,
    setups: Sequence[Setup] | None = None,
    *,
    seed: int = 0,
    repeats: int | None = None,
    cores: int = 2,
    quick: bool = False,
    python: str | None = None,
) -> list[Trial]:
    """Every setup once per repeat, each repeat in its own random order.

    A machine that slows down halfway then slows every setup alike.
    """
    rng = random.Random(f"{seed} {experiment.name}")
    chosen = list(experiment.setups(cores=cores, quick=quick) if setups is None else setups)
    if python:
        chosen = [replace(setup, python=python) for setup in chosen]
    trials: list[Trial] = []
    for repeat in range(repeats or (experiment.quick_repeats if quick else experiment.repeats)):
        rng.shuffle(chosen)
        trials += [Trial(experiment.name, setup, repeat) for setup in chosen]
    return trials


def expected_s(trial: Trial, *, cores: int) -> float:
    """Roughly how long the trial takes: its boot, and its jobs spread over the slots that can really work."""
    setup = trial.setup
    cpu_ms = sum(value.ms for value in setup.args.values() if isinstance(value, Calibrated))
    wait_ms = sum(value.mean_ms for value in setup.args.values() if isinstance(value, Upstream))
    queue_ms = 1.0 if setup.queued else 0.05
    width = min(setup.slots, cores if setup.pool in {"prefork", "processes"} else 1)
    work_s = setup.pacer.count * max((cpu_ms + queue_ms) / width, (cpu_ms + wait_ms) / setup.slots) / 1e3
    last_due_s = max(setup.pacer.due_s(), default=0.0)
    return BOOT_S["queued" if setup.queued else "bare"] * setup.nodes + max(work_s, last_due_s)
