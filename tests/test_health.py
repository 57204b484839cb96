"""A part of the stack is asked whether it works, and what is wrong is said in one line."""

import contextlib
import json
import logging
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from lab.broker import own_server
from lab.children import Children
from tasks import health, logs
from tasks.app import make_app
from tasks.health import NotAsked, Unwell, check_file, check_http, check_worker, end_after, fault_of
from tasks.pools import EVENTLET_WARNING_FILTER, POOLS
from tasks.settings import Settings, SettingsError, broker_url, from_env

WELL = {"queues": ["jobs"], "held": 0, "full": False, "asked_s_ago": 0.4}


@pytest.mark.parametrize(
    ("state", "fault"),
    [
        ({}, None),
        ({"asked_s_ago": None}, None),  # another broker than Redis
        ({"queues": []}, "no queue"),
        ({"asked_s_ago": 3600.0}, "not asked the broker"),
        # Hands full: it asks for nothing, and rightly
        ({"full": True, "held": 4, "asked_s_ago": 3600.0}, None),
        ({"full": True, "held": 0, "asked_s_ago": 3600.0}, "although it has none"),
    ],
)
def test_a_consumer_is_well_while_it_asks_for_jobs_or_has_its_hands_full(state, fault):
    found = fault_of({**WELL, **state})
    assert found is None if fault is None else fault in found


def test_a_worker_is_asked_to_end_and_then_ended(tmp_path):
    sent: list[tuple[int, signal.Signals]] = []
    count = tmp_path / "failures"
    said = [end_after(3, count, 7, kill=lambda pid, number: sent.append((pid, number))) for _ in range(5)]
    assert said[:2] == [" (1 of 3 times in a row)", " (2 of 3 times in a row)"]
    assert sent == [(7, signal.SIGTERM), (7, signal.SIGTERM), (7, signal.SIGKILL)]


def test_a_worker_that_ended_meanwhile_is_no_error(tmp_path):
    def gone(*_: int) -> None:
        raise ProcessLookupError

    assert end_after(1, tmp_path / "failures", 7, kill=gone) == "; it was asked to end"


def test_a_file_must_have_been_touched_lately(tmp_path):
    beat = tmp_path / "beat"
    with pytest.raises(Unwell, match="not there yet"):
        check_file(beat, within_s=10)
    beat.touch()
    check_file(beat, within_s=3600)
    os.utime(beat, (0, 0))
    with pytest.raises(Unwell, match="nothing has happened"):
        check_file(beat, within_s=10)


@contextlib.contextmanager
def answering(status: int):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def test_a_server_must_answer_200():
    with answering(200) as url:
        check_http(url)
    with pytest.raises(Unwell, match="does not answer"):
        check_http(url)
    with answering(503) as url, pytest.raises(Unwell, match="answers 503"):
        check_http(url)


@pytest.mark.real
@pytest.mark.parametrize("pool", POOLS)
def test_a_worker_of_every_pool_says_what_it_consumes_and_is_found_out_when_it_stops(pool, tmp_path):
    if POOLS[pool].missing:
        pytest.skip(POOLS[pool].missing)
    node = f"{pool}@here"
    with Children() as children, own_server(children) as broker:
        settings = Settings(broker=broker.url)
        # Given a worker that is ready
        ready, told = os.pipe()
        about = tmp_path / "worker"
        env = {**settings.to_env(), "SIDESTEP_READY_FD": str(told), health.WORKER_FILE: str(about)}
        env |= {"SIDESTEP_LOG": "json", "PYTHONWARNINGS": EVENTLET_WARNING_FILTER}
        command = [
            sys.executable,
            "-m",
            "celery",
            "-q",
            "-A",
            "tasks.stack",
            "worker",
            "-P",
            pool,
            "-c",
            "1",
            "-n",
            node,
        ]
        log = tmp_path / "log"
        with log.open("wb") as output:
            worker = children.start(
                [*command, "-Q", "jobs", "-l", "INFO"], env=env, stdout=output, stderr=output, pass_fds=(told,)
            )
        os.close(told)
        with os.fdopen(ready) as line:
            assert json.loads(line.readline())["pid"] == worker.pid
        # Then it answers that it waits for jobs of its queue
        answer = check_worker(settings, node, answer_s=10)
        assert answer["queues"] == ["jobs"]
        # And one check after the other leaves no queue of its own behind
        check_worker(settings, node, answer_s=10)
        with broker.client() as client:
            assert [key for key in client.scan_iter() if "reply" in key] == []
        # When its consumer stops, it still answers, and is found out
        with contextlib.closing(make_app(settings)) as app:
            assert app.control.cancel_consumer("jobs", reply=True, timeout=20, limit=1)

            # Workers stop a consumer when its loop comes round, some after they have said so
            def asked_again_and_again() -> None:
                deadline = time.monotonic() + 30
                while time.monotonic() < deadline:
                    check_worker(settings, node, answer_s=10)

            with pytest.raises(Unwell, match=f"{node} answers, but its consumer has no queue"):
                asked_again_and_again()
            # And nobody answers for a stranger
            with pytest.raises(Unwell, match="other@here does not answer"):
                check_worker(settings, "other@here", answer_s=0.5)
        assert json.loads(about.read_text()) == {"node": node, "pid": worker.pid}
        events = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
        assert any(event["message"].endswith("ready.") for event in events)


