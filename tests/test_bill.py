"""What moving a job costs, found from runs whose truth is known."""

import math
from dataclasses import replace

import numpy as np
import pytest

from lab import bill
from lab.checks import steps_do_not_add_up
from lab.model import STEP_COLUMNS, FrozenArgs, Ledger, Setup, Steps, Trial
from producer.pacers import Constant
from producer.payloads import Cycle, Payload
from tasks.transcode import CHANGED, REFUSED
from tests.fakes import SETUP, make_resources, make_run, make_samples
from tests.simulator import _way_s, simulate

MS = 1_000_000
STEPS = ("encode", "decode", "size")


def setup(**changes):
    one = Setup(job="echo", args=FrozenArgs({"payload": Payload("records", 1000)}), pacer=Constant(20, 1), steps=True)
    return replace(one, **changes)


def shifted(run, name, ns):
    """The run, with one of its steps moved."""
    steps = {column: getattr(run.steps, column) for column in STEP_COLUMNS}
    return replace(run, steps=Steps(**{**steps, name: steps[name] + ns}))


@pytest.mark.parametrize("pool", ["threads", "prefork"])
@pytest.mark.parametrize("rtt_ms", [None, 5.0])
def test_the_parts_of_the_way_are_those_that_the_simulator_was_built_with(pool, rtt_ms):
    one = setup(pool=pool, rtt_ms=rtt_ms)
    run = simulate(Trial("t", one, 0), run_noise=0, block_noise=0, job_noise=0)
    parts = bill.parts_s(run)
    assert tuple(parts) == bill.PART_NAMES
    for name, seconds in _way_s(one).items():
        assert parts[name] == pytest.approx(np.full(len(run.samples), seconds), abs=1e-8), name
    assert sum(part.sum() for part in parts.values()) == pytest.approx(bill.whole_s(run).sum())
    assert bill.overhead_s(run) + bill.MEASURES["run_part_s"](run) == pytest.approx(bill.way_s(run))
    assert list(steps_do_not_add_up(run)) == []


def test_a_worker_may_have_the_message_before_the_producer_hears_of_it():
    run = simulate(Trial("t", setup(), 0))
    # The broker's answer to the producer is 5 ms late; everything else is as it was
    late = shifted(run, "taken_ns", 5 * MS)
    assert bill.MEASURES["broker_part_s"](late) == bill.MEASURES["broker_part_s"](run)
    assert list(steps_do_not_add_up(late)) == []


def test_steps_that_add_up_and_are_those_of_another_job_are_found_out_by_the_plain_marks():
    # Given jobs that wait 50 ms for their slot, as long as their steps say
    run = simulate(Trial("t", setup(), 0))
    samples = replace(
        run.samples, **{name: getattr(run.samples, name) + 50 * MS for name in ("started_ns", "ended_ns")}
    )
    run = replace(run, samples=samples)
    for name in ("decoding_ns", "decoded_ns", "finished_ns"):
        run = shifted(run, name, 50 * MS)
    assert list(steps_do_not_add_up(run)) == []
    # When the worker is told of them 25 ms before the main process decoded them, or after the slot did
    for wrong in (
        shifted(shifted(run, "peeked_ns", 25 * MS), "peeking_ns", 25 * MS),
        replace(run, samples=replace(run.samples, received_ns=run.samples.received_ns + 52 * MS)),
    ):
        assert sum(part.sum() for part in bill.parts_s(wrong).values()) == pytest.approx(
            bill.whole_s(wrong).sum(), rel=0.02
        )
        (says,) = steps_do_not_add_up(wrong)
        assert "outside of their steps" in says


@pytest.mark.parametrize("name", ["fetched_ns", "peeked_ns", "decoded_ns"])
def test_steps_that_run_backwards_do_not_add_up(name):
    (says,) = steps_do_not_add_up(shifted(simulate(Trial("t", setup(), 0)), name, -50 * MS))
    assert "miss the whole" in says
    assert "run again" in says


def test_a_job_that_left_no_steps_is_counted():
    run = simulate(Trial("t", setup(), 0))
    steps = {column: getattr(run.steps, column).copy() for column in STEP_COLUMNS}
    for column in steps.values():
        column[3] = 0
    (says,) = steps_do_not_add_up(replace(run, steps=Steps(**steps)))
    assert "1 jobs left no steps" in says


def test_a_run_that_was_not_asked_for_steps_has_no_parts_and_no_fault():
    run = simulate(Trial("t", setup(steps=False), 0))
    assert bill.parts_s(run) == {}
    assert math.isnan(bill.way_s(run))
    assert math.isnan(bill.MEASURES["hop_part_s"](run))
    assert list(steps_do_not_add_up(run)) == []


def coding(values, *, lost=0):
    """A run of `transcode` jobs that returned these values, in turns of STEPS."""
    args = FrozenArgs({"codec": "json", "step": Cycle(STEPS)})
    samples = make_samples(due_ns=[0] * len(values), ended_ns=[1] * len(values), value=values)
    run = make_run(setup=replace(SETUP, job="transcode", args=args), samples=samples)
    return replace(run, ledger=Ledger(issued=len(values) + lost, done=len(values), failed=0, lost=lost))


def test_each_step_of_a_codec_is_read_from_its_own_jobs():
    run = coding([3000, 5000, 700, 3200, 5200, 700, 9000, 4000, 700])
    assert (bill.encode_us(run), bill.decode_us(run), bill.coded_bytes(run)) == (3.2, 5.0, 700)
    assert bill.coding_us(run) == pytest.approx(8.2)


def test_a_codec_that_refuses_costs_endlessly_and_one_that_changes_has_no_figure():
    assert bill.coding_us(coding([REFUSED] * 3)) == math.inf
    assert math.isnan(bill.coding_us(coding([CHANGED] * 3)))
    # With a job missing nobody knows which value belongs to which step
    assert math.isnan(bill.encode_us(coding([1, 2, 3], lost=1)))


def test_bytes_and_results_are_counted_by_the_job():
    parts = {"body": 10, "base64": 4, "argument text": 6, "headers": 30, "properties": 20, "envelope": 5}
    resources = replace(make_resources(), message_bytes=parts, bytes_in=300, bytes_out=100, collect_s=0.5)
    run = make_run(setup=setup(), resources=resources)
    issued = run.ledger.issued
    assert bill.message_bytes(run) == 75
    assert bill.body_bytes(run) + bill.base64_bytes(run) + bill.argument_text_bytes(run) + bill.header_bytes(run) == 75
    assert bill.broker_bytes_per_job(run) == pytest.approx(400 / issued)
    assert bill.broker_in_bytes_per_job(run) == pytest.approx(300 / issued)
    assert bill.broker_out_bytes_per_job(run) == pytest.approx(100 / issued)
    assert bill.times_through_broker(run) == pytest.approx(400 / issued / 75)
    assert bill.collect_s_per_job(run) == pytest.approx(0.5 / issued)
    nothing = make_run(setup=setup(), resources=make_resources())
    assert math.isnan(bill.message_bytes(nothing))
    assert math.isnan(bill.collect_s_per_job(nothing))
