"""The scale demo: its arithmetic, its picture, what it refuses, and a short story on a real stack."""

from __future__ import annotations

import json
import math
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.report.story import picture, sparkline
from lab.story import (
    Event,
    Look,
    Plan,
    Story,
    at_most,
    brought,
    burst,
    done_hz,
    look_in,
    offered_hz,
    seconds,
    since,
    told,
)

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts" / "scale_demo.py"
BOUNDS = (0.1, 1.0, 10.0)
DOCKER = shutil.which("docker") or "docker"


def look(at_s: float, *, issued: int = 0, done: int = 0, depth: int = 0, workers: int = 1, **more: object) -> Look:
    zeros = (0,) * (len(BOUNDS) + 1)
    return Look(at_s, issued, done, 0, depth, 0, workers, **{"waits": zeros, "lags": zeros, **more})  # type: ignore[arg-type]


def simulated(*, one_hz: float = 10.0, steps: int = 3, step_s: float = 20.0, starts_in_s: float = 4.0) -> Story:
    """A story whose truth is known: each worker does `one_hz`, and lives so long after it was asked for."""
    plan = Plan(steps, step_s, one_hz)
    looks, waiting, issued, done, at = [], 0.0, 0.0, 0.0, 0
    while at <= plan.duration_s or waiting > 0:
        workers = 1 + sum(at >= asked + starts_in_s for asked in plan.additions_s)
        looks.append(look(1000.0 + at, issued=round(issued), done=round(done), depth=round(waiting), workers=workers))
        offered = sum(rate for begin, rate, for_s in plan.producers if begin <= at < begin + for_s)
        ended = min(waiting + offered, workers * one_hz)
        issued, done, waiting, at = issued + offered, done + ended, waiting + offered - ended, at + 1
    looks.append(look(1000.0 + at, issued=round(issued), done=round(issued), depth=0, workers=steps))
    events = tuple(Event(1000.0 + s, f"worker {n}", is_worker=True) for n, s in enumerate(plan.additions_s, 2))
    return Story(tuple(looks), events, steps, 25.0, 0.3, 2, BOUNDS, one_hz, 0.5)


# --- the arithmetic --------------------------------------------------------------------------------------------------


@given(steps=st.integers(1, 8), one_hz=st.floats(0.5, 500), step_s=st.floats(10, 120))
def test_each_step_offers_more_than_the_workers_before_it_can_do_and_less_than_its_own(steps, one_hz, step_s):
    plan = Plan(steps, step_s, one_hz)
    for number, rate_hz in enumerate(plan.rates_hz, 1):
        assert (number - 1) * one_hz < rate_hz < number * one_hz


