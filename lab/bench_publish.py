"""The command `sidestep bench publish`: how fast jobs can be handed to the broker, by every way there is."""

from __future__ import annotations

import json
import math
from typing import Any

import click
from rich.console import Console
from rich.table import Column, Table

from lab import publishing
from lab.model import Estimate
from lab.publishing import JOBS_DEFAULT, RATIOS, REPEATS_DEFAULT, WAYS, Published
from lab.report.units import number, sure
from lab.session import open_session

SCHEMA = 1


@click.command("publish")
@click.option(
    "--jobs",
    type=click.IntRange(1, 200_000),
    default=JOBS_DEFAULT,
    show_default=True,
    help="Messages a block of the fastest; slower ways send a part of it.",
)
@click.option(
    "--repeats", type=click.IntRange(2, 1000), default=REPEATS_DEFAULT, show_default=True, help="Blocks to measure."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order within each block.")
@click.option(
    "--broker", envvar="SIDESTEP_BROKER", help="URL of a Redis or Valkey [default: a private embedded server]."
)
@click.option("--force", is_flag=True, help="Use the broker's database although it holds keys of others.")
@click.option("--json", "want_json", is_flag=True, help="One JSON object on stdout; all else on stderr.")
def publish(jobs: int, repeats: int, seed: int, broker: str | None, force: bool, want_json: bool) -> None:
    """How many jobs a second can be published: each way beside `delay()`, in shuffled blocks of one run."""
    human = Console(stderr=want_json, highlight=False, markup=False)
    with open_session(broker, force=force) as session:
        with human.status("publishing"):  # on a terminal only
            published = publishing.measure(session, jobs=jobs, repeats=repeats, seed=seed)
        where = session.broker.shown
    if want_json:
        print(json.dumps(as_json(published), allow_nan=False))
    human.print(_table(published))
    human.print(
        f"{WAYS['fast'].label} also has many messages in one LPUSH, which the limit has not. Like with like, it is "
        f"{sure(published.ratio('fast', 'ceiling'))} times {WAYS['ceiling'].label} made before."
    )
    human.print("What each gives up, against the one above it:")
    for way in WAYS.values():
        if way.gives_up:
            human.print(f"  {way.label}: {way.gives_up}")
    counts = published.counts.values()
    human.print(
        f"{repeats} blocks on {where}, one process, no results kept: geometric means, 95 % intervals over blocks. "
        f"A block is {min(counts)} messages of the slowest way to {max(counts)} of the quickest, each with an id and "
        "an argument of its own. The queue was counted after every turn: it held what was sent. The limit "
        "is redis-py's pipeline of messages made before, one LPUSH each."
    )


def as_json(published: Published) -> dict[str, Any]:
    """What --json prints; an endless bound is null, since JSON has no infinity."""
    estimates = {f"{one}/{other}": published.ratio(one, other) for one, other in RATIOS}
    rates = {name: published.rate_hz(name) for name in WAYS}
    return {
        "schema": SCHEMA,
        "ratios": {name: e.value for name, e in estimates.items() if e},
        "intervals": {name: _interval(e) for name, e in estimates.items() if e},
        "rates_hz": {name: e.value for name, e in rates.items() if e},
        "rate_intervals_hz": {name: _interval(e) for name, e in rates.items() if e},
        "messages": dict(published.counts),
        "blocks": min(map(len, published.rates_hz.values())),
    }


def _interval(estimate: Estimate) -> list[float | None]:
    return [bound if math.isfinite(bound) else None for bound in (estimate.low, estimate.high)]


def _table(published: Published) -> Table:
    table = Table(
        Column("way", no_wrap=True),
        Column("a second", justify="right", no_wrap=True),
        Column("times delay()", justify="right", no_wrap=True),
        Column("times the limit", justify="right", no_wrap=True),
        box=None,
        pad_edge=False,
    )
    for way in WAYS.values():
        rate, limit = published.rate_hz(way.name), published.ratio(way.name, "limit")
        table.add_row(
            way.label,
            number(rate.value) if rate else "",
            "1" if way.name == "delay" else sure(published.ratio(way.name, "delay")),
            "1" if way.name == "limit" else sure(limit),
        )
    return table
