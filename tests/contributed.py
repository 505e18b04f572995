"""Packages beside this one, as they are when they are installed, and the one of CONTRIBUTING.md's "Adding parts"."""

import re
import textwrap
import tomllib
from collections.abc import Mapping
from pathlib import Path

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()
(SECTION,) = re.findall(r"^## Adding parts\n(.*?)^## ", TEXT, re.MULTILINE | re.DOTALL)
EntryPoints = Mapping[str, Mapping[str, str]]


def blocks(language: str) -> list[str]:
    """The fenced blocks of "Adding parts" that are in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", SECTION, re.MULTILINE | re.DOTALL)


def install(folder: Path, package: str, entry_points: EntryPoints, files: Mapping[str, str]) -> None:
    """Put a package and what its installer writes beside it into a folder of sys.path.

    Args:
        entry_points: group -> name -> what is meant.
        files: module by its path -> source.
    """
    for name, source in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
    about = folder / f"{package.replace('-', '_')}-0.1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1\n")
    lines = []
    for group, meant in entry_points.items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in meant.items())]
    (about / "entry_points.txt").write_text("\n".join(lines))


def install_contributed(folder: Path) -> list[str]:
    """The package of CONTRIBUTING.md; the names of its files."""
    (project,) = (tomllib.loads(block)["project"] for block in blocks("toml"))
    files = {block.partition("\n")[0].removeprefix("# "): block for block in blocks("python")}
    install(folder, project["name"], project["entry-points"], files)
    return list(files)
