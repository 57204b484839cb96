"""No library: a loop over redis-py, the least that a queue in Python can do on this broker.

`python on_limit.py keep` moves each message to a list of its own (BLMOVE), runs it, and removes it there (LREM): at
least once, for what a dead worker held is still there and the next one puts it back. `python on_limit.py drop` takes
the message off the list (BRPOP) and runs it: at most once. Each pays a round trip or two for each message.

`python on_limit.py batch 0` takes up to a hundred messages in one round trip, which also acknowledges the hundred
before: at least once, since the next process of that number puts back what a dead one held, also what had ended. Two of
them are as near to the limit of two cores, this client and this broker as we know how to come.

One job at a time, a number for a message.
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


# Half of what waits at most: the other process has hands too.
TAKE = """
local some = redis.call('RPOP', KEYS[1], math.min(ARGV[1], math.max(1, math.ceil(redis.call('LLEN', KEYS[1]) / 2))))
if some then redis.call('LPUSH', KEYS[2], unpack(some)) end
return some
"""
TAKEN = 100


def batch(slot):
    """Work so that nothing is lost, many at a time."""
    held = f"{HELD}:{slot}"
    while client.lmove(held, QUEUE, "LEFT", "RIGHT"):
        pass
    take = client.script_load(TAKE)
    while True:
        with client.pipeline(transaction=False) as pipe:
            pipe.delete(held)  # what was taken last has been done
            pipe.evalsha(take, 2, QUEUE, held, TAKEN)
            _, messages = pipe.execute()
        if not messages and (message := client.blmove(QUEUE, held, WAIT_S, "RIGHT", "LEFT")):
            messages = [message]
        for message in messages or ():
            run(message)


def drop():
    """Work so that nothing is done twice."""
    while True:
        if popped := client.brpop(QUEUE, timeout=WAIT_S):
            run(popped[1])


if __name__ == "__main__":
    {"keep": keep, "drop": drop, "batch": batch}[sys.argv[1]](*sys.argv[2:])
