"""Text made safe to stand in a page."""

from __future__ import annotations

from html import escape as _escape

from lab.report.tables import Table
from lab.report.units import plain


def escape(text: object) -> str:
    """The text, with everything that HTML or SVG would take for markup written out."""
    return _escape(plain(text), quote=True)


def paragraph(text: str, css: str = "") -> str:
    """One paragraph of plain text."""
    return f'<p class="{css}">{escape(text)}</p>' if css else f"<p>{escape(text)}</p>"


def table(table: Table) -> str:
    """A table in a box of its own that scrolls sideways when the screen is narrow, with its notes below."""
    head = "".join(
        f'<th scope="col">{escape(c.name)}{f" <small>{escape(c.unit)}</small>" if c.unit else ""}</th>'
        for c in table.columns
    )
    rows = "\n".join(
        f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
        for row in table.rows
    )
    notes = "".join(paragraph(note, "note") for note in table.notes)
    return (
        # A box that scrolls must be reachable by keyboard.
        f'<div class="table"><div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title)}">\n'
        f"<table>\n<caption>{escape(table.title)}</caption>\n"
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody>\n</table></div>\n{notes}</div>"
    )
