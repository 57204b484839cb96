"""The scenarios that ship do what they say of themselves."""

from pathlib import Path

import pytest

from lab.load.model import Drawn, Scenario
from lab.load.scenario import read

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "scripts" / "load"
SHIPPED = sorted(FOLDER.glob("*.toml"))


def shipped(name: str, **environ: str) -> Scenario:
    return read(FOLDER / f"{name}.toml", environ=environ)


def test_slow_consumer_offers_twice_what_its_slots_can_do_and_then_half():
    # Given slots that sleep for a known time
    scenario = shipped("slow-consumer")
    (kind,), (crew,) = scenario.kinds, scenario.crews
    ms = kind.args["ms"]
    assert isinstance(ms, int)
    can_hz = crew.concurrency / (ms / 1e3)
    # Then
    assert [stage.peak_hz / can_hz for stage in scenario.stages] == [2.0, 0.5]
    # And the depth that is allowed lies above what that must leave behind, and below what half the slots would
    first = scenario.stages[0]
    (depth,) = (one.bound for one in scenario.thresholds if one.metric == "depth")
    assert (first.peak_hz - can_hz) * first.for_s < depth <= (first.peak_hz - can_hz / 2) * first.for_s


def test_a_steady_load_keeps_a_sixth_of_the_slots_busy():
    scenario = shipped("steady")
    (kind,), (crew,) = scenario.kinds, scenario.crews
    io_ms = kind.args["io_ms"]
    assert isinstance(kind.work_ms, int | float)
    assert isinstance(io_ms, Drawn)
    busy = scenario.peak_hz * (kind.work_ms + io_ms.values[0]) / 1e3 / crew.concurrency
    assert busy == pytest.approx(1 / 6, rel=0.02)


def test_a_spike_is_over_well_before_the_run_is():
    scenario = shipped("spike")
    (stage,) = scenario.stages
    quiet = [piece for piece in stage.pieces if piece.to_hz < stage.peak_hz]
    assert stage.peak_hz == 10 * quiet[0].from_hz
    assert quiet[-1].for_s == 10
    assert stage.for_s == 30


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_no_scenario_that_ships_is_lax_with_the_generator_or_sets_a_priority_that_does_nothing(path: Path):
    scenario = read(path, environ={})
    assert scenario.max_lag_s == 0.005
    queues = [kind.queue for kind in scenario.kinds]
    assert not [kind.name for kind in scenario.kinds if kind.priority and queues.count(kind.queue) == 1]


def test_the_soak_of_the_stack_has_the_shape_and_the_thresholds_of_the_soak():
    ours, stack = shipped("soak"), shipped("compose-soak")
    assert {one.says for one in ours.thresholds} == {one.says for one in stack.thresholds}
    assert [(s.shape, s.period_s, s.for_s) for s in ours.stages] == [
        (s.shape, s.period_s, s.for_s) for s in stack.stages
    ]
    assert "compose-soak.toml" in (ROOT / "scripts" / "load-soak").read_text("utf-8")
