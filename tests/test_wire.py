"""What a message is made of, byte by byte."""

import json

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st
from kombu import Connection
from kombu.utils.json import dumps

from lab.wire import PARTS, anatomy

ARGS = st.dictionaries(st.text(max_size=10), st.text(max_size=300) | st.integers(), max_size=4)


def message(args, *, argsrepr=None, body_encoding="base64", compression=None):
    """What kombu would keep in a list for such a job, as Celery makes it."""
    app = Celery("test", broker="memory://", set_as_current=False)
    texts = {} if argsrepr is None else {"argsrepr": argsrepr, "kwargsrepr": argsrepr}
    with Connection("memory://", transport_options={"body_encoding": body_encoding}) as connection:
        producer = app.amqp.Producer(connection)
        kept = []
        producer.channel._put = lambda _queue, made, **_: kept.append(made)
        made = app.amqp.as_task_v2("an id", "shop.resize", kwargs=args, **texts)
        app.amqp.send_task_message(producer, "shop.resize", made, queue="q", compression=compression)
    return dumps(kept[0]).encode()


@given(ARGS, st.sampled_from(["base64", None]), st.sampled_from([None, ""]), st.sampled_from([None, "zlib"]))
def test_the_parts_of_a_message_are_the_whole_message(args, body_encoding, argsrepr, compression):
    raw = message(args, argsrepr=argsrepr, body_encoding=body_encoding if compression is None else "base64")
    parts = anatomy(raw)
    assert tuple(parts) == PARTS
    assert sum(parts.values()) == len(raw)
    assert min(parts.values()) >= 0


def test_base64_adds_a_third_and_leaving_it_out_adds_nothing():
    args = {"text": "x" * 3000}
    with_it, without = anatomy(message(args)), anatomy(message(args, body_encoding=None))
    assert with_it["base64"] == pytest.approx(with_it["body"] / 3, abs=3)
    assert without["base64"] == 0
    # Quotes inside it are escaped, so it is a little larger than the body that base64 hides
    assert 0 < without["body"] - with_it["body"] < 100


def test_bytes_that_are_not_to_be_in_base64_are_so_all_the_same():
    # kombu's JSON has no other way to hold them
    raw = message({"text": "x" * 3000}, body_encoding=None, compression="zlib")
    parts = anatomy(raw)
    assert sum(parts.values()) == len(raw)
    assert parts["base64"] == pytest.approx(parts["body"] / 3, abs=3)


@pytest.mark.parametrize("text", ["plain", 'words like "Straße" and 漢字'])
def test_bytes_that_are_text_are_not_taken_for_base64(text: str):
    # Given a body in bytes, as a serializer of others makes it, which kombu's JSON writes as the text that it is
    made = json.loads(message({}, body_encoding=None)) | {"body": json.dumps([[text], {}], ensure_ascii=False).encode()}
    raw = dumps(made).encode()
    parts = anatomy(raw)
    # Then all of it is body
    assert parts["base64"] == 0
    assert parts["body"] == len(json.dumps(made["body"].decode())) - 2
    assert sum(parts.values()) == len(raw)


def test_a_job_without_the_text_of_its_arguments_has_only_the_two_names_of_it():
    args = {"text": "x" * 500}
    assert anatomy(message(args))["argument text"] > 500
    assert anatomy(message(args, argsrepr=""))["argument text"] < 50


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"{}", b'{"body": 1}', b"\xff"])
def test_what_is_no_message_is_said_to_be_none(raw):
    with pytest.raises(ValueError, match=r"."):
        anatomy(raw)
