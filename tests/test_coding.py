"""The bill of a codec is found by a round trip, in fixed rounds, and what does not come back is never timed."""

import copy
import gc
import json
import math
import pickle
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from experiments.codecs import experiment
from lab.bench_codecs import codecs
from lab.coding import VALUES, Bill, Cargo, bills, expected_s, fidelity, nested, quickest_first, times
from lab.model import BadInput
from tasks.carriers import Outcome
from tasks.codecs import CODECS, COMPRESSIONS
from tasks.jobs import JOBS
from tasks.shapes import SHAPES, make
from tasks.transcode import CHANGED, REFUSED, Way, median_ns, once_ns, rounds, same, transcode, way

# What counts as the same


class Colour(Enum):
    RED = 1


class Level(IntEnum):
    LOW = 1


class Word(str):
    __slots__ = ()


SUMMER = timezone(timedelta(hours=2))
NOON = datetime(2024, 7, 1, 12, tzinfo=UTC)
DIFFERENT = [
    (1, True),
    (1, 1.0),
    (0, False),
    (0.0, -0.0),
    (1.0, Decimal(1)),
    (Decimal("1.0"), Decimal("1.00")),
    (math.nan, None),
    (math.nan, 1.0),
    (math.inf, -math.inf),
    ((1, 2), [1, 2]),
    ([1, 2], [2, 1]),
    ([1], [1, 1]),
    ([(1,)], [[1]]),
    ({1: "a"}, {"1": "a"}),
    ({1: "a"}, {True: "a"}),
    ({(1, 2): 0}, {(1, True): 0}),
    ({"a": 1}, {"a": 1.0}),
    ({"a": 1}, {"b": 1}),
    ({"a": 1}, {"a": 1, "b": 2}),
    ({1, 2}, {1, 3}),
    ({1}, {1.0}),
    ({1}, frozenset({1})),
    (b"a", "a"),
    (b"a", bytearray(b"a")),
    ("a", Word("a")),
    (1, Level.LOW),
    (Colour.RED, 1),
    ("2024-07-01", date(2024, 7, 1)),
    (date(2024, 7, 1), datetime(2024, 7, 1)),
    (NOON, NOON.astimezone(SUMMER)),
    (NOON, NOON.replace(tzinfo=None)),
    (time(12, tzinfo=UTC), time(12)),
    (None, False),
    ([], {}),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_what_is_not_the_same_is_told_apart_at_every_depth(one: Any, other: Any):
    assert not same(one, other)
    assert not same(other, one)
    assert not same([{"a": (one,)}], [{"a": (other,)}])


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        [math.nan, (math.nan,)],
        -0.0,
        NOON,
        Colour.RED,
        Level.LOW,
        Decimal("NaN"),
        {(1, "a"): {1, 2}},
        UUID(int=7),
        b"",
        {},
        None,
    ],
)
def test_a_copy_is_the_same(value: Any):
    assert same(value, pickle.loads(pickle.dumps(value)))  # noqa: S301  our own


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    )
)
def test_any_copy_is_the_same(value: Any):
    assert same(value, copy.deepcopy(value))


def test_the_order_of_keys_does_not_count():
    assert same({"a": 1, "b": 2}, {"b": 2, "a": 1})


def test_deep_values_are_compared_to_the_bottom():
    assert same(nested(100_000), nested(100_000))
    assert not same(nested(100_000), nested(100_001))


def test_a_value_that_holds_itself_is_compared_and_not_for_ever():
    one: list[Any] = [1]
    one.append(one)
    other: list[Any] = [1]
    other.append(other)
    assert same(one, other)
    other[0] = 2
    assert not same(one, other)


# The job


@pytest.mark.parametrize("step", ["encode", "decode"])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_a_payload_that_comes_back_is_timed(step: str, compression: str | None):
    assert 0 < transcode("json", compression, "records", 500, step) < CHANGED


def test_its_size_is_that_of_the_body():
    payload = make("records", 2000)
    assert transcode("json", None, "records", 2000, "size") == len(json.dumps(payload))
    assert transcode("json", "zlib", "records", 2000, "size") < len(json.dumps(payload)) / 2


@pytest.mark.parametrize("step", ["encode", "decode", "size"])
def test_what_does_not_come_back_is_said_instead(step: str):
    pytest.importorskip("orjson")
    pytest.importorskip("msgspec")
    assert transcode("orjson", None, "bytes", 200, step) == REFUSED
    assert transcode("msgspec-json", None, "bytes", 200, step) == CHANGED


