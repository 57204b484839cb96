"""The stack of compose.yaml, run for real: it comes up, works, defends itself, mends itself and leaves nothing."""

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from experiments.catalogue import EXPERIMENTS
from lab.children import Children
from lab.store import SuiteFile
from tests.browser import Browser, need_chromium, pictures_in
from tests.plausible import plausible_suite

pytestmark = pytest.mark.docker

DOCKER = shutil.which("docker") or "docker"
ROOT = Path(__file__).resolve().parent.parent
POOLS = {"prefork": "cpu", "threads": "io-threads", "eventlet": "io"}
LASTING = ("redis", "worker-prefork", "worker-threads", "worker-eventlet", "flower", "upstream", "producer")
ONCE = ("init", "hello")
METRICS = ("exporter", "prometheus")
RABBITMQ = (
    *("rabbitmq", "rabbitmq-prefork", "rabbitmq-threads", "rabbitmq-eventlet"),
    *("rabbitmq-flower", "rabbitmq-producer"),
)
MORE = (*METRICS, *RABBITMQ, "worker-gevent")
PROFILES = ("--profile", "gevent", "--profile", "metrics", "--profile", "rabbitmq")
FOREIGN = ("redis", "rabbitmq", "prometheus")
"""What is not of our own image."""
PORTS = {"flower": "FLOWER_PORT", "prometheus": "PROMETHEUS_PORT", "rabbitmq-flower": "RABBITMQ_FLOWER_PORT"}
"""The services that publish a port, and the variable that says which."""
PATIENCE_S = 240.0
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


