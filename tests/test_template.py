"""A filled template is the message that Celery itself makes, to the byte but for its tag."""

import contextlib
import itertools
import json
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
import redis
from celery import Celery, signals
from celery.app.amqp import AMQP
from celery.utils.saferepr import saferepr
from hypothesis import given, settings
from hypothesis import strategies as st
from kombu import Exchange, Queue
from kombu.exceptions import EncodeError, SerializerNotInstalled
from kombu.transport.redis import PRIORITY_STEPS
from kombu.transport.redis import Channel as RedisChannel

from lab.session import open_session
from producer.publish import Parcel, Sender
from producer.template import Call, Route, Style, Template, differences, flat_repr, ids, why_not
from tasks.codecs import CODECS, COMPRESSIONS, register
from tasks.pools import POOLS

UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
PREFIX = "sidestep:test-template:"
NOW = datetime(2026, 11, 23, 12, 30, tzinfo=UTC)
USABLE = [codec.name for codec in CODECS.values() if not codec.missing]
COMPRESSED = [None, *(one.name for one in COMPRESSIONS.values() if not one.missing)]

plain = st.one_of(st.none(), st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False), st.text())


@given(st.dictionaries(st.text(), plain), st.sampled_from([64, 1024]))
def test_the_quick_text_of_arguments_is_celerys_own_wherever_there_is_one(values, limit):
    quick = flat_repr(values, limit)
    whole = saferepr(values, None)
    # It may be missing only where Celery's own is cut or about to be
    assert quick is not None or len(whole) >= limit or any(len(v) >= limit for v in values.values() if type(v) is str)
    assert quick in {None, saferepr(values, limit, maxlevels=3)}


@pytest.mark.parametrize("values", [{"a": [1]}, {"a": b"x"}, {1: 2}, {"a": 10**5000 > 0, "b": {}}, {"a": ()}])
def test_what_is_not_plain_is_left_to_celery(values):
    assert flat_repr(values, 1024) is None


def test_ids_have_the_form_of_a_uuid_and_no_two_are_alike():
    # Given many from several makers
    made = list(itertools.chain.from_iterable(itertools.islice(ids(), 5000) for _ in range(4)))
    assert len(set(made)) == len(made)
    assert all(UUID.fullmatch(one) and str(uuid.UUID(one)) == one for one in made)


class Stopped(Celery):
    """An app for which it is always the same time."""

    def now(self) -> datetime:
        return NOW


@pytest.fixture(scope="module")
def session():
    with open_session() as opened:
        yield opened


def app_of(url: str, kind: type[Celery] = Stopped, **options: Any) -> Celery:
    register(*USABLE)
    app = kind("test-template", broker=url, set_as_current=False, **options)
    app.conf.update(
        broker_transport_options={"global_keyprefix": PREFIX}, result_backend=None, task_create_missing_queues=True
    )
    return app


@contextlib.contextmanager
def publisher(app: Celery, *, base64: bool = True) -> Iterator[Any]:
    with app.connection_for_write(transport_options=None if base64 else {"body_encoding": None}) as connection:
        yield app.amqp.Producer(connection)


@pytest.fixture(scope="module")
def app(session):
    with app_of(session.broker.url) as made:
        yield made


@pytest.fixture(scope="module")
def producers(app):
    """One that writes bodies in base64, and one that does not."""
    with publisher(app) as one, publisher(app, base64=False) as other:
        yield {True: one, False: other}


