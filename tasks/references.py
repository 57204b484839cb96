"""Payloads that do not travel with their jobs: a job gets a reference, and reads what it stands for (a claim check)."""

from __future__ import annotations

import base64
import contextlib
import mmap
import os
import secrets
import tempfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, cast

from tasks.registry import Nature, job
from tasks.settings import ENV_PREFIX

KEPT_S = 24 * 3600
"""Redis forgets a payload after a day, if whoever put it there died: no sitting lasts that long."""

Reference = dict[str, Any]
"""Plain JSON: how and where to read the payload, its size and its CRC-32. Via "inline-raw" it holds bytes."""


class PayloadGone(LookupError):  # noqa: N818  it names what happened, as the reader of a log sees it
    """What a reference stands for is not where it was put; the message says where, and what to do."""


@dataclass(frozen=True, slots=True)
class Where:
    """Where payloads are left. Each way looks only at what concerns it."""

    key_prefix: str = "sidestep:"
    """Of the key in Redis."""
    folder: Path = field(default_factory=lambda: Path(tempfile.gettempdir()))
    """Of the file; on /dev/shm it lies in memory."""
    client: Any = None
    """A client of the Redis that the workers use as broker; None takes the one that SIDESTEP_BROKER names."""


@dataclass(frozen=True, slots=True)
class Via:
    """One way for a payload to reach a job."""

    name: str
    put: Callable[[bytes, Where], str | bytes]
    """Leaves the payload and returns what `get` and `drop` find it by."""
    get: Callable[[Any, int], bytes]
    """Reads it, given what `put` returned and its size. Raises PayloadGone."""
    drop: Callable[[Any, Where], None]
    """Takes it away; no error if it is gone."""
    travels: bool = False
    """The payload is in the reference itself, and so in the message."""


def put(via: str, payload: bytes, where: Where | None = None) -> Reference:
    """Leave the payload and return the reference to it; whoever puts it drops it, in the same process.

    Raises ValueError for a way that is none of VIAS.
    """
    if via not in VIAS:
        raise ValueError(f"via must be one of {', '.join(VIAS)}, not {via!r}")
    at = VIAS[via].put(payload, where or Where())
    return {"via": via, "at": at, "size_bytes": len(payload), "crc": zlib.crc32(payload)}


def get(reference: Mapping[str, Any], *, keep: bool = False) -> bytes:
    """The payload that the reference stands for. Raises PayloadGone.

    With `keep` this process remembers the payload that it read last, and does not read the same one again. What is in
    the reference itself is never kept: it has been carried here anyway.
    """
    read = _read_once if keep and not VIAS[reference["via"]].travels else _read
    return read(reference["via"], reference["at"], reference["size_bytes"])


def drop(reference: Mapping[str, Any], where: Where | None = None) -> None:
    """Take away what `put` has left; no error if it is gone."""
    VIAS[reference["via"]].drop(reference["at"], where or Where())


def _read(via: str, at: Any, size_bytes: int) -> bytes:
    return VIAS[via].get(at, size_bytes)


# One payload: a process that gets many must not hold them all.
_read_once = lru_cache(maxsize=1)(_read)


def _is_reference(load: object) -> bool:
    return isinstance(load, dict) and load.get("via") in VIAS


def _plain(load: str | bytes) -> bytes:
    if not isinstance(load, str | bytes):
        raise TypeError(f"a load is a reference, text or bytes, not {type(load).__name__}")
    return load.encode("utf-8", "surrogatepass") if isinstance(load, str) else load


def _weight(load: Any, keep: bool = False) -> int:  # noqa: ARG001  the answer does not depend on it
    return int(load["crc"]) if _is_reference(load) else zlib.crc32(_plain(load))


@job(Nature.HOLDS_GIL, expect=_weight)
def weigh(load: Any, keep: bool = False) -> int:
    """Read all of a payload, or of what a reference stands for, and return its CRC-32: a wrong one is found out.

    See `get` for what `keep` does, and for PayloadGone; raises TypeError for a load that is no reference, text or
    bytes. What a reference marked `once` stands for is this job's alone, and taken away.
    """
    weight = zlib.crc32(get(load, keep=keep) if _is_reference(load) else _plain(load))
    if _is_reference(load) and load.get("once"):
        drop(load)
    return weight


