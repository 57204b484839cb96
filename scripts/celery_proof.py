"""Celery's own integration tests, run with Sidestep's transport.

Run as `.venv/bin/python -m scripts.celery_proof [--stock] [OPTION OF PYTEST ...]` from the checkout, such as
`-k retry`. Fetches the source of the installed Celery from the package index, takes the tests out of it, starts a
private server, and runs them with a prefork worker whose `broker_transport` is this one; with `--stock` kombu's own.
What they need besides lies in a folder of its own, gone afterwards. Tests that Celery marks as flaky are run up to five
times more, as in its own CI. Exit status as pytest's.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import redis

from lab.broker import own_server
from lab.children import Children
from scripts.transport_proof import ROOT, source

MODULES = ("test_tasks", "test_canvas", "test_inspect", "test_worker", "test_group_chains")
"""Of t/integration, those about jobs and workers; others are about other backends, files, certificates and leaks."""
BESIDES = ("pydantic==2.14.3", "pytest-rerunfailures==16.7", "pytest-timeout==2.4.0")
CONFIG = "integration-tests-config.json"
"""What Celery's tests read their changes of configuration from."""
LEFT_OUT: Mapping[str, str] = {
    "test_worker.py::test_django_fixup_direct_worker": "it needs Django",
    "test_worker.py::test_django_fixup_installs_django_task_for_celery_subclass": "it needs Django",
}
"""By name, and why."""
LONGEST_S = 1800


def run(folder: Path, environ: Mapping[str, str], *options: str) -> int:
    """pytest on these tests; its exit status."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--tb=short", "-W", "ignore", "-p", "celery.contrib.pytest", *options],
        cwd=folder,
        env={**os.environ, **environ},
        timeout=LONGEST_S,
        check=False,
    ).returncode


def main() -> None:
    """Fetch and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stock", action="store_true", help="with kombu's own transport")
    asked, options = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as name, Children() as children, own_server(children) as broker:
        folder = source(Path(name), "celery")
        changes = {} if asked.stock else {"broker_transport": "sidestep_transport:Transport"}
        (folder / CONFIG).write_text(json.dumps(changes))
        # Their connection to the server knows no password; this one serves nobody else, and only on the loopback.
        with redis.Redis.from_url(broker.url) as client:
            client.config_set("requirepass", "")
        port = str(urlsplit(broker.url).port)
        url = f"redis://127.0.0.1:{port}/0"
        environ = {"TEST_BROKER": url, "TEST_BACKEND": url, "REDIS_HOST": "127.0.0.1", "REDIS_PORT": port}
        besides = Path(name) / "besides"
        pip = [sys.executable, "-m", "pip", "install", "-q", "--target", str(besides)]
        subprocess.run([*pip, *BESIDES], check=True)
        environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
        environ["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(besides)))
        chosen = [
            f"t/integration/{module}.py" for module in MODULES if (folder / f"t/integration/{module}.py").exists()
        ]
        without = [f"--deselect=t/integration/{name}" for name in LEFT_OUT]
        status = run(folder, environ, *chosen, *without, *options)
    for reason in dict.fromkeys(LEFT_OUT.values()):
        print(f"left out, {sum(each == reason for each in LEFT_OUT.values())} names: {reason}")
    sys.exit(status)


if __name__ == "__main__":
    main()