def test_a_broker_that_does_not_answer_is_not_the_workers_fault():
    with pytest.raises(NotAsked, match="broker does not answer"):
        check_worker(Settings(broker="redis://127.0.0.1:1/0"), "threads@here", answer_s=1)


def test_a_worker_that_is_not_ready_yet_is_not_asked(monkeypatch, tmp_path):
    monkeypatch.setenv(health.WORKER_FILE, str(tmp_path / "worker"))
    with pytest.raises(NotAsked, match="not ready yet"):
        health.worker(failures=1)


# --- log lines -------------------------------------------------------------------------------------------------------


def record(message: str, *args: object, **more: object) -> logging.LogRecord:
    made = logging.LogRecord("celery.worker", logging.WARNING, __file__, 1, message, args, None)
    vars(made).update(more)
    return made


def test_an_event_is_one_line_whatever_it_holds():
    text = logs.JsonLines().format(record("two\nlines\u2028and %s", "\x1b[0m"))
    assert "\n" not in text
    assert text.isascii()
    assert json.loads(text)["message"] == "two\nlines\u2028and \x1b[0m"


def test_an_event_of_a_job_names_it():
    event = json.loads(logs.JsonLines().format(record("x", data={"id": "7", "name": "sidestep.spin", "runtime": 0.5})))
    assert (event["job"], event["task"], event["runtime_s"]) == ("7", "sidestep.spin", 0.5)
    assert (event["level"], event["logger"]) == ("warning", "celery.worker")


def test_an_exception_is_part_of_its_event():
    try:
        raise ValueError("of no use")
    except ValueError:
        made = record("it failed", exc_info=sys.exc_info())
    assert "ValueError: of no use" in json.loads(logs.JsonLines().format(made))["traceback"]


def test_a_log_is_text_or_json_and_nothing_else():
    assert not logs.wants_json({})
    assert not logs.wants_json({"SIDESTEP_LOG": "text"})
    assert logs.wants_json({"SIDESTEP_LOG": "json"})
    with pytest.raises(SettingsError, match="SIDESTEP_LOG"):
        logs.wants_json({"SIDESTEP_LOG": "xml"})


# --- the broker in a file --------------------------------------------------------------------------------------------


def test_the_brokers_url_may_lie_in_a_file(tmp_path):
    file = tmp_path / "broker"
    file.write_text("redis://me:secret@host:1/2\n")
    assert from_env({"SIDESTEP_BROKER_FILE": str(file)}).broker == "redis://me:secret@host:1/2"
    # And what is named outright comes first
    told = {"SIDESTEP_BROKER_FILE": str(file), "SIDESTEP_BROKER": "redis://other"}
    assert broker_url(told) == from_env(told).broker == "redis://other"


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff\xfe"])
def test_a_file_without_a_url_is_named_in_one_line(tmp_path, content):
    file = tmp_path / "broker"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError, match="SIDESTEP_BROKER_FILE") as refusal:
        from_env({"SIDESTEP_BROKER_FILE": str(file)})
    assert "\n" not in str(refusal.value)


def test_a_password_in_a_file_is_in_no_message(tmp_path):
    file = tmp_path / "broker"
    file.write_text("http://me:hunter2@host")
    with pytest.raises(SettingsError) as refusal:
        from_env({"SIDESTEP_BROKER_FILE": str(file)})
    assert "hunter2" not in str(refusal.value)
