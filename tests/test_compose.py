"""The stack of compose.yaml, run for real: it comes up, works, defends itself, mends itself and leaves nothing."""

import base64
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.docker

DOCKER = shutil.which("docker") or "docker"
ROOT = Path(__file__).resolve().parent.parent
POOLS = {"prefork": "cpu", "threads": "io-threads", "eventlet": "io"}
LASTING = ("redis", "worker-prefork", "worker-threads", "worker-eventlet", "flower", "upstream", "producer")
ONCE = ("init", "hello")
PATIENCE_S = 90.0
"""Not a claim about speed: what does not come in this time does not come."""


def docker(*args: str, check: bool = True, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [DOCKER, *args], cwd=ROOT, env={**os.environ, **(env or {})}, capture_output=True, text=True, check=False
    )
    if check and done.returncode:
        raise AssertionError(f"docker {' '.join(args)}: {done.stdout[-1500:]} {done.stderr[-3000:]}")
    # Some versions of Compose clear the line before each of a log, terminal or not
    return done.stdout.replace("\x1b[2K", "")


def until(what: str, found: Callable[[], Any]) -> Any:
    """The first thing that is not None, False or empty."""
    end_s = time.monotonic() + PATIENCE_S
    while not (seen := found()):
        assert time.monotonic() < end_s, f"still not: {what}"
        time.sleep(0.5)  # between looks at another machine's state
    return seen


