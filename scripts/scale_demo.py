"""Drives the scale demo: a compose stack of its own, more load and more workers step by step, and what came of it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, NoReturn

import click
import psutil
from rich.console import Console
from rich.live import Live
from rich.table import Table

from lab.progress import spell
from lab.report.story import picture, sparkline
from lab.story import (
    Event,
    Look,
    Plan,
    Story,
    at_most,
    brought,
    burst,
    done_hz,
    look_in,
    offered_hz,
    seconds,
    since,
    told,
)
from tasks.metrics import BUCKETS_S

ROOT = Path(__file__).resolve().parent.parent
FILES = ("-f", "compose.yaml", "-f", "deploy/scale/compose.yaml")
PROJECT = "sidestep-scale"
QUEUE, POOL = "cpu", "worker-prefork"
COMPOSE = (2, 24, 4)
"""Its first version that knows `!override`."""
DONE, NOT_DRAINED, COULD_NOT, INTERRUPTED = 0, 1, 2, 130
BUILD_S, UP_S, COMMAND_S = 900.0, 180.0, 90.0
"""What takes longer is stuck."""
ALIVE_S, PILOT_S, DRAIN_S = 90.0, 90.0, 90.0
PILOT_WORK_S = 10.0
SILENT_S = 20.0
"""After so long without a look nobody knows what happens."""
PLAIN_S = 2.0
"""Between two lines in a pipe."""
IN_STACK = re.compile(r"[a-z0-9][a-z0-9_-]*")


class CouldNot(Exception):  # noqa: N818  it says what could not be done
    """The demo cannot go on; the message says why and what to do."""


# --- the stack -------------------------------------------------------------------------------------------------------


@dataclass
class Stack:
    """A compose project of its own, beside whatever else runs here."""

    project: str
    port: int
    cpus: float

    def command(self, *args: str) -> list[str]:
        """The compose command with this project's files."""
        return [_docker(), "compose", "-p", self.project, *FILES, *args]

    @property
    def environment(self) -> dict[str, str]:
        """What the files want to know; a user's own choice of files and profiles is for another project."""
        own = {name: value for name, value in os.environ.items() if name not in {"COMPOSE_FILE", "COMPOSE_PROFILES"}}
        return {**own, "FLOWER_PORT": str(self.port), "SCALE_CPUS": f"{self.cpus:g}"}

    def start(self, *args: str, stdout: Any = subprocess.DEVNULL) -> subprocess.Popen[str]:
        """Run it beside us. In a session of its own: Ctrl-C is for us, who then end it."""
        return subprocess.Popen(
            self.command(*args), cwd=ROOT, env=self.environment, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, what: str, *args: str, timeout_s: float = COMMAND_S) -> str:
        """What it prints. Raises CouldNot, saying `what` could not be done."""
        process = self.start(*args, stdout=subprocess.PIPE)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            raise CouldNot(f"{what} took longer than {spell(timeout_s)}") from None
        finally:
            _end(process)
        if process.returncode:
            raise CouldNot(f"{what} failed: {_last_line(err or out)}")
        return out.replace("\x1b[2K", "")  # some versions of Compose clear the line before each of a log

    def left(self) -> list[str]:
        """What there is of the project: containers, volumes and networks."""
        mine = ["--filter", f"label=com.docker.compose.project={self.project}", "-q"]
        kinds = {"container": ["ps", "-a"], "volume": ["volume", "ls"], "network": ["network", "ls"]}
        return [f"{kind} {name}" for kind, args in kinds.items() for name in _ask(*args, *mine).split()]

    def remove(self) -> list[str]:
        """Remove all of it; what is still there afterwards is returned."""
        for _ in range(3):  # what the engine was still making when we were stopped appears a moment later
            with contextlib.suppress(CouldNot):
                self.run("removing the stack", "--profile", "*", "down", "-v", "--remove-orphans", "--timeout", "3")
            for kind, _, name in (row.partition(" ") for row in self.left()):
                _ask(kind, "rm", "-f" if kind != "network" else "--force", name)
            if not (left := self.left()):
                return []
        return left


def _docker() -> str:
    if not (found := shutil.which("docker")):
        raise CouldNot("Docker with Compose v2 is needed; https://docs.docker.com/engine/install says how to get it")
    return found


