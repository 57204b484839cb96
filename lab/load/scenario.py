"""Scenario files: TOML in, a checked `Scenario` out. Whatever is wrong is one line that names the file and the line."""

from __future__ import annotations

import inspect
import math
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

from lab.load import limit, lines
from lab.load.checked import MEASURE, File, Table, nearest, shown
from lab.load.idents import LONGEST_S, MOST_JOBS, MOST_KINDS
from lab.load.model import (
    Arrivals,
    Attached,
    Crew,
    Drawn,
    Kind,
    Made,
    Numbered,
    Scenario,
    Search,
    Threshold,
    Value,
    Watch,
)
from lab.load.shapes import stage_in
from lab.load.thresholds import ThresholdError, parse
from lab.model import BadInput
from tasks.jobs import JOBS
from tasks.pools import POOLS
from tasks.settings import PRESETS
from tasks.shapes import SHAPES

MOST_SLOTS = 4096
MOST_BYTES = 100_000_000
"""Of an argument."""
MOST_SCENARIO_BYTES = 1 << 20
_UNITS_BYTES = {"": 1, "B": 1, "kB": 1000, "MB": 1_000_000}
_SECRET = re.compile(r"(\w+://)[^@/\s\"']*@")
"""User and password in a URL that somebody wrote down: the text goes to everybody who sees the result."""

TOP = ("name", "about", "seed", "count", "warmup", "drain", "producers", "max_lag", "thresholds")
TABLES = ("broker", "job", "stage", "workers", "search")


def read(path: Path, *, environ: Mapping[str, str] | None = None) -> Scenario:
    """The scenario in this file. Raises BadInput with the file and the line of whatever is wrong."""
    try:
        if path.stat().st_size > MOST_SCENARIO_BYTES:
            raise BadInput(f"{path}: a scenario of more than {MOST_SCENARIO_BYTES >> 20} MB cannot be meant")
        text = path.read_text("utf-8")
    except UnicodeDecodeError:
        raise BadInput(f"{path}:1: this is no text in UTF-8") from None
    except OSError as error:
        raise BadInput(f"{path}: it cannot be read ({error.strerror})") from None
    return parsed(text, path, environ=os.environ if environ is None else environ)


