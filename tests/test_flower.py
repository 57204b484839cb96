"""Flower, as a person sees it: in a real browser, with workers of two pools."""

import base64
import http.client
import json
import os
import secrets
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from lab.arenas.arena import await_ready
from lab.broker import own_server
from lab.children import Children
from tasks.app import make_app
from tasks.settings import Settings
from tests.browser import PATIENCE_S, Browser, need_chromium, pictures_in, until

pytestmark = [pytest.mark.real, pytest.mark.stack]

if not os.environ.get("CI"):
    pytest.importorskip("flower", reason="the extra `flower` is not installed")


@dataclass
class Flower:
    """One that runs."""

    url: str
    user: str
    password: str = field(repr=False)

    def ask(self, path: str, *, login: bool = True, method: str = "GET") -> tuple[int, str]:
        """The status and text of an answer."""
        data = b"" if method == "POST" else None
        request = urllib.request.Request(self.url + path, method=method, data=data)  # noqa: S310  our own, on loopback
        if login:
            token = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
            request.add_header("Authorization", f"Basic {token}")
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:  # noqa: S310
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()


def start_flower(children: Children, settings: Settings) -> Flower:
    """Flower for the app with these settings, on a free loopback port, that wants a password."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    flower = Flower(f"http://127.0.0.1:{port}", "flower", secrets.token_urlsafe(16))
    log = children.directory / f"flower-{port}.log"
    # In the environment, not in the arguments, which everybody can see.
    env = {**settings.to_env(), "FLOWER_BASIC_AUTH": f"{flower.user}:{flower.password}"}
    command = [sys.executable, "-m", "celery", "-A", "tasks", "flower", "--address=127.0.0.1", f"--port={port}"]
    with log.open("wb") as output:
        process = children.start(command, env=env, stdout=output, stderr=output)

    def answers() -> bool:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            return flower.ask("/healthcheck")[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    until(answers, "Flower did not start")
    return flower


# --- what a person sees ----------------------------------------------------------------------------------------------

POOLS_SHOWN = ("prefork", "threads")


@dataclass
class Stand:
    """A broker, a worker of each of two pools, and Flower."""

    flower: Flower
    settings: Settings


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children() as started:
        yield started


@pytest.fixture(scope="module")
def stand(children: Children) -> Iterator[Stand]:
    with own_server(children) as broker:
        settings = Settings(broker=broker.url, key_prefix=f"sidestep:{uuid.uuid4().hex[:8]}:", results=True)
        flower = start_flower(children, settings)
        for pool in POOLS_SHOWN:
            start_worker(children, settings, pool)
        yield Stand(flower, settings)


def start_worker(children: Children, settings: Settings, pool: str) -> subprocess.Popen[Any]:
    log = children.directory / f"{pool}.log"
    ready, told = os.pipe()
    env = {**settings.to_env(), "SIDESTEP_READY_FD": str(told)}
    command = [sys.executable, "-m", "celery", "-A", "tasks", "worker", "-P", pool, "-c", "2", "-E"]
    command += ["-Q", f"{pool}-jobs", "-n", f"{pool}@node-1", "-l", "WARNING"]
    with log.open("wb") as output:
        worker = children.start(command, env=env, stdout=output, stderr=output, pass_fds=(told,))
    os.close(told)
    try:
        await_ready(ready, worker, log, f"worker {pool}")
    finally:
        os.close(ready)
    return worker


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures_in(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def browser(children: Children, tmp_path: Path) -> Iterator[Browser]:
    need_chromium()
    made = Browser(children, tmp_path / "browser")
    yield made
    made.close()


CLOSED = (
    "/",
    "/workers",
    "/tasks",
    "/broker",
    "/worker/threads@node-1",
    "/api/workers",
    "/api/tasks",
    "/api/task/types",
)


@pytest.mark.parametrize("path", CLOSED)
def test_no_page_and_no_answer_without_credentials(stand, path):
    assert stand.flower.ask(path, login=False)[0] == 401
    assert stand.flower.ask(path)[0] == 200
    wrong = Flower(stand.flower.url, stand.flower.user, "guessed")
    assert wrong.ask(path)[0] == 401


def test_nothing_can_be_done_without_credentials(stand):
    for path in ("/api/worker/shutdown/threads@node-1", "/api/task/send-task/sidestep.echo"):
        assert stand.flower.ask(path, login=False, method="POST")[0] == 401
    workers = json.loads(stand.flower.ask("/api/workers?refresh=1")[1])
    assert set(workers) == {f"{pool}@node-1" for pool in POOLS_SHOWN}


def test_a_browser_without_credentials_sees_nothing(stand, browser, pictures):
    browser.open(stand.flower.url + "/workers")
    assert browser.statuses["/workers"] == 401
    assert browser.text.strip() == "Access denied"
    browser.picture(pictures / "flower-refused.png")


def test_a_browser_sees_every_pool_and_a_job_until_it_succeeds(stand, browser, pictures):
    flower, settings = stand.flower, stand.settings
    browser.login = (flower.user, flower.password)
    # The page of workers names each by pool and node, and says that it is online
    browser.open(flower.url + "/workers")
    assert browser.statuses["/workers"] == 200
    names = [f"{pool}@node-1" for pool in POOLS_SHOWN]
    until(lambda: len(browser.rows("workers-table")) == len(names), "not all workers are listed")
    shown = {row[0]: row[1] for row in browser.rows("workers-table")}
    assert shown == dict.fromkeys(names, "Online")
    browser.picture(pictures / "flower-workers.png")
    # When jobs are sent, one to each pool
    app = make_app(settings)
    sent = {pool: app.tasks["sidestep.echo"].apply_async(("hello",), queue=f"{pool}-jobs").id for pool in POOLS_SHOWN}
    # Then the page of tasks shows each with its name, and in the end that it succeeded
    browser.open(flower.url + "/tasks")
    for job_id in sent.values():
        row = (
            f"[...document.querySelectorAll('#tasks-table tbody tr')].find(row => row.textContent.includes('{job_id}'))"
        )
        shown = until(lambda row=row: reloaded(browser, f"({row} || {{}}).textContent"), "the job is not shown")
        assert "sidestep.echo" in shown
        assert "SUCCESS" in shown
    browser.picture(pictures / "flower-tasks.png")
    # And the job's own page tells what it was called with and where it ran
    job_id = sent["threads"]
    browser.open(f"{flower.url}/task/{job_id}")
    for said in (job_id, "sidestep.echo", "SUCCESS", "hello", "threads@node-1"):
        assert said in browser.text
    browser.picture(pictures / "flower-task.png")
    # And the worker's page knows its pool and its queue
    browser.open(f"{flower.url}/worker/threads@node-1")
    browser.until("document.body.textContent.includes('Max concurrency')")
    assert password(settings) not in browser.text
    browser.picture(pictures / "flower-worker.png")
    app.close()
    assert browser.complaints == []


def password(settings: Settings) -> str:
    """The broker's, which belongs on no page."""
    found = urlsplit(settings.broker).password
    assert found
    return found


