"""A suite on disk: one JSON file.

Schema 1 (Sidestep 0.1):
    schema, written_by, environment, experiments, seed, repeats, quick, left_out, runs: [{trial, ledger, resources,
    processes, retakes, last_words, samples}].  `samples` holds `n` and one column a name of SAMPLE_COLUMNS:
    differences of int64 values, little-endian, zlib, base64.  Verdicts and faults are not stored: they are found from
    the runs.
Schema 2: setups also hold packages, beside, apart, apart_concurrency and disable_prefetch; samples have the columns
    `beside` and `value`, which are all 0 in a suite of schema 1.
Schema 3: setups also hold codec, compression, argsrepr, base64, results, rtt_ms and steps; resources hold
    message_bytes, sent_by and collect_s; a run may hold `steps`, with one column a name of STEP_COLUMNS, as `samples`.
Schema 4: setups also hold events, knobs, arena and cpus; resources hold watcher_cpu_s and watcher_ends; a run may hold
    `changes`, and its `steps` have the column `acked_ns`, which is all 0 where a suite lacks it.
Schema 5: setups also hold heartbeat_s; a run may hold `beats_ns`.
A later version reads every earlier schema. `suite.json.xz` is such a file compressed by xz.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import os
import types
import typing
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lab.checks import faults
from lab.model import (
    SAMPLE_COLUMNS,
    STEP_COLUMNS,
    BadInput,
    Change,
    FrozenArgs,
    LabError,
    Ledger,
    Load,
    Resources,
    Run,
    Samples,
    Setup,
    Steps,
    Suite,
    Trial,
)
from producer import pacers, payloads
from producer.pacers import Pacer

_T = TypeVar("_T")

SCHEMA = 5
FILE = "suite.json"
PACKED = f"{FILE}.xz"
"""The same file, compressed: to be kept and shown around. Only `load` knows it."""

# Values that a Setup may hold, by the name they are stored under.
_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        pacers.Constant,
        pacers.Poisson,
        pacers.Burst,
        pacers.Ramp,
        pacers.Steps,
        pacers.Replay,
        pacers.Closed,
        payloads.EachJob,
        payloads.Calibrated,
        payloads.Sometimes,
        payloads.Upstream,
        payloads.Text,
        payloads.Payload,
        payloads.Referred,
        payloads.Cycle,
        Load,
    )
}


SINCE_2 = frozenset({"beside", "value"})
"""Columns that a suite of schema 1 lacks."""


def runs_home() -> Path:
    """Where suites are kept: SIDESTEP_RUNS, else `runs` here."""
    return Path(os.environ.get("SIDESTEP_RUNS") or "runs")


class SuiteFile:
    """Where one suite is kept. A run is encoded once, however often the file is written."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE
        self._encoded: dict[int, tuple[Run, str]] = {}

    def save(self, suite: Suite) -> None:
        """Write the whole suite in one step: a crash leaves the file as it was. Raises LabError when it cannot."""
        runs = []
        for run in suite.runs:
            if id(run) not in self._encoded:
                self._encoded[id(run)] = (run, json.dumps(_run_to_json(run)))
            runs.append(self._encoded[id(run)][1])
        document = {
            "schema": SCHEMA,
            "written_by": f"sidestep {suite.environment.get('sidestep', '')}".strip(),
            "environment": suite.environment,
            "experiments": list(suite.experiments),
            "seed": suite.seed,
            "repeats": dict(suite.repeats),
            "quick": suite.quick,
            "left_out": dict(suite.left_out),
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            fresh = self.path.with_suffix(".json.new")
            with fresh.open("w", encoding="utf-8") as file:
                # Run by run, on a line each, so that writing costs little however many there are.
                file.write(json.dumps(document, indent=1).removesuffix("\n}"))
                file.write(',\n "runs": [\n')
                file.write(",\n".join(runs))
                file.write("\n]\n}\n")
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.path)
        except OSError as error:
            raise LabError(f"cannot write {self.path}: {error.strerror}; choose another place with --out") from None


def load(path: Path) -> Suite:
    """The suite in a file, or in the folder that holds it. Raises BadInput when there is none that can be read.

    A file whose name ends in `.xz` is decompressed; a folder is searched for one when it holds no other.
    """
    file = path
    if path.is_dir():
        file = path / PACKED if (path / PACKED).exists() and not (path / FILE).exists() else path / FILE
    try:
        document = json.loads(_text(file))
    except FileNotFoundError:
        raise BadInput(f"there is no suite at {path}; `sidestep run NAME --out {path}` makes one") from None
    except (OSError, ValueError, ImportError, RecursionError) as error:
        raise BadInput(f"{file} is not a suite that can be read ({error}); name the suite.json of a run") from None
    schema = document.get("schema") if isinstance(document, dict) else None
    if not isinstance(schema, int):
        raise BadInput(f"{file} is JSON but not a suite; name the suite.json of a run")
    if schema > SCHEMA:
        raise BadInput(f"{file} has schema {schema} and this Sidestep reads up to {SCHEMA}; use a newer Sidestep")
    try:
        return _checked(
            Suite(
                environment=document["environment"],
                experiments=tuple(document["experiments"]),
                runs=tuple(_run_from_json(run, schema) for run in document["runs"]),
                seed=document["seed"],
                repeats=document["repeats"],
                quick=document["quick"],
                left_out=document["left_out"],
            )
        )
    except (KeyError, TypeError, ValueError, AttributeError, LabError, zlib.error, binascii.Error) as error:
        raise BadInput(f"{file} is damaged ({type(error).__name__}: {error}); run the experiment again") from None


