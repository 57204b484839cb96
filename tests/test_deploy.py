"""Beyond one host: Kubernetes manifests keep to their schemas and to each other; the stack runs in a real Swarm."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
KUBERNETES = ROOT / "deploy" / "kubernetes"
DEPLOY_PAGE = ROOT / "docs" / "deploy.md"
VERSIONS = ("1.31", "1.37")
"""The oldest and the newest that the pinned package has; the page says so."""
KEDA_CRDS = os.environ.get("SIDESTEP_KEDA_CRDS", "")
"""A checkout's config/crd/bases: then KEDA's own schemas are asked too."""

Document = dict[str, Any]


def files() -> list[Path]:
    return sorted(KUBERNETES.rglob("*.yaml"))


def inside(path: Path) -> list[Document]:
    """The documents of a file, those of a List one by one."""
    found: list[Document] = [each for each in yaml.safe_load_all(path.read_text("utf-8")) if each]
    return [item for each in found for item in (each["items"] if each["kind"] == "List" else [each])]


def name_of(value: object) -> str:
    if isinstance(value, Path):
        return str(value.relative_to(KUBERNETES))
    return f"{value['kind']}/{value['metadata']['name']}" if isinstance(value, dict) else str(value)


ALL = [document for path in files() for document in inside(path) if document["kind"] != "Kustomization"]
KEDAS = [document for document in ALL if document["apiVersion"].startswith("keda.sh/")]
PLAIN = [document for document in ALL if document not in KEDAS]
PODS = [document for document in ALL if document["kind"] in {"Deployment", "StatefulSet"}]
SCALED = [document for document in inside(KUBERNETES / "scaling.yaml") if document["kind"] == "ScaledObject"]


def pod(document: Document) -> Document:
    return document["spec"]["template"]["spec"]


def named(kind: str, name: str) -> Document:
    (found,) = [each for each in ALL if each["kind"] == kind and each["metadata"]["name"] == name][:1]
    return found


# --- schemas ---------------------------------------------------------------------------------------------------------


def faults(document: Document, version: str) -> str:
    """What Kubernetes' own schema of this version says against it, fields that it does not know included."""
    if importlib.util.find_spec("kubernetes_validate") is None:
        if os.environ.get("CI"):
            pytest.fail("CI needs kubernetes-validate, of the extra `dev`")
        pytest.skip("kubernetes-validate is not installed")
    import kubernetes_validate

    try:
        kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error.message)
    return ""


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("document", PLAIN, ids=name_of)
def test_every_manifest_is_valid_in_the_oldest_and_the_newest_version(document, version):
    assert faults(document, version) == ""


@pytest.mark.parametrize("document", [d for d in PLAIN if "spec" in d], ids=name_of)
def test_a_field_that_kubernetes_does_not_know_is_refused(document):
    # Given the manifest with one field too many, as a slip of the pen would leave it
    wrong = copy.deepcopy(document)
    wrong["spec"]["selektor"] = {}
    # Then the same check that let it pass finds it
    assert "selektor" in faults(wrong, VERSIONS[-1])


def test_a_misspelt_probe_is_refused():
    wrong = copy.deepcopy(named("Deployment", "worker-prefork"))
    container = pod(wrong)["containers"][0]
    container["livenesProbe"] = container.pop("livenessProbe")
    assert "livenesProbe" in faults(wrong, VERSIONS[-1])


# What we use of KEDA's two kinds, by its documentation of v2.20 (https://keda.sh/docs/2.20/reference/scaledobject-spec/):
# name -> (type, the same of what is inside). Nothing else may be there, so a slip of the pen is found here too.
POLICIES = {"type": str, "value": int, "periodSeconds": int}
BEHAVIOUR = {"stabilizationWindowSeconds": int, "policies": [POLICIES]}
TRIGGER = {"type": str, "metricType": str, "metadata": dict[str, str], "authenticationRef": {"name": str}}
KEDA_SHAPES: dict[str, dict[str, Any]] = {
    "ScaledObject": {
        "scaleTargetRef": {"name": str},
        "minReplicaCount": int,
        "maxReplicaCount": int,
        "pollingInterval": int,
        "cooldownPeriod": int,
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": {"scaleUp": BEHAVIOUR, "scaleDown": BEHAVIOUR}}},
        "triggers": [TRIGGER],
    },
    "TriggerAuthentication": {"secretTargetRef": [{"parameter": str, "name": str, "key": str}]},
}
METADATA = {
    # Trigger -> what it must have and what it may have, by the same documentation.
    "prometheus": ({"serverAddress", "query", "threshold"}, {"ignoreNullValues", "activationThreshold"}),
    "redis": ({"address", "listName", "listLength"}, {"databaseIndex", "activationListLength"}),
}


