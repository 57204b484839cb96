"""Whether a worker should live on, for what ends the unhealthy: it fails only over what a fresh worker would mend.

While the broker is away nobody can ask the worker, and a fresh one would not help: jobs would die for nothing.
"""

import os
import sys
from pathlib import Path

from tasks.health import WORKER_FILE, NotAsked, Unwell, worker
from tasks.settings import SettingsError

try:
    print(worker(failures=None))
except (NotAsked, SettingsError) as why:
    # Before it was ready for the first time nobody loses anything.
    if not Path(os.environ.get(WORKER_FILE, "")).is_file():
        sys.exit(f"{why}")
    print(f"not asked: {why}")
except Unwell as why:
    sys.exit(f"{why}")
