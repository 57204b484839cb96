"""Prints what the image installs: those of the project's own requirements that its arguments name, or an extra's.

`requirements.py click celery +flower` names two dependencies and one extra. The image measures nothing, so it needs no
NumPy and no Matplotlib; versions stay where they are, in pyproject.toml and constraints.txt.
"""

import re
import sys
import tomllib
from pathlib import Path


def wanted(project: dict, names: list[str]) -> list[str]:
    """The requirement lines, in order. Raises KeyError for a name that the project does not have."""
    own = {re.match(r"[\w.-]+", line)[0]: line for line in project["dependencies"]}
    extras = project["optional-dependencies"]
    return [line for name in names for line in (extras[name[1:]] if name.startswith("+") else [own[name]])]


if __name__ == "__main__":
    print("\n".join(wanted(tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"], sys.argv[1:])))
