"""`sidestep bench peers`: pure tables and ratios, and one real run of Celery and a peer."""

import io
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from lab import bench_peers
from lab.children import ROOT
from lab.model import BadInput, LabError
from lab.peer_trials import CELL, FOLDER, KILL_JOBS, Marks, kill_trial, measure, open_rig
from lab.peers import (
    BASE,
    EQUALS,
    FULL,
    MEASURES,
    OURS,
    PEERS,
    QUICK,
    Compared,
    Killed,
    Promise,
    Size,
    Standing,
    Taken,
    as_json,
    faults,
    is_noisy,
    standings,
)
from lab.session import open_session

COMMAND = [sys.executable, "-c", "from lab.bench_peers import peers; peers()"]


def taken(scale: float = 1.0, **changes: object) -> Taken:
    """A trial on a machine of that speed."""
    usual: dict[str, object] = {
        "enqueue_hz": 1000 * scale,
        "drain_hz": 600 * scale,
        "idle_s": (0.003 / scale, 0.004 / scale, 0.02 / scale),
        "commands": {"brpop": 1.0, "multi": 2.0},
        "bulk_hz": 4000 * scale,
    }
    return Taken(**{**usual, **changes})  # type: ignore[arg-type]


def compared(blocks: list[Mapping[str, Taken]], **more: object) -> Compared:
    """A run of these blocks."""
    return Compared(blocks, {name: {"redis": "1"} for name in blocks[0]}, **more)  # type: ignore[arg-type]


def every_row(chance: random.Random) -> dict[str, Taken]:
    """A block in which everything was measured."""
    return {
        name: taken(chance.uniform(0.5, 2), bulk_hz=chance.uniform(1e3, 1e4) if peer.bulk else None)
        for name, peer in PEERS.items()
    }


def test_a_ratio_is_taken_inside_each_block():
    # Given a machine of which the second block got half, and a peer that drains five times as fast as Celery
    blocks = [{BASE: taken(s), "huey": taken(s, drain_hz=3000 * s)} for s in (1.0, 0.5, 1.0)]
    # Then the ratio does not see the machine, though the rate does
    run = compared(blocks)
    ratio, level = run.ratio("drain", "huey"), run.level("drain", "huey")
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((5, 5, 5))
    assert level.low < 1500 < level.value < 3000 < level.high


def test_less_is_better_for_a_latency_and_for_commands():
    # Given a peer that starts jobs in half the time and costs the broker twice the commands
    blocks = [
        {
            BASE: taken(s),
            "huey": taken(s, idle_s=(0.002 / s,) * 3, commands={"brpop": 6.0}),
        }
        for s in (1.0, 1.1, 0.9)
    ]
    found = {j.measure: j.standing for j in standings(compared(blocks)) if (j.ours, j.peer) == (BASE, "huey")}
    assert found["idle"] is Standing.BEHIND
    assert found["commands"] is Standing.AHEAD
    # And what is the same to the last digit is not told apart
    assert found["drain"] is Standing.UNDECIDED


def test_an_interval_that_holds_one_decides_nothing():
    blocks = [{BASE: taken(), "huey": taken(drain_hz=hz)} for hz in (500.0, 700.0, 650.0)]
    (judged,) = (j for j in standings(compared(blocks)) if (j.measure, j.ours, j.peer) == ("drain", BASE, "huey"))
    assert judged.standing is Standing.UNDECIDED
    assert judged.ratio.low < 1 < judged.ratio.high


def test_only_rows_of_the_same_promise_are_ranked():
    judged = standings(compared([every_row(random.Random(n)) for n in range(3)]))
    assert judged
    assert all(PEERS[j.ours].promise is PEERS[j.peer].promise for j in judged)
    assert all(j.ours in OURS and j.peer not in OURS for j in judged)


def test_a_row_without_a_way_in_bulk_has_no_figure_for_it():
    run = compared([every_row(random.Random(n)) for n in range(3)])
    assert PEERS["dramatiq"].bulk is None
    assert run.level("bulk", "dramatiq") is None
    assert "bulk/dramatiq" not in as_json(run)["ratios"]
    assert "drain/dramatiq" in as_json(run)["ratios"]


def test_a_row_that_is_missing_from_a_block_is_compared_in_the_others():
    blocks = [{BASE: taken(), "huey": taken(2)}, {BASE: taken()}, {BASE: taken(), "huey": taken(2)}]
    ratio = compared(blocks).ratio("drain", "huey")
    assert (ratio.value, ratio.n) == (pytest.approx(2), 2)