def _text(file: Path) -> str:
    if file.suffix != ".xz":
        return file.read_text("utf-8")
    import lzma  # noqa: PLC0415  some Pythons are built without it, and need it only here

    try:
        return lzma.decompress(file.read_bytes()).decode("utf-8")
    except lzma.LZMAError as error:
        raise ValueError(str(error)) from None


def _run_to_json(run: Run) -> dict[str, Any]:
    return {
        "trial": {
            "experiment": run.trial.experiment,
            "repeat": run.trial.repeat,
            "setup": {f.name: _pack(getattr(run.trial.setup, f.name)) for f in dataclasses.fields(Setup)},
        },
        "ledger": dataclasses.asdict(run.ledger),
        "resources": dataclasses.asdict(run.resources),
        "processes": list(run.processes),
        "retakes": run.retakes,
        "last_words": run.last_words,
        "samples": {"n": len(run.samples), **{name: encode(getattr(run.samples, name)) for name in SAMPLE_COLUMNS}},
        **({"steps": {name: encode(getattr(run.steps, name)) for name in STEP_COLUMNS}} if run.steps else {}),
        **({"changes": [dataclasses.asdict(change) for change in run.changes]} if run.changes else {}),
        **({"beats_ns": list(run.beats_ns)} if run.beats_ns else {}),
    }


def _run_from_json(raw: Mapping[str, Any], schema: int) -> Run:
    trial, samples = raw["trial"], raw["samples"]
    setup = _checked(Setup(**{name: _unpack(value) for name, value in trial["setup"].items()}))
    setup = dataclasses.replace(setup, args=FrozenArgs(setup.args))
    if setup.beside:
        beside = _checked(setup.beside)
        setup = dataclasses.replace(setup, beside=dataclasses.replace(beside, args=FrozenArgs(beside.args)))
    columns = {
        name: np.zeros(samples["n"], np.int64) if schema < 2 and name in SINCE_2 else decode(samples[name])
        for name in SAMPLE_COLUMNS
    }
    steps = {"acked_ns": np.zeros(samples["n"], np.int64)} if "steps" in raw else {}
    steps.update({name: decode(text) for name, text in raw.get("steps", {}).items()})
    if {len(column) for column in (*columns.values(), *steps.values())} != {samples["n"]}:
        raise ValueError("columns of unequal length")
    run = Run(
        trial=_checked(Trial(trial["experiment"], setup, trial["repeat"])),
        samples=Samples(**columns),
        ledger=_checked(Ledger(**raw["ledger"])),
        resources=_checked(Resources(**raw["resources"])),
        processes=tuple(raw["processes"]),
        retakes=raw["retakes"],
        last_words=raw["last_words"],
        steps=Steps(**steps) if steps else None,
        changes=tuple(_checked(Change(**change)) for change in raw.get("changes", ())),
        beats_ns=tuple(raw.get("beats_ns", ())),
    )
    # Found again, like verdicts: a better check judges old runs too.
    return dataclasses.replace(_checked(run), faults=faults(run))


def _pack(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _pack(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"is": type(value).__name__, **fields}
    if isinstance(value, Mapping):
        return {name: _pack(inner) for name, inner in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _unpack(value: Any) -> Any:
    if isinstance(value, dict):
        fields = {name: _unpack(inner) for name, inner in value.items() if name != "is"}
        return _checked(_KINDS[value["is"]](**fields)) if "is" in value else fields
    return tuple(value) if isinstance(value, list) else value


def _checked(value: _T) -> _T:
    """The instance itself, if every field holds what its annotation says. Raises TypeError naming the field."""
    for name, hint in typing.get_type_hints(type(value)).items():
        if not _conforms(getattr(value, name), hint):
            raise TypeError(f"{type(value).__name__}.{name} is {getattr(value, name)!r:.60}")
    return value


def _conforms(value: object, hint: Any) -> bool:
    """Whether the value is of the annotated type, as deep as a damaged file makes it worth looking."""
    if hint is Any:
        return True
    if hint is Pacer:
        return type(value).__module__ == pacers.__name__
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return any(_conforms(value, one) for one in typing.get_args(hint))
    kind = typing.get_origin(hint) or hint
    if kind is Mapping:
        _, inner = typing.get_args(hint)
        return isinstance(value, Mapping) and all(_conforms(one, inner) for one in value.values())
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def encode(column: NDArray[np.int64]) -> str:
    """Int64 values as text: their differences, compressed. Neighbours are close, so most bytes are zero."""
    deltas = np.diff(column, prepend=np.int64(0)).astype("<i8")
    return base64.b64encode(zlib.compress(deltas.tobytes(), 6)).decode("ascii")


def decode(text: str) -> NDArray[np.int64]:
    """The values again, exactly."""
    deltas = np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), dtype="<i8")
    return np.cumsum(deltas, dtype=np.int64)
