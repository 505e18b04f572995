"""The parts of pretraining's loss, one by one, and together as a run has them."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ssamba.build.runs import build_pretrainer
from ssamba.cli import main
from ssamba.config import ENCODERS, PretrainRecipe, load_recipe
from ssamba.models.checkpoint import load_model
from ssamba.models.heads import MaskedPrediction
from ssamba.objectives import PARTS, Seen, Targets, clip, latent, spread
from ssamba.training import pretraining

Recipes = dict[str, Path]
LATENT = ["objective.parts.contrastive=0", "objective.parts.reconstruction=0", "objective.parts.latent=1"]
TAUGHT = [*LATENT, "objective.parts.clip=0.5", "mask.per_clip=2"]


def build(recipes: Recipes, *words: str) -> Any:
    recipe = load_recipe(recipes["pretrain"], ["run_dir=unused", "audio.mean=-4", "audio.std=4", *words])
    assert isinstance(recipe, PretrainRecipe)
    return build_pretrainer(recipe).module


def log_mels(clips: int = 3) -> Tensor:
    return torch.randn(clips, 64, 128, generator=torch.Generator().manual_seed(0))


def rows(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def seen_of(hidden: Tensor | None, masks: int = 2) -> Seen:
    """Two clips of 5 patches, each behind `masks` masks of 3 patches, of width 4."""
    generator = torch.Generator().manual_seed(1)
    count = 2 * masks
    places = torch.stack([torch.randperm(5, generator=generator)[:3].sort().values for _ in range(count)])
    more = {
        "latent": torch.randn(count, 3, 4, generator=generator),
        "clip": torch.randn(count, 4, generator=generator),
    }
    pixels = torch.randn(count, 3, 6, generator=generator)
    targets = Targets(
        torch.randn(2, 5, 4, generator=generator), torch.randn(2, 4, generator=generator), torch.tensor(0.4)
    )
    return Seen(MaskedPrediction(pixels, pixels, pixels, hidden, places, more), masks, targets)


@pytest.mark.parametrize("unequal", [False, True])
def test_latent_is_the_squared_error_of_the_targets_at_the_hidden_places(unequal: bool) -> None:
    hidden = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [1, 1, 1]]).bool() if unequal else None
    seen = seen_of(hidden)
    found = latent(seen)
    said, targets = seen.prediction, seen.targets
    assert targets is not None
    errors, told = [], []
    for view in range(4):
        for index, place in enumerate(said.places[view].tolist()):
            if hidden is None or hidden[view, index]:
                wanted = targets.patches[view // 2, place]
                errors.append(float((said.more["latent"][view, index] - wanted).square().mean()))
                told.append(said.more["latent"][view, index])
    assert found["latent"].item() == pytest.approx(sum(errors) / len(errors), rel=1e-5)
    torch.testing.assert_close(found["latent_spread"], spread(torch.stack(told).unsqueeze(0)))
    assert found["teacher_spread"].item() == pytest.approx(0.4)


def test_clip_is_the_squared_error_of_the_clips_targets() -> None:
    seen = seen_of(None)
    found, said, targets = clip(seen), seen.prediction.more["clip"], seen.targets
    assert targets is not None
    errors = [float((said[view] - targets.clips[view // 2]).square().mean()) for view in range(4)]
    assert found["clip"].item() == pytest.approx(sum(errors) / 4, rel=1e-5)
    torch.testing.assert_close(found["clip_spread"], spread(said.unsqueeze(0)))


def test_the_loss_is_the_sum_of_the_parts_by_their_weights(recipes: Recipes) -> None:
    weights = {"contrastive": 0.5, "reconstruction": 3.0, "latent": 2.0, "clip": 0.25}
    module = build(recipes, *(f"objective.parts.{name}={weight}" for name, weight in weights.items()))
    values = module.objectives(log_mels(), module.draw_mask("train", range(3)))
    assert list(values)[0] == "loss" and weights.keys() <= values.keys()
    wanted = sum(weight * values[name] for name, weight in weights.items())
    torch.testing.assert_close(values["loss"], wanted)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_encoder_learns_from_a_teacher(encoder: str, recipes: Recipes) -> None:
    module = build(recipes, f"model.encoder={encoder}", *LATENT, "objective.parts.clip=1")
    assert module.teacher is not None
    values = module.objectives(log_mels(), module.draw_mask("train", range(3)))
    values["loss"].backward()
    without = {name for name, p in module.named_parameters() if p.requires_grad and p.grad is None}
    assert not without
    reached = {name.split(".")[1] for name, p in module.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {"encoder", "more_heads"}
    assert not any(p.grad is not None for p in module.teacher.parameters())


def test_without_such_a_part_there_is_no_teacher(recipes: Recipes) -> None:
    module = build(recipes)
    assert module.teacher is None and not module.model.more_heads
    assert not any("teacher" in name for name in module.state_dict())


# Several masks of a clip


def test_the_masks_of_a_clip_differ_and_the_first_is_that_of_one(recipes: Recipes) -> None:
    module = build(recipes)
    one, three = module.draw_mask("train", range(40)), module.draw_mask("train", range(40), masks=3)
    assert three.shape == (120, 32) and torch.equal(three[::3], one)
    same = (three.view(40, 3, 1, 32) == three.view(40, 1, 3, 32)).all(3).sum()
    assert same < 1.05 * 120  # of the grid's few places for a cluster some come twice


def test_several_masks_are_several_clips(recipes: Recipes) -> None:
    """The loss of V masks is the mean of the losses of each: by the same clips, one after another."""
    module = build(recipes, *TAUGHT, "objective.parts.contrastive=1").eval()
    mask = module.draw_mask("train", range(3), masks=2)
    values = module.objectives(log_mels(), mask)
    apart = [module.objectives(log_mels(), mask[index::2]) for index in range(2)]
    for name in ("loss", "contrastive", "accuracy", "latent", "clip"):
        torch.testing.assert_close(values[name], (apart[0][name] + apart[1][name]) / 2, rtol=1e-4, atol=1e-6)


def test_each_mask_has_a_drop_path_of_its_own(recipes: Recipes) -> None:
    module = build(recipes, "model.drop_path=0.5")
    one, two = module.draw_kept(range(50)), module.draw_kept(range(50), 2)
    assert torch.equal(two[..., ::2], one) and not torch.equal(two[..., 1::2], one)


# A run


@pytest.fixture(scope="module")
def run(recipes: Recipes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "taught"
    assert main(["pretrain", str(recipes["pretrain"]), f"run_dir={folder}", *TAUGHT]) == 0
    return folder


def test_a_run_logs_each_part_and_exports_no_head_of_pretraining_alone(run: Path) -> None:
    logged = rows(run)
    names = {"latent", "clip", "latent_spread", "clip_spread", "teacher_spread"}
    for kind in ("train", "val"):
        assert all({f"{kind}/{name}" for name in names} <= row.keys() for row in logged if f"{kind}/loss" in row)
        assert not any(f"{kind}/contrastive" in row for row in logged)
    exported = load_file(run / "model" / "model.safetensors")
    assert not any(name.startswith(("more_heads", "teacher")) for name in exported)
    load_model(run)
    pictures = {path.name for path in (run / "pictures").iterdir()}
    assert pictures == {"curves.png", "latent-0000002.png", "latent-0000004.png"}


@pytest.mark.parametrize("part", ["latent", "clip"])
def test_no_loss_of_moving_targets_chooses_a_model(
    part: str, run: Path, recipes: Recipes, refused: Callable[..., str], tmp_path: Path
) -> None:
    """The last one is exported, although there were validations, and nothing counts them by their loss."""
    assert any("val/loss" in row for row in rows(run))
    assert json.loads((run / "run.json").read_text())["exported"] == {"steps": [4], "averaged_over_steps": False}
    assert not (run / "checkpoints" / "best.ckpt").exists()
    words = [str(recipes["pretrain"]), f"run_dir={tmp_path / 'new'}", f"objective.parts.{part}=1"]
    said = refused("pretrain", *words, "trainer.patience=2", "optimizer.schedule=plateau")
    for name in ("trainer.patience counts by", "optimizer.schedule is plateau, which watches"):
        assert f"{name} val/loss, which ranks nothing with the moving targets of objective.parts.{part}" in said


def test_the_teacher_follows_each_step_of_a_run(run: Path, recipes: Recipes) -> None:
    """After each step by what the step made of the student: as the checkpoints have both."""
    states = [torch.load(run / "checkpoints" / f"step-000000{step}.ckpt", weights_only=True) for step in (2, 4)]
    start = build(recipes, *TAUGHT).model.encoder.positions.detach()
    student, teacher = (
        [state["state_dict"][f"{owner}.encoder.positions"] for state in states] for owner in ("model", "teacher")
    )
    assert not torch.equal(student[1], teacher[1]) and not torch.equal(teacher[0], teacher[1])
    # Far closer to where it began than the student is.
    assert (teacher[1] - start).norm() < 0.2 * (student[1] - start).norm()


def test_a_taught_model_is_fine_tuned_like_any_other(run: Path, recipes: Recipes, tmp_path: Path) -> None:
    words = [f"run_dir={tmp_path / 'run'}", f"model.pretrained={run}", "trainer.max_steps=2"]
    assert main(["finetune", str(recipes["finetune"]), *words]) == 0


# Collapse


@pytest.mark.parametrize("what", ["latent", "clip", "teacher"])
def test_a_run_that_collapses_ends_with_the_reason(
    what: str, recipes: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pretraining, "COLLAPSE_AFTER", 2)
    part = PARTS["clip" if what == "clip" else "latent"]

    def alike(seen: Seen) -> dict[str, Tensor]:
        return {**part(seen), f"{what}_spread": torch.tensor(0.009)}

    monkeypatch.setitem(PARTS, "clip" if what == "clip" else "latent", alike)
    run = tmp_path / "run"
    assert main(["pretrain", str(recipes["pretrain"]), f"run_dir={run}", *TAUGHT]) == 2
    said = capsys.readouterr().err
    who = "the teacher" if what == "teacher" else f"the predictions of objective.parts.{what}"
    assert f"ssamba: step 2: {who} collapsed: {what}_spread is 0.009" in said and "Traceback" not in said
    assert not (run / "model").exists()


def test_a_student_that_says_the_same_of_all_is_seen(recipes: Recipes) -> None:
    module = build(recipes, *TAUGHT)
    with torch.no_grad():
        for head in module.model.more_heads.values():
            head.projection[2].weight.zero_()
    values = module.objectives(log_mels(), module.draw_mask("train", range(3), masks=2))
    assert values["latent_spread"] < 1e-6 and values["clip_spread"] < 1e-6
    assert values["teacher_spread"] > 0.05