def _ask(*args: str) -> str:
    """What a plain docker command prints; nothing where it fails."""
    try:
        done = subprocess.run(
            [_docker(), *args], capture_output=True, text=True, timeout=COMMAND_S, check=False, start_new_session=True
        )
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def engine_cores() -> int:
    """How many cores the engine has. Raises CouldNot where there is none that answers, or no Compose that can do it."""
    if not (version := _ask("compose", "version", "--short")):
        raise CouldNot("Docker Compose v2 is needed; https://docs.docker.com/compose/install says how to get it")
    if tuple(map(int, re.findall(r"\d+", version)[:3])) < COMPOSE:
        raise CouldNot(
            f"this is Docker Compose {version}, and {'.'.join(map(str, COMPOSE))} is needed; "
            "https://docs.docker.com/compose/install says how to get it"
        )
    if not (cores := _ask("info", "--format", "{{.NCPU}}")).isdecimal() or cores == "0":
        raise CouldNot("the Docker engine does not answer; is it running, and may you use it?")
    return int(cores)


def _end(process: subprocess.Popen[str]) -> None:
    """Ask it to end, then end it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for stream in (process.stdout, process.stderr):
        if stream:
            stream.close()


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- what is seen ----------------------------------------------------------------------------------------------------


class Watch:
    """The looks that a container of the stack takes, as they come."""

    def __init__(self, stack: Stack) -> None:
        self._process = stack.start("run", "--rm", "-T", "--no-deps", "watch", stdout=subprocess.PIPE)
        self._rows: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.looks: list[Look] = []
        stdout = self._process.stdout
        assert stdout is not None  # noqa: S101  asked for above
        threading.Thread(target=self._read, args=(stdout,), daemon=True).start()

    def _read(self, stdout: IO[str]) -> None:
        with contextlib.suppress(ValueError, OSError):  # closed under our hands at the end
            for row in stdout:
                self._rows.put(row)
        self._rows.put(None)

    def next(self) -> Look:
        """The next look. Raises CouldNot when none comes."""
        try:
            row = self._rows.get(timeout=SILENT_S)
        except queue.Empty:
            raise CouldNot(f"nothing was heard from the broker for {SILENT_S:g} s") from None
        if row is None:
            self._process.wait()
            err = self._process.stderr.read() if self._process.stderr else ""
            raise CouldNot(f"the container that looks at the broker has ended: {_last_line(err)}")
        try:
            self.looks.append(look_in(json.loads(row)))
        except (ValueError, KeyError, TypeError):
            raise CouldNot(f"what was heard from the broker cannot be read: {row.strip()[:200]}") from None
        return self.looks[-1]

    def close(self) -> None:
        """End it."""
        _end(self._process)


class Screen:
    """What is shown meanwhile: a table on a terminal, plain lines in a pipe."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._plain_s = -PLAIN_S
        self.flower = ""
        self.title = ""

    def say(self, text: str) -> None:
        """A line that stays."""
        (self._live.console if self._live else self._console).print(text, highlight=False, markup=False, soft_wrap=True)

    def __enter__(self) -> Screen:
        if self._console.is_terminal:
            # Nothing is drawn from a thread of its own.
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
            self._live = None

    def show(self, looks: Sequence[Look], asked: int) -> None:
        """What there is to see now; `asked` is how many workers were asked for."""
        now, before = looks[-1], since(looks)
        if before is None or before is now:
            return
        rates = f"{offered_hz(before, now):.1f}", f"{done_hz(before, now):.1f}"
        wait = seconds(at_most(before.waits, now.waits, 0.99, BUCKETS_S), BUCKETS_S)
        if self._live:
            self._live.update(self._table(looks, rates, wait, asked), refresh=True)
        elif now.at_s - self._plain_s >= PLAIN_S:
            self._plain_s = now.at_s
            self.say(
                f"{now.at_s - looks[0].at_s:5.0f} s  offered {rates[0]}/s  done {rates[1]}/s  waiting {now.depth}  "
                f"p99 in queue {wait}  workers {now.workers} of {asked}"
            )

    def _table(self, looks: Sequence[Look], rates: tuple[str, str], wait: str, asked: int) -> Table:
        pairs = [(since(looks[: at + 1]), look) for at, look in enumerate(looks)][-40:]
        table = Table(title=self.title, caption=self.flower, title_justify="left", caption_justify="left", box=None)
        table.add_column("")
        table.add_column("now", justify="right", min_width=14)
        table.add_column("the last 40 looks", min_width=40)
        rows: list[tuple[str, str, Sequence[float]]] = [
            ("offered", f"{rates[0]} jobs/s", [offered_hz(then, now) for then, now in pairs if then]),
            ("done", f"{rates[1]} jobs/s", [done_hz(then, now) for then, now in pairs if then]),
            ("waiting", f"{looks[-1].depth} jobs", [now.depth for _, now in pairs]),
            ("time in queue, p99", wait, []),
            ("workers", f"{looks[-1].workers} of {asked}", [now.workers for _, now in pairs]),
        ]
        for name, text, values in rows:
            table.add_row(name, text, sparkline(values))
        return table