@given(steps=st.integers(1, 8), one_hz=st.floats(0.5, 500), step_s=st.floats(10, 120))
def test_the_producers_together_make_the_steps_and_end_together(steps, one_hz, step_s):
    plan = Plan(steps, step_s, one_hz)
    for step, rate_hz in enumerate(plan.rates_hz):
        middle_s = (step + 0.5) * step_s
        running = sum(rate for begin, rate, for_s in plan.producers if begin <= middle_s < begin + for_s)
        assert math.isclose(running, rate_hz)
    assert all(math.isclose(begin + for_s, plan.duration_s) for begin, _, for_s in plan.producers)
    # And every worker but the first is asked for inside its own step
    assert [int(at_s // step_s) + 1 for at_s in plan.additions_s] == list(range(2, steps + 1))


def test_a_burst_keeps_one_worker_busy_for_as_long_as_it_says():
    # 0.3 of a core does 12 jobs of 25 ms in a second
    assert burst(cpus=0.3, work_ms=25, seconds=10) == 120
    assert burst(cpus=0.05, work_ms=1000, seconds=1) == 1


def test_what_workers_did_counts_only_while_there_was_work_for_all_of_them():
    looks = [
        look(0, done=0, depth=9),
        look(4, done=40, depth=9),  # 10 jobs/s of one worker
        look(5, done=45, depth=0),  # the queue ran dry: not counted
        look(6, done=45, depth=1, workers=2),
        look(10, done=46, depth=1, workers=2),  # one job for two workers: not counted
        look(11, done=50, depth=20, workers=2),
        look(16, done=150, depth=20, workers=2),  # 20 jobs/s of two
        look(17, done=150, depth=20, workers=3),  # too short to say
    ]
    one, two, three = brought(looks, 3)
    assert (one.rate_hz, one.seen_s) == (10.0, 4.0)
    assert (two.rate_hz, two.seen_s) == (20.0, 5.0)
    assert (three.rate_hz, three.seen_s) == (None, 0.0)


@pytest.mark.parametrize("one_hz", [4.0, 10.0, 37.0])
def test_the_truth_of_a_simulated_story_is_found_again(one_hz):
    story = simulated(one_hz=one_hz)
    # A worker's rate is known to a job at either end
    for row in story.brought[1:]:
        assert row.rate_hz is not None
        assert abs(row.rate_hz - row.workers * one_hz) <= 2 / row.seen_s + 1e-9
    assert story.is_drained
    assert story.issued == story.ended


def test_rates_are_those_of_the_last_seconds():
    looks = [look(at, issued=10 * at, done=5 * at) for at in range(10)]
    before = since(looks, 5.0)
    assert before is looks[4]
    assert (offered_hz(before, looks[-1]), done_hz(before, looks[-1])) == (10.0, 5.0)
    # Before so much time has passed, of all there is; of one moment there is no rate
    assert since(looks[:3], 5.0) is looks[0]
    assert since([], 5.0) is None
    assert math.isnan(offered_hz(looks[0], looks[0]))


@pytest.mark.parametrize(
    ("new", "q", "bound"),
    [
        ((0, 0, 0, 0), 0.99, None),
        ((100, 0, 0, 0), 0.99, 0.1),
        ((99, 1, 0, 0), 0.99, 0.1),
        ((98, 2, 0, 0), 0.99, 1.0),
        ((0, 0, 0, 1), 0.5, math.inf),
    ],
)
def test_a_percentile_is_the_bound_of_its_bucket(new, q, bound):
    before = (7, 7, 7, 7)
    after = tuple(7 + each for each in new)
    assert at_most(before, after, q, BOUNDS) == bound


@pytest.mark.parametrize(
    ("bound_s", "says"),
    [(None, "nothing seen"), (0.05, "at most 50 ms"), (2.5, "at most 2.5 s"), (math.inf, "over 10 s")],
)
def test_bounds_are_said_as_bounds(bound_s, says):
    assert seconds(bound_s, BOUNDS) == says


def test_a_look_is_read_as_the_watcher_writes_it():
    watch = runpy.run_path(str(ROOT / "deploy" / "watch.py"))
    from lab.exporter import Seen, Snapshot

    # Given two queues, of which one is watched
    counts = {
        ("issued", "cpu", "sidestep.spin"): 5,
        ("issued", "io", "sidestep.fetch"): 50,
        ("ended", "cpu", "sidestep.spin", "done"): 3,
        ("ended", "cpu", "sidestep.spin", "failed"): 1,
        ("wait", "cpu", "sidestep.spin", 2): 4,
        ("wait_us", "cpu", "sidestep.spin"): 12345,
        ("lag", "cpu", 0): 5,
    }
    workers = {"a": Seen(1.0, ("cpu",)), "b": Seen(99.0, ("cpu",)), "c": Seen(1.0, ("io",))}
    row = watch["seen"](Snapshot(7.0, counts, {}, workers, {"cpu": 6, "io": 60}, 1), "cpu")
    # Then the look has that queue's figures, and of its workers those that live
    seen = look_in(json.loads(json.dumps(row)))
    assert (seen.at_s, seen.issued, seen.done, seen.failed, seen.depth, seen.unacked) == (7.0, 5, 3, 1, 6, 1)
    assert seen.workers == 1
    assert (sum(seen.waits), seen.waits[2], sum(seen.lags), seen.lags[0]) == (4, 4, 5, 5)


# --- what is told and drawn ------------------------------------------------------------------------------------------


def test_the_summary_says_what_each_worker_brought_and_why_adding_helps_here():
    text = "\n".join(told(simulated()))
    assert re.search(r"3 +\d+\.\d +\d+ s +[+]\d+\.\d, which is (0\.9\d|1\.0\d) of what one does", text)
    assert "0.3 of a core" in text
    assert "the queue is empty" in text
    # And where nothing disturbed it, nothing is complained of
    assert "busy meanwhile" not in text
    assert "fewer --steps" not in text


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"busy": 0.97}, "97% busy meanwhile"),
        ({"cpus": 0.9}, "Try fewer --steps or --cpus"),
        ({"looks": simulated().looks[:25]}, "had not ended when time was up"),
    ],
)
def test_the_summary_names_what_makes_its_figures_doubtful(change, says):
    assert says in "\n".join(told(replace(simulated(), **change)))


def test_late_producers_are_named():
    story = simulated()
    late = replace(story.looks[-1], lags=(0, 9, 0, 0))
    assert "later than 100 ms" in "\n".join(told(replace(story, looks=(*story.looks[:-1], late))))


