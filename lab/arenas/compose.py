"""Simulated machines: each is a container with a share of a core, so that two cores make eight equal machines.

They are workers of the image that the project's Dockerfile makes, on a network that leads nowhere but to this machine,
where the session's own broker listens. Marks lie in files that this machine's kernel maps into both sides, so one clock
serves them all. What is not simulated: the network between machines, their disks, and a clock of their own.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psutil
import redis

from lab.arenas.arena import BOOT_TIMEOUT_S
from lab.broker import Broker
from lab.children import ROOT, Children, last_words
from lab.guard import LABEL, sweep_containers
from lab.model import BadInput, LabError, Setup
from tasks.codecs import CODECS
from tasks.pools import EVENTLET_WARNING_FILTER
from tasks.settings import Settings

DOCKER = "docker"
"""The user's own, wherever PATH has it."""
IMAGE = "sidestep-machines"
FILE = ROOT / "deploy" / "machines" / "compose.yaml"
INSIDE = Path("/run/sidestep/node")
"""Where a node finds its trial's folder."""
LAB_LABEL = "sidestep.lab"
"""Says which process a container belongs to: what a killed lab left, the next one removes."""
USER = 10001
"""Of the nodes where the lab itself is root; else it is the lab's own."""
STACK_NEEDS = "2.20.2"
"""The oldest Compose that reads compose.yaml, as `scripts/up` asks for it."""
ASK_TIMEOUT_S, BUILD_TIMEOUT_S, COMPOSE_TIMEOUT_S = 20.0, 900.0, 180.0
OWN_BROKER = (
    "simulated machines have a broker of their own: leave out --broker (and SIDESTEP_BROKER), or use --arena attached"
)
LOOK_S, INSPECT_S = 0.02, 1.0
"""Between two looks at the files that nodes write, and between two questions to the engine."""


