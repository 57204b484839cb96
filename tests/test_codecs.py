"""A codec brings back what it says it does, and kombu's own stay what they were."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu import compression as kombu_compression
from kombu import serialization as kombu

from tasks.codecs import CODECS, COMPRESSIONS, Codec, Compression, accepted, register
from tasks.shapes import SHAPES, make
from tasks.transcode import CHANGED, REFUSED, same, way

STOCK = ("json", "msgpack", "pickle", "yaml")
ROOT = Path(__file__).parent.parent


def installed(rows: Any) -> list[Any]:
    return [
        pytest.param(row, marks=pytest.mark.skipif(bool(row.missing), reason=str(row.missing)), id=row.name)
        for row in rows.values()
    ]


every_codec = pytest.mark.parametrize("codec", installed(CODECS))
every_compression = pytest.mark.parametrize("compression", installed(COMPRESSIONS))


def python(script: str) -> str:
    """What the script prints, in a process that has registered nothing."""
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True).stdout


# What comes back

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs", "Cc"])), inner, max_size=4)
    ),
    max_leaves=12,
)


@every_codec
@given(value=plain)
@settings(max_examples=60, deadline=None)
def test_whatever_json_can_say_comes_back_as_it_was(codec: Codec, value: Any):
    assert same(codec.decode(codec.encode(value)), value)


NOT_CARRIED = {
    ("orjson", "bytes"): REFUSED,
    ("orjson", "noise"): REFUSED,
    ("msgspec-json", "bytes"): CHANGED,
    ("msgspec-json", "noise"): CHANGED,
}


@every_codec
@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_comes_back_but_for_bytes_in_plain_json(codec: Codec, shape: str):
    for size_bytes, seed in ((100, 0), (2000, 1), (5000, 2)):
        assert way(codec.name, None).carries(make(shape, size_bytes, seed)) == NOT_CARRIED.get((codec.name, shape))


@every_codec
@every_compression
def test_what_is_compressed_comes_back_too(codec: Codec, compression: Compression):
    assert way(codec.name, compression.name).carries(make("records", 1500)) is None


@every_compression
@given(body=st.binary(max_size=2000))
@settings(max_examples=30, deadline=None)
def test_a_compression_loses_nothing(compression: Compression, body: bytes):
    assert compression.decompress(compression.compress(body)) == body


@every_compression
def test_a_compression_makes_text_fewer_bytes(compression: Compression):
    body = make("text", 5000).encode()
    assert len(compression.compress(body)) < len(body)


# As kombu sees them


@every_codec
def test_kombu_writes_and_reads_a_jobs_message_with_it(codec: Codec):
    register(codec.name)
    message = (("a", 1), {"b": [None, 2.5]}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None})
    kind, encoding, body = kombu.dumps(message, serializer=codec.name)
    assert (kind, encoding) == (codec.content_type, codec.encoding)
    # Bytes, as they come out of the broker
    body = body.encode() if isinstance(body, str) else body
    args, kwargs, embed = kombu.loads(body, kind, encoding, accept=kombu.prepare_accept_content(accepted(codec.name)))
    assert (list(args), kwargs, embed["chain"]) == (["a", 1], {"b": [None, 2.5]}, None)


@every_codec
def test_what_is_timed_is_what_kombu_calls(codec: Codec):
    value = make("records", 500)
    kind, encoding, body = kombu.dumps(value, serializer=codec.name)
    assert body == codec.encode(value)
    assert codec.decode(body) == kombu.loads(body, kind, encoding, accept={kind})


@every_compression
def test_kombu_compresses_by_our_names(compression: Compression):
    register()
    body, kind = kombu_compression.compress(b"again " * 50, compression.name)
    assert kind == compression.content_type
    assert kombu_compression.decompress(body, kind) == b"again " * 50
    assert body == compression.compress(b"again " * 50)


def test_zstd_is_there_where_kombu_has_it_and_nowhere_else():
    assert (COMPRESSIONS["zstd"].missing is None) == ("application/zstd" in kombu_compression.encoders())


STATE = """
from kombu import compression, serialization
def state():
    r = serialization.registry
    return [
        {name: r._encoders.get(name) for name in ("json", "msgpack", "pickle", "yaml")},
        {name: r.name_to_type[name] for name in ("json", "msgpack", "pickle", "yaml")},
        {kind: (r._decoders[kind], r.type_to_name[kind]) for kind in before_kinds},
        set(r._disabled_content_types), r._default_encode,
        {kind: (compression.get_encoder(kind), compression.get_decoder(kind)) for kind in before_packed},
    ]
