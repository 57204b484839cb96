"""The command `sidestep load`: a scripted load test with thresholds."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from lab import load_limit_cli, load_null_cli
from lab.broker import refuse_no_redis
from lab.load import after, export, store
from lab.load.after import PAGE, Wanted
from lab.load.live import LiveView
from lab.load.model import Judged, Outcome, Scenario, Tick
from lab.load.possible import refuse_impossible
from lab.load.prometheus import address, watching
from lab.load.run import producers_for, run_on
from lab.load.scenario import read
from lab.load.search import search_of
from lab.load.shapes import moments
from lab.load.stand import Stand
from lab.load.tables import headline_lines
from lab.model import BadInput
from lab.report.units import number

INTERRUPTED = 130


@click.command("load")
@click.argument("scenario", type=click.Path(path_type=Path), required=False)
@click.option("--check", is_flag=True, help="Only read the scenario and say what it would do.")
@click.option("--broker", envvar="SIDESTEP_BROKER", help="URL of the broker, instead of the scenario's own.")
@click.option("--force", is_flag=True, help="Use the broker's database although it holds keys of others.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Of every draw, instead of the scenario's own.")
@click.option("--find-limit", is_flag=True, help="Search for the highest rate at which the thresholds hold.")
@click.option("--low", "low_hz", type=click.FloatRange(min=0, min_open=True), help="Lowest rate of the search, jobs/s.")
@click.option("--high", "high_hz", type=click.FloatRange(min=0, min_open=True), help="Highest rate of the search.")
@click.option("--fresh", is_flag=True, help="New workers for every rate that the search tries.")
@click.option(
    "--null",
    "null_jobs",
    type=click.IntRange(1000, 1_000_000_000),
    help="No scenario: so many messages by the generator alone, its ceiling, its lag and its memory.",
)
@click.option(
    "--rate",
    "null_hz",
    type=click.FloatRange(1, 1e6),
    default=20_000.0,
    show_default=True,
    help="Of the paced part of --null, jobs a second.",
)
@click.option("--producers", type=click.IntRange(1, 64), help="Processes that send, instead of the scenario's own.")
@click.option("--metrics", help="Serve metrics for Prometheus at HOST:PORT while it runs.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of what remains of the run.")
@click.option("--html", type=click.Path(path_type=Path), help="Write the page here [default: report.html in --out].")
@click.option("--csv", type=click.Path(path_type=Path), help="Write a row a second here.")
@click.option("--hlog", type=click.Path(path_type=Path), help="Write HdrHistograms by second here.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write the thresholds as JUnit XML here.")
@click.option("--open", "open_it", is_flag=True, help="Show the page in a browser.")
@click.option("--json", "want_json", is_flag=True, help="One JSON object on stdout; all else on stderr.")
def load(
    scenario: Path | None,
    check: bool,
    broker: str | None,
    force: bool,
    seed: int | None,
    find_limit: bool,
    low_hz: float | None,
    high_hz: float | None,
    fresh: bool,
    null_jobs: int | None,
    null_hz: float,
    producers: int | None,
    metrics: str | None,
    out: Path | None,
    html: Path | None,
    csv: Path | None,
    hlog: Path | None,
    junit: Path | None,
    open_it: bool,
    want_json: bool,
) -> None:
    """Run the load test in the file SCENARIO and hold it against its thresholds.

    Exit code: 0 all thresholds hold, 1 one is broken, 2 it could not run, 3 the run is INVALID. With --find-limit: 0
    there is an answer, 3 there is none.
    """
    human = Console(stderr=want_json, highlight=False, markup=False)
    if null_jobs is not None:
        if scenario is not None:
            raise BadInput("--null is about the generator alone and takes no scenario")
        sys.exit(
            load_null_cli.null(
                null_jobs, rate_hz=null_hz, producers=producers or 1, seed=seed or 0, human=human, want_json=want_json
            )
        )
    if scenario is None:
        raise BadInput("name a scenario, such as scripts/load/smoke.toml")
    # What the scenario says comes before a variable that was set for everything, and after an option.
    meant = click.get_current_context().get_parameter_source("broker") is ParameterSource.COMMANDLINE
    asked = _asked(scenario, broker, seed, producers, meant=meant)
    if (low_hz or high_hz or fresh) and not find_limit:
        raise BadInput("--low, --high and --fresh belong to a search; add --find-limit")
    search = search_of(asked, low_hz=low_hz, high_hz=high_hz) if find_limit else None
    if metrics:
        address(metrics)  # said now if it is misspelt
    refuse_impossible(
        asked, now=datetime.now(UTC), producers=producers_for(asked), moments=lambda stage: moments(Path(stage.trace))
    )
    if check:
        _say_plan(asked, human, want_json)
        return
    directory = out or _home() / f"load-{asked.name}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    wanted = Wanted(html or directory / PAGE, csv, hlog, junit, open_it)
    notes = human if human.is_terminal else Console(stderr=True, highlight=False, markup=False)
    with watching(metrics, scenario=asked.name, say=lambda words: notes.print(words, soft_wrap=True)) as told:
        if search is not None:
            sys.exit(
                load_limit_cli.find_limit(
                    asked,
                    search,
                    directory=directory,
                    wanted=wanted,
                    human=human,
                    notes=notes,
                    force=force,
                    fresh=fresh,
                    want_json=want_json,
                    on_tick=told,
                )
            )
        outcome = _run(asked, notes, told, force=force)
    file = store.save(outcome, directory)
    for line in verdict_lines(outcome):
        human.print(line, soft_wrap=True)
    for name, path in after.write(outcome, wanted):
        human.print(f"{name}: {path}", soft_wrap=True)
    human.print(f"result: {file}", soft_wrap=True)
    if want_json:
        print(json.dumps(export.as_json(outcome), ensure_ascii=False, allow_nan=False))
    sys.exit(INTERRUPTED if any(fault.check == "interrupted" for fault in outcome.faults) else outcome.exit_code)


def _asked(path: Path, broker: str | None, seed: int | None, producers: int | None, *, meant: bool) -> Scenario:
    asked = read(path)
    if producers is not None:
        if asked.is_closed and producers > 1:
            raise BadInput("a closed stage takes one producer: its users wait for each other's ends")
        asked = dataclasses.replace(asked, producers=producers)
    if broker and (meant or not asked.broker):
        refuse_no_redis(broker)
        # Whatever is wrong with it is not the file's fault.
        asked = dataclasses.replace(
            asked, broker=broker, lines={name: line for name, line in asked.lines.items() if name != "broker"}
        )
    return asked if seed is None else dataclasses.replace(asked, seed=seed)


def _home() -> Path:
    return Path(os.environ.get("SIDESTEP_RUNS", "runs"))


def _run(asked: Scenario, notes: Console, told: Callable[[Tick], None], *, force: bool) -> Outcome:
    with (
        Stand(asked, force=force, say=lambda words: notes.print(words, style="dim")) as stand,
        LiveView(
            notes, name=asked.name, planned_s=asked.planned_s, queues={one.name: one.queue for one in asked.kinds}
        ) as view,
    ):

        def on_tick(tick: Tick) -> None:
            view.tick(tick)
            told(tick)

        return run_on(stand, asked, on_tick=on_tick)


def _say_plan(asked: Scenario, human: Console, want_json: bool) -> None:
    """What the scenario would do."""
    jobs = asked.expected_jobs
    if want_json:
        print(
            json.dumps(
                {
                    "schema": 1,
                    "scenario": asked.name,
                    "planned_s": asked.planned_s,
                    "jobs": round(jobs) if math.isfinite(jobs) else None,
                    "peak_hz": asked.peak_hz or None,
                    "producers": producers_for(asked),
                    "queues": list(asked.queues),
                    "thresholds": [threshold.says for threshold in asked.thresholds],
                }
            )
        )
        return
    for line in plan_lines(asked):
        human.print(line, soft_wrap=True)


def plan_lines(asked: Scenario) -> list[str]:
    """The scenario in words."""
    jobs = asked.expected_jobs
    weights = sum(kind.weight for kind in asked.kinds)
    mix = ", ".join(f"{kind.name} {kind.weight / weights:.0%} -> {kind.queue}" for kind in asked.kinds)
    stages = ", ".join(f"{stage.shape} {stage.for_s:g} s" for stage in asked.stages)
    many = f"about {number(jobs)} jobs" if math.isfinite(jobs) else "as many jobs as its users come to"
    crews = ", ".join(f"{crew.nodes} x {crew.pool} {crew.concurrency}" for crew in asked.crews)
    return [
        f"{asked.name}: {many} in {number(asked.planned_s)} s",
        f"stages:     {stages}; the first {number(asked.warmup_s)} s warm up",
        f"jobs:       {mix}",
        f"workers:    {crews or 'those that run already'}",
        f"producers:  {producers_for(asked)}",
        f"thresholds: {'; '.join(threshold.says for threshold in asked.thresholds) or 'none'}",
    ]


def verdict_lines(outcome: Outcome) -> list[str]:
    """What came out, in words."""
    ledger, latency = outcome.ledger, outcome.spans.latency
    lines = [
        f"{ledger.issued} issued = {ledger.done} done + {ledger.failed} failed + {ledger.lost} lost; "
        f"{ledger.duplicated} duplicated",
        f"offered {number(outcome.offered_hz)} jobs/s, done {number(outcome.throughput_hz)} jobs/s",
        *headline_lines(outcome),
        "latency from due: " + _figures(latency) + "; from sent: " + _figures(outcome.spans.uncorrected),
    ]
    lines += [
        f"{_verdict(one, valid=outcome.valid)}  {one.says}  ({_value(one.value, one.unit)})" for one in outcome.judged
    ]
    lines += [f"note: {note}" for note in outcome.notes]
    lines += [f"INVALID: {fault.says}" for fault in outcome.faults]
    return lines


def _verdict(one: Judged, *, valid: bool) -> str:
    # Neither a pass nor a failure of a run that is INVALID means anything.
    return ("holds " if one.ok else "BROKEN") if valid else "not judged"


def _figures(histogram: Any) -> str:
    if not len(histogram):
        return "nothing"
    return ", ".join(f"{name} {number(histogram.quantile_s(q) * 1e3)} ms" for name, q in (("p50", 0.5), ("p99", 0.99)))


def _value(value: float | None, unit: str) -> str:
    if value is None:
        return "there is nothing to say it of"
    return f"{number(value * 1e3)} ms" if unit == "s" else f"{number(value)} {unit}".strip()