def really_sent(session, app, producer, style, route, call) -> tuple[bytes, bytes]:
    """What lies in Redis when Celery has sent the call, and the list that it lies in."""
    made = app.amqp.as_task_v2(
        call.id,
        route.task_name,
        call.args,
        call.kwargs,
        eta=None if isinstance(call.eta, int) else call.eta,
        countdown=call.eta if isinstance(call.eta, int) else None,
        expires=call.expires,
        ignore_result=style.ignore_result,
        argsrepr=None if style.argsrepr else "",
        kwargsrepr=None if style.argsrepr else "",
    )
    app.amqp.send_task_message(
        producer,
        route.task_name,
        made,
        queue=route.queue,
        priority=route.priority,
        serializer=style.serializer,
        compression=style.compression,
        retry=False,
    )
    with redis.Redis.from_url(session.broker.url) as client:
        lists = [key for key in client.scan_iter(match=PREFIX + "*") if client.type(key) == b"list"]
        (key,) = lists
        message, *others = client.lrange(key, 0, -1)
        assert not others
        client.delete(key)
        return message, key


leaves = st.one_of(st.none(), st.booleans(), st.integers(-(2**60), 2**60), st.floats(allow_nan=False), st.text())
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)
moments = st.one_of(
    st.none(),
    st.integers(0, 10**6),
    st.datetimes(datetime(2026, 1, 1), datetime(2100, 1, 1)),
    st.datetimes(
        datetime(2026, 1, 1),
        datetime(2100, 1, 1),
        timezones=st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30))]),
    ),
)
calls = st.builds(
    Call,
    id=st.uuids().map(str) | st.text(min_size=1),
    args=st.lists(values, max_size=3).map(tuple),
    kwargs=st.dictionaries(st.text(), values, max_size=4),
    eta=moments,
    expires=moments,
)
routes = st.builds(
    Route,
    task_name=st.text(min_size=1),
    # As text that Redis, JSON and a % format might take for something else.
    queue=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20) | st.sampled_from(["%b", "%%", 'a"b', "\x06"]),
    priority=st.integers(0, 9),
)
styles = st.builds(
    Style,
    serializer=st.sampled_from(USABLE),
    compression=st.sampled_from(COMPRESSED),
    argsrepr=st.booleans(),
    ignore_result=st.booleans(),
)


@pytest.mark.real
@settings(max_examples=200)
@given(style=styles, route=routes, base64=st.booleans(), sent=st.lists(calls, min_size=1, max_size=3))
def test_a_filled_template_is_what_celery_sends_for_the_same_call(session, app, producers, style, route, base64, sent):
    producer = producers[base64]
    template = Template(app, producer, style, route)
    tags = []
    for call in sent:
        # Given what lies in Redis after Celery has sent it
        own, key = really_sent(session, app, producer, style, route, call)
        # When the template is filled for the same call
        filled = template.fill(*call)
        # Then it would lie in the same list, and every field is the same, but for the tag
        assert template.key == key
        theirs, ours = json.loads(own), json.loads(filled)
        assert list(differences(theirs, ours)) == ["properties.delivery_tag"]
        tag, own_tag = (one["properties"]["delivery_tag"] for one in (ours, theirs))
        assert UUID.fullmatch(tag)
        tags.append(tag)
        # And so is every byte
        assert filled.replace(tag.encode(), own_tag.encode()) == own
    assert len(set(tags)) == len(tags)


@pytest.mark.real
def test_apply_async_differs_only_in_what_it_alone_knows(session, app, producers):
    # Given a task that is sent the usual way, with a time to run and one to give up
    @app.task(name="test.usual")
    def usual(*_: Any, **__: Any) -> None:
        """Never run."""

    call = Call(str(uuid.uuid4()), (1, "ä"), {"a": [1, None]}, NOW + timedelta(days=9000), NOW + timedelta(days=9001))
    with redis.Redis.from_url(session.broker.url) as client:
        usual.apply_async(
            call.args,
            call.kwargs,
            task_id=call.id,
            eta=call.eta,
            expires=call.expires,
            priority=5,
            queue="usual",
            producer=producers[True],
            ignore_result=True,
        )
        filled = Template(app, producers[True], Style(), Route("test.usual", "usual", 5)).fill(*call)
        (own,) = client.lrange(f"{PREFIX}usual\x06\x163", 0, -1)
        client.delete(f"{PREFIX}usual\x06\x163")
    assert sorted(differences(json.loads(own), json.loads(filled))) == [
        "properties.delivery_tag",
        "properties.expiration",
        "properties.reply_to",
    ]


