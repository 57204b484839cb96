"""A payload by reference is the payload itself, and nothing of it stays behind."""

import json
import pickle
import random
import subprocess
import sys
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lab.environment import cores
from lab.model import FrozenArgs, Setup, Trial
from lab.runner import Runner
from lab.session import open_session
from producer.pacers import Burst
from producer.payloads import Text
from tasks.jobs import JOBS
from tasks.pools import POOLS
from tasks.references import KEPT_S, VIAS, PayloadGone, Where, drop, get, put
from tasks.registry import checksum

ROOT = Path(__file__).parent.parent
LOCAL = sorted(set(VIAS) - {"redis"})
OUTSIDE = sorted(name for name, via in VIAS.items() if not via.travels)
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  where Linux shows it
REDIS = [pytest.param("redis", marks=pytest.mark.real)]
weigh = JOBS["weigh"]


def still_there(references: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that still lead to something; asked without what is tested, where the system shows shared memory."""
    places = {"file": Path("/"), "shm": SHARED_MEMORY}
    return [one for one in references if one["via"] in places and (places[one["via"]] / one["at"]).exists()]


@pytest.fixture(scope="module")
def session():
    with open_session() as opened:
        yield opened


@pytest.fixture
def where(request, tmp_path, monkeypatch) -> Iterator[Where]:
    """Where a test may leave payloads, and where nothing may be left at its end."""
    place = Where(folder=tmp_path)
    if "redis" not in request.node.callspec.params.values():
        yield place
    else:
        session = request.getfixturevalue("session")
        monkeypatch.setenv("SIDESTEP_BROKER", session.broker.url)
        yield replace(place, key_prefix=session.prefix, client=session.client)
        assert session.client.dbsize() == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("via", [*LOCAL, *REDIS])
@pytest.mark.parametrize("size_bytes", [0, 1, 4095, 4096, 4097, 100_000, 5_000_000])
def test_what_was_put_is_what_is_got_until_it_is_dropped(via, size_bytes, where):
    payload = random.Random(size_bytes).randbytes(size_bytes)
    reference = put(via, payload, where)
    assert get(reference) == payload
    assert (reference["size_bytes"], reference["crc"]) == (size_bytes, zlib.crc32(payload))
    assert bool(still_there([reference])) == (via == "file" or (via == "shm" and SHARED_MEMORY.is_dir()))
    drop(reference, where)
    assert not still_there([reference])
    # What is gone may be dropped again
    drop(reference, where)


@given(st.binary(max_size=3000))
@example(b"\0" * 4096)
def test_any_bytes_come_back(tmp_path_factory, payload):
    where = Where(folder=tmp_path_factory.getbasetemp())
    for via in LOCAL:
        reference = put(via, payload, where)
        try:
            assert get(reference) == payload, via
        finally:
            drop(reference, where)


@pytest.mark.parametrize("via", [*LOCAL, *REDIS])
def test_a_reference_is_plain_json_and_only_what_travels_is_in_it(via, where):
    payload = random.Random(0).randbytes(100_000)
    reference = put(via, payload, where)
    try:
        if via == "inline-raw":
            assert reference["at"] == payload
            return
        text = json.dumps(reference)
        assert json.loads(text) == reference
        assert (len(text) > 100_000) == VIAS[via].travels
        assert get(json.loads(text)) == payload
    finally:
        drop(reference, where)


@pytest.mark.parametrize("via", [via for via in [*LOCAL, *REDIS] if via in OUTSIDE or via in REDIS])
def test_what_has_been_dropped_is_a_failure_that_says_where_it_was(via, where):
    reference = put(via, b"here", where)
    drop(reference, where)
    for attempt in (get, lambda gone: weigh.run(load=gone), lambda gone: weigh.run(load=gone, keep=True)):
        with pytest.raises(PayloadGone, match="dropped") as failure:
            attempt(reference)
        assert str(reference["at"]) in str(failure.value)
        assert "\n" not in str(failure.value)
    # And it can be handed from a child to its parent
    assert str(pickle.loads(pickle.dumps(failure.value))) == str(failure.value)  # noqa: S301  made here


def test_redis_is_only_found_where_a_broker_is_named(monkeypatch):
    monkeypatch.delenv("SIDESTEP_BROKER", raising=False)
    with pytest.raises(PayloadGone, match="SIDESTEP_BROKER does not say"):
        get({"via": "redis", "at": "key", "size_bytes": 1, "crc": 0})


def test_a_way_that_is_none_says_which_there_are():
    with pytest.raises(ValueError, match="one of inline, inline-raw, redis, file, shm, not 'pigeon'"):
        put("pigeon", b"")


def test_two_payloads_never_have_the_same_name(tmp_path):
    where = Where(folder=tmp_path)
    for via in sorted(set(LOCAL) & set(OUTSIDE)):
        references = [put(via, bytes([number]), where) for number in range(20)]
        try:
            assert [get(reference) for reference in references] == [bytes([number]) for number in range(20)]
        finally:
            for reference in references:
                drop(reference, where)


@pytest.mark.real
def test_redis_forgets_a_payload_by_itself(session):
    where = Where(key_prefix=session.prefix, client=session.client)
    reference = put("redis", b"payload", where)
    try:
        assert reference["at"].startswith(session.prefix)
        assert 0 < session.client.ttl(reference["at"]) <= KEPT_S
    finally:
        drop(reference, where)


@pytest.mark.parametrize("via", [*LOCAL, *REDIS])
@pytest.mark.parametrize("keep", [False, True])
def test_a_weighed_payload_gives_what_is_expected_of_it(via, keep, where):
    for payload in (b"", b"some bytes", random.Random(1).randbytes(100_000)):
        reference = put(via, payload, where)
        try:
            assert weigh.run(load=reference, keep=keep) == zlib.crc32(payload)
            assert weigh.expect(load=reference, keep=keep) == zlib.crc32(payload)
        finally:
            drop(reference, where)


@pytest.mark.parametrize("load", ["", "text with ä", "\udc80", b"", b"bytes"])
def test_a_payload_itself_can_be_weighed(load):
    plain = load if isinstance(load, bytes) else load.encode("utf-8", "surrogatepass")
    assert weigh.run(load=load) == weigh.expect(load=load) == zlib.crc32(plain)


@pytest.mark.parametrize("load", [None, 7, ["a"], {}, {"at": "somewhere"}, {"via": "pigeon", "at": "roof"}])
def test_what_is_neither_is_refused(load):
    with pytest.raises(TypeError, match="a load is a reference, text or bytes, not "):
        weigh.run(load=load)


@pytest.mark.parametrize("via", [*LOCAL, *REDIS])
def test_a_wrong_payload_is_found_out(via, where):
    # Given a reference of one payload that leads to another of the same size
    right, wrong = put(via, b"right", where), put(via, b"wrong", where)
    try:
        mixed_up = {**right, "at": wrong["at"]}
        assert checksum(weigh.run(load=mixed_up)) != checksum(weigh.expect(load=mixed_up))
    finally:
        drop(right, where)
        drop(wrong, where)


@pytest.mark.parametrize("via", ["file", "shm", *REDIS])
def test_what_is_kept_is_read_once_and_only_the_last_is_kept(via, where):
    first, second = put(via, b"first", where), put(via, b"second", where)
    try:
        assert (get(first, keep=True), get(second, keep=True)) == (b"first", b"second")
    finally:
        drop(first, where)
        drop(second, where)
    # Then the second is still known after it has gone, and the first is not
    assert get(second, keep=True) == b"second"
    with pytest.raises(PayloadGone):
        get(first, keep=True)
    # And nobody gets it who did not ask for it to be kept
    with pytest.raises(PayloadGone):
        get(second)


def test_threads_that_keep_get_what_they_asked_for(tmp_path):
    where = Where(folder=tmp_path)
    references = [put("file", bytes([number]) * 1000, where) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda turn: get(references[turn % 4], keep=True), range(400)))
    assert got == [bytes([turn % 4]) * 1000 for turn in range(400)]


READER = """
import json, sys
from tasks.jobs import JOBS
for line in sys.stdin:
    print(JOBS["weigh"].run(load=json.loads(line)), flush=True)
"""

WRITER = """
import json, sys
from pathlib import Path
from typing import Any
from tasks.references import Where, drop, put
where = Where(folder=Path(sys.argv[1]))
references = [put(via, b"payload" * 1000, where) for via in ("file", "shm") for _ in range(3)]
for reference in references:
    print(json.dumps(reference), flush=True)
if sys.stdin.readline():
    for reference in references:
        drop(reference, where)
"""


def process(script: str, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-W", "default", "-c", script, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_processes_that_read_neither_remove_anything_nor_complain(tmp_path):
    # Given a process that puts, and two that read one after the other
    writer = process(WRITER, str(tmp_path))
    assert writer.stdout
    references = [writer.stdout.readline() for _ in range(6)]
    put_down = [json.loads(reference) for reference in references]
    assert len(list(tmp_path.iterdir())) == 3
    for _ in range(2):
        reader = process(READER)
        out, complaints = reader.communicate("".join(references))
        # Then each reads all of it, and says nothing at its end
        assert out.split() == [str(zlib.crc32(b"payload" * 1000))] * 6
        assert (reader.returncode, complaints) == (0, "")
    # And the first can still drop what it put, in silence
    _, complaints = writer.communicate("drop\n")
    assert (writer.returncode, complaints) == (0, "")
    assert list(tmp_path.iterdir()) == []
    assert not still_there(put_down)


def test_shared_memory_goes_with_a_process_that_forgets_to_drop_it(tmp_path):
    writer = process(WRITER, str(tmp_path))
    out, _ = writer.communicate("")
    references = [json.loads(line) for line in out.splitlines()]
    assert len(references) == 6
    assert not still_there(reference for reference in references if reference["via"] == "shm")


def test_reading_starts_no_process_and_loads_no_multiprocessing(tmp_path):
    where = Where(folder=tmp_path)
    reference = put("shm", b"payload", where)
    try:
        script = (
            "import json, sys; from tasks.references import get; get(json.loads(sys.argv[1]))\n"
            "print('multiprocessing.shared_memory' in sys.modules, 'multiprocessing.resource_tracker' in sys.modules)"
        )
        reader = process(script, json.dumps(reference))
        out, complaints = reader.communicate()
        assert (out.split(), complaints) == (["False", "False"], "")
    finally:
        drop(reference, where)


@pytest.mark.real
@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("via", VIAS)
def test_every_pool_reads_every_reference_right(session, tmp_path, pool, via):
    if POOLS[pool].missing:
        pytest.skip(POOLS[pool].missing)
    where = Where(key_prefix=session.prefix, folder=tmp_path, client=session.client)
    reference = put(via, random.Random(0).randbytes(200_000), where)
    try:
        args = {"load": FrozenArgs(reference)}
        setup = Setup(job="weigh", args=args, pacer=Burst(12), pool=pool, concurrency=1 if pool == "solo" else 3)
        run = Runner(session, cores(), retakes=0).run(Trial("test", setup, 0))
    finally:
        drop(reference, where)
    assert (run.ledger.issued, run.ledger.done, run.ledger.duplicated) == (12, 12, 0)
    assert session.client.dbsize() == 0


@pytest.mark.real
@pytest.mark.parametrize("pool", ["threads", "gevent", "eventlet"])
def test_jobs_of_one_process_share_their_connections(session, pool):
    if POOLS[pool].missing:
        pytest.skip(POOLS[pool].missing)
    where = Where(key_prefix=session.prefix, client=session.client)
    reference = put("redis", b"payload", where)
    before = int(session.client.info("stats")["total_connections_received"])
    try:
        setup = Setup(job="weigh", args={"load": FrozenArgs(reference)}, pacer=Burst(100), pool=pool, concurrency=3)
        run = Runner(session, cores(), retakes=0).run(Trial("test", setup, 0))
    finally:
        drop(reference, where)
    assert run.ledger.done == 100
    # Then there are connections for the slots and for the worker and the producer themselves, not one for each job
    assert int(session.client.info("stats")["total_connections_received"]) - before < 50


@pytest.mark.real
def test_a_payload_that_has_gone_fails_the_job_and_not_the_worker(session, tmp_path):
    reference = put("file", b"payload", Where(folder=tmp_path))
    drop(reference)
    setup = Setup(job="weigh", args={"load": FrozenArgs(reference)}, pacer=Burst(5), pool="threads", concurrency=2)
    run = Runner(session, cores(), retakes=0).run(Trial("test", setup, 0))
    assert (run.ledger.done, run.ledger.failed, run.ledger.lost) == (0, 5, 0)


@pytest.mark.real
def test_a_payload_itself_is_weighed_by_workers_too(session):
    setup = Setup(job="weigh", args={"load": Text(3000)}, pacer=Burst(5), pool="threads")
    assert Runner(session, cores(), retakes=0).run(Trial("test", setup, 0)).ledger.done == 5
