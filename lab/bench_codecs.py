"""`sidestep bench codecs`: what each serializer costs, on made-up payloads or on the user's own."""

from __future__ import annotations

import difflib
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Column, Table

from lab.coding import Bill, Cargo, bills, expected_s, fidelity, quickest_first, times
from lab.model import BadInput, Estimate
from lab.progress import spell
from lab.report.units import NONE, plural, sure
from tasks.carriers import Outcome
from tasks.codecs import CODECS, COMPRESSIONS
from tasks.shapes import SHAPES, make, size

SCHEMA = 1
LONGEST_S = 300.0
USUAL_BYTES = 10_000
LEAST_BYTES, MOST_BYTES = 1, 10_000_000
NO_COMPRESSION = "none"
PIPED_COLUMNS = 120
WORDS: Mapping[Outcome, str] = {
    Outcome.AS_IT_WAS: "as it was",
    Outcome.CHANGED: "changed",
    Outcome.REFUSED: "refused",
}
UNITS_BYTES = {"": 1, "B": 1, "kB": 1000, "MB": 1000**2, "KiB": 1024, "MiB": 1024**2}


class Size(click.ParamType[int]):
    """A number of bytes, such as 500, 10kB or 1MB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """As bytes; fails with what there is to choose from."""
        found = re.fullmatch(r"([0-9]+)([A-Za-z]*)", str(value).replace(" ", ""))
        units = {unit.lower(): factor for unit, factor in UNITS_BYTES.items()}
        if not found or found[2].lower() not in units:
            self.fail(f"{value!r} is no size; write it like 500, 10kB or 1MB", param, ctx)
        bytes_ = int(found[1]) * units[found[2].lower()]
        if not LEAST_BYTES <= bytes_ <= MOST_BYTES:
            self.fail(f"{value!r} is not between 1 byte and 10 MB", param, ctx)
        return bytes_


@click.command()
@click.option("--codec", "codecs_", multiple=True, metavar="NAME", help="One serializer [default: all installed].")
@click.option("--compression", multiple=True, metavar="NAME", help="none, or one that kombu knows [default: none].")
@click.option("--shape", multiple=True, metavar="NAME", help=f"{', '.join(SHAPES)} [default: all].")
@click.option("--size", "sizes", multiple=True, type=Size(), help="Such as 500, 10kB or 1MB [default: 10kB].")
@click.option("--payload", "file", metavar="FILE", help="A JSON file with arguments of your own, instead of shapes.")
@click.option("--rounds", type=click.IntRange(2, 1000), default=15, show_default=True, help="Each measures every way.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the payloads, and of the order in a round.")
@click.option("--json", "want_json", is_flag=True, help="One JSON object on stdout; all else on stderr.")
def codecs(
    codecs_: tuple[str, ...],
    compression: tuple[str, ...],
    shape: tuple[str, ...],
    sizes: tuple[int, ...],
    file: str | None,
    rounds: int,
    seed: int,
    want_json: bool,
) -> None:
    """What each serializer costs by what it carries, here and now, and what it changes or refuses.

    Options may be given several times: every serializer is measured with every compression on every payload.
    """
    notes = Console(stderr=True, highlight=False, markup=False)
    names, left_out = _codecs(codecs_)
    ways = [(codec, packed) for codec in names for packed in _compressions(compression)]
    shapes = _known(shape, SHAPES, "shape") or ([] if file else list(SHAPES))
    if file and sizes and not shapes:
        raise BadInput("--size is for shapes, and a file has its own; add --shape, or leave --size out")
    own = [_read(file)] if file else []
    asked = [(name, size_bytes) for size_bytes in dict.fromkeys(sizes or (USUAL_BYTES,)) for name in shapes]
    expected = expected_s(
        ways, [*(cargo.size_bytes for cargo in own), *(size_bytes for _, size_bytes in asked)], rounds
    )
    if expected > LONGEST_S:
        raise BadInput(
            f"that would take about {spell(expected)}, more than {spell(LONGEST_S)}: name a few with --codec, "
            "--compression, --shape or --size, or fewer --rounds"
        )
    for why in left_out:
        notes.print(f"left out: {why}", style="dim", soft_wrap=True)
    count = len(ways) * (len(own) + len(asked))
    notes.print(f"{plural(count, 'combination')}, {rounds} rounds, about {spell(max(expected, 1))}", style="dim")
    cargoes = [*own, *(Cargo(name, size_bytes, make(name, size_bytes, seed)) for name, size_bytes in asked)]
    found, kept = bills(ways, cargoes, count=rounds, seed=seed), fidelity(names)
    if want_json:
        print(json.dumps({"schema": SCHEMA, **as_json(found, kept), "seed": seed}, ensure_ascii=False))
        return
    out = Console(highlight=False, markup=False)
    if not out.is_terminal:
        out = Console(highlight=False, markup=False, width=PIPED_COLUMNS)
    for table in tables(found):
        out.print(table)
        out.print()
    out.print(fidelity_table(kept))


def _codecs(asked: Sequence[str]) -> tuple[list[str], list[str]]:
    """The codecs to measure, and why others are not. Raises BadInput for one asked for that there is not."""
    names = _known(asked, CODECS, "codec")
    for name in names:
        if why := CODECS[name].missing:
            raise BadInput(why)
    if names:
        return names, []
    return [name for name, codec in CODECS.items() if codec.missing is None], [
        why for codec in CODECS.values() if (why := codec.missing)
    ]


def _compressions(asked: Sequence[str]) -> list[str | None]:
    names = _known(asked or (NO_COMPRESSION,), (NO_COMPRESSION, *COMPRESSIONS), "compression")
    for name in names:
        if name != NO_COMPRESSION and (why := COMPRESSIONS[name].missing):
            raise BadInput(why)
    return [None if name == NO_COMPRESSION else name for name in names]


def _known(asked: Sequence[str], there_are: Iterable[str], what: str) -> list[str]:
    """What was asked for, each once. Raises BadInput with the nearest match for a name that is none."""
    words = list(there_are)
    for name in asked:
        if name not in words:
            close = difflib.get_close_matches(name, words, n=1, cutoff=0.5)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise BadInput(f"there is no {what} {name!r}{hint}; there are: {', '.join(words)}")
    return list(dict.fromkeys(asked))


def _read(file: str) -> Cargo:
    path = Path(file)
    try:
        value = json.loads(path.read_bytes())
        return Cargo(path.name, size(value), value)
    except OSError as error:
        raise BadInput(f"cannot read --payload {file}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise BadInput(f"--payload {file} is no JSON in UTF-8: {error}") from None


def tables(found: Sequence[Bill]) -> list[Table]:
    """One table for each payload, the quickest way first."""
    return [_table(name, size_bytes, group) for (name, size_bytes), group in _by_payload(found).items()]


def _by_payload(found: Sequence[Bill]) -> dict[tuple[str, int], list[Bill]]:
    groups: dict[tuple[str, int], list[Bill]] = {}
    for bill in found:
        groups.setdefault((bill.payload, bill.payload_bytes), []).append(bill)
    return groups


def _table(name: str, size_bytes: int, group: Sequence[Bill]) -> Table:
    # On a narrow terminal an interval goes below its value; a name stays whole.
    figures = [Column(head, justify="right") for head in ("encode µs", "decode µs", "bytes", "times the fastest")]
    title = f"{name}, {_spelled(size_bytes)}"
    table = Table(Column("", no_wrap=True), *figures, title=title, title_justify="left", box=None, pad_edge=False)
    ranked = quickest_first(group)
    best = ranked[0]
    for bill in ranked:
        if bill.outcome is not Outcome.AS_IT_WAS:
            table.add_row(bill.way, WORDS[bill.outcome], NONE, NONE, NONE)
            continue
        ratio = "1" if bill is best else sure(times(bill, best))
        table.add_row(bill.way, sure(bill.encode, 1e-3), sure(bill.decode, 1e-3), str(bill.coded_bytes), ratio)
    return table


def _spelled(size_bytes: int) -> str:
    for unit, factor in (("MB", 1000**2), ("kB", 1000)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:g} {unit}"
    return f"{size_bytes} B"


def fidelity_table(kept: Mapping[str, Mapping[str, Outcome]]) -> Table:
    """What each codec changes without a word, and what it refuses; codecs that do the same share a row."""
    table = Table(
        *("", "changes without a word", "refuses"),
        title="What does not arrive as it was",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    rows: dict[tuple[str, str], list[str]] = {}
    for codec in dict.fromkeys(codec for outcomes in kept.values() for codec in outcomes):
        changed, refused = (
            ", ".join(what for what, outcomes in kept.items() if outcomes[codec] is outcome) or NONE
            for outcome in (Outcome.CHANGED, Outcome.REFUSED)
        )
        rows.setdefault((changed, refused), []).append(codec)
    for (changed, refused), names in rows.items():
        table.add_row(", ".join(names), changed, refused)
    return table


def as_json(found: Sequence[Bill], kept: Mapping[str, Mapping[str, Outcome]]) -> dict[str, Any]:
    """The same for programs; ratios are to the fastest way of the same payload."""
    best = {key: quickest_first(group)[0] for key, group in _by_payload(found).items()}

    def row(bill: Bill) -> dict[str, Any]:
        return {
            "codec": bill.codec,
            "compression": bill.compression,
            "payload": bill.payload,
            "payload_bytes": bill.payload_bytes,
            "outcome": WORDS[bill.outcome],
            "coded_bytes": bill.coded_bytes,
            "encode_us": _estimate(bill.encode, 1e-3),
            "decode_us": _estimate(bill.decode, 1e-3),
            "times_the_fastest": _estimate(times(bill, best[bill.payload, bill.payload_bytes]), 1),
        }

    return {
        "python": sys.version.split()[0],
        "bills": [row(bill) for bill in found],
        "fidelity": {what: {codec: WORDS[one] for codec, one in of.items()} for what, of in kept.items()},
    }


def _estimate(estimate: Estimate | None, scale: float) -> dict[str, float] | None:
    if estimate is None:
        return None
    return {
        "value": estimate.value * scale,
        "low": estimate.low * scale,
        "high": estimate.high * scale,
        "n": estimate.n,
    }
