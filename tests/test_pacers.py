"""When jobs are due, before anybody sends one."""

import heapq
import itertools
import math
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.pacers import Burst, Closed, Constant, Pacer, PacerError, Poisson, Ramp, Replay, Steps, merged

rates = st.floats(0.05, 5_000)
rates_or_pause = st.just(0.0) | rates
durations = st.floats(0.01, 3)

OPEN_LOADS = {
    Constant: st.builds(Constant, rates, durations),
    Poisson: st.builds(Poisson, rates, durations, st.integers(0, 2**63)),
    Burst: st.builds(Burst, st.integers(1, 5_000)),
    Ramp: st.tuples(rates_or_pause, rates_or_pause, durations).filter(lambda r: max(r[:2]) > 0).map(lambda r: Ramp(*r)),
    Steps: st.builds(Steps, st.lists(rates_or_pause, min_size=1, max_size=5).filter(any).map(tuple), durations),
    Replay: st.builds(
        Replay, st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=50).map(sorted).map(tuple), st.floats(0.1, 10)
    ),
}
open_loads = st.one_of(OPEN_LOADS.values())


def length_s(pacer: Pacer) -> float:
    """The time within which the load must be made."""
    match pacer:
        case Burst():
            return 0.0
        case Steps(rates_hz, step_s):
            return len(rates_hz) * step_s
        case Replay(moments_s, speed):
            return (moments_s[-1] - moments_s[0]) / speed
        case Constant() | Poisson() | Ramp():
            return pacer.duration_s
        case _:
            raise AssertionError(f"say how long {pacer} takes")


@given(open_loads)
def test_an_open_load_never_turns_time_back_and_ends_within_its_duration(pacer: Pacer):
    due = list(pacer.due_s())
    assert due == sorted(due)
    assert all(0 <= moment <= length_s(pacer) for moment in due)


@given(open_loads)
def test_a_load_makes_as_many_jobs_as_it_says(pacer: Pacer):
    assert pacer.count == len(list(pacer.due_s()))


@given(open_loads)
def test_a_load_is_the_same_each_time_it_is_asked(pacer: Pacer):
    assert list(pacer.due_s()) == list(pacer.due_s())


@given(open_loads)
def test_an_open_load_does_not_look_at_when_jobs_end(pacer: Pacer):
    def ends() -> Iterator[float]:
        raise AssertionError("an open load waits for nobody")
        yield 0.0

    assert list(pacer.due_s(ends())) == list(pacer.due_s())


@given(rates, durations)
def test_a_constant_load_has_its_rate_and_leaves_no_job_for_after_its_end(rate_hz: float, duration_s: float):
    pacer = Constant(rate_hz, duration_s)
    assert pacer.count == max(1, math.ceil(round(rate_hz * duration_s, 9)))
    assert list(pacer.due_s())[-1] < duration_s


def test_the_millionth_job_of_a_constant_load_is_as_punctual_as_the_first():
    # Given a gap that no binary fraction is equal to
    pacer = Constant(rate_hz=1000, duration_s=1000)
    # When the millionth job comes
    *_, last = pacer.due_s()
    # Then it is due at the very moment, not a million rounding errors beside it
    assert last == 999_999 / 1000
    assert pacer.count == 1_000_000


def test_a_poisson_load_has_the_rate_and_the_unevenness_of_independent_arrivals():
    # Given some ten thousand arrivals
    due = list(Poisson(100, 100, seed=7).due_s())
    gaps = [later - earlier for earlier, later in itertools.pairwise(due)]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    # Then gaps average 1 / rate and, as exponential ones do, deviate by as much as they average
    assert mean == pytest.approx(0.01, rel=0.03)
    assert deviation == pytest.approx(0.01, rel=0.05)


def test_another_seed_is_another_poisson_load():
    assert list(Poisson(100, 1, seed=1).due_s()) != list(Poisson(100, 1, seed=2).due_s())


def test_a_burst_is_due_all_at_once():
    assert list(Burst(3).due_s()) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(("low", "high"), [(10, 100), (100, 10), (0, 100), (100, 0), (50, 50)])
def test_a_ramp_starts_at_one_rate_reaches_the_other_and_passes_the_middle_between(low: float, high: float):
    # Given a ramp of a hundred seconds
    due = list(Ramp(low, high, 100).due_s())
    # Then second by second it makes as many jobs as the straight line between the rates says
    for second in (0, 25, 50, 75, 99):
        made = sum(second <= moment < second + 1 for moment in due)
        assert made == pytest.approx(low + (high - low) * (second + 0.5) / 100, abs=1.01), second
    # And the area under the line in all
    assert len(due) == (low + high) / 2 * 100


def test_each_step_starts_on_time_whatever_the_one_before_it_made():
    # Given rates that do not fill their second evenly, and a pause
    pacer = Steps(rates_hz=(3, 0, 0.7, 2), step_s=1)
    # Then the first job of each step is due when the step begins, and the pause is empty
    due = list(pacer.due_s())
    assert due == pytest.approx([0, 1 / 3, 2 / 3, 2, 3, 3.5])


def test_a_replay_begins_at_0_keeps_the_gaps_and_can_be_hurried():
    assert list(Replay((100.0, 101.0, 101.0, 104.0)).due_s()) == [0, 1, 1, 4]
    assert list(Replay((100.0, 101.0, 104.0), speed=2).due_s()) == [0, 0.5, 2]


