"""An outcome on disk: one JSON file.

Schema 1 (Sidestep 0.1): `kind` is "load"; beside it the fields of `lab.load.model.Outcome` by name. A histogram is its
encoded form (HdrHistogram V2, compressed, base64) with its exact extremes and sum in ns. What may hold a password, the
URLs of brokers, is not stored. Verdicts of thresholds are stored as they were printed; faults too.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import types
import typing
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from lab.load.hdr import Histogram, decoded
from lab.load.model import KIND, SCHEMA, Drawn, Made, Numbered, Outcome
from lab.model import BadInput, LabError

FILE = "load.json"
MOST_BYTES = 1 << 30
_GENERATORS = {kind.__name__: kind for kind in (Drawn, Numbered, Made)}
"""What may stand for an argument, by the name it is stored under."""


def save(outcome: Outcome, directory: Path) -> Path:
    """Write the outcome in one step and return the file. Raises LabError when it cannot."""
    path = directory / FILE
    try:
        directory.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".json.new")
        with fresh.open("w", encoding="utf-8") as file:
            json.dump(to_json(outcome), file, ensure_ascii=False, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        raise LabError(f"cannot write {path}: {error.strerror}; choose another place with --out") from None
    return path


def load(path: Path) -> Outcome:
    """The outcome in a file, or in the folder that holds it. Raises BadInput when there is none that can be read."""
    file = path / FILE if path.is_dir() else path
    try:
        if file.stat().st_size > MOST_BYTES:
            raise ValueError("it is too large")
        document = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise BadInput(f"there is no load result at {path}; `sidestep load SCENARIO --out {path}` makes one") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BadInput(f"{file} is not a load result that can be read ({error}); name the {FILE} of a run") from None
    return from_json(document, str(file))


def is_outcome(document: Any) -> bool:
    """Whether a parsed JSON file holds an outcome, of whatever schema."""
    return isinstance(document, dict) and document.get("kind") == KIND


def to_json(outcome: Outcome) -> dict[str, Any]:
    """The outcome as plain JSON values."""
    return {"schema": SCHEMA, "kind": KIND, **packed(outcome)}


def from_json(document: Any, where: str) -> Outcome:
    """The outcome in a parsed file. Raises BadInput, naming `where`, for anything else."""
    if not is_outcome(document) or not isinstance(document.get("schema"), int):
        raise BadInput(f"{where} is no load result; name the {FILE} of a run")
    if document["schema"] > SCHEMA:
        raise BadInput(
            f"{where} has schema {document['schema']} and this Sidestep reads up to {SCHEMA}; use a newer Sidestep"
        )
    try:
        outcome = unpacked(Outcome, {k: v for k, v in document.items() if k not in {"schema", "kind"}})
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, LabError) as error:
        raise BadInput(f"{where} is damaged ({type(error).__name__}: {error}); run the load test again") from None
    assert isinstance(outcome, Outcome)  # noqa: S101  says so to the type checker
    return outcome


def packed(value: Any) -> Any:  # noqa: PLR0911  one a kind of value
    """A value of `lab.load.model` as plain JSON values."""
    if isinstance(value, Histogram):
        return {"hdr": value.encoded(), "min_ns": value.min_ns, "max_ns": value.max_ns, "sum_ns": value.sum_ns}
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # What is left out of a repr may hold a password.
        fields = {f.name: packed(getattr(value, f.name)) for f in dataclasses.fields(value) if f.repr}
        return {"is": type(value).__name__, **fields} if type(value).__name__ in _GENERATORS else fields
    if isinstance(value, Mapping):
        return {str(name): packed(inner) for name, inner in value.items()}
    if isinstance(value, tuple | list):
        return [packed(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else math.copysign(1e308, value)
    return value


def unpacked(hint: Any, raw: Any) -> Any:  # noqa: PLR0911  one a kind of annotation
    """The value again, of the annotated type. Raises TypeError, ValueError or KeyError for anything else."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return _plain(raw)
    if origin in (types.UnionType, typing.Union):
        return _either(inner, raw)
    if hint is Histogram:
        return decoded(
            _is(raw["hdr"], str), min_ns=_is(raw["min_ns"], int), max_ns=_is(raw["max_ns"], int), sum_ns=raw["sum_ns"]
        )
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        hints = typing.get_type_hints(hint)
        known = {f.name for f in dataclasses.fields(hint) if f.repr}
        if unknown := set(_is(raw, dict)) - known - {"is"}:
            raise ValueError(f"{hint.__name__} has no {', '.join(sorted(unknown))}")
        return hint(**{name: unpacked(hints[name], value) for name, value in raw.items() if name != "is"})
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(raw)
    if origin is tuple:
        _is(raw, list)
        if inner[-1] is Ellipsis:
            return tuple(unpacked(inner[0], one) for one in raw)
        return tuple(unpacked(one, value) for one, value in zip(inner, raw, strict=True))
    if origin is Mapping:
        return {name: unpacked(inner[1], value) for name, value in _is(raw, dict).items()}
    if hint is float:
        return math.nan if raw is None else float(_is(raw, int | float))
    return _is(raw, hint)


def _either(kinds: tuple[Any, ...], raw: Any) -> Any:
    if raw is None and type(None) in kinds:
        return None
    if isinstance(raw, dict) and raw.get("is") in _GENERATORS:
        return unpacked(_GENERATORS[raw["is"]], raw)
    rest = [kind for kind in kinds if kind is not type(None)]
    if len(rest) == 1:
        return unpacked(rest[0], raw)
    return _plain(raw)


def _plain(raw: Any) -> Any:
    """JSON as our values hold it: lists as tuples."""
    if isinstance(raw, list):
        return tuple(_plain(one) for one in raw)
    if isinstance(raw, dict):
        return {name: _plain(one) for name, one in raw.items()}
    return raw


def _is(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{value!r:.60} is not {kind}")
    return value
