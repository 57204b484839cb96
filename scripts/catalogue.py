"""Writes the catalogue: README's table, docs/experiments and docs/bench-results.md, from what docs/reference holds."""

from __future__ import annotations

import json
import lzma
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.catalogue import EXPERIMENTS
from lab.model import BadInput, LabError
from lab.report.benches import PAGE as BENCH_PAGE
from lab.report.benches import bench_page, kind
from lab.report.catalogue import FOLDER, pages, spliced, table
from lab.report.control import NAME as CONTROL_PAGE
from lab.report.control import control_page, is_control
from lab.store import FILE, PACKED, load
from lab.verdict import judge_all

STORED = f"docs/reference/{PACKED}"
CONTROL = f"docs/reference/without-the-gil.{PACKED}"
"""The same on an interpreter without a GIL, where there is one: a suite that `--python` gave."""
XZ_PRESET = 9
COULD_NOT = 2


BENCHES = {name: f"docs/reference/{name}.json" for name in ("drain", "peers")}
"""What `sidestep bench drain --json` and `sidestep bench peers --json` printed."""


def bench(source: Path) -> str | None:
    """Which bench printed this file; None for anything else, such as a suite."""
    try:
        return kind(json.loads(source.read_text("utf-8")))
    except (OSError, ValueError):
        return None


def keep(source: Path, stored: Path) -> None:
    """Store a suite, compressed; xz keeps no time, so the same suite is the same file."""
    file = source
    if source.is_dir():
        file = source / FILE if (source / FILE).exists() else source / PACKED
    content = lzma.decompress(file.read_bytes()) if file.suffix == ".xz" else file.read_bytes()
    stored.parent.mkdir(parents=True, exist_ok=True)
    stored.write_bytes(lzma.compress(content, preset=XZ_PRESET))


def keep_as_is(source: Path, stored: Path) -> None:
    """Store what a bench printed."""
    content = source.read_bytes()
    stored.parent.mkdir(parents=True, exist_ok=True)
    stored.write_bytes(content)


def written(root: Path) -> dict[str, str]:
    """The text of every file that is written under `root`, by its path. Raises BadInput without a stored suite."""
    if not (root / STORED).exists():
        raise BadInput(f"there is no {STORED} yet; name the suite of a run: scripts/catalogue SUITE")
    experiments, suite = list(EXPERIMENTS.values()), load(root / STORED)
    findings = judge_all(experiments, suite)
    readme = (root / "README.md").read_text("utf-8")
    texts = {"README.md": spliced(readme, table(experiments, suite, findings))}
    texts |= {f"{FOLDER}/{name}": text for name, text in pages(experiments, suite, findings).items()}
    if (root / CONTROL).exists():
        control = load(root / CONTROL)
        both = (suite, findings), (control, judge_all(experiments, control))
        texts[f"{FOLDER}/{CONTROL_PAGE}"] = control_page(experiments, *both)
    bodies = [json.loads((root / at).read_text("utf-8")) if (root / at).exists() else None for at in BENCHES.values()]
    if any(bodies):
        texts[BENCH_PAGE] = bench_page(*bodies)
    return texts


def write(root: Path) -> None:
    """Write all of it under `root`, and remove pages of experiments that are gone. Raises BadInput without a suite."""
    texts = written(root)
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    for page in (root / FOLDER).glob("*.md"):
        if f"{FOLDER}/{page.name}" not in texts:
            page.unlink()
    for name, text in texts.items():
        (root / name).write_text(text, "utf-8")


def main(arguments: Sequence[str], root: Path) -> int:
    """The exit code, after a line that says what was done or what to do."""
    try:
        if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
            raise BadInput(
                "it takes one suite, what a bench printed with --json, or nothing: scripts/catalogue [SUITE]"
            )
        for source in arguments:
            if name := bench(Path(source)):
                keep_as_is(Path(source), root / BENCHES[name])
            else:
                keep(Path(source), root / (CONTROL if is_control(load(Path(source))) else STORED))
        write(root)
    except (LabError, OSError) as error:
        print(f"catalogue: {' '.join(str(error).split())}", file=sys.stderr)
        return COULD_NOT
    print(f"wrote README.md, {FOLDER} and, where a bench is stored, {BENCH_PAGE} from docs/reference")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Path(__file__).resolve().parent.parent))
