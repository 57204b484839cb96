"""The command `sidestep worker`: a Celery worker of this app with marks on, on this or any other machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import NoReturn

import click
from rich.console import Console

from lab.broker import shown, users_broker
from lab.children import ROOT
from lab.model import BadInput
from lab.processes import Family, family
from lab.store import runs_home
from tasks.pools import EVENTLET_WARNING_FILTER, POOLS
from tasks.settings import BROKER_FILE, PRESETS, TRANSPORTS, Settings, SettingsError, broker_url


# No -h: click would find it in Celery's -Pthreads too.
@click.command("worker", context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
@click.option(
    "--pool",
    envvar="SIDESTEP_WORKER_POOL",
    help="One of Celery's (also -P), or processes: see above.  [default: Celery's, prefork]",
)
@click.option(
    "--transport",
    envvar="SIDESTEP_TRANSPORT",
    type=click.Choice(TRANSPORTS),
    help="How it takes messages from a Redis: as kombu does, or as docs/transport.md says.  [default: stock]",
)
@click.option("--marks", type=click.Path(path_type=Path), help="Folder for the marks [default: a new one under runs].")
@click.option("--broker", envvar="SIDESTEP_BROKER", help="URL of the broker that it listens on.")
@click.option(
    "--broker-file",
    envvar=BROKER_FILE,
    type=click.Path(path_type=Path),
    help="File that holds this URL: a variable or an option can be seen by others on this machine.",
)
@click.option("--force", is_flag=True, help="Use the broker's database although it holds keys of others.")
@click.option("--preset", envvar="SIDESTEP_PRESET", type=click.Choice(list(PRESETS)), help="How Celery is set up.")
@click.argument("celery_options", nargs=-1, type=click.UNPROCESSED)
def worker(
    marks: Path | None,
    broker: str | None,
    broker_file: Path | None,
    force: bool,
    preset: str | None,
    pool: str | None,
    transport: str | None,
    celery_options: tuple[str, ...],
) -> NoReturn:
    """A Celery worker of this app with marks on; takes every option of `celery worker`, whose --help names them.

    Run on each of several machines it makes them take part in `sidestep run machines --arena attached`.

    `--pool processes -c N` starts N processes that fetch their jobs themselves, each a solo worker, where prefork has
    one that fetches for N. A process that dies is started again, at once or after a wait that grows; all is given up
    (exit status 2) if it dies five times in a row before it is up. SIGTERM and the first Ctrl-C let each finish its
    job, SIGQUIT and the second make it let go of it, the third kills. `-n NAME@%h` calls them NAME-1@host, NAME-2@host
    and so on. Refused is what only prefork can do: time limits, --max-...-per-child, --autoscale; and what each process
    would do: --beat, --purge, --detach, --pidfile, --uid, --gid. More in docs/transport.md.
    """
    if pool:
        celery_options = (f"--pool={pool}", *celery_options)
    processes = family(celery_options)
    url = _url(broker, broker_file)
    users_broker(url, force=force)  # one clear line now instead of endless retries later
    folder = (marks or runs_home() / f"marks-{datetime.now().astimezone():%Y%m%d-%H%M%S}").absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"cannot write marks to {folder}: {error.strerror}; choose another folder with --marks"
        ) from None
    environ = {**os.environ, "SIDESTEP_BROKER": url, "SIDESTEP_TAPE_DIR": str(folder)}
    environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    if preset:
        environ["SIDESTEP_PRESET"] = preset
        celery_options = (*Settings(broker=url, preset=preset).worker_options, *celery_options)
    if transport:
        environ["SIDESTEP_TRANSPORT"] = Settings(broker=url, transport=transport).transport
    notes = Console(stderr=True, highlight=False, markup=False)
    notes.print(f"broker {shown(url)}, marks in {folder}", soft_wrap=True)
    if "eventlet" in " ".join(celery_options):
        notes.print(f"eventlet is a legacy pool: {POOLS['eventlet'].legacy}", soft_wrap=True)
        environ["PYTHONWARNINGS"] = EVENTLET_WARNING_FILTER
    if processes:
        notes.print("--pool processes: several workers, which take no part in `sidestep run machines`", soft_wrap=True)
        if (transport or environ.get("SIDESTEP_TRANSPORT") or "stock") == "stock":
            notes.print("with kombu's own transport each fetches one job at a time; see --transport", soft_wrap=True)
    elif Settings(broker=url).on_redis:
        _start_agent(environ)
    sys.stderr.flush()
    # The worker takes this process's place, so that signals and exit codes are Celery's own.
    command = [sys.executable, *_module(processes), *celery_options]
    os.execve(sys.executable, command, environ)  # noqa: S606  no shell


def _module(processes: Family | None) -> tuple[str, ...]:
    """What Python runs, up to the options of `celery worker`."""
    if processes:
        return ("-m", "tasks.processes", str(processes.count), processes.name, "tasks")
    return ("-m", "celery", "-A", "tasks", "worker")


def _url(broker: str | None, broker_file: Path | None) -> str:
    if broker:
        return broker
    if broker_file is None:
        raise BadInput("name the broker: --broker URL, --broker-file FILE, or SIDESTEP_BROKER")
    try:
        return broker_url({BROKER_FILE: str(broker_file)})
    except SettingsError as error:
        raise BadInput(str(error)) from None


def _start_agent(environ: dict[str, str]) -> None:
    """Start what tells of this worker, and give the worker the pipe on which it says that it is ready."""
    ready, told = os.pipe()
    os.set_inheritable(told, True)
    environ["SIDESTEP_READY_FD"] = str(told)
    # In a session of its own: the terminal's Ctrl-C is for the worker, and the agent ends when that has ended.
    subprocess.Popen(
        [sys.executable, "-m", "lab.agent"], stdin=ready, env=_without_ready(environ), start_new_session=True
    )
    os.close(ready)


def _without_ready(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name not in {"SIDESTEP_READY_FD", "PYTHONWARNINGS"}}
