"""A TOML table whose keys are asked for one by one; what is wrong is one line with the file and the line in it."""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lab.load import lines
from lab.model import BadInput

MOST_HZ = 1e6
"""No broker that Celery speaks to takes a tenth of it."""
MEASURE = re.compile(r"(\d+(?:\.\d+)?(?:[eE]\+?\d+)?)\s*([a-zA-Z/]*)")
_UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_UNITS_HZ = {"": 1.0, "/s": 1.0, "/min": 1 / 60, "/h": 1 / 3600}
_VARIABLE = re.compile(r"(\$?)\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")


class File:
    """Knows where everything is, and what variables are."""

    def __init__(self, path: Path, found: Mapping[lines.Path, int], environ: Mapping[str, str]) -> None:
        self.path, self._found, self.environ = path, found, environ

    def line(self, path: lines.Path) -> int:
        """Of this key."""
        return lines.nearest(self._found, path)

    def fail(self, path: lines.Path, words: str) -> NoReturn:
        """Raise BadInput."""
        raise BadInput(f"{self.path}:{self.line(path)}: {words}")

    def filled(self, value: Any, path: lines.Path) -> Any:
        """The value with variables filled in; text that is nothing but one becomes the number that it spells."""
        if isinstance(value, list):
            return [self.filled(one, (*path, place)) for place, one in enumerate(value)]
        if isinstance(value, dict):
            return {name: self.filled(one, (*path, name)) for name, one in value.items()}
        if not isinstance(value, str) or "${" not in value:
            return value

        def of(match: re.Match[str]) -> str:
            if match[1]:
                return match[0][1:]  # $${NAME} is ${NAME}
            found = self.environ.get(match[2], "")
            if not found and match[3] is None:
                self.fail(
                    path, f"the environment variable {match[2]} is not set; set it, or write ${{{match[2]}:-default}}"
                )
            return found or match[3] or ""

        text = _VARIABLE.sub(of, value)
        alone = _VARIABLE.fullmatch(value)
        return _scalar(text) if alone and not alone[1] else text


def _scalar(text: str) -> Any:
    """What TOML would read there, where it is a number or a truth value; else the text."""
    try:
        value = tomllib.loads(f"x = {text}")["x"] if "\n" not in text else text
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, int | float) else text


