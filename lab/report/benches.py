"""What `sidestep bench drain` and `sidestep bench peers` found on one machine, as Markdown. Pure.

It reads what `--json` printed, so that a page can be written again from what was kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lab import answers, drains, peers
from lab.model import Estimate
from lab.report.catalogue import prose
from lab.report.units import NONE, number, plural, sure

PAGE = "docs/bench-results.md"
WRITTEN = "<!-- Written by scripts/catalogue from docs/reference; do not edit. -->"
Body = Mapping[str, Any]


def kind(body: object) -> str | None:
    """Which command printed this: `drain`, `peers`, or None for anything else."""
    if not isinstance(body, dict) or body.get("schema") != peers.SCHEMA or "promises" not in body:
        return None
    return "drain" if "best_peer" in body else "peers" if "standings" in body else None


def bench_page(drain: Body | None, compared: Body | None) -> str:
    """All tables of what is there."""
    lines = [
        WRITTEN,
        "",
        "# What the side-by-side tables gave on one machine",
        "",
        "Figures belong to a machine: these show what to expect of yours, where the same commands make them. How they",
        "are taken, and what is unfair in them: [peers.md](peers.md).",
        "",
    ]
    if drain:
        lines += _drain(drain)
    if compared:
        lines += _peers(compared)
    return "\n".join(lines)


def _drain(body: Body) -> Iterator[str]:
    yield from _head("Sidestep's transport beside kombu's", "sidestep bench drain", body)
    rows = {**drains.ROWS}
    yield "| | A killed worker's job runs | Jobs done a second | Commands a job |"
    yield "|---|---|---:|---:|"
    for name in body["rates_hz"]:
        cost = body["commands"].get(name)
        rate = _of(body, "rates_hz", "rate_intervals_hz", name)
        shown = NONE if cost is None else number(cost)
        yield f"| {prose(rows[name].label)} | {body['promises'][name]} | {rate} | {shown} |"
    yield ""
    yield "| Ratio, inside each block | |"
    yield "|---|---:|"
    for name, words in _drain_ratios(body).items():
        if name in body["ratios"]:
            yield f"| {words} | {_of(body, 'ratios', 'intervals', name)} |"
    yield ""
    if body.get("answers"):
        yield from _answers(body)


def _drain_ratios(body: Body) -> Mapping[str, str]:
    best = body.get("best_peer")
    peer = prose(drains.ROWS[best].label) if best else "the quickest peer"
    return {
        "solo/stock": "solo, Sidestep's transport over kombu's",
        "threads/stock": "threads 2",
        "prefork/stock": "prefork 2",
        "processes/stock-processes": "`--pool processes -c 2`",
        "processes/stock-prefork": "`--pool processes -c 2` over prefork 2 on kombu's",
        "gevent-waits/stock": f"gevent 500, jobs that wait {drains.NAP_S * 1e3:g} ms",
        "eventlet-waits/stock": f"eventlet 500, jobs that wait {drains.NAP_S * 1e3:g} ms",
        "best-peer": f"`--pool processes -c 2` over {peer}, the quickest peer",
    }


def _answers(body: Body) -> Iterator[str]:
    figures = answers.FIGURES
    yield "How soon a job starts: on an idle worker, and at half of what stock drains on that pool."
    yield ""
    yield "| | " + " | ".join(row.label for row in figures.values()) + " |"
    yield "|---|" + "---:|" * len(figures)
    for name in drains.ROWS:
        cells = [_of(body, "answers", "answer_intervals", f"{key}/{name}", row.scale) for key, row in figures.items()]
        if any(cell != NONE for cell in cells):
            yield f"| {prose(drains.ROWS[name].label)} | {' | '.join(cells)} |"
    yield ""
    over = [key for key in figures if any(name.startswith(f"{key}/") for name in body["ratios"])]
    yield "| Sidestep's transport over kombu's, below 1 the better | " + " | ".join(_plain(key) for key in over) + " |"
    yield "|---|" + "---:|" * len(over)
    for pool in drains.POOLS:
        cells = [_of(body, "ratios", "intervals", f"{key}/{pool}") for key in over]
        yield f"| {pool} | {' | '.join(cells)} |"
    yield ""


def _plain(figure: str) -> str:
    return answers.FIGURES[figure].label.removesuffix(" ms")


def _peers(body: Body) -> Iterator[str]:
    yield from _head("Celery beside its peers", "sidestep bench peers", body)
    for promise in peers.Promise:
        names = [name for name in body["promises"] if body["promises"][name] == promise]
        if not names:
            continue
        equal = peers.EQUALS[promise]
        yield f"A job whose worker is killed while it runs is run *{promise}*:"
        yield ""
        yield "| | " + " | ".join(measure.short for measure in peers.MEASURES.values()) + " |"
        yield "|---|" + "---:|" * len(peers.MEASURES)
        for name in names:
            cells = [
                _of(body, "levels", "level_intervals", f"{key}/{name}", measure.scale)
                for key, measure in peers.MEASURES.items()
            ]
            yield f"| {prose(peers.PEERS[name].label)} | {' | '.join(cells)} |"
        yield ""
        yield (
            f"| Over {prose(peers.PEERS[equal].label)}, inside each block | "
            + " | ".join(measure.short.removesuffix(", ms") for measure in peers.MEASURES.values())
            + " |"
        )
        yield "|---|" + "---:|" * len(peers.MEASURES)
        suffix = "" if equal == peers.BASE else f"/{equal}"
        for name in names:
            if name != equal:
                cells = [_of(body, "ratios", "intervals", f"{key}/{name}{suffix}") for key in peers.MEASURES]
                yield f"| {prose(peers.PEERS[name].label)} | {' | '.join(cells)} |"
        yield ""
    yield from _standings(body["standings"])
    yield from _kills(body["kills"])


def _standings(judged: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Who is ahead of whom, losses first."""
    for standing in (peers.Standing.BEHIND, peers.Standing.UNDECIDED, peers.Standing.AHEAD):
        by_pair: dict[tuple[str, str], list[str]] = {}
        for one in judged:
            if one["is"] == standing:
                by_pair.setdefault((one["ours"], one["measure"]), []).append(one["peer"])
        for (ours, measure), others in by_pair.items():
            labels = "; ".join(prose(peers.PEERS[other].label) for other in others)
            yield f"- {prose(peers.PEERS[ours].label)} is *{standing}* {labels}: {peers.MEASURES[measure].label}."
    yield ""


