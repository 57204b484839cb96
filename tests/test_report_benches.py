"""What the benches printed is shown whole, losses first, and as it was printed."""

import json
from collections.abc import Mapping
from typing import Any

import pytest
from markdown_it import MarkdownIt

from lab import answers, drains, peers
from lab.answers import Answer
from lab.drains import ROWS
from lab.peers import PEERS, Compared, Killed, Taken
from lab.report.benches import bench_page, kind
from lab.report.units import TO

MARKDOWN = MarkdownIt("commonmark").enable("table")
ABOUT = {
    "broker": "Valkey 9.0.1",
    "seed": 0,
    "machine": {"cpu": "Zuse Z3", "cores": 2, "virtual": True, "kernel": "6.1", "python": "3.11.7"},
}


def taken(rate_hz: float) -> Taken:
    return Taken(rate_hz / 2, rate_hz, (0.001, 0.002), {"brpop": 2.0}, drain_commands={"evalsha": 0.1})


def body(of: Mapping[str, Any]) -> dict[str, Any]:
    """As it is read from a file."""
    read: dict[str, Any] = json.loads(json.dumps({**of, **ABOUT}, allow_nan=False))
    return read


def drain() -> dict[str, Any]:
    rates = {name: 4000.0 if name.startswith("sidestep-") else 500.0 for name in ROWS}
    blocks = [{name: taken(hz * speed) for name, hz in rates.items()} for speed in (1.0, 1.1)]
    told = [{name: Answer((0.002,), (0.004,), 1.0, (0.001,)) for name in ("stock-solo", "sidestep-solo")}] * 2
    return body(answers.as_json(Compared(blocks, {}, rows=ROWS), told))


def compared(lossless_hz: float) -> dict[str, Any]:
    rates = {name: lossless_hz if name == "celery-lossless" else 100.0 for name in PEERS}
    blocks = [{name: taken(hz * speed) for name, hz in rates.items()} for speed in (1.0, 1.1)]
    kills = {"huey": Killed(1, 40, 2, 0, 3, 0)}
    return body(peers.as_json(Compared(blocks, {"huey": {"huey": "3.5.4"}}, kills=kills, left_out={"rq": "no fork"})))


def rows(page: str) -> list[list[str]]:
    """Every row of every table, without what marks it."""
    tokens = MARKDOWN.parse(page)
    found: list[list[str]] = []
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type == "tr_open":
            found.append([])
        elif token.type == "inline" and before and before.type in {"td_open", "th_open"}:
            found[-1].append(token.content)
    return found


def test_what_a_bench_printed_is_known_by_what_it_holds():
    assert kind(drain()) == "drain"
    assert kind(compared(50)) == "peers"
    for other in ({}, [], None, {"schema": 1, "runs": []}, {**drain(), "schema": 99}):
        assert kind(other) is None


def test_every_row_and_ratio_of_a_drain_is_shown_with_its_interval():
    printed = drain()
    shown = rows(bench_page(printed, None))
    for name in printed["rates_hz"]:
        assert any(row[0] == ROWS[name].label and row[1] == printed["promises"][name] for row in shown), name
    ratios = {row[0]: row[1] for row in shown if len(row) == 2}
    assert len([name for name in ratios if name != "Ratio, inside each block"]) == len(drains.RATIOS) + 1
    assert ratios["threads 2"].startswith("8.00 [")
    # And how soon each answers, with the pool that was measured alone
    assert any(row[0] == ROWS["sidestep-solo"].label and row[1].startswith("2.00") for row in shown)
    assert ["solo", f"1.00 [1.00{TO}1.00]"] in [row[:2] for row in shown]


@pytest.mark.parametrize(("lossless_hz", "first"), [(50.0, "behind"), (200.0, "ahead of")])
def test_losses_are_told_before_gains(lossless_hz: float, first: str):
    page = bench_page(None, compared(lossless_hz))
    told = [line for line in page.splitlines() if line.startswith("- ") and "a second" in line and "done" in line]
    assert any(f"is *{first}*" in line for line in told)
    order = [line.split("*")[1] for line in page.splitlines() if line.startswith("- ")]
    assert order == sorted(order, key=["behind", "not told apart from", "ahead of"].index)


def test_a_page_says_on_what_it_was_measured_what_was_left_out_and_what_a_kill_cost():
    page = bench_page(None, {**compared(50), "faults": ["jobs were lost: run again"]})
    for words in (
        "Zuse Z3",
        "2 cores, virtual",
        "Valkey 9.0.1",
        "huey 3.5.4",
        "Left out: rq: no fork.",
        "**INVALID:**",
    ):
        assert words in page
    assert [PEERS["huey"].label, "1", "2", "0", "3", "0"] in rows(page)


def test_an_endless_interval_is_not_shown_as_a_number():
    printed = compared(50)
    name = next(iter(printed["level_intervals"]))
    printed["level_intervals"][name] = [None, None]
    assert "nan" not in bench_page(None, printed)
    assert "nan" not in bench_page(drain(), printed)
