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
from lab.answer_trials import measure_answers
from lab.answers import FIGURES, Answers, AnswerSize, answer_faults, answer_ratios, as_json, figure, half_rates_hz
from lab.bench_peers import CELL_COLUMNS, DONE, INVALID, PIPED_COLUMNS, Steps
from lab.children import ROOT
from lab.drains import FASTEST, GREEN, OURS, PATH, POOLS, RATIOS, RIVALS, ROWS, STOCK, best_peer, commands, ratios
from lab.model import BadInput
from lab.peer_trials import measure, open_rig
from lab.peers import Compared, Peer, Size
from lab.progress import TrialProgress, spell
from lab.report.units import number, plural, sure
from lab.session import open_session

FULL, QUICK = Size(repeats=5, idle_jobs=0, kills=0), Size(repeats=2, share=0.25, idle_jobs=0, retakes=0, kills=0)
FULL_ANSWERS, QUICK_ANSWERS = AnswerSize(5, idle_jobs=60, paced_s=3), AnswerSize(2, idle_jobs=20, paced_s=1, retakes=0)


@click.command("drain")
@click.option("--quick", is_flag=True, help="Two blocks of few jobs: wide intervals.")
@click.option(
    "--repeats",
    type=click.IntRange(2, 1000),
    help=f"Blocks to measure [default: {FULL.repeats}, quick {QUICK.repeats}].",
)
@click.option("--peers/--no-peers", default=True, show_default=True, help="Also Dramatiq, RQ, Huey, arq, Taskiq, mayu.")
@click.option(
    "--answers/--no-answers",
    default=True,
    show_default=True,
    help="Also how soon each transport answers when idle and at half load, and what it asks for with nothing to do.",
)
@click.option(
    "--python", type=click.Path(), help="For rows that need a newer Python than this one [default: one on PATH]."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order within each block.")
@click.option("--json", "want_json", is_flag=True, help="One JSON object on stdout; all else on stderr.")
def drain(
    quick: bool, repeats: int | None, peers: bool, answers: bool, python: str | None, seed: int, want_json: bool
) -> None:
    """No-op jobs done a second with Sidestep's transport and with kombu's own, at least once on both sides.

    Every pool on either transport, the green ones with 500 slots and jobs of 50 ms, two supervised processes, and
    Celery's peers, on one broker in shuffled blocks of one run; then how soon either transport answers.
    """
    if not (ROOT / PATH).is_dir():
        raise BadInput(f"the transport lies in {PATH} of a checkout, which is not installed; run it from a checkout")
    rows = [row for row in ROWS.values() if peers or row.name not in RIVALS]
    size = replace(QUICK if quick else FULL, repeats=repeats or (QUICK if quick else FULL).repeats)
    answer_size = replace(QUICK_ANSWERS if quick else FULL_ANSWERS, blocks=size.repeats)
    answering = (
        {f"{side}-{pool}": ROWS[f"{side}-{pool}"] for pool in POOLS for side in (STOCK, OURS)} if answers else {}
    )
    human = Console(stderr=want_json, highlight=False, markup=False)
    notes = human if human.is_terminal else Console(stderr=True, highlight=False, markup=False)
    with open_session() as session:
        rig, left_out = open_rig(
            session, rows, newer=python, say=lambda words: notes.print(words, style="dim", soft_wrap=True)
        )
        rows = [row for row in rows if row.name not in left_out]
        expected_s = size.expected_s(rows) + answer_size.expected_s(len(answering))
        notes.print(
            f"{plural(len(rows), 'row')}, {plural(size.repeats, 'block')}, about {spell(expected_s)}", style="dim"
        )
        count = (len(rows) + len(answering)) * size.repeats
        with TrialProgress(notes) as progress:
            progress.plan(expected_s)
            step = Steps(progress, expected_s / count, None if notes.is_terminal else notes, count)
            compared = measure(rig, rows, size, seed=seed, left_out=left_out, fill="bulk", step=step)
            # What did not drain has no half load.
            rates_hz = half_rates_hz(compared)
            answered, failed = measure_answers(
                rig,
                {name: row for name, row in answering.items() if name in rates_hz},
                rates_hz,
                answer_size,
                seed=seed,
                step=lambda words: step(words, size),
            )
        compared = replace(compared, faults=(*compared.faults, *failed, *answer_faults(answered)))
        server = brokers.version(session.client)
    if want_json:
        machine = environment.fingerprint()
        shown = {name: machine[name] for name in ("cpu", "cores", "virtual", "kernel", "python")}
        print(
            json.dumps(
                {**as_json(compared, answered), "broker": server, "machine": shown, "seed": seed}, allow_nan=False
            )
        )
    if not human.is_terminal:
        human = Console(stderr=want_json, highlight=False, markup=False, width=PIPED_COLUMNS)
    for part in parts(compared, answered, server):
        human.print(part)
    sys.exit(INVALID if compared.faults else DONE)


def parts(compared: Compared, answers: Answers, server: str) -> Iterator[object]:
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
    if any(answers):
        yield "How soon a job starts, from the call that sends it or, at half load, from when it was due:"
        yield figures(answers)
        yield ""
        yield over_stock(answers)
        yield ""
    yield (
        "Both transports: acknowledged late, prefetch 64, no results, else Celery's defaults. processes is "
        "`--pool processes -c 2`. Half load is half of what stock drains on that pool. "
        f"{plural(len(compared.blocks), 'block')} on {server}, "
        f"{plural(compared.retakes, 'trial')} taken again; geometric means, 95 % intervals over blocks."
    )
    for name, why in compared.left_out.items():
        yield f"left out: {name}: {why}"
    for why in compared.faults:
        yield f"INVALID: {why}"


def _row(compared: Compared, name: str) -> Peer:
    return compared.rows[name]


def _table(words: Iterator[str] | tuple[str, ...], *first: str) -> Table:
    numbers = (Column(one, justify="right", overflow="fold", min_width=CELL_COLUMNS) for one in words)
    return Table(*map(Column, first), *numbers, box=None, pad_edge=False)


def figures(answers: Answers) -> Table:
    """What each row answers with."""
    table = _table(tuple(row.label for row in FIGURES.values()), "")
    for name in ROWS:
        if any(name in block for block in answers):
            cells = ((row, figure(answers, key, name)) for key, row in FIGURES.items())
            table.add_row(ROWS[name].label, *(sure(estimate, row.scale) for row, estimate in cells))
    return table


def over_stock(answers: Answers) -> Table:
    """The same over stock with the same pool."""
    found = answer_ratios(answers)
    shown = [name for name in FIGURES if any(key.startswith(f"{name}/") for key in found)]
    table = _table(tuple(FIGURES[name].label.removesuffix(" ms") for name in shown), "Sidestep transport over stock")
    for pool in POOLS:
        table.add_row(pool, *(sure(found.get(f"{name}/{pool}")) for name in shown))
    return table


def rates(compared: Compared) -> Table:
    """The figures themselves, Celery's rows over stock with the same pool."""
    table = _table(("done a second", "over stock", "commands a job"), "", "a killed worker's job runs")
    for name in compared.names:
        row, cost = _row(compared, name), commands(compared, name)
        side, _, pool = name.partition("-")
        alike = pool in GREEN or (side == OURS and (pool in POOLS or pool == "processes"))
        same = f"{STOCK}-{pool if alike else 'prefork'}"
        over = "1" if name == same else sure(compared.ratio("drain", name, same))
        table.add_row(
            row.label,
            str(row.promise),
            sure(compared.level("drain", name)),
            over if side == OURS else f"{over} (prefork)" if name != same else over,
            number(cost.value) if cost else "",
        )
    return table
