"""Steps that would ruin the weights: left out and counted, or the end of the run, and alike before and after a stop."""

import csv
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssamba.cli import main
from ssamba.training import callbacks
from ssamba.training.pretraining import Pretraining
from ssamba.training.saved import read_checkpoint

Recipes = dict[str, Path]
Spoil = Callable[..., None]


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Spoil:
    """Multiply the loss of these batches of training, counted from 0 over all starts, by a factor."""
    objectives, seen = Pretraining.objectives, [0]
    monkeypatch.setattr(callbacks, "FEW_STEPS", 10**9)  # batches that are rehearsed are not those that are counted

    def spoil(batches: range | set[int], factor: float) -> None:
        def spoiled(self: Pretraining, log_mel: Tensor, mask: Tensor, *more: Any) -> dict[str, Tensor]:
            values = objectives(self, log_mel, mask, *more)
            if self.training:
                if seen[0] in batches:
                    values["loss"] = values["loss"] * factor
                seen[0] += 1
            return values

        seen[0] = 0
        monkeypatch.setattr(Pretraining, "objectives", spoiled)

    return spoil


def pretrain(recipes: Recipes, run: Path, *words: str) -> int:
    common = ["model.encoder=ssast", "data.validation=[]", "optimizer.schedule=constant", "optimizer.warmup_steps=0"]
    return main(["pretrain", str(recipes["pretrain"]), f"run_dir={run}", *common, *words])


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def state(run: Path, step: int) -> tuple[dict[str, Tensor], dict[int, dict[str, Tensor]]]:
    content = read_checkpoint(run / "checkpoints" / f"step-{step:07d}.ckpt")
    return content["state_dict"], content["optimizer_states"][0]["state"]


@pytest.mark.parametrize("factor", [math.nan, math.inf])
@pytest.mark.parametrize("batch", [4, 5])  # the first and the second half of the third step
def test_a_skipped_step_changes_nothing(
    factor: float, batch: int, spoil: Spoil, recipes: Recipes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    spoil({batch}, factor)
    skip = ["optimizer.bad_steps=skip", "trainer.accumulate=2", "trainer.checkpoint_every_steps=1"]
    assert pretrain(recipes, run, *skip, "trainer.max_steps=3") == 0
    (before, moments_before), (after, moments_after) = state(run, 2), state(run, 3)
    assert all(torch.equal(before[name], after[name]) for name in before)
    for number, held in moments_before.items():
        assert all(torch.equal(held[name], moments_after[number][name]) for name in held)
    assert [float(row["skipped_steps"]) for row in rows(run)] == [0, 0, 1]
    (record,) = caplog.records
    said = record.getMessage()
    assert said.startswith("step 2 is skipped: the loss is not finite (loss ")
    assert said.count(", ", said.index("samples: ")) == 1  # the two clips of the bad half
    # The next step is taken.
    spoil(set(), 1)
    assert pretrain(recipes, run, *skip, "trainer.max_steps=4", "--resume", "auto") == 0
    assert not all(torch.equal(after[name], state(run, 4)[0][name]) for name in after)
    assert float(rows(run)[-1]["skipped_steps"]) == 1


def test_many_in_a_row_end_the_run(
    spoil: Spoil, recipes: Recipes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "optimizer.bad_steps=skip",
        "trainer.max_steps=50",
        "data.batch_size=1",
        "trainer.checkpoint_every_steps=9",
    ]
    spoil({*range(1, 21), *range(22, 60)}, math.nan)  # 20 are borne
    assert pretrain(recipes, tmp_path / "run", *words) == 2
    said = capsys.readouterr().err
    assert "ssamba: step 42: 20 steps in a row were skipped, and now the loss is not finite (loss nan" in said
    assert "bad_steps=skip" not in said
    assert float(rows(tmp_path / "run")[-1]["skipped_steps"]) == 40


SPIKES = ["optimizer.spike_factor=5", "data.batch_size=2", "trainer.max_steps=16"]


def test_a_spike_is_skipped(spoil: Spoil, recipes: Recipes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "run"
    spoil({3, 12, 14}, 30)  # the fourth step has too few before it to be judged by
    assert pretrain(recipes, run, *SPIKES, "optimizer.bad_steps=skip") == 0
    assert [float(row["skipped_steps"]) for row in rows(run)] == [0] * 12 + [1, 1, 2, 2]
    assert [record.getMessage().split(": the loss is ")[0] for record in caplog.records] == [
        "step 12 is skipped",
        "step 14 is skipped",
    ]
    losses = [float(row["train/loss"]) for row in rows(run)]
    usual = sorted(losses[:12])[5:7]
    assert f"the loss is {losses[12]:g}, the median of the last steps {sum(usual) / 2:g}" in caplog.text


def test_a_spike_ends_the_run_where_bad_steps_do(
    spoil: Spoil, recipes: Recipes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil({12}, 30)
    assert pretrain(recipes, tmp_path / "run", *SPIKES) == 2
    said = capsys.readouterr().err
    assert "ssamba: step 12: the loss is " in said and "optimizer.bad_steps=skip leaves such steps out" in said


def test_what_is_judged_by_goes_on_with_the_run(spoil: Spoil, recipes: Recipes, tmp_path: Path) -> None:
    words = [*SPIKES, "optimizer.bad_steps=skip"]
    spikes = {5, 9, 12, 14}
    spoil(spikes, 30)
    assert pretrain(recipes, tmp_path / "undisturbed", *words) == 0
    spoil(spikes, 30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "ssamba.training.callbacks.Throughput.on_train_batch_end",
            lambda self, trainer, *_: trainer.global_step == 11 and os.kill(os.getpid(), signal.SIGTERM),
        )
        assert pretrain(recipes, tmp_path / "run", *words) == 143
    assert pretrain(recipes, tmp_path / "run", *words, "--resume", "auto") == 0
    ours, theirs = (tmp_path / name / "model" / "model.safetensors" for name in ("run", "undisturbed"))
    assert ours.read_bytes() == theirs.read_bytes()
    assert [row["skipped_steps"] for row in rows(tmp_path / "run")] == [
        row["skipped_steps"] for row in rows(tmp_path / "undisturbed")
    ]
