"""`ssamba prepare` and `ssamba recipes`: what comes with the package, by name."""

import sys
from pathlib import Path

import pytest

from ssamba.cli import main
from ssamba.packaged import first_line, preparations, recipe_files

ROOT = Path(__file__).parents[1]
Capture = pytest.CaptureFixture[str]


def test_every_script_and_recipe_is_listed(capsys: Capture) -> None:
    assert main(["prepare"]) == 0
    lines = capsys.readouterr().out.splitlines()
    scripts = sorted((ROOT / "data_prep").glob("*.py"))
    assert [line.split()[0] for line in lines] == [path.stem for path in scripts]
    assert all(line.endswith(first_line(path)) for line, path in zip(lines, scripts, strict=True))
    assert main(["recipes", "list"]) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    there = [path for path in (ROOT / "recipes").rglob("*") if path.is_file()]
    assert len(names) == len(there) and {"pretrain/fsdd", "finetune/fsdd_digits", "slurm/sweep.sh"} <= set(names)


def test_every_recipe_says_what_it_is(capsys: Capture) -> None:
    assert main(["recipes", "list"]) == 0
    for line in capsys.readouterr().out.splitlines():
        name, said = line.split(maxsplit=1)
        assert len(said) > 20, name


@pytest.mark.parametrize("name", sorted(preparations()))
def test_a_script_says_how_it_is_called(name: str, capsys: Capture) -> None:
    before = list(sys.argv)
    assert main(["prepare", name, "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: ssamba prepare {name} ") and sys.argv == before


def test_a_script_has_its_own_status_and_message(tmp_path: Path, capsys: Capture) -> None:
    assert main(["prepare", "fsdd", str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "nowhere" in said and "Traceback" not in said and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["prepare", "fsd"], "fsd is no data set here; did you mean fsdd?"),
        (
            ["prepare", "xyz"],
            "xyz is no data set here; `ssamba prepare` lists them",
        ),
        (["recipes", "show", "pretrain/fsd"], "pretrain/fsd is no recipe here; did you mean pretrain/fsdd?"),
        (["recipes", "copy", "0"], "0 is no recipe here; `ssamba recipes list` lists them"),
    ],
)
def test_a_name_that_is_none(words: list[str], said: str, capsys: Capture) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err == f"ssamba: {said}\n"


def test_a_recipe_is_copied_to_where_its_comment_looks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, path in recipe_files().items():
        assert main(["recipes", "copy", name]) == 0
        copied = tmp_path / "recipes" / path.parent.name / path.name
        assert copied.read_bytes() == path.read_bytes()
        assert capsys.readouterr().out == f"written to recipes/{path.parent.name}/{path.name}\n"
    changed = tmp_path / "recipes" / "pretrain" / "fsdd.yaml"
    changed.write_text("mine")
    assert main(["recipes", "copy", "pretrain/fsdd"]) == 2
    assert "recipes/pretrain/fsdd.yaml exists; expected a new file, or --overwrite" in capsys.readouterr().err
    assert changed.read_text() == "mine"
    assert main(["recipes", "copy", "pretrain/fsdd", "--overwrite"]) == 0
    assert changed.read_bytes() == (ROOT / "recipes" / "pretrain" / "fsdd.yaml").read_bytes()
    assert sorted(path.name for path in changed.parent.iterdir())[0][0] != "."
