"""The command `sidestep bench profile`: what a worker pays for a job that does nothing, by whose code it is."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Column, Table

from lab import profiling
from lab.model import BadInput, Estimate
from lab.profiling import NAMES, RATE_HZ, Bill
from lab.report.units import NONE, number, plural, sure
from lab.session import open_session
from tasks.knobs import PRESETS
from tasks.pools import POOLS

SCHEMA = 1
JOBS_DEFAULT, REPEATS_DEFAULT = 2000, 5
WIDE = 120


@click.command("profile")
@click.option(
    "--pool",
    "pools",
    type=click.Choice(list(POOLS)),
    multiple=True,
    default=("solo", "threads"),
    show_default=True,
    help="A pool; may be given again.",
)
@click.option(
    "--preset", type=click.Choice(list(PRESETS)), default="default", show_default=True, help="Of the workers."
)
@click.option(
    "--jobs", type=click.IntRange(100, 100_000), default=JOBS_DEFAULT, show_default=True, help="Jobs in a repeat."
)
@click.option(
    "--repeats", type=click.IntRange(3, 100), default=REPEATS_DEFAULT, show_default=True, help="Fresh workers of each."
)
@click.option(
    "--broker", envvar="SIDESTEP_BROKER", help="URL of a Redis or Valkey [default: a private embedded server]."
)
@click.option("--force", is_flag=True, help="Use the broker's database although it holds keys of others.")
@click.option("--json", "want_json", is_flag=True, help="One JSON object on stdout; all else on stderr.")
def profile(
    pools: tuple[str, ...], preset: str, jobs: int, repeats: int, broker: str | None, force: bool, want_json: bool
) -> None:
    """Where a worker's CPU time goes while it drains jobs that do nothing; needs py-spy."""
    human = Console(stderr=want_json, highlight=False, markup=False)
    if not human.is_terminal:
        human = Console(stderr=want_json, highlight=False, markup=False, width=WIDE)
    pools = tuple(dict.fromkeys(pools))
    if missing := next((why for pool in pools if (why := POOLS[pool].missing)), None):
        raise BadInput(missing)
    profiling.py_spy()  # one clear line before anything starts
    with open_session(broker, force=force) as session:
        with human.status("profiling"):  # on a terminal only
            bills = profiling.measure(session, pools, jobs=jobs, repeats=repeats, knobs=PRESETS[preset].knobs)
        where = session.broker.shown
    if want_json:
        print(json.dumps(as_json(bills, preset), allow_nan=False))
    human.print(_table(bills))
    least = min(found.samples for bill in bills for found in bill.profiles)
    human.print(
        f"Preset {preset}, {plural(repeats, 'fresh worker')} of each pool on {where}, {jobs} jobs each: means and 95 % "
        "intervals over workers, per cent of the CPU time of the worker's process tree. The kernel's part is its "
        f"system time; user time is shared out by {RATE_HZ} looks a second of py-spy at the thread that has the GIL, "
        f"{least} or more with one for each worker. A look counts for the innermost frame of a package that is listed: "
        "what the standard library does is whoever's who called it. Being looked at is part of it."
    )


def as_json(bills: Sequence[Bill], preset: str) -> dict[str, Any]:
    """What --json prints."""
    return {
        "schema": SCHEMA,
        "preset": preset,
        "pools": {
            bill.pool: {
                "cpu_s_per_job": _estimate(bill.cpu),
                "samples": [found.samples for found in bill.profiles],
                "owners": {
                    name: {
                        "share": _estimate(bill.share(name)),
                        "inclusive_share": _estimate(bill.inclusive(name)),
                        "cpu_s_per_job": _estimate(bill.seconds(name)),
                    }
                    for name in NAMES
                },
            }
            for bill in bills
        },
    }


def _estimate(estimate: Estimate | None) -> dict[str, float] | None:
    """At least two repeats are asked for, so no bound is endless."""
    if estimate is None:
        return None
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": estimate.n}


def _table(bills: Sequence[Bill]) -> Table:
    table = Table(Column("whose code", no_wrap=True), box=None, pad_edge=False)
    for bill in bills:
        table.add_column(f"{bill.pool}, %", justify="right", no_wrap=True)
        table.add_column("µs a job", justify="right", no_wrap=True)
    shown = [name for name in NAMES if any(share.value for bill in bills if (share := bill.share(name)))]

    def weight(name: str) -> float:
        return sum(share.value for bill in bills if (share := bill.share(name)))

    for name in sorted(shown, key=weight, reverse=True):
        table.add_row(
            name, *(cell for bill in bills for cell in (sure(bill.share(name), 100), _us(bill.seconds(name))))
        )
    table.add_row("all", *(cell for bill in bills for cell in ("100", _us(bill.cpu))))
    return table


def _us(estimate: Estimate | None) -> str:
    return number(estimate.value * 1e6) if estimate else NONE
