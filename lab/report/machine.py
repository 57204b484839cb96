"""The fingerprint of machine and software in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lab.report.units import GIB, number, share

Words = Callable[[Any], str]


def _packages(packages: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(packages.items())) or "none"


ENTRIES: Mapping[str, tuple[str, Words]] = {
    "cpu": ("CPU", str),
    "cores": ("Cores usable", str),
    "logical_cpus": ("Logical CPUs", str),
    "cgroup_cores": ("Limit of the cgroup", lambda cores: f"{number(cores)} cores"),
    "governor": ("Frequency governor", str),
    "virtual": ("Virtual machine", lambda virtual: "yes" if virtual else "no"),
    "memory_bytes": ("Memory", lambda size: f"{number(size / GIB)} GiB"),
    "architecture": ("Architecture", str),
    "kernel": ("Kernel", str),
    "clocksource": ("Clock source", str),
    "boot_id": ("Boot", str),
    "noise_floor": (
        "Noise floor",
        lambda floor: f"{share(floor)} (interquartile range over median of one short job, repeated)",
    ),
    "python": ("Python", str),
    "implementation": ("Implementation", str),
    "gil_enabled": ("GIL", lambda enabled: "on" if enabled else "off"),
    "switch_interval_s": ("Switch interval", lambda seconds: f"{number(seconds * 1e3)} ms"),
    "workers_python": ("Python of the workers", str),
    "broker": ("Broker", str),
    "broker_is_own": ("Broker of this run alone", lambda own: "yes" if own else "no"),
    "units_per_ms": (
        "Work per millisecond",
        lambda units: ", ".join(f"{job} {number(n)} units" for job, n in sorted(units.items())),
    ),
    "packages": ("Packages", _packages),
    "sidestep": ("Sidestep", str),
    "revision": ("Revision", str),
}
"""Names in the environment, what the page calls them and how it says their values."""
MAY_BE_NONE = frozenset({"cgroup_cores"})
"""Where nothing is an answer, not a gap."""


def fingerprint(environment: Mapping[str, Any]) -> dict[str, str]:
    """Heading and value of everything known, in a fixed order; what has no words of its own comes last as it is."""
    known = {
        title: _say(environment.get(name), words, absent="none" if name in MAY_BE_NONE else "not known")
        for name, (title, words) in ENTRIES.items()
    }
    others = {
        name: _say(value, str, absent="none") for name, value in sorted(environment.items()) if name not in ENTRIES
    }
    return {**known, **others}


def _say(value: Any, words: Words, *, absent: str) -> str:
    if value is None:
        return absent
    try:
        return words(value)
    except (TypeError, ValueError, AttributeError):
        # Another version's suite may hold another kind of value: show it rather than fail.
        return str(value)
