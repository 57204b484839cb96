"""The command `sidestep bench drain`: Sidestep's transport beside kombu's own, and beside Celery's peers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace

import click
from rich.console import Console
from rich.table import Column, Table

from lab import broker as brokers
from lab import environment
from lab.bench_peers import CELL_COLUMNS, DONE, INVALID, PIPED_COLUMNS, Steps
from lab.children import ROOT
from lab.drains import FASTEST, OURS, PATH, POOLS, RATIOS, RIVALS, ROWS, STOCK, as_json, best_peer, commands, ratios
from lab.model import BadInput
from lab.peer_trials import measure, open_rig
from lab.peers import Compared, Peer, Size
from lab.progress import TrialProgress, spell
from lab.report.units import number, plural, sure
from lab.session import open_session

FULL, QUICK = Size(repeats=5, idle_jobs=0, kills=0), Size(repeats=2, share=0.25, idle_jobs=0, retakes=0, kills=0)


@click.command("drain")
@click.option("--quick", is_flag=True, help="Two blocks of few jobs: wide intervals.")
@click.option(
    "--repeats",
    type=click.IntRange(2, 1000),
    help=f"Blocks to measure [default: {FULL.repeats}, quick {QUICK.repeats}].",
)
@click.option("--peers/--no-peers", default=True, show_default=True, help="Also Dramatiq, RQ, Huey, arq, Taskiq, mayu.")
@click.option(
    "--python", type=click.Path(), help="For rows that need a newer Python than this one [default: one on PATH]."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order within each block.")
@click.option("--json", "want_json", is_flag=True, help="One JSON object on stdout; all else on stderr.")
def drain(quick: bool, repeats: int | None, peers: bool, python: str | None, seed: int, want_json: bool) -> None:
    """No-op jobs done a second with Sidestep's transport and with kombu's own, at least once on both sides.

    Every pool on either transport, two supervised processes, and Celery's peers, on one broker in shuffled blocks of
    one run.
    """
    if not (ROOT / PATH).is_dir():
        raise BadInput(f"the transport lies in {PATH} of a checkout, which is not installed; run it from a checkout")
    rows = [row for row in ROWS.values() if peers or row.name not in RIVALS]
    size = replace(QUICK if quick else FULL, repeats=repeats or (QUICK if quick else FULL).repeats)
    human = Console(stderr=want_json, highlight=False, markup=False)
    notes = human if human.is_terminal else Console(stderr=True, highlight=False, markup=False)
    with open_session() as session:
        rig, left_out = open_rig(
            session, rows, newer=python, say=lambda words: notes.print(words, style="dim", soft_wrap=True)
        )
        rows = [row for row in rows if row.name not in left_out]
        expected_s = size.expected_s(rows)
        notes.print(
            f"{plural(len(rows), 'row')}, {plural(size.repeats, 'block')}, about {spell(expected_s)}", style="dim"
        )
        count = len(rows) * size.repeats
        with TrialProgress(notes) as progress:
            progress.plan(expected_s)
            step = Steps(progress, expected_s / count, None if notes.is_terminal else notes, count)
            compared = measure(rig, rows, size, seed=seed, left_out=left_out, fill="bulk", step=step)
        server = brokers.version(session.client)
    if want_json:
        machine = environment.fingerprint()
        shown = {name: machine[name] for name in ("cpu", "cores", "virtual", "kernel", "python")}
        print(json.dumps({**as_json(compared), "broker": server, "machine": shown, "seed": seed}, allow_nan=False))
    if not human.is_terminal:
        human = Console(stderr=want_json, highlight=False, markup=False, width=PIPED_COLUMNS)
    for part in parts(compared, server):
        human.print(part)
    sys.exit(INVALID if compared.faults else DONE)


def parts(compared: Compared, server: str) -> Iterator[object]:
    """What a person reads."""
    yield ""
    yield rates(compared)
    yield ""
    for name, estimate in ratios(compared).items():
        if name in RATIOS:
            one, other = RATIOS[name]
            yield f"{_row(compared, one).label} over {_row(compared, other).label}: {sure(estimate)}"
        elif name == "best-peer":
            best = _row(compared, best_peer(compared) or "")
            fastest = _row(compared, FASTEST).label
            yield f"{fastest} over the quickest peer, {best.label}, {best.promise}: {sure(estimate)}"
        else:
            yield f"Redis commands a job, drained with {_row(compared, FASTEST).label}: {sure(estimate)}"
    yield ""
    yield (
        "Both transports: acknowledged late, prefetch 64, no results, else Celery's defaults. processes is "
        f"`--pool processes -c 2`. {plural(len(compared.blocks), 'block')} on {server}, "
        f"{plural(compared.retakes, 'trial')} taken again; geometric means, 95 % intervals over blocks."
    )
    for name, why in compared.left_out.items():
        yield f"left out: {name}: {why}"
    for why in compared.faults:
        yield f"INVALID: {why}"


def _row(compared: Compared, name: str) -> Peer:
    return compared.rows[name]


def rates(compared: Compared) -> Table:
    """The figures themselves, Celery's rows over stock with the same pool."""
    table = Table(
        Column(""),
        Column("a killed worker's job runs"),
        *(
            Column(words, justify="right", overflow="fold", min_width=CELL_COLUMNS)
            for words in ("done a second", "over stock", "commands a job")
        ),
        box=None,
        pad_edge=False,
    )
    for name in compared.names:
        row, cost = _row(compared, name), commands(compared, name)
        side, _, pool = name.partition("-")
        same = f"{STOCK}-{pool if side == OURS and (pool in POOLS or pool == 'processes') else 'prefork'}"
        over = "1" if name == same else sure(compared.ratio("drain", name, same))
        table.add_row(
            row.label,
            str(row.promise),
            sure(compared.level("drain", name)),
            over if side == OURS else f"{over} (prefork)" if name != same else over,
            number(cost.value) if cost else "",
        )
    return table
