"""Spells what `docker compose config --format json` prints as `docker stack deploy` reads it: same stack, other words.

Its reader of files is an older one. It refuses the project's name, the order of start, profiles, and numbers where it
expects text; what it knows and Swarm lacks it names itself when it deploys.
"""

import json
import sys
from typing import Any


def rendered(project: dict[str, Any]) -> dict[str, Any]:
    """The stack of a compose project. Pure."""
    services = {name: _service(dict(service)) for name, service in project["services"].items()}
    kept = {part: _unnamed(part, project) for part in ("networks", "volumes", "secrets") if part in project}
    return {"version": "3.13", "services": services, **kept}


def _service(service: dict[str, Any]) -> dict[str, Any]:
    for name in ("build", "depends_on", "profiles", "restart", "security_opt"):
        service.pop(name, None)
    limits = service.get("deploy", {}).get("resources", {}).get("limits", {})
    if "cpus" in limits:
        limits["cpus"] = str(limits["cpus"])
    for secret in service.get("secrets", ()):
        if isinstance(secret.get("mode"), str):
            secret["mode"] = int(secret["mode"], 8)
    for port in service.get("ports", ()):
        port["published"] = int(port["published"])
    for volume in service.get("volumes", ()):
        if "tmpfs" in volume and isinstance(volume["tmpfs"].get("size"), str):
            volume["tmpfs"]["size"] = int(volume["tmpfs"]["size"])
    return {name: value for name, value in service.items() if value is not None}


def _unnamed(part: str, project: dict[str, Any]) -> dict[str, Any]:
    """Without the names that the project has given: the stack has one of its own. Those of secrets are their own."""
    found = {name: dict(value or {}) for name, value in project[part].items()}
    if part != "secrets":
        for value in found.values():
            value.pop("name", None)
            value.pop("ipam", None)
    return found


if __name__ == "__main__":
    json.dump(rendered(json.load(sys.stdin)), sys.stdout, indent=1)