def test_a_measurement_is_never_taken_for_a_refusal_and_fits_a_mark():
    assert CHANGED < REFUSED < 2**32
    assert JOBS["transcode"].measures
    for value in (0, CHANGED - 1, CHANGED, REFUSED):
        assert JOBS["transcode"].seal(value) == value


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("morse", None, "text", 100, "size"), "codec must be one of json.*, not 'morse'"),
        (("json", "zip", "text", 100, "size"), "compression must be None or one of gzip.*, not 'zip'"),
        (("json", None, "blob", 100, "size"), "shape must be one of records.*, not 'blob'"),
        (("json", None, "text", 100, "weigh"), "step must be one of encode, decode, size, not 'weigh'"),
        (("json", None, "text", 0, "size"), "1 byte or more, not 0"),
    ],
)
def test_a_name_that_there_is_not_says_what_there_is(args: Any, says: str):
    with pytest.raises(ValueError, match=says):
        transcode(*args)


@given(st.sampled_from(list(CODECS)), st.sampled_from([None, *COMPRESSIONS]), st.integers(1, 10_000_000))
def test_the_work_is_fixed_by_what_is_measured(codec: str, compression: str | None, size_bytes: int):
    count, operations = rounds(codec, compression, size_bytes)
    assert (count, operations) == rounds(codec, compression, size_bytes)
    assert count % 2 == 1
    assert 3 <= count <= 25
    assert operations >= 1
    # And more bytes are never more rounds
    more, bigger = rounds(codec, compression, size_bytes + 1000)
    assert more <= count or bigger < operations
    assert once_ns(codec, compression, size_bytes) < once_ns(codec, compression, size_bytes + 1000)


def test_a_round_holds_its_operations_and_the_collector_rests_meanwhile():
    seen: list[tuple[str, bool]] = []
    assert median_ns(lambda word: seen.append((word, gc.isenabled())), "a", 3, 4) > 0
    assert seen == [("a", False)] * 12
    assert gc.isenabled()


def test_the_collector_works_again_after_an_error_and_stays_off_where_it_was():
    def fail(_: Any) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        median_ns(fail, None, 1, 1)
    assert gc.isenabled()
    gc.disable()
    try:
        median_ns(id, None, 1, 1)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_a_body_is_bytes_whatever_the_codec_writes():
    for name in [name for name, codec in CODECS.items() if not codec.missing]:
        assert isinstance(way(name, None).there([1]), bytes)


# What codecs do to values

JSON_CHANGES = {"tuple", "dict with int keys"}
JSON_REFUSES = {"set", "timedelta", "Enum", "dataclass"}
"""And lists 1000 deep, where Python allows 1000 calls; how deep the C of json goes differs between versions."""


def test_what_celerys_json_does_to_values_is_known():
    found = {what: outcomes["json"] for what, outcomes in fidelity(["json"]).items() if what != "list 1000 deep"}
    assert {what for what, one in found.items() if one is Outcome.CHANGED} == JSON_CHANGES
    assert {what for what, one in found.items() if one is Outcome.REFUSED} == JSON_REFUSES


def test_pickle_brings_back_all_but_what_is_too_deep():
    found = fidelity(["pickle", "pickle5"])
    assert {what for what, outcomes in found.items() if set(outcomes.values()) != {Outcome.AS_IT_WAS}} <= {
        "list 1000 deep"
    }


def test_a_fast_codec_changes_what_the_slow_one_keeps_or_refuses():
    pytest.importorskip("orjson")
    found = fidelity(["json", "orjson"])
    silent = {what for what, outcomes in found.items() if outcomes["orjson"] is Outcome.CHANGED}
    assert {"date", "UUID", "NaN", "infinity", "Enum"} <= silent
    assert {found[what]["json"] for what in ("date", "UUID", "NaN")} == {Outcome.AS_IT_WAS}


