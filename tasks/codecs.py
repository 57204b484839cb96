"""What writes a job's arguments into bytes, and what makes those bytes fewer: a row for each, known to kombu."""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

Encode = Callable[[Any], str | bytes]
Decode = Callable[[Any], Any]


def _why_missing(what: str, needs: str | None) -> str | None:
    if needs is None:
        return None
    try:
        # Imported, not only looked for: a Python may hold `compression.zstd` and lack the library below it.
        importlib.import_module(needs)
    except ImportError:
        return f"{what} needs {needs}; try: pip install 'sidestep[codecs]'"
    return None


@dataclass(frozen=True, slots=True)
class Codec:
    """One way to write values as text or bytes."""

    name: str
    """As kombu's `serializer`."""
    content_type: str
    """As on the message. Two codecs with one type read each other's messages."""
    encoding: str
    """"utf-8" or "binary", as kombu's `content_encoding`."""
    needs: str | None = None
    """The module that must be installed besides kombu."""
    trusted: bool = False
    """To decode is to run code of whoever wrote it, who must be trusted: refused unless a setup asks for it."""

    @property
    def missing(self) -> str | None:
        """Why it cannot be used here, and what to do about it; None where it can."""
        return _why_missing(f"codec {self.name!r}", self.needs)

    @property
    def encode(self) -> Encode:
        """The very function that kombu calls. Raises RuntimeError for a codec that is not installed here."""
        return _functions(self.name)[0]

    @property
    def decode(self) -> Decode:
        """The very function that kombu calls; never hand a pickle of strangers to it. Raises as `encode` does."""
        return _functions(self.name)[1]


# kombu's JSON is a dialect: dates, bytes, decimals and UUIDs are objects with a `__type__`. A plain JSON decoder hands
# those on as dicts, and its encoder writes a date as text; so none of the fast ones may claim application/json. Nor
# may msgspec claim kombu's type of MessagePack: it writes dates with a time zone as an extension that kombu's decoder
# reads as a `Timestamp`, and it reads keys that are no text, which kombu's refuses.
CODECS: Mapping[str, Codec] = {
    codec.name: codec
    for codec in (
        Codec("json", "application/json", "utf-8"),
        Codec("msgpack", "application/x-msgpack", "binary", needs="msgpack"),
        Codec("pickle", "application/x-python-serialize", "binary", trusted=True),
        Codec("yaml", "application/x-yaml", "utf-8", needs="yaml"),
        Codec("orjson", "application/x-orjson", "utf-8", needs="orjson"),
        Codec("msgspec-json", "application/x-msgspec-json", "utf-8", needs="msgspec"),
        Codec("msgspec-msgpack", "application/x-msgspec-msgpack", "binary", needs="msgspec"),
        # Any pickle decoder reads every protocol, so it needs no type of its own. kombu writes protocol 4.
        Codec("pickle5", "application/x-python-serialize", "binary", trusted=True),
    )
}
"""The first four are kombu's own, which it offers where their packages are installed."""


def _orjson() -> tuple[Encode, Decode | None]:
    orjson = importlib.import_module("orjson")
    return orjson.dumps, orjson.loads


def _msgspec_json() -> tuple[Encode, Decode | None]:
    msgspec = importlib.import_module("msgspec.json")
    return msgspec.encode, msgspec.decode


def _msgspec_msgpack() -> tuple[Encode, Decode | None]:
    msgspec = importlib.import_module("msgspec.msgpack")
    return msgspec.encode, msgspec.decode


def _pickle5() -> tuple[Encode, Decode | None]:
    return partial(pickle.dumps, protocol=5), None  # kombu's own decoder of the type reads it


_OURS: Mapping[str, Callable[[], tuple[Encode, Decode | None]]] = {
    "orjson": _orjson,
    "msgspec-json": _msgspec_json,
    "msgspec-msgpack": _msgspec_msgpack,
    "pickle5": _pickle5,
}


@dataclass(frozen=True, slots=True)
class Compression:
    """One way to make a body smaller."""

    name: str
    """As kombu's `compression`."""
    content_type: str
    """As in the message's header."""
    needs: str
    """The module that must be importable."""

    @property
    def missing(self) -> str | None:
        """Why it cannot be used here, and what to do about it; None where it can."""
        return _why_missing(f"compression {self.name!r}", self.needs)

    def compress(self, body: bytes) -> bytes:
        """The body, smaller, at the level at which kombu asks for it. Raises RuntimeError where it is not installed."""
        return bytes(_compressors(self.name)[0](body))

    def decompress(self, body: bytes) -> bytes:
        """The body as it was."""
        return bytes(_compressors(self.name)[1](body))


