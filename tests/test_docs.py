"""README, CONTRIBUTING and docs/: what they link to is there, what they tell to run exists, and their Python runs."""

import importlib
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
import yaml

from ssamba.cli import build_parser
from ssamba.data.prepare.recordings import Recording
from ssamba.packaged import preparations

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
FENCED = re.compile(r"^```python\n(.*?)^```\n((?:\n(?: {4}[^\n]*\n)+)?)", re.MULTILINE | re.DOTALL)
"""A page's Python, and the lines that it is said to print."""
PYTHON = [page for page in PAGES if page.name != "CONTRIBUTING.md" and FENCED.search(page.read_text())]


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in link:
            assert (page.parent / link).exists(), link


def test_every_guide_is_linked_from_the_readme() -> None:
    linked = set(re.findall(r"\]\(docs/([a-z]+)\.md\)", (ROOT / "README.md").read_text()))
    assert linked == {page.stem for page in (ROOT / "docs").glob("*.md")}


def test_every_page_and_notebook_is_in_the_navigation_of_the_site() -> None:
    def pages(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            for below in entry.values() if isinstance(entry, dict) else entry:
                yield from pages(below)

    named = sorted(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    guides = [page.name for page in (ROOT / "docs").glob("*.md")]
    notebooks = [f"examples/{path.stem}.md" for path in NOTEBOOKS]
    assert named == sorted(["index.md", "contributing.md", *guides, *notebooks])


@each_page
def test_what_is_indented_is_shown_as_code(page: Path) -> None:
    """An indented line goes on with what is before it, unless that is indented, too, or empty."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    assert not re.findall(r"^[^\s].*\n {4}.*$", text, re.MULTILINE)


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


@each_page
def test_names_of_the_package_exist(page: Path) -> None:
    for name in re.findall(r"`(ssamba(?:\.\w+)+)", page.read_text()):
        parts = name.split(".")
        for end in range(len(parts), 0, -1):
            try:
                found: Any = importlib.import_module(".".join(parts[:end]))
                break
            except ModuleNotFoundError:
                continue
        for part in parts[end:]:
            found = getattr(found, part)


@pytest.fixture
def reader(
    recordings: dict[str, list[Recording]],
    corpus: Path,
    recipes: dict[str, Path],
    finetuned: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the working folder the files that the pages speak of: of the suite's corpus, small models and recipes."""
    words = tmp_path / "demo" / "speech" / "words"
    words.mkdir(parents=True)
    long = [one.path for one in recordings["test"] if soundfile.info(one.path).duration > 0.4]
    for name, path in zip(("stop", "left"), long, strict=False):
        samples, rate = soundfile.read(path)
        soundfile.write(words / f"{name}_en-f4_1.wav", samples[: round(0.4 * rate)], rate)
    (tmp_path / "demo" / "runs").mkdir()
    (tmp_path / "demo" / "runs" / "ssamba-keywords-pretrained").symlink_to(finetuned("ssamba"))
    shutil.copytree(corpus, tmp_path / "shards" / "mine")
    recipe = yaml.safe_load(recipes["finetune"].read_text())
    recipe["evaluation"]["baseline"] = "log-mel"
    for name, text in {
        "pretrain/fsdd": recipes["pretrain"].read_text(),
        "finetune/laptop": yaml.safe_dump(recipe),
    }.items():
        path = tmp_path / "recipes" / f"{name}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("reader")
@pytest.mark.parametrize("page", PYTHON, ids=lambda page: page.name)
def test_python_runs_and_prints_what_is_said(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for code, said in FENCED.findall(page.read_text()):
        capsys.readouterr()
        exec(compile(code, page.name, "exec"), {})
        printed = capsys.readouterr().out.splitlines()
        assert printed
        if said:
            assert [without_answers(line) for line in printed] == [
                without_answers(line[4:]) for line in said.strip("\n").splitlines()
            ]


def without_answers(line: str) -> str:
    """Of a line "stop 0.98" or "0.1 to 0.3 s: stop" what does not depend on the model."""
    return re.sub(r"^[a-z]+ [01]\.\d\d$", "LABEL CHANCE", re.sub(r"(?<=s: )[a-z]+$", "LABEL", line))