before_kinds, before_packed = list(serialization.registry._decoders), list(compression.encoders())
before = state()
from tasks.codecs import CODECS, register
register(*(codec.name for codec in CODECS.values() if not codec.missing))
print(before == state(), len(before_kinds) > 3, "pickle5" in serialization.registry._encoders)
"""


def test_kombus_own_are_untouched_by_ours():
    assert python(STATE).split() == ["True", "True", "True"]


def test_no_two_codecs_share_a_type_but_those_that_read_each_other():
    kinds = [codec.content_type for name, codec in CODECS.items() if name != "pickle5"]
    assert len(kinds) == len(set(kinds))
    assert CODECS["pickle5"].content_type == CODECS["pickle"].content_type
    # Each reads the other, and so may stand behind one type
    for one, other in (("pickle", "pickle5"), ("pickle5", "pickle")):
        assert CODECS[one].decode(CODECS[other].encode({"a": (1, b"x")})) == {"a": (1, b"x")}


def test_a_plain_json_decoder_may_not_read_kombus_json():
    from datetime import date

    orjson = pytest.importorskip("orjson")
    day = date(2024, 7, 1)
    # Given a date as kombu writes it; then a plain decoder makes something else of it, and so does kombu of a plain one
    assert CODECS["json"].decode(CODECS["json"].encode(day)) == day
    assert orjson.loads(CODECS["json"].encode(day)) != day
    assert CODECS["json"].decode(orjson.dumps(day)) != day


def test_kombus_msgpack_may_not_read_msgspecs():
    from datetime import UTC, datetime

    for package in ("msgpack", "msgspec"):
        pytest.importorskip(package)
    ours, stock = CODECS["msgspec-msgpack"], CODECS["msgpack"]
    moment = datetime(2024, 7, 1, tzinfo=UTC)
    assert ours.decode(ours.encode(moment)) == moment
    assert stock.decode(ours.encode(moment)) != moment
    with pytest.raises(ValueError, match="int is not allowed"):
        stock.decode(ours.encode({1: "one"}))


@pytest.fixture
def registry() -> Iterator[Any]:
    """kombu's registry, put back as it was afterwards."""
    there: Any = kombu.registry
    names = ("_encoders", "_decoders", "type_to_name", "name_to_type")
    before = {name: dict(getattr(there, name)) for name in names}
    yield there
    for name, was in before.items():
        getattr(there, name).clear()
        getattr(there, name).update(was)


@pytest.mark.parametrize("name", ["pickle5", "orjson", "json"])
def test_to_register_again_keeps_what_others_have_wrapped_meanwhile(registry: Any, name: str):
    if why := CODECS[name].missing:
        pytest.skip(why)
    register(name)
    kind = CODECS[name].content_type
    wrapped = registry._decoders[kind] = lambda body: body
    # When it is registered once more
    register(name)
    assert registry._decoders[kind] is wrapped


def test_a_strangers_codec_of_the_same_name_gives_way(registry: Any):
    pytest.importorskip("orjson")
    # Given somebody who lets a plain encoder claim kombu's JSON
    registry.register("orjson", repr, eval, "application/json")
    register("orjson")
    assert registry.name_to_type["orjson"] == "application/x-orjson"


# What is refused


def disallowed(codec: str, by_workers_of: str) -> bool:
    register(codec)
    kind, encoding, body = kombu.dumps([1], serializer=codec)
    try:
        kombu.loads(body, kind, encoding, accept=kombu.prepare_accept_content(accepted(by_workers_of)))
    except kombu.ContentDisallowed:
        return True
    return False


@every_codec
def test_a_worker_reads_json_and_its_own_codec_and_nothing_else(codec: Codec):
    register(codec.name)
    readable = {name for name, other in CODECS.items() if not other.missing and not disallowed(name, codec.name)}
    assert readable == {"json", codec.name} | ({"pickle", "pickle5"} if codec.trusted else set())


def test_a_worker_of_json_never_unpickles():
    assert disallowed("pickle", "json")
    assert disallowed("pickle5", "json")
    assert {name for name, codec in CODECS.items() if codec.trusted} == {"pickle", "pickle5"}


def test_celery_recognizes_a_worker_that_unpickles():
    # It looks for this word before it runs one as root
    assert all("pickle" in accepted(name) for name, codec in CODECS.items() if codec.trusted)


@pytest.mark.parametrize("name", ["orjson", "msgspec-json", "msgspec-msgpack", "msgpack", "yaml"])
def test_a_codec_without_its_package_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch):
    codec = CODECS[name]
    monkeypatch.setitem(sys.modules, str(codec.needs), None)  # as Python itself marks what cannot be imported
    assert codec.missing == f"codec {name!r} needs {codec.needs}; try: pip install 'sidestep[codecs]'"
    with pytest.raises(RuntimeError, match=f"needs {codec.needs}"):
        register(name)


def test_a_compression_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lz4.frame", None)
    assert COMPRESSIONS["lz4"].missing == "compression 'lz4' needs lz4.frame; try: pip install 'sidestep[codecs]'"
    assert COMPRESSIONS["zlib"].missing is None


def test_a_name_that_there_is_not_says_what_there_is():
    with pytest.raises(ValueError, match=r"codec must be one of json, msgpack.*, not 'morse'"):
        register("morse")


def test_a_process_that_only_imports_the_rows_loads_none_of_them():
    heavy = ["kombu", "orjson", "msgspec", "msgpack", "yaml", "brotli", "lz4", "backports.zstd", "numpy"]
    loaded = python(
        f"import sys, tasks.codecs, tasks.shapes, tasks.transcode; print([m for m in {heavy} if m in sys.modules])"
    )
    assert loaded.strip() == "[]"


# The real thing


@pytest.fixture(scope="module")
def runner() -> Iterator[Any]:
    from lab.environment import cores
    from lab.runner import Runner
    from lab.session import open_session

    with open_session() as session:
        yield Runner(session, cores(), retakes=0)


@pytest.mark.real
@every_codec
def test_a_worker_gets_every_argument_as_it_was_sent(runner: Any, codec: Codec):
    from lab.model import Setup, Trial
    from producer.pacers import Burst
    from producer.payloads import Payload

    compression = None if COMPRESSIONS["lz4"].missing else "lz4"
    setup = Setup(
        job="echo",
        args={"payload": Payload("records", 2000)},
        pacer=Burst(3),
        pool="solo",
        codec=codec.name,
        compression=compression,
    )
    # Given jobs that return what they got, which the lab compares with what it sent
    ledger = runner.run(Trial("test", setup, 0)).ledger
    assert (ledger.issued, ledger.done, ledger.wrong, ledger.lost) == (3, 3, 0, 0)
