"""Makes the stack's credentials at random, once, each in the volume of the one service that may read it.

Passwords that are there are kept; the brokers' lists of users are written anew from their templates each time.
"""

import base64
import contextlib
import hashlib
import os
import secrets
import sys
from pathlib import Path
from string import Template
from urllib.parse import urlsplit

HOME = Path("/run/sidestep")
TEMPLATES = Path(__file__).parent
REDIS_USERS = ("worker", "producer", "flower", "lab")
RABBITMQ_USERS = ("worker", "producer", "flower")
"""Users of each broker, each with a volume of its own in which its URLs lie: `broker` and `amqp`."""
HEALTH = "redis/health"
LOGIN = "login/flower"


def main() -> None:
    """Write what is missing."""
    os.umask(0o077)
    redis = os.environ.get("REDIS_ADDRESS", "redis:6379")
    rabbitmq = os.environ.get("RABBITMQ_ADDRESS", "rabbitmq:5672")
    hashes = {user: for_redis(password(f"{user}/broker", f"redis://{user}:%s@{redis}/0")) for user in REDIS_USERS}
    hashes["health"] = for_redis(kept(HEALTH, secrets.token_urlsafe(24)))
    fill("redis/users.acl", hashes)
    hashes = {
        user: for_rabbitmq(password(f"{user}/amqp", f"amqp://{user}:%s@{rabbitmq}/sidestep")) for user in RABBITMQ_USERS
    }
    fill("rabbitmq/definitions.json", hashes)
    kept(LOGIN, f"sidestep:{secrets.token_urlsafe(12)}")
    print("credentials are in place")


def password(name: str, url: str) -> str:
    """That of the URL which the file of this name holds; where there is none, a fresh one goes into `url`."""
    return urlsplit(kept(name, url % secrets.token_urlsafe(24))).password or ""


def kept(name: str, fresh: str) -> str:
    """What the file of this name holds; where there is none it holds `fresh` from now on."""
    path = HOME / name
    with contextlib.suppress(FileNotFoundError):
        return path.read_text("utf-8")
    write(path, fresh)
    return fresh


def fill(name: str, hashes: dict[str, str]) -> None:
    """Write the list of users of this name from its template."""
    write(HOME / name, Template((TEMPLATES / name).read_text("utf-8")).substitute(hashes))


def write(path: Path, text: str) -> None:
    """Write a file that only its owner may read; it is all there or not at all, whenever we are stopped."""
    made = path.with_name(f".{path.name}.new")
    made.unlink(missing_ok=True)
    made.write_text(text, "utf-8")
    made.chmod(0o400)
    made.replace(path)


def for_redis(word: str) -> str:
    """As Redis wants it after `#`: it keeps no password either."""
    return hashlib.sha256(word.encode()).hexdigest()


def for_rabbitmq(word: str) -> str:
    """As https://www.rabbitmq.com/docs/passwords describes it: salt, and SHA-256 of salt and password, in base64."""
    salt = secrets.token_bytes(4)
    return base64.b64encode(salt + hashlib.sha256(salt + word.encode()).digest()).decode()


if __name__ == "__main__":
    try:
        main()
    except OSError as error:
        print(f"credentials cannot be written: {error}", file=sys.stderr)
        sys.exit(2)
