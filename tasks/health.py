"""Whether a part of the stack works, asked of the part itself: `python -m tasks.health worker | http URL | file PATH`.

A worker is asked through the broker, with a remote control command of our own: that it answers is the ping, and the
answer says whether its consumer asks the broker for jobs. Under eventlet and gevent remote control has a connection and
a greenlet of its own, so a worker may well answer and consume nothing.

A worker with the pool `solo` answers only between jobs: it is found dead during each that takes longer than the checks.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.settings import ENV_PREFIX, Settings, SettingsError, from_env

COMMAND = "sidestep_consumer"
"""The remote control command that a worker answers with `consumer_state`."""
WORKER_FILE = ENV_PREFIX + "WORKER_FILE"
"""Names the file in which a worker writes its name and process id when it is ready, and so who is to be asked."""
STALE_S = 20.0
"""kombu's BRPOP waits a second and is sent anew: a consumer that has sent none for so long sends none at all."""
ANSWER_S = 4.0
"""For each of two questions; the stack's checks end after 12 s."""
FIRM = 2
"""Failures between being asked to end and being ended."""


class Unwell(Exception):  # noqa: N818  it is about the part, not about us
    """A part does not work; the text says why in one line."""


class NotAsked(Unwell):
    """A part could not be asked, for a reason that a fresh one would not mend."""


# --- in the worker ---------------------------------------------------------------------------------------------------


def connect() -> None:
    """Let this process's worker answer the check, and say who it is in the file that SIDESTEP_WORKER_FILE names."""
    from celery import signals  # noqa: PLC0415  the check itself must start fast

    def init(**_: Any) -> None:
        from celery.worker.control import inspect_command  # noqa: PLC0415  only workers have one

        def answer(state: Any, **_: Any) -> dict[str, Any]:
            """Say what the consumer waits for."""
            return consumer_state(state.consumer)

        inspect_command(name=COMMAND)(answer)

    signals.worker_init.connect(init, weak=False)
    if not (name := os.environ.get(WORKER_FILE, "")):
        return

    def ready(sender: Any, **_: Any) -> None:
        made = Path(f"{name}.new")
        made.write_text(json.dumps({"node": sender.hostname, "pid": os.getpid()}))
        made.replace(name)  # whoever reads it meanwhile sees all of it or none

    signals.worker_ready.connect(ready, weak=False)


def consumer_state(consumer: Any) -> dict[str, Any]:
    """What a worker's consumer is doing, in plain values: see `fault_of`."""
    from celery.worker import state  # noqa: PLC0415  only workers have one

    receiving = consumer.task_consumer
    if receiving is None:  # it has just lost its connection
        return {"queues": [], "held": len(state.reserved_requests), "full": False, "asked_s_ago": None}
    channel = receiving.channel
    # Other brokers push jobs: there is nothing to ask, and the broker itself drops who no longer answers it.
    asks = hasattr(channel, "_brpop_sent_at")
    return {
        "queues": sorted(queue.name for queue in receiving.queues),
        "held": len(state.reserved_requests),
        "full": asks and not channel.qos.can_consume(),
        "asked_s_ago": time.monotonic() - (channel._brpop_sent_at or 0.0) if asks else None,
    }


def fault_of(answer: Mapping[str, Any]) -> str | None:
    """Why a worker whose consumer is in this state gets no jobs, or None when it gets them."""
    if not answer["queues"]:
        return "its consumer has no queue"
    if answer["full"]:
        return None if answer["held"] else "its consumer takes no more jobs although it has none"
    if (ago_s := answer["asked_s_ago"]) is not None and ago_s > STALE_S:
        return f"its consumer has not asked the broker for a job for over {STALE_S:g} s"
    return None


# --- the checks ------------------------------------------------------------------------------------------------------