def test_the_commands_of_a_job_are_the_mean_over_blocks():
    blocks = [{BASE: taken(commands={"brpop": 1.0, "llen": 0.5})}, {BASE: taken(commands={"brpop": 2.0})}]
    assert compared(blocks).commands(BASE) == {"brpop": 1.5, "llen": 0.25}


def test_json_holds_the_same_keys_for_ratios_and_intervals_and_nothing_json_has_not():
    run = compared([every_row(random.Random(n)) for n in range(2)], left_out={"mayu": "no Python 3.13"})
    out = as_json(run)
    assert json.loads(json.dumps(out, allow_nan=False)) == out
    assert out["schema"] == 1
    assert list(out["ratios"]) == list(out["intervals"])
    assert list(out["levels"]) == list(out["level_intervals"])
    for name, value in out["ratios"].items():
        low, high = out["intervals"][name]
        assert low <= value * (1 + 1e-9)
        assert high is None or value <= high * (1 + 1e-9)
        measure, row, *other = name.split("/")
        assert measure in MEASURES
        assert row in PEERS
        assert other in ([], [EQUALS[Promise.AT_LEAST_ONCE]])
    # A peer that promises at least once is also compared with the Celery that does
    assert {"drain/dramatiq", "drain/dramatiq/celery-lossless"} <= set(out["ratios"])
    assert "drain/huey/celery-lossless" not in out["ratios"]
    assert out["left_out"] == {"mayu": "no Python 3.13"}
    assert out["valid"]


def test_one_block_has_an_endless_interval_that_json_can_hold():
    out = as_json(compared([{BASE: taken(), "huey": taken(2)}]))
    assert out["intervals"]["drain/huey"] == [0.0, None]
    assert {row["is"] for row in out["standings"]} == {str(Standing.UNDECIDED)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"missing": 3}, "3 jobs never ran"),
        ({"doubled": 2}, "2 jobs ran twice"),
        ({"others_cores": 0.4}, "in 1 of 2 trials other programs used up to 0.40 cores"),
        ({"steal_cores": 0.2}, "the hypervisor took up to 0.20 cores"),
    ],
)
def test_a_doubtful_trial_makes_the_run_invalid(changes: dict[str, float], words: str):
    (why,) = faults([{BASE: taken()}, {BASE: taken(**changes)}])
    assert words in why
    assert why.startswith(PEERS[BASE].label)
    assert not as_json(compared([{BASE: taken()}], faults=(why,)))["valid"]


def test_a_quiet_trial_is_no_reason_to_doubt():
    assert faults([{BASE: taken(others_cores=0.2, steal_cores=0.05)}]) == ()
    assert not is_noisy(taken(others_cores=0.2))
    assert is_noisy(taken(others_cores=0.3))


def test_kills_add_up():
    assert Killed(1, 24, 2, 0, 2, 0) + Killed(1, 24, 1, 1, 0, 1) == Killed(2, 48, 3, 1, 2, 1)


def test_the_page_names_losses_before_wins_and_what_is_unfair():
    chance = random.Random(1)
    blocks = [
        {
            BASE: taken(s),
            "huey": taken(s, drain_hz=3000 * s, idle_s=(0.001 / s,) * 3),
            "rq": taken(s, drain_hz=30 * s, enqueue_hz=chance.uniform(500, 2000)),
        }
        for s in (1.0, 1.1, 0.9)
    ]
    lines = list(bench_peers.spoken(compared(blocks)))
    done = [line for line in lines if line.startswith("  done")]
    assert done == ["  done: behind Huey", "  done: ahead of RQ, a fork per job"]
    assert any(line == "  sent one by one: not told apart from RQ, a fork per job; Huey" for line in lines)
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    kills = {"rq": Killed(1, 24, 2, 0, 2, 0)}
    for part in bench_peers.parts(compared(blocks, kills=kills, faults=("noise",)), QUICK, "valkey 9"):
        console.print(part)
    text = console.export_text()
    assert PEERS["rq"].unfair in " ".join(text.split())
    assert "INVALID: noise" in text
    assert re.search(r"RQ, a fork per job +1 +24 +2 +0 +2 +0", text)


