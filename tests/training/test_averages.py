"""Averages of weights: over the steps of a run and over its last checkpoints, beside a plain computation of them."""

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from ssamba.cli import main
from ssamba.training.callbacks import Throughput
from ssamba.training.common import TrainingModule
from ssamba.training.saved import read_checkpoint

Recipes = dict[str, Path]
State = dict[str, Tensor]


def states(module: TrainingModule) -> State:
    return {name: tensor.detach().double() for name, tensor in module.model.state_dict().items()}


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[State]]:
    """The weights before the first step and after each."""
    found: list[State] = []

    def before(self: Throughput, trainer: Any, module: TrainingModule) -> None:
        found.append(states(module))

    def after(self: Throughput, trainer: Any, module: TrainingModule, *_: Any) -> None:
        found.append(states(module))

    monkeypatch.setattr(Throughput, "on_train_start", before)
    monkeypatch.setattr(Throughput, "on_train_batch_end", after)
    yield found


def run_words(kind: str, recipes: Recipes, run: Path, *words: str) -> list[str]:
    common = ["model.encoder=ssast", "audio.mean=-4", "audio.std=4", "trainer.max_steps=6"]
    return [kind, str(recipes[kind]), f"run_dir={run}", *common, *words]


def exported(run: Path) -> State:
    return {name: tensor.double() for name, tensor in load_file(run / "model" / "model.safetensors").items()}


def moving_average(states: list[State], decay: float) -> State:
    """Number by number from its definition."""
    average = states[0]
    for step, state in enumerate(states[1:]):
        own = min(decay, (1 + step) / (10 + step))
        average = {name: own * average[name] + (1 - own) * state[name] for name in state}
    return average


def assert_close(ours: State, wanted: State, apart: State) -> None:
    assert ours.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-6, msg=name)
    assert max(float((ours[name] - tensor).abs().max()) for name, tensor in apart.items()) > 1e-4


def test_the_average_over_the_steps_is_exported(recipes: Recipes, trained: list[State], tmp_path: Path) -> None:
    words = ["optimizer.ema_decay=0.3", "data.validation=[]", "optimizer.schedule=constant"]
    assert main(run_words("pretrain", recipes, tmp_path / "run", *words)) == 0
    assert len(trained) == 7
    assert_close(exported(tmp_path / "run"), moving_average(trained, 0.3), trained[-1])
    held = read_checkpoint(tmp_path / "run" / "checkpoints" / "step-0000006.ckpt")
    for name, tensor in trained[-1].items():  # training goes on with the weights themselves
        assert torch.equal(held["state_dict"][f"model.{name}"].double(), tensor)


def test_the_average_is_validated_and_the_best_of_it_kept(
    recipes: Recipes, trained: list[State], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert main(run_words("finetune", recipes, run, "optimizer.ema_decay=0.5")) == 0
    best = read_checkpoint(run / "checkpoints" / "best.ckpt")
    step = best["global_step"]
    average = moving_average(trained[: step + 1], 0.5)
    kept = {name.removeprefix("model."): tensor.double() for name, tensor in best["state_dict"].items()}
    assert_close(kept, average, trained[step])
    assert_close(exported(run), average, trained[step])
    assert "average" not in best
    # What was logged is of the average: the exported model has that score on the same clips.
    with (run / "metrics.csv").open(newline="") as file:
        logged = {int(row["step"]): row["val/accuracy"] for row in csv.DictReader(file) if row["val/accuracy"]}
    validation = yaml.safe_load(recipes["finetune"].read_text())["data"]["validation"]
    assert main(["evaluate", str(run), f"run_dir={run}", f"data.test={validation}"]) == 0
    scores = json.loads((run / "evaluation" / "scores.json").read_text())
    assert scores["accuracy"] == pytest.approx(float(logged[max(s for s in logged if s <= step)]), abs=1e-6)


def test_an_average_does_not_change_what_is_trained(recipes: Recipes, trained: list[State], tmp_path: Path) -> None:
    assert main(run_words("finetune", recipes, tmp_path / "one", "data.test=[]")) == 0
    plain = list(trained)
    trained.clear()
    assert main(run_words("finetune", recipes, tmp_path / "two", "data.test=[]", "optimizer.ema_decay=0.5")) == 0
    for one, other in zip(plain, trained, strict=True):
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_skipped_step_leaves_the_average(recipes: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = TrainingModule.judge
    monkeypatch.setattr(
        TrainingModule,
        "judge",
        lambda self, *given: judge(self, *given) or ("bad" if self.trainer.global_step == 2 else ""),
    )
    words = ["optimizer.ema_decay=0.5", "optimizer.bad_steps=skip", "trainer.checkpoint_every_steps=1"]
    words += ["data.validation=[]", "trainer.max_steps=3"]
    assert main(run_words("pretrain", recipes, tmp_path / "run", *words)) == 0
    before, after = (read_checkpoint(tmp_path / "run" / "checkpoints" / f"step-000000{n}.ckpt") for n in (2, 3))
    assert all(torch.equal(tensor, after["average"][name]) for name, tensor in before["average"].items())


def test_a_checkpoint_without_its_average_is_of_another_model(
    recipes: Recipes, refused: Callable[..., str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert main(run_words("pretrain", recipes, run, "data.validation=[]", "trainer.max_steps=2")) == 0
    saved = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(saved.replace("ema_decay: null", "ema_decay: 0.5"))
    words = run_words("pretrain", recipes, run, "data.validation=[]", "optimizer.ema_decay=0.5")
    said = refused(*words, "--resume", run)
    assert "is of another model than the recipe's: the average of the weights" in said


def test_the_mean_of_the_last_checkpoints_is_exported(recipes: Recipes, trained: list[State], tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ["trainer.average_checkpoints=3", "trainer.checkpoint_every_steps=2", "trainer.max_steps=7"]
    assert main(run_words("finetune", recipes, run, *words)) == 0
    steps = [4, 6, 7]
    kept = sorted(int(path.stem[5:]) for path in (run / "checkpoints").glob("step-*.ckpt"))
    assert kept == [2, *steps]  # one more is kept while the last step is not known
    mean = {name: sum(trained[step][name] for step in steps) / 3 for name in trained[0]}
    assert_close(exported(run), mean, trained[-1])


def test_more_checkpoints_than_there_are(recipes: Recipes, refused: Callable[..., str], tmp_path: Path) -> None:
    words = run_words("finetune", recipes, tmp_path / "run", "trainer.average_checkpoints=4")
    said = "trainer.average_checkpoints is 4; a run of 6 steps with a checkpoint every 2 has 3"
    assert said in refused(*words)
    assert "optimizer.ema_decay is 1.0; expected 0 to below 1" in refused(*words, "optimizer.ema_decay=1")
