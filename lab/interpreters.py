"""Other interpreters for the workers: each gets an environment of its own, made once and cached."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.model import FREE_THREADED, BadInput, LabError
from tasks.pools import POOLS

ALWAYS = ("celery", "kombu", "billiard", "redis", "vine", "amqp", "packaging")
"""Installed in the same versions as here, so that arms differ in the interpreter alone. No hiredis: it is optional, and
on a free-threaded interpreter its import switches the GIL back on."""
ASK = (
    "import sys, sysconfig, json; print(json.dumps({'version': sys.version.split()[0], "
    "'free_threaded': bool(sysconfig.get_config_var('Py_GIL_DISABLED')), 'ok': sys.version_info[:2] >= (3, 11)}))"
)


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python that exists."""

    path: str
    version: str
    """Such as `3.13.5`, or `3.13.5t` for a free-threaded build."""


def ask(path: str) -> Interpreter:
    """What the interpreter at `path` is. Raises BadInput when it is none, or too old for the jobs."""
    try:
        answer = subprocess.run(
            [path, "-c", ASK], capture_output=True, text=True, timeout=30, check=True, stdin=subprocess.DEVNULL
        )
        facts = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        raise BadInput(
            f"{path} is not a Python interpreter that runs; give the path of one, such as /usr/bin/python3.13"
        ) from None
    if not facts["ok"]:
        raise BadInput(f"{path} is Python {facts['version']}; 3.11 or newer is needed")
    return Interpreter(path, facts["version"] + ("t" if facts["free_threaded"] else ""))


def free_threaded() -> str | None:
    """The path of a free-threaded interpreter on PATH, the newest; None where there is none.

    SIDESTEP_FREE_THREADED names one that is not on PATH.
    """
    if chosen := os.environ.get("SIDESTEP_FREE_THREADED"):
        return chosen
    return next((path for name in FREE_THREADED_NAMES if (path := shutil.which(name))), None)


FREE_THREADED_NAMES = ("python3.14t", "python3.13t")


def resolve(python: str | None) -> str:
    """The path that a setup's `python` means. Raises LabError for FREE_THREADED where there is no such interpreter."""
    if python is None:
        return sys.executable
    path = free_threaded() if python == FREE_THREADED else python
    if path is None:
        raise LabError(
            f"no free-threaded Python ({' or '.join(FREE_THREADED_NAMES)}) is on PATH; SIDESTEP_FREE_THREADED names one"
        )
    return path


def stderr_of_imports(python: str, modules: Iterable[str]) -> str:
    """What the interpreter warns of on stderr while it imports those of the modules that it has.

    Raises LabError when it does not end.
    """
    code = (
        "import importlib, importlib.util\n"
        f"for name in {list(modules)!r}:\n"
        "    if importlib.util.find_spec(name): importlib.import_module(name)\n"
    )
    try:
        return subprocess.run(
            [python, "-W", "always", "-c", code],
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
            check=False,
        ).stderr
    except (OSError, subprocess.SubprocessError) as error:
        raise LabError(f"{python} did not import {', '.join(modules)}: {error}; does it run?") from None


def cache_home() -> Path:
    """Where environments are kept: SIDESTEP_CACHE, else the user's cache folder."""
    chosen = os.environ.get("SIDESTEP_CACHE") or os.environ.get("XDG_CACHE_HOME")
    return Path(chosen or Path.home() / ".cache") / "sidestep"


def with_celery(
    path: str,
    *,
    pools: Iterable[str],
    modules: Iterable[str] = (),
    packages: Iterable[str] = (),
    say: Callable[[str], None] = lambda _: None,
) -> str:
    """The path of an interpreter like the one at `path` that can import Celery and what the pools need.

    `modules` are what jobs need besides, in the versions installed here; `packages`, such as `kombu==5.6.2`, replace
    what is installed here. Makes a virtual environment on first use, which reaches a package index; later calls take
    it from the cache.
    """
    interpreter = ask(path)
    names = [*ALWAYS, *(need for p in sorted(set(pools)) if p in POOLS and (need := POOLS[p].needs)), *modules]
    chosen = {package.partition("==")[0]: package for package in packages}
    needed = [
        f"{name}=={importlib.metadata.version(name)}" for name in names if _installed(name) and name not in chosen
    ]
    needed += sorted(chosen.values())
    key = hashlib.sha256("\n".join([os.path.realpath(path), interpreter.version, *needed]).encode()).hexdigest()[:16]
    home = cache_home() / "envs" / f"python{interpreter.version}-{key}"
    home.parent.mkdir(parents=True, exist_ok=True)
    with home.with_name(home.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run may be making it: wait for that one
        return _made(home, path, interpreter, needed, say)


def with_requirements(path: str, requirements: Path, *, say: Callable[[str], None] = lambda _: None) -> str:
    """The path of an interpreter like the one at `path`, with all that a file of pins names and nothing else.

    Made on first use, which reaches a package index; later calls take it from the cache. Raises LabError when it cannot
    be made.
    """
    interpreter = ask(path)
    parts = [os.path.realpath(path), interpreter.version, requirements.name, requirements.read_text("utf-8")]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    home = cache_home() / "envs" / f"python{interpreter.version}-{key}"
    home.parent.mkdir(parents=True, exist_ok=True)
    with home.with_name(home.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _made(home, path, interpreter, ["-r", str(requirements)], say)


def _made(home: Path, path: str, interpreter: Interpreter, needed: Sequence[str], say: Callable[[str], None]) -> str:
    """The interpreter of the environment at `home`, made if it is not there yet."""
    python = home / "bin" / "python"
    if (home / "complete").exists() and python.exists():
        return str(python)
    say(f"making an environment for Python {interpreter.version} (once; it is kept in {home})")
    shutil.rmtree(home, ignore_errors=True)
    for command in ([path, "-m", "venv", str(home)], [str(python), "-m", "pip", "install", "-q", *needed]):
        made = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        if made.returncode:
            reason = (made.stderr.strip() or made.stdout.strip() or "no reason given").splitlines()[-1]
            shutil.rmtree(home, ignore_errors=True)
            raise LabError(f"cannot make an environment for {path}: {reason}")
    (home / "complete").touch()
    return str(python)


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