@pytest.mark.real
def test_priority_decides_the_list(app, producers):
    keys = [Template(app, producers[True], Style(), Route("t", "q", one)).key.decode() for one in range(10)]
    assert keys == [PREFIX + "q" + ("" if p < 3 else f"\x06\x16{p // 3 * 3}") for p in range(10)]
    assert PRIORITY_STEPS == [0, 3, 6, 9]


@pytest.mark.real
@pytest.mark.parametrize("serializer", ["json", "pickle"])
def test_what_cannot_be_encoded_is_refused_in_kombus_words_and_harms_no_later_job(app, producers, serializer):
    template = Template(app, producers[True], Style(serializer=serializer), Route("t", "q"))
    shared: dict[str, Any] = {"good": 1}
    broken = {"inner": shared, "bad": lambda: None}
    with pytest.raises(EncodeError):
        template.fill("id", (), broken)
    # The same objects again, without the bad one
    del broken["bad"]
    assert json.loads(template.fill("id", (), broken))["headers"]["kwargsrepr"] == "{'inner': {'good': 1}}"


@pytest.mark.real
def test_arguments_are_encoded_again_for_each_job_unless_it_is_asked_otherwise(app, producers):
    def body(template: Template, kwargs: dict[str, Any]) -> tuple[str, str]:
        message = json.loads(template.fill("id", (), kwargs))
        return message["body"], message["headers"]["kwargsrepr"]

    again = Template(app, producers[True], Style(), Route("t", "q"))
    once = Template(app, producers[True], Style(), Route("t", "q"), encode_once=True)
    # Given arguments that somebody changes between two jobs
    kwargs = {"n": 1}
    before = body(again, kwargs), body(once, kwargs)
    kwargs["n"] = 2
    # Then only who promised not to do so gets what was there before
    assert body(again, kwargs) != before[0]
    assert body(once, kwargs) == before[1] == before[0]
    # And equal arguments that are no longer the same object are looked at
    assert body(once, {"n": True}) == body(again, {"n": True}) != before[1]


@pytest.mark.real
def test_making_a_template_sends_nothing_and_leaves_the_channel_as_it_was(session, app, producers):
    channel = producers[True].channel
    before = dict(vars(channel))
    Template(app, producers[True], Style(), Route("t", "silent"))
    assert not {"_put", "_put_fanout", "_next_delivery_tag"} & set(vars(channel))
    assert set(vars(channel)) == set(before)
    assert session.client.llen(f"{PREFIX}silent") == 0


class Clocked(AMQP):
    """Celery, were it to write into each message what a template cannot know."""

    def as_task_v2(self, *args: Any, **kwargs: Any) -> Any:
        message = super().as_task_v2(*args, **kwargs)
        message.headers["made_at"] = time.monotonic_ns()
        return message


class Counting(AMQP):
    """Celery, were it to write how many arguments there are."""

    def as_task_v2(self, *args: Any, **kwargs: Any) -> Any:
        message = super().as_task_v2(*args, **kwargs)
        message.headers["count"] = len(message.body[1])
        return message


class Hiding(AMQP):
    """Celery, were it to write no root."""

    def as_task_v2(self, *args: Any, **kwargs: Any) -> Any:
        message = super().as_task_v2(*args, **kwargs)
        del message.headers["root_id"]
        return message


def sender_of(app: Celery, queue: str, **options: Any) -> Sender:
    return Sender(app, lambda seq: Parcel(f"id-{seq}", "test.add", queue, {"x": seq}), **options)


