"""`sidestep bench publish`: every way to publish, beside each other, and every message accounted for."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from click.testing import CliRunner

from lab import publishing
from lab.bench_publish import as_json, publish
from lab.children import ROOT
from lab.model import LabError
from lab.publishing import RATIOS, WAYS, Desk, Published
from lab.session import open_session

COMMAND = [sys.executable, "-c", "from lab.bench_publish import publish; publish()"]


def test_slower_ways_send_a_part_of_the_messages_but_never_none():
    assert [WAYS[name].count(20_000) for name in ("delay", "batch", "fast", "limit")] == [500, 2000, 20_000, 20_000]
    assert {way.count(1) for way in WAYS.values()} == {1}


def test_a_ratio_is_taken_block_by_block():
    # Given a machine of which one block got half, and two ways of which one is three times as fast
    rates = {name: [100.0, 50.0, 100.0] for name in WAYS} | {"fast": [300.0, 150.0, 300.0]}
    published = Published(rates, dict.fromkeys(WAYS, 1))
    # Then the ratio does not see the machine, though the rate does
    ratio, rate = published.ratio("fast", "delay"), published.rate_hz("fast")
    assert ratio.value == pytest.approx(3)
    assert (ratio.low, ratio.high) == pytest.approx((3, 3))
    assert rate.low < 200
    assert rate.high > 300


def test_json_never_holds_what_json_has_not():
    chance = random.Random(0)
    published = Published({name: [chance.uniform(1, 9)] for name in WAYS}, dict.fromkeys(WAYS, 1))
    out = as_json(published)
    assert json.loads(json.dumps(out, allow_nan=False)) == out
    assert out["intervals"]["fast/delay"] == [0.0, None]


@pytest.mark.real
def test_json_is_one_object_on_stdout_and_the_table_goes_to_stderr():
    done = subprocess.run(
        [*COMMAND, "--jobs", "60", "--repeats", "2", "--json"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout)
    assert out["schema"] == 1
    assert list(out["ratios"]) == list(out["intervals"]) == [f"{one}/{other}" for one, other in RATIOS]
    assert {"fast/delay", "fast/limit", "batch/delay", "fast/ceiling"} <= set(out["ratios"])
    for name, value in out["ratios"].items():
        low, high = out["intervals"][name]
        assert 0 <= low <= value
        assert high is None or value <= high
    assert out["blocks"] == 2
    assert out["messages"] == {way.name: way.count(60) for way in WAYS.values()}
    assert all(way.label in done.stderr for way in WAYS.values())
    # And the template is also held against what pushes as it does
    assert "Like with like" in done.stderr
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.real
def test_without_json_the_table_is_on_stdout():
    done = CliRunner().invoke(publish, ["--jobs", "30", "--repeats", "2"])
    assert done.exit_code == 0, done.output
    assert all(way.label in done.stdout for way in WAYS.values())
    assert "it held what was sent" in " ".join(done.stdout.split())


@pytest.fixture(scope="module")
def session():
    with open_session() as opened:
        yield opened


@pytest.mark.real
def test_every_way_sends_messages_of_the_same_fields_and_the_same_job(session):
    shapes = {}
    with publishing._open_desk(session) as desk:
        for way in WAYS.values():
            way.make(desk, 5)()
            held = [json.loads(one) for one in desk.client.lrange(desk.key, 0, -1)]
            desk.client.delete(desk.key)
            # Then there are as many as were asked for, no two with the same id
            assert len({one["headers"]["id"] for one in held}) == 5
            assert [one["headers"]["kwargsrepr"] for one in reversed(held)] == [f"{{'loops': {n}}}" for n in range(5)]
            assert {one["headers"]["ignore_result"] for one in held} == {True}
            (shapes[way.name],) = {
                (*one, *one["headers"], *sorted(one["properties"]), one["headers"]["task"]) for one in held
            }
    assert len(set(shapes.values())) == 1


@pytest.mark.real
def test_a_message_too_few_ends_it_with_a_reason(session):
    # Given a way that loses one
    def lossy(desk: Desk, count: int):
        return WAYS["limit"].make(desk, count - 1)

    way = replace(WAYS["limit"], make=lossy)
    with publishing._open_desk(session) as desk, pytest.raises(LabError, match=r"3 messages were sent.*holds 2"):
        publishing._rate_hz(desk, way, 3)


@pytest.mark.real
def test_nothing_is_left_on_the_broker(session):
    before = set(session.client.scan_iter())
    published = publishing.measure(session, jobs=20, repeats=2)
    assert set(session.client.scan_iter()) == before
    assert {len(rates) for rates in published.rates_hz.values()} == {2}
    assert all(math.isfinite(rate) and rate > 0 for rates in published.rates_hz.values() for rate in rates)


@pytest.mark.real
def test_ctrl_c_ends_it_and_its_server_with_one_word():
    running = subprocess.Popen(
        [*COMMAND, "--jobs", "200000", "--repeats", "1000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100"},
        # A shell's background commands ignore SIGINT and pass that on: undo it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  no thread runs here
    )
    import psutil

    try:
        # When it is under way, as its server shows
        deadline = time.monotonic() + 60
        parent = psutil.Process(running.pid)
        while not any("server" in child.name() for child in parent.children(recursive=True)):
            assert time.monotonic() < deadline
            assert running.poll() is None
            time.sleep(0.05)
        children = parent.children(recursive=True)
        running.send_signal(signal.SIGINT)
        said, _ = running.communicate(timeout=60)
    finally:
        running.kill()  # it would go on for hours
    assert "Traceback" not in said, said
    assert running.returncode == 1  # click's own; `sidestep` makes 130 of it
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