class Table:
    """A table of the file; each key is asked for once, and what is left at the end was misspelt."""

    def __init__(self, file: File, path: lines.Path, values: Mapping[str, Any]) -> None:
        self.file, self.path = file, path
        self._values = dict(values)
        self._asked: set[str] = set()

    @property
    def line(self) -> int:
        """Where it begins."""
        return self.file.line(self.path)

    def fail(self, words: str, key: str | None = None) -> NoReturn:
        """Raise BadInput at a key, or at the table."""
        self.file.fail((*self.path, key) if key else self.path, words)

    def has(self, key: str) -> bool:
        """Whether the key is there."""
        self._asked.add(key)
        return key in self._values

    def raw(self, key: str, default: Any = None) -> Any:
        """Its value with variables filled in."""
        self._asked.add(key)
        if key not in self._values:
            return default
        return self.file.filled(self._values[key], (*self.path, key))

    def need(self, key: str, what: str) -> Any:
        """As `raw`, for a key that must be there."""
        if key not in self._values:
            self._asked.add(key)
            self.fail(f"{what} needs {key!r}")
        return self.raw(key)

    def text(self, key: str, default: str = "") -> str:
        """Text."""
        value = self.raw(key, default)
        if not isinstance(value, str):
            self.fail(f"{key} must be text, not {shown(value)}", key)
        return value

    def one_of(self, key: str, choices: Iterable[str], default: str) -> str:
        """One of some words."""
        value, words = self.raw(key, default), list(choices)
        if value not in words:
            self.fail(f"{key} must be one of {', '.join(words)}, not {shown(value)}{nearest(value, words)}", key)
        return str(value)

    def truth(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self.raw(key, default)
        if not isinstance(value, bool):
            self.fail(f"{key} must be true or false, not {shown(value)}", key)
        return value

    def whole(self, key: str, default: int | None, *, least: int, most: int) -> int | None:
        """A whole number within bounds."""
        value = self.raw(key, default)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            self.fail(f"{key} must be a whole number from {least} to {most}, not {shown(value)}", key)
        return value

    def number(self, key: str, default: float | None = None, *, zero: bool = False, what: str = "") -> float:
        """A number above 0, or of 0 and more."""
        value = self.need(key, what) if default is None else self.raw(key, default)
        return self._above(key, value, value, zero)

    def duration_s(self, key: str, default: float | None = None, *, zero: bool = False, what: str = "") -> float:
        """A time such as 500ms, 10s, 2m or a number of seconds."""
        value = self.need(key, what) if default is None else self.raw(key, default)
        return self._above(key, measured(value, _UNITS_S), value, zero, "such as 500ms, 10s or 2m")

    def maybe_s(self, key: str) -> float | None:
        """As `duration_s`, or None where the key is not there."""
        return self.duration_s(key, zero=True) if self.has(key) else None

    def rate_hz(self, key: str, default: float | None = None, *, zero: bool = False, what: str = "") -> float:
        """Jobs a second, or such as 600/min."""
        value = self.need(key, what) if default is None else self.raw(key, default)
        return self._rate(key, value, zero)

    def rates_hz(self, key: str, what: str) -> list[float]:
        """Several rates."""
        values = self.need(key, what)
        if not isinstance(values, list) or not values:
            self.fail(f"{key} must be a list of rates, not {shown(values)}", key)
        return [self._rate(key, value, True) for value in values]

    def _rate(self, key: str, value: Any, zero: bool) -> float:
        rate = self._above(key, measured(value, _UNITS_HZ), value, zero, "in jobs a second, or such as 600/min")
        if rate > MOST_HZ:
            self.fail(f"{key} of {rate:g} jobs/s is impossible: no broker takes more than {MOST_HZ:g}", key)
        return rate

    def _above(self, key: str, number: Any, value: Any, zero: bool, form: str = "") -> float:
        known = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
        if not known or number < 0 or (number == 0 and not zero):
            least = "of 0 or more" if zero else "above 0"
            self.fail(f"{key} must be a number {least}{', ' + form if form else ''}, not {shown(value)}", key)
        return float(number)

    def tables(self, key: str) -> list[Table]:
        """The tables [[key]], or the one [key]."""
        self._asked.add(key)
        value = self._values.get(key, [])
        if isinstance(value, dict):
            return [Table(self.file, (*self.path, key), value)]
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            self.fail(f"{key} must be tables, written [[{key}]]", key)
        return [Table(self.file, (*self.path, key, place), one) for place, one in enumerate(value)]

    def table(self, key: str) -> Table | None:
        """The table [key], or None."""
        found = self.tables(key)
        if len(found) > 1:
            found[1].fail(f"there can be one [{key}] only")
        return found[0] if found else None

    def done(self, what: str, known: Sequence[str] = ()) -> None:
        """Raise BadInput for a key that nobody asked for."""
        for key in self._values:
            if key not in self._asked:
                names = list(known or sorted(self._asked))
                self.fail(f"{what} has no key {key!r}{nearest(key, names)}; it has: {', '.join(names)}", key)


def shown(value: Any) -> str:
    """A value in a complaint, not too long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def nearest(word: object, words: Sequence[str]) -> str:
    """`; did you mean 'x'?`, or nothing when nothing is near."""
    close = difflib.get_close_matches(str(word), words, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def measured(value: Any, units: Mapping[str, float]) -> Any:
    """Text with a unit as a number; anything else as it is."""
    if isinstance(value, str) and (match := MEASURE.fullmatch(value.strip())) and match[2] in units:
        return float(match[1]) * units[match[2]]
    return value
