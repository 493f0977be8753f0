"""Tables for the terminal and for a README."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from benchmarks.speed.timing import Timing


@dataclass(frozen=True)
class Section:
    """A table and what must be known to read it. Its first `names` columns hold no numbers."""

    title: str
    header: list[str]
    rows: list[list[str]]
    note: str
    names: int = 1


def ratio(theirs: Timing, ours: Timing) -> str:
    return f"{theirs.median / ours.median:.2f}"


def bytes_text(count: float) -> str:
    """1.5 KB, 3.32 GB: powers of 1,000, three digits."""
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def to_table(section: Section) -> Table:
    table = Table(title=section.title, caption=section.note)
    for i, column in enumerate(section.header):
        table.add_column(column, justify="left" if i < section.names else "right", overflow="fold")
    for row in section.rows:
        table.add_row(*row)
    return table


def to_markdown(sections: Sequence[Section], caption: str) -> str:
    parts = []
    for section in sections:
        rule = ["---" if i < section.names else "---:" for i in range(len(section.header))]
        lines = [f"**{section.title}**", ""]
        lines += ["| " + " | ".join(row) + " |" for row in (section.header, rule, *section.rows)]
        parts.append("\n".join([*lines, "", section.note]))
    return "\n\n".join([*parts, caption]) + "\n"
