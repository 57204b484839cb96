"""A search for the highest rate on disk: a folder with one load result a run, and a file that says which is which.

Schema 1 (Sidestep 0.1): limit.json holds `kind` "load-limit", the fields of `lab.load.model.Search`, and `rates_hz` in
the order in which they were tried. The run of number i is the load result in the folder run-i, counted from 1. What the
runs add up to is not stored: it is found again whenever the folder is read.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from lab.load import limit, store
from lab.load.limit import Limit
from lab.load.model import SCHEMA, Arrivals, Outcome, Search
from lab.model import BadInput, LabError

FILE = "limit.json"
KIND = "load-limit"


def run_folder(directory: Path, number: int) -> Path:
    """Where the run of this number is kept, counted from 1."""
    return directory / f"run-{number}"


def save(directory: Path, search: Search, rates_hz: Sequence[float]) -> Path:
    """Write which rates were tried. Raises LabError when it cannot."""
    body = {"schema": SCHEMA, "kind": KIND, "search": dataclasses.asdict(search), "rates_hz": list(rates_hz)}
    path = directory / FILE
    try:
        directory.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(body, allow_nan=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise LabError(f"cannot write {path}: {error.strerror}; choose another place with --out") from None
    return path


def is_search(path: Path) -> bool:
    """Whether a search is kept there."""
    return (path / FILE).is_file() or (path.name == FILE and path.is_file())


def load(path: Path) -> tuple[Outcome, Limit]:
    """The last run of a search, and what all of them add up to. Raises BadInput when they cannot be read."""
    directory = path if path.is_dir() else path.parent
    file = directory / FILE
    try:
        body = json.loads(file.read_text("utf-8"))
        if body["kind"] != KIND or body["schema"] > SCHEMA:
            raise ValueError("it is of another kind, or of a newer Sidestep")
        told = {**body["search"], "arrivals": Arrivals(body["search"]["arrivals"])}
        search, rates_hz = limit.check(Search(**told)), [float(rate) for rate in body["rates_hz"]]
        if not rates_hz:
            raise ValueError("no rate was tried")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{file} is no search that can be read ({error}); name the folder of a search") from None
    probes, outcome = [], None
    for number, rate_hz in enumerate(rates_hz, 1):
        outcome = store.load(run_folder(directory, number))
        probes.append(limit.probe(search, rate_hz, outcome))
    assert outcome is not None  # noqa: S101  there was a rate
    return outcome, limit.answer(search, probes)
