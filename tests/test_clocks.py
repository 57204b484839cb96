"""Clocks of two machines are compared over the broker, and the bound that is given holds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.clocks import Comparison, Probe, Shift, ask, compared, shift

MS = 1_000_000
EPOCH_NS = 1_800_000_000_000_000_000


def probe(at_ns: int, there_ns: int, back_ns: int, *, clock_ns: int = 0) -> Probe:
    """A question asked at a true moment, by somebody whose clock is ahead of it by so much.

    The broker's TIME knows whole microseconds, and never says more than it is.
    """
    said_ns = (EPOCH_NS + at_ns + there_ns) // 1000 * 1000
    return Probe(at_ns + clock_ns, at_ns + there_ns + back_ns + clock_ns, said_ns)


DELAY = st.integers(0, 50 * MS)
CLOCK = st.integers(-(10**15), 10**15)


@given(DELAY, DELAY, DELAY, DELAY, CLOCK, CLOCK)
def test_the_true_shift_is_within_the_bound_however_lopsided_the_way(there, back, our_there, our_back, theirs, ours):
    # Given a question from each side at the same moment, over ways that are slow in one direction only
    found = shift(
        [probe(0, there, back, clock_ns=theirs)],
        [probe(0, our_there, our_back, clock_ns=ours)],
    )
    # Then what must be added to their clock is what ours is ahead of it, within the bound
    assert abs(found.ns - (ours - theirs)) <= found.bound_ns


@given(st.lists(st.tuples(DELAY, DELAY), min_size=1, max_size=8), CLOCK)
def test_more_questions_never_make_the_bound_wider(ways, clock):
    ours = [probe(0, 1000, 1000)]
    bounds = [
        shift([probe(0, *way, clock_ns=clock) for way in ways[:count]], ours).bound_ns
        for count in range(1, len(ways) + 1)
    ]
    assert bounds == sorted(bounds, reverse=True)


def test_of_several_questions_the_one_that_came_back_quickest_counts():
    # Given a clock, and a broker whose second answer comes at once and whose others take 10 ms
    now = [0]

    def said() -> tuple[int, int]:
        now[0] += 0 if asked else 10 * MS
        asked.append(now[0])
        if len(asked) == 2:
            return (7, 5)
        now[0] += 10 * MS
        return (7, 0)

    asked: list[int] = []
    found = ask(said, tries=3, now_ns=lambda: now[0])
    assert len(asked) == 3
    assert found.said_ns == 7_000_005_000
    assert found.answered_ns == found.asked_ns


def test_questions_that_lie_far_apart_say_less():
    # Given the same short way, but a second between their question and ours: a clock may have been corrected meanwhile
    near = shift([probe(0, 1000, 1000)], [probe(0, 1000, 1000)])
    far = shift([probe(0, 1000, 1000)], [probe(1_000 * MS, 1000, 1000)])
    assert far.bound_ns - near.bound_ns == MS
    # And where there is a choice the near one is taken
    both = shift([probe(0, 1000, 1000)], [probe(1_000 * MS, 1000, 1000), probe(0, 1000, 1000)])
    assert both == near


@given(CLOCK, st.integers(-5 * MS, 5 * MS), st.integers(0, MS), st.floats(0, 1))
def test_a_clock_that_drifts_during_a_run_stays_within_the_bound(at_begin, drift, half, share):
    # Given a shift that grows from begin to end, each measured with an error up to its bound
    begin, end = Shift(at_begin + half, half), Shift(at_begin + drift - half, half)
    one = compared(begin, end, same_boot=False)
    # Then at any moment between it is within the bound of the one that is used
    between = at_begin + drift * share
    assert abs(one.shift_ns - between) <= one.bound_ns + 1
    assert one.drift_ns == end.ns - begin.ns


def test_one_boot_of_one_machine_is_one_clock():
    # Given two readings that differ by less than they can be wrong; then nothing is added, and nothing is unsure
    assert compared(Shift(40, 100), Shift(-30, 100), same_boot=True) == Comparison(0, 0, 0)
    # And on another machine the same readings are a shift with its bound
    assert compared(Shift(40, 100), Shift(-30, 100), same_boot=False) == Comparison(5, 135, -70)


def test_another_time_namespace_of_the_same_boot_is_another_clock():
    one = compared(Shift(1_000 * MS, 100), Shift(1_000 * MS, 100), same_boot=True)
    assert one == Comparison(1_000 * MS, 100, 0)


def test_a_side_that_never_asked_cannot_be_compared():
    with pytest.raises(ValueError, match="both sides"):
        shift([], [probe(0, 1, 1)])
