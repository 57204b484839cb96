"""Which trials, in which order, and how long they will take."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from lab.axes import work_ms_of
from lab.model import Experiment, Load, Setup, Trial
from producer.payloads import Upstream

BOOT_S = {"queued": 0.85, "bare": 0.45}
CONTAINER_BOOT_S = 3.0
"""Seconds to start, warm and stop an arena on a two-core machine: only for the estimate of the time left."""
FORK_S = 0.02
"""More for each process of a pool."""
MINGLE_S, FLOWER_S = 1.2, 2.0
"""More for a worker that asks for its neighbours, as Celery's own do, and for a Flower, which also rests in between."""


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

    A machine that slows down halfway then slows every setup alike. Setups that the experiment wants side by side stay
    together, in random order among themselves.
    """
    rng = random.Random(f"{seed} {experiment.name}")
    chosen = list(experiment.setups(cores=cores, quick=quick) if setups is None else setups)
    if python and not any(setup.python for setup in chosen):
        # Where the experiment itself compares interpreters, that is its point.
        chosen = [replace(setup, python=python) for setup in chosen]
    trials: list[Trial] = []
    for repeat in range(repeats or (experiment.quick_repeats if quick else experiment.repeats)):
        groups = _side_by_side(chosen, experiment.side_by_side)
        rng.shuffle(groups)
        for group in groups:
            rng.shuffle(group)
            trials += [Trial(experiment.name, setup, repeat) for setup in group]
    return trials


def _side_by_side(setups: Sequence[Setup], name: str | None) -> list[list[Setup]]:
    """The setups in groups that differ in the named field alone; without a name each is its own group."""
    groups: dict[Setup, list[Setup]] = {}
    for setup in setups:
        key = setup if name is None else replace(setup, **cast("dict[str, Any]", {name: None}))
        groups.setdefault(key, []).append(setup)
    return list(groups.values())


def expected_s(trial: Trial, *, cores: int) -> float:
    """Roughly how long the trial takes: its boot, and its jobs spread over the slots that can really work."""
    setup = trial.setup
    boot_s = BOOT_S["queued" if setup.queued else "bare"] * (setup.nodes + bool(setup.apart))
    if setup.arena == "compose":
        # All at once, each with its share of a core.
        boot_s = CONTAINER_BOOT_S + BOOT_S["queued"] / (setup.cpus or 1) + setup.nodes * BOOT_S["bare"]
    if setup.pool in {"prefork", "processes", "interpreters"}:
        boot_s += FORK_S * setup.slots
    if setup.knobs is not None:
        boot_s += MINGLE_S
    if setup.events == "flower":
        boot_s += FLOWER_S
    # Loads beside each other share the cores, also from workers of their own, but they are due at the same time.
    work_s = sum(_work_s(setup, load, cores) for load in setup.loads)
    last_due_s = max((due for load in setup.loads for due in load.pacer.due_s()), default=0.0)
    return boot_s + max(work_s, last_due_s)


def _work_s(setup: Setup, load: Load, cores: int) -> float:
    pool, slots = setup.pool, setup.slots
    if setup.apart and load is setup.beside:
        pool, slots = setup.apart, setup.apart_concurrency
    cpu_ms = work_ms_of(load.args)
    wait_ms = sum(value.mean_ms for value in load.args.values() if isinstance(value, Upstream))
    wait_ms += sum(float(v) for name, v in load.args.items() if name in {"ms", "io_ms"} and isinstance(v, int | float))
    queue_ms = 1.0 if setup.queued else 0.05
    if setup.cpus is not None:
        width = max(1.0, min(setup.nodes, slots))
        return load.pacer.count * max((cpu_ms + queue_ms) / setup.cpus / width, (cpu_ms + wait_ms) / slots) / 1e3
    width = min(slots, cores if pool in {"prefork", "processes", "interpreters"} else 1)
    return load.pacer.count * max((cpu_ms + queue_ms) / width, (cpu_ms + wait_ms) / slots) / 1e3
