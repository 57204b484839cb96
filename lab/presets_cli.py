"""The command `sidestep presets`: what can be turned at a worker, what it was measured to buy, and what it risks."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Column, Table

from lab import shares
from lab.children import ROOT
from lab.model import BadInput, Estimate, LabError, Run, Suite
from lab.report.units import TIMES, plural, sure
from lab.shares import EXPERIMENT, Share
from lab.store import FILE, PACKED, load
from tasks.knobs import KNOBS, PRESETS

SCHEMA = 1
STORED = ROOT / "docs" / "reference" / PACKED
"""The suite of the reference machine, in a checkout."""
WIDE = 150
NOTHING = "nothing is measured here yet: `sidestep run presets` does"


@click.command("presets")
@click.option(
    "--suite",
    type=click.Path(path_type=Path),
    help="Figures from this suite [default: the newest under the runs folder that has them, else the stored one].",
)
@click.option("--json", "want_json", is_flag=True, help="One JSON object on stdout; all else on stderr.")
def presets(suite: Path | None, want_json: bool) -> None:
    """The knobs of a worker and the presets made of them: what each was measured to buy, and what it risks."""
    found, where = _find(suite)
    runs = shares.measured(found) if found else ()
    if want_json:
        print(json.dumps(as_json(runs, where), ensure_ascii=False, allow_nan=False))
        return
    out = Console(highlight=False, markup=False)
    if not out.is_terminal:
        out = Console(highlight=False, markup=False, width=WIDE)
    for table in tables(runs):
        out.print(table)
        out.print()
    out.print(_source(found, where))


def _find(named: Path | None) -> tuple[Suite | None, str]:
    """The suite to take figures from, and where it lies. Raises BadInput for a named one without any."""
    if named:
        suite = load(named)
        if not shares.measured(suite):
            raise BadInput(
                f"the suite at {named} has no runs of {EXPERIMENT!r}; `sidestep run {EXPERIMENT}` makes some"
            )
        return suite, str(named)
    for path in _candidates():
        try:
            suite = load(path)
        except LabError:
            continue  # a damaged file says nothing of a knob; `sidestep report` names what is wrong with it
        if shares.measured(suite):
            return suite, str(path)
    return None, ""


def _candidates() -> Iterator[Path]:
    home = Path(os.environ.get("SIDESTEP_RUNS") or "runs")
    newest = sorted(home.glob(f"*/{FILE}"), key=lambda path: path.stat().st_mtime, reverse=True)
    # By the bytes first: to load a large suite takes seconds.
    told = f'"experiment": "{EXPERIMENT}"'.encode()
    yield from (path for path in newest if told in path.read_bytes())
    with contextlib.suppress(OSError, ValueError, ImportError):
        import lzma  # noqa: PLC0415  some Pythons are built without it

        with lzma.open(STORED) as stored:
            if told in stored.read():
                yield STORED


def _source(suite: Suite | None, where: str) -> str:
    if suite is None:
        return NOTHING
    runs = shares.measured(suite)
    doubtful = sum(bool(run.faults) for run in runs)
    doubt = f" {doubtful} of {plural(len(runs), 'run')} had faults: what uses one is invalid." if doubtful else ""
    return (
        f"From {where}: jobs that do nothing, {shares.BASE_POOL} with 2 slots, "
        f"{suite.environment.get('cpu', 'some CPU')}, {suite.environment.get('cores', '?')} cores; in brackets the "
        f"95 % interval over repeats.{doubt} A knob is called faster or slower only where its whole interval is. "
        f"`sidestep run {EXPERIMENT}` measures this machine."
    )


def tables(runs: Sequence[Run]) -> list[Table]:
    """Presets, what each knob is worth alone, and what each adds to the rest of its preset."""
    made = [_presets(runs), _knobs(shares.alone(runs))]
    several = [name for name, preset in PRESETS.items() if len(preset.knobs) > 1]
    if any(one.rate for name in several for one in shares.left_out(runs, name).values()):
        made.append(_left_out({name: shares.left_out(runs, name) for name in several}))
    if elsewhere := shares.chosen_elsewhere(runs):
        made.append(_elsewhere(elsewhere))
    return made


def _new(title: str, *heads: str) -> Table:
    first, *rest = heads
    columns = (Column(first, no_wrap=True), *(Column(head) for head in rest))
    return Table(*columns, title=title, title_justify="left", box=None, pad_edge=False, title_style="bold")


def _presets(runs: Sequence[Run]) -> Table:
    table = _new("Presets", "preset", "turns", "jobs a second", "", "when a worker is killed")
    measured = shares.of_presets(runs)
    for preset in PRESETS.values():
        turns = ", ".join(preset.knobs) or "nothing"
        if one := measured.get(preset.name):
            table.add_row(preset.name, turns, _times(one.rate), one.word, preset.promises)
        else:
            table.add_row(preset.name, turns, f"{TIMES} 1", "", preset.promises)
    return table


def _knobs(alone: Mapping[str, Share]) -> Table:
    table = _new("Each knob alone, against none", "knob", "what it is", "jobs a second", "", "CPU a job", "risks")
    for name, one in alone.items():
        knob = KNOBS[name]
        table.add_row(name, knob.says, _times(one.rate), one.word, _times(one.cpu), knob.risks)
    return table


def _left_out(by_preset: Mapping[str, Mapping[str, Share]]) -> Table:
    table = _new("What a knob adds to the rest of its preset", "preset", "knob", "jobs a second", "")
    for preset, knobs in by_preset.items():
        for name, one in knobs.items():
            table.add_row(preset, name, _times(one.rate), one.word)
    return table


def _elsewhere(by_name: Mapping[str, Share]) -> Table:
    table = _new(f"Another pool or package, against {shares.BASE_POOL} 2", "worker", "jobs a second", "", "CPU a job")
    for name, one in by_name.items():
        table.add_row(name, _times(one.rate), one.word, _times(one.cpu))
    return table


def _times(estimate: Estimate | None) -> str:
    return f"{TIMES} {sure(estimate)}" if estimate else ""


def as_json(runs: Sequence[Run], where: str) -> dict[str, Any]:
    """What --json prints; an endless bound is null, since JSON has no infinity."""
    measured, alone = shares.of_presets(runs), shares.alone(runs)
    return {
        "schema": SCHEMA,
        "suite": where or None,
        "presets": {
            preset.name: {
                "knobs": list(preset.knobs),
                "promises": preset.promises,
                **_measured(measured.get(preset.name)),
                "each_adds": {name: _measured(one) for name, one in shares.left_out(runs, preset.name).items()},
            }
            for preset in PRESETS.values()
        },
        "knobs": {
            knob.name: {"says": knob.says, "risks": knob.risks, **_measured(alone[knob.name])}
            for knob in KNOBS.values()
        },
        "elsewhere": {name: _measured(one) for name, one in shares.chosen_elsewhere(runs).items()},
    }


def _measured(one: Share | None) -> dict[str, Any]:
    if one is None or one.rate is None:
        return {"rate": None, "cpu": None, "word": None}
    return {"rate": _estimate(one.rate), "cpu": _estimate(one.cpu), "word": one.word}


def _estimate(estimate: Estimate | None) -> dict[str, Any] | None:
    if estimate is None:
        return None
    bounds = {"value": estimate.value, "low": estimate.low, "high": estimate.high}
    return {**{name: bound if math.isfinite(bound) else None for name, bound in bounds.items()}, "n": estimate.n}
