"""Cuts every connection of the workers to Redis, again and again: they are to come back and lose nothing new."""

import argparse
import signal
import sys
import time
from pathlib import Path

import redis

from tasks.logs import line
from tasks.settings import SettingsError, broker_url


def main() -> None:
    """Cut until stopped."""
    parser = argparse.ArgumentParser(description="Cuts the workers' connections to Redis.")
    parser.add_argument("--every", type=float, default=30.0, metavar="SECONDS")
    parser.add_argument("--beat", type=Path, metavar="FILE", help="touched at the start and after each cut")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        client = redis.Redis.from_url(broker_url())
        while True:
            if options.beat:
                options.beat.touch()
            time.sleep(options.every)
            cut = client.execute_command("CLIENT", "KILL", "USER", "worker", "SKIPME", "yes")
            print(line(f"cut {cut} connections of the workers", cut=cut), flush=True)
    except (redis.RedisError, SettingsError) as error:
        print(line(str(error), level="error"), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(0)


if __name__ == "__main__":
    main()
