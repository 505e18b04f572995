"""Fine-tuning: what is trained and how fast, what augmentation does to numbers, and several batches a step."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import torch.nn.functional as F
from plain_pools import Pooled, plain_pool, pools_watched
from safetensors.torch import load_file
from torch import Tensor

from ssamba.audio import frames_in
from ssamba.build.runs import build_finetuner, build_pretrainer
from ssamba.cli import main
from ssamba.config import ENCODERS, FinetuneRecipe, PretrainRecipe, load_recipe
from ssamba.data.prepare.recordings import Recording
from ssamba.errors import UserError
from ssamba.evaluation.classification import predict
from ssamba.models.checkpoint import load_model, save_model
from ssamba.models.heads import AudioClassifier
from ssamba.models.pools import POOLINGS
from ssamba.training.finetuning import Augmentation

each_encoder = pytest.mark.parametrize("encoder", ENCODERS)
Runs = Callable[[str], Path]
Capture = pytest.CaptureFixture[str]
RATE = 16000


def finetune(recipes: dict[str, Path], run: Path, *words: str) -> list[dict[str, float]]:
    """Run the command; the rows of metrics.csv, without what a row does not hold."""
    assert main(["finetune", str(recipes["finetune"]), f"run_dir={run}", *words]) == 0
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def build(recipes: dict[str, Path], *words: str) -> Any:
    recipe = load_recipe(recipes["finetune"], ["run_dir=unused", "audio.mean=-4", "audio.std=4", *words])
    assert isinstance(recipe, FinetuneRecipe)
    return build_finetuner(recipe)


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "model" / "model.safetensors")


def augmentation(**parts: Any) -> Augmentation:
    none = {
        "mixup": 0.0,
        "frequency_mask": 0,
        "time_mask": 0,
        "noise": 0.0,
        "time_shift": 0,
        "time_stretch": 0.0,
        "frequency_shift": 0,
        "gain": 0.0,
        "tilt": 0.0,
        "scale": 8.0,
    }
    return Augmentation(**{**none, **parts})


def spectrograms(batch: int = 8, frames: int = 40, bins: int = 16) -> Tensor:
    return torch.randn(batch, frames, bins, generator=torch.Generator().manual_seed(0))


def whole(log_mel: Tensor) -> Tensor:
    """The frames of clips without padding."""
    return torch.full((len(log_mel),), log_mel.shape[1])


# What is trained


@each_encoder
def test_a_frozen_encoder_stays_as_it_was_and_its_head_moves(
    encoder: str, recipes: dict[str, Path], pretrained: Runs, tmp_path: Path
) -> None:
    words = [f"model.encoder={encoder}", f"model.pretrained={pretrained(encoder)}", "task.freeze_encoder=true"]
    start = {name: tensor.clone() for name, tensor in build(recipes, *words).module.model.state_dict().items()}
    finetune(recipes, tmp_path / "run", *words, "data.test=[]", "data.validation=[]")
    trained, first = weights(tmp_path / "run"), weights(pretrained(encoder))
    for name, tensor in trained.items():
        if name.startswith("encoder."):
            assert torch.equal(tensor, first[name]), name
        else:
            assert not torch.equal(tensor, start[name]), name


def test_the_head_has_its_own_rate(recipes: dict[str, Path], pretrained: Runs, tmp_path: Path) -> None:
    words = ["model.encoder=ssast", f"model.pretrained={pretrained('ssast')}", "optimizer.learning_rate=0"]
    logged = finetune(
        recipes, tmp_path / "run", *words, "optimizer.head_learning_rate=0.01", "data.test=[]", "data.validation=[]"
    )
    assert [row["learning_rate"] for row in logged] == [0] * 4  # the encoder's
    trained, first = weights(tmp_path / "run"), weights(pretrained("ssast"))
    assert all(torch.equal(trained[name], first[name]) for name in trained if name.startswith("encoder."))
    # AdamW's first steps are as long as the rate: 0.005, 0.01, ...
    assert 0.004 < trained["head.1.bias"].abs().max() < 0.04


def test_optimizer_groups(recipes: dict[str, Path]) -> None:
    def rates(*words: str) -> set[tuple[bool, float]]:
        module = build(recipes, "model.encoder=ssast", *words).module
        module.trainer = type("Trainer", (), {"val_check_interval": 1, "precision": "32-true"})()
        optimizer = module.configure_optimizers()["optimizer"]
        heads = {id(p) for p in module.model.head.parameters()}
        return {(id(p) in heads, group["initial_lr"]) for group in optimizer.param_groups for p in group["params"]}

    assert rates("optimizer.head_learning_rate=0.5") == {(True, 0.5), (False, 1e-3)}
    assert rates() == {(True, 1e-3), (False, 1e-3)}
    assert rates("task.freeze_encoder=true", "optimizer.head_learning_rate=0.5") == {(True, 0.5)}


@pytest.mark.parametrize("label", ["sound", "tags"])
def test_sounds_are_learned(label: str, recipes: dict[str, Path], corpus: Path, tmp_path: Path) -> None:
    loss = "cross_entropy" if label == "sound" else "bce"
    logged = finetune(
        recipes,
        tmp_path / "run",
        "model.encoder=ssast",
        f"task.label={label}",
        f"task.loss={loss}",
        "trainer.max_steps=40",
        "trainer.validate_every_steps=20",
        "data.batch_size=12",
        "optimizer.learning_rate=2e-3",
    )
    curve = [row["train/loss"] for row in logged if "train/loss" in row]
    assert sum(curve[-5:]) < 0.6 * sum(curve[:5])
    scores = json.loads((tmp_path / "run" / "run.json").read_text())["test"]
    assert scores["accuracy" if label == "sound" else "mAP"] > 0.8
    assert (tmp_path / "run" / "test" / "confusion.png").exists() == (label == "sound")
    if label == "tags":
        with (tmp_path / "run" / "test" / "predictions.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert {row["true"] for row in rows} == {"falling|gliding", "gliding|rising", "high|steady", "low|steady"}
        assert {"val/mAP"} == {name for row in logged for name in row if name.startswith("val/")} - {"val/loss"}


@pytest.mark.parametrize(
    ("encoder", "name", "values"),
    [
        ("ssamba", "residual", ("plain", "doubling")),
        ("ssamba", "patch_order", ("frequency", "time")),
        ("aum", "scan_layout", ("fo_bi", "bi_bi")),
    ],
)
def test_a_variant_that_is_left_open_is_the_pretrained_models(
    encoder: str, name: str, values: tuple[str, str], recipes: dict[str, Path], tmp_path: Path
) -> None:
    for value, asked in ((values[0], []), (values[1], [f"model.{name}={values[1]}"])):
        words = ["run_dir=unused", f"model.encoder={encoder}", "audio.mean=-4", "audio.std=4"]
        recipe = load_recipe(recipes["pretrain"], [*words, *asked])
        assert isinstance(recipe, PretrainRecipe)
        built = build_pretrainer(recipe)
        arguments = built.module.model.encoder.arguments
        assert getattr(built.recipe.model, name) == value == {**arguments, **arguments["options"]}[name]
        save_model(tmp_path / value, built.module.model, built.audio)
        tuned = load_recipe(recipes["finetune"], [*words, f"model.pretrained={tmp_path / value}"])
        assert isinstance(tuned, FinetuneRecipe)
        assert getattr(build_finetuner(tuned).recipe.model, name) == value
    other = load_recipe(
        recipes["finetune"], [*words, f"model.{name}={values[0]}", f"model.pretrained={tmp_path / values[1]}"]
    )
    assert isinstance(other, FinetuneRecipe)
    with pytest.raises(UserError, match=f"has {name} {values[1]}; the recipe asks for {name} {values[0]}"):
        build_finetuner(other)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_is_the_recipes(pooling: str, recipes: dict[str, Path]) -> None:
    words = [f"task.pooling={pooling}", "task.segments=3"]
    model = build(recipes, "model.encoder=ssast", *words).module.model.eval()
    assert model.pool.name == pooling and not model.pool.padding
    log_mel = torch.randn(2, 64, 128, generator=torch.Generator().manual_seed(0))
    with pools_watched(model) as seen:
        model(log_mel)
    ((encoded, vector),) = seen
    size = {"mean": 1, "class": 1, "rows": 8, "segments": 3 * 8}.get(pooling, 2 * 8) * 96
    assert vector.shape == (2, size)
    np.testing.assert_allclose(vector.detach(), plain_pool(model.pool, encoded), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["rows", "attentive"])
def test_the_padding_of_a_batch_enters_neither_training_nor_scores(pooling: str, recipes: dict[str, Path]) -> None:
    built = build(recipes, "model.encoder=ssast", f"task.pooling={pooling}", "data.short=pad", "data.batch_size=8")
    module, model = built.module, built.module.model
    module.watch = module.log = module.log_dict = lambda *_, **__: None

    def check(seen: list[Pooled], lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens of a batch, and which of them are padding: (B, F, P)."""
        ((encoded, vector),) = seen
        columns = [max(1, -(-frames_in(length, RATE) // 16)) for length in lengths.tolist()]
        assert min(columns) < 4 == max(columns)
        np.testing.assert_allclose(vector.detach(), plain_pool(model.pool, encoded, columns), rtol=1e-4, atol=1e-5)
        return encoded.tokens, torch.arange(4).expand(len(columns), 8, 4) >= torch.tensor(columns)[:, None, None]

    batch = next(iter(built.data.training_stream()))
    with pools_watched(model) as seen:
        loss = module.training_step(batch, 0)
    tokens, padding = check(seen, batch["lengths"])
    (gradient,) = torch.autograd.grad(loss, tokens)
    reached = gradient.unflatten(1, (8, 4)).any(3)
    assert torch.equal(reached, ~padding)
    held_out = next(iter(built.data.validation_stream()))
    with pools_watched(model) as seen, torch.no_grad():
        module.validation_step(held_out, 0)
    check(seen, held_out["lengths"])
    with pools_watched(model) as seen:
        predict(model, module.log_mel, [held_out], 12, torch.device("cpu"))  # type: ignore[arg-type]
    check(seen, held_out["lengths"])


def test_attention_is_trained_saved_and_used(
    recipes: dict[str, Path], tmp_path: Path, capsys: Capture, recordings: dict[str, list[Recording]]
) -> None:
    run = tmp_path / "run"
    words = ["model.encoder=ssast", "task.pooling=attentive", "data.short=pad", "optimizer.head_learning_rate=0.01"]
    start = {name: tensor.clone() for name, tensor in build(recipes, *words).module.model.pool.named_parameters()}
    finetune(recipes, run, *words)
    saved = load_model(run)
    assert isinstance(saved.model, AudioClassifier) and saved.classifier is not None
    assert saved.classifier.pooling == saved.model.pool.name == "attentive" and not saved.classifier.pool_padding
    assert {f"pool.{name}" for name in start} == {name for name in weights(run) if name.startswith("pool.")}
    for name, tensor in saved.model.pool.named_parameters():
        # AdamW's first steps are as long as the rate of heads: 0.005, 0.01, ...
        assert 0.004 < (tensor - start[name]).abs().max() < 0.04, name
    # What the test split scored, short recordings among it, is what prediction says.
    with (run / "test" / "predictions.csv").open(newline="") as file:
        wanted = {row["key"]: row for row in csv.DictReader(file)}
    clip = (400 + 63 * 160) / RATE
    paths = {one.key: one.path for one in recordings["test"] if soundfile.info(one.path).duration < clip}
    assert len(paths) > 5
    capsys.readouterr()
    assert main(["predict", str(run), *map(str, paths.values()), "--format", "jsonl", "--top", "1"]) == 0
    for line in capsys.readouterr().out.splitlines():
        told = json.loads(line)
        row = wanted[Path(told["path"]).stem]
        assert told["labels"][0]["probability"] == pytest.approx(float(row["probability"]), abs=1e-4)


@pytest.mark.parametrize("layout", ["fo_fo", "fo_bi", "bi_bi"])
def test_aum_is_trained_from_scratch_with_a_head_of_one_linear_layer(
    layout: str, recipes: dict[str, Path], tmp_path: Path
) -> None:
    words = ["model.encoder=aum", f"model.scan_layout={layout}", "task.pooling=class", "task.head_norm=none"]
    logged = finetune(recipes, tmp_path / "run", *words)
    assert [row["gradient_norm"] > 0 for row in logged if "gradient_norm" in row] == [True] * 4
    assert {name for name in weights(tmp_path / "run") if name.startswith("head.")} == {"head.1.weight", "head.1.bias"}
    saved = load_model(tmp_path / "run")
    assert saved.model.encoder.arguments["options"]["scan_layout"] == layout
    assert saved.classifier is not None and (saved.classifier.pooling, saved.classifier.head_norm) == ("class", "none")
    scores = json.loads((tmp_path / "run" / "run.json").read_text())["test"]
    assert main(["evaluate", str(tmp_path / "run"), f"run_dir={tmp_path / 'run'}"]) == 0
    assert json.loads((tmp_path / "run" / "evaluation" / "scores.json").read_text()) == scores


# Losses


def test_one_label_a_clip_is_cross_entropy(recipes: dict[str, Path]) -> None:
    module = build(recipes, "model.encoder=ssast").module
    logits, labels = torch.randn(5, 4), torch.tensor([0, 3, 1, 1, 2])
    assert torch.equal(module.targets(labels), torch.eye(4)[labels])
    torch.testing.assert_close(module.loss(logits, module.targets(labels)), F.cross_entropy(logits, labels))
    soft = torch.tensor([[0.25, 0.75, 0, 0]])
    wanted = -(0.25 * logits[:1].log_softmax(1)[0, 0] + 0.75 * logits[:1].log_softmax(1)[0, 1])
    torch.testing.assert_close(module.loss(logits[:1], soft), wanted)


def test_several_labels_a_clip_are_binary_cross_entropy(recipes: dict[str, Path]) -> None:
    module = build(recipes, "model.encoder=ssast", "task.loss=bce", "task.label=tags").module
    logits, labels = torch.randn(5, 6), torch.randint(0, 2, (5, 6)).float()
    chances = logits.sigmoid()
    wanted = -(labels * chances.log() + (1 - labels) * (1 - chances).log()).mean()
    torch.testing.assert_close(module.loss(logits, module.targets(labels)), wanted)


# Augmentation


def test_without_augmentation_nothing_changes() -> None:
    log_mel = spectrograms()
    assert torch.equal(augmentation()(log_mel, whole(log_mel)), log_mel)


def test_mixup_mixes_a_clip_and_its_targets_with_one_other_by_the_same_share() -> None:
    batch = 64
    generator = torch.Generator().manual_seed(0)
    waveform = torch.randn(batch, 50, generator=generator)
    lengths = torch.randint(10, 51, (batch,), generator=generator)
    mixed, mixed_lengths, targets = augmentation(mixup=1.0).mix(waveform, lengths, torch.eye(batch))
    torch.testing.assert_close(targets.sum(1), torch.ones(batch))
    shares = []
    for row in range(batch):
        others = [column for column in torch.nonzero(targets[row]).flatten().tolist() if column != row]
        assert len(others) <= 1
        other = others[0] if others else row
        own = float(targets[row, row])
        torch.testing.assert_close(mixed[row], own * waveform[row] + (1 - own) * waveform[other])
        assert mixed_lengths[row] == max(lengths[row], lengths[other])
        if others:
            shares.append(own)
    # Beta(10, 10): mean 1/2, variance 1/84.
    assert len(shares) > 55
    assert abs(sum(shares) / len(shares) - 0.5) < 0.06
    assert 0.5 / 84 < torch.tensor(shares).var() < 2 / 84


@pytest.mark.parametrize("probability", [0.25, 0.5])
def test_mixup_leaves_the_other_clips_as_they_are(probability: float) -> None:
    waveform, lengths = torch.randn(2000, 3), torch.arange(2000)
    mixed, mixed_lengths, targets = augmentation(mixup=probability).mix(waveform, lengths, torch.eye(2000))
    same = targets.diagonal() == 1
    torch.testing.assert_close(mixed[same], waveform[same])  # a clip may be its own other one
    assert torch.equal(mixed_lengths[same], lengths[same])
    assert abs(float(same.float().mean()) - (1 - probability)) < 0.05
    assert not (mixed[~same] == waveform[~same]).all(1).any()


def test_time_shift_rolls_each_clip_by_its_own_number_of_frames() -> None:
    log_mel = spectrograms(batch=200)
    shifted = augmentation(time_shift=3)(log_mel, whole(log_mel))
    found = []
    for before, after in zip(log_mel, shifted, strict=True):
        (shift,) = [n for n in range(-20, 20) if torch.equal(before.roll(n, 0), after)]
        found.append(shift)
    assert set(found) == set(range(-3, 4))


def test_time_shift_leaves_padding_where_it_is() -> None:
    log_mel, frames = spectrograms(batch=200), torch.arange(200) % 41
    shifted = augmentation(time_shift=3)(log_mel, frames)
    found = []
    for before, after, count in zip(log_mel, shifted, frames.tolist(), strict=True):
        assert torch.equal(before[count:], after[count:])
        if count > 6:  # else several shifts are one
            (shift,) = [n for n in range(-3, 4) if torch.equal(before[:count].roll(n, 0), after[:count])]
            found.append(shift)
        elif count:
            assert any(torch.equal(before[:count].roll(n, 0), after[:count]) for n in range(count))
    assert set(found) == set(range(-3, 4))


def test_time_stretch_plays_each_clips_own_frames_at_a_speed_of_its_own() -> None:
    """Of ramps: the value of a frame is its place, which goes on from the start at the end."""
    frames = torch.arange(200) % 41
    log_mel = torch.arange(40.0).view(1, 40, 1).repeat(200, 1, 3)
    speeds = []
    for after, own in zip(augmentation(time_stretch=0.2)(log_mel, frames), frames.tolist(), strict=True):
        assert torch.equal(after[own:], log_mel[0, own:]) and torch.equal(after[:, 0], after[:, 2])
        if own < 10:
            continue
        speed = float(after[5, 0]) / 5
        at = torch.arange(own) * speed % own
        inside = at < own - 1  # behind it lies the step from the last frame to the first
        torch.testing.assert_close(after[:own, 0][inside], at[inside], atol=1e-3, rtol=0)
        speeds.append(speed)
    assert min(speeds) >= 0.8 and max(speeds) <= 1.2 and min(speeds) < 0.85 and max(speeds) > 1.15


def test_frequency_shift_moves_each_clip_by_bins_of_its_own_and_repeats_the_edge() -> None:
    log_mel = spectrograms(batch=200)
    found = []
    for before, after in zip(log_mel, augmentation(frequency_shift=3)(log_mel, whole(log_mel)), strict=True):
        shift = next(n for n in range(-3, 4) if torch.equal(after, before[:, (torch.arange(16) - n).clamp(0, 15)]))
        found.append(shift)
    assert set(found) == set(range(-3, 4))


@pytest.mark.parametrize(("part", "line"), [("gain", [1.0] * 16), ("tilt", [place / 7.5 - 1 for place in range(16)])])
def test_gain_and_tilt_are_decibels_of_each_clip_alike_in_all_its_frames(part: str, line: list[float]) -> None:
    log_mel, own = spectrograms(batch=400), 1 + torch.arange(400) % 40
    louder = (augmentation(**{part: 6.0})(log_mel, own) - log_mel) * 2 * 4.0 * 10 / math.log(10)
    drawn = louder[:, 0, -1]
    inside = (torch.arange(40) < own.unsqueeze(1)).unsqueeze(2)
    expected = torch.where(inside, (drawn.unsqueeze(1) * torch.tensor(line)).unsqueeze(1), 0.0)
    torch.testing.assert_close(louder, expected, atol=1e-3, rtol=0)
    assert drawn.std().item() == pytest.approx(6, rel=0.1) and abs(drawn.mean().item()) < 1


def test_noise_is_uniform_and_each_clip_has_its_own_amplitude() -> None:
    log_mel = spectrograms(batch=300, frames=100, bins=20)
    noise = augmentation(noise=0.5)(log_mel, whole(log_mel)) - log_mel
    assert noise.min() > -1e-6 and noise.max() < 0.5 + 1e-6
    largest, mean = noise.flatten(1).amax(1), noise.flatten(1).mean(1)
    torch.testing.assert_close(mean, largest / 2, atol=0.02, rtol=0)
    # Amplitudes from 0 to 0.5.
    assert largest.min() < 0.05 and largest.max() > 0.45
    assert abs(float(largest.mean()) - 0.25) < 0.03


@pytest.mark.parametrize(("part", "dim"), [("time_mask", 1), ("frequency_mask", 2)])
def test_specaugment_hides_one_run_of_whole_frames_or_bins_behind_the_mean(part: str, dim: int) -> None:
    log_mel = spectrograms(batch=200)
    before = log_mel.clone()
    masked = augmentation(**{part: 6})(log_mel, whole(log_mel))
    assert torch.equal(log_mel, before)
    hidden = (masked == 0).all(3 - dim)  # (B, frames or bins)
    changed = masked != log_mel
    assert torch.equal(changed, hidden.unsqueeze(3 - dim).expand_as(changed))
    widths = hidden.sum(1)
    starts = hidden.int().argmax(1)
    for row, width, start in zip(hidden, widths.tolist(), starts.tolist(), strict=True):
        assert row[start : start + width].all()
    assert set(widths.tolist()) <= set(range(7)) and len(set(widths.tolist())) > 4
    assert len(set(starts.tolist())) > 5


def test_augmentation_is_of_training_clips_alone(recipes: dict[str, Path], tmp_path: Path) -> None:
    """At a rate of zero each validation sees the same model: only augmented validation clips could change its loss."""
    strong = ["augmentation.mixup=1", "augmentation.noise=2", "augmentation.time_shift=20", "augmentation.time_mask=40"]
    strong += ["augmentation.gain=20", "augmentation.tilt=20"]
    logged = finetune(
        recipes, tmp_path / "run", "model.encoder=ssast", "optimizer.learning_rate=0", *strong, "data.test=[]"
    )
    losses = [row["val/loss"] for row in logged if "val/loss" in row]
    assert len(losses) == 2 and losses[0] == losses[1]


def test_a_steps_augmentation_depends_on_its_place_alone(recipes: dict[str, Path]) -> None:
    words = [
        "augmentation.mixup=0.5",
        "augmentation.noise=0.5",
        "augmentation.time_shift=9",
        "augmentation.time_stretch=0.3",
        "augmentation.frequency_shift=9",
        "augmentation.gain=9",
        "augmentation.time_mask=9",
    ]
    built = build(recipes, "model.encoder=ssast", *words)
    module, stream = built.module, iter(built.data.training_stream())
    batch, other = next(stream), next(stream)
    seen: list[Tensor] = []
    module.model.forward = lambda log_mel, *_: seen.append(log_mel.clone()) or torch.zeros(len(log_mel), 4)
    module.watch = module.log_dict = lambda *_, **__: None
    module.training_step(batch, 0)
    state = torch.get_rng_state()
    torch.rand(5)
    module.training_step(batch, 1)  # the first clip's place decides, not how often the run was begun anew
    module.training_step({**batch, "positions": other["positions"]}, 0)
    torch.set_rng_state(state)
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    module.training_step(batch, 2)
    assert torch.equal(torch.get_rng_state(), state)  # what others draw from


# Steps of several batches


@each_encoder
def test_two_small_batches_are_one_large_batch(encoder: str, recipes: dict[str, Path], tmp_path: Path) -> None:
    common = [
        f"model.encoder={encoder}",
        "trainer.max_steps=3",
        "data.validation=[]",
        "data.test=[]",
        "audio.mean=-4",
        "audio.std=4",
        "data.batch_size=8",
    ]
    large = finetune(recipes, tmp_path / "large", *common)
    small = finetune(recipes, tmp_path / "small", *common, "trainer.accumulate=2")
    norms = [[row["gradient_norm"] for row in logged if "gradient_norm" in row] for logged in (large, small)]
    assert len(norms[0]) == 3 and norms[1] == pytest.approx(norms[0], rel=1e-3)
    ours, theirs = weights(tmp_path / "small"), weights(tmp_path / "large")
    for name, tensor in theirs.items():
        # Adam's step is as long for a gradient of rounding errors as for a real one: a few in a thousand may differ.
        apart = (ours[name] - tensor).abs()
        assert apart.max() <= 2 * (0.0005 + 0.001 + 0.001) and (apart > 2e-5).float().mean() < 0.02, name
    steps = {json.loads((tmp_path / name / "run.json").read_text())["steps"] for name in ("large", "small")}
    assert steps == {3}


def test_gradients_are_clipped_to_the_recipes_norm(recipes: dict[str, Path], tmp_path: Path) -> None:
    """AdamW hides the scale of gradients; its first moments tell it."""
    first_moments = {}
    for clip in (0.5, 0):
        run = tmp_path / str(clip)
        words = [f"optimizer.gradient_clip={clip}", "trainer.max_steps=1", "data.validation=[]", "data.test=[]"]
        (row,) = finetune(recipes, run, "model.encoder=ssast", *words)
        assert row["gradient_norm"] > 1  # logged as it was before
        state = torch.load(run / "checkpoints" / "step-0000001.ckpt", weights_only=True)["optimizer_states"][0]["state"]
        moments = torch.cat([values["exp_avg"].flatten() for values in state.values()])
        first_moments[clip] = float(moments.norm()) / (1 - 0.95)
        unclipped = row["gradient_norm"]
    assert first_moments[0.5] == pytest.approx(0.5, rel=1e-3)
    assert first_moments[0] == pytest.approx(unclipped, rel=1e-3)


# Labels


def test_a_share_of_the_labels_is_what_is_read(recipes: dict[str, Path]) -> None:
    built = build(recipes, "model.encoder=ssast", "data.label_fraction=0.2", "data.batch_size=12")
    assert len(built.data.train.rows) == len(built.data.order) == 12
    read = next(iter(built.data.training_stream()))["keys"]
    assert sorted(key.split("-")[0] for key in read) == sorted(["falling", "high", "low", "rising"] * 3)
    assert len(set(read)) == 12
    assert len(next(iter(built.data.validation_stream()))["keys"]) == 12  # held-out clips are all read
    again = build(recipes, "model.encoder=ssamba", "data.label_fraction=0.2", "model.size=tiny")
    assert again.data.train.rows.tolist() == built.data.train.rows.tolist()
    other = build(recipes, "model.encoder=ssast", "data.label_fraction=0.2", "seed=1")
    assert other.data.train.rows.tolist() != built.data.train.rows.tolist()
