"""What a chart's x axis can say of a setup."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from lab.model import FrozenArgs, Setup
from producer.payloads import Args, Calibrated, Payload, Sometimes

SWITCH_INTERVAL_S = 0.005
"""Python's own, since 3.2."""


def slots(setup: Setup) -> float:
    """Jobs at once."""
    return setup.slots


def machines(setup: Setup) -> float:
    """Workers, each on a machine of its own where the setup says so."""
    return setup.nodes


def number_of(setup: Setup) -> int:
    """The Universal Scalability Law's n: machines where there are several, else slots."""
    return setup.slots if setup.arena == "local" else setup.nodes


def has_room(setup: Setup, *, cores: int) -> bool:
    """Whether nobody waits for a core: beyond them the law would take that for contention."""
    match setup.arena:
        case "local":
            return setup.slots <= cores
        case "compose":
            return setup.nodes * (setup.cpus or 1) <= cores
    return True  # attached machines bring their own cores


def work_ms(setup: Setup) -> float:
    """Work of one job on one core, in ms."""
    return work_ms_of(setup.args)


def work_ms_of(args: Args) -> float:
    """Work of one job with these arguments on one core, on average, in ms."""
    return sum(_ms(value) for value in args.values())


def _ms(value: object) -> float:
    match value:
        case Calibrated(ms):
            return ms
        case Sometimes(usually, rarely, share):
            return (1 - share) * _ms(usually) + share * _ms(rarely)
        case _:
            return 0.0


def at_work_ms(setup: Setup, ms: float) -> Setup:
    """The setup with jobs of another length. It must have one argument that is calibrated, and no more."""
    (name, work), *_ = ((name, value) for name, value in setup.args.items() if isinstance(value, Calibrated))
    return replace(setup, args=FrozenArgs({**setup.args, name: replace(work, ms=ms)}))


def outside_share(setup: Setup) -> float:
    """Share of the work that lets go of the GIL."""
    return _ms(setup.args.get("chunks")) / (work_ms(setup) or 1.0)


def switch_interval_ms(setup: Setup) -> float:
    """sys.setswitchinterval, in ms."""
    return (SWITCH_INTERVAL_S if setup.switch_interval_s is None else setup.switch_interval_s) * 1e3


def hogs(setup: Setup) -> float:
    """Jobs that compute beside it in the same process."""
    return setup.beside.pacer.count if setup.beside and not setup.apart else 0


def computing(setup: Setup) -> float:
    """Jobs that compute meanwhile, beside it in the same process or in others."""
    return setup.beside.pacer.count if setup.beside else 0


def handovers(setup: Setup) -> float:
    """How often the job waits without the GIL and must get it back."""
    rounds = setup.args.get("rounds")
    return rounds if isinstance(rounds, int) else 0


def size_bytes(setup: Setup) -> float:
    """Size of the payload, in bytes."""
    size = setup.args.get("size_bytes")
    return size if isinstance(size, int) else setup.payload_bytes


def rtt_ms(setup: Setup) -> float:
    """Distance to the broker, there and back, in ms."""
    return setup.rtt_ms or 0.0


def prefetch(setup: Setup) -> float:
    """Jobs fetched ahead, per slot; Celery's own multiplier is 4."""
    return 4 if setup.prefetch is None else setup.prefetch


AXES: Mapping[str, Callable[[Setup], float]] = {
    axis.__name__: axis
    for axis in (
        slots,
        machines,
        work_ms,
        outside_share,
        switch_interval_ms,
        hogs,
        computing,
        handovers,
        size_bytes,
        prefetch,
        rtt_ms,
    )
}


def codec(setup: Setup) -> str:
    """Serializer."""
    named = setup.args.get("codec")
    return named if isinstance(named, str) else setup.codec


def compression(setup: Setup) -> str:
    """Compression."""
    named = setup.args.get("compression")
    return named if isinstance(named, str) else setup.compression or "none"


def shape(setup: Setup) -> str:
    """Shape of the payload."""
    named = setup.args.get("shape")
    shapes = (value.shape for value in setup.args.values() if isinstance(value, Payload))
    return named if isinstance(named, str) else next(shapes, "")


def pool(setup: Setup) -> str:
    """Pool."""
    return setup.pool


def size_name(setup: Setup) -> str:
    """Size of the payload."""
    size = size_bytes(setup)
    for unit in ("B", "kB"):
        if size < 1000:
            return f"{size:g} {unit}"
        size /= 1000
    return f"{size:g} MB"


NAMES: Mapping[str, Callable[[Setup], str]] = {
    name.__name__: name for name in (codec, compression, shape, pool, size_name)
}
"""What the rows and columns of a heat map can say of a setup."""
