"""A report as blocks, and the two files that it becomes: one HTML page with everything inside it, and Markdown."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

from ssamba.evaluation.tables import markdown_table
from ssamba.files import write_text
from ssamba.printable import html_text, markdown_text, printable

REPORT_NAMES = ("report.html", "report.md")

# On a narrow screen a row of a table is a card, each cell behind the name of its column.
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;overflow-wrap:break-word}"
    "table{border-collapse:collapse;margin:1rem 0}"
    "td,th{padding:.3rem .7rem;border-bottom:1px solid #ccc;text-align:left;vertical-align:top}"
    "td{overflow-wrap:anywhere}"
    ".pictures{display:flex;flex-wrap:wrap;align-items:flex-start;gap:1rem;margin:1rem 0}"
    "figure{margin:0;max-width:100%}figcaption{contain:inline-size}img{max-width:100%;max-height:60rem}"
    "audio{display:block;width:100%;max-width:24rem}"
    "pre{background:#f4f4f4;padding:1rem;overflow-x:auto;font-size:14px;line-height:1.4}"
    "@media(max-width:44rem){table,tbody{display:block}tr{display:block;padding:.5rem 0;border-bottom:1px solid #ccc}"
    "tr:first-child{display:none}td{display:block;border:0;padding:.1rem 0}"
    "td[data-name]::before{content:attr(data-name) ': ';color:#555}}"
)
# Whatever a name or a recipe holds: a browser fetches nothing for the page, and runs nothing in it.
_NOTHING_ELSE = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'\">"
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
    """A PNG within the folder of the report, or below it, and a FLAC to be heard with it, which the page has alone."""

    path: Path
    caption: str
    flac: bytes | None = field(default=None, repr=False)


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


def write_report(folder: Path, title: str, sections: Sequence[Section], names: tuple[str, str] = REPORT_NAMES) -> None:
    """Write a page and a Markdown of those `names` into a folder. The page needs no other file and no network; Markdown
    links the pictures."""
    body = "".join(f"<h2>{html_text(section.heading)}</h2>\n{_html_blocks(section.blocks)}" for section in sections)
    write_text(folder / names[0], _page(title, body))
    parts = [f"# {markdown_text(title)}"]
    for section in sections:
        parts += [f"## {markdown_text(section.heading)}", *(_markdown(block, folder) for block in section.blocks)]
    write_text(folder / names[1], "\n\n".join(parts) + "\n")


def _page(title: str, body: str) -> str:
    """A page of HTML around a body; the title is its first heading."""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{_NOTHING_ELSE}'
        f"<title>{html_text(title)}</title>"
        f"<style>{STYLE}</style><h1>{html_text(title)}</h1>\n{body}</html>\n"
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells, the first one their header."""
    # The name of a key may go on in another line behind its dots.
    head = "".join(f"<th>{html_text(cell).replace('.', '.<wbr>').replace('_', '_<wbr>')}</th>" for cell in rows[0])
    named = [f' data-name="{html_text(name)}"' if name else "" for name in rows[0]]
    others = [
        "".join(f"<td{name}>{html_text(cell)}</td>" for name, cell in zip(named, row, strict=True)) for row in rows[1:]
    ]
    return f"<table><tr>{head}</tr>\n" + "\n".join(f"<tr>{row}</tr>" for row in others) + "</table>\n"


def _figure(source: str, caption: str, player: str = "") -> str:
    """A picture by its address, and what is said of it."""
    return (
        f'<figure><img src="{html_text(source)}" alt="{html_text(caption)}">{player}'
        f"<figcaption>{html_text(caption)}</figcaption></figure>\n"
    )


def _html_blocks(blocks: Sequence[Block]) -> str:
    """Pictures that stand together side by side, as many as there is room for."""
    parts = []
    for pictures, some in groupby(blocks, lambda block: isinstance(block, Picture)):
        text = "".join(map(_html, some))
        parts.append(f'<div class="pictures">{text}</div>\n' if pictures else text)
    return "".join(parts)


def _html(block: Block) -> str:
    if isinstance(block, Table):
        return _table(block.rows)
    if isinstance(block, Picture):
        player = "" if block.flac is None else f'<audio controls src="{_data("audio/flac", block.flac)}"></audio>'
        return _figure(_data("image/png", block.path.read_bytes()), block.caption, player)
    if isinstance(block, Listing):
        return "<pre>" + "\n".join(map(html_text, block.text.splitlines())) + "</pre>\n"
    return f"<p>{html_text(block.text)}</p>\n"


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


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
