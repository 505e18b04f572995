"""Hooks of mkdocs: the pages of the site that are no file of docs/, and links that lead out of docs/.

The front page is README.md, the last one CONTRIBUTING.md; a notebook's page is its cells; the reference has a page for
each public module of the package. Pages keep the links that they have in the repository: they are pointed at where
their files are on the site, and a file that is no page goes with it, below files/.
"""

import ast
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}
NOTEBOOKS = [f"examples/{path.name}" for path in sorted((ROOT / "examples").glob("*.ipynb"))]
LINK = re.compile(r"(?<=\]\()[^)#\s]+")


# Pages and files, by their paths within the repository


def place(source: str) -> str:
    """Where a file of the repository is on the site, as mkdocs names files."""
    stem, ending = posixpath.splitext(source)
    if source in NOTEBOOKS:
        return f"{stem}.md"
    if source.startswith("ssamba/") and ending == ".py":
        return f"reference/{stem.removeprefix('ssamba/').replace('__init__', 'index')}.md"
    return OUTSIDE.get(source) or (source.removeprefix("docs/") if source.startswith("docs/") else f"files/{source}")


def target(link: str, source: str) -> str | None:
    """The file of the repository that a page links to; None for an address, or if there is none."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    return path if "://" not in link and (ROOT / path).is_file() else None


def relinked(markdown: str, source: str) -> str:
    """The text of a page, with its links as they are on the site."""
    start = posixpath.dirname(place(source))

    def changed(match: re.Match[str]) -> str:
        path = target(match[0], source)
        return match[0] if path is None else posixpath.relpath(place(path), start)

    return LINK.sub(changed, markdown)


def notebook_text(source: str) -> str:
    """The cells of a notebook as markdown."""
    cells = json.loads((ROOT / source).read_text(encoding="utf-8"))["cells"]
    texts = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    return "\n\n".join(text if kind == "markdown" else f"```python\n{text}\n```" for kind, text in texts)


# The reference


def modules() -> Iterator[tuple[str, Path, str]]:
    """The public modules: dotted name, file, what it says of itself; a package before what is in it."""
    for path in sorted((ROOT / "ssamba").rglob("*.py"), key=lambda path: path.with_suffix("").parts):
        parts = path.relative_to(ROOT).with_suffix("").parts
        parts = parts[:-1] if parts[-1] == "__init__" else parts
        if not any(part.startswith("_") for part in parts):
            yield ".".join(parts), path, ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def reference() -> tuple[list[Any], dict[str, str]]:
    """The navigation of the reference, a section for each package, and its pages: their files and texts."""
    sections: dict[str, list[Any]] = {}
    pages, rows = {}, []
    for name, path, said in modules():
        above, _, last = name.rpartition(".")
        page = place(path.relative_to(ROOT).as_posix())
        if path.name == "__init__.py":
            sections[name] = [page] if said or not above else []
        if above:
            sections[above].append({last: sections.get(name, page)})
        if above and said:
            first = re.split(r"(?<=[.:]) ", " ".join(said.partition("\n\n")[0].split()))[0].rstrip(".:")
            rows.append(f"| [{name}]({posixpath.relpath(page, 'reference')}) | {first} |")
        if above and (said or name not in sections):
            pages[page] = f"---\ntitle: {name}\n---\n\n::: {name}\n"
    table = ["| module | |", "|---|---|", *rows]
    pages["reference/index.md"] = "\n".join(["# Reference", "", *table, ""])
    return sections["ssamba"], pages


# What mkdocs calls


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    assert config.nav is not None
    config.nav.append({"Reference": reference()[0]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    texts = {source: (ROOT / source).read_text(encoding="utf-8") for source in OUTSIDE}
    for source in NOTEBOOKS:
        files.append(File.generated(config, f"files/{source}", abs_src_path=str(ROOT / source)))
        texts[source] = notebook_text(source)
    generated = {place(source): text for source, text in texts.items()} | reference()[1]
    for page, text in generated.items():
        files.append(File.generated(config, page, content=text))

    texts |= {
        f"docs/{file.src_uri}": file.content_string for file in files.documentation_pages() if not file.generated_by
    }
    linked = {target(link, source) for source, text in texts.items() for link in LINK.findall(text)}
    for path in sorted(path for path in linked if path and place(path).startswith("files/")):
        file = File.generated(config, place(path), abs_src_path=str(ROOT / path), inclusion=InclusionLevel.NOT_IN_NAV)
        files.append(file)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    if not re.search("^(## |::: )", markdown, re.MULTILINE):  # wide tables need the room of the contents
        page.meta["hide"] = ["toc"]
    sources = {place(source): source for source in (*OUTSIDE, *NOTEBOOKS)}
    source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    if source in NOTEBOOKS:
        download = posixpath.relpath(f"files/{source}", posixpath.dirname(page.file.src_uri))
        return f"{relinked(markdown, source)}\n\n[The notebook as a file]({download})\n"
    return relinked(markdown, source) if (ROOT / source).is_file() else markdown
