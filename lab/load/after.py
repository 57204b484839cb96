"""What remains of a load test, in files: the page, and what other programs read."""

from __future__ import annotations

import webbrowser
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lab.load.export import EXPORTS
from lab.load.limit import Limit
from lab.load.model import Outcome
from lab.model import BadInput

PAGE = "report.html"


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which files are asked for."""

    html: Path | None
    csv: Path | None = None
    hlog: Path | None = None
    junit: Path | None = None
    open_it: bool = False

    @property
    def exports(self) -> Mapping[str, Path]:
        """Names in EXPORTS, and where they go."""
        asked = {"csv": self.csv, "hlog": self.hlog, "junit": self.junit}
        return {name: path for name, path in asked.items() if path is not None}


def write(outcome: Outcome, wanted: Wanted, limit: Limit | None = None) -> Iterator[tuple[str, Path]]:
    """Write each file and say so. Raises BadInput where one cannot be written."""
    for name, path in wanted.exports.items():
        _put(path, EXPORTS[name](outcome))
        yield name, path
    if wanted.html:
        from lab.load.page import page  # noqa: PLC0415  brings a plotting library that most verbs do without

        _put(wanted.html, page(outcome, limit))
        yield "page", wanted.html
        if wanted.open_it:
            webbrowser.open(wanted.html.absolute().as_uri())


def _put(target: Path, text: str) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"cannot write {target}: {error.strerror}; choose another place") from None