class Stack:
    """One project of its own, beside whatever else runs here."""

    def __init__(self) -> None:
        self.project = f"sidestep-test-{uuid.uuid4().hex[:8]}"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = str(probe.getsockname()[1])
        self.login = ""

    def compose(self, *args: str, check: bool = True) -> str:
        return docker("compose", "-p", self.project, *args, check=check, env={"FLOWER_PORT": self.port})

    def python(self, service: str, code: str, *args: str) -> str:
        return self.compose("exec", "-T", service, "python", "-c", code, *args)

    def container(self, service: str) -> dict[str, Any]:
        (name,) = self.compose("ps", "-aq", service).split()
        return json.loads(docker("inspect", name))[0]

    def health(self, service: str) -> str:
        return self.container(service)["State"]["Health"]["Status"]

    def flower(self, path: str, login: str | None = None) -> tuple[int, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        if login:
            request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310  our own address
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, ""

    def tasks(self) -> list[dict[str, Any]]:
        status, body = self.flower("/api/tasks?limit=2000", self.login)
        assert status == 200
        return list(json.loads(body).values())

    def probe(self, queue: str) -> str:
        """Send a job that is known by its argument."""
        word = uuid.uuid4().hex
        self.compose(
            *("exec", "-T", "producer", "python", "-m", "producer.cli", "--job", "echo", "--arg", f"payload={word}"),
            *("--queue", queue, "--rate", "1", "--for", "1s"),
        )
        return word

    def finished(self, word: str) -> dict[str, Any] | None:
        found = (t for t in self.tasks() if word in (t["kwargs"] or "") and t["state"] == "SUCCESS")
        return next(found, None)


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    if not shutil.which("docker") or subprocess.run([DOCKER, "info"], capture_output=True, check=False).returncode:
        if os.environ.get("CI"):
            pytest.fail("CI has no Docker engine")
        pytest.skip("no Docker engine answers")
    stack = Stack()
    try:
        stack.compose("up", "--build", "--detach", "--wait")
        stack.login = stack.compose("exec", "-T", "flower", "cat", "/run/sidestep/login/flower").strip()
        yield stack
    except BaseException:
        print(stack.compose("ps", "-a", check=False), stack.compose("logs", "--tail", "40", check=False))
        raise
    finally:
        stack.compose("--profile", "*", "down", "-v", "--timeout", "5", check=False)


@pytest.mark.usefixtures("stack")
def test_the_file_is_read_without_a_warning():
    done = subprocess.run(
        [DOCKER, "compose", "--profile", "*", "config", "--format", "json"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "FLOWER_PORT"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    # And as it stands Flower alone is published, on loopback
    services = json.loads(done.stdout)["services"]
    published = {name: service["ports"] for name, service in services.items() if service.get("ports")}
    assert list(published) == ["flower"]
    assert [(port["host_ip"], port["published"]) for port in published["flower"]] == [("127.0.0.1", "5555")]
    # And every part is bounded
    for name, service in services.items():
        assert {"cpus", "memory"} <= set(service["deploy"]["resources"]["limits"]), name


def test_every_service_works_after_one_command(stack):
    assert {service: stack.health(service) for service in LASTING} == dict.fromkeys(LASTING, "healthy")
    assert {service: stack.container(service)["State"]["ExitCode"] for service in ONCE} == dict.fromkeys(ONCE, 0)


def test_one_line_says_where_flower_is_and_how_to_log_in(stack):
    (line,) = stack.compose("logs", "--no-log-prefix", "hello").splitlines()
    user, _, password = stack.login.partition(":")
    assert f"http://127.0.0.1:{stack.port} " in line
    assert f"user: {user}  password: {password}" in line


@pytest.mark.parametrize(("pool", "queue"), POOLS.items())
def test_a_job_of_each_queue_ends_where_it_belongs_and_flower_shows_it(stack, pool, queue):
    word = stack.probe(queue)
    task = until(f"a job in {queue} ends", lambda: stack.finished(word))
    assert task["name"] == "sidestep.echo"
    assert task["worker"] == f"{pool}@{stack.project}-worker-{pool}-1"


def test_the_producer_keeps_every_queue_at_work(stack):
    def served() -> bool:
        ended = {t["worker"].partition("@")[0] for t in stack.tasks() if t["state"] == "SUCCESS"}
        return ended == set(POOLS)

    until("every pool has ended a job", served)


@pytest.mark.parametrize(
    "path", ["/", "/workers", "/tasks", "/broker", "/api/workers", "/api/tasks", "/api/queues/length"]
)
def test_flower_answers_only_with_credentials(stack, path):
    assert stack.flower(path)[0] == 401
    assert stack.flower(path, "sidestep:wrong")[0] == 401
    assert stack.flower(path, stack.login)[0] == 200


def test_flower_lists_each_worker_by_pool_and_container(stack):
    named = {f"{pool}@{stack.project}-worker-{pool}-1" for pool in POOLS}
    until(
        "all workers are listed",
        lambda: set(json.loads(stack.flower("/api/workers?refresh=1", stack.login)[1])) == named,
    )


def test_previews_of_arguments_are_short(stack):
    assert max(len(t["kwargs"] or "") for t in stack.tasks()) <= 200


def test_nothing_but_flower_is_published_and_that_on_loopback_alone(stack):
    bindings = {service: stack.container(service)["NetworkSettings"]["Ports"] for service in LASTING}
    open_to = {
        (service, there["HostIp"], there["HostPort"])
        for service, ports in bindings.items()
        for where in (ports or {}).values()
        for there in where or ()
    }
    assert open_to == {("flower", "127.0.0.1", stack.port)}


TRY_TO_WRITE = """
import os, pathlib
for place in ("/app", "/opt/sidestep", "/etc", "/run/sidestep", "/var/tmp"):
    try:
        pathlib.Path(place, "probe").touch()
    except OSError:
        continue
    print("wrote to", place)
pathlib.Path("/tmp/probe").touch()
print(os.getuid())
"""


@pytest.mark.parametrize("service", [service for service in LASTING if service != "redis"])
def test_our_containers_run_as_nobody_and_can_write_nowhere(stack, service):
    assert stack.python(service, TRY_TO_WRITE).split() == ["10001"]
    assert stack.container(service)["HostConfig"]["CapDrop"] == ["ALL"]


def test_redis_runs_as_nobody_too(stack):
    assert stack.compose("exec", "-T", "redis", "id", "-u").strip() == "10001"
    assert stack.container("redis")["HostConfig"]["ReadonlyRootfs"]


def test_the_image_has_no_compiler_and_no_installer(stack):
    look = "import importlib.util, shutil; print([t for t in ('gcc', 'cc', 'make', 'git') if shutil.which(t)],"
    look += " importlib.util.find_spec('pip'), importlib.util.find_spec('numpy'))"
    assert stack.python("upstream", look).strip() == "[] None None"


ASK = """
import sys, redis
client = redis.Redis.from_url(open(sys.argv[1]).read())
client.ping()
for said in sys.argv[2:]:
    try:
        client.execute_command(*said.split())
        print("done")
    except redis.ResponseError as error:
        print("refused" if "NOPERM" in str(error) or "no permissions" in str(error).lower() else error)
"""
REFUSED_ALL = (
    "FLUSHALL",
    "CONFIG GET maxmemory",
    "KEYS *",
    "SHUTDOWN NOSAVE",
    "ACL LIST",
    "GET strangers",
    "DEBUG SLEEP 0",
)
MAY = {
    # user: (where it lives, what it may, what it may not beside what nobody may)
    "worker": ("worker-threads", ("LLEN sidestep:cpu", "ECHO x"), ("CLIENT LIST", "LPUSH other x", "PUBLISH other x")),
    "producer": ("producer", ("LLEN sidestep:cpu",), ("RPOP sidestep:cpu", "BRPOP sidestep:cpu 1", "DEL sidestep:cpu")),
    "flower": ("flower", ("LLEN sidestep:cpu",), ("BRPOP sidestep:cpu 1", "DEL sidestep:cpu", "SET sidestep:x y")),
    "lab": ("chaos", ("LLEN sidestep:cpu", "CLIENT LIST", "INFO"), ("RPOP sidestep:cpu", "LPUSH sidestep:cpu x")),
}


@pytest.mark.parametrize("user", MAY)
def test_each_user_of_redis_may_do_its_work_and_nothing_else(stack, user):
    service, may, may_not = MAY[user]
    where = (
        ("exec", "-T", service) if service in LASTING else ("--profile", "*", "run", "--rm", "--no-deps", "-T", service)
    )
    said = stack.compose(*where, "python", "-c", ASK, f"/run/sidestep/{user}/broker", *may, *may_not, *REFUSED_ALL)
    assert said.split() == ["done"] * len(may) + ["refused"] * (len(may_not) + len(REFUSED_ALL))


def test_without_a_name_nobody_gets_in_and_nobody_was_refused_what_he_needs(stack):
    assert "NOAUTH" in stack.compose("exec", "-T", "redis", "redis-cli", "dbsize")
    logs = stack.compose("logs", "--no-log-prefix", *LASTING)
    assert "NOPERM" not in logs
    assert "no permissions" not in logs.lower()


def test_secrets_are_in_no_definition_no_process_list_and_no_log(stack):
    urls = [
        stack.compose("exec", "-T", service, "cat", f"/run/sidestep/{user}/broker")
        for service, user in (("worker-prefork", "worker"), ("producer", "producer"), ("flower", "flower"))
    ]
    secrets = [url.partition("@")[0].rpartition(":")[2] for url in urls] + [stack.login.partition(":")[2]]
    assert len(set(secrets)) == 4
    assert min(map(len, secrets)) >= 16
    seen = "".join(json.dumps(stack.container(service)) for service in LASTING)
    seen += "".join(stack.compose("top", service) for service in LASTING)
    seen += stack.compose("logs", "--no-log-prefix", *LASTING)
    assert [secret for secret in secrets if secret in seen] == []


@pytest.mark.parametrize("service", ["worker-prefork", "worker-threads", "worker-eventlet", "flower", "producer"])
def test_every_line_of_the_log_is_one_event_in_json(stack, service):
    lines = stack.compose("logs", "--no-log-prefix", service).splitlines()
    events = [json.loads(line) for line in lines]
    assert all({"time", "level", "message"} <= set(event) for event in events)


def test_workers_consume_again_after_redis_was_restarted(stack):
    kept = stack.probe("nobody-listens-here")
    stack.compose("restart", "redis")
    until("Redis is back", lambda: stack.health("redis") == "healthy")
    words = {queue: until(f"{queue} takes jobs", lambda q=queue: stack.probe(q)) for queue in POOLS.values()}
    for queue, word in words.items():
        until(f"a job in {queue} ends", lambda w=word: stack.finished(w))
    until("all is well", lambda: all(stack.health(service) == "healthy" for service in LASTING))
    # And what lay in a queue meanwhile is still there
    assert len(kept) == 32


def test_a_worker_that_answers_but_consumes_nothing_is_found_and_replaced(stack):
    before = stack.container("worker-threads")["RestartCount"]
    node = f"threads@{stack.project}-worker-threads-1"
    stop = ("python", "-m", "celery", "-q", "-A", "tasks", "control", "-d", node, "cancel_consumer", "io-threads")
    stack.compose("exec", "-T", "worker-threads", *stop)
    until("it is found", lambda: stack.health("worker-threads") == "unhealthy")
    (why, *_) = [check["Output"] for check in stack.container("worker-threads")["State"]["Health"]["Log"]][::-1]
    assert "answers, but its consumer has no queue" in why
    until("a fresh one runs", lambda: stack.container("worker-threads")["RestartCount"] > before)
    word = stack.probe("io-threads")
    until("the fresh one works", lambda: stack.finished(word))


def test_nothing_is_left_after_down(stack):
    stack.compose("--profile", "*", "down", "-v", "--timeout", "10")
    mine = f"label=com.docker.compose.project={stack.project}"
    left = [
        docker(*kind, "--filter", mine, "-q").split() for kind in (("ps", "-a"), ("volume", "ls"), ("network", "ls"))
    ]
    assert left == [[], [], []]
