"""`sidestep bench drain`: pure ratios and tables, and one real run of the two transports."""

import io
import itertools
import json
import random
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace

import psutil
import pytest
from rich.console import Console

from lab import answer_trials, bench_drain
from lab.answers import Answer, answer_faults, answer_ratios, arrivals_s, as_json, figure, half_rates_hz
from lab.children import ROOT
from lab.drains import (
    FASTEST,
    GREEN_SAME,
    GREEN_SLOTS,
    NAP_S,
    PATH,
    RATIOS,
    RIVALS,
    ROWS,
    SAME,
    TRANSPORT,
    best_peer,
    ratios,
)
from lab.peer_trials import open_rig, trial
from lab.peers import Compared, Promise, Taken
from lab.session import open_session

COMMAND = [sys.executable, "-c", "from lab.bench_drain import drain; drain()"]
NAMED = {"threads/stock", "solo/stock", "prefork/stock", "processes/stock-prefork", "best-peer", "commands-per-job"}


def taken(drain_hz: float, commands: float = 1.0) -> Taken:
    return Taken(1e3, drain_hz, (), {}, drain_commands={"evalsha": commands})


def compared(blocks: list[Mapping[str, Taken]], **more: object) -> Compared:
    return Compared(blocks, {}, rows=ROWS, **more)  # type: ignore[arg-type]


def block(speed: float) -> dict[str, Taken]:
    """Every stock row does 500 jobs a second, every one of ours 4,000, and peers 1,000, 1,100, ...; times the speed."""
    rates = {name: 4000.0 if name.startswith("sidestep-") else 500.0 for name in ROWS}
    rates |= {name: 1000.0 + 100 * n for n, name in enumerate(RIVALS)}
    return {name: taken(rate * speed, 0.2 if name == FASTEST else 9.0) for name, rate in rates.items()}


def test_ratios_do_not_see_a_machine_that_slows_down_between_blocks():
    found = ratios(compared([block(1.0), block(0.4), block(0.7)]))
    assert set(found) == NAMED | {"processes/stock-processes", "gevent-waits/stock", "eventlet-waits/stock"}
    for name in RATIOS:
        assert (found[name].value, found[name].low, found[name].high) == pytest.approx((8, 8, 8))
    assert found["commands-per-job"].value == pytest.approx(0.2)


def test_the_best_peer_is_the_quickest_whatever_it_promises():
    run = compared([block(1.0), block(0.5)])
    best = best_peer(run)
    assert best == RIVALS[-1]
    assert ratios(run)["best-peer"].value == pytest.approx(4000 / (1000 + 100 * (len(RIVALS) - 1)))


def test_without_peers_there_is_no_best_one():
    blocks = [{name: t for name, t in block(s).items() if name not in RIVALS} for s in (1.0, 0.5)]
    assert "best-peer" not in ratios(compared(blocks))
    assert as_json(compared(blocks))["best_peer"] is None


def test_json_has_the_keys_that_were_promised_and_nothing_json_has_not():
    out = as_json(compared([block(1.0)]))
    assert json.loads(json.dumps(out, allow_nan=False)) == out
    assert out["schema"] == 1
    assert set(out["ratios"]) >= NAMED
    assert list(out["ratios"]) == list(out["intervals"])
    assert out["intervals"]["solo/stock"] == [0.0, None]
    assert out["intervals"]["commands-per-job"] == [None, None]


def test_both_sides_differ_in_the_transport_alone():
    for one, other in RATIOS.values():
        ours, stock = (json.loads(ROWS[name].env["BENCH_CELERY"]) for name in (one, other))
        assert ours.pop("broker_transport") == TRANSPORT
        assert ours == stock == (GREEN_SAME if ROWS[one].nap_s else SAME)
        assert ROWS[one].promise is ROWS[other].promise is Promise.AT_LEAST_ONCE
        assert ROWS[one].paths == (PATH,)
        assert ROWS[other].paths == ()
        if one.partition("-")[2] == other.partition("-")[2]:
            assert ROWS[one].commands == ROWS[other].commands


