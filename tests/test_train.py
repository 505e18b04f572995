"""Runs from Python, without a command line."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ssamba import train
from ssamba.config import FinetuneRecipe, PretrainRecipe, load_recipe
from ssamba.errors import UserError

Runs = Callable[[str], Path]


def test_pretrain_does_what_the_command_does(
    recipes: dict[str, Path], pretrained: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(recipes["pretrain"], [f"run_dir={tmp_path / 'run'}", "model.encoder=ssast"])
    assert isinstance(recipe, PretrainRecipe) and recipe.audio.mean is None
    before = copy.deepcopy(recipe)
    run = train.pretrain(recipe)
    assert recipe == before  # what it leaves open is settled in a recipe of the run's own
    settled = load_recipe(run.folder)
    assert (settled.audio.mean, settled.model.residual) == (pytest.approx(-5, abs=5), "plain")
    assert run.trained and run.record["test"] == {} and run.record == json.loads((run.folder / "run.json").read_text())
    ours, theirs = (folder / "model" / "model.safetensors" for folder in (run.folder, pretrained("ssast")))
    assert ours.read_bytes() == theirs.read_bytes()

    again = train.pretrain(recipe, resume="auto")
    assert (again.trained, again.record, recipe) == (False, run.record, before)
    with pytest.raises(UserError, match="run folder .* exists"):
        train.pretrain(recipe)


def test_finetune_scores(recipes: dict[str, Path], pretrained: Runs, finetuned: Runs, tmp_path: Path) -> None:
    start = load_recipe(finetuned("ssast")).model.pretrained
    words = [f"run_dir={tmp_path / 'run'}", "model.encoder=ssast", f"model.pretrained={start}"]
    recipe = load_recipe(recipes["finetune"], words)
    assert isinstance(recipe, FinetuneRecipe)
    run = train.finetune(recipe)
    assert run.record["test"] == json.loads((finetuned("ssast") / "run.json").read_text())["test"]
