"""Runs that end before their last step, because validations no longer get better."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssamba.cli import main
from ssamba.training.callbacks import Throughput
from ssamba.training.saved import read_checkpoint

Recipes = dict[str, Path]
# Of the validation after each step; the best are those of steps 1, 2 and 4.
SCORES = [0.1, 0.2, 0.2, 0.3, 0.1, 0.3, 0.2, 0.2, 0.2, 0.2]


@pytest.fixture(autouse=True)
def scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validations have these scores, whatever the model says."""

    def log_score(self: Any) -> None:
        self._scored.clear()
        self.log("val/loss", 1.0)
        self.log("val/accuracy", SCORES[self.trainer.global_step - 1])

    monkeypatch.setattr("ssamba.training.finetuning.FineTuning.on_validation_epoch_end", log_score)


def words_for(recipes: Recipes, run: Path, *words: str) -> list[str]:
    common = ["model.encoder=ssast", "audio.mean=-4", "audio.std=4", "data.test=[]", "trainer.max_steps=10"]
    return ["finetune", str(recipes["finetune"]), f"run_dir={run}", *common, "trainer.validate_every_steps=1", *words]


def record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def last_step(run: Path) -> int:
    return max(int(path.stem[5:]) for path in (run / "checkpoints").glob("step-*.ckpt"))


@pytest.mark.parametrize(("patience", "steps"), [(1, 3), (7, 10)])
def test_training_ends_after_so_many_validations_without_a_better_score(
    patience: int, steps: int, recipes: Recipes, tmp_path: Path
) -> None:
    assert main(words_for(recipes, tmp_path / "run", f"trainer.patience={patience}")) == 0
    held = record(tmp_path / "run")
    assert held["steps"] == last_step(tmp_path / "run") == steps
    best = read_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")["global_step"]
    assert best == (2 if patience == 1 else 4)
    score = {2: 0.2, 4: 0.3}[best]
    said = f"{patience} validations without a better val/accuracy than {score} of step {best}"
    assert held["stopped_early"] == (None if steps == 10 else said)


def test_a_run_that_stopped_early_is_finished_and_a_larger_patience_goes_on(
    recipes: Recipes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    assert main(words_for(recipes, undisturbed)) == 0
    assert record(undisturbed)["stopped_early"] is None and record(undisturbed)["steps"] == 10
    assert main(words_for(recipes, run, "trainer.patience=2")) == 0
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    capsys.readouterr()
    assert main(words_for(recipes, run, "trainer.patience=2", "--resume=auto")) == 0
    assert capsys.readouterr().out == (
        f"the run in {run} is finished: 6 steps, after 2 validations without a better score. "
        "A larger trainer.patience goes on with it\n"
    )
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    # Killed after its last checkpoint, it ends without a step.
    held, model = record(run), weights(run)
    (run / "run.json").unlink()
    (run / "model" / "model.safetensors").unlink()
    assert main(words_for(recipes, run, "trainer.patience=2", "--resume=auto")) == 0
    assert (record(run)["steps"], record(run)["stopped_early"]) == (6, held["stopped_early"])
    assert weights(run) == model and last_step(run) == 6
    assert main(words_for(recipes, run, "trainer.patience=null", "--resume=auto")) == 0
    assert record(run)["stopped_early"] is None and record(run)["steps"] == 10
    assert weights(run) == weights(undisturbed)
    ours, theirs = (read_checkpoint(folder / "checkpoints" / "step-0000010.ckpt") for folder in (run, undisturbed))
    assert str(ours["optimizer_states"]) == str(theirs["optimizer_states"])


@pytest.mark.parametrize("within_validation", [False, True])
def test_what_is_counted_goes_on_with_the_run(
    within_validation: bool, recipes: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, words = tmp_path / "run", ["trainer.patience=3", "trainer.max_steps=10"]
    hook = "on_validation_batch_start" if within_validation else "on_train_batch_end"
    with monkeypatch.context() as patch:
        patch.setattr(
            Throughput, hook, lambda _, trainer, *__: trainer.global_step == 6 and os.kill(os.getpid(), signal.SIGTERM)
        )
        assert main(words_for(recipes, run, *words)) == 143
    assert main(words_for(recipes, run, *words, "--resume=auto")) == 0
    assert record(run)["steps"] == 7 and record(run)["stopped_early"].startswith("3 validations")


def test_patience_without_validations(recipes: Recipes, refused: Callable[..., str], tmp_path: Path) -> None:
    said = refused(*words_for(recipes, tmp_path / "run", "trainer.patience=2", "data.validation=[]"))
    assert "trainer.patience counts validations; data.validation is empty" in said
    assert "trainer.patience is 0; expected" in refused(*words_for(recipes, tmp_path / "run", "trainer.patience=0"))
