"""Prints the one line that a person needs: where Flower is and how to log in."""

import os
import sys
from pathlib import Path

try:
    user, _, password = Path("/run/sidestep/login/flower").read_text("utf-8").partition(":")
except OSError as error:
    print(f"the login cannot be read: {error}", file=sys.stderr)
    sys.exit(2)
what = os.environ.get("FLOWER_NAME", "Flower")
print(f"{what}: http://127.0.0.1:{os.environ.get('FLOWER_PORT', '5555')}  user: {user}  password: {password}")