def test_the_page_names_every_row_its_promise_and_the_quickest_peer():
    console = Console(width=160, record=True, file=io.StringIO())
    run = compared([block(1.0), block(random.Random(0).random())], faults=("noise",))
    answers = [{"stock-threads": answer(8), "sidestep-threads": answer(4)} for _ in range(2)]
    for part in bench_drain.parts(run, answers, "valkey 9"):
        console.print(part)
    text = console.export_text()
    assert all(row.label in text for row in ROWS.values())
    assert f"over the quickest peer, {ROWS[RIVALS[-1]].label}, {ROWS[RIVALS[-1]].promise}: " in text
    assert "INVALID: noise" in text
    assert re.search(r"stock, threads +8\b", text)
    assert re.search(r"\bthreads +0.5", text)


def answer(ms: float, still_hz: float = 1.0, **more: object) -> Answer:
    """A worker that takes so long for every job, but twice as long for the slowest of a hundred at half load."""
    half_s = (*[ms / 1e3] * 98, ms / 500, ms / 500)
    return Answer((ms / 1e3,) * 20, half_s, still_hz, (ms / 1e4,) * 100, **more)  # type: ignore[arg-type]


def test_answers_are_compared_inside_a_block_and_with_the_same_pool():
    # Given blocks in which all is slower or faster by the same
    blocks = [
        {"stock-threads": answer(8 * f), "sidestep-threads": answer(2 * f), "stock-solo": answer(9)} for f in (1, 3)
    ]
    found = answer_ratios(blocks)
    # Then the ratio does not see it, and where one side is missing there is none
    assert set(found) == {
        "idle-p50/threads",
        "idle-p99/threads",
        "half-p50/threads",
        "half-p99/threads",
        "still/threads",
    }
    for name in ("idle-p50", "idle-p99", "half-p50", "half-p99"):
        ratio = found[f"{name}/threads"]
        assert (ratio.value, ratio.low, ratio.high) == pytest.approx((0.25, 0.25, 0.25))
    p99 = figure(blocks[:1], "half-p99", "stock-threads")
    assert p99
    assert p99.value == pytest.approx(0.016)
    out = as_json(compared([block(1.0)]), blocks)
    assert json.loads(json.dumps(out, allow_nan=False)) == out
    assert out["ratios"]["half-p99/threads"] == pytest.approx(0.25)


def test_a_worker_that_says_nothing_while_idle_has_a_figure_of_zero_and_no_ratio():
    blocks = [{"stock-solo": answer(8, 1.5), "sidestep-solo": answer(8, 0.0)} for _ in range(2)]
    assert "still/solo" not in answer_ratios(blocks)
    still = figure(blocks, "still", "sidestep-solo")
    assert still
    assert still.value == 0


def test_jobs_that_never_ran_and_others_on_the_machine_are_told():
    said = answer_faults([{"stock-solo": answer(8, missing=3)}, {"stock-solo": answer(8, others_cores=0.9)}])
    assert len(said) == 2
    assert "3 jobs never ran" in said[0]
    assert "1 of 2 trials" in said[1]
    assert answer_faults([{"stock-solo": answer(8)}]) == ()


def test_half_load_is_half_of_what_stock_drains_for_both_sides():
    rates = half_rates_hz(compared([block(1.0)]))
    assert set(rates) == {f"{side}-{pool}" for side in ("stock", "sidestep") for pool in ("solo", "threads", "prefork")}
    assert list(rates.values()) == pytest.approx([250] * len(rates))


