"""Masked-patch pretraining: the objectives, the masks, the schedule, and the stop at what is not finite."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ssamba.build.runs import build_pretrainer
from ssamba.cli import main
from ssamba.config import AUDIO_RANGES, ENCODERS, PretrainRecipe, load_recipe
from ssamba.losses import info_nce, reconstruction_mse
from ssamba.training.pretraining import Pretraining

each_encoder = pytest.mark.parametrize("encoder", ENCODERS)
Runs = Callable[[str], Path]


def pretrain(recipes: dict[str, Path], run: Path, *words: str) -> list[dict[str, float]]:
    """Run the command; the rows of metrics.csv, without what a row does not hold."""
    assert main(["pretrain", str(recipes["pretrain"]), f"run_dir={run}", *words]) == 0
    return metrics(run)


def metrics(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def build(recipes: dict[str, Path], *words: str) -> Any:
    recipe = load_recipe(recipes["pretrain"], ["run_dir=unused", "audio.mean=-4", "audio.std=4", *words])
    assert isinstance(recipe, PretrainRecipe)
    return build_pretrainer(recipe)


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "model" / "model.safetensors")


# Objectives


@each_encoder
def test_joint_is_contrastive_plus_ten_times_reconstruction(encoder: str, pretrained: Runs) -> None:
    logged = metrics(pretrained(encoder))
    for kind, count in (("train", 4), ("val", 2)):
        found = [row for row in logged if f"{kind}/loss" in row]
        assert len(found) == count
        for row in found:
            joint = row[f"{kind}/contrastive"] + 10 * row[f"{kind}/reconstruction"]
            assert row[f"{kind}/loss"] == pytest.approx(joint, rel=1e-5)


@pytest.mark.parametrize("weight", [0.5, 2.5])
def test_the_weight_of_reconstruction_is_the_recipes(recipes: dict[str, Path], weight: float, tmp_path: Path) -> None:
    (row,) = pretrain(
        recipes,
        tmp_path / "run",
        "model.encoder=ssast",
        f"objective.parts.reconstruction={weight}",
        "trainer.max_steps=1",
        "data.validation=[]",
    )
    assert row["train/loss"] == pytest.approx(row["train/contrastive"] + weight * row["train/reconstruction"])


@pytest.mark.parametrize(("name", "other"), [("contrastive", "reconstruction"), ("reconstruction", "contrastive")])
def test_an_objective_alone_trains_its_own_head_alone(
    name: str, other: str, recipes: dict[str, Path], tmp_path: Path
) -> None:
    words = ["model.encoder=ssast", f"objective.parts.{other}=0", f"objective.parts.{name}=1"]
    start = {key: tensor.clone() for key, tensor in build(recipes, *words).module.model.state_dict().items()}
    logged = pretrain(recipes, tmp_path / "run", *words, "trainer.max_steps=2")
    for row in logged:
        kind = "train" if "train/loss" in row else "val"
        assert row[f"{kind}/loss"] == row[f"{kind}/{name}"]
        assert f"{kind}/{other}" not in row
    trained = weights(tmp_path / "run")
    moved = {key for key in start if not torch.equal(start[key], trained[key])}
    assert not {key for key in moved if key.startswith(f"{other}_head")}
    assert {key for key in start if key.startswith(f"{name}_head")} <= moved
    assert {"encoder.projection.weight", "encoder.positions", "encoder.mask_token"} <= moved


@each_encoder
def test_the_step_is_the_losses_of_the_masked_patches(encoder: str, recipes: dict[str, Path]) -> None:
    module = build(recipes, f"model.encoder={encoder}").module
    generator = torch.Generator().manual_seed(0)
    log_mel = torch.randn(3, 64, 128, generator=generator)
    mask = module.draw_mask("train", range(3))
    values = module.objectives(log_mel, mask)
    said = module.model(log_mel, mask)
    wanted = info_nce(said.contrastive, said.target)
    assert torch.equal(values["contrastive"], wanted.loss) and torch.equal(values["accuracy"], wanted.accuracy)
    assert torch.equal(values["reconstruction"], reconstruction_mse(said.reconstruction, said.target))
    values["loss"].backward()
    # One loss reaches everything but the token of the encoder that no head reads.
    without = {name for name, p in module.model.named_parameters() if p.grad is None or not p.grad.any()}
    assert not without


def test_a_few_clips_are_learned(recipes: dict[str, Path], tmp_path: Path) -> None:
    logged = pretrain(
        recipes,
        tmp_path / "run",
        "model.encoder=ssast",
        "trainer.max_steps=40",
        "data.batch_size=16",
        "optimizer.learning_rate=2e-3",
        "data.validation=[]",
    )
    for name, share in (("loss", 0.75), ("contrastive", 0.85), ("reconstruction", 0.75)):
        curve = [row[f"train/{name}"] for row in logged]
        assert sum(curve[-5:]) < share * sum(curve[:5]), name
    assert sum(row["train/accuracy"] for row in logged[-5:]) / 5 > 2 / 12  # twice what chance hits of 12 patches


@pytest.mark.parametrize("encoder", [name for name in ENCODERS if name != "ssast"])
def test_the_other_encoders_learn_as_well(encoder: str, recipes: dict[str, Path], tmp_path: Path) -> None:
    logged = pretrain(
        recipes,
        tmp_path / "run",
        f"model.encoder={encoder}",
        "trainer.max_steps=20",
        "data.batch_size=8",
        "optimizer.learning_rate=2e-3",
        "data.validation=[]",
    )
    curve = [row["train/loss"] for row in logged]
    assert sum(curve[-5:]) < 0.8 * sum(curve[:5])


# Masks


def test_masks_change_with_the_step_and_the_clip_and_validation_keeps_its_own(
    recipes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, list[Tensor]] = {"train": [], "validation": []}
    objectives = Pretraining.objectives

    def spy(self: Pretraining, log_mel: Tensor, mask: Tensor, *more: Any) -> dict[str, Tensor]:
        seen["train" if self.training else "validation"].append(mask.clone())
        return objectives(self, log_mel, mask, *more)

    monkeypatch.setattr(Pretraining, "objectives", spy)
    pretrain(recipes, tmp_path / "run", "model.encoder=ssast", "mask.kind=random")
    train, validation = torch.cat(seen["train"]), seen["validation"]
    assert train.shape == (16, 32) and (train.sum(1) == 12).all()
    assert len(train.unique(dim=0)) == 16
    first, second = torch.cat(validation[: len(validation) // 2]), torch.cat(validation[len(validation) // 2 :])
    assert torch.equal(first, second)
    assert len(first.unique(dim=0)) == len(first) and (first.sum(1) == 12).all()


@pytest.mark.parametrize("mask", ["cluster", "random"])
def test_the_mask_is_the_recipes(mask: str, recipes: dict[str, Path]) -> None:
    module = build(recipes, "model.encoder=ssast", f"mask.kind={mask}", "mask.share=0.28").module
    drawn = module.draw_mask("train", range(400)).view(400, 8, 4)
    assert (drawn.sum((1, 2)) == 9).all()
    # Clusters: a hidden patch more often has a hidden neighbour.
    neighbours = (drawn[:, 1:] & drawn[:, :-1]).sum() / drawn[:, 1:].sum()
    assert (neighbours > 0.5) == (mask == "cluster")


def test_weights_are_drawn_by_the_seed_alone(recipes: dict[str, Path]) -> None:
    def drawn(seed: int) -> Tensor:
        torch.rand(3)
        return build(recipes, "model.encoder=ssast", f"seed={seed}").module.model.encoder.positions

    assert torch.equal(drawn(0), drawn(0)) and not torch.equal(drawn(0), drawn(1))


# What is not finite


@pytest.mark.parametrize(
    "words", [["optimizer.learning_rate=1e6", "optimizer.weight_decay=1e6"], ["audio.mean=0", "audio.std=1e-40"]]
)
def test_a_loss_that_is_not_finite_stops_the_run(
    words: list[str],
    recipes: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # No recipe may say so small a deviation: it stands for an input that is not finite.
    monkeypatch.setitem(AUDIO_RANGES, "std", (0, 1))
    run = tmp_path / "run"
    command = ["pretrain", str(recipes["pretrain"]), f"run_dir={run}", "model.encoder=ssast", *words]
    assert main([*command, "optimizer.warmup_steps=0", "data.validation=[]"]) == 2
    said = capsys.readouterr().err
    (message,) = [line for line in said.splitlines() if line.startswith("ssamba: ")]
    step = 1 if "learning_rate" in words[0] else 0
    assert message.startswith(f"ssamba: step {step}: the loss is not finite (loss ")
    assert all(f"{name} " in message for name in ("contrastive", "reconstruction", "accuracy"))
    # Four packed clips of named recordings.
    names = message.split("samples: ")[1].split(". ")[0].split(", ")
    assert len(names) == 4
    assert all(part.split("-")[0] in ("falling", "high", "low", "rising") for name in names for part in name.split("+"))
    assert "Traceback" not in said
    assert not (run / "model").exists() and not (run / "run.json").exists()


def test_a_gradient_that_is_not_finite_stops_the_run(
    recipes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    objectives = Pretraining.objectives

    def infinite_slope(self: Pretraining, log_mel: Tensor, mask: Tensor, *more: Any) -> dict[str, Tensor]:
        values = objectives(self, log_mel, mask, *more)
        return {**values, "loss": values["loss"] + (values["loss"] - values["loss"].detach()).abs().sqrt()}

    monkeypatch.setattr(Pretraining, "objectives", infinite_slope)
    words = [f"run_dir={tmp_path / 'run'}", "model.encoder=ssast"]
    assert main(["pretrain", str(recipes["pretrain"]), *words]) == 2
    assert "step 0: the gradient is not finite; samples: " in capsys.readouterr().err


# Precision


@each_encoder
def test_a_bfloat16_step_is_finite_and_keeps_float32_weights(
    encoder: str, recipes: dict[str, Path], pretrained: Runs, tmp_path: Path
) -> None:
    words = [f"model.encoder={encoder}", "trainer.precision=bf16-mixed", "trainer.max_steps=2"]
    logged = pretrain(recipes, tmp_path / "run", *words)
    assert all(math.isfinite(value) for row in logged for value in row.values())
    trained = weights(tmp_path / "run")
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    assert all(bool(tensor.isfinite().all()) for tensor in trained.values())
    # Close to float32's first loss, and not it.
    exact = metrics(pretrained(encoder))[0]["train/loss"]
    assert logged[0]["train/loss"] == pytest.approx(exact, rel=0.05)
    assert logged[0]["train/loss"] != exact


# Schedules, as metrics.csv has them


def rates(logged: list[dict[str, float]]) -> list[float]:
    return [row["learning_rate"] for row in logged if "learning_rate" in row]


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_learning_rates_as_logged(schedule: str, recipes: dict[str, Path], tmp_path: Path) -> None:
    logged = pretrain(
        recipes,
        tmp_path / "run",
        "model.encoder=ssast",
        "data.validation=[]",
        "trainer.max_steps=8",
        f"optimizer.schedule={schedule}",
        "optimizer.warmup_steps=3",
        "optimizer.final_fraction=0.1",
    )
    after = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * n / 5)) for n in range(5)] if schedule == "cosine" else [1] * 5
    assert rates(logged) == pytest.approx([1e-3 * factor for factor in (1 / 3, 2 / 3, 1, *after)], rel=1e-5)


def test_the_plateau_halves_the_rate_after_validations_that_are_no_better(
    recipes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objectives = Pretraining.objectives

    def stalled(self: Pretraining, log_mel: Tensor, mask: Tensor, *more: Any) -> dict[str, Tensor]:
        values = objectives(self, log_mel, mask, *more)
        return values if self.training else {name: torch.ones(()) for name in values}

    monkeypatch.setattr(Pretraining, "objectives", stalled)
    logged = pretrain(
        recipes,
        tmp_path / "run",
        "model.encoder=ssast",
        "optimizer.schedule=plateau",
        "optimizer.plateau_patience=1",
        "optimizer.warmup_steps=4",
        "trainer.max_steps=11",
        "data.batch_size=2",
        "trainer.accumulate=2",
    )
    # Validations after 2, 4, 6, 8, 10 steps: the first is the best so far, the third and the fifth are one too many.
    factors = [0.25, 0.5, 0.75, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25]
    assert rates(logged) == pytest.approx([1e-3 * factor for factor in factors], rel=1e-5)


# Recomputation and compilation


@each_encoder
def test_recomputation_changes_no_number_and_keeps_less(encoder: str, recipes: dict[str, Path]) -> None:
    def step(*words: str) -> tuple[list[Tensor], int]:
        """The gradients of one step, and the bytes that autograd kept for them."""
        module = build(recipes, f"model.encoder={encoder}", *words).module
        kept: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        log_mel = torch.randn(4, 64, 128, generator=torch.Generator().manual_seed(1))
        mask = module.draw_mask("train", range(4))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = module.objectives(log_mel, mask)["loss"]
        loss.backward()
        return [p.grad for p in module.parameters() if p.grad is not None], sum(kept.values())

    (plain, all_kept), (again, inputs_kept) = step(), step("trainer.recompute=true")
    assert len(plain) == len(again) and all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert inputs_kept < all_kept / 2


def test_a_compiled_run_learns_the_same(
    recipes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["model.encoder=ssamba", "trainer.max_steps=2"]
    pretrain(recipes, tmp_path / "plain", *words)
    # One graph, or an error; without the C++ code of the default backend, which takes a minute to compile.
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self: compile_module(self, backend="aot_eager", fullgraph=True)
    )
    pretrain(recipes, tmp_path / "compiled", *words, "trainer.compile=true")
    plain, compiled = weights(tmp_path / "plain"), weights(tmp_path / "compiled")
    assert plain.keys() == compiled.keys()
    for name in plain:
        torch.testing.assert_close(compiled[name], plain[name], rtol=1e-4, atol=1e-6)


def test_compilation_without_a_compiler_is_told_before_the_run(
    recipes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    words = [f"run_dir={tmp_path / 'run'}", "trainer.compile=true", "trainer.accelerator=cpu"]
    assert main(["pretrain", str(recipes["pretrain"]), *words]) == 2
    assert "there is no no-such-compiler" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
