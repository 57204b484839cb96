"""Flower's settings: who may log in comes from a file, so that no process list and no environment shows it."""

from pathlib import Path

from tasks.logs import to_json, wants_json

address, port = "0.0.0.0", 5555  # noqa: S104  inside its container; compose.yaml publishes it on loopback alone
basic_auth = [Path("/run/sidestep/login/flower").read_text("utf-8").strip()]
# Memory is bounded by what it remembers.
max_tasks, max_workers = 5000, 100
# A worker that was removed leaves the page some minutes later.
purge_offline_workers = 300
# A worker under a CPU limit may need longer than the second that Flower would wait.
inspect_timeout = 5000.0
if wants_json():
    to_json()
