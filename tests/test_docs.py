"""README, CONTRIBUTING and docs/: what they link to is there, and what they tell to run exists."""

import re
from pathlib import Path

import pytest

from ssamba.cli import build_parser
from ssamba.packaged import preparations

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), link


def test_every_guide_is_linked_from_the_readme() -> None:
    linked = set(re.findall(r"\]\(docs/([a-z]+)\.md\)", (ROOT / "README.md").read_text()))
    assert linked == {page.stem for page in (ROOT / "docs").glob("*.md")}


@each_page
def test_commands_and_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"(?:recipes|data_prep|benchmarks|docker)/[\w/]+\.(?:yaml|py|sh|sbatch)", text):
        if "mine" not in name:
            assert (ROOT / name).is_file(), name
    for line in text.splitlines():
        if line.startswith("    ssamba "):
            words = line.split()
            assert words[1] in command_names(), line
            if words[1] == "prepare" and len(words) > 2:
                assert words[2] in preparations(), line


def command_names() -> set[str]:
    (choices,) = [action.choices for action in build_parser()._actions if isinstance(action.choices, dict)]
    return set(choices)