def reloaded(browser: Browser, expression: str) -> Any:
    """The expression's value once it tells of a success; else the page is loaded anew, as a person would."""
    if "SUCCESS" in (found := str(browser.ask(expression) or "")):
        return found
    browser.reload()
    return None


def test_its_metrics_name_every_worker(stand):
    # Flower 2.2 shows them to anybody: the port belongs where only friends are
    status, text = stand.flower.ask("/metrics", login=False)
    assert status == 200
    for pool in POOLS_SHOWN:
        assert f'flower_worker_online{{worker="{pool}@node-1"}} 1.0' in text


def test_a_browser_sees_the_depth_of_each_queue(stand, browser, pictures):
    flower, settings = stand.flower, stand.settings
    # Given many more long jobs than a worker fetches
    app = make_app(settings)
    for _ in range(40):
        app.tasks["sidestep.snooze"].apply_async(kwargs={"ms": 600_000}, queue="prefork-jobs")
    app.close()
    with redis.Redis.from_url(settings.broker) as client:
        depth = lambda: client.llen(f"{settings.key_prefix}prefork-jobs")  # noqa: E731
        before = depth()
        browser.login = (flower.user, flower.password)
        browser.open(flower.url + "/broker")
        until(lambda: len(browser.rows("queue-table")) >= len(POOLS_SHOWN), "not all queues are listed")
        shown = {cells[0]: int(cells[1]) for cells in browser.rows("queue-table")}
        after = depth()
    assert browser.statuses["/broker"] == 200
    assert set(shown) == {f"{pool}-jobs" for pool in POOLS_SHOWN}
    assert 20 < after <= shown["prefork-jobs"] <= before
    assert shown["threads-jobs"] == 0
    assert password(settings) not in browser.text
    browser.picture(pictures / "flower-broker.png")
    assert browser.complaints == []