# --- the story -------------------------------------------------------------------------------------------------------


@dataclass
class Teller:
    """Tells the story on a stack that is up."""

    stack: Stack
    watch: Watch
    screen: Screen
    loops: int
    workers: int = 1
    events: list[Event] = field(default_factory=list)
    _under_way: list[tuple[str, subprocess.Popen[str]]] = field(default_factory=list)

    def until(self, what: str, found: Callable[[Look], bool], timeout_s: float) -> Look | None:
        """The first look of which it is true; None where it does not come in time."""
        self.screen.title = what
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            look = self._look()
            if found(look):
                return look
        return None

    def _look(self) -> Look:
        look = self.watch.next()
        self.screen.show(self.watch.looks, self.workers)
        for what, process in list(self._under_way):
            if process.poll() is not None:
                self._under_way.remove((what, process))
                err = process.stderr.read() if process.stderr else ""
                code = process.returncode
                _end(process)
                if code:
                    raise CouldNot(f"{what} failed: {_last_line(err)}")
        return look

    def _begin(self, what: str, *args: str) -> None:
        self._under_way.append((what, self.stack.start(*args)))

    def close(self) -> None:
        """End what is under way."""
        for _, process in self._under_way:
            _end(process)

    def send(self, what: str, *args: str) -> None:
        """Start a producer, which ends by itself."""
        producer = ("python", "-m", "producer.cli", "--job", "spin", "--arg", f"loops={self.loops}", "--queue", QUEUE)
        self._begin(what, "run", "-d", "--rm", "-T", "--no-deps", "load", *producer, *args)

    def pilot(self, jobs: int) -> float:
        """What one worker does alone, in jobs a second. Raises CouldNot where it cannot be told."""
        self.send("sending the first jobs", "--shape", "burst", "--rate", str(jobs), "--for", "1s")
        drained = self.until(
            f"What does one worker do? {jobs} jobs", lambda look: look.is_drained and look.ended >= jobs, PILOT_S
        )
        (one,) = brought(self.watch.looks, 1)
        if drained is None or not one.rate_hz:
            ended = self.watch.looks[-1].ended if self.watch.looks else 0
            raise CouldNot(f"one worker ended {ended} of {jobs} jobs within {spell(PILOT_S)}; try a shorter --ms")
        return one.rate_hz

    def tell(self, plan: Plan) -> list[Look]:
        """All steps, and then until the queue is drained. Returns the looks from its begin."""
        first = len(self.watch.looks) - 1
        begun_s = time.monotonic()
        todo: list[tuple[float, Callable[[], None]]] = [
            (at_s, self._raise_to(plan, step, rate_hz, for_s))
            for step, (at_s, rate_hz, for_s) in enumerate(plan.producers)
        ]
        todo += [(at_s, self._add(plan, number)) for number, at_s in enumerate(plan.additions_s, 2)]
        todo.sort(key=lambda row: row[0])
        while (now_s := time.monotonic() - begun_s) < plan.duration_s:
            while todo and todo[0][0] <= now_s:
                todo.pop(0)[1]()
            self._look()
        self._event("the last step ends")
        self.until("Draining", lambda look: look.is_drained, DRAIN_S)
        return self.watch.looks[first:]

    def _event(self, text: str, *, is_worker: bool = False) -> None:
        self.events.append(Event(self.watch.looks[-1].at_s, text, is_worker=is_worker))
        self.screen.say(f"      {text}")

    def _raise_to(self, plan: Plan, step: int, rate_hz: float, for_s: float) -> Callable[[], None]:
        def act() -> None:
            total = plan.rates_hz[step]
            self.screen.title = f"Step {step + 1} of {plan.steps}: {total:.1f} jobs/s"
            self._event(f"load {total:.1f} jobs/s")
            self.send("raising the load", "--rate", f"{rate_hz:.4f}", "--for", f"{for_s:.1f}s")

        return act

    def _add(self, plan: Plan, number: int) -> Callable[[], None]:
        def act() -> None:
            self.workers = number
            self._event(f"+ worker {number}", is_worker=True)
            scale = ("--scale", f"{POOL}={number}", "--no-recreate", "--no-deps")
            self._begin(f"adding worker {number} of {plan.steps}", "up", "-d", *scale, POOL)

        return act


