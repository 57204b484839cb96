"""Many machines: simulated ones in containers, and those that listen on the broker, wherever they are."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import psutil
import pytest
import redis
from click.testing import CliRunner

from experiments.catalogue import EXPERIMENTS
from lab import doctor
from lab.agent import Agent, Reels
from lab.arenas import compose
from lab.arenas.attached import alike, chosen, crew, remove_stale
from lab.arenas.compose import DOCKER, Engine, SimulatedMachines, lab_label, missing, remove_leftovers
from lab.broker import own_server
from lab.children import Children
from lab.cli import Catalogue, cli
from lab.clocks import Probe
from lab.crew import KEPT_S, WANTED, Batch, Member, batches, member_key
from lab.guard import sweep_containers
from lab.measure import Order, place
from lab.model import BadInput, Change, FrozenArgs, Run, Setup, Trial
from lab.report.catalogue import experiment_page
from lab.report.caveats import caveats
from lab.report.page import page
from lab.runner import Runner
from lab.session import open_session
from lab.verdict import judge_all
from producer.pacers import Burst
from tasks.timeline import MARK, Tape, boot_id, end
from tests.fakes import SETUP, make_run
from tests.simulator import run_experiment

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "experiments"]
PATIENCE_S = 60.0
"""Not a claim about speed: what does not come in this time does not come."""
MACHINES = EXPERIMENTS["machines"]
HERE = Member("here@x", "prefork", 1, 7, boot_id(), "3.13.5", True, "sidestep:")


def until(what: str, found: Callable[[], Any]) -> Any:
    """The first thing that is not None, False or empty."""
    end_s = time.monotonic() + PATIENCE_S
    while not (seen := found()):
        assert time.monotonic() < end_s, f"still not: {what}"
        time.sleep(0.02)  # between looks at another process's state
    return seen


def sidestep(*args: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith("SIDESTEP")}
    env |= {"PYTHONPATH": str(ROOT), **environ}
    return subprocess.run([*COMMAND, *args], env=env, cwd=cwd, capture_output=True, text=True, check=False, timeout=300)


@pytest.fixture
def without_docker(tmp_path: Path) -> dict[str, str]:
    """A PATH with nothing on it."""
    (tmp_path / "bin").mkdir()
    return {"PATH": str(tmp_path / "bin")}


@pytest.mark.parametrize(
    ("version", "state"),
    [("2.20.2", "ok"), ("2.38.2", "ok"), ("2.9.0", "missing"), ("2.20.1", "missing"), ("", "missing")],
)
def test_the_doctor_says_whether_compose_is_new_enough_for_the_stack(
    monkeypatch: pytest.MonkeyPatch, version: str, state: str
):
    # Given a Compose of this version, or none
    monkeypatch.setattr(compose, "version", lambda: version)
    diagnosis = doctor._stack()
    # Then the stack needs one that knows of services that need not be there
    assert diagnosis.state == state
    assert diagnosis.what == "demo stack"
    assert state == "ok" or "2.20.2" in diagnosis.says or "Compose v2 is needed" in diagnosis.says


def test_without_docker_one_line_says_what_is_missing(tmp_path: Path, without_docker):
    done = sidestep("run", "machines", cwd=tmp_path, **without_docker)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "docker" in line
    assert "install" in line
    # And nothing was begun
    assert not (tmp_path / "runs").exists()


def test_without_docker_the_plan_and_the_doctor_say_so_and_go_on(tmp_path: Path, without_docker):
    done = sidestep("plan", "machines", "--json", cwd=tmp_path, **without_docker)
    assert done.returncode == 0, done
    assert all("docker" in why for why in json.loads(done.stdout)["left_out"].values())
    seen = json.loads(sidestep("doctor", "--json", cwd=tmp_path, **without_docker).stdout)["diagnoses"]
    (diagnosis,) = (d for d in seen if d["what"] == "simulated machines")
    assert diagnosis["state"] == "missing"
    assert "install" in diagnosis["says"]
    assert {d["what"] for d in seen} >= {f"claim {claim.id}" for claim in MACHINES.claims}


def complaint(*args: str, environ: dict[str, str] | None = None) -> str:
    """What the command line is told about these arguments, in one line."""
    clean = {name: None for name in os.environ if name.startswith("SIDESTEP")}
    done = CliRunner(env={**clean, **(environ or {})}).invoke(
        cli, args, obj=Catalogue(EXPERIMENTS, ()), standalone_mode=False
    )
    assert isinstance(done.exception, BadInput | click.ClickException), done
    words = done.exception.format_message() if isinstance(done.exception, click.ClickException) else str(done.exception)
    assert "\n" not in words
    return words


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("machines", "--arena", "attached"), "name it with --broker URL"),
        (("machines", "--broker", "redis://127.0.0.1:1/0"), "--arena attached"),
        (("gil-cpu", "--arena", "compose"), "leave out --arena"),
        (("machines", "--arena", "local"), "several machines"),
        (("machines", "--arena", "moon"), "moon"),
    ],
)
def test_the_arena_is_refused_where_it_makes_no_sense(args: tuple[str, ...], says: str, tmp_path: Path):
    assert says in complaint("run", *args, "--out", str(tmp_path))


@pytest.mark.parametrize(
    ("args", "environ", "says"),
    [
        ((), {}, "SIDESTEP_BROKER"),
        (("--broker-file", "/nowhere/at/all"), {}, "cannot be read"),
        ((), {"SIDESTEP_BROKER_FILE": "/"}, "cannot be read"),
        (("--broker", "redis://127.0.0.1:1/0"), {}, "no broker answers"),
        (("--broker", "http://127.0.0.1:1/0"), {}, "must look like"),
        (("--preset", "moon"), {"SIDESTEP_BROKER": "redis://127.0.0.1:1/0"}, "moon"),
    ],
)
def test_a_worker_without_a_broker_says_where_to_name_one(args: tuple[str, ...], environ: dict[str, str], says: str):
    assert says in complaint("worker", *args, environ=environ)


def test_a_setup_runs_where_it_is_asked_to_with_the_machines_own_slots():
    one = replace(SETUP, arena="compose", cpus=0.2, nodes=2)
    four = {f"m{i}": replace(HERE, name=f"m{i}", pool="threads", slots=4) for i in range(4)}
    # As it was declared, where nobody says otherwise
    assert place(one, None) == place(one, "compose") == one
    # On machines that are there: without a quota, in the pool that their workers have
    placed = place(one, "attached", four)
    assert placed == replace(one, arena="attached", cpus=None, pool="threads", concurrency=4)
    # And where there are too few it says how many there are
    assert "needs 8 machines and 4 take part" in str(place(replace(one, nodes=8), "attached", four))


def test_machines_that_are_not_alike_are_named():
    with pytest.raises(BadInput, match="no machine listens"):
        alike({})
    unlike = {"a": replace(HERE, name="a"), "b": replace(HERE, name="b", slots=8)}
    with pytest.raises(BadInput, match=r"a: prefork 1; b: prefork 8"):
        alike(unlike)
    assert alike({"a": unlike["a"]}) is unlike["a"]


def test_each_machine_is_alone_in_its_turn():
    members = {name: replace(HERE, name=name) for name in ("c", "a", "b")}
    assert [chosen(members, 1, turn)[0].name for turn in range(4)] == ["a", "b", "c", "a"]
    assert {m.name for m in chosen(members, 3, 5)} == set(members)


def test_what_machines_say_of_themselves_survives_the_way():
    member = replace(HERE, probes=(Probe(1, 2, 3), Probe(4, 5, 6)), cpu_s=1.5)
    assert Member.from_json(member.to_json()) == member
    for nonsense in ("{}", "[]", "no", json.dumps({**json.loads(member.to_json()), "more": 1})):
        with pytest.raises(ValueError, match=r"."):
            Member.from_json(nonsense)


def test_marks_travel_whole_and_in_order():
    marks = [bytes([i % 256]) * MARK.size for i in range(4500)]
    sent = batches("a@x", "1.tape", {"pid": 3}, 10, marks)
    assert [batch.first for batch in sent] == [10, 2010, 4010]
    again = [Batch.from_bytes(batch.to_bytes()) for batch in sent]
    assert again == sent
    assert b"".join(batch.marks for batch in again) == b"".join(marks)
    for nonsense in (b"", b"{}\n", sent[0].to_bytes()[:-1]):
        with pytest.raises(ValueError, match=r"."):
            Batch.from_bytes(nonsense)


def test_a_tape_is_read_on_as_jobs_end(tmp_path: Path):
    tape, reels = Tape(str(tmp_path), {}), Reels(tmp_path)
    # Given three jobs that began, of which the second ends first
    ids = [uuid.uuid4().bytes for _ in range(3)]
    places = [tape.begin(job_id, 1, 2) for job_id in ids]
    assert list(reels.ended("a")) == []
    end(places[1], ids[1], 1, 2, 5, 1, 0, failed=False)
    (batch,) = reels.ended("a")
    assert (batch.first, batch.marks[:16], batch.about["pid"]) == (0, ids[1], os.getpid())
    # Then the others come when they end, failed ones too, and each once
    end(places[0], ids[0], 1, 2, 6, 1, 0, failed=True)
    end(places[2], ids[2], 1, 2, 7, 1, 0, failed=False)
    (batch,) = reels.ended("a")
    assert (batch.first, batch.marks[:16], batch.marks[MARK.size :][:16]) == (1, ids[0], ids[2])
    assert list(reels.ended("a")) == []


def test_a_join_and_a_leave_are_told():
    changes = (Change(1.5, "late@x", joined=True, worked=False), Change(-0.2, "gone@x", joined=False, worked=False))
    run = replace(make_run(setup=replace(SETUP, arena="attached")), changes=changes)
    suite = replace(_suite(), runs=(run,), experiments=("made-up",), repeats={"made-up": 1})
    said = " ".join(caveats(suite, []))
    assert "machine late@x joined 1.50 s after the first job was due; it takes part from the next run on" in said
    assert "machine gone@x left 0.200 s before the first job was due." in said


def _suite() -> Any:
    from lab.model import Suite

    return Suite(environment={}, experiments=(), runs=(), seed=0, repeats={})


@dataclass
class Host:
    """Another machine: a network namespace, a clock of its own, and another boot, as far as its worker can tell."""

    name: str
    namespace: str | None
    ahead_s: int
    """Its CLOCK_MONOTONIC before ours."""
    url: str

    def command(self, *options: str) -> list[str]:
        network = ["ip", "netns", "exec", self.namespace] if self.namespace else []
        clock = ["unshare", "--time", "--monotonic", str(self.ahead_s)] if self.ahead_s else []
        return [*network, *clock, *COMMAND, "worker", "-P", "threads", "-c", "2", "-n", self.name, *options]

    def start(self, folder: Path) -> subprocess.Popen[bytes]:
        env = {k: v for k, v in os.environ.items() if not k.startswith("SIDESTEP")}
        env |= {"PYTHONPATH": str(ROOT), "SIDESTEP_BROKER": self.url, "SIDESTEP_WORKER_MARKS": str(folder / self.name)}
        if self.ahead_s:
            env["SIDESTEP_BOOT_ID"] = f"another boot, {self.name}"
        with (folder / f"{self.name}.log").open("wb") as log:
            return subprocess.Popen(self.command("-l", "WARNING"), env=env, stdout=log, stderr=log, cwd=folder)


def run_ip(*args: str) -> None:
    subprocess.run([str(shutil.which("ip")), *args], check=True, capture_output=True)


@contextlib.contextmanager
def two_hosts() -> Iterator[tuple[str, list[Host]]]:
    """A broker, and two hosts that reach it over wires of their own; on each the clock is another."""
    if os.geteuid():
        pytest.fail("CI runs as root: namespaces need it") if os.environ.get("CI") else pytest.skip(
            "namespaces need root"
        )
    clock = [shutil.which("unshare") or "unshare", "--time", "--monotonic", "5", "true"]
    if not shutil.which("ip") or subprocess.run(clock, capture_output=True, check=False).returncode:
        why = "two hosts need iproute2, util-linux and a kernel with time namespaces"
        pytest.fail(why) if os.environ.get("CI") else pytest.skip(why)
    word = uuid.uuid4().hex[:6]
    with contextlib.ExitStack() as stack:
        children = stack.enter_context(Children())
        broker = stack.enter_context(own_server(children))
        client = broker.client()
        hosts, addresses = [], ["127.0.0.1"]
        for number, ahead_s in enumerate((5000, 90000)):
            space, wire, far = f"ss{word}{number}", f"sw{word}{number}", f"sf{word}{number}"
            # 198.18.0.0/15 is kept for tests of networks (RFC 2544).
            near, there = (f"198.18.{os.getpid() % 250}.{4 * number + i}" for i in (1, 2))
            run_ip("netns", "add", space)
            stack.callback(run_ip, "netns", "del", space)
            run_ip("link", "add", wire, "type", "veth", "peer", "name", far, "netns", space)
            run_ip("addr", "add", f"{near}/30", "dev", wire)
            run_ip("link", "set", wire, "up")
            run_ip("-n", space, "addr", "add", f"{there}/30", "dev", far)
            run_ip("-n", space, "link", "set", far, "up")
            addresses.append(near)
            url = broker.url.replace("127.0.0.1", near)
            hosts.append(Host(f"host{number}@{word}", space, ahead_s, url))
        client.config_set("bind", " ".join(addresses))
        yield broker.url, hosts


def ended(process: subprocess.Popen[bytes]) -> None:
    """End a worker and wait for it, and for whatever came with it."""
    family = []
    with contextlib.suppress(psutil.Error):
        family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    process.wait(timeout=PATIENCE_S)
    psutil.wait_procs(family, timeout=PATIENCE_S)


WORK = Setup(
    job="snooze",
    args=FrozenArgs(ms=20),
    pacer=Burst(60),
    pool="threads",
    concurrency=2,
    nodes=2,
    arena="attached",
)


@pytest.mark.real
def test_two_hosts_with_clocks_of_their_own_work_as_if_there_were_one(tmp_path: Path):
    with two_hosts() as (url, hosts):
        client = redis.Redis.from_url(url)
        workers = [host.start(tmp_path) for host in hosts]
        try:
            until("two machines", lambda: len(crew(client)) == 2)
            # Given jobs that were sent by this machine's clock, to hosts hours ahead of it
            with open_session(url) as session:
                run = Runner(session, 2, retakes=0).run(Trial("made-up", WORK, 0))
            said = {str(p["machine"]): p for p in run.processes}
            for host in hosts:
                about = said[host.name]
                # Then the shift that we know is found, and it is wrong by no more than is said
                known_ns = -host.ahead_s * 1_000_000_000
                assert abs(about["clock_shift_ns"] - known_ns) <= about["clock_bound_ns"], about
                assert 0 < about["clock_bound_ns"] < 50_000_000
                # And the other boot was seen
                assert about["boot_id"] != boot_id()
            # And every job is there once, on both, in an order of times that can be
            assert (run.ledger.issued, run.ledger.done) == (60, 60)
            assert set(run.samples.worker) == {i for i, p in enumerate(run.processes) if p["machine"] in said}
            bound_s = max(about["clock_bound_ns"] for about in said.values()) / 1e9
            assert (run.samples.wait_s > -bound_s).all()
            assert (run.samples.ended_ns <= run.resources.wall_s * 1e9).all()
            assert not {f.check for f in run.faults} & {"impossible_times", "unsure_clocks", "machine_left"}
            assert run.resources.worker_cpu_s > 0
        finally:
            for worker in workers:
                ended(worker)
        # And when the workers have ended nothing tells of them, and no queue of ours is left
        until("machines are gone", lambda: not crew(client))
        left = [key.decode() for key in client.keys("*")]
        assert not [key for key in left if "trial-" in key or "marks" in key or "probe" in key]
        assert client.get(WANTED) is None


@pytest.mark.real
def test_a_machine_that_joins_and_one_that_leaves_are_seen_while_jobs_run(tmp_path: Path):
    with Children() as children, own_server(children) as broker:
        client = broker.client()
        first, second, late = (Host(f"{name}@{uuid.uuid4().hex[:6]}", None, 0, broker.url) for name in "abc")
        workers = [first.start(tmp_path), second.start(tmp_path)]
        told: list[str] = []
        try:
            until("two machines", lambda: len(crew(client)) == 2)
            with open_session(broker.url, say=told.append) as session:
                session.watch.present.update(crew(client))

                def joins() -> None:
                    if len(workers) == 2:
                        workers.append(late.start(tmp_path))
                        until("the third machine", lambda: late.name in crew(client))

                run = Runner(session, 2, retakes=0, idle=joins).run(Trial("made-up", WORK, 0))
                # Then a third one that joins is told, and takes no job of the run that goes on
                # A busy machine may miss the others' signs of life for a moment; they are not what this is about
                (change, *_) = [one for one in run.changes if one.machine == late.name]
                assert (change.joined, change.worked) == (True, False)
                assert {p["machine"] for p in run.processes} == {first.name, second.name}
                assert "machine_left" not in {f.check for f in run.faults}
                assert f"machine {late.name} has joined" in told

                def leaves() -> None:
                    if workers[0].poll() is None:
                        workers[0].kill()
                        workers[0].wait()

                # When one is killed in the middle of its jobs
                longer = replace(WORK, args=FrozenArgs(ms=300), nodes=3)
                run = Runner(session, 2, retakes=0, idle=leaves).run(Trial("made-up", longer, 0))
            # Then the run says which, and when, and is not to be believed
            gone = [(c.joined, c.worked) for c in run.changes if c.machine == first.name]
            assert gone == [(False, True)]
            assert "machine_left" in {f.check for f in run.faults}
            assert f"machine {first.name} has left" in told
        finally:
            for worker in workers:
                if worker.poll() is None:
                    ended(worker)


@pytest.mark.real
def test_marks_that_nobody_wants_stay_where_they_are(tmp_path: Path):
    with Children() as children, own_server(children) as broker:
        client = redis.Redis.from_url(broker.url)
        tape, me = Tape(str(tmp_path), {}), psutil.Process()
        agent = Agent(client, HERE, Reels(tmp_path), me)

        def job() -> None:
            job_id = uuid.uuid4().bytes
            end(tape.begin(job_id, 1, 2), job_id, 1, 2, 3, 1, 0, failed=False)

        # Given a job that ended while no lab was there, and one that ended while there was
        job()
        assert agent.beat() is False
        client.set(WANTED, "somewhere")
        job()
        assert agent.beat() is True
        # Then the second alone was sent, to where the lab said, and will not stay for ever
        assert client.llen("somewhere") == 1
        batch = Batch.from_bytes(client.lindex("somewhere", 0))
        assert (batch.member, batch.first, len(batch.marks)) == (HERE.name, 1, MARK.size)
        assert 0 < client.ttl("somewhere") <= 60
        # And the machine says how it is, for as long as it goes on saying so
        member = crew(client)[HERE.name]
        assert (member.shipped, len(member.probes)) == (1, 2)
        assert 0 < client.pttl(member_key(HERE.name)) <= 3000
        agent.leave()
        assert crew(client) == {}


@pytest.mark.real
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_however_the_lab_ends_its_machines_are_free_for_the_next(tmp_path: Path, sent: signal.Signals):
    with Children() as children, own_server(children) as broker:
        client = broker.client()
        worker = Host(f"a@{uuid.uuid4().hex[:6]}", None, 0, broker.url).start(tmp_path)
        try:
            until("a machine", lambda: crew(client))
            env = {k: v for k, v in os.environ.items() if not k.startswith("SIDESTEP")}
            lab = subprocess.Popen(
                [*COMMAND, "run", "machines", "--quick", "--arena", "attached", "--out", str(tmp_path / "out")],
                env={**env, "PYTHONPATH": str(ROOT), "SIDESTEP_BROKER": broker.url},
                cwd=tmp_path,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
            # Given a run in the middle of its jobs
            until("jobs", lambda: client.hlen("sidestep:unacked"))
            # Then nobody else may use its machines
            with pytest.raises(BadInput, match="another run"):
                remove_stale(client, broker.url, "sidestep:")
            lab.send_signal(sent)
            words = lab.communicate(timeout=PATIENCE_S)[1]
            assert "Traceback" not in words
            until("the machines are free", lambda: not client.exists(WANTED))
            # And the next run takes away what a killed one could not
            remove_stale(client, broker.url, "sidestep:")
            # except the marks that nobody fetched, which go by themselves
            left = [str(key) for key in client.keys("*") if "trial-" in str(key)]
            assert all(":marks:" in key and 0 < client.ttl(key) <= KEPT_S for key in left), left
            with open_session(broker.url) as session:
                alone = replace(WORK, nodes=1, pacer=Burst(10))
                run = Runner(session, 2, retakes=0).run(Trial("made-up", alone, 0))
            assert run.ledger.done == 10
        finally:
            ended(worker)


SIMULATED = Setup(
    job="spin",
    args=FrozenArgs(loops=20_000),
    pacer=Burst(200),
    pool="prefork",
    nodes=2,
    prefetch=1,
    arena="compose",
    cpus=0.2,
)


def left_over(token: str) -> list[str]:
    """Containers and networks of a session."""
    return [line for line in labelled("sidestep.session") if line == token]


def of_lab(pid: int) -> list[str]:
    """Those of a lab, by its process."""
    return [line for line in labelled("sidestep.lab") if line.split("/")[1:2] == [str(pid)]]


def labelled(label: str) -> list[str]:
    """The values of a label of everything that has it."""
    found = []
    for kind in (("ps", "--all"), ("network", "ls"), ("volume", "ls")):
        command = [DOCKER, *kind, "--filter", f"label={label}", "--format", f'{{{{.Label "{label}"}}}}']
        found += subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return found


needs_docker = pytest.mark.docker


@pytest.fixture
def docker() -> None:
    if reason := missing():
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@needs_docker
@pytest.mark.usefixtures("docker")
def test_simulated_machines_share_the_work_and_one_clock_and_leave_nothing():
    with open_session() as session:
        session.prepare(SIMULATED)
        run = Runner(session, 2, retakes=0).run(Trial("made-up", SIMULATED, 0))
        token = session.children.token
        # Then between trials only the network is there
        assert len(left_over(token)) == 1
    assert_shared(run)
    assert left_over(token) == []


def assert_shared(run: Run) -> None:
    assert (run.ledger.issued, run.ledger.done) == (200, 200)
    # Both took part, each in a host of its own, in this very boot: their times need no comparing
    assert len({p["host"] for p in run.processes}) == 2
    assert {p["boot_id"] for p in run.processes} == {boot_id()}
    assert not {f.check for f in run.faults} & {"impossible_times", "quota_not_kept"}
    # And none had more than its share of a core
    assert run.resources.worker_cpu_s / run.resources.wall_s / 2 < 0.3
    assert run.resources.worker_pss_bytes


@needs_docker
@pytest.mark.usefixtures("docker")
def test_a_machine_that_cannot_start_says_why_and_leaves_nothing(tmp_path: Path):
    from lab.model import LabError
    from tasks.settings import Settings

    with open_session() as session:
        (tmp_path / "trial").mkdir()
        # Given a worker that refuses its own options
        setup = replace(SIMULATED, pool="no-such-pool")
        with pytest.raises(LabError, match="ended before it was ready"):
            SimulatedMachines(session.engine, setup, settings=Settings(), directory=tmp_path / "trial")
        assert isinstance(session.engine, Engine)
        assert len(left_over(session.engine.token)) == 1
    assert left_over(session.engine.token) == []


@needs_docker
@pytest.mark.usefixtures("docker")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_however_the_lab_ends_no_container_and_no_network_is_left(tmp_path: Path, sent: signal.Signals):
    env = {k: v for k, v in os.environ.items() if not k.startswith("SIDESTEP")} | {"PYTHONPATH": str(ROOT)}
    lab = subprocess.Popen(
        [*COMMAND, "run", "machines", "--quick", "--out", str(tmp_path / "out")],
        env=env,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    # Given machines that are up
    until("containers", lambda: len(of_lab(lab.pid)) > 1)
    # When the lab is stopped, or killed
    lab.send_signal(sent)
    words = lab.communicate(timeout=PATIENCE_S)[1]
    # Then they go, and their network with them
    until("nothing is left", lambda: not of_lab(lab.pid))
    if sent == signal.SIGINT:
        assert lab.returncode == 130
        assert "stopped" in words
        assert "Traceback" not in words


def test_what_the_order_leaves_out_is_named(tmp_path: Path):
    # Given an order for another interpreter; then containers, which have their own, are left out with the reason
    trials, why = Order((MACHINES,), tmp_path, python=sys.executable).trials(MACHINES, cores=2)
    assert trials == []
    assert all("Python of their own" in reason or "docker" in reason.lower() for reason in why.values())


@needs_docker
@pytest.mark.usefixtures("docker")
def test_what_a_lab_left_whose_guard_was_killed_too_is_removed_by_the_next():
    # Given a network of a process that is gone, one of a process that runs, and one of another machine
    gone = subprocess.Popen([sys.executable, "-c", ""])
    label = lab_label(psutil.Process(gone.pid))
    gone.wait()
    labs = {"gone": label, "runs": lab_label(psutil.Process()), "elsewhere": f"another{label}"}
    tokens = {name: uuid.uuid4().hex for name in labs}
    try:
        for name, lab in labs.items():
            labels = ("--label", f"sidestep.session={tokens[name]}", "--label", f"sidestep.lab={lab}")
            subprocess.run(
                [DOCKER, "network", "create", *labels, f"sidestep-test-{tokens[name][:8]}"],
                check=True,
                capture_output=True,
            )
        remove_leftovers()
        # Then only the first is removed
        there = {name: bool(left_over(token)) for name, token in tokens.items()}
        assert there == {"gone": False, "runs": True, "elsewhere": True}
    finally:
        for token in tokens.values():
            sweep_containers(token)


def test_the_report_says_that_machines_are_simulated_and_holds_them_against_the_law():
    # Given the whole experiment, simulated machines that are simulated themselves
    suite = run_experiment(MACHINES, cores=2)
    shown = page(suite, judge_all([MACHINES], suite), [MACHINES])
    # Then what is not simulated is said, the ideal line is drawn, and both kinds of jobs have the law's coefficients
    assert "Not simulated: the network between machines" in shown
    assert shown.count("each machine adds as much as the first") >= 2
    assert shown.count("<caption>Universal Scalability Law: job") == 2
    # And the page of the catalogue says it too
    assert "Not simulated" in experiment_page(MACHINES, suite, judge_all([MACHINES], suite))