def test_a_misspelt_peer_gets_one_line_with_the_nearest_match():
    with pytest.raises(BadInput, match=r"no peer 'dramatik'; did you mean 'dramatiq'\?"):
        bench_peers.chosen(["dramatik"])
    assert [peer.name for peer in bench_peers.chosen(["huey"])] == [BASE, "huey"]
    assert bench_peers.chosen([]) == list(PEERS.values())


def test_a_share_of_the_jobs_is_never_none():
    for peer in PEERS.values():
        small = peer.sized(1e-6)
        assert small.jobs >= 20
        assert bool(small.bulk_jobs) is bool(peer.bulk)
    assert QUICK.expected_s(list(PEERS.values())) < FULL.expected_s(list(PEERS.values())) / 3


def test_every_row_has_its_file_its_pins_and_its_words():
    for peer in PEERS.values():
        assert (FOLDER / f"{peer.module}.py").exists()
        pins = (FOLDER / peer.requirements).read_text("utf-8").lower()
        assert all(f"{package}==" in pins for package in peer.packages), peer.name
        assert peer.killed
        text = (FOLDER / f"{peer.module}.py").read_text("utf-8")
        assert ("def bulk(" in text) is bool(peer.bulk) or peer.module == "on_celery", peer.name


def test_pins_are_versions_and_nothing_else():
    for file in FOLDER.glob("requirements*.txt"):
        lines = [line for line in file.read_text("utf-8").splitlines() if line and not line.startswith("#")]
        assert lines
        assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+(; .+)?", line)] == []


def test_celery_is_measured_in_the_versions_that_sidestep_is_tested_with():
    ours = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if "==" in line)
    theirs = dict(
        line.split("==") for line in (FOLDER / "requirements.txt").read_text("utf-8").splitlines() if "==" in line
    )
    for package in ("celery", "kombu", "billiard", "redis", "vine", "amqp"):
        assert theirs[package] == ours[package]


def test_only_a_row_whose_library_asks_for_hiredis_has_it_and_says_so():
    for peer in PEERS.values():
        pins = (FOLDER / peer.requirements).read_text("utf-8")
        assert ("hiredis==" in pins) is ("hiredis" in peer.unfair), peer.name


@pytest.mark.real
def test_a_batch_that_a_dead_worker_held_is_run_by_the_next_one(tmp_path: Path):
    # Given what a worker of the row without a library held when it died, and more that waits
    marks = Marks(tmp_path / "marks", 300)
    with open_session() as session:
        client = redis.Redis.from_url(session.broker.url)
        client.rpush("limit:held:0", 0, 1, 2)
        client.rpush("limit:queue", *range(3, 300))
        env = {**os.environ, "BENCH_MARKS": str(marks.path), "BENCH_BROKER": session.broker.url}
        # When two of them work
        workers = [
            subprocess.Popen([sys.executable, str(FOLDER / "on_limit.py"), "batch", slot], env=env) for slot in "01"
        ]
        try:
            deadline = time.monotonic() + 60
            while client.exists("limit:queue", "limit:held:0", "limit:held:1") or not marks.cells["ends"].all():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            # Then each ran once, in few round trips, and all is acknowledged
            assert marks.cells["ends"].tolist() == [1] * 300
            assert client.info("commandstats")["cmdstat_evalsha"]["calls"] < 100
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
            client.close()


def test_marks_are_read_as_they_are_written(tmp_path: Path):
    # Given the module that jobs mark themselves with
    marks = Marks(tmp_path / "marks", 5)
    script = (
        "import marks, time\n"
        "marks.both(1)\nmarks.both(1)\n"
        "marks.began(3)\ntime.sleep(0.001)\nmarks.ended(3)\n"
        "marks.began(4)\n"
        "print(marks.starts(1))"
    )
    env = {**os.environ, "BENCH_MARKS": str(marks.path), "PYTHONPATH": str(FOLDER), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    # Then a job that ran twice shows, and one that was killed while it ran
    assert done.stdout.strip() == "2"
    assert marks.cells["starts"].tolist() == [0, 2, 0, 1, 1]
    assert marks.cells["ends"].tolist() == [0, 2, 0, 1, 0]
    assert marks.cells["ended_ns"][3] > marks.cells["started_ns"][3] > 0
    assert CELL.itemsize == 32
    assert 0 < time.monotonic_ns() - int(marks.cells["started_ns"][1]) < 60e9


@pytest.fixture(scope="module")
def pins_installed():
    """The peers' environments; a laptop without a package index does without."""
    try:
        with open_session() as session:
            open_rig(session, [PEERS[BASE]])
    except LabError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"the peers' environment cannot be made here: {error}")