@cache
def missing() -> str | None:
    """What this machine lacks to simulate others, with what to do; None where nothing is missing."""
    if (docker := shutil.which("docker")) is None:
        return "simulated machines are containers, and there is no `docker` here: install Docker Engine with Compose v2"
    for arguments, what in (
        (("compose", "version", "--short"), "Compose v2 is missing: install the docker-compose-plugin"),
        (("info", "--format", "{{.ServerVersion}}"), "no Docker engine answers: start it, or let this user ask it"),
    ):
        try:
            done = subprocess.run(
                [docker, *arguments], capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return f"simulated machines are containers, and {what}"
        if done.returncode:
            return f"simulated machines are containers, and {what}"
    if not (ROOT / "Dockerfile").exists() or not FILE.exists():
        return "simulated machines are made from the Dockerfile, which an installed Sidestep lacks: run from a checkout"
    return None


def version() -> str:
    """Of Docker Compose, such as 2.38.2; empty where none answers."""
    try:
        done = subprocess.run(
            ["docker", "compose", "version", "--short"],  # noqa: S607  the one on PATH is meant
            capture_output=True,
            text=True,
            timeout=ASK_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip().removeprefix("v") if done.returncode == 0 else ""


class Engine:
    """The container engine, with an image of this Sidestep and a network that leads to the session's broker.

    Raises BadInput where something is missing, and LabError when the engine does not do what it is told.
    """

    def __init__(self, children: Children, broker: Broker, client: redis.Redis) -> None:
        if reason := missing():
            raise BadInput(reason)
        if broker.pid is None:
            raise BadInput(OWN_BROKER)
        self._children, self._broker, self._client = children, broker, client
        self._network: str | None = None
        self._bound = ""
        children.has_containers()
        remove_leftovers()

    @property
    def token(self) -> str:
        """On everything of this session, so that the guard finds it."""
        return self._children.token

    @cached_property
    def image(self) -> str:
        """Made from what lies here now; what has not changed comes from the engine's cache."""
        done = self.run(
            "build", "--quiet", "--tag", IMAGE, "--label", "sidestep.machines=1", str(ROOT), timeout_s=BUILD_TIMEOUT_S
        )
        return done.strip().splitlines()[-1]

    @cached_property
    def address(self) -> str:
        """Where the nodes find the broker: this machine's end of their network, where it listens from now on."""
        self._network = f"sidestep-{self.token[:12]}"
        labels = (f"{LABEL}={self.token}", f"{LAB_LABEL}={self.lab}")
        self.run("network", "create", "--internal", *(p for one in labels for p in ("--label", one)), self._network)
        said = self.run("network", "inspect", "--format", "{{json .IPAM.Config}}", self._network)
        gateway = next((one["Gateway"] for one in json.loads(said) if one.get("Gateway")), None)
        if gateway is None:
            raise LabError(
                "the engine gave the simulated machines' network no address on this machine; is it rootless?"
            )
        self._bound = str(self._client.config_get("bind")["bind"])
        try:
            # Behind a random password, on a bridge inside this machine: others reach it only over a route made for it.
            self._client.config_set("bind", f"{self._bound} {gateway}")
        except redis.ResponseError as error:
            raise LabError(f"the broker cannot listen on {gateway} for the simulated machines: {error}") from None
        return str(gateway)

    @property
    def network(self) -> str:
        """Its name."""
        assert self.address  # noqa: S101  makes it
        return str(self._network)

    @property
    def url(self) -> str:
        """The broker as the nodes see it."""
        parts = urlsplit(self._broker.url)
        user, at, _ = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user}{at}{self.address}:{parts.port}"))

    @cached_property
    def lab(self) -> str:
        """Which process this is, on which machine, as a label."""
        return lab_label(psutil.Process())

    def python(self, *arguments: str) -> list[str]:
        """A command that runs the image's Python, without a quota and without a network."""
        return [
            *(DOCKER, "run", "--rm", "--init", "--network", "none", "--read-only", "--cap-drop", "ALL"),
            *("--label", f"{LABEL}={self.token}", "--label", f"{LAB_LABEL}={self.lab}"),
            *(self.image, "python", *arguments),
        ]

    def run(self, *arguments: str, timeout_s: float = ASK_TIMEOUT_S, env: Mapping[str, str] | None = None) -> str:
        """What `docker` says to these arguments. Raises LabError with its own last words."""
        try:
            done = subprocess.run(
                [DOCKER, *arguments],
                env={**os.environ, **(env or {})},
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
                start_new_session=True,  # the terminal's Ctrl-C reaches only the lab
            )
        except subprocess.TimeoutExpired:
            raise LabError(f"`docker {arguments[0]}` did not end within {timeout_s:.0f} s") from None
        if done.returncode:
            words = " | ".join((done.stderr or done.stdout).strip().splitlines()[-3:])
            raise LabError(f"`docker {arguments[0]}` failed: {words or 'it said nothing'}")
        return done.stdout

    def close(self) -> None:
        """Remove every container and the network."""
        sweep_containers(self.token)
        if self._bound:
            with contextlib.suppress(redis.RedisError):  # the broker may be why we are leaving
                self._client.config_set("bind", self._bound)


def lab_label(process: psutil.Process) -> str:
    """A process in words that no other ever has: a pid is given again, together with its start it is not."""
    return f"{socket.gethostname()}/{process.pid}/{round(process.create_time() * 100)}"


def remove_leftovers() -> None:
    """Remove containers and networks of labs of this machine that are gone, and whose guard was killed with them."""
    for kind in (("ps", "--all"), ("network", "ls")):
        command = [DOCKER, *kind, "--filter", f"label={LABEL}", "--format"]
        command.append(f'{{{{.Label "{LABEL}"}}}} {{{{.Label "{LAB_LABEL}"}}}}')
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=False)
            for token, _, lab in {tuple(line.partition(" ")) for line in done.stdout.splitlines()}:
                if token and _is_gone(lab):
                    sweep_containers(token)


def _is_gone(lab: str) -> bool:
    host, _, rest = lab.partition("/")
    pid = rest.partition("/")[0]
    if host != socket.gethostname() or not pid.isdigit():
        return False  # not ours to judge
    try:
        return lab_label(psutil.Process(int(pid))) != lab
    except psutil.Error:
        return True