@given(st.lists(open_loads.filter(lambda load: load.count < 500), max_size=3))
def test_merged_loads_keep_every_job_of_each_in_order_of_time(loads: list[Pacer]):
    rows = merged(loads)
    # Given several loads; then all their jobs are there, each with its own number and moment
    for which, pacer in enumerate(loads):
        assert [(due, number) for due, load, number in rows if load == which] == [
            (due, number) for number, due in enumerate(pacer.due_s())
        ]
    assert len(rows) == sum(pacer.count for pacer in loads)
    # And no moment comes before an earlier one
    assert [due for due, _, _ in rows] == sorted(due for due, _, _ in rows)


def test_jobs_of_several_loads_that_are_due_at_once_keep_the_order_of_their_loads():
    assert merged([Constant(10, 0.2), Burst(2), Replay((0, 0.1))]) == [
        (0.0, 0, 0),
        (0.0, 1, 0),
        (0.0, 1, 1),
        (0.0, 2, 0),
        (0.1, 0, 1),
        (0.1, 2, 1),
    ]


def test_a_closed_load_is_not_merged():
    # Given clients who wait for their jobs to end; then they are not cut short without a word
    with pytest.raises(PacerError, match="closed load"):
        merged([Constant(10, 1), Closed(2, 100)])


def test_nothing_merged_is_nothing():
    assert merged([]) == []


clients = st.integers(1, 20)
sizes = st.integers(1, 100)
thinks = st.floats(0, 2)
services = st.lists(st.floats(0, 5), min_size=100, max_size=100)


@given(clients, sizes, thinks, services)
def test_closed_clients_each_have_one_job_out_and_think_before_the_next(clients, size, think_s, service_s):
    # Given a queue that takes whatever time for each job
    pacer, under_way, ends, due = Closed(clients, size, think_s), [], [], []

    def told() -> Iterator[float]:
        while under_way:
            ends.append(heapq.heappop(under_way))
            yield ends[-1]

    # When clients send
    for seq, moment in enumerate(pacer.due_s(told())):
        due.append(moment)
        heapq.heappush(under_way, moment + service_s[seq])
        # Then there is never more than one job out for each of them
        assert len(under_way) <= clients
    # And every job is sent, each later one a think after the end it waited for, never back in time
    assert len(due) == pacer.count == size
    assert due[:clients] == [0.0] * min(clients, size)
    assert due[clients:] == [end + think_s for end in ends]
    assert due == sorted(due)


def test_a_late_word_of_an_early_end_does_not_turn_time_back():
    assert list(Closed(2, 4, think_s=1).due_s(iter([5.0, 3.0]))) == [0, 0, 6, 6]


def test_a_closed_load_asks_for_no_more_ends_than_it_has_jobs_left():
    # Given word of ends that would block after the second
    def ends() -> Iterator[float]:
        yield from (1.0, 2.0)
        raise AssertionError("asked for an end that nothing waits for")

    assert len(list(Closed(2, 4).due_s(ends()))) == 4
    assert len(list(Closed(9, 4).due_s(ends()))) == 4


NAN, INF = math.nan, math.inf
NOT_ABOVE_0, NEGATIVE = (0, -1, NAN, INF), (-1, NAN, INF)

REFUSED = [
    *((Constant, (bad, 1), "rate_hz") for bad in NOT_ABOVE_0),
    *((Constant, (1, bad), "duration_s") for bad in NOT_ABOVE_0),
    *((Poisson, (bad, 1), "rate_hz") for bad in NOT_ABOVE_0),
    *((Poisson, (1, bad), "duration_s") for bad in NOT_ABOVE_0),
    *((Burst, (bad,), "size") for bad in (0, -1)),
    *((Ramp, (bad, 1, 1), "rate") for bad in NEGATIVE),
    *((Ramp, (1, bad, 1), "rate") for bad in NEGATIVE),
    *((Ramp, (1, 2, bad), "duration_s") for bad in NOT_ABOVE_0),
    (Ramp, (0, 0, 1), "rate"),
    *((Steps, ((bad, 1), 1), "rate") for bad in NEGATIVE),
    *((Steps, ((1, bad), 1), "rate") for bad in NEGATIVE),
    *((Steps, ((1,), bad), "step_s") for bad in NOT_ABOVE_0),
    *((Steps, (rates_hz, 1), "rate") for rates_hz in ((), (0,), (0, 0))),
    (Replay, ((),), "jobs"),
    *((Replay, (moments_s,), "moments") for moments_s in ((0, -1), (0, NAN), (NAN,), (0, INF))),
    *((Replay, ((0, 1), bad), "speed") for bad in NOT_ABOVE_0),
    *((Closed, (bad, 1), "clients") for bad in (0, -1)),
    *((Closed, (1, bad), "size") for bad in (0, -1)),
    *((Closed, (1, 1, bad), "think_s") for bad in NEGATIVE),
]


@pytest.mark.parametrize(
    ("kind", "numbers", "named"), REFUSED, ids=[f"{kind.__name__}{numbers}" for kind, numbers, _ in REFUSED]
)
def test_a_number_that_makes_no_load_is_refused_by_name(kind, numbers, named: str):
    with pytest.raises(PacerError, match=named) as refusal:
        kind(*numbers)
    assert "\n" not in str(refusal.value)


def test_every_pacer_is_held_to_these_laws():
    from lab.store import _KINDS  # the one list of values a setup may hold
    from producer import pacers

    assert {kind for kind in _KINDS.values() if kind.__module__ == pacers.__name__} == {*OPEN_LOADS, Closed}
