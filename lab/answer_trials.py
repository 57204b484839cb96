"""How soon a Celery worker with little to do answers: idle, and at half of what it can; trials for `bench drain`."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence

from lab.answers import LONGEST_GAP_S, STILL_S, Answer, AnswerSize, arrivals_s
from lab.children import tree
from lab.model import LabError
from lab.peer_trials import (
    BOOT_TIMEOUT_S,
    OWN_INFOS,
    WARM_JOBS,
    Marks,
    Rig,
    await_all,
    awake,
    idle,
    snapshot,
    strangers,
    warm,
)
from lab.peers import Peer, is_noisy
from lab.resources import Snapshot


def measure_answers(
    rig: Rig,
    rows: Mapping[str, Peer],
    rates_hz: Mapping[str, float],
    size: AnswerSize,
    *,
    seed: int = 0,
    step: Callable[[str], None] = lambda _: None,
) -> tuple[list[dict[str, Answer]], tuple[str, ...]]:
    """Every row once in each block, in shuffled order, at its rate; and what went wrong, such as a worker that ended.

    Rows of one rate get the same arrivals in the same block.
    """
    chance = random.Random(seed)
    blocks: list[dict[str, Answer]] = []
    failed: dict[str, str] = {}
    with awake(rig.session):
        for repeat in range(size.blocks):
            block: dict[str, Answer] = {}
            for name in chance.sample(sorted(rows), len(rows)):
                step(f"{rows[name].label}, answers {repeat + 1}")
                if name in failed:
                    continue
                due_s = arrivals_s(rates_hz[name], size.paced_s, random.Random(f"{seed} {repeat} {rates_hz[name]}"))
                try:
                    for _ in range(size.retakes + 1):
                        block[name] = answer(rig, rows[name], size.idle_jobs, due_s, chance)
                        if not is_noisy(block[name]):
                            break
                except LabError as error:
                    failed[name] = str(error)
            blocks.append(block)
    return blocks, tuple(failed.values())


def answer(rig: Rig, peer: Peer, idle_jobs: int, due_s: Sequence[float], chance: random.Random) -> Answer:
    """One row, once. Raises LabError when its worker does not run."""
    paced_first = WARM_JOBS + idle_jobs
    with rig.place() as folder:
        marks = Marks(folder / "marks", paced_first + len(due_s))
        env = rig.env(peer, marks)
        with rig.workers(peer, env, folder) as workers, rig.producer(peer, env, folder) as producer:
            warm(producer, workers, marks)
            helpers = [*rig.session.helpers, *tree(producer.process)]
            begun = snapshot(rig, workers, helpers)
            time.sleep(STILL_S)  # to let time pass is the measurement
            still = snapshot(rig, workers, helpers)
            idle_s = idle(producer, marks, WARM_JOBS, idle_jobs, chance, LONGEST_GAP_S)
            order = {"do": "paced", "first": paced_first, "count": len(due_s), "due_s": list(due_s)}
            said = producer.ask(order, BOOT_TIMEOUT_S + 2 * due_s[-1])
            await_all(workers, marks, paced_first, len(due_s))
            ended = snapshot(rig, workers, helpers)
        started = marks.of(paced_first, len(due_s))["started_ns"]
        others_cores, steal_cores = strangers((begun, still), (still, ended))
        return Answer(
            idle_s=tuple(idle_s),
            half_s=tuple(float(at - due) / 1e9 for at, due in zip(started, said["due_ns"], strict=True) if at),
            still_hz=_commands_hz(begun, still),
            lag_s=tuple((sent - due) / 1e9 for sent, due in zip(said["sent_ns"], said["due_ns"], strict=True)),
            missing=len(due_s) - sum(1 for at in started if at) + idle_jobs - len(idle_s),
            others_cores=others_cores,
            steal_cores=steal_cores,
        )


def _commands_hz(before: Snapshot, after: Snapshot) -> float:
    """The broker's commands a second between two snapshots, without our own."""
    count = sum(after.commands.values()) - sum(before.commands.values()) - OWN_INFOS
    return max(0, count) / ((after.at_ns - before.at_ns) / 1e9)
