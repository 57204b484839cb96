"""A Redis transport for kombu that loses nothing between the broker and the worker.

    app.conf.broker_url = "redis://localhost"
    app.conf.broker_transport = "sidestep_transport:Transport"

or `sidestep_transport.install()` before the first connection, which also serves `rediss://` and lists of URLs.
"""

from __future__ import annotations

import kombu

TESTED = (5, 7)
"""The minor version of kombu whose private parts this was written against and tested with."""

if tuple(kombu.VERSION[:2]) != TESTED:
    raise ImportError(
        f"sidestep-transport was tested with kombu {TESTED[0]}.{TESTED[1]} and builds on parts that are not public; "
        f"here is kombu {kombu.__version__}: pip install 'kombu[redis]>=5.7,<5.8', or go back to kombu's own transport "
        "by removing the setting broker_transport (both share the same queues)"
    )

from kombu import transport as _kombu  # noqa: E402  only after the version is known to fit

from sidestep_transport.transport import Transport  # noqa: E402

__all__ = ["Transport", "install"]


def install(*schemes: str) -> None:
    """Let URLs of these schemes, `redis` and `rediss` unless others are named, use this transport in this process.

    To be called before the first connection. Safe to call twice.
    """
    for scheme in schemes or ("redis", "rediss"):
        _kombu.TRANSPORT_ALIASES[scheme] = f"{__name__}:Transport"
        # kombu remembers what a name meant when it was first used.
        _kombu._transport_cache.pop(scheme, None)
