"""mayu: `mayu worker on_mayu:app`."""

import os

import marks
import naps
from mayu import App

app = App(broker=os.environ["BENCH_BROKER"])


@app.task
def noop(number):
    """Nothing."""
    marks.both(number)


@app.task
def sleep(number, seconds):
    """Wait."""
    naps.sleep(number, seconds)


def one(numbers):
    """One `delay()` after another."""
    for number in numbers:
        noop.delay(number)


def nap(numbers, seconds):
    """Jobs that wait."""
    for number in numbers:
        sleep.delay(number, seconds)