@pytest.mark.real
@pytest.mark.parametrize(
    ("amqp", "why"),
    [
        (Clocked, "in different ways"),
        (Counting, "differs from Celery's own in headers.count"),
        (Hiding, "where body, id, eta"),
    ],
)
def test_a_template_that_would_not_be_true_is_not_used_and_the_jobs_go_the_other_way(session, amqp, why):
    with app_of(session.broker.url, amqp=amqp) as other, contextlib.closing(sender_of(other, "untrue")) as sender:
        sender.prepare("untrue")
        assert sender.path.startswith("batch: ")
        assert why in sender.path
        sender([0, 1])
        held = [json.loads(one)["headers"]["id"] for one in session.client.lrange(f"{PREFIX}untrue", 0, -1)]
        session.client.delete(f"{PREFIX}untrue")
    assert held == ["id-1", "id-0"]


@pytest.mark.real
@pytest.mark.parametrize("kind", ["fanout", "topic"])
def test_a_queue_that_is_not_one_list_goes_the_other_way(session, kind):
    with app_of(session.broker.url) as other:
        other.conf.task_queues = [Queue("far", Exchange(f"test-{kind}", type=kind), routing_key="far")]
        with contextlib.closing(sender_of(other, "far")) as sender:
            # Not prepared: what cannot be done is also found out by sending
            sender([0, 1])
            assert sender.path == f"batch: queue 'far' has a {kind} exchange, not a direct one"
        sent = session.client.lrange(f"{PREFIX}far", 0, -1)
        session.client.delete(f"{PREFIX}far")
    assert len(sent) == (2 if kind == "topic" else 0)


@pytest.mark.real
def test_a_queue_that_expires_goes_the_other_way(session):
    with app_of(session.broker.url) as other:
        other.conf.task_queues = [Queue("brief", Exchange("brief"), routing_key="brief", expires=60)]
        with contextlib.closing(sender_of(other, "brief")) as sender:
            sender.prepare("brief")
            assert sender.path.startswith("batch: a message for queue 'brief' is not one push to one list but lpush")
            sender([0])
        assert session.client.llen(f"{PREFIX}brief") == 1
        assert session.client.ttl(f"{PREFIX}brief") > 0
        session.client.delete(f"{PREFIX}brief")


def test_another_broker_goes_the_other_way():
    with Celery("test", broker="memory://", set_as_current=False) as app, app.connection_for_write() as connection:
        assert why_not(app, connection) == "the broker is memory, not Redis"


@pytest.mark.real
def test_who_begins_to_listen_later_gets_what_is_sent_from_then_on(session):
    heard = []

    def listener(headers: dict[str, Any], **_: Any) -> None:
        heard.append(headers["id"])

    with app_of(session.broker.url) as other, contextlib.closing(sender_of(other, "heard")) as sender:
        sender([0])
        signals.before_task_publish.connect(listener)
        try:
            sender([1, 2])
        finally:
            signals.before_task_publish.disconnect(listener)
        assert session.client.llen(f"{PREFIX}heard") == 3
        session.client.delete(f"{PREFIX}heard")
    assert heard == ["id-1", "id-2"]


def test_who_listens_to_a_signal_of_publishing_gets_it():
    with Celery("test", broker="redis://127.0.0.1:1/0", set_as_current=False) as app:
        connection = app.connection_for_write()
        assert why_not(app, connection) is None

        def listener(**_: Any) -> None:
            """Wants to hear of each message."""

        signals.before_task_publish.connect(listener)
        try:
            assert why_not(app, connection) == "somebody receives the signal before_task_publish"
        finally:
            signals.before_task_publish.disconnect(listener)


@pytest.mark.real
def test_a_serializer_that_nobody_knows_is_named(app, producers):
    with pytest.raises(SerializerNotInstalled, match="morse"):
        Template(app, producers[True], Style(serializer="morse"), Route("t", "q"))