def demonstrate(stack: Stack, screen: Screen, *, steps: int, step_s: float, ms: float, cores: int) -> Story:
    """Bring the stack up, tell the story, and return what was seen. Raises CouldNot."""
    screen.say(f"building the image and starting Redis, Flower and one worker as project {stack.project}")
    stack.run("building the image", "build", "--quiet", "init", timeout_s=BUILD_S)
    stack.run("starting Redis and Flower", "up", "-d", "--wait", "redis", "flower", timeout_s=UP_S)
    stack.run("starting a worker", "up", "-d", "--no-deps", POOL)
    screen.flower = stack.run("reading Flower's login", "run", "--rm", "-T", "--no-deps", "hello").strip()
    screen.say(screen.flower)
    per_ms = stack.run(
        "finding out how much a millisecond is",
        *("run", "--rm", "-T", "--no-deps", "load", "python", "-m", "tasks.calibrate", "spin"),
    )
    try:
        loops = max(1, round(ms * float(per_ms.split()[-1])))
    except (ValueError, IndexError):
        raise CouldNot(f"how much a millisecond is cannot be read: {per_ms.strip()[:200]!r}") from None
    with contextlib.ExitStack() as open_:
        watch = Watch(stack)
        open_.callback(watch.close)
        teller = Teller(stack, watch, screen, loops)
        open_.callback(teller.close)
        open_.enter_context(screen)
        if teller.until("Waiting for the first worker", lambda look: look.workers > 0, ALIVE_S) is None:
            raise CouldNot(f"no worker gave a sign of life within {spell(ALIVE_S)}")
        jobs = burst(cpus=stack.cpus, work_ms=ms, seconds=PILOT_WORK_S)
        screen.say(f"what does one worker do with {jobs} jobs of {ms:g} ms CPU, with {stack.cpus:g} of a core?")
        one_hz = teller.pilot(jobs)
        screen.say(f"about {one_hz:.1f} jobs/s: the steps follow from that")
        psutil.cpu_percent()  # from here on
        looks = teller.tell(Plan(steps, step_s, one_hz))
        busy = psutil.cpu_percent() / 100
    return Story(tuple(looks), tuple(teller.events), steps, ms, stack.cpus, cores, BUCKETS_S, one_hz, busy)


