"""The command `sidestep bench peers`: Celery beside Dramatiq, RQ, Huey, arq, Taskiq and no library at all."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace

import click
from rich.console import Console
from rich.padding import Padding
from rich.table import Column, Table

from lab import broker as brokers
from lab import environment
from lab.model import BadInput
from lab.peer_trials import KILL_JOB_S, KILL_JOBS, RECOVER_S, measure, open_rig
from lab.peers import (
    BASE,
    EQUALS,
    FULL,
    MEASURES,
    OURS,
    PEERS,
    QUICK,
    Compared,
    Peer,
    Promise,
    Size,
    Standing,
    as_json,
    standings,
)
from lab.progress import TrialProgress, spell
from lab.report.units import NONE, number, plural, sure
from lab.session import open_session

DONE, INVALID = 0, 3
PIPED_COLUMNS = 132
CELL_COLUMNS = 10


@click.command("peers")
@click.option("--only", multiple=True, metavar="NAME", help=f"{', '.join(PEERS)} [default: all]; {BASE} is always in.")
@click.option("--quick", is_flag=True, help="Two blocks of few jobs, no kills: wide intervals.")
@click.option(
    "--repeats",
    type=click.IntRange(2, 1000),
    help=f"Blocks to measure [default: {FULL.repeats}, quick {QUICK.repeats}].",
)
@click.option(
    "--python", type=click.Path(), help="For rows that need a newer Python than this one [default: one on PATH]."
)
@click.option(
    "--kills",
    type=click.IntRange(0, 100),
    help=f"How often to kill the workers of each [default: {FULL.kills}, quick {QUICK.kills}].",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order within each block.")
@click.option("--json", "want_json", is_flag=True, help="One JSON object on stdout; all else on stderr.")
def peers(
    only: tuple[str, ...],
    quick: bool,
    repeats: int | None,
    python: str | None,
    kills: int | None,
    seed: int,
    want_json: bool,
) -> None:
    """The same empty jobs on Celery and on its peers, one broker, in shuffled blocks of one run.

    Celery as people use it, Celery with three presets, Dramatiq, RQ, Huey, arq, Taskiq, mayu, and the
    least that redis-py can do. Each library's pins are installed once, in an environment apart.
    """
    rows = chosen(only)
    size = QUICK if quick else FULL
    size = replace(size, repeats=repeats or size.repeats, kills=size.kills if kills is None else kills)
    human = Console(stderr=want_json, highlight=False, markup=False)
    notes = human if human.is_terminal else Console(stderr=True, highlight=False, markup=False)
    with open_session(say=lambda words: notes.print(words, style="dim", soft_wrap=True)) as session:
        rig, left_out = open_rig(
            session, rows, newer=python, say=lambda words: notes.print(words, style="dim", soft_wrap=True)
        )
        rows = [peer for peer in rows if peer.name not in left_out]
        expected_s = size.expected_s(rows)
        notes.print(
            f"{plural(len(rows), 'row')}, {plural(size.repeats, 'block')}, about {spell(expected_s)}", style="dim"
        )
        with TrialProgress(notes) as progress:
            progress.plan(expected_s)
            steps = len(rows) * (size.repeats + size.kills)
            compared = measure(
                rig,
                rows,
                size,
                seed=seed,
                left_out=left_out,
                step=Steps(progress, expected_s / steps, None if notes.is_terminal else notes, steps),
            )
        server = brokers.version(session.client)
    if want_json:
        machine = environment.fingerprint()
        body = {
            **as_json(compared),
            "broker": server,
            "machine": {name: machine[name] for name in ("cpu", "cores", "virtual", "kernel", "python")},
            "seed": seed,
        }
        print(json.dumps(body, ensure_ascii=False, allow_nan=False))
    if not human.is_terminal:
        human = Console(stderr=want_json, highlight=False, markup=False, width=PIPED_COLUMNS)
    for part in parts(compared, size, server):
        human.print(part)
    sys.exit(INVALID if compared.faults else DONE)


def chosen(only: Sequence[str]) -> list[Peer]:
    """The rows asked for, and the one that all ratios are to. Raises BadInput with the nearest match for any other."""
    for name in only:
        if name not in PEERS:
            close = difflib.get_close_matches(name, list(PEERS), n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise BadInput(f"there is no peer {name!r}{hint}; there are: {', '.join(PEERS)}")
    return [peer for peer in PEERS.values() if not only or peer.name in {*only, BASE}]


class Steps:
    """Draws what runs; in a pipe, a line for each."""

    def __init__(self, progress: TrialProgress, each_s: float, lines: Console | None, count: int) -> None:
        self._progress, self._each_s, self._lines, self._count = progress, each_s, lines, count
        self._done = 0

    def __call__(self, name: str, _: Size) -> None:
        """A trial of that name starts."""
        if self._done:
            self._progress.end()
        self._progress.start(name, self._each_s)
        self._done += 1
        if self._lines:
            self._lines.print(f"{self._done}/{self._count} {name}", style="dim", soft_wrap=True)


def parts(compared: Compared, size: Size, server: str) -> Iterator[object]:
    """What a person reads: a table for each promise, then who is ahead, then what is unfair."""
    for promise in Promise:
        names = [name for name in compared.names if PEERS[name].promise is promise]
        if names:
            yield ""
            yield f"A job whose worker is killed while it runs is run {promise}:"
            yield rates(compared, names)
            for other in dict.fromkeys((BASE, EQUALS[promise])):
                if other in compared.names:
                    yield ""
                    yield ratios(compared, names, other)
    yield ""
    yield from spoken(compared)
    if compared.kills:
        yield ""
        yield (
            f"Workers killed (SIGKILL) while {KILL_JOBS} jobs of {KILL_JOB_S:g} s ran or waited, and started anew; "
            f"where it can be set, jobs of the dead come back after {RECOVER_S} s instead of the default:"
        )
        yield deaths(compared)
    yield ""
    yield from _notes(compared)
    versions = {f"{package} {version}" for some in compared.versions.values() for package, version in some.items()}
    yield f"Versions: {server}, {', '.join(sorted(versions))}"
    yield (
        f"{plural(size.repeats, 'block')}, {plural(compared.retakes, 'trial')} taken again. Geometric means, 95 % "
        "intervals over blocks; ratios are taken inside a block. No results are kept, where that can be switched off."
    )
    for why in compared.faults:
        yield f"INVALID: {why}"


def _table(*columns: str) -> Table:
    first, *others = columns
    return Table(
        Column(first),
        # On a narrow terminal a number is broken, never cut off.
        *(Column(words, justify="right", overflow="fold", min_width=CELL_COLUMNS) for words in others),
        box=None,
        pad_edge=False,
    )


def rates(compared: Compared, names: Sequence[str]) -> Table:
    """The figures themselves."""
    table = _table("", *(row.short for row in MEASURES.values()))
    for name in names:
        cells = ((measure, compared.level(measure.name, name)) for measure in MEASURES.values())
        table.add_row(
            PEERS[name].label,
            *(number(e.value * m.scale) if e and m.name == "commands" else sure(e, m.scale) for m, e in cells),
        )
    return table


def ratios(compared: Compared, names: Sequence[str], other: str) -> Table:
    """The same over those of one Celery: as people use it, or the one that makes the same promise."""
    table = _table(f"over {PEERS[other].label}", *(row.short for row in MEASURES.values()))
    for name in names:
        cells = ("1" if name == other else sure(compared.ratio(row.name, name, other)) for row in MEASURES.values())
        table.add_row(PEERS[name].label, *cells)
    return table


def spoken(compared: Compared) -> Iterator[str]:
    """Who is ahead of whom, the losses of ours first."""
    judged = standings(compared)
    for ours in OURS:
        own = [j for j in judged if j.ours == ours]
        if not own:
            continue
        yield f"{PEERS[ours].label}, among those that run a job {PEERS[ours].promise}:"
        for standing in (Standing.BEHIND, Standing.AHEAD, Standing.UNDECIDED):
            for row in MEASURES.values():
                there = [PEERS[j.peer].label for j in own if j.standing is standing and j.measure == row.name]
                if there:
                    yield f"  {row.label.partition(',')[0]}: {standing} {'; '.join(there)}"


def deaths(compared: Compared) -> Table:
    """What came of the jobs of killed workers."""
    table = _table("", "kills", "sent", "running then", "of these run again", "never ended", "ended twice")
    for name, k in compared.kills.items():
        table.add_row(
            PEERS[name].label, *(str(n) for n in (k.kills, k.sent, k.running, k.ran_again, k.lost, k.doubled))
        )
    return table


def _notes(compared: Compared) -> Iterator[object]:
    yield "How each was run, and what is unfair about it:"
    for name in compared.names:
        peer = PEERS[name]
        words = [
            f"{peer.slots}; sent by {peer.sends}" + (f", in bulk by {peer.bulk}" if peer.bulk else ", no way in bulk"),
            *([f"when killed: {peer.killed}"] if peer.killed else []),
            *([f"unfair: {peer.unfair}"] if peer.unfair else []),
        ]
        yield Padding(f"{peer.label}: {'. '.join(words)}.", (0, 0, 0, 2))
    for name, why in compared.left_out.items():
        yield Padding(f"left out: {PEERS[name].label or NONE}: {why}", (0, 0, 0, 2))
