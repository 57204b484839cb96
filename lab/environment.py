"""What machine and what software a result belongs to."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

import tasks.jobs
from lab.children import ROOT
from tasks.calibrate import units_per_ms
from tasks.timeline import boot_id, gil_enabled

PACKAGES = (
    "celery",
    "kombu",
    "billiard",
    "redis",
    "hiredis",
    "eventlet",
    "gevent",
    "greenlet",
    "msgpack",
    "orjson",
    "msgspec",
    "PyYAML",
    "lz4",
    "brotli",
    "backports.zstd",
    "numpy",
    "psutil",
)
SAME_MACHINE = ("cpu", "cores", "memory_bytes", "kernel", "architecture")
"""Two suites compare only when these agree."""
SAME_SITTING = ("python", "implementation", "packages", "broker", "broker_is_own", "sidestep")
"""A suite is continued only when these agree too: its runs are one sample."""
NOISE_TRIES = 40
NOISE_JOB_MS = 5


def cores() -> int:
    """Cores this process may really use: the affinity mask, cut down by a cgroup's quota."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_cores()
    return max(1, min(available, int(quota))) if quota else available


def cgroup_cores() -> float | None:
    """The cgroup's CPU quota in cores, or None where there is none."""
    for path in (Path("/sys/fs/cgroup/cpu.max"),):
        words = _read(path).split()
        if len(words) == 2 and words[0] != "max":
            return int(words[0]) / int(words[1])
    quota, period = (
        _read(Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")),
        _read(Path("/sys/fs/cgroup/cpu/cpu.cfs_period_us")),
    )
    if quota and period and int(quota) > 0:
        return int(quota) / int(period)
    return None


def free_memory_bytes() -> int:
    """Memory that programs may still take without swapping: the machine's, or what the cgroup leaves of it."""
    free = int(psutil.virtual_memory().available)
    limit, used = (_read(Path("/sys/fs/cgroup") / name) for name in ("memory.max", "memory.current"))
    return min(free, max(0, int(limit) - int(used))) if limit.isdigit() and used.isdigit() else free


def fingerprint() -> dict[str, Any]:
    """The machine and the versions, as plain JSON values. No host name, no user, no path: reports are shown around."""
    return {
        "cpu": _cpu_model(),
        "cores": cores(),
        "logical_cpus": os.cpu_count() or 1,
        "cgroup_cores": cgroup_cores(),
        "governor": _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")) or None,
        "virtual": "hypervisor" in _read(Path("/proc/cpuinfo")),
        "memory_bytes": psutil.virtual_memory().total,
        "architecture": platform.machine(),
        "kernel": f"{platform.system()} {platform.release()}",
        "clocksource": _read(Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")) or None,
        "boot_id": boot_id(),
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "gil_enabled": gil_enabled(),
        "switch_interval_s": sys.getswitchinterval(),
        "packages": packages(),
        "sidestep": own_version(),
        "revision": _revision(),
    }


def packages() -> dict[str, str]:
    """Installed versions of everything that could matter."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def own_version() -> str:
    """Sidestep's version, or `unknown` in a checkout that was never installed."""
    try:
        return importlib.metadata.version("sidestep")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def noise_floor() -> float:
    """How much the same work varies here now: interquartile range over median of many short jobs' wall time."""
    job = tasks.jobs.JOBS["spin"]
    loops = round(units_per_ms("spin") * NOISE_JOB_MS)
    times = []
    for _ in range(NOISE_TRIES):
        begun = time.perf_counter()
        job.run(loops)
        times.append(time.perf_counter() - begun)
    low, middle, high = statistics.quantiles(times, n=4)
    return (high - low) / middle


def _cpu_model() -> str:
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        if line.lower().startswith(("model name", "hardware", "cpu model")):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _revision() -> str | None:
    if not (ROOT / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip() or None
    except (OSError, subprocess.SubprocessError):
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace").strip()
    except OSError:
        return ""
