"""Says once a second what a queue holds and what was counted, a line of JSON each: what the scale demo looks at."""

import argparse
import json
import signal
import sys
import time

import redis

from lab.exporter import ALIVE_S, Snapshot, read
from tasks.logs import line
from tasks.metrics import BUCKETS_S, open_client
from tasks.settings import SettingsError, from_env


def seen(snapshot: Snapshot, queue: str) -> dict[str, object]:
    """What the snapshot says of one queue. Pure."""
    issued = done = failed = 0
    waits, lags = [0] * (len(BUCKETS_S) + 1), [0] * (len(BUCKETS_S) + 1)
    for (kind, *rest), amount in snapshot.counts.items():
        if not rest or rest[0] != queue:
            continue
        if kind == "issued":
            issued += amount
        elif kind == "ended":
            done, failed = (done + amount, failed) if rest[-1] == "done" else (done, failed + amount)
        elif kind in {"wait", "lag"}:
            (waits if kind == "wait" else lags)[int(rest[-1])] += amount
    serving = [who for who in snapshot.workers.values() if queue in who.queues and who.silent_s <= ALIVE_S]
    return {
        "at_s": snapshot.now_s,
        "issued": issued,
        "done": done,
        "failed": failed,
        "depth": snapshot.depths.get(queue, 0),
        "unacked": snapshot.unacked,
        "workers": len(serving),
        "waits": waits,
        "lags": lags,
    }


def main() -> None:
    """Look until stopped; while Redis does not answer nothing is printed."""
    parser = argparse.ArgumentParser(description="Prints what a queue holds and what was counted, again and again.")
    parser.add_argument("--queue", default="cpu")
    parser.add_argument("--every", type=float, default=1.0, metavar="SECONDS")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        settings = from_env()
        client = open_client(settings, decode_responses=True, encoding_errors="replace")
        begun_s, number = time.monotonic(), 0
        while True:
            try:
                print(json.dumps(seen(read(client, settings.key_prefix, [options.queue]), options.queue)), flush=True)
            except (redis.ConnectionError, redis.TimeoutError):
                print(line("Redis does not answer", level="warning"), file=sys.stderr, flush=True)
            number += 1
            # Multiply, never add up: the hundredth look is as punctual as the first.
            time.sleep(max(0.0, begun_s + number * options.every - time.monotonic()))
    except (redis.RedisError, SettingsError) as error:
        print(line(str(error), level="error"), file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, BrokenPipeError):
        sys.exit(0)


if __name__ == "__main__":
    main()