# kombu 5.7 imports `compression.zstd`, of Python 3.14 and later, or else `backports.zstd`, never `zstandard`. But
# `celery[zstd]` installs `zstandard`: with it alone, task_compression="zstd" is a KeyError on Python 3.11 to 3.13.
ZSTD = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"

COMPRESSIONS: Mapping[str, Compression] = {
    compression.name: compression
    for compression in (
        # kombu's own name for the same; messages of either say application/x-gzip, and zlib reads them.
        Compression("gzip", "application/x-gzip", "zlib"),
        Compression("zlib", "application/x-gzip", "zlib"),
        Compression("bz2", "application/x-bz2", "bz2"),
        Compression("lzma", "application/x-lzma", "lzma"),
        Compression("zstd", "application/zstd", ZSTD),
        Compression("brotli", "application/x-brotli", "brotli"),
        Compression("lz4", "application/x-lz4", "lz4.frame"),
    )
}
"""All but lz4 are kombu's own, which it offers where their packages are installed."""


PACKAGES: Mapping[str, str] = {"yaml": "PyYAML", "lz4.frame": "lz4"}
"""What a needed module is called where packages are installed from, if not the same."""


def register(*names: str) -> None:
    """Make these codecs known to kombu in this process, and every compression; again changes nothing.

    kombu's own stay as they are. Raises ValueError for a name that is none of CODECS, and RuntimeError for one whose
    package is missing.
    """
    from kombu import serialization  # noqa: PLC0415  the jobs are also used without Celery

    registry: Any = serialization.registry  # its methods have no types
    for name in names:
        if name not in CODECS:
            raise ValueError(f"codec must be one of {', '.join(CODECS)}, not {name!r}")
        codec = CODECS[name]
        if why := codec.missing:
            raise RuntimeError(why)
        # Not twice: somebody may have wrapped the decoder since. But not a stranger's of the same name either.
        if name not in _OURS or registry.name_to_type.get(name) == codec.content_type:
            continue
        encode, decode = _OURS[name]()
        before = registry.type_to_name.get(codec.content_type)
        registry.register(name, encode, decode, codec.content_type, codec.encoding)
        if before is not None and decode is None:
            registry.type_to_name[codec.content_type] = before  # the stock name goes on to stand for its type
    _register_compressions()


def _register_compressions() -> None:
    from kombu import compression  # noqa: PLC0415  the jobs are also used without Celery

    kombu: Any = compression
    # A worker must read whatever a message names. Its package is imported when the first such message comes.
    if "application/x-lz4" not in kombu.encoders():
        kombu.register(_lz4_compress, _lz4_decompress, "application/x-lz4", aliases=["lz4"])
    if "application/x-bz2" in kombu.encoders():
        # kombu knows it as bzip2; the same functions under our name too.
        encode, content_type = kombu.get_encoder("application/x-bz2")
        kombu.register(encode, kombu.get_decoder(content_type), content_type, aliases=["bz2"])


def _lz4_compress(body: bytes) -> bytes:
    return bytes(importlib.import_module("lz4.frame").compress(body))


def _lz4_decompress(body: bytes) -> bytes:
    return bytes(importlib.import_module("lz4.frame").decompress(body))


@cache
def _functions(name: str) -> tuple[Encode, Decode]:
    register(name)
    from kombu import serialization  # noqa: PLC0415  the jobs are also used without Celery

    registry: Any = serialization.registry
    return registry._encoders[name].encoder, registry._decoders[CODECS[name].content_type]


@cache
def _compressors(name: str) -> tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]:
    if why := COMPRESSIONS[name].missing:
        raise RuntimeError(why)
    register()
    from kombu import compression  # noqa: PLC0415  the jobs are also used without Celery

    kombu: Any = compression
    return kombu.get_encoder(name)[0], kombu.get_decoder(name)


def accepted(codec: str) -> list[str]:
    """What a worker of this codec accepts, as Celery's `accept_content`: JSON, and the codec itself."""
    if codec == "json":
        return ["json"]
    # Celery looks for this very word when it refuses to run a worker that unpickles as root.
    return ["json", "pickle" if CODECS[codec].trusted else codec]