def parsed(text: str, path: Path, *, environ: Mapping[str, str]) -> Scenario:
    """The scenario in this text. Raises BadInput, see `read`."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        where = re.search(r"at line (\d+)", str(error))
        line = int(where[1]) if where else text.count("\n") + 1
        raise BadInput(f"{path}:{line}: this is no TOML ({error})") from None
    except RecursionError:
        raise BadInput(f"{path}:1: this is nested too deep") from None
    file = File(path, lines.lines(text), environ)
    return _scenario(Table(file, (), table), text)


def _scenario(top: Table, text: str) -> Scenario:
    name = top.text("name") or top.file.path.stem
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,79}", name):
        top.fail("name must be up to 80 letters, digits, dots, dashes and spaces", "name")
    seed = top.whole("seed", 0, least=0, most=2**32 - 1)
    count = top.whole("count", None, least=1, most=MOST_JOBS - 1)
    about, warmup_s = top.text("about"), top.duration_s("warmup", 0.0, zero=True)
    drain_s, max_lag_s = top.duration_s("drain", 30.0), top.duration_s("max_lag", 0.005)
    producers = top.whole("producers", None, least=1, most=64)
    broker, key_prefix = _broker(top)
    crews, attached = _workers(top)
    kinds = _kinds(top, attached)
    planned = tuple(stage_in(table) for table in top.tables("stage"))
    if not planned:
        top.fail("a scenario needs at least one [[stage]]")
    search = _search(top.table("search"))
    thresholds = _thresholds(top, [kind.name for kind in kinds], attached.watch if attached else Watch.MARKS)
    top.done("a scenario", (*TOP, *TABLES))
    if attached and not broker:
        top.fail('to attach to running workers, name their broker: [broker] url = "${BROKER_URL}"', "workers")
    scenario = Scenario(
        name=name,
        kinds=kinds,
        stages=planned,
        about=about,
        seed=seed or 0,
        count=count,
        warmup_s=warmup_s,
        drain_s=drain_s,
        crews=_served(top, crews, kinds),
        attached=attached,
        broker=broker,
        key_prefix=key_prefix,
        thresholds=thresholds,
        search=search,
        producers=producers,
        max_lag_s=max_lag_s,
        path=str(top.file.path),
        text=_SECRET.sub(r"\1***@", text),
        lines={
            name: top.file.line(key)
            for name, key, is_there in (("count", ("count",), count), ("broker", ("broker", "url"), broker))
            if is_there
        },
    )
    _refuse_impossible(top, scenario)
    return scenario


def _refuse_impossible(top: Table, scenario: Scenario) -> None:
    if scenario.planned_s > LONGEST_S:
        top.fail(f"{scenario.planned_s / 3600:.0f} h is too long: at most {LONGEST_S / 3600:.0f} h in all", "stage")
    if scenario.warmup_s >= scenario.planned_s:
        top.fail(
            f"the warm-up of {scenario.warmup_s:g} s leaves nothing of the {scenario.planned_s:g} s to measure",
            "warmup",
        )
    if scenario.expected_jobs >= MOST_JOBS:
        top.fail(f"{scenario.expected_jobs:g} jobs are too many: below {MOST_JOBS:.2g} in all", "stage")
    if scenario.is_closed and (scenario.producers or 1) > 1:
        top.fail("a closed stage takes one producer: its users wait for each other's ends", "producers")


def _broker(top: Table) -> tuple[str, str]:
    table = top.table("broker")
    if table is None:
        return "", ""
    url, key_prefix = table.text("url"), table.text("key_prefix")
    table.done("[broker]", ("url", "key_prefix"))
    if url and not is_redis(url):
        # The URL itself stays out of the message: it may hold a password.
        table.fail("url must look like redis://[:password@]host:port/db (or rediss://)", "url")
    return url, key_prefix


def is_redis(url: str) -> bool:
    """Whether this is the URL of a Redis or Valkey."""
    try:
        _ = urlsplit(url).port
        return urlsplit(url).scheme in {"redis", "rediss"} and bool(urlsplit(url).netloc)
    except ValueError:
        return False


def _workers(top: Table) -> tuple[tuple[Crew, ...], Attached | None]:
    tables = top.tables("workers")
    if not tables:
        return (Crew(),), None
    crews: list[Crew] = []
    for table in tables:
        if table.truth("attach", False):
            if len(tables) > 1:
                table.fail("workers that run already stand alone: either attach, or start some", "attach")
            return (), _attached(table)
        crews.append(_crew(table))
    return tuple(crews), None


def _attached(table: Table) -> Attached:
    watch = Watch(table.one_of("observe", (Watch.EVENTS, Watch.RESULTS), Watch.EVENTS))
    url = table.text("results")
    if url and watch is not Watch.RESULTS:
        table.fail('results names the result backend for observe = "results"; it is of no use with events', "results")
    if url and not is_redis(url):
        table.fail("results must be a Redis result backend: redis://[:password@]host:port/db", "results")
    table.done("[workers] with attach", ("attach", "observe", "results"))
    return Attached(watch, url, table.line)


def _crew(table: Table) -> Crew:
    pool = table.one_of("pool", POOLS, "prefork")
    if why := POOLS[pool].missing:
        table.fail(why, "pool")
    queues = table.raw("queues", [])
    if not isinstance(queues, list) or not all(isinstance(one, str) and one for one in queues):
        table.fail(f"queues must be a list of names, not {shown(queues)}", "queues")
    acks_late = table.truth("acks_late", False) if table.has("acks_late") else None
    crew = Crew(
        pool=pool,
        concurrency=table.whole("concurrency", 1, least=1, most=MOST_SLOTS) or 1,
        nodes=table.whole("nodes", 1, least=1, most=64) or 1,
        queues=tuple(queues),
        preset=table.one_of("preset", PRESETS, "default"),
        prefetch=table.whole("prefetch", None, least=0, most=1_000_000),
        acks_late=acks_late,
        line=table.line,
    )
    if POOLS[pool].single_slot and crew.concurrency > 1:
        table.fail(f"the pool {pool!r} has one slot; ask for more nodes instead", "concurrency")
    table.done("[workers]", ("pool", "concurrency", "nodes", "queues", "preset", "prefetch", "acks_late", "attach"))
    return crew


def _served(top: Table, crews: Sequence[Crew], kinds: Sequence[Kind]) -> tuple[Crew, ...]:
    """The crews; raises BadInput for a queue that none of them serves."""
    if crews and all(crew.queues for crew in crews):
        served = {queue for crew in crews for queue in crew.queues}
        for place, kind in enumerate(kinds):
            if kind.queue not in served:
                top.file.fail(
                    ("job", place, "queue"),
                    f"no worker listens on the queue {kind.queue!r}; the workers serve: {', '.join(sorted(served))}",
                )
    return tuple(crews)


def _kinds(top: Table, attached: Attached | None) -> tuple[Kind, ...]:
    tables = top.tables("job")
    if not tables:
        top.fail("a scenario needs at least one [[job]]")
    if len(tables) > MOST_KINDS:
        tables[MOST_KINDS].fail(f"at most {MOST_KINDS} kinds of job can be told apart")
    kinds: list[Kind] = []
    for table in tables:
        kind = _kind(table, attached)
        if kind.name in {known.name for known in kinds}:
            table.fail(f"there are two jobs {kind.name!r}; give one of them a name of its own", "name")
        kinds.append(kind)
    return tuple(kinds)


KIND_KEYS = ("task", "name", "weight", "args", "ms", "queue", "priority", "countdown", "eta", "expires")


def _kind(table: Table, attached: Attached | None) -> Kind:
    task = table.need("task", "a [[job]]")
    if not isinstance(task, str) or not re.fullmatch(r"[A-Za-z0-9_.:-]{1,200}", task):
        table.fail(f"task must be the name of a task, not {shown(task)}", "task")
    short = task.removeprefix("sidestep.")
    job = JOBS.get(short)
    if job is None and not attached:
        table.fail(
            f"there is no job {task!r}{nearest(short, list(JOBS))}; there are: {', '.join(JOBS)}. "
            "For a task of your own, attach to the workers that know it: [workers] attach = true",
            "task",
        )
    name = table.text("name") or task.rpartition(".")[2]
    if not re.fullmatch(r"[^:<>=!\s][^:<>=!]{0,79}", name):
        table.fail(f"name cannot be {shown(name)}: thresholds need it without : < > = !", "name")
    args = table.raw("args", {})
    if not isinstance(args, dict):
        table.fail(f"args must be a table of keyword arguments, not {shown(args)}", "args")
    values = {key: _value(table, key, value) for key, value in args.items()}
    work_ms = _work(table, job is not None and job.scales_with is not None)
    if table.has("eta") and table.has("countdown"):
        table.fail("a job has an eta or a countdown, not both", "eta")
    kind = Kind(
        name=name,
        task=job.task_name if job else task,
        job=job.name if job else None,
        weight=table.number("weight", 1.0),
        args=values,
        work_ms=work_ms,
        queue=table.text("queue", "celery" if attached else "jobs"),
        priority=table.whole("priority", 0, least=0, most=9) or 0,
        countdown_s=table.maybe_s("countdown"),
        eta=_eta(table),
        expires_s=table.maybe_s("expires"),
        line=table.line,
    )
    if not re.fullmatch(r"[A-Za-z0-9_.:{}-]{1,200}", kind.queue):
        table.fail(f"queue cannot be {shown(kind.queue)}", "queue")
    table.done("a [[job]]", KIND_KEYS)
    if job:
        _refuse_wrong(table, kind)
    return kind


def _eta(table: Table) -> str | None:
    value = table.raw("eta")
    if value is None:
        return None
    try:
        moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    except ValueError:
        table.fail(f"eta must be a time of day such as 2030-01-01T12:00:00+00:00, not {shown(value)}", "eta")
    if moment.tzinfo is None:
        table.fail("eta needs a zone, such as +00:00", "eta")
    return moment.isoformat()


def _work(table: Table, scales: bool) -> float | Drawn | None:
    if not table.has("ms"):
        return None
    if not scales:
        table.fail("ms is the CPU time of a job that scales; give this one its arguments in args", "ms")
    value = _value(table, "ms", table.raw("ms"), where=())
    if isinstance(value, Drawn):
        return value
    return table.number("ms")


def _value(table: Table, key: str, value: Any, where: tuple[str, ...] = ("args",)) -> Value:
    """An argument: plain JSON, or a table with one of the words of a generator."""

    def fail(words: str) -> NoReturn:
        table.file.fail((*table.path, *where, key), words)

    if value == "{seq}":
        return Numbered()
    if isinstance(value, dict) and len(value) == 1:
        how, of = next(iter(value.items()))
        if how in {"exponential", "uniform", "choice", "payload", "text"}:
            return _generated(how, of, key, fail)
    if isinstance(value, dict):
        return {name: _plain(one, fail) for name, one in value.items()}
    plain: Value = _plain(value, fail)
    return plain


def _plain(value: Any, fail: Callable[[str], NoReturn]) -> Any:
    if isinstance(value, list):
        return tuple(_plain(one, fail) for one in value)
    if isinstance(value, dict):
        return {name: _plain(one, fail) for name, one in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        fail(f"{value} is no number that a message can carry")
    if not isinstance(value, str | int | float | bool):
        fail(f"{shown(value)} is nothing that a message can carry; write it as text")
    return value


def _generated(how: str, of: Any, key: str, fail: Callable[[str], NoReturn]) -> Value:
    def number(one: Any) -> float:
        if not isinstance(one, int | float) or isinstance(one, bool) or not math.isfinite(one):
            fail(f"{key}: {how} needs numbers, not {shown(one)}")
        return float(one)

    if how == "exponential":
        if number(of) <= 0:
            fail(f"{key}: the mean of an exponential must be above 0")
        return Drawn(how, (number(of),))
    if how == "uniform":
        if not isinstance(of, list) or len(of) != 2 or number(of[0]) > number(of[1]):
            fail(f"{key}: uniform needs two numbers, the lower one first")
        return Drawn(how, (number(of[0]), number(of[1])))
    if how == "choice":
        if not isinstance(of, list) or not of:
            fail(f"{key}: choice needs a list of values")
        return Drawn(how, tuple(_plain(one, fail) for one in of))
    shape, _, size = str(of).rpartition(":") if how == "payload" else ("text", "", str(of))
    match = MEASURE.fullmatch(size.strip())
    bytes_ = float(match[1]) * _UNITS_BYTES.get(match[2], 0) if match else 0
    if how == "payload" and shape not in SHAPES:
        fail(f"{key}: there is no shape {shape!r}{nearest(shape, list(SHAPES))}; write such as records:10kB")
    if not 1 <= bytes_ <= MOST_BYTES:
        fail(f"{key}: {size!r} is no size from 1 B to {MOST_BYTES // 10**6} MB; write such as 10kB")
    return Made(shape, round(bytes_))


def _refuse_wrong(table: Table, kind: Kind) -> None:
    """Raise BadInput for arguments that a job of ours does not take."""
    job = JOBS[str(kind.job)]
    given = dict.fromkeys(kind.args)
    if job.scales_with and kind.work_ms is not None:
        if job.scales_with in given:
            table.fail(f"ms sets {job.scales_with!r}, which args sets too", "ms")
        given[job.scales_with] = None
    try:
        inspect.signature(job.run).bind(**given)
    except TypeError as error:
        ms = " (ms sets how long it computes)" if job.scales_with and kind.work_ms is None else ""
        table.fail(f"the job {job.name!r} does not take these arguments: {error}{ms}", "args" if kind.args else None)


def _search(table: Table | None) -> Search | None:
    if table is None:
        return None
    low_hz, high_hz = table.rate_hz("from", what="a [search]"), table.rate_hz("to", what="a [search]")
    if low_hz >= high_hz:
        table.fail(f"the search must go from a lower rate to a higher one, not from {low_hz:g} to {high_hz:g}")
    search = Search(
        low_hz=low_hz,
        high_hz=high_hz,
        for_s=table.duration_s("for", 10.0),
        arrivals=Arrivals(table.one_of("arrivals", Arrivals, Arrivals.RANDOM)),
        repeats=table.whole("repeats", 3, least=1, most=100) or 3,
        precision=_below_one(table, "precision", 0.05),
        slack=_below_one(table, "slack", 0.02),
        most=table.whole("most", 30, least=2, most=1000) or 30,
        line=table.line,
    )
    table.done("[search]", ("from", "to", "for", "arrivals", "repeats", "precision", "slack", "most"))
    return limit.check(search, f"{table.file.path}:{table.line}: ")


def _below_one(table: Table, key: str, default: float) -> float:
    value = table.number(key, default)
    if value >= 1:
        table.fail(f"{key} must be a share below 1, not {value:g}", key)
    return value


def _thresholds(top: Table, kinds: Sequence[str], watch: Watch) -> tuple[Threshold, ...]:
    values = top.raw("thresholds", [])
    if not isinstance(values, list):
        top.fail(f"thresholds must be a list of texts, not {shown(values)}", "thresholds")
    found: list[Threshold] = []
    for place, says in enumerate(values):
        path = ("thresholds", place)
        if not isinstance(says, str):
            top.file.fail(path, f"a threshold must be text, not {shown(says)}")
        try:
            found.append(parse(says, kinds=kinds, watch=watch, line=top.file.line(path)))
        except ThresholdError as error:
            top.file.fail(path, str(error))
    return tuple(found)
