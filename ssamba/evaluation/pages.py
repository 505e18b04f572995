"""A report as blocks, and the two files that it becomes: one HTML page with everything inside it, and Markdown."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ssamba.evaluation.tables import markdown_table
from ssamba.files import write_text
from ssamba.printable import html_text, markdown_text, printable

REPORT_NAMES = ("report.html", "report.md")

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0}"
    "td,th{padding:.3rem .7rem;border-bottom:1px solid #ccc;text-align:left;vertical-align:top}"
    "td{overflow-wrap:break-word}"
    "figure{display:inline-block;margin:1rem 1rem 1rem 0;vertical-align:top}img{max-width:100%;max-height:60rem}"
    "pre{background:#f4f4f4;padding:1rem;overflow-x:auto;font-size:14px;line-height:1.4}"
)
# Whatever a name or a recipe holds: a browser fetches nothing for the page, and runs nothing in it.
_NOTHING_ELSE = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\">"
)


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of cells, the first one their header."""

    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A PNG within the folder of the report, or below it."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Listing:
    """Text whose lines stay as they are."""

    text: str


Block = Text | Table | Picture | Listing


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    heading: str
    blocks: Sequence[Block]


def write_report(folder: Path, title: str, sections: Sequence[Section]) -> None:
    """Write `REPORT_NAMES` into a folder. The page needs no other file and no network; Markdown links the pictures."""
    body = "".join(
        f"<h2>{html_text(section.heading)}</h2>\n" + "".join(_html(block) for block in section.blocks)
        for section in sections
    )
    write_text(folder / REPORT_NAMES[0], html_page(title, body, _NOTHING_ELSE))
    parts = [f"# {markdown_text(title)}"]
    for section in sections:
        parts += [f"## {markdown_text(section.heading)}", *(_markdown(block, folder) for block in section.blocks)]
    write_text(folder / REPORT_NAMES[1], "\n\n".join(parts) + "\n")


def html_page(title: str, body: str, head: str = "") -> str:
    """A page of HTML around a body; the title is its first heading."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8">{head}<title>{html_text(title)}</title>'
        f"<style>{STYLE}</style><h1>{html_text(title)}</h1>\n{body}</html>\n"
    )


def html_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first one their header."""
    head, *others = ["".join(f"<{kind}>{html_text(cell)}</{kind}>" for cell in row)
                     for kind, row in zip(["th", *["td"] * (len(rows) - 1)], rows, strict=True)]  # fmt: skip
    return f"<table><tr>{head}</tr>\n" + "\n".join(f"<tr>{row}</tr>" for row in others) + "</table>\n"


def html_figure(source: str, caption: str) -> str:
    """A picture by its address, and what is said of it."""
    return (
        f'<figure><img src="{html_text(source)}" alt="{html_text(caption)}">'
        f"<figcaption>{html_text(caption)}</figcaption></figure>\n"
    )


def _html(block: Block) -> str:
    if isinstance(block, Table):
        return html_table(block.rows)
    if isinstance(block, Picture):
        content = base64.b64encode(block.path.read_bytes()).decode()
        return html_figure(f"data:image/png;base64,{content}", block.caption)
    if isinstance(block, Listing):
        return "<pre>" + "\n".join(map(html_text, block.text.splitlines())) + "</pre>\n"
    return f"<p>{html_text(block.text)}</p>\n"


def _markdown(block: Block, folder: Path) -> str:
    if isinstance(block, Table):
        # The table escapes bars by itself.
        return markdown_table([[markdown_text(cell).replace("\\|", "|") for cell in row] for row in block.rows])
    if isinstance(block, Picture):
        address = quote(block.path.relative_to(folder).as_posix())
        return f"![{markdown_text(block.caption)}]({address})"
    if isinstance(block, Listing):
        return "\n".join(f"    {printable(line)}" for line in block.text.splitlines())
    return markdown_text(block.text)