def test_the_picture_is_a_file_that_any_viewer_reads_and_the_same_every_time():
    story = simulated()
    drawn = picture(story)
    root = ET.fromstring(drawn)  # noqa: S314  our own drawing
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(" not in drawn
    assert drawn == picture(story)
    shown = "".join(root.itertext())
    assert all(event.text in shown for event in story.events)
    assert f"{story.issued} jobs sent" in shown


def test_a_line_of_blocks_goes_from_nothing_to_its_highest():
    assert sparkline([0, 4, 8]) == " ▄█"
    assert sparkline([math.nan, 0, 0]) == "   "
    assert len(sparkline(list(range(99)), width=40)) == 40


# --- the command -----------------------------------------------------------------------------------------------------


def demo(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), *args],
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=590,
        check=False,
    )


def test_without_docker_one_line_says_what_to_do(tmp_path):
    done = demo(PATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "Docker" in line


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--steps", "99"), "--steps"),
        (("--seconds", "soon"), "--seconds"),
        (("--project", "No Name"), "--project"),
        (("--nonsense",), "--nonsense"),
    ],
)
def test_nonsense_is_refused_in_one_line(args, says):
    done = demo(*args)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert says in line


@pytest.mark.parametrize("version", ["2.23.3", "2.24.3-desktop.1"])
def test_a_compose_that_does_not_know_override_is_told_which_does(version, tmp_path):
    fake = tmp_path / "docker"
    fake.write_text(f"#!/bin/sh\necho {version}\n")
    fake.chmod(0o755)
    done = demo(PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert f"Docker Compose {version}" in line
    assert "2.24.4 is needed" in line


def left(project: str) -> list[str]:
    mine = ("--filter", f"label=com.docker.compose.project={project}", "-q")
    kinds = (("ps", "-a"), ("volume", "ls"), ("network", "ls"))
    return [
        name
        for kind in kinds
        for name in subprocess.run([DOCKER, *kind, *mine], capture_output=True, text=True, check=True).stdout.split()
    ]


@pytest.fixture
def project() -> str:
    if not shutil.which("docker") or subprocess.run([DOCKER, "info"], capture_output=True, check=False).returncode:
        if os.environ.get("CI"):
            pytest.fail("CI has no Docker engine")
        pytest.skip("no Docker engine answers")
    return f"sidestep-scale-test-{os.getpid()}"


@pytest.mark.docker
@pytest.mark.usefixtures("project")
def test_nobody_waits_for_the_health_of_a_service_that_nobody_checks():
    files = ("-f", "compose.yaml", "-f", "deploy/scale/compose.yaml")
    command = [DOCKER, "compose", *files, "config", "--format", "json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    services = json.loads(done.stdout)["services"]
    unchecked = {name for name, service in services.items() if service.get("healthcheck", {}).get("disable")}
    assert unchecked == {"worker-prefork"}
    # The producer, which waits for Flower and hello, is not started here
    waited_for = {
        name for name, how in services["flower"]["depends_on"].items() if how["condition"] == "service_healthy"
    }
    assert waited_for == {"redis"}


@pytest.mark.docker
def test_a_short_story_adds_a_worker_drains_the_queue_draws_a_picture_and_leaves_nothing(project, tmp_path):
    # Given no stack of this name, when two steps are told
    file = tmp_path / "story.svg"
    done = demo("--steps", "2", "--seconds", "12", "--project", project, "--out", str(file), "--json")
    # Then it ends well
    assert done.returncode == 0, done.stderr[-3000:]
    told_as_json = json.loads(done.stdout)
    assert told_as_json["drained"] is True
    assert told_as_json["most_live"] == 2
    ledger = told_as_json["ledger"]
    assert ledger["issued"] == ledger["done"] > 0
    assert ledger["failed"] == 0
    # And says where Flower was, with its login, and where the picture is
    assert re.search(r"Flower: http://127\.0\.0\.1:\d+ +user: sidestep +password: \S+", done.stderr)
    assert ET.fromstring(file.read_text("utf-8")).tag.endswith("svg")  # noqa: S314  our own drawing
    # And nothing of it is left
    assert left(project) == []


@pytest.mark.docker
def test_whoever_stops_it_finds_nothing_left(project, tmp_path):
    # Given a demo whose stack is coming up
    out = ("--out", str(tmp_path / "story.svg"))
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(SCRIPT), "--project", project, *out]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end_s = time.monotonic() + 120
    while not left(project):
        assert process.poll() is None
        assert time.monotonic() < end_s
        time.sleep(0.2)  # between looks at the engine
    # When it is told to stop, twice
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    # Then it says so in one line, and has removed what it made
    assert process.returncode == 130
    assert err.splitlines()[-1] == "scale-demo: stopped"
    assert left(project) == []
