"""Payloads are the same everywhere, of the size that was asked for, and of the kind that their name says."""

import hashlib
import os
import pickle
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.shapes import SCRIPTS, SHAPES, make, size

every_shape = pytest.mark.parametrize("shape", SHAPES)


def fingerprint(value: Any) -> str:
    return hashlib.sha256(value if isinstance(value, bytes) else repr(value).encode()).hexdigest()[:16]


# Found once. Whoever changes a shape makes the suites of yesterday and those of today about different things.
KNOWN = {
    "records": "e9cf8f018a974914",
    "text": "07bf16f117fe9947",
    "numbers": "a4e10809665e7dc2",
    "floats": "0a9c3c899769ac11",
    "bytes": "d753ef1f40100f65",
    "noise": "7c55d63c4b08a836",
    "tree": "24005320ea00356b",
}


@every_shape
def test_a_shape_is_the_same_for_ever_and_in_every_python(shape: str):
    assert fingerprint(make(shape, 3000, seed=7)) == KNOWN[shape]


PRINTS = """
import sys
from tests.test_shapes import SHAPES, fingerprint, make
print(*(fingerprint(make(shape, 3000, seed=7)) for shape in SHAPES))
"""


def test_a_shape_is_the_same_in_every_process():
    # Given processes whose hashes of text differ; then what they draw does not
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        out = subprocess.run(
            [sys.executable, "-c", PRINTS],
            cwd=Path(__file__).parent.parent,
            env=env,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert out.split() == [KNOWN[shape] for shape in SHAPES]


@every_shape
@given(size_bytes=st.integers(100, 30_000), seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_a_payload_has_the_size_that_is_asked_for(shape: str, size_bytes: int, seed: int):
    assert abs(size(make(shape, size_bytes, seed)) - size_bytes) <= size_bytes / 10


@every_shape
@pytest.mark.parametrize("size_bytes", [100, 1_000_000])
def test_so_have_the_smallest_and_the_large(shape: str, size_bytes: int):
    assert abs(size(make(shape, size_bytes)) - size_bytes) <= size_bytes / 10


@pytest.mark.parametrize("size_bytes", [1, 2, 7, 30, 99])
@every_shape
def test_less_than_a_payload_needs_makes_the_least_there_is_and_no_error(shape: str, size_bytes: int):
    assert size(make(shape, size_bytes)) <= 100


@every_shape
def test_another_seed_is_another_payload_and_each_is_a_new_value(shape: str):
    one, two, other = make(shape, 2000, 1), make(shape, 2000, 1), make(shape, 2000, 2)
    assert one == two != other
    # And what a caller does to its own is not seen by the next
    assert isinstance(one, str | bytes) or one is not two


def test_a_size_counts_bytes_of_utf_8_and_no_blanks():
    assert [size(value) for value in (["ä", 1], {"a": None}, b"\0\1", "\ud800")] == [8, 10, 2, 5]


def depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(depth, inner), default=0) if isinstance(value, dict | list) else 0


def test_a_tree_is_deep_and_records_are_not():
    assert depth(make("tree", 10_000)) > 40
    assert 3 <= depth(make("records", 10_000)) <= 5


def test_text_is_of_every_kind_of_writing_also_where_it_is_short():
    for size_bytes in (200, 10_000):
        words = set(make("text", size_bytes).split())
        assert all(words & set(script) for script in SCRIPTS)


def test_numbers_are_whole_and_small_and_floats_have_all_their_digits():
    assert {type(number) for number in make("numbers", 5000)} == {int}
    assert max(map(abs, make("numbers", 5000))) < 10_000
    drawn = make("floats", 5000)
    assert {type(number) for number in drawn} == {float}
    assert sum(len(repr(number)) for number in drawn) / len(drawn) > 15


def test_bytes_can_be_compressed_and_are_no_text_and_noise_cannot_be_compressed():
    for seed in range(20):
        raw, noise = make("bytes", 2000, seed), make("noise", 2000, seed)
        assert len(zlib.compress(raw)) < len(raw) / 2
        assert len(zlib.compress(noise)) >= len(noise)
        with pytest.raises(UnicodeDecodeError):
            raw.decode()


def test_records_hold_every_kind_of_value_that_json_has():
    found: set[type] = set()

    def look(value: Any) -> None:
        found.add(type(value))
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            look(inner)

    look(make("records", 10_000))
    assert found == {list, dict, str, int, float, bool, type(None)}


@pytest.mark.parametrize(
    ("shape", "size_bytes", "says"),
    [("blob", 100, "shape must be one of records, text.*, not 'blob'"), ("text", 0, "1 byte or more, not 0")],
)
def test_what_cannot_be_made_says_what_can(shape: str, size_bytes: int, says: str):
    with pytest.raises(ValueError, match=says):
        make(shape, size_bytes)


@every_shape
def test_a_payload_can_be_handed_to_another_process(shape: str):
    value = make(shape, 1000)
    assert pickle.loads(pickle.dumps(value)) == value  # noqa: S301  our own
