"""What can be done with a load test that has ended: `sidestep load-report`, and load results in other verbs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Column, Table

from lab import load_cli, load_limit_cli
from lab.load import after, compare, export, searches, store
from lab.load.after import PAGE, Wanted
from lab.load.compare import Change, Comparison
from lab.load.limit import Limit
from lab.load.model import SCHEMA, Outcome
from lab.load.tables import comparison as comparison_table
from lab.measure import machine_difference
from lab.model import BadInput

DONE, BROKEN, INVALID = 0, 1, 3
BETWEEN = "--"
"""Stands between the runs of one side and those of the other."""
BEGINS = b'{"schema": '
"""Enough of a file to look at before it is read whole."""


def is_load(path: Path) -> bool:
    """Whether a load result, or a search, is kept there; a file that cannot be read is none."""
    if searches.is_search(path):
        return True
    file = path / store.FILE if path.is_dir() else path
    try:
        with file.open("rb") as opened:
            head = opened.read(200)
    except OSError:
        return False
    return head.startswith(BEGINS) and b'"kind": "load"' in head


@click.command("load-report")
@click.argument("result", type=click.Path(path_type=Path))
@click.option("--html", type=click.Path(path_type=Path), help="Write the page here.")
@click.option("--csv", type=click.Path(path_type=Path), help="Write a row a second here.")
@click.option("--hlog", type=click.Path(path_type=Path), help="Write HdrHistograms by second here.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write the thresholds as JUnit XML here.")
@click.option("--open", "open_it", is_flag=True, help="Show the page in a browser.")
@click.option("--json", "want_json", is_flag=True, help="One JSON object on stdout; all else on stderr.")
def load_report(
    result: Path,
    html: Path | None,
    csv: Path | None,
    hlog: Path | None,
    junit: Path | None,
    open_it: bool,
    want_json: bool,
) -> None:
    """Show the load test in RESULT again, or write it as something else; runs nothing.

    RESULT is the folder or the load.json of a run, or the folder of a search. Exit code: that of the run.
    """
    target = html or ((result if result.is_dir() else result.parent) / PAGE if open_it else None)
    sys.exit(show(result, Wanted(target, csv, hlog, junit, open_it), want_json=want_json))


def show(path: Path, wanted: Wanted, *, want_json: bool) -> int:
    """Say what came out and write what is asked for; the exit code. Raises BadInput for what is no load result."""
    human = Console(stderr=want_json, highlight=False, markup=False)
    limit: Limit | None = None
    if searches.is_search(path):
        outcome, limit = searches.load(path)
        lines = [*map(load_limit_cli.probe_line, limit.probes), *load_limit_cli.limit_lines(limit)]
        body = load_limit_cli.as_json(outcome.scenario.name, limit)
        code = INVALID if limit.refused else DONE
    else:
        outcome = store.load(path)
        lines, body, code = load_cli.verdict_lines(outcome), export.as_json(outcome), outcome.exit_code
    for line in lines:
        human.print(line, soft_wrap=True)
    for name, target in after.write(outcome, wanted, limit):
        human.print(f"{name}: {target}", soft_wrap=True)
    if want_json:
        print(json.dumps(body, ensure_ascii=False, allow_nan=False))
    return code


class Sided(click.Command):
    """A command that sees the `--` between two sides, which click would take away."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does."""
        if BETWEEN in args:
            at = args.index(BETWEEN)
            args = [*args[: at + 1], BETWEEN, *args[at + 1 :]]
        return super().parse_args(ctx, args)


def sides(files: Sequence[str]) -> tuple[tuple[Path, ...], tuple[Path, ...]]:
    """`A B`, or `A1 A2 A3 -- B1 B2 B3`. Raises BadInput for anything else."""
    if BETWEEN in files:
        at = list(files).index(BETWEEN)
        before, after_ = files[:at], files[at + 1 :]
    else:
        before, after_ = files[:1], files[1:]
        if len(files) != 2:
            raise BadInput("name two results, or several a side with -- between: A1 A2 A3 -- B1 B2 B3")
    if not before or not after_ or BETWEEN in after_:
        raise BadInput("name at least one result on each side of one --")
    for side in (before, after_):
        if twice := next((one for one in side if list(side).count(one) > 1), None):
            raise BadInput(f"{twice} stands twice on one side: the same run again says nothing more")
    return tuple(map(Path, before)), tuple(map(Path, after_))


def compare_loads(
    before: Sequence[Path],
    after_: Sequence[Path],
    *,
    within: float,
    any_machine: bool,
    any_load: bool,
    strict: bool,
    want_json: bool,
    figures: Sequence[str] = (),
) -> int:
    """Say of every figure whether it is better, worse, the same, or cannot be said; the exit code."""
    first, second = ([store.load(path) for path in side] for side in (before, after_))
    difference = _machines([*first, *second])
    if difference and not any_machine:
        raise BadInput(f"the machines differ ({difference}); add --any-machine to compare all the same")
    found = compare.compare(first, second, within=within, any_load=any_load, figures=figures)
    if want_json:
        print(json.dumps(as_json(found, difference), ensure_ascii=False, allow_nan=False))
    else:
        _print(found, difference)
    if any(one.faults for one in (*first, *second)):
        return INVALID
    worse = any(row.change is Change.WORSE and not row.measure.is_generators for row in found.rows)
    return BROKEN if strict and worse else DONE


def _machines(every: Sequence[Outcome]) -> str:
    found = (machine_difference(every[0].environment, one.environment) for one in every[1:])
    return next(filter(None, found), "")


def _print(found: Comparison, difference: str) -> None:
    made = comparison_table(found)
    # Where the terminal is narrow the names of figures break, never the figures.
    columns = (Column(column.name, no_wrap=place > 0) for place, column in enumerate(made.columns))
    table = Table(*columns, box=None, pad_edge=False)
    for row in made.rows:
        table.add_row(*row)
    out = Console(highlight=False, markup=False)
    out.print(table)
    for note in made.notes:
        out.print(note, style="dim")
    if difference:
        out.print(f"the machines differ: {difference}")


def as_json(found: Comparison, difference: str) -> dict[str, Any]:
    """What `sidestep compare --json` prints of load results."""
    rows = [
        {
            "metric": row.measure.name,
            "unit": row.measure.unit,
            "better": str(row.measure.better),
            "before": export.finite(row.before),
            "after": export.finite(row.after),
            "ratio": export.estimate_json(row.ratio),
            "difference": export.estimate_json(row.difference),
            "change": str(row.change),
            "chance": export.finite(row.chance),
            "because": row.because,
        }
        for row in found.rows
    ]
    return {
        "schema": SCHEMA,
        "kind": "load",
        "machine_difference": difference or None,
        "metrics": rows,
        "notes": list(found.notes),
    }
