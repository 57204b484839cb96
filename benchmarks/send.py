"""The producer of one library: reads orders from standard input, carries them out, and answers each with one line.

Run as `python send.py MODULE PACKAGE...` in the library's own environment. MODULE is one of the `on_*` here; it offers
`one(numbers)`, which sends a no-op job for each number by the library's documented way, `nap(numbers, seconds)`, which
sends jobs that sleep, and, where the library has a way to send many at once, `bulk(numbers)` and `many_naps(numbers,
seconds)`. They may be coroutine functions: one event loop lives as long as the producer. The first line said is the
versions of the packages named.

An order is a JSON object: `{"do": "one", "first": 0, "count": 100}`, also `bulk`, `nap` and `many_naps` (with
`seconds`), `idle`, which sends one job at a time, each `gaps_s[i]` after the one before it has started, and answers
when each was sent, and `paced`, which sends job after job when it is due, `due_s[i]` after the first moment, and
answers when that was.
"""

import asyncio
import importlib
import importlib.metadata
import inspect
import json
import platform
import sys
import time

import marks

LOOK_S = 0.0005
"""Between two looks for a job's mark. The mark holds the time, so looking seldom costs no accuracy."""
PATIENCE_S = 30.0


def main() -> None:
    """Serve orders until standard input ends."""
    module = importlib.import_module(sys.argv[1])
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)

    def call(name, *args):
        function = getattr(module, name)
        if inspect.iscoroutinefunction(function):
            loop.run_until_complete(function(*args))
        else:
            function(*args)

    if hasattr(module, "connect"):
        call("connect")
    versions = {package: importlib.metadata.version(package) for package in sys.argv[2:]}
    say({"versions": {"python": platform.python_version(), **versions}})
    for line in sys.stdin:
        order = json.loads(line)
        first, count = order["first"], order["count"]
        if order["do"] == "idle":
            say({"sent_ns": idle(call, first, order["gaps_s"])})
            continue
        if order["do"] == "paced":
            say(paced(call, first, order["due_s"]))
            continue
        extra = (order["seconds"],) if order["do"] in {"nap", "many_naps"} else ()
        cpu_s, begun = time.process_time(), time.perf_counter()
        call(order["do"], range(first, first + count), *extra)
        say({"took_s": time.perf_counter() - begun, "cpu_s": time.process_time() - cpu_s})


def idle(call, first, gaps_s):
    """Send job after job to a worker that has nothing to do; returns when each `send` began, in ns."""
    sent_ns = []
    for number, gap_s in enumerate(gaps_s, first):
        time.sleep(gap_s)
        sent_ns.append(time.monotonic_ns())
        call("one", range(number, number + 1))
        deadline = time.monotonic() + PATIENCE_S
        while not marks.starts(number):
            if time.monotonic() > deadline:
                return sent_ns  # the reader sees that a mark is missing
            time.sleep(LOOK_S)
    return sent_ns


def paced(call, first, due_s):
    """Send each job when it is due, whatever the workers do; says when that was, and when `send` was called, in ns."""
    begun_ns = time.monotonic_ns()
    due_ns, sent_ns = [begun_ns + round(due * 1e9) for due in due_s], []
    for number, due in enumerate(due_ns, first):
        while (left_ns := due - time.monotonic_ns()) > 0:
            time.sleep(left_ns / 1e9)
        sent_ns.append(time.monotonic_ns())
        call("one", range(number, number + 1))
    return {"due_ns": due_ns, "sent_ns": sent_ns}


def say(answer) -> None:
    """One line on standard output."""
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