def misfits(value: Any, shape: Any, where: str = "spec") -> Iterator[str]:
    """Where a value is not of this shape."""
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            yield where
            return
        yield from (f"{where}.{name}" for name in set(value) - set(shape))
        for name in set(value) & set(shape):
            yield from misfits(value[name], shape[name], f"{where}.{name}")
    elif isinstance(shape, list):
        for at, item in enumerate(value):
            yield from misfits(item, shape[0], f"{where}[{at}]")
    elif shape == dict[str, str]:
        # KEDA reads all of it as text: a bare number or true is refused by the API server.
        yield from (f"{where}.{name}" for name, text in value.items() if not isinstance(text, str))
    elif type(value) is not shape:
        yield where


@pytest.mark.parametrize("document", KEDAS, ids=name_of)
def test_every_object_of_keda_has_known_fields_of_the_right_type_and_no_other(document):
    assert document["apiVersion"] == "keda.sh/v1alpha1"
    assert list(misfits(document["spec"], KEDA_SHAPES[document["kind"]])) == []
    for trigger in document["spec"].get("triggers", ()):
        must, may = METADATA[trigger["type"]]
        assert must <= set(trigger["metadata"]) <= must | may


def test_a_field_that_keda_does_not_know_and_a_number_where_it_wants_text_are_found():
    wrong = copy.deepcopy(SCALED[0])
    wrong["spec"]["trigers"] = wrong["spec"].pop("triggers")
    assert list(misfits(wrong["spec"], KEDA_SHAPES["ScaledObject"])) == ["spec.trigers"]
    wrong = copy.deepcopy(SCALED[0])
    wrong["spec"]["triggers"][0]["metadata"]["threshold"] = 2
    assert list(misfits(wrong["spec"], KEDA_SHAPES["ScaledObject"])) == ["spec.triggers[0].metadata.threshold"]


@pytest.mark.skipif(not KEDA_CRDS, reason="SIDESTEP_KEDA_CRDS names no folder with KEDA's config/crd/bases")
@pytest.mark.parametrize("document", KEDAS, ids=name_of)
def test_kedas_own_schemas_take_what_is_there_and_refuse_what_they_do_not_know(document):
    import jsonschema

    (file,) = Path(KEDA_CRDS).glob(f"keda.sh_{document['kind'].lower()}s.yaml")
    definition = yaml.safe_load(file.read_text("utf-8"))
    (version,) = [v for v in definition["spec"]["versions"] if v["name"] == "v1alpha1"]
    schema = strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}
    judge = jsonschema.Draft202012Validator(schema)
    assert [error.message for error in judge.iter_errors(document)] == []
    wrong = copy.deepcopy(document)
    wrong["spec"]["nonsense"] = 1
    assert [error.message for error in judge.iter_errors(wrong)] != []


def strict(schema: Any) -> Any:
    """As an API server that is asked to refuse unknown fields reads it."""
    if isinstance(schema, dict):
        known = "properties" in schema and not schema.get("x-kubernetes-preserve-unknown-fields")
        own = {name: strict(value) for name, value in schema.items()}
        return {**own, "additionalProperties": False} if known and "additionalProperties" not in schema else own
    return [strict(value) for value in schema] if isinstance(schema, list) else schema


