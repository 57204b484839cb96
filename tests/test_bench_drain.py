"""`sidestep bench drain`: pure ratios and tables, and one real run of the two transports."""

import io
import json
import random
import subprocess
import sys
from collections.abc import Mapping

import psutil
import pytest
from rich.console import Console

from lab import bench_drain
from lab.children import ROOT
from lab.drains import FASTEST, PATH, RATIOS, RIVALS, ROWS, SAME, TRANSPORT, as_json, best_peer, ratios
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
    assert set(found) == NAMED | {"processes/stock-processes"}
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
        assert ours == stock == SAME
        assert ROWS[one].promise is ROWS[other].promise is Promise.AT_LEAST_ONCE
        assert ROWS[one].paths == (PATH,)
        assert ROWS[other].paths == ()
        if one.partition("-")[2] == other.partition("-")[2]:
            assert ROWS[one].commands == ROWS[other].commands


def test_the_page_names_every_row_its_promise_and_the_quickest_peer():
    console = Console(width=160, record=True, file=io.StringIO())
    run = compared([block(1.0), block(random.Random(0).random())], faults=("noise",))
    for part in bench_drain.parts(run, "valkey 9"):
        console.print(part)
    text = console.export_text()
    assert all(row.label in text for row in ROWS.values())
    assert f"over the quickest peer, {ROWS[RIVALS[-1]].label}, {ROWS[RIVALS[-1]].promise}: " in text
    assert "INVALID: noise" in text


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
