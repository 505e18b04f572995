"""Sweep files: what points they come to, and what is told of a mistake before anything runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ssamba.config import load_recipe
from ssamba.errors import UserError
from ssamba.sweep import Budget, Sweep, read_sweep

ROOT = Path(__file__).parents[1]
PRETRAIN, FINETUNE = (str(ROOT / "recipes" / name / "demo.yaml") for name in ("pretrain", "finetune"))


@pytest.fixture
def read(tmp_path: Path) -> Callable[[dict[str, Any]], Sweep]:
    def reading(content: dict[str, Any]) -> Sweep:
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return read_sweep(path)

    return reading


def both(grid: dict[str, Any], **finetune: Any) -> dict[str, Any]:
    return {
        "run_dir": "runs/all",
        "pretrain": {"recipe": PRETRAIN, "budget": {"clips": 64}, "set": {"optimizer.warmup_steps": 0}},
        "finetune": {"recipe": FINETUNE, "set": {"optimizer.warmup_steps": 0}, **finetune},
        "grid": grid,
    }


def test_each_stage_has_the_points_of_its_axes(read: Callable[[dict[str, Any]], Sweep]) -> None:
    grid = {
        "model.encoder": ["ssamba", "ssast"],
        "seed": [3, 4],
        "task.pooling": ["mean", "rows"],
        "pretrain.optimizer.learning_rate": [1e-3, 2e-3],
    }
    sweep = read(both(grid, starts=["pretrained", "scratch"]))
    names = [point.name for point in sweep.points]
    assert len(names) == len(set(names)) == 8 + 16 + 8  # scratch knows no pretraining's learning rate
    first, last = sweep.points[0], sweep.points[-1]
    assert first.name == "pretrain/encoder=ssamba,seed=3,learning_rate=0.001"
    assert "task.pooling" not in first.overrides and first.overrides["optimizer.learning_rate"] == "0.001"
    assert last.name == "finetune/encoder=ssast,seed=4,pooling=rows,start=scratch"
    assert last.overrides["model.pretrained"] == "null" and "optimizer.learning_rate" not in last.overrides
    tuned = next(point for point in sweep.points if point.stage == "finetune")
    assert tuned.after is first and tuned.overrides["model.pretrained"] == f"runs/all/{first.name}"
    recipe = sweep.recipes[tuned]
    assert (recipe.run_dir, recipe.seed, recipe.trainer.max_steps) == (
        f"runs/all/{tuned.name}",
        3,
        load_recipe(FINETUNE).trainer.max_steps,
    )


def test_budgets(read: Callable[[dict[str, Any]], Sweep]) -> None:
    assert [Budget("steps", 7).steps(32), Budget("clips", 100).steps(32), Budget("clips", 1).steps(32)] == [7, 3, 1]
    assert Budget("hours", 1).steps(32) is None
    sweep = read(both({"data.batch_size": [4, 8]}))
    steps = [sweep.recipes[point].trainer.max_steps for point in sweep.points if point.stage == "pretrain"]
    assert steps == [16, 8]


def test_named_values_set_several_keys(read: Callable[[dict[str, Any]], Sweep]) -> None:
    size = {"small": {"model.fshape": 16, "finetune.task.pooling": "mean"}, "large": {"model.fshape": 32}}
    sweep = read(both({"size of it": size}))
    overrides = {point.name: point.overrides for point in sweep.points}
    small, large = (overrides[f"finetune/size_of_it={name}"] for name in size)
    assert (small["model.fshape"], small["task.pooling"], large["model.fshape"]) == ("16", "mean", "32")
    assert "task.pooling" not in {*large, *overrides["pretrain/size_of_it=small"]}


def test_a_stage_alone(read: Callable[[dict[str, Any]], Sweep]) -> None:
    content = both({"data.label_fraction": [0.5, 1]})
    del content["pretrain"]
    sweep = read(content)
    assert [point.name for point in sweep.points] == [f"finetune/label_fraction={x}" for x in ("0.5", "1")]
    assert all("model.pretrained" not in point.overrides for point in sweep.points)  # the recipe's own


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"grid": {"model.enkoder": ["a"]}}, "grid.model.enkoder sets model.enkoder, which is no key"),
        ({"grid": {"seed": [0, 0]}}, "grid.seed has a value twice"),
        ({"grid": {"seed": []}}, "grid.seed has no values"),
        ({"grid": {"seed": [{"a": {"b": 1}}]}}, "grid.seed is no value; expected one, or a list"),
        ({"grid": {"model.encoder": ["ssamba", "mamba9"]}}, "model.encoder is 'mamba9'"),
        ({"grid": {"run_dir": ["a"]}}, "run_dir of pretrain is the sweep's to say"),
        ({"grid": {"trainer.max_steps": [1, 2]}}, "trainer.max_steps of finetune is the sweep's to say"),
        (
            {"grid": {"a": {"x": {"seed": 1}, "y": {"seed": 2}}, "b.a": {"x": {"data.short": "pad"}}}, "x": 1},
            "x is no key of a sweep; expected run_dir, pretrain or finetune",
        ),
        ({"grid": {"seed": ["1", "1.0 "]}}, "seed (command line) is '1.0 '"),
        ({"grid": {"data.train": [["a/b"], ["a_b"]]}}, "several points are called finetune/train=_a_b_"),
        ({"pretrain": {"recipe": PRETRAIN, "budget": {"epochs": 3}}}, "pretrain.budget names epochs; expected"),
        ({"pretrain": {"recipe": PRETRAIN, "budget": {"steps": 0}}}, "pretrain.budget.steps is 0; expected"),
        ({"pretrain": {"recipe": PRETRAIN, "budget": {"steps": "2.5"}}}, "pretrain.budget.steps is '2.5'; expected"),
        ({"pretrain": {"recipe": PRETRAIN, "starts": ["scratch"]}}, "pretrain.starts is no key; known here"),
        ({"pretrain": {"recipe": FINETUNE}}, "is a finetune recipe; expected a pretrain recipe"),
        ({"pretrain": {"recipe": "no.yaml"}}, "no.yaml does not exist"),
        ({"finetune": {"recipe": FINETUNE, "starts": ["there"]}}, "finetune.starts is ['there']; expected"),
        ({"finetune": {"recipe": FINETUNE, "set": {"mask.kind": "cluster"}}}, "finetune.set.mask.kind is no"),
        ({"finetune": {"set": {}}}, "finetune.recipe is missing; expected one value"),
        ({"run_dir": None}, "run_dir is no text; expected one value"),
        ({"pretrain": None, "finetune": None, "grid": None}, "pretrain.recipe is missing"),
    ],
)
def test_mistakes_are_told_before_anything_runs(
    change: dict[str, Any],
    said: str,
    read: Callable[[dict[str, Any]], Sweep],
    refused: Callable[..., str],
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError) as error:
        read(both({"seed": [0, 1]}) | change)
    assert said in str(error.value)
    assert said[:20] in refused("sweep", str(tmp_path / "sweep.yaml"))


def test_no_sweep(tmp_path: Path, refused: Callable[..., str]) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("a: [")
    assert "cannot be read" in refused("sweep", str(path))
    path.write_text("[a]")
    assert "is no mapping; expected run_dir, pretrain or finetune" in refused("sweep", str(path))
    path.write_text("run_dir: a\n")
    assert "there is nothing to run" in refused("sweep", str(path))
    assert "No such file" in refused("sweep", str(tmp_path / "none.yaml"))


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "sweep").iterdir()), ids=lambda path: path.stem)
def test_the_sweeps_of_recipes_can_be_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert len(read_sweep(path).points) > 1
