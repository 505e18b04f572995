"""Pretraining of which the encoder gets the visible patches alone: what it learns, and what becomes of its runs."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ssamba.audio import samples_for
from ssamba.build.evaluation import build_masked_evaluation
from ssamba.build.runs import build_pretrainer
from ssamba.cli import main
from ssamba.config import ENCODERS, PretrainRecipe, load_recipe
from ssamba.masking import clip_generator
from ssamba.models.checkpoint import load_model
from ssamba.models.heads import MaskedPatchModel
from ssamba.training import callbacks
from ssamba.training.callbacks import PredictionPictures

Recipes = dict[str, Path]
VISIBLE = ["model.encode=visible", "mask.share=0.75"]
EVERY_PART = [f"objective.parts.{name}=1" for name in ("contrastive", "reconstruction", "latent", "clip")]
each_encoder = pytest.mark.parametrize("encoder", ENCODERS)


def build(recipes: Recipes, *words: str) -> Any:
    recipe = load_recipe(recipes["pretrain"], ["run_dir=unused", "audio.mean=-4", "audio.std=4", *VISIBLE, *words])
    assert isinstance(recipe, PretrainRecipe)
    return build_pretrainer(recipe).module


def log_mels(clips: int = 3) -> Tensor:
    return torch.randn(clips, 64, 128, generator=torch.Generator().manual_seed(0))


def rows(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


# A step


def test_the_encoder_starts_from_the_same_weights_either_way(recipes: Recipes) -> None:
    every, visible = (build(recipes, *words).model.encoder for words in (["model.encode=all"], []))
    assert all(torch.equal(a, b) for a, b in zip(every.parameters(), visible.parameters(), strict=True))


@each_encoder
def test_the_student_gets_the_visible_patches_and_the_teacher_all(encoder: str, recipes: Recipes) -> None:
    module = build(recipes, f"model.encoder={encoder}", *EVERY_PART, "mask.per_clip=2")
    seen: list[tuple[str, tuple[int, ...]]] = []
    for name, owner in (("student", module.model), ("teacher", module.teacher)):
        owner.encoder.stack.register_forward_pre_hook(
            lambda _, inputs, name=name: seen.append((name, tuple(inputs[0].shape[:2])))
        )
    module.objectives(log_mels(), module.draw_mask("train", range(3), masks=2))
    classes = module.model.encoder.stack.num_class_tokens
    assert seen == [("teacher", (3, 32 + classes)), ("student", (6, 8 + classes))]


@each_encoder
def test_whatever_waits_for_a_gradient_gets_one(encoder: str, recipes: Recipes) -> None:
    for parts in (["contrastive"], ["reconstruction"], ["latent"], ["clip"], ["contrastive", "reconstruction", "clip"]):
        names = ("contrastive", "reconstruction", "latent", "clip")
        words = [f"objective.parts.{name}={int(name in parts)}" for name in names]
        module = build(recipes, f"model.encoder={encoder}", *words)
        module.objectives(log_mels(), module.draw_mask("train", range(3)))["loss"].backward()
        assert not [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None], parts
        trained = {name for name, p in module.named_parameters() if p.requires_grad}
        assert "model.encoder.mask_token" not in trained
        assert ("model.decoder.mask_token" in trained) == (parts != ["clip"])


def test_several_masks_of_clips_with_padding_are_several_clips(recipes: Recipes) -> None:
    module = build(recipes, *EVERY_PART, "mask.per_clip=2", "data.short=pad").eval()
    lengths = torch.tensor([10_000, 5_000, 1_000])
    mask, own = module.draw_mask("train", range(3), lengths, masks=2), module.own_patches(lengths)
    hidden = mask.sum(1).tolist()
    assert len(set(hidden)) > 1
    together = module.objectives(log_mels(), mask, None, own)
    apart = [module.objectives(log_mels(), mask[index::2], None, own) for index in range(2)]
    for name in ("contrastive", "reconstruction", "latent", "clip"):
        mean = (apart[0][name] * sum(hidden[::2]) + apart[1][name] * sum(hidden[1::2])) / sum(hidden)
        torch.testing.assert_close(together[name], mean, rtol=1e-4, atol=1e-6)


@each_encoder
def test_recomputation_changes_no_number(encoder: str, recipes: Recipes) -> None:
    def gradients(*words: str) -> list[Tensor]:
        module = build(recipes, f"model.encoder={encoder}", "model.drop_path=0.5", *words)
        kept = module.draw_kept(range(3))
        module.objectives(log_mels(), module.draw_mask("train", range(3)), kept)["loss"].backward()
        return [p.grad for p in module.parameters() if p.grad is not None]

    plain, again = gradients(), gradients("trainer.recompute=true")
    assert len(plain) == len(again) and all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize("encode", ["all", "visible"])
def test_a_picture_of_a_clip_with_padding_shows_what_was_predicted(
    encode: str, recipes: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = build(recipes, f"model.encode={encode}", "data.short=pad").eval()
    shown: list[Any] = []
    monkeypatch.setattr(callbacks, "draw_reconstruction", lambda *arguments: shown.append(arguments))
    samples = samples_for(64, 16000)
    waveform = 0.1 * torch.randn(2, samples, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([samples // 2, samples])
    waveform[0, samples // 2 :] = 0
    batch: Any = {"waveform": waveform, "lengths": lengths, "positions": [5, 6], "keys": ["a", "b"]}
    trainer = lightning.Trainer(accelerator="cpu", logger=False, barebones=True)
    PredictionPictures(tmp_path).on_validation_batch_end(trainer, module, None, batch, 0)
    ((_, log_mel, mask, predicted, *_),) = shown
    # As validation has it: among other clips, with as many visible patches as all have.
    together, own = module.draw_mask("validation", [5, 6], lengths), module.own_patches(lengths)
    assert torch.equal(mask, together[0]) and 0 < mask.sum() < together[1].sum()
    with torch.inference_mode():
        said = module.model(module.log_mel(waveform, lengths), together, module.masking.masked, own)
    assert torch.equal(log_mel, module.log_mel(waveform, lengths)[0])
    torch.testing.assert_close(predicted, said.reconstruction[0, : int(mask.sum())], rtol=1e-4, atol=1e-5)


# A run


@each_encoder
def test_a_few_clips_are_learned(encoder: str, recipes: Recipes, tmp_path: Path) -> None:
    words = [
        *VISIBLE,
        f"model.encoder={encoder}",
        "trainer.max_steps=30",
        "data.batch_size=8",
        "optimizer.learning_rate=2e-3",
        "data.validation=[]",
    ]
    assert main(["pretrain", str(recipes["pretrain"]), f"run_dir={tmp_path / 'run'}", *words]) == 0
    curve = [row["train/loss"] for row in rows(tmp_path / "run")]
    assert sum(curve[-5:]) < 0.8 * sum(curve[:5])


@pytest.fixture(scope="module")
def run(recipes: Recipes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "visible"
    assert main(["pretrain", str(recipes["pretrain"]), f"run_dir={folder}", *VISIBLE, "data.short=pad"]) == 0
    return folder


def test_the_exported_model_has_the_decoder(run: Path) -> None:
    config = json.loads((run / "model" / "config.json").read_text())
    assert config["decoder"] == {"hidden_size": 32, "num_hidden_layers": 3}
    model = load_model(run).model
    assert isinstance(model, MaskedPatchModel) and model.decoder is not None
    exported = load_file(run / "model" / "model.safetensors")
    assert torch.equal(exported["decoder.mask_token"], model.decoder.mask_token)


def test_evaluation_scores_hidden_patches_through_the_decoder(run: Path, copy_of: Callable[[Path], Path]) -> None:
    """Against the parts of the model, clip by clip: the patches that a clip shows are counted out."""
    run = copy_of(run)
    assert main(["evaluate", str(run), f"run_dir={run}"]) == 0
    scores = json.loads((run / "evaluation" / "scores.json").read_text())
    recipe = load_recipe(run)
    assert isinstance(recipe, PretrainRecipe)
    made = build_masked_evaluation(recipe)
    model, masking = made.model, made.masking
    encoder, decoder, shape = model.encoder, model.decoder, model.encoder.patch_shape
    assert decoder is not None
    total, clips = 0.0, 0
    for batch in made.validation:
        log_mel = made.log_mel(batch["waveform"], batch["lengths"])
        errors, hidden = 0.0, 0
        for clip, position in enumerate(batch["positions"]):
            one, columns = log_mel[clip : clip + 1], shape.own_columns(made.log_mel.frames(batch["lengths"]), 4)[clip]
            mask = masking.draw(8, 4, [clip_generator(recipe.seed, "evaluation", position)], columns.view(1))[0]
            own = [place for place in range(32) if place % 4 < columns]
            padding = [place for place in range(32) if place % 4 >= columns]
            places = [place for place in own if mask[place]]
            visible = [place for place in own if not mask[place]]
            visible = sorted(visible + padding[: 8 - len(visible)])
            with torch.inference_mode():
                encoded = encoder(one, visible=torch.tensor([visible]))
                filled = decoder(encoded.tokens, torch.tensor([visible]), torch.tensor([places]), (8, 4))
                said = model.reconstruction_head(filled)[0]
            errors += float((said - shape.cut(one)[0, places]).square().mean(1).sum())
            hidden += len(places)
        total += len(log_mel) * errors / hidden
        clips += len(log_mel)
    assert scores["mse"] == pytest.approx(total / clips, rel=1e-4) and scores["clips"] == clips


def test_a_model_of_visible_patches_is_fine_tuned_like_any_other(run: Path, recipes: Recipes, tmp_path: Path) -> None:
    words = [f"run_dir={tmp_path / 'run'}", f"model.pretrained={run}", "trainer.max_steps=2"]
    assert main(["finetune", str(recipes["finetune"]), *words]) == 0
    assert not any("decoder" in name for name in load_file(tmp_path / "run" / "model" / "model.safetensors"))


def test_a_compiled_run_learns_the_same(recipes: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [str(recipes["pretrain"]), *VISIBLE, "model.encoder=ssast", "data.short=pad", "trainer.max_steps=2"]
    assert main(["pretrain", *words, f"run_dir={tmp_path / 'plain'}"]) == 0
    # One graph, or an error; without the C++ code of the default backend, which takes a minute to compile.
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self: compile_module(self, backend="aot_eager", fullgraph=True)
    )
    assert main(["pretrain", *words, f"run_dir={tmp_path / 'compiled'}", "trainer.compile=true"]) == 0
    plain, compiled = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("plain", "compiled"))
    assert plain.keys() == compiled.keys() and "decoder.mask_token" in plain
    for name in plain:
        torch.testing.assert_close(compiled[name], plain[name], rtol=1e-4, atol=1e-6)