def check_worker(settings: Settings, node: str, *, answer_s: float = ANSWER_S) -> dict[str, Any]:
    """Ask the worker of this name through the broker, at most twice, and return its answer.

    Raises NotAsked when the broker does not answer, Unwell when the worker does not, or gets no jobs.
    """
    import redis  # noqa: PLC0415  the other checks need none of these
    from kombu import exceptions as kombu  # noqa: PLC0415

    from tasks.app import make_app  # noqa: PLC0415

    app = make_app(settings, socket_timeout_s=answer_s)
    app.conf.broker_pool_limit = None  # else a connection would be left open, and RabbitMQ complains of those
    try:
        with app.connection_for_write() as connection:
            connection.ensure_connection(max_retries=1, timeout=3)
            # Asked twice, since a worker that has just started may not listen yet, and nobody keeps the question for it
            for _ in range(2):
                if answers := app.control.broadcast(
                    COMMAND, destination=[node], reply=True, timeout=answer_s, limit=1, connection=connection
                ):
                    break
    except (kombu.KombuError, OSError, redis.RedisError, kombu.ConnectionError, kombu.ChannelError) as error:
        raise NotAsked(f"the broker does not answer ({type(error).__name__})") from None
    finally:
        app.close()
    answer: Any = next((told[node] for told in answers or () if node in told), None)
    if answer is None:
        raise Unwell(f"{node} does not answer within {2 * answer_s:g} s")
    if not isinstance(answer, dict) or "queues" not in answer:
        raise Unwell(f"{node} does not know {COMMAND}; start it with `celery -A tasks.stack worker`")
    if why := fault_of(answer):
        raise Unwell(f"{node} answers, but {why}")
    return answer


def check_http(url: str, *, answer_s: float = ANSWER_S) -> None:
    """Raises Unwell unless the server answers 200."""
    try:
        with urllib.request.urlopen(url, timeout=answer_s) as answer:  # noqa: S310  the address is in compose.yaml
            if answer.status != http.client.OK:
                raise Unwell(f"{url} answers {answer.status}")
    except urllib.error.HTTPError as error:
        raise Unwell(f"{url} answers {error.code}") from None
    except (OSError, http.client.HTTPException) as error:
        raise Unwell(f"{url} does not answer ({type(error).__name__})") from None


def check_file(path: Path, *, within_s: float) -> None:
    """Raises Unwell unless somebody has touched the file lately."""
    try:
        age_s = time.time() - path.stat().st_mtime
    except OSError:
        raise Unwell(f"{path} is not there yet") from None
    if age_s > within_s:
        raise Unwell(f"nothing has happened for {age_s:.0f} s")


# --- a fresh one -----------------------------------------------------------------------------------------------------


def end_after(failures: int, count: Path, pid: int, *, kill: Any = os.kill) -> str:
    """Count one more failure; from the given number on end the worker, so that its restart gives us a fresh one.

    It is asked to end first, for its running jobs' sake. Returns what was done, to be added to the reason.
    """
    try:
        failed = int(count.read_text()) + 1
    except (OSError, ValueError):
        failed = 1
    count.write_text(str(failed))
    if failed < failures:
        return f" ({failed} of {failures} times in a row)"
    firm = failed >= failures + FIRM
    with contextlib.suppress(ProcessLookupError):
        kill(pid, signal.SIGKILL if firm else signal.SIGTERM)
    return "; it was ended" if firm else "; it was asked to end"


def worker(*, failures: int | None) -> str:
    """Check the worker of this container; with `failures` also end it after so many in a row, see `end_after`."""
    name = os.environ.get(WORKER_FILE, "")
    if not name:
        raise NotAsked(f"set {WORKER_FILE} to the file in which the worker says who it is")
    try:
        about = json.loads(Path(name).read_text())
    except (OSError, ValueError):
        raise NotAsked("the worker is not ready yet") from None
    count = Path(f"{name}.failures")
    try:
        answer = check_worker(from_env(), about["node"])
    except NotAsked:
        raise
    except Unwell as why:
        if failures is None:
            raise
        raise Unwell(f"{why}{end_after(failures, count, about['pid'])}") from None
    count.unlink(missing_ok=True)
    return f"{about['node']} consumes {', '.join(answer['queues'])} and holds {answer['held']} jobs"


def main() -> None:
    """Check what the arguments say: exit 0 when it works, else 1 with one line that says why."""
    parser = argparse.ArgumentParser(prog="python -m tasks.health", description="Whether a part of the stack works.")
    kinds = parser.add_subparsers(dest="kind", required=True)
    of_worker = kinds.add_parser("worker", help="the worker of this container")
    of_worker.add_argument("--end-after", type=int, help="end it after so many failures in a row")
    kinds.add_parser("http", help="a server answers 200").add_argument("url")
    of_file = kinds.add_parser("file", help="somebody touches a file")
    of_file.add_argument("path", type=Path)
    of_file.add_argument("--within-s", type=float, default=30.0)
    options = parser.parse_args()
    try:
        said = "it works"
        if options.kind == "worker":
            said = worker(failures=options.end_after)
        elif options.kind == "http":
            check_http(options.url)
        else:
            check_file(options.path, within_s=options.within_s)
    except (Unwell, SettingsError) as why:
        print(why)
        sys.exit(1)
    print(said)


if __name__ == "__main__":
    main()
