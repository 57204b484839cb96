"""The same jobs without a queue: in a loop, in threads, in processes or in interpreters of one fresh program.

Run as `python -m tasks.standalone` with one JSON object on standard input. It gets ready, prints one line, waits for a
line on standard input, does the jobs, leaves marks as a worker does, and prints when it sent each job.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import sys
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from tasks.jobs import JOBS
from tasks.timeline import Tape, cpu_ns, end, gil_enabled, now_ns, python_version


class _Serial(Executor):
    """A plain loop, spelled as an executor."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


EXECUTORS: dict[str, Callable[[int], Executor]] = {
    "serial": lambda workers: _Serial(),  # noqa: ARG005  a loop has one slot, whatever is asked
    "threads": concurrent.futures.ThreadPoolExecutor,
    "processes": concurrent.futures.ProcessPoolExecutor,
}
if hasattr(concurrent.futures, "InterpreterPoolExecutor"):  # Python 3.14 and later
    EXECUTORS["interpreters"] = concurrent.futures.InterpreterPoolExecutor  # type: ignore[attr-defined,unused-ignore]

_tapes: dict[str, Tape] = {}


def run_one(name: str, args: dict[str, Any], job_id: bytes, tape_dir: str) -> None:
    """Do one job where it stands and mark it; a job that raises is marked as failed."""
    if tape_dir not in _tapes:
        _tapes[tape_dir] = Tape(tape_dir, {})
    received_ns = now_ns()
    place = _tapes[tape_dir].begin(job_id, received_ns, received_ns)
    result, failed, cpu, started_ns = None, False, cpu_ns(), now_ns()
    try:
        result = JOBS[name].run(**args)
    except Exception:
        failed = True
    ended_ns, cpu = now_ns(), cpu_ns() - cpu
    end(
        place,
        job_id,
        received_ns=received_ns,
        started_ns=started_ns,
        ended_ns=ended_ns,
        cpu_ns=cpu,
        checksum=0 if failed else JOBS[name].seal(result),
        failed=failed,
    )


def _warm_up(executor: Executor, workers: int, job: tuple[str, dict[str, Any], bool], tape_dir: str) -> None:
    """Sleeping jobs fill every slot at once, so that each thread or process exists; then one real job a slot."""
    ids = [uuid.uuid4().bytes for _ in range(workers)]
    concurrent.futures.wait([executor.submit(run_one, "snooze", {"ms": 20}, i, tape_dir) for i in ids])
    for job_id in ids:
        executor.submit(run_one, job[0], job[1], job_id, tape_dir).result()


def main() -> None:
    """Follow the instructions on standard input; see the module's own words."""
    order = json.loads(sys.stdin.readline())
    if order.get("switch_interval_s") is not None:
        sys.setswitchinterval(order["switch_interval_s"])
    jobs, tape_dir, nonce = order["jobs"], order["tape_dir"], int(order["nonce"], 16) << 64
    with contextlib.ExitStack() as stack:
        executor = apart = stack.enter_context(EXECUTORS[order["executor"]](order["workers"]))
        _warm_up(executor, order["workers"], next(job for job in jobs if not job[2]), tape_dir)
        if order["apart"]:
            apart = stack.enter_context(EXECUTORS[order["apart"]](order["apart_workers"]))
            _warm_up(apart, order["apart_workers"], next(job for job in jobs if job[2]), tape_dir)
        print(json.dumps({"pid": os.getpid(), "gil_enabled": gil_enabled(), "python": python_version()}))
        sys.stdout.flush()
        sys.stdin.readline()
        start_ns, sent_ns, futures = now_ns(), [], []
        for seq, due_ns in enumerate(order["due_ns"]):
            if (early := start_ns + due_ns - now_ns()) > 0:
                time.sleep(early / 1e9)
            sent_ns.append(now_ns())
            name, args, beside = jobs[seq % len(jobs)]
            where = apart if beside else executor
            futures.append(where.submit(run_one, name, args, (nonce | seq).to_bytes(16, "big"), tape_dir))
        for future in futures:
            future.result()
        print(json.dumps({"start_ns": start_ns, "sent_ns": sent_ns}), flush=True)
        sys.stdin.readline()  # stay, so that memory and CPU time of the whole tree can still be read


if __name__ == "__main__":
    main()