def free_ports(count: int) -> list[str]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    found = [str(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return found


class Stack:
    """One project of its own, beside whatever else runs here."""

    def __init__(self, findings: Path | None = None) -> None:
        self.project = f"sidestep-test-{uuid.uuid4().hex[:8]}"
        self.findings = findings
        self.ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        self.login = ""

    def compose(self, *args: str, check: bool = True) -> str:
        env = {PORTS[service]: port for service, port in self.ports.items()}
        if self.findings:
            env["SIDESTEP_FINDINGS"] = str(self.findings)
        return docker("compose", "-p", self.project, *args, check=check, env=env)

    def python(self, service: str, code: str, *args: str) -> str:
        return self.compose("exec", "-T", service, "python", "-c", code, *args)

    def container(self, service: str) -> dict[str, Any]:
        (name,) = self.compose("ps", "-aq", service).split()
        return json.loads(docker("inspect", name))[0]

    def health(self, service: str) -> str:
        return self.container(service)["State"]["Health"]["Status"]

    def node(self, pool: str, kind: str = "worker") -> str:
        return f"{pool}@{self.project}-{kind}-{pool}-1"

    def get(self, service: str, path: str, login: str | None = None) -> tuple[int, str]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports[service]}{path}")
        if login:
            request.add_header("Authorization", f"Basic {base64.b64encode(login.encode()).decode()}")
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310  our own address
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, ""

    def flower(self, path: str, login: str | None = None) -> tuple[int, str]:
        return self.get("flower", path, login)

    def tasks(self, flower: str = "flower", name: str = "") -> list[dict[str, Any]]:
        """The newest that Flower knows of, all or those of one name."""
        status, body = self.get(flower, f"/api/tasks?limit=2000&taskname={name}", self.login)
        assert status == 200
        return list(json.loads(body).values())

    def prometheus(self, path: str, **query: str) -> Any:
        status, body = self.get("prometheus", f"/api/v1/{path}?{urllib.parse.urlencode(query)}")
        assert status == 200
        return json.loads(body)["data"]

    def firing(self) -> set[tuple[str, str]]:
        """Alerts that fire, each with the worker that it is about."""
        alerts = self.prometheus("alerts")["alerts"]
        return {(a["labels"]["alertname"], a["labels"].get("worker", "")) for a in alerts if a["state"] == "firing"}

    def probe(self, queue: str, producer: str = "producer") -> str:
        """Send a job that is known by its argument."""
        word = uuid.uuid4().hex
        self.compose(
            *("exec", "-T", producer, "python", "-m", "producer.cli", "--job", "echo", "--arg", f"payload={word}"),
            *("--queue", queue, "--rate", "1", "--for", "1s"),
        )
        return word

    def finished(self, word: str, flower: str = "flower") -> dict[str, Any] | None:
        # Of its own kind, for the producers' jobs would soon push it off the list
        found = (t for t in self.tasks(flower, "sidestep.echo") if word in (t["kwargs"] or ""))
        return next((t for t in found if t["state"] == "SUCCESS"), None)

    def await_news(self, flower: str = "flower") -> None:
        """Until Flower hears of jobs that come from now on: what happens while it is cut off it never learns."""
        now_s = time.time()
        until(f"{flower} hears of new jobs", lambda: any((t["received"] or 0) > now_s for t in self.tasks(flower)))

    def well(self, *services: str) -> bool:
        return all(self.health(service) == "healthy" for service in services)


def timed(work: Callable[[], object]) -> float:
    begun_s = time.monotonic()
    work()
    return time.monotonic() - begun_s


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    if not shutil.which("docker") or subprocess.run([DOCKER, "info"], capture_output=True, check=False).returncode:
        if os.environ.get("CI"):
            pytest.fail("CI has no Docker engine")
        pytest.skip("no Docker engine answers")
    # What users put there is not ours to change; and the containers are somebody else, who is to read it
    findings = tmp_path_factory.mktemp("findings")
    findings.chmod(0o755)
    stack = Stack(findings)
    try:
        times = {"image built": timed(lambda: stack.compose("build"))}
        begun_s = time.monotonic()
        times["up"] = timed(lambda: stack.compose("up", "--detach", "--wait"))
        stack.login = stack.compose("exec", "-T", "flower", "cat", "/run/sidestep/login/flower").strip()
        until("a first job has ended", lambda: any(task["state"] == "SUCCESS" for task in stack.tasks()))
        times["from up to the first finished job in Flower"] = time.monotonic() - begun_s
        megabytes = int(docker("image", "inspect", "--format", "{{.Size}}", stack.container("flower")["Image"])) / 1e6
        figures = [f"{megabytes:.0f} MB: the image", *(f"{seconds:.0f} s: {what}" for what, seconds in times.items())]
        (pictures_in(tmp_path_factory.mktemp("figures")) / "compose.txt").write_text("\n".join(figures) + "\n", "utf-8")
        yield stack
    except BaseException:
        print(stack.compose("ps", "-a", check=False), stack.compose("logs", "--tail", "40", check=False))
        raise
    finally:
        stack.compose("--profile", "*", "down", "-v", "--timeout", "5", check=False)


@pytest.fixture(scope="module")
def full(stack: Stack) -> Stack:
    """The stack with the profiles that stay: gevent, metrics and rabbitmq."""
    try:
        stack.compose(*PROFILES, "up", "--build", "--detach", "--wait")
    except BaseException:
        print(stack.compose(*PROFILES, "ps", "-a", check=False))
        print(stack.compose(*PROFILES, "logs", "--tail", "60", *MORE, check=False))
        raise
    return stack


def test_every_lasting_service_has_a_health_check_that_forgives_a_slow_start():
    services = json.loads(docker("compose", "--profile", "*", "config", "--format", "json"))["services"]
    lasting = {name: service for name, service in services.items() if service.get("restart") == "unless-stopped"}
    assert set(services) - set(lasting) == {"init", "hello", "rabbitmq-hello"}
    for name, service in lasting.items():
        assert service["healthcheck"]["test"], name
        assert service["healthcheck"]["start_period"].startswith(("1m", "2m", "3m")), name


@pytest.mark.usefixtures("stack")
def test_the_file_is_read_without_a_warning():
    published = {}
    for profile in ("*", "none"):
        done = subprocess.run(
            [DOCKER, "compose", "--profile", profile, "config", "--format", "json"],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if name not in PORTS.values()},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stderr == ""
        services = json.loads(done.stdout)["services"]
        published[profile] = {
            (name, port["host_ip"], port["published"], port["target"])
            for name, service in services.items()
            for port in service.get("ports", ())
        }
        # And every part is bounded
        for name, service in services.items():
            assert {"cpus", "memory"} <= set(service["deploy"]["resources"]["limits"]), name
    # And as it stands Flower alone is published, on loopback; the profiles add Prometheus and the other broker's Flower
    flower, prometheus = ("flower", "127.0.0.1", "5555", 5555), ("prometheus", "127.0.0.1", "9090", 9090)
    assert published["none"] == {flower}
    assert published["*"] == {flower, prometheus, ("rabbitmq-flower", "127.0.0.1", "5556", 5555)}


def test_every_service_works_after_one_command(stack):
    assert {service: stack.health(service) for service in LASTING} == dict.fromkeys(LASTING, "healthy")
    assert {service: stack.container(service)["State"]["ExitCode"] for service in ONCE} == dict.fromkeys(ONCE, 0)


def test_one_line_says_where_flower_is_and_how_to_log_in(stack):
    (line,) = stack.compose("logs", "--no-log-prefix", "hello").splitlines()
    user, _, password = stack.login.partition(":")
    assert f"http://127.0.0.1:{stack.ports['flower']} " in line
    assert f"user: {user}  password: {password}" in line


@pytest.mark.parametrize(("pool", "queue"), POOLS.items())
def test_a_job_of_each_queue_ends_where_it_belongs_and_flower_shows_it(stack, pool, queue):
    word = stack.probe(queue)
    task = until(f"a job in {queue} ends", lambda: stack.finished(word))
    assert task["name"] == "sidestep.echo"
    assert task["worker"] == stack.node(pool)


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
    named = {stack.node(pool) for pool in POOLS}
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
    assert open_to == {("flower", "127.0.0.1", stack.ports["flower"])}


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


def test_the_image_has_no_compiler_and_no_pip(stack):
    look = "import importlib.util, shutil; print([t for t in ('gcc', 'cc', 'make', 'git') if shutil.which(t)],"
    look += " *map(importlib.util.find_spec, ('pip', 'ensurepip', 'numpy')))"
    assert stack.python("upstream", look).strip() == "[] None None None"
    # Nor has the Python that ours is made from
    base = stack.python("upstream", "import sys; print(sys._base_executable)").strip()
    assert stack.compose("exec", "-T", "upstream", base, "-c", look).strip() == "[] None None None"


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
    "SLOWLOG GET",
)
MAY = {
    # user: (where it lives, what it may, what it may not beside what nobody may)
    "worker": ("worker-threads", ("LLEN sidestep:cpu", "ECHO x"), ("CLIENT LIST", "LPUSH other x", "PUBLISH other x")),
    "producer": (
        "producer",
        ("LLEN sidestep:cpu", "HLEN sidestep:metrics"),
        ("RPOP sidestep:cpu", "BRPOP sidestep:cpu 1", "DEL sidestep:cpu", "SET sidestep:cpu x", "GET sidestep:cpu"),
    ),
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


LENGTH = "import sys, redis; print(redis.Redis.from_url(open(sys.argv[1]).read()).llen(sys.argv[2]))"


# kombu notes and clears deliveries in transactions
TRANSACT = """
import sys, redis
client = redis.Redis.from_url(open(sys.argv[1]).read())
with client.pipeline(transaction=True) as pipe:
    pipe.set("sidestep:kept", "both", ex=600).hset("sidestep:kept-too", "a", "b").execute()
"""
KEPT = """
import sys, redis
client = redis.Redis.from_url(open(sys.argv[1]).read(), decode_responses=True)
print(client.get("sidestep:kept"), client.hget("sidestep:kept-too", "a"))
"""


def test_workers_consume_again_after_redis_was_restarted(stack):
    # Given a job that nobody takes, and a transaction
    stack.probe("cpu-nobody-listens")
    stack.python("worker-threads", TRANSACT, "/run/sidestep/worker/broker")
    stack.compose("restart", "redis")
    restarted = stack.container("redis")["State"]["StartedAt"]
    until("all is well", lambda: stack.well(*LASTING))

    # And not by what was known before: each worker was asked since, and says what it consumes
    def asked(pool: str) -> bool:
        checks = stack.container(f"worker-{pool}")["State"]["Health"]["Log"]
        # To the second, which is how long these texts are alike
        return any(c["Start"][:19] > restarted[:19] and f"consumes {POOLS[pool]}" in c["Output"] for c in checks)

    for pool in POOLS:
        until(f"the {pool} worker consumes", lambda p=pool: asked(p))
    stack.await_news()
    words = {queue: stack.probe(queue) for queue in POOLS.values()}
    for queue, word in words.items():
        until(f"a job in {queue} ends", lambda w=word: stack.finished(w))
    # Then what lay in a queue meanwhile is still there
    length = stack.python("producer", LENGTH, "/run/sidestep/producer/broker", "sidestep:cpu-nobody-listens")
    assert length.strip() == "1"
    # And so is what was written in the transaction
    assert stack.python("worker-threads", KEPT, "/run/sidestep/worker/broker").split() == ["both", "b"]


def test_a_worker_that_is_stopped_ends_the_job_that_it_has(stack):
    # Given a job of 10 s that a worker has begun, known by its length
    job = ("--job", "snooze", "--arg", "ms=10007")
    stack.compose(
        *("exec", "-T", "producer", "python", "-m", "producer.cli", *job),
        *("--queue", "io-threads", "--rate", "1", "--for", "1s"),
    )

    def state() -> str:
        return next((t["state"] for t in stack.tasks(name="sidestep.snooze") if "10007" in (t["kwargs"] or "")), "")

    until("it has begun", lambda: state() == "STARTED")
    # When the worker is stopped, as `compose up` does to replace it
    stack.compose("stop", "worker-threads")
    # Then it has ended the job, and itself, without being killed
    assert stack.container("worker-threads")["State"]["ExitCode"] == 0
    until("Flower has heard of its end", lambda: state() == "SUCCESS")
    stack.compose("up", "--detach", "--wait", "worker-threads")


def test_a_worker_that_answers_but_consumes_nothing_is_found_and_replaced(stack):
    before = stack.container("worker-threads")["RestartCount"]
    node = stack.node("threads")
    stop = ("python", "-m", "celery", "-q", "-A", "tasks", "control", "-d", node, "cancel_consumer", "io-threads")
    stack.compose("exec", "-T", "worker-threads", *stop)
    until("it is found", lambda: stack.health("worker-threads") == "unhealthy")
    (why, *_) = [check["Output"] for check in stack.container("worker-threads")["State"]["Health"]["Log"]][::-1]
    assert "answers, but its consumer has no queue" in why
    until("a fresh one runs", lambda: stack.container("worker-threads")["RestartCount"] > before)
    word = stack.probe("io-threads")
    until("the fresh one works", lambda: stack.finished(word))


# --- with all profiles -----------------------------------------------------------------------------------------------


def test_every_service_of_the_profiles_works_after_one_command(full):
    services = (*LASTING, *MORE)
    assert {service: full.health(service) for service in services} == dict.fromkeys(services, "healthy")


@pytest.mark.parametrize("service", [service for service in MORE if service not in FOREIGN])
def test_our_containers_of_the_profiles_run_as_nobody_and_can_write_nowhere(full, service):
    assert full.python(service, TRY_TO_WRITE).split() == ["10001"]
    assert full.container(service)["HostConfig"]["CapDrop"] == ["ALL"]


@pytest.mark.parametrize("service", ["prometheus", "rabbitmq"])
def test_prometheus_and_rabbitmq_run_as_nobody_too(full, service):
    assert full.compose("exec", "-T", service, "id", "-u").strip() == "10001"
    assert full.container(service)["HostConfig"]["ReadonlyRootfs"]
    assert full.container(service)["HostConfig"]["CapDrop"] == ["ALL"]


def test_prometheus_reaches_all_that_it_is_to_ask(full):
    def reached() -> dict[str, str]:
        return {
            target["labels"]["instance"]: target["health"] for target in full.prometheus("targets")["activeTargets"]
        }

    until("both are up", lambda: reached() == {"exporter:9808": "up", "flower:5555": "up"})
    rules = [rule for group in full.prometheus("rules")["groups"] for rule in group["rules"]]
    assert len(rules) > 8
    until(
        "each rule was computed",
        lambda: {r["health"] for r in full.prometheus("rules")["groups"][0]["rules"]} == {"ok"},
    )


@pytest.mark.parametrize(
    "query",
    [
        "sum by (queue) (sidestep_time_in_queue_seconds_count) > 0",
        "sidestep:time_in_queue_seconds:p99 > 0",
        "sidestep:offered_hz > 0",
        "sidestep_queue_workers > 0",
        "sum by (queue) (sidestep_producer_lag_seconds_count) > 0",
    ],
)
def test_prometheus_knows_of_every_queue(full, query):
    def queues() -> set[str]:
        return {found["metric"]["queue"] for found in full.prometheus("query", query=query)["result"]}

    # And of others that somebody has sent to
    until(f"{query} of each queue", lambda: queues() >= set(POOLS.values()))


def test_prometheus_knows_the_verdicts_of_the_findings_that_were_put_there(full, tmp_path):
    # Given what `sidestep report --json` says of a suite
    assert full.prometheus("query", query="sidestep_claim_verdict")["result"] == []
    SuiteFile(tmp_path).save(plausible_suite(EXPERIMENTS["gil-cpu"]))
    command = [sys.executable, "-m", "experiments", "report", str(tmp_path), "--json"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    # When it is put where the exporter looks
    (full.findings / "findings.json").write_text(said, "utf-8")

    def verdicts() -> dict[str, str]:
        found = full.prometheus("query", query="sidestep_claim_verdict == 1")["result"]
        return {one["metric"]["claim"]: one["metric"]["verdict"] for one in found}

    # Then Prometheus has them
    expected = {one["claim"]: one["verdict"] for one in json.loads(said)["findings"]}
    assert expected
    until("all verdicts are there", lambda: verdicts() == expected)


def test_an_alert_fires_for_a_worker_that_is_killed_and_for_one_that_is_stopped(full):
    gone, stopped = full.node("eventlet"), full.node("threads")
    until("no alert is about a worker", lambda: not any(worker for _, worker in full.firing()))
    full.compose("kill", "worker-eventlet")
    full.compose("stop", "worker-threads")
    expected = {("WorkerGone", gone), ("WorkerStopped", stopped)}
    until("both alerts fire", lambda: expected <= full.firing())
    # When they are back the alerts are over
    full.compose("up", "--detach", "--wait", "worker-eventlet", "worker-threads")
    until("the alerts are over", lambda: not expected & full.firing())


@pytest.mark.parametrize(("pool", "queue"), POOLS.items())
def test_a_job_over_rabbitmq_ends_where_it_belongs_and_its_flower_shows_it(full, pool, queue):
    word = full.probe(queue, "rabbitmq-producer")
    task = until(f"a job in {queue} ends", lambda: full.finished(word, "rabbitmq-flower"))
    assert task["worker"] == full.node(pool, "rabbitmq")
    # And nobody there sees the jobs of the other broker
    assert {t["worker"] for t in full.tasks("rabbitmq-flower")} <= {full.node(pool, "rabbitmq") for pool in POOLS}


def test_the_other_brokers_flower_answers_only_with_credentials_and_is_told_of(full):
    for path in ("/workers", "/api/tasks", "/api/queues/length"):
        assert full.get("rabbitmq-flower", path)[0] == 401
        assert full.get("rabbitmq-flower", path, full.login)[0] == 200
    (line,) = full.compose("logs", "--no-log-prefix", "rabbitmq-hello").splitlines()
    assert line.startswith(f"Flower of RabbitMQ: http://127.0.0.1:{full.ports['rabbitmq-flower']} ")


ASK_RABBITMQ = """
import sys, kombu
for said in sys.argv[2:]:
    url = open(sys.argv[1]).read() if said != "guest" else "amqp://guest:guest@rabbitmq/sidestep"
    with kombu.Connection(url) as connection:
        try:
            channel = connection.channel()
            what, _, name = said.partition(" ")
            if what == "declare":
                lasts = not name.endswith(".probe")
                arguments = {"x-queue-type": "classic"}  # as Celery does
                channel.queue_declare(name, durable=True, auto_delete=not lasts, arguments=arguments)
            elif what == "take":
                channel.basic_get(name)
            elif what == "delete":
                channel.queue_delete(name)
            print("done")
        except (connection.channel_errors + connection.connection_errors) as error:
            print("refused" if getattr(error, "reply_code", 0) in (403, 530) else repr(error))
"""
MAY_RABBITMQ = {
    "worker": ("rabbitmq-threads", ("declare cpu",), ("declare strangers", "delete celery")),
    "producer": ("rabbitmq-producer", ("declare cpu",), ("declare strangers", "take celeryev", "delete strangers")),
    "flower": ("rabbitmq-flower", ("declare celeryev.probe",), ("declare cpu", "take cpu", "delete cpu")),
}


@pytest.mark.parametrize("user", MAY_RABBITMQ)
def test_each_user_of_rabbitmq_may_do_its_work_and_nothing_else(full, user):
    service, may, may_not = MAY_RABBITMQ[user]
    said = full.python(service, ASK_RABBITMQ, f"/run/sidestep/{user}/amqp", *may, *may_not, "guest")
    assert said.split() == ["done"] * len(may) + ["refused"] * (len(may_not) + 1)


def test_workers_consume_again_after_rabbitmq_was_restarted(full):
    full.compose("restart", "rabbitmq")
    until("all is well", lambda: full.well(*RABBITMQ))
    full.await_news("rabbitmq-flower")
    words = {queue: full.probe(queue, "rabbitmq-producer") for queue in POOLS.values()}
    for queue, word in words.items():
        until(f"a job in {queue} ends", lambda w=word: full.finished(w, "rabbitmq-flower"))


def test_with_the_profiles_too_nobody_is_refused_and_no_secret_is_told(full):
    logs = full.compose(*PROFILES, "logs", "--no-log-prefix")
    for refusal in ("noperm", "no permissions"):
        assert refusal not in logs.lower()
    urls = [
        full.compose("exec", "-T", service, "cat", f"/run/sidestep/{user}/amqp")
        for service, user in (("worker-prefork", "worker"), ("producer", "producer"), ("flower", "flower"))
    ]
    secrets = [urllib.parse.urlsplit(url).password or "" for url in urls]
    assert len(set(secrets)) == 3
    assert min(map(len, secrets)) >= 16
    seen = "".join(json.dumps(full.container(service)) for service in (*LASTING, *MORE)) + logs
    assert [secret for secret in secrets if secret in seen] == []


@pytest.mark.parametrize("service", ["exporter", "rabbitmq-threads", "rabbitmq-flower", "rabbitmq-producer"])
def test_every_line_of_the_profiles_logs_is_one_event_in_json_too(full, service):
    events = [json.loads(line) for line in full.compose("logs", "--no-log-prefix", service).splitlines()]
    assert all({"time", "level", "message"} <= set(event) for event in events)


# --- who can be reached ----------------------------------------------------------------------------------------------

LISTENS = {
    "redis": {6379},
    "flower": {5555},
    "upstream": {8080},
    "exporter": {9808},
    "prometheus": {9090},
    "rabbitmq": {5672, 15672},
    "rabbitmq-flower": {5555},
}
"""Ports on which each service listens for others than itself; who is not named listens on none."""
LISTEN_STATE = "0A"


def listens(table: str) -> set[int]:
    """The ports of a /proc/net/tcp on which somebody listens, other than on loopback."""
    found = set()
    for row in table.splitlines():
        fields = row.split()
        if len(fields) > 3 and fields[3] == LISTEN_STATE:
            address, _, port = fields[1].partition(":")
            own = address.endswith("7F") if len(address) == 8 else address in {"0" * 24 + "01000000"}
            if not own:
                found.add(int(port, 16))
    return found


def test_each_container_listens_where_it_is_meant_to_and_nowhere_else(full):
    found = {
        service: listens(full.compose("exec", "-T", service, "cat", "/proc/net/tcp", "/proc/net/tcp6"))
        for service in (*LASTING, *MORE)
    }
    assert found == {service: LISTENS.get(service, set()) for service in (*LASTING, *MORE)}


def is_open(address: str, port: int) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.settimeout(2)
        # A connection from a port to itself is nobody's
        return probe.connect_ex((address, port)) == 0 and probe.getsockname() != probe.getpeername()


def open_ports(address: str, ports: Iterable[int] = range(1, 65536)) -> set[int]:
    """Those of them that take a TCP connection there."""
    asked = list(ports)
    with ThreadPoolExecutor(32) as pool:
        return {port for port, seen in zip(asked, pool.map(partial(is_open, address), asked), strict=True) if seen}


def of_others(project: str) -> set[int]:
    """Ports that are not the project's: processes of this machine listen there, or containers of other projects."""
    found = set()
    for held in psutil.net_connections("tcp"):
        if held.status == psutil.CONN_LISTEN:
            try:
                # Root sees whose each is, but for what a virtual machine's host put there
                name = psutil.Process(held.pid).name() if held.pid else "" if os.geteuid() == 0 else "docker-proxy"
            except psutil.NoSuchProcess:
                continue
            if name != "docker-proxy":
                found.add(held.laddr.port)
    for one in json.loads(docker("inspect", *ids) if (ids := docker("ps", "-q").split()) else "[]"):
        if one["Config"]["Labels"].get("com.docker.compose.project") != project:
            places = (one["NetworkSettings"]["Ports"] or {}).values()
            found |= {int(there["HostPort"]) for where in places for there in where or ()}
    return found


def addresses() -> list[str]:
    """The addresses of this machine by which others may reach it."""
    families = {socket.AF_INET, socket.AF_INET6}
    every = [there.address for card in psutil.net_if_addrs().values() for there in card if there.family in families]
    return [address for address in every if not address.startswith("127.") and address != "::1"]


def ours_at(address: str, project: str) -> set[int]:
    """The ports that are open there and are nobody else's, as far as one can see."""
    strangers = of_others(project)
    found = open_ports(address) - strangers
    # Whoever else opens one here for a moment has closed it when we look again, or is seen to be who he is
    for _ in range(3):
        strangers |= of_others(project)
        found = open_ports(address, found - strangers)
        time.sleep(1)  # between looks
    return found


def test_a_port_scan_of_this_machine_finds_what_is_published_on_loopback_and_nothing_else(full):
    published = {int(port) for port in full.ports.values()}
    assert ours_at("127.0.0.1", full.project) == published
    if socket.has_ipv6 and any(there.address == "::1" for card in psutil.net_if_addrs().values() for there in card):
        assert ours_at("::1", full.project) == set()
    for number, address in enumerate(addresses()):
        if number == 0:
            assert ours_at(address, full.project) == set(), address
        assert open_ports(address, published) == set(), address


# --- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    need_chromium()
    with Children() as children:
        made = Browser(children, tmp_path / "browser")
        yield made
        made.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures_in(tmp_path_factory.mktemp("pictures"))


@pytest.mark.stack
@pytest.mark.parametrize("flower", ["flower", "rabbitmq-flower"])
def test_a_browser_is_refused_without_the_password(full, browser, pictures, flower):
    browser.open(f"http://127.0.0.1:{full.ports[flower]}/workers")
    assert browser.statuses["/workers"] == 401
    assert browser.text == "Access denied"
    browser.picture(pictures / f"compose-{flower}-refused.png")


@pytest.mark.stack
@pytest.mark.parametrize(
    ("flower", "producer", "kind", "pools"),
    [
        ("flower", "producer", "worker", (*POOLS, "gevent")),
        ("rabbitmq-flower", "rabbitmq-producer", "rabbitmq", tuple(POOLS)),
    ],
)
def test_a_browser_sees_every_pool_and_a_job_that_succeeds(full, browser, pictures, flower, producer, kind, pools):
    browser.login = tuple(full.login.split(":"))
    home = f"http://127.0.0.1:{full.ports[flower]}"
    # The page of workers names each by pool and container
    browser.open(f"{home}/workers")
    online = {full.node(pool, kind): "Online" for pool in pools}
    until("all are online", lambda: {row[0]: row[1] for row in browser.rows("workers-table") if len(row) > 1} == online)
    browser.picture(pictures / f"compose-{flower}-workers.png")
    # A job that is sent is found by its argument, and ends
    word = full.probe("io-threads", producer)
    browser.open(f"{home}/tasks")

    def found() -> list[str] | None:
        # The page asks Flower, and shows the answer a moment later
        browser.ask(f"$('#tasks-table').DataTable().search('kwargs:{word}').draw()")
        time.sleep(2)
        rows = browser.rows("tasks-table")
        return rows[0] if len(rows) == 1 and "SUCCESS" in rows[0] else None

    row = until("the job succeeds", found)
    assert {"sidestep.echo", full.node("threads", kind)} <= set(row)
    browser.picture(pictures / f"compose-{flower}-tasks.png")
    # And its own page tells where it ran
    job = next(t["uuid"] for t in full.tasks(flower, "sidestep.echo") if word in (t["kwargs"] or ""))
    browser.open(f"{home}/task/{job}")
    for said in (job, "sidestep.echo", "SUCCESS", word, full.node("threads", kind)):
        assert said in browser.text
    browser.picture(pictures / f"compose-{flower}-task.png")
    # And the page of the broker knows every queue

    def queues() -> set[str]:
        browser.open(f"{home}/broker")  # the page stays as it was when Flower had not yet heard of all workers
        return {row[0] for row in browser.rows("queue-table")}

    until("all queues are there", lambda: queues() == set(POOLS.values()))
    browser.picture(pictures / f"compose-{flower}-broker.png")
    assert browser.complaints == []


@pytest.mark.stack
def test_a_browser_sees_curves_of_every_queue_in_prometheus(full, browser, pictures):
    # Given a Prometheus that has asked for a while
    home = f"http://127.0.0.1:{full.ports['prometheus']}"
    series = len(POOLS)
    found = "sidestep:time_in_queue_seconds:p99 and sidestep:offered_hz"
    until("there is something to draw", lambda: len(full.prometheus("query", query=found)["result"]) == series)
    # Then our page draws it
    browser.open(f"{home}/consoles/sidestep.html")
    browser.until("document.body.dataset.drawn === 'all'")
    assert "The exporter reads its broker." in browser.text
    for title in ("Offered", "Time in queue, p99"):
        (labels,) = browser.ask(
            f"[...document.querySelectorAll('section')].filter(s => s.querySelector('h2').textContent === '{title}')"
            ".map(s => [...s.querySelectorAll('li span')].map(e => e.textContent).sort())"
        )
        assert set(labels) >= set(POOLS.values()), title
    assert browser.ask("document.querySelectorAll('polyline').length") >= 2 * series
    assert browser.complaints == []
    browser.picture(pictures / "compose-prometheus-sidestep.png")
    # And so does its own page, for whoever asks something else; Debian's Prometheus has the older one alone
    for page in ("/graph", "/classic/graph"):
        browser.open(f"{home}{page}?g0.expr=sidestep%3Aoffered_hz&g0.tab=0&g0.range_input=10m")
        assert browser.statuses[page] in {200, 304}
        if "does not include the modern React web UI" not in browser.text:
            break
    browser.until("document.querySelector('svg path[stroke], canvas') !== null")
    browser.picture(pictures / "compose-prometheus-graph.png")


# --- profiles that disturb -------------------------------------------------------------------------------------------


def test_chaos_cuts_the_workers_off_and_they_come_back(full):
    name = f"{full.project}-chaos"
    try:
        often = ("python", "deploy/chaos.py", "--every", "2", "--beat", "/tmp/beat")  # noqa: S108  in its container
        command = ("run", "--detach", "--no-deps", "--name", name, "chaos", *often)
        full.compose("--profile", "chaos", *command)

        def cut() -> bool:
            return any(json.loads(line)["cut"] > 0 for line in docker("logs", name).splitlines())

        until("connections are cut", cut)
        # And its health check, which looks at what it does, finds it at work
        until("it is well", lambda: json.loads(docker("inspect", name))[0]["State"]["Health"]["Status"] == "healthy")
    finally:
        docker("rm", "-f", name, check=False)
    words = {queue: full.probe(queue) for queue in POOLS.values()}
    for queue, word in words.items():
        until(f"a job in {queue} ends", lambda w=word: full.finished(w))


def test_load_lets_the_queues_grow(full):
    full.compose("--profile", "load", "up", "--detach", "--wait", "--no-deps", "producer-load")

    def depth() -> int:
        queues = json.loads(full.flower("/api/queues/length", full.login)[1])["active_queues"]
        # Flower may not have heard of the queue yet, or again
        return next((queue["messages"] for queue in queues if queue["name"] == "cpu"), 0)

    until("a backlog", lambda: depth() > 50)


def left_of(project: str) -> list[list[str]]:
    """Its containers, volumes and networks."""
    mine = ("--filter", f"label=com.docker.compose.project={project}", "-q")
    return [docker(*kind, *mine).split() for kind in (("ps", "-a"), ("volume", "ls"), ("network", "ls"))]


@pytest.mark.usefixtures("stack")
@pytest.mark.parametrize("profiles", [(), ("--profile", "*")])
def test_down_removes_what_up_made_when_it_is_told_the_same_profiles(profiles):
    other = Stack()
    try:
        other.compose(*profiles, "create")
        assert all(left_of(other.project))
        other.compose(*profiles, "down", "-v", "--timeout", "0")
        assert left_of(other.project) == [[], [], []]
    finally:
        other.compose("--profile", "*", "down", "-v", "--timeout", "0", check=False)


def test_nothing_is_left_after_down(stack):
    stack.compose("--profile", "*", "down", "-v", "--timeout", "10")
    assert left_of(stack.project) == [[], [], []]
