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
from lab.store import runs_home
from tasks.pools import EVENTLET_WARNING_FILTER, POOLS
from tasks.settings import BROKER_FILE, PRESETS, Settings, SettingsError, broker_url


@click.command(
    "worker", context_settings={"ignore_unknown_options": True, "help_option_names": []}, add_help_option=False
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
    celery_options: tuple[str, ...],
) -> NoReturn:
    """A Celery worker of this app with marks on; takes every option of `celery worker`.

    Run on each of several machines it makes them take part in `sidestep run machines --arena attached`.
    """
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
    notes = Console(stderr=True, highlight=False, markup=False)
    notes.print(f"broker {shown(url)}, marks in {folder}", soft_wrap=True)
    if "eventlet" in " ".join(celery_options):
        notes.print(f"eventlet is a legacy pool: {POOLS['eventlet'].legacy}", soft_wrap=True)
        environ["PYTHONWARNINGS"] = EVENTLET_WARNING_FILTER
    if Settings(broker=url).on_redis:
        _start_agent(environ)
    sys.stderr.flush()
    # The worker takes this process's place, so that signals and exit codes are Celery's own.
    os.execve(sys.executable, [sys.executable, "-m", "celery", "-A", "tasks", "worker", *celery_options], environ)  # noqa: S606  no shell


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