def test_every_value_is_tried_with_every_codec_that_is_here_and_no_other(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    found = fidelity(["json", "yaml"])
    assert set(found) == set(VALUES)
    assert {tuple(outcomes) for outcomes in found.values()} == {("json",)}


def test_how_deep_one_may_nest_does_not_hang_on_who_asks():
    def from_deep_down(levels: int) -> Any:
        return from_deep_down(levels - 1) if levels else fidelity(["json", "pickle"])["list 200 deep"]

    assert from_deep_down(700) == {"json": Outcome.AS_IT_WAS, "pickle": Outcome.AS_IT_WAS}


# Bills

CARGO = (Cargo("words", 200, make("text", 200)), Cargo("bytes", 200, make("bytes", 200)))


def test_every_round_measures_every_way_that_carries_its_payload():
    pytest.importorskip("orjson")
    found = bills([("json", None), ("orjson", None), ("json", "zlib")], CARGO, count=4)
    assert [(bill.way, bill.payload) for bill in found] == [
        (name, cargo) for cargo in ("words", "bytes") for name in ("json", "orjson", "json + zlib")
    ]
    for bill in found:
        carried = bill.outcome is Outcome.AS_IT_WAS
        assert carried == ((bill.codec, bill.payload) != ("orjson", "bytes"))
        assert len(bill.encode_ns) == len(bill.decode_ns) == len(bill.both_ns) == (4 if carried else 0)
        assert (bill.coded_bytes is None) != carried
        assert (bill.encode is None) == (bill.decode is None) == (not carried)


def test_each_round_has_an_order_of_its_own(monkeypatch: pytest.MonkeyPatch):
    # Given ways that note when they are gone
    order: list[str] = []
    real = Way.there

    def there(self: Way, value: Any) -> bytes:
        order.append(value)
        return real(self, value)

    monkeypatch.setattr(Way, "there", there)
    monkeypatch.setattr("lab.coding.rounds", lambda *_: (1, 1))
    cargoes = [Cargo(name, 1, name) for name in "abcdef"]
    bills([("json", None)], cargoes, count=5, seed=1)
    tried, measured = order[:12], order[12:]
    assert tried == [name for name in "abcdef" for _ in range(2)]
    each = [measured[i : i + 6] for i in range(0, 30, 6)]
    assert all(sorted(one) == list("abcdef") for one in each)
    assert len({tuple(one) for one in each}) > 1
    # And the same seed gives the same order again
    order.clear()
    bills([("json", None)], cargoes, count=5, seed=1)
    assert order[12:] == measured


def bill(codec: str, *both: float) -> Bill:
    outcome = Outcome.AS_IT_WAS if both else Outcome.REFUSED
    return Bill(codec, None, "x", 1, outcome, 1, tuple(ns / 4 for ns in both), tuple(3 * ns / 4 for ns in both))


def test_the_quickest_comes_first_and_what_cannot_be_used_last():
    slow, quick, refused = bill("a", 300, 320), bill("b", 100, 80), bill("c")
    ranked = quickest_first([refused, slow, quick])
    assert [one.codec for one in ranked] == ["b", "a", "c"]
    # And ratios are taken round by round
    ratio = times(slow, quick)
    assert ratio is not None
    assert ratio.value == pytest.approx(math.sqrt(3 * 4))
    assert ratio.n == 2
    assert ratio.low < ratio.value < ratio.high
    assert times(refused, quick) is None


def test_the_expected_time_grows_with_all_that_is_asked_for():
    small = expected_s([("json", None)], [1000], 10)
    assert expected_s([("json", None)], [1000], 20) > small
    assert expected_s([("json", None)], [1000, 1000], 10) == pytest.approx(2 * small)
    assert expected_s([("yaml", None)], [1_000_000], 10) > 10 * small
    assert expected_s([("json", "brotli")], [1_000_000], 10) > 10 * small


# The command


def run(*args: str) -> Result:
    return CliRunner().invoke(codecs, [*args], catch_exceptions=False)


QUICK = ("--codec", "json", "--codec", "pickle", "--rounds", "2")


def test_the_command_shows_a_table_for_each_payload_and_what_does_not_arrive():
    result = run(*QUICK, "--shape", "records", "--shape", "text", "--size", "500", "--size", "1kB")
    assert result.exit_code == 0
    titles = [line.strip() for line in result.stdout.splitlines() if "," in line and "[" not in line]
    assert titles[:4] == ["records, 500 B", "text, 500 B", "records, 1 kB", "text, 1 kB"]
    assert result.stdout.count("times the fastest") == 4
    assert "changes without a word" in result.stdout
    # Plain where it is piped
    assert "\x1b" not in result.stdout


def test_gzip_is_kombus_name_for_zlib():
    result = run("--codec", "json", "--rounds", "2", "--shape", "records", "--size", "1kB", "--json",
                 "--compression", "gzip", "--compression", "zlib")  # fmt: skip
    assert result.exit_code == 0
    gzip, zlib = json.loads(result.stdout)["bills"]
    assert (gzip["compression"], zlib["compression"]) == ("gzip", "zlib")
    assert gzip["coded_bytes"] == zlib["coded_bytes"]


def test_the_command_speaks_json():
    result = run(
        *QUICK, "--shape", "noise", "--size", "300", "--compression", "none", "--compression", "zlib", "--json"
    )
    answer = json.loads(result.stdout)
    assert answer["schema"] == 1
    assert [(row["codec"], row["compression"]) for row in answer["bills"]] == [
        ("json", None),
        ("json", "zlib"),
        ("pickle", None),
        ("pickle", "zlib"),
    ]
    for row in answer["bills"]:
        assert row["outcome"] == "as it was"
        assert row["encode_us"]["low"] <= row["encode_us"]["value"] <= row["encode_us"]["high"]
        assert row["times_the_fastest"]["value"] >= 1 - 1e-9
    assert answer["fidelity"]["tuple"] == {"json": "changed", "pickle": "as it was"}


def test_a_payload_of_ones_own_is_billed_and_nothing_else(tmp_path: Path):
    file = tmp_path / "order.json"
    file.write_text('{"id": 7, "text": "ä"}', "utf-8")
    answer = json.loads(run(*QUICK, "--payload", str(file), "--json").stdout)
    assert {(row["payload"], row["payload_bytes"]) for row in answer["bills"]} == {("order.json", 20)}
    # Shapes beside it only where they are asked for
    both = json.loads(run(*QUICK, "--payload", str(file), "--shape", "text", "--size", "400", "--json").stdout)
    assert {row["payload"] for row in both["bills"]} == {"order.json", "text"}


def file_of(text: bytes) -> Callable[[Path], str]:
    def write(directory: Path) -> str:
        path = directory / "payload.json"
        path.write_bytes(text)
        return str(path)

    return write


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--codec", "jsn"), "there is no codec 'jsn'; did you mean 'json'?; there are: json, "),
        (("--shape", "tex"), "did you mean 'text'?"),
        (("--compression", "gzp"), "there is no compression 'gzp'"),
        (("--payload", "/there/is/no.json"), "cannot read --payload /there/is/no.json: No such file"),
        (("--payload", file_of(b"{")), "is no JSON in UTF-8: "),
        (("--payload", file_of(b"\xff")), "is no JSON in UTF-8: "),
        (("--payload", file_of(b"[" * 100_000)), "is no JSON in UTF-8: "),
        (("--payload", file_of(b"[1]"), "--size", "1kB"), "--size is for shapes"),
        (("--size", "10MB", "--compression", "lzma"), "name a few with --codec"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(args: tuple[Any, ...], says: str, tmp_path: Path):
    with pytest.raises(BadInput) as caught:
        run(*(arg(tmp_path) if callable(arg) else arg for arg in args))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", ["10XB", "-1", "0", "11MB", "kB"])
def test_a_size_that_is_none_says_how_to_write_one(size: str):
    result = run("--size", size)
    assert result.exit_code == 2
    assert (
        "is no size; write it like 500, 10kB or 1MB" in result.output or "not between 1 byte and 10 MB" in result.output
    )


def test_a_codec_that_is_not_installed_is_left_out_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    result = run("--rounds", "2", "--shape", "text", "--size", "100")
    assert "left out: codec 'yaml' needs yaml" in result.stderr
    assert "yaml" not in result.stdout
    with pytest.raises(BadInput, match=r"pip install 'sidestep\[codecs\]'"):
        run("--codec", "yaml")


# The experiment


def test_the_experiment_measures_what_is_there_in_reasonable_time():
    setups = experiment.setups(cores=2)
    assert 100 <= len(setups) <= 130
    for setup in setups:
        assert {setup.args["codec"]} <= set(CODECS)
        assert {setup.args["shape"]} <= set(SHAPES)
        assert setup.args["compression"] in {None, *COMPRESSIONS}
        # Each of its jobs is a step, and none takes longer than a few seconds
        count, operations = rounds(setup.args["codec"], setup.args["compression"], setup.args["size_bytes"])
        once = once_ns(setup.args["codec"], setup.args["compression"], setup.args["size_bytes"])
        assert count * operations * once < 5e9
        assert setup.pacer.count % len(setup.args["step"].values) == 0