def _new_name() -> str:
    # Never used twice, so that what is kept cannot be stale. Short: macOS allows 31 bytes for the name of a segment.
    return f"sidestep-{secrets.token_hex(8)}"


def _inline(at: Any, size_bytes: int) -> bytes:  # noqa: ARG001
    return base64.b64decode(at)


def _nothing_to_drop(at: Any, where: Where) -> None:
    pass


@cache
def _client(url: str) -> Any:
    # One for the process: it lends each thread or greenlet a connection, where one for each thread would mean a new
    # connection for each job of a green pool. It notices a fork, and leaves the parent's connections alone.
    import redis  # noqa: PLC0415  only these jobs need a client of their own

    return redis.Redis.from_url(url)


def _own_client() -> Any:
    if not (url := os.environ.get(ENV_PREFIX + "BROKER")):
        raise PayloadGone(
            f"{ENV_PREFIX}BROKER does not say which Redis holds the payload; without a broker use another via"
        )
    return _client(url)


def _to_redis(payload: bytes, where: Where) -> str:
    key = f"{where.key_prefix}{_new_name()}"
    (where.client or _own_client()).set(key, payload, ex=KEPT_S)
    return key


def _from_redis(key: str, size_bytes: int) -> bytes:  # noqa: ARG001
    payload = _own_client().get(key)
    if payload is None:
        raise PayloadGone(f"Redis holds no payload at {key!r}: it was dropped, or is older than a day; put it anew")
    return cast("bytes", payload)


def _off_redis(key: str, where: Where) -> None:
    (where.client or _own_client()).delete(key)


def _to_file(payload: bytes, where: Where) -> str:
    path = where.folder / _new_name()
    with path.open("xb") as file:
        file.write(payload)
    return str(path)


def _from_file(path: str, size_bytes: int) -> bytes:  # noqa: ARG001
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise PayloadGone(f"no payload in the file {path}: it was dropped, or this is another machine") from None


def _off_file(path: str, where: Where) -> None:  # noqa: ARG001
    Path(path).unlink(missing_ok=True)


def _to_memory(payload: bytes, where: Where) -> str:  # noqa: ARG001
    from multiprocessing.shared_memory import SharedMemory  # noqa: PLC0415  only whoever puts needs it

    # It stays with the resource tracker of this process, which removes it if we die.
    segment = SharedMemory(_new_name(), create=True, size=max(len(payload), 1))
    with contextlib.closing(segment):
        assert segment.buf is not None  # noqa: S101  it is open
        segment.buf[: len(payload)] = payload
    return segment.name


def _from_memory(name: str, size_bytes: int) -> bytes:
    # Not SharedMemory(name): before Python 3.13 it hands the segment to this process's resource tracker, which starts a
    # process for it and removes the segment when this one ends. This is what lies below it, in every version.
    import _posixshmem  # type: ignore[import-not-found]  # noqa: PLC0415  it has no types; no other job needs it

    try:
        fd = _posixshmem.shm_open(f"/{name}", os.O_RDONLY, mode=0)
    except FileNotFoundError:
        raise PayloadGone(f"no payload in shared memory {name}: it was dropped, or this is another machine") from None
    try:
        with mmap.mmap(fd, max(size_bytes, 1), access=mmap.ACCESS_READ) as segment:
            return segment[:size_bytes]
    finally:
        os.close(fd)


def _off_memory(name: str, where: Where) -> None:  # noqa: ARG001
    from multiprocessing.shared_memory import SharedMemory  # noqa: PLC0415  only whoever puts needs it

    with contextlib.suppress(FileNotFoundError):
        segment = SharedMemory(name)
        segment.close()
        segment.unlink()


VIAS: Mapping[str, Via] = {
    via.name: via
    for via in (
        # As base64, which any codec carries, and as bytes, for codecs that have them.
        Via("inline", lambda payload, _: base64.b64encode(payload).decode(), _inline, _nothing_to_drop, travels=True),
        Via("inline-raw", lambda payload, _: payload, lambda at, _: bytes(at), _nothing_to_drop, travels=True),
        Via("redis", _to_redis, _from_redis, _off_redis),
        Via("file", _to_file, _from_file, _off_file),
        Via("shm", _to_memory, _from_memory, _off_memory),
    )
}