def test_arrivals_are_a_poisson_process():
    found = arrivals_s(200, 50, random.Random(0))
    assert found == sorted(found)
    assert found[-1] < 50
    gaps = [b - a for a, b in itertools.pairwise(found)]
    # Of exponential gaps the deviation is the mean; five standard errors
    assert statistics.mean(gaps) == pytest.approx(1 / 200, rel=5 / len(gaps) ** 0.5)
    assert statistics.stdev(gaps) == pytest.approx(1 / 200, rel=7 / len(gaps) ** 0.5)
    assert len(arrivals_s(0.001, 0.01, random.Random(0))) == 1


@pytest.mark.real
@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_green_workers_wait_for_many_jobs_at_once(pool: str):
    # Given a queue of jobs of 50 ms, twice as many as there are slots
    rows = [replace(ROWS[f"{side}-{pool}"], jobs=2 * GREEN_SLOTS) for side in ("stock", "sidestep")]
    with open_session() as session:
        rig, left_out = open_rig(session, rows)
        assert not left_out
        taken = [trial(rig, row, 0, random.Random(0), fill="bulk") for row in rows]
    # Then more are done than one slot could do
    assert all(each.drain_hz > 2 / NAP_S for each in taken)
    # And each once
    assert [(each.missing, each.doubled) for each in taken] == [(0, 0)] * 2


@pytest.mark.real
def test_how_soon_either_transport_answers_is_measured():
    rows = {name: ROWS[name] for name in ("stock-threads", "sidestep-threads")}
    with open_session() as session:
        rig, _ = open_rig(session, list(rows.values()))
        due_s = arrivals_s(50, 1, random.Random(0))
        found = {name: answer_trials.answer(rig, row, 5, due_s, random.Random(0)) for name, row in rows.items()}
    for one in found.values():
        assert one.missing == 0
        assert len(one.idle_s) == 5
        assert len(one.half_s) == len(one.lag_s) == len(due_s)
        assert all(0 < late <= took for late, took in zip(one.lag_s, one.half_s, strict=True))
    # kombu's own asks again and again for what is not there; the other looks for what is overdue once in a while
    assert found["sidestep-threads"].still_hz <= found["stock-threads"].still_hz + 2


@pytest.mark.real
def test_the_transport_drains_with_fewer_commands_and_loses_nothing():
    chance = random.Random(0)
    with open_session() as session:
        rows = [ROWS["stock-solo"].sized(0.2), ROWS["sidestep-solo"].sized(0.05)]
        rig, _ = open_rig(session, rows)
        stock, ours = (trial(rig, row, 0, chance, fill="bulk") for row in rows)
    assert (stock.missing, ours.missing, stock.doubled, ours.doubled) == (0, 0, 0, 0)
    # kombu's own: BRPOP, and a MULTI ... EXEC to hold and another to let go of each message
    assert sum(stock.drain_commands.values()) == pytest.approx(9, abs=0.2)
    assert sum(ours.drain_commands.values()) < sum(stock.drain_commands.values()) / 4


@pytest.mark.real
def test_the_row_of_processes_is_what_the_command_starts_and_each_of_them_works():
    row = ROWS["sidestep-processes"].sized(0.1)
    with open_session() as session:
        rig, _ = open_rig(session, [row])
        taken = trial(rig, row, 0, random.Random(0), fill="bulk")
        folder = session.children.directory
        said = "".join(log.read_text("utf-8", "replace") for log in folder.rglob("workers.log"))
        # And none of them outlives its trial
        assert not [each for each in psutil.Process().children(recursive=True) if "tasks.processes" in each.cmdline()]
    assert (taken.missing, taken.doubled) == (0, 0)
    assert not said or row.says_up in said


def test_outside_a_checkout_it_says_so_in_one_line(tmp_path):
    # Given a copy of the package alone, as a wheel would install it
    for name in ("lab", "tasks", "producer"):
        (tmp_path / name).symlink_to(ROOT / name, target_is_directory=True)
    script = "import lab.children, lab.bench_drain as d, pathlib; d.ROOT = pathlib.Path('.'); d.drain(['--quick'])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "run it from a checkout" in done.stderr