STOCK = """
import time
from celery import Celery
app = Celery("stock", broker={url!r}, backend={url!r})
app.conf.update(broker_transport_options={{"global_keyprefix": {prefix!r}}}, worker_prefetch_multiplier=1,
                accept_content=["json", "yaml"], result_backend_thread_safe=True, worker_hijack_root_logger=False,
                result_backend_transport_options={{"global_keyprefix": {prefix!r}}})

@app.task(name="stock.add")
def add(x, y=0):
    return x + y

@app.task(name="stock.echo")
def echo(payload):
    return payload

@app.task(name="stock.started")
def started():
    return time.time()
"""
PATIENCE_S = 90


@pytest.mark.real
@pytest.mark.parametrize("pool", POOLS)
def test_a_stock_worker_of_every_pool_runs_what_a_template_made(session, tmp_path, pool):
    if POOLS[pool].missing:
        pytest.skip(POOLS[pool].missing)
    # Given a Celery app that knows nothing of us, with its own two settings
    url, prefix = session.broker.url, f"sidestep:test-stock-{pool}:"
    (tmp_path / "stock.py").write_text(STOCK.format(url=url, prefix=prefix))
    tree = {"ä": [1, None, {"b": "\u2028'\""}], "": 1.5}
    parcels = {
        "late": Parcel(str(uuid.uuid4()), "stock.started", "celery", {}, priority=9),
        "add": Parcel(str(uuid.uuid4()), "stock.add", "celery", {"x": 2, "y": 3}),
        "echo": Parcel(str(uuid.uuid4()), "stock.echo", "celery", {"payload": tree}, priority=3),
        "gone": Parcel(str(uuid.uuid4()), "stock.add", "celery", {"x": 1}, expires=-1.0),
        "kept": Parcel(str(uuid.uuid4()), "stock.add", "celery", {"x": 1}, expires=3600.0),
        "wait": Parcel(str(uuid.uuid4()), "stock.started", "celery", {}, eta=3.0),
        "first": Parcel(str(uuid.uuid4()), "stock.started", "celery", {}, priority=0),
    }
    styles = ({}, {"serializer": "yaml", "compression": "zlib", "argsrepr": False})
    with Celery("stock-client", broker=url, backend=url, set_as_current=False) as app:
        app.conf.broker_transport_options = {"global_keyprefix": prefix}
        app.conf.result_backend_transport_options = {"global_keyprefix": prefix}
        # When they are sent by a template before there is a worker
        due_s, sent = time.time() + 3, []
        for style in styles:
            named = {name: parcel._replace(id=str(uuid.uuid4())) for name, parcel in parcels.items()}
            sender = Sender(app, list(named.values()).__getitem__, ignore_result=False, **style)
            sender(range(len(named)))
            assert sender.path == "template"
            sender.close()
            sent.append(named)
        worker = session.children.start(
            [sys.executable, "-m", "celery", "-A", "stock", "worker", "-P", pool, "-c", "1", "-l", "WARNING"],
            python_path=tmp_path,
            cwd=str(tmp_path),
            env={"PYTHONWARNINGS": "ignore"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            for named in sent:
                # Then each is done, and right
                got = {name: app.AsyncResult(one.id) for name, one in named.items()}
                assert got["add"].get(timeout=PATIENCE_S) == 5
                assert got["echo"].get(timeout=PATIENCE_S) == tree
                assert got["kept"].get(timeout=PATIENCE_S) == 1
                # And those of more priority first, of which Celery on Redis takes the lower number for the higher
                assert got["first"].get(timeout=PATIENCE_S) < got["late"].get(timeout=PATIENCE_S)
                # And none before its time, or after it
                assert got["wait"].get(timeout=PATIENCE_S) >= due_s
                with pytest.raises(Exception, match="expired"):
                    got["gone"].get(timeout=PATIENCE_S)
        finally:
            worker.terminate()
            worker.wait()
    assert session.client.llen(f"{prefix}celery") == 0


def test_the_redis_channel_still_has_what_a_template_is_taken_from():
    assert {"_put", "_put_fanout", "_next_delivery_tag", "create_publish_batch"} <= set(dir(RedisChannel))
