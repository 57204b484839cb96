"""Arguments of jobs, filled in."""

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.payloads import Calibrated, EachJob, Text, Upstream, fill, is_same_for_all

URL = "http://127.0.0.1:5000/"


def test_each_placeholder_stands_for_what_it_says():
    args = {"key": EachJob(), "loops": Calibrated(25), "url": Upstream(50), "text": Text(10), "words": 7, "on": None}
    filled = fill(args, seq=3, units={25: 1234}, url=URL)
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
    [({}, True), ({"loops": Calibrated(1), "text": Text(3), "n": 0}, True), ({"n": 0, "key": EachJob()}, False)],
)
def test_only_the_jobs_own_number_makes_jobs_differ(args, same: bool):
    assert is_same_for_all(args) is same
    filled = [fill(args, seq=seq, units={1: 5}, url=URL) for seq in (0, 1)]
    assert (filled[0] == filled[1]) is same


values = st.one_of(
    st.integers(-(2**53), 2**53),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(),
    st.booleans(),
    st.none(),
    st.just(EachJob()),
    st.just(Calibrated(2.5)),
    st.just(Upstream(50)),
    st.builds(Text, st.integers(0, 50), st.integers(0, 5)),
)


@given(st.dictionaries(st.text(), values), st.integers(0, 10**9))
def test_filled_arguments_survive_json(args, seq: int):
    filled = fill(args, seq=seq, units={2.5: 77}, url=URL)
    assert json.loads(json.dumps(filled)) == filled
