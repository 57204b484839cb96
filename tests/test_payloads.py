"""Arguments of jobs, filled in."""

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.payloads import Calibrated, EachJob, Sometimes, Text, Upstream, calibrated, fill, is_same_for_all

URL = "http://127.0.0.1:5000/"


def test_each_placeholder_stands_for_what_it_says():
    args = {"key": EachJob(), "loops": Calibrated(25), "url": Upstream(50), "text": Text(10), "words": 7, "on": None}
    filled = fill(args, seq=3, units={Calibrated(25): 1234}, url=URL)
    assert filled == {**filled, "key": 3, "loops": 1234, "url": URL, "words": 7, "on": None}
    assert list(filled) == list(args)


@given(st.integers(0, 10_000), st.integers(0, 2**32))
def test_a_text_has_its_size_and_depends_on_its_seed_alone(size_bytes: int, seed: int):
    (text,) = fill({"payload": Text(size_bytes, seed)}, seq=0, units={}, url="").values()
    (again,) = fill({"payload": Text(size_bytes, seed)}, seq=9, units={}, url="").values()
    assert isinstance(text, str)
    assert text == again
    assert len(text.encode()) == size_bytes
    assert set(text) <= set(string.ascii_letters)


def test_another_seed_is_another_text():
    texts = [fill({"payload": Text(100, seed)}, seq=0, units={}, url="")["payload"] for seed in range(10)]
    assert len(set(texts)) == 10


@pytest.mark.parametrize(
    ("args", "same"),
    [
        ({}, True),
        ({"loops": Calibrated(1), "text": Text(3), "n": 0}, True),
        ({"n": 0, "key": EachJob()}, False),
        ({"loops": Sometimes(Calibrated(1), Calibrated(9), share=0.5, seed=3)}, False),
    ],
)
def test_only_the_jobs_own_number_makes_jobs_differ(args, same: bool):
    assert is_same_for_all(args) is same
    filled = [fill(args, seq=seq, units={Calibrated(1): 5, Calibrated(9): 45}, url=URL) for seq in (0, 1)]
    assert (filled[0] == filled[1]) is same


SHORT, LONG = Calibrated(4), Calibrated(200)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_sometimes_is_rare_in_its_share_of_the_jobs(share: float):
    now_and_then = Sometimes(SHORT, LONG, share)
    rare = sum(now_and_then.of(seq) is LONG for seq in range(4_000))
    # Given 4,000 draws; then they miss the share by at most four standard deviations
    assert rare == pytest.approx(4_000 * share, abs=4 * (4_000 * share * (1 - share)) ** 0.5)


@given(st.integers(0, 10**6), st.integers(0, 2**32), st.floats(0, 1))
def test_what_a_job_gets_sometimes_depends_on_seed_and_number_alone(seq: int, seed: int, share: float):
    one, other = (Sometimes(SHORT, LONG, share, seed) for _ in range(2))
    other.of(seq + 1)  # nobody's turn is taken by asking for another job
    assert one.of(seq) is other.of(seq)


def test_another_seed_is_another_draw():
    draws = {tuple(Sometimes(SHORT, LONG, 0.5, seed).of(seq).ms for seq in range(50)) for seed in range(10)}
    assert len(draws) == 10


def test_a_job_gets_the_units_of_the_amount_that_was_drawn_for_it():
    args = {"loops": Sometimes(SHORT, LONG, share=0.1, seed=7)}
    filled = [fill(args, seq=seq, units={SHORT: 40, LONG: 2000}, url="")["loops"] for seq in range(80)]
    assert set(filled) == {40, 2000}
    assert [units == 2000 for units in filled] == [args["loops"].of(seq) is LONG for seq in range(80)]


def test_the_same_milliseconds_of_two_kinds_of_work_are_two_amounts():
    # Given a job whose arguments are counted in units of two others
    args = {"loops": Calibrated(10, like="spin"), "chunks": Calibrated(10, like="digest")}
    units = {Calibrated(10, like="spin"): 250_000, Calibrated(10, like="digest"): 60}
    assert fill(args, seq=0, units=units, url="") == {"loops": 250_000, "chunks": 60}


@pytest.mark.parametrize(
    ("args", "amounts"),
    [
        ({}, set()),
        ({"loops": 5, "text": Text(3), "url": Upstream(50), "key": EachJob()}, set()),
        ({"loops": SHORT}, {SHORT}),
        ({"loops": SHORT, "again": SHORT}, {SHORT}),
        ({"loops": Sometimes(SHORT, LONG, 0.1)}, {SHORT, LONG}),
        ({"loops": SHORT, "chunks": Calibrated(4, like="digest")}, {SHORT, Calibrated(4, like="digest")}),
    ],
)
def test_every_amount_of_work_that_must_be_found_out_is_named(args, amounts):
    assert calibrated(args) == amounts
    # And with these alone every job can be filled
    units = dict.fromkeys(amounts, 7)
    assert all(fill(args, seq=seq, units=units, url="") for seq in range(20)) or not args


values = st.one_of(
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
    st.booleans(),
    st.none(),
    st.just(EachJob()),
    st.just(Calibrated(2.5)),
    st.builds(Sometimes, st.just(Calibrated(2.5)), st.just(Calibrated(9)), st.floats(0, 1), st.integers(0, 5)),
    st.just(Upstream(50)),
    st.builds(Text, st.integers(0, 50), st.integers(0, 5)),
)


@given(st.dictionaries(st.text(), values), st.integers(0, 10**9))
def test_filled_arguments_survive_json(args, seq: int):
    filled = fill(args, seq=seq, units={Calibrated(2.5): 77, Calibrated(9): 200}, url=URL)
    assert json.loads(json.dumps(filled)) == filled