def _kills(kills: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    if not kills:
        return
    yield "All workers killed (SIGKILL) while jobs ran, and new ones started:"
    yield ""
    yield "| | Kills | Running then | Run again | Never ended | Ended twice |"
    yield "|---|---:|---:|---:|---:|---:|"
    for name, k in kills.items():
        counts = (k["kills"], k["running"], k["ran_again"], k["lost"], k["doubled"])
        yield f"| {prose(peers.PEERS[name].label)} | {' | '.join(map(str, counts))} |"
    yield ""


def _head(title: str, command: str, body: Body) -> Iterator[str]:
    machine = body["machine"]
    yield f"## {title}"
    yield ""
    yield f"    {command}"
    yield ""
    virtual = ", virtual" if machine.get("virtual") else ""
    versions = sorted({f"{p} {v}" for some in body["versions"].values() for p, v in some.items()})
    yield (
        f"{prose(str(machine['cpu']))}, {plural(int(machine['cores']), 'core')}{virtual}; Python {machine['python']}; "
        f"{prose(str(body['broker']))}; {', '.join(map(prose, versions))}. {plural(body['blocks'], 'block')}, "
        f"{plural(body['retakes'], 'trial')} taken again; geometric means with 95 % intervals over blocks."
    )
    for why in body["faults"]:
        yield ""
        yield f"**INVALID:** {prose(why)}"
    for name, why in body["left_out"].items():
        yield ""
        yield f"Left out: {prose(name)}: {prose(why)}."
    yield ""


def _of(body: Body, values: str, intervals: str, name: str, scale: float = 1.0) -> str:
    value = body[values].get(name)
    if value is None:
        return NONE
    low, high = (math.nan if end is None else end for end in body[intervals][name])
    return sure(Estimate(value, low, high, body["blocks"]), scale)