@pytest.mark.real
@pytest.mark.usefixtures("pins_installed")
def test_celery_beside_a_peer_in_one_run():
    done = subprocess.run(
        [*COMMAND, "--only", "huey", "--quick", "--json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=240,
        check=False,
    )
    # Then it is done, or invalid where others used the machine; nothing else
    assert done.returncode in {0, 3}, done.stderr
    out = json.loads(done.stdout)
    assert out["schema"] == 1
    assert (done.returncode == 0) is out["valid"]
    assert not [why for why in out["faults"] if "never ran" in why or "twice" in why]
    assert set(out["promises"]) == {BASE, "huey"}
    assert out["blocks"] == 2
    assert {f"{m}/huey" for m in ("enqueue", "drain", "idle", "commands")} == set(out["ratios"])
    assert all(value > 0 for value in out["ratios"].values())
    assert out["versions"][BASE]["celery"]
    # The commands are those that the library is known to send for a job, and none of ours
    assert out["commands"]["huey"]["lpush"] == pytest.approx(1, abs=0.01)
    assert out["commands"][BASE]["lpush"] == pytest.approx(1, abs=0.01)
    assert out["commands"][BASE]["brpop"] == pytest.approx(1, abs=0.1)
    assert out["commands"]["huey"].get("info", 0) < 0.01
    assert out["kills"] == {}


@pytest.mark.real
@pytest.mark.usefixtures("pins_installed")
@pytest.mark.parametrize("name", ["celery-lossless", "huey"])
def test_a_killed_workers_jobs_come_back_as_promised(name: str):
    with open_session() as session:
        rig, _ = open_rig(session, [PEERS[name]])
        # A job that nobody takes back needs no patience
        promised = PEERS[name].promise is Promise.AT_LEAST_ONCE
        killed = kill_trial(rig, PEERS[name], patience_s=20 if promised else 3)
    assert killed.running > 0
    assert killed.ran_again == (killed.running if promised else 0)
    # A message between the broker's reply and its registration is on neither side: one for each consumer, at most
    assert killed.lost <= (1 if promised else KILL_JOBS)
    assert killed.lost >= (0 if promised else killed.running)


@pytest.mark.real
@pytest.mark.usefixtures("pins_installed")
def test_ctrl_c_leaves_nothing_behind():
    running = subprocess.Popen(
        [*COMMAND, "--only", "huey"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  no thread runs here
    )
    import psutil

    try:
        # When workers run, as their command line shows
        deadline, parent = time.monotonic() + 60, psutil.Process(running.pid)
        while not any(FOLDER.name in " ".join(c.cmdline()) for c in _children(parent)):
            assert time.monotonic() < deadline
            assert running.poll() is None
            time.sleep(0.05)
        children = parent.children(recursive=True)
        running.send_signal(signal.SIGINT)
        said, _ = running.communicate(timeout=60)
    finally:
        running.kill()
    assert "Traceback" not in said, said
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def _children(parent):
    import psutil

    for child in parent.children(recursive=True):
        try:
            child.cmdline()
        except psutil.Error:
            continue
        yield child


def test_numbers_are_finite_or_absent():
    run = compared([{BASE: taken(drain_hz=math.nan)}, {BASE: taken()}])
    assert run.level("drain", BASE).n == 1


@pytest.mark.real
@pytest.mark.usefixtures("pins_installed")
def test_a_library_that_fails_costs_the_others_nothing_and_is_told():
    # Given a row whose worker ends at once, and one that only sends, in an environment that is there
    broken = replace(PEERS["limit-drop"], commands=(("python", "-c", "raise SystemExit('no such option')"),))
    good = PEERS["limit-keep"].sized(0.01)
    with open_session() as session:
        rig, left_out = open_rig(session, [broken, good])
        run = measure(rig, [broken.sized(0.01), good], Size(repeats=2, idle_jobs=1, retakes=0, kills=0))
    assert left_out == {}
    assert [sorted(block) for block in run.blocks] == [["limit-keep"]] * 2
    (why,) = (fault for fault in run.faults if "ended by itself" in fault)
    assert "no such option" in why
    assert PEERS["limit-drop"].label in why
    assert run.level("drain", "limit-keep").n == 2