class SimulatedMachines:
    """`nodes` containers of one setup, their workers ready when this returns. Raises LabError when one is not."""

    flower = None
    """What their events cost is measured on one machine."""

    def __init__(self, engine: Engine, setup: Setup, *, settings: Settings, directory: Path) -> None:
        self._engine, self._setup = engine, setup
        self._project = f"sidestep-{secrets.token_hex(6)}"
        self._directory = directory
        self._processes: list[psutil.Process] = []
        self._up = True
        begun = time.monotonic()
        self._env = self._prepare(settings)
        try:
            self._compose("up", "--detach", "--no-build", "--pull", "never", "--scale", f"node={setup.nodes}", "node")
            self.about = self._await_ready()
        except BaseException:
            self.close()
            raise
        self.boot_s = time.monotonic() - begun

    def _prepare(self, settings: Settings) -> dict[str, str]:
        """Write what the nodes read, and give them the folder to write to."""
        setup, engine = self._setup, self._engine
        tapes = Path(str(settings.tape_dir)) if settings.tape_dir else None
        broker = self._directory / "broker"
        broker.touch(mode=0o600)
        broker.write_text(engine.url + "\n", "utf-8")
        told = settings.to_env()
        del told["SIDESTEP_BROKER"]  # not in the container's description, which others may read
        told["SIDESTEP_BROKER_FILE"] = str(INSIDE / broker.name)
        told["SIDESTEP_READY_FD"] = "3"
        if tapes:
            told["SIDESTEP_TAPE_DIR"] = str(INSIDE / tapes.relative_to(self._directory))
        if CODECS[settings.codec].trusted:
            raise LabError(f"{setup.label}: simulated machines read no {settings.codec}")
        if setup.pool == "eventlet":
            told["PYTHONWARNINGS"] = EVENTLET_WARNING_FILTER
        (self._directory / "node.env").write_text("".join(f"{k}={v}\n" for k, v in told.items()), "utf-8")
        user = os.getuid() or USER
        if user != os.getuid():
            for path in (self._directory, broker, *([tapes] if tapes else [])):
                os.chown(path, user, user)
        return {
            "SIDESTEP_IMAGE": engine.image,
            "SIDESTEP_NODE_POOL": setup.pool,
            "SIDESTEP_NODE_SLOTS": str(setup.concurrency),
            "SIDESTEP_NODE_QUEUE": settings.queue,
            "SIDESTEP_NODE_USER": f"{user}:{user if user != os.getuid() else os.getgid()}",
            "SIDESTEP_NODE_FOLDER": str(self._directory),
            "SIDESTEP_NODE_SESSION": engine.token,
            "SIDESTEP_NODE_LAB": engine.lab,
            "SIDESTEP_NODE_CPUS": f"{setup.cpus or 1:g}",
            "SIDESTEP_NODE_NETWORK": engine.network,
        }

    def _compose(self, *arguments: str) -> str:
        command = ("compose", "--project-name", self._project, "--file", str(FILE), *arguments)
        return self._engine.run(*command, timeout_s=COMPOSE_TIMEOUT_S, env=self._env)

    def _await_ready(self) -> dict[str, Any]:
        """What the last node said when it was ready."""
        deadline, inspected_s = time.monotonic() + BOOT_TIMEOUT_S, time.monotonic()
        while True:
            lines = [path.read_text("utf-8") for path in self._directory.glob("*.ready")]
            ready = [line for line in lines if line.endswith("\n")]
            if len(ready) == self._setup.nodes:
                self._processes = self._inspect()
                about: dict[str, Any] = json.loads(ready[-1])
                return about
            if time.monotonic() - inspected_s > INSPECT_S:
                inspected_s = time.monotonic()
                if len(self._inspect()) < self._setup.nodes:
                    raise LabError(f"a simulated machine ended before it was ready: {self.last_words()}")
            if time.monotonic() > deadline:
                raise LabError(
                    f"{len(ready)} of {self._setup.nodes} simulated machines were ready within {BOOT_TIMEOUT_S:.0f} s: "
                    f"{self.last_words()}; does a firewall keep containers from {self._engine.address}?"
                )
            time.sleep(LOOK_S)

    def _inspect(self) -> list[psutil.Process]:
        """The first process of each container that runs, as this machine sees it."""
        ids = self._compose("ps", "--quiet", "node").split()
        if not ids:
            return []
        pids = self._engine.run("inspect", "--format", "{{.State.Pid}}", *ids).split()
        found = []
        for pid in pids:
            with contextlib.suppress(psutil.Error, ValueError):
                if int(pid):
                    found.append(psutil.Process(int(pid)))
        return found

    def processes(self) -> list[psutil.Process]:
        """Everything in the containers."""
        found: list[psutil.Process] = []
        for first in self._processes:
            with contextlib.suppress(psutil.Error):
                found += [first, *first.children(recursive=True)]
        return found

    def watchers(self) -> list[psutil.Process]:
        """Nothing watches them."""
        return []

    def alive(self) -> bool:
        """Whether every container still runs; by the kernel's word, for the engine takes long to ask."""
        return all(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in self._processes)

    def last_words(self) -> str:
        """The ends of the workers' logs, on one line."""
        return " | ".join(last_words(log) for log in sorted(self._directory.glob("*.log"))) or "they said nothing"

    def close(self) -> None:
        """End the containers at once: a drained worker holds nothing, and its marks are in mapped files."""
        if not self._up:
            return
        self._up = False
        with contextlib.suppress(LabError):  # what is left goes with the session
            self._compose("down", "--timeout", "0")