# --- the command -----------------------------------------------------------------------------------------------------


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option(
    "--steps", type=click.IntRange(1, 8), default=4, help="How often the load rises; as many workers at the end."
)
@click.option("--seconds", "step_s", type=click.FloatRange(10, 120), default=25.0, help="How long a step lasts.")
@click.option("--ms", type=click.FloatRange(1, 1000), default=25.0, help="CPU time of a job.")
@click.option("--cpus", type=click.FloatRange(0.05, 4), default=0.3, help="How much of a core each worker may use.")
@click.option("--project", default=PROJECT, help="Name of the compose project that is made, and removed at the end.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Where Flower is published on 127.0.0.1; 0: a free one."
)
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The picture's file  [default: runs/scale-demo-TIME.svg]",
)
@click.option("--keep", is_flag=True, help="Leave the stack up at the end, to look at it in Flower.")
@click.option("--json", "want_json", is_flag=True, help="One JSON object on stdout, the rest on stderr.")
@click.option("--from", "here", hidden=True, type=click.Path(path_type=Path), default=None)
def cli(
    steps: int,
    step_s: float,
    ms: float,
    cpus: float,
    project: str,
    port: int,
    out: Path | None,
    keep: bool,
    want_json: bool,
    here: Path | None,
) -> int:
    """Load rises in steps, workers are added, the queue drains: live, in Flower too, with a summary and a picture.

    Runs on a compose stack of its own, about 2 to 3 minutes, and removes it. Each option has an environment variable,
    such as SIDESTEP_SCALE_DEMO_STEPS.
    """
    if not IN_STACK.fullmatch(project):
        raise click.UsageError(f"--project {project!r} is no name for a compose project; use a-z, 0-9, - and _")
    cores = engine_cores()
    if cpus > cores:
        raise click.UsageError(f"--cpus {cpus:g} is more than the engine's {cores} cores")
    picture_file = _picture_file(out, here)
    stack = Stack(project, port or free_port(), cpus)
    if left := stack.left():
        raise CouldNot(
            f"there is a compose project {project} already ({len(left)} parts); is a demo running? Choose another with "
            f"--project, or remove it: docker compose -p {project} --profile '*' down -v --remove-orphans"
        )
    console = Console(stderr=want_json)
    begun_s, removed, story = time.monotonic(), True, None
    try:
        story = demonstrate(stack, Screen(console), steps=steps, step_s=step_s, ms=ms, cores=cores)
        picture_file.write_text(picture(story), "utf-8")
    finally:
        if not keep or story is None:
            removed = _remove(stack)
    for row in told(story):
        console.print(row, highlight=False, markup=False, soft_wrap=True)
    console.print(f"picture: {picture_file}", highlight=False, markup=False, soft_wrap=True)
    if keep:
        down = f"docker compose -p {project} --profile '*' down -v --remove-orphans"
        console.print(f"the stack is still up; remove it with: {down}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"took {spell(time.monotonic() - begun_s)}", highlight=False)
    good = story.is_drained and story.most_live >= steps
    if want_json:
        print(json.dumps(_object(story, picture_file)))
    if not removed:
        return COULD_NOT
    return DONE if good else NOT_DRAINED


def _picture_file(out: Path | None, here: Path | None) -> Path:
    """Where the picture goes; that it can be written is found out before minutes are spent."""
    named = out or ROOT / "runs" / f"scale-demo-{time.strftime('%Y%m%d-%H%M%S')}.svg"
    path = (here or Path.cwd()) / named
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        path.unlink()
    except OSError as error:
        raise click.UsageError(f"--out {named} cannot be written ({error.strerror})") from None
    return path


def _remove(stack: Stack) -> bool:
    """Remove the stack whatever is pressed meanwhile, and say what could not be."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        left = stack.remove()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if left:
        _complain(f"could not be removed: {', '.join(left)}")
    return not left


def _object(story: Story, picture_file: Path) -> dict[str, Any]:
    return {
        "schema": 1,
        "drained": story.is_drained,
        "ledger": {"issued": story.issued, "done": story.ended - story.failed, "failed": story.failed},
        "deepest": story.deepest,
        "one_hz": story.one_hz,
        "workers": [{"workers": row.workers, "rate_hz": row.rate_hz, "seen_s": row.seen_s} for row in story.brought],
        "most_live": story.most_live,
        "work_ms": story.work_ms,
        "cpus_per_worker": story.cpus,
        "cores": story.cores,
        "busy": story.busy,
        "picture": str(picture_file),
    }


def _complain(text: str) -> None:
    print(f"scale-demo: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM and SIGHUP are Ctrl-C."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    yield


def main() -> NoReturn:
    """Run the command and exit; no traceback leaves it."""
    code = COULD_NOT
    try:
        with _stoppable():
            code = cli.main(standalone_mode=False, prog_name="scale-demo", auto_envvar_prefix="SIDESTEP_SCALE_DEMO")
    except (click.exceptions.Abort, KeyboardInterrupt):
        _complain("stopped")
        code = INTERRUPTED
    except click.ClickException as error:
        _complain(" ".join(error.format_message().split()))
    except CouldNot as error:
        _complain(" ".join(str(error).split()))
    except Exception as error:
        if os.environ.get("SIDESTEP_DEBUG"):
            raise
        _complain(f"a fault in itself ({type(error).__name__}: {error}); SIDESTEP_DEBUG=1 shows where")
    sys.exit(code)


if __name__ == "__main__":
    main()
