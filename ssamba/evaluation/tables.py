"""Tables that read well in a terminal and in Markdown."""

from collections.abc import Sequence

from ssamba.printable import printable


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, the first row its header; the columns line up as plain text, too."""
    rows = [[printable(cell).replace("|", "\\|") for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)
