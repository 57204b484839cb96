"""Makes the stack's credentials at random, once, each in the volume of the one service that may read it.

Passwords that are there are kept; Redis's list of users is written anew from its template each time.
"""

import contextlib
import hashlib
import os
import secrets
import sys
from pathlib import Path
from string import Template

HOME = Path("/run/sidestep")
TEMPLATE = Path(__file__).parent / "redis" / "users.acl"
CLIENTS = ("worker", "producer", "flower", "lab")
"""Users of Redis, each with a volume of its own in which its URL lies."""
HEALTH = "redis/health"
LOGIN = "login/flower"


def main() -> None:
    """Write what is missing."""
    os.umask(0o077)
    server = os.environ.get("REDIS_ADDRESS", "redis:6379")
    hashes = {"health": digest(kept(HEALTH, secrets.token_urlsafe(24)))}
    for user in CLIENTS:
        url = kept(f"{user}/broker", f"redis://{user}:{secrets.token_urlsafe(24)}@{server}/0")
        hashes[user] = digest(url.removeprefix(f"redis://{user}:").partition("@")[0])
    kept(LOGIN, f"sidestep:{secrets.token_urlsafe(12)}")
    write(HOME / "redis" / "users.acl", Template(TEMPLATE.read_text("utf-8")).substitute(hashes))
    print("credentials are in place")


def kept(name: str, fresh: str) -> str:
    """What the file of this name holds; where there is none it holds `fresh` from now on."""
    path = HOME / name
    with contextlib.suppress(FileNotFoundError):
        return path.read_text("utf-8")
    write(path, fresh)
    return fresh


def write(path: Path, text: str) -> None:
    """Write a file that only its owner may read; it is all there or not at all, whenever we are stopped."""
    made = path.with_name(f".{path.name}.new")
    made.unlink(missing_ok=True)
    made.write_text(text, "utf-8")
    made.chmod(0o400)
    made.replace(path)


def digest(password: str) -> str:
    """As Redis wants it after `#`: it keeps no password either."""
    return hashlib.sha256(password.encode()).hexdigest()


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        print(f"credentials cannot be written: {error}", file=sys.stderr)
        sys.exit(2)