# --- what the manifests promise --------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", PODS, ids=name_of)
def test_every_pod_is_locked_up_as_the_restricted_standard_asks(document):
    spec = pod(document)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    for container in spec["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@pytest.mark.parametrize("document", PODS, ids=name_of)
def test_every_container_is_probed_and_bounded(document):
    for container in pod(document)["containers"]:
        assert {"readinessProbe", "livenessProbe"} <= set(container)
        resources = container["resources"]
        assert {"cpu", "memory"} <= set(resources["requests"])
        # As much as it may take is kept for it, so no neighbour's memory is promised twice
        assert resources["limits"]["memory"] == resources["requests"]["memory"]


def test_namespace_enforces_what_the_pods_keep_to():
    labels = named("Namespace", "sidestep")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_every_file_belongs_to_a_kustomization():
    for path in files():
        if path.name == "kustomization.yaml":
            listed = yaml.safe_load(path.read_text("utf-8"))["resources"]
            beside = {p.name for p in path.parent.glob("*.yaml")} - {"kustomization.yaml"}
            assert set(listed) == beside, path


def test_no_secret_is_in_the_files_and_each_that_is_wanted_is_made_by_the_page():
    assert [name_of(document) for document in ALL if document["kind"] == "Secret"] == []
    volumes = [volume for document in PODS for volume in pod(document)["volumes"]]
    wanted = {volume["secret"]["secretName"] for volume in volumes if "secret" in volume}
    assert wanted
    made = set(re.findall(r"create secret generic (\S+)", DEPLOY_PAGE.read_text("utf-8")))
    assert wanted <= made


def test_whoever_selects_pods_finds_some():
    labels = [document["spec"]["template"]["metadata"]["labels"] for document in PODS]

    def chosen(selector: dict[str, str]) -> bool:
        return any(set(selector.items()) <= set(each.items()) for each in labels)

    for document in ALL:
        spec = document.get("spec", {})
        if document["kind"] == "Service":
            assert chosen(spec["selector"]), name_of(document)
        elif document["kind"] in {"PodDisruptionBudget", "Deployment", "StatefulSet"}:
            assert chosen(spec["selector"]["matchLabels"]), name_of(document)
        elif document["kind"] == "NetworkPolicy" and spec["podSelector"]:
            assert chosen(spec["podSelector"]["matchLabels"]), name_of(document)


def test_flower_is_told_a_queue_that_a_worker_serves():
    (flower,) = [d for d in PODS if d["metadata"]["name"] == "flower"]
    told = {e["name"]: e.get("value") for e in flower["spec"]["template"]["spec"]["containers"][0]["env"]}
    served = [d["spec"]["template"]["spec"]["containers"][0]["command"] for d in PODS if "worker" in name_of(d)]
    assert any(f"--queues={told['SIDESTEP_QUEUE']}" in command for command in served)


def test_all_who_use_redis_may_reach_it_and_nobody_else():
    policy = named("NetworkPolicy", "redis")["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"]
    for document in PODS:
        uses = any(e["name"] == "SIDESTEP_BROKER_FILE" for c in pod(document)["containers"] for e in c.get("env", ()))
        labels = document["spec"]["template"]["metadata"]["labels"]
        assert uses == (set(policy.items()) <= set(labels.items())), name_of(document)


@pytest.mark.parametrize("document", SCALED, ids=name_of)
def test_what_is_scaled_serves_the_queue_whose_time_is_asked_for_and_fixes_no_number(document):
    target = named("Deployment", document["spec"]["scaleTargetRef"]["name"])
    assert "replicas" not in target["spec"]
    command = pod(target)["containers"][0]["command"]
    (queue,) = [word.removeprefix("--queues=") for word in command if word.startswith("--queues=")]
    (trigger,) = document["spec"]["triggers"]
    assert set(re.findall(r'queue="([^"]+)"', trigger["metadata"]["query"])) == {queue}
    assert "sidestep_time_in_queue_seconds_bucket" in trigger["metadata"]["query"]
    # A time is compared with a time, whatever the number of workers
    assert trigger["metricType"] == "Value"
    # Silence is not taken for an empty queue
    assert trigger["metadata"]["ignoreNullValues"] == "false"


@pytest.mark.parametrize("name", ["worker-prefork", "worker-threads", "worker-eventlet"])
def test_a_worker_gets_time_to_end_its_jobs_and_is_replaced_one_at_a_time(name):
    worker = named("Deployment", name)
    assert pod(worker)["terminationGracePeriodSeconds"] >= 60
    assert worker["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    assert named("PodDisruptionBudget", name)["spec"]["maxUnavailable"] == 1


@pytest.mark.parametrize("document", PODS, ids=name_of)
def test_every_command_of_ours_is_one_that_the_program_takes(document):
    from celery.bin.worker import worker

    from lab.exporter import cli as exporter
    from producer.cli import cli as producer

    programs = {"worker": worker, "lab.exporter": exporter, "producer.cli": producer}
    (command,) = [container["command"] for container in pod(document)["containers"]]
    for name, program in programs.items():
        if name in command:
            options = [word.partition("=")[0] for word in command[command.index(name) + 1 :]]
            known = {option for parameter in program.params for option in parameter.opts}
            assert set(options) <= known
            return
    assert command[0] == "redis-server" or "flower" in command


CASES = {
    # name: (jobs that wait, jobs that start in each 15 s, what the query says)
    "nothing waits and nothing starts: 0": (0, 0, "{labels: q, value: 0}"),
    "jobs wait and start: the time that 95 % of them do not exceed": (7, 5, "{labels: q, value: 9.75}"),
    "jobs wait and none starts: nobody knows": (7, 0, ""),
}


@pytest.mark.stack
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("document", SCALED, ids=name_of)
def test_the_query_of_each_scaler_says_what_the_file_says_it_does(document, case, tmp_path):
    if not (promtool := shutil.which("promtool")):
        if os.environ.get("CI"):
            pytest.fail("CI needs promtool: apt-get install prometheus")
        pytest.skip("promtool is not installed; Debian's package `prometheus` has it")
    query = document["spec"]["triggers"][0]["metadata"]["query"]
    (queue,) = set(re.findall(r'queue="([^"]+)"', query))
    depth, starts, said = CASES[case]
    # Given jobs whose times in queue lie between 5 and 10 s, beside another queue's that wait for ever
    series = {f'sidestep_queue_depth_jobs{{queue="{queue}"}}': f"{depth}x20"}
    for bound, each in (("5.0", 0), ("10.0", starts), ("+Inf", starts)):
        series[f'sidestep_time_in_queue_seconds_bucket{{queue="{queue}",le="{bound}"}}'] = f"3+{each}x20"
        series[f'sidestep_time_in_queue_seconds_bucket{{queue="other",le="{bound}"}}'] = (
            "0+9x20" if bound == "+Inf" else "0x20"
        )
    rules = {"groups": [{"name": "q", "rules": [{"record": "q", "expr": query}]}]}
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(rules))
    expected = yaml.safe_load(f"[{said}]")
    test = {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": "q", "eval_time": "4m", "exp_samples": expected}],
    }
    tests = {"rule_files": ["rules.yml"], "evaluation_interval": "15s", "tests": [test]}
    (tmp_path / "test.yml").write_text(yaml.safe_dump(tests))
    # Then a real Prometheus answers it as promised
    done = subprocess.run([promtool, "test", "rules", "test.yml"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# --- what ends a worker and what does not ----------------------------------------------------------------------------


def alive(tmp_path: Path, *, ready: bool) -> subprocess.CompletedProcess[str]:
    """`deploy/alive.py` beside a broker that is away."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    file = tmp_path / "worker"
    if ready:
        file.write_text(json.dumps({"node": "threads@there", "pid": os.getpid()}))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "SIDESTEP_WORKER_FILE": str(file)}
    env["SIDESTEP_BROKER"] = f"redis://127.0.0.1:{port}/0"
    command = [sys.executable, str(ROOT / "deploy" / "alive.py")]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_a_worker_lives_on_while_the_broker_is_away(tmp_path):
    done = alive(tmp_path, ready=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "the broker does not answer" in done.stdout


def test_a_worker_that_was_never_ready_is_not_alive(tmp_path):
    done = alive(tmp_path, ready=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "not ready yet" in done.stderr


# --- Swarm -----------------------------------------------------------------------------------------------------------

rendered = runpy.run_path(str(ROOT / "deploy" / "swarm" / "render.py"))["rendered"]


def test_what_compose_says_is_spelt_as_swarm_reads_it_and_nothing_of_it_is_lost():
    # Given what `docker compose config` prints of a service
    service = {
        "image": "sidestep",
        "command": ["a"],
        "build": {"context": "."},
        "depends_on": {"redis": {"condition": "service_healthy"}},
        "restart": "unless-stopped",
        "entrypoint": None,
        "deploy": {"resources": {"limits": {"cpus": 0.5, "memory": "64", "pids": 20}}},
        "secrets": [{"source": "key", "target": "/key", "mode": "0400"}],
        "ports": [{"target": 5555, "published": "5555"}],
        "volumes": [{"type": "tmpfs", "target": "/scratch", "tmpfs": {"size": "16777216"}}],
    }
    project = {"name": "p", "services": {"one": service}, "networks": {"inside": {"name": "p_inside", "ipam": {}}}}
    # When it is rendered
    stack = rendered(project)
    # Then the reader's quirks are met
    assert stack == {
        "version": "3.13",
        "services": {
            "one": {
                "image": "sidestep",
                "command": ["a"],
                "deploy": {"resources": {"limits": {"cpus": "0.5", "memory": "64", "pids": 20}}},
                "secrets": [{"source": "key", "target": "/key", "mode": 0o400}],
                "ports": [{"target": 5555, "published": 5555}],
                "volumes": [{"type": "tmpfs", "target": "/scratch", "tmpfs": {"size": 16777216}}],
            }
        },
        "networks": {"inside": {}},
    }


BASH = shutil.which("bash") or "bash"


@pytest.mark.parametrize("script", ["deploy/swarm/up", "deploy/keys", "scripts/scale-demo"])
def test_scripts_can_be_run_and_read(script):
    assert os.access(ROOT / script, os.X_OK)
    assert subprocess.run([BASH, "-n", str(ROOT / script)], check=False).returncode == 0


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (("deploy/swarm/up", "No Name"), "no name for a stack"),
        (("deploy/swarm/up", "one", "two"), "the stack's name or nothing"),
        (("deploy/keys",), "name one folder"),
        (("deploy/keys", str(ROOT)), "is not empty"),
    ],
)
def test_scripts_refuse_nonsense_in_one_line_before_they_do_anything(command, says):
    done = subprocess.run([BASH, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert says in line


@pytest.mark.parametrize("where", ["nowhere", ":5555", "flower:http"])
def test_a_door_that_leads_nowhere_is_refused_in_one_line(where):
    command = [sys.executable, str(ROOT / "deploy" / "door.py"), where]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert "HOST:PORT" in line


DOCKER = shutil.which("docker") or "docker"
STACK, IMAGE = "sidestep-test", "sidestep-swarm-test"
PATIENCE_S = 180.0
"""Not a claim about speed: what does not come in this time does not come."""


def docker(*args: str, check: bool = True) -> str:
    done = subprocess.run([DOCKER, *args], cwd=ROOT, capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"docker {' '.join(args)}: {done.stdout[-1500:]} {done.stderr[-3000:]}")
    return done.stdout.strip()


def until(what: str, found: Callable[[], Any]) -> Any:
    """The first thing that is not None, False or empty."""
    end_s = time.monotonic() + PATIENCE_S
    while not (seen := found()):
        assert time.monotonic() < end_s, f"still not: {what}"
        time.sleep(0.5)  # between looks at another machine's state
    return seen


def up() -> str:
    env = {**os.environ, "SIDESTEP_IMAGE": IMAGE}
    done = subprocess.run(
        [str(ROOT / "deploy" / "swarm" / "up"), STACK], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def running_in(service: str) -> list[str]:
    label = f"label=com.docker.swarm.service.name={STACK}_{service}"
    return docker("ps", "-q", "--filter", label, "--filter", "status=running").split()


def inside_of(service: str, *command: str, check: bool = True) -> str:
    containers = running_in(service)
    return docker("exec", containers[0], *command, check=check) if containers else ""


def look() -> dict[str, Any]:
    """What the exporter's snapshot says of the queue `cpu`; nothing while nobody can be asked."""
    code = "import json, sys; sys.path.insert(0, '/app/deploy')\nfrom watch import *\n"
    code += "c = open_client(from_env(), decode_responses=True)\nprint(json.dumps(seen(read(c, 'sidestep:'), 'cpu')))"
    try:
        return json.loads(inside_of("exporter", "python", "-c", code, check=False) or "{}")
    except json.JSONDecodeError:
        return {}


def running(service: str) -> str:
    return docker("service", "ls", "--filter", f"name={STACK}_{service}", "--format", "{{.Replicas}}")


@pytest.fixture
def swarm() -> Iterator[None]:
    state = docker("info", "--format", "{{.Swarm.LocalNodeState}}", check=False) if shutil.which("docker") else ""
    if not state:
        if os.environ.get("CI"):
            pytest.fail("CI has no Docker engine")
        pytest.skip("no Docker engine answers")
    if state != "inactive":
        why = f"this engine is in a Swarm already ({state}), which is not ours to leave"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    docker("build", "-q", "-t", IMAGE, ".")
    try:
        docker("swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1:2377")
        yield
    finally:
        docker("stack", "rm", STACK, check=False)
        mine = ("--filter", f"label=com.docker.stack.namespace={STACK}", "-q")
        end_s = time.monotonic() + PATIENCE_S
        while docker("ps", "-a", *mine, check=False) and time.monotonic() < end_s:
            time.sleep(0.5)
        docker("swarm", "leave", "--force", check=False)
        docker("network", "rm", "docker_gwbridge", check=False)  # made for the Swarm, and left behind by it
        for container in docker("ps", "-a", *mine, check=False).split():
            docker("rm", "-f", container, check=False)
        for volume in docker("volume", "ls", *mine, check=False).split():
            docker("volume", "rm", volume, check=False)
        docker("rmi", IMAGE, check=False)


@pytest.mark.docker
@pytest.mark.usefixtures("swarm")
def test_the_stack_is_deployed_works_is_scaled_and_is_removed_in_a_swarm_of_one():
    # Given a Swarm of one machine, when the stack is deployed
    said = up()
    assert "password:" in said
    # Then every part gets well, by its own health check
    for service in ("redis", "upstream", "exporter", "flower", "worker-prefork", "worker-threads", "worker-eventlet"):
        until(f"{service} is well", lambda s=service: running(s) == "1/1")
    # And the producer's first jobs end
    until("a first job has ended", lambda: look().get("done", 0) > 0)
    until("what was sent is counted", lambda: look().get("issued", 0) > 0)
    # And no port is open: Swarm would open it to everybody
    assert docker("service", "ls", "--format", "{{.Ports}}").strip() == ""
    # And credentials are in no definition
    secret = inside_of("worker-prefork", "cat", "/run/sidestep/worker/broker").rpartition("@")[0].rpartition(":")[2]
    assert len(secret) > 16
    names = docker("service", "ls", "-q").split()
    assert secret not in docker("service", "inspect", *names)
    # And containers are as locked up as Swarm lets them be
    wrote = inside_of("worker-prefork", "sh", "-c", "id -u; touch /tmp/x && echo tmp; touch /app/x", check=False)
    assert wrote.split() == ["10001", "tmp"]
    # When a second worker is asked for, then it serves the same queue
    docker("service", "scale", "--detach", f"{STACK}_worker-prefork=2")
    until("a second worker serves", lambda: look().get("workers") == 2)
    # When the stack is removed, then nothing of it runs, and the secrets go when they are told to
    # Workers first: with Redis gone they would wait for it until they are killed
    docker("service", "scale", "--detach", *(f"{STACK}_worker-{pool}=0" for pool in ("prefork", "threads", "eventlet")))
    until(
        "the workers have ended", lambda: not any(running_in(f"worker-{p}") for p in ("prefork", "threads", "eventlet"))
    )
    docker("stack", "rm", STACK)
    mine = ("--filter", f"label=com.docker.stack.namespace={STACK}", "-q")
    until("all containers have gone", lambda: not docker("ps", *mine))
    secrets = docker("secret", "ls", "-q", "--filter", f"label=sidestep={STACK}").split()
    assert len(secrets) == 7
    docker("secret", "rm", *secrets)
    assert docker("secret", "ls", "-q") == ""
