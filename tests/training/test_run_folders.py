"""A run folder that is given to a command: copied, moved, called from elsewhere."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from ssamba.cli import main
from ssamba.comparison.runs import read_run
from ssamba.config import load_recipe

Runs = Callable[[str], Path]
Copy = Callable[[Path], Path]


# Where it lies


def test_a_copied_run_is_scored_itself(finetuned: Runs, copy_of: Copy) -> None:
    run = copy_of(finetuned("ssast"))
    weights = run / "model" / "model.safetensors"
    save_file({name: tensor * 0 for name, tensor in load_file(weights).items()}, weights)
    assert main(["evaluate", str(run)]) == 0
    assert json.loads((run / "evaluation" / "scores.json").read_text())["accuracy"] == 0.25  # of four classes
    assert not (finetuned("ssast") / "evaluation").exists()
    assert main(["evaluate", str(run / "recipe.yaml"), f"run_dir={run}", "--overwrite"]) == 0


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_a_moved_run_is_read_and_written_where_it_is(
    kind: str, pretrained: Runs, finetuned: Runs, copy_of: Copy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of((pretrained if kind == "pretrain" else finetuned)("ssast")).rename(tmp_path / "moved")
    monkeypatch.chdir(run)
    assert read_run(Path(".")).folder == Path(".")
    assert main(["evaluate", "."]) == 0
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "moved", "--overwrite"]) == 0 and (run / "evaluation" / "scores.json").exists()
    # Goes on where it is, and says where the next would.
    (run / "run.json").unlink()
    assert main([kind, "moved", "--resume", "auto"]) == 0 and (run / "run.json").exists()
    assert Path(load_recipe(run).run_dir).samefile(run)


def test_a_run_stands_for_its_training_shards(pretrained: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    run = pretrained("ssast")
    recipe = load_recipe(run)
    assert main(["stats", str(run)]) == 0
    said = capsys.readouterr().out
    assert main(["stats", *recipe.data.train]) == 0
    assert said == capsys.readouterr().out
