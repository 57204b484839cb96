"""No library: a loop over redis-py, the least that a queue in Python can do on this broker.

`python on_limit.py keep` moves each message to a list of its own (BLMOVE), runs it, and removes it there (LREM): at
least once, for what a dead worker held is still there and the next one puts it back. `python on_limit.py drop` takes
the message off the list (BRPOP) and runs it: at most once. One process, one job at a time, a number for a message.
"""

import os
import sys

import marks
import naps
from redis import Redis

BATCH = 1000
QUEUE, HELD = "limit:queue", "limit:held"
WAIT_S = 1  # well below redis-py's own timeout of a socket

client = Redis.from_url(os.environ["BENCH_BROKER"])


def one(numbers):
    """One LPUSH after another."""
    for number in numbers:
        client.lpush(QUEUE, b"%d" % number)


def nap(numbers, seconds):
    """Jobs that wait."""
    for number in numbers:
        client.lpush(QUEUE, b"%d %f" % (number, seconds))


def bulk(numbers):
    """One LPUSH of a thousand values after another."""
    for at in range(0, len(numbers), BATCH):
        client.lpush(QUEUE, *(b"%d" % number for number in numbers[at : at + BATCH]))


def run(message):
    """What the message asks for."""
    number, _, seconds = message.partition(b" ")
    if seconds:
        naps.sleep(int(number), float(seconds))
    else:
        marks.both(int(number))


def keep():
    """Work so that nothing is lost."""
    while client.lmove(HELD, QUEUE, "LEFT", "RIGHT"):
        pass
    while True:
        if message := client.blmove(QUEUE, HELD, WAIT_S, "RIGHT", "LEFT"):
            run(message)
            client.lrem(HELD, 1, message)


def drop():
    """Work so that nothing is done twice."""
    while True:
        if popped := client.brpop(QUEUE, timeout=WAIT_S):
            run(popped[1])


if __name__ == "__main__":
    {"keep": keep, "drop": drop}[sys.argv[1]]()
