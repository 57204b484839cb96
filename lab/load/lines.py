"""Which line of a TOML file says what: `tomllib` does not tell, and a complaint without its line is half a complaint.

Only for text that `tomllib` has read: what is no TOML was refused before, so a value's end is found by its brackets and
quotes alone. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

Path = tuple[str | int, ...]
"""Such as ("job", 1, "weight"): keys of tables, and places in arrays."""

_KEY = r"""(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')"""
_HEADER = re.compile(rf"[ \t]*(\[\[?)[ \t]*({_KEY}(?:[ \t]*\.[ \t]*{_KEY})*)[ \t]*\]")
_ASSIGNED = re.compile(rf"[ \t]*({_KEY}(?:[ \t]*\.[ \t]*{_KEY})*)[ \t]*=[ \t]*")
_PART = re.compile(_KEY)


def lines(text: str) -> Mapping[Path, int]:
    """The line of each table, key and item of an array, counted from 1."""
    text = text.replace("\r\n", "\n")
    found: dict[Path, int] = {(): 1}
    arrays: dict[Path, int] = {}
    table: Path = ()
    at, line = 0, 1
    while at < len(text):
        if match := _HEADER.match(text, at):
            name = _parts(match[2])
            table = _within(name[:-1], arrays) + name[-1:]
            if match[1] == "[[":
                arrays[table] = arrays.get(table, -1) + 1
                found.setdefault(table, line)
                table = (*table, arrays[table])
            found[table] = line
        elif match := _ASSIGNED.match(text, at):
            path = table + _parts(match[1])
            found[path] = line
            end = match.end()
            for place, item_at in enumerate(_items(text, end)):
                found[(*path, place)] = line + text.count("\n", at, item_at)
            end = _end(text, end)
            line += text.count("\n", at, end)
            at = end
        newline = text.find("\n", at)
        if newline < 0:
            break
        at, line = newline + 1, line + 1
    return found


def nearest(found: Mapping[Path, int], path: Path) -> int:
    """The line of this path, or of the nearest thing around it."""
    while path not in found and path:
        path = path[:-1]
    return found.get(path, 1)


def _parts(dotted: str) -> Path:
    return tuple(part.strip("\"'") for part in _PART.findall(dotted))


def _within(name: Path, arrays: Mapping[Path, int]) -> Path:
    """A name with the places of the arrays of tables that it goes through."""
    path: Path = ()
    for part in name:
        path = (*path, part)
        if path in arrays:
            path = (*path, arrays[path])
    return path


def _tokens(text: str, at: int) -> Iterator[tuple[int, str]]:
    """Brackets, commas, line breaks and other characters from there on, strings and comments left out."""
    while at < len(text):
        char = text[at]
        if char in "\"'":
            mark = char * 3 if text.startswith(char * 3, at) else char
            yield at, "string"
            at += len(mark)
            while at < len(text) and not text.startswith(mark, at):
                at += 2 if char == '"' and text[at] == "\\" else 1
            at += len(mark)
            while len(mark) == 3 and at < len(text) and text[at] == char:
                at += 1  # quotes that belong to the text stand before the closing ones
            continue
        if char == "#":
            at = text.find("\n", at)
            if at < 0:
                return
            continue
        yield at, char
        at += 1


def _end(text: str, at: int) -> int:
    """Where the value that begins there ends: at a line break outside of all brackets."""
    depth = 0
    for place, sign in _tokens(text, at):
        if sign in {"[", "{"}:
            depth += 1
        elif sign in {"]", "}"}:
            depth -= 1
        elif sign == "\n" and depth == 0:
            return place
    return len(text)


def _items(text: str, at: int) -> Iterator[int]:
    """Where each item of the array that begins there begins; nothing if it is no array."""
    if not text.startswith("[", at):
        return
    depth, fresh = 0, False
    for place, sign in _tokens(text, at):
        if depth == 1 and fresh and not sign.isspace() and sign not in {"]", ","}:
            yield place
            fresh = False
        if sign in {"[", "{"}:
            depth += 1
            fresh = fresh or (depth == 1)
        elif sign in {"]", "}"}:
            depth -= 1
            if depth == 0:
                return
        elif sign == "," and depth == 1:
            fresh = True
