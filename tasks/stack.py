"""The app as the containers run it: `celery -A tasks.stack worker`. It can be asked how it is, and may log as JSON."""

from __future__ import annotations

import sys

from tasks import health, logs
from tasks.app import app_from_env
from tasks.settings import SettingsError

try:
    logs.connect()
except SettingsError as error:
    print(f"sidestep: {error}", file=sys.stderr)
    raise SystemExit(2) from None
health.connect()
app = app_from_env()
