"""Runs whose student learns from another model: from one that hears the clips, and from features in the shards."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset as wds
from safetensors.torch import load_file
from test_resume import assert_same, signalled

from ssamba.build.runs import build_pretrainer
from ssamba.cli import main
from ssamba.config import ENCODERS, PretrainRecipe, load_recipe
from ssamba.data.datamodule import ClipDataModule
from ssamba.models.checkpoint import load_model, save_model
from ssamba.models.encoder import SIZES, AudioEncoder
from ssamba.models.heads import MaskedPatchModel
from ssamba.models.settings import AudioSettings
from ssamba.objectives import FeatureHead
from ssamba.teachers import OwnTeacher
from ssamba.training import pretraining

Recipes = dict[str, Path]
ALONE = ["objective.parts.contrastive=0", "objective.parts.reconstruction=0", "objective.parts.distillation=1"]


def encoder() -> AudioEncoder:
    return AudioEncoder("ssast", SIZES["ssast"]["nano"], 32, 200, 16, 16, 16, 16)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of another encoder than its students, another rate, number of mel bins and length of clips, with weights at
    random."""
    torch.manual_seed(7)
    folder = tmp_path_factory.mktemp("teacher") / "model"
    save_model(folder, MaskedPatchModel(encoder()), AudioSettings(11025, -5.0, 3.0, "pad"))
    return folder


@pytest.fixture(scope="module")
def taught(corpus: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus with the teacher's features in its shards."""
    out = tmp_path_factory.mktemp("taught") / "shards"
    splits = [str(corpus / split) for split in ("train", "validation")]
    assert main(["embed", str(teacher), *splits, "--into-shards", str(out)]) == 0
    return out


def stored_in(taught: Path) -> list[str]:
    splits = [f"data.{split}={taught / split}" for split in ("train", "validation")]
    return [*splits, "objective.distillation.teacher=shards"]


def build(recipes: Recipes, *words: str) -> Any:
    recipe = load_recipe(recipes["pretrain"], ["run_dir=unused", "audio.mean=-4", "audio.std=4", *words])
    assert isinstance(recipe, PretrainRecipe)
    return build_pretrainer(recipe)


def losses(run: Path, kind: str) -> list[float]:
    with (run / "metrics.csv").open(newline="") as file:
        return [float(row[f"{kind}/distillation"]) for row in csv.DictReader(file) if row.get(f"{kind}/distillation")]


@pytest.mark.parametrize("encode", ["all", "visible"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_every_parameter_of_the_student_learns_and_none_of_the_teachers(
    encoder: str, encode: str, recipes: Recipes, teacher: Path
) -> None:
    words = [f"objective.distillation.teacher={teacher}", f"model.encoder={encoder}", f"model.encode={encode}"]
    built = build(recipes, *ALONE, *words)
    module, batch = built.module, built.data.noise()
    log_mel = module.log_mel(batch["waveform"], batch["lengths"])
    features = module.features_of(batch)
    module.objectives(log_mel, module.draw_mask("train", range(4)), features=features)["loss"].backward()
    assert not [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
    network = module.features.teacher.network
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters()) and not network.training
    # It is neither trained, saved nor sent to other ranks.
    own = {id(p) for p in module.parameters()}
    assert not own & {id(p) for p in network.parameters()}
    assert not any("teacher" in name or "features" in name for name in module.state_dict())


@pytest.mark.parametrize("encode", ["all", "visible"])
def test_a_student_learns_what_its_teacher_says(encode: str, recipes: Recipes, teacher: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [*ALONE, f"objective.distillation.teacher={teacher}", "trainer.max_steps=60", "data.batch_size=8"]
    words += ["trainer.validate_every_steps=20", "mask.per_clip=2", "optimizer.learning_rate=2e-3"]
    words += [f"model.encode={encode}"]
    assert main(["pretrain", str(recipes["pretrain"]), f"run_dir={run}", *words]) == 0
    held_out = losses(run, "val")
    assert losses(run, "train")[0] > 0.9 and held_out == sorted(held_out, reverse=True) and held_out[-1] < 0.8
    exported = load_file(run / "model" / "model.safetensors")
    assert not any(name.startswith(("more_heads", "teacher", "features")) for name in exported)
    load_model(run)
    state = torch.load(run / "checkpoints" / "step-0000060.ckpt", weights_only=True)["state_dict"]
    assert {name.split(".")[0] for name in state} <= {"model", "log_mel"}
    assert load_recipe(run).objective.distillation.teacher == str(teacher)  # type: ignore[union-attr]


@pytest.mark.parametrize("short", ["pad", "repeat"])
def test_features_of_the_shards_are_what_the_teacher_says(
    short: str, recipes: Recipes, corpus: Path, teacher: Path, taught: Path
) -> None:
    """Of clips that are whole recordings, up to what float16 leaves of them."""
    words = [*ALONE, f"data.short={short}", "audio.max_length=128", "data.batch_size=12"]
    told, stored = (
        build(recipes, *words, f"objective.distillation.teacher={teacher}"),
        build(recipes, *words, *stored_in(taught)),
    )
    assert told.module.features.teacher.width == stored.data.features.info.width
    batches = [next(iter(one.data.validation_stream())) for one in (told, stored)]
    assert torch.equal(batches[0]["waveform"], batches[1]["waveform"]) and batches[0]["keys"] == batches[1]["keys"]
    ours, theirs = (one.module.features_of(batch).float() for one, batch in zip((told, stored), batches, strict=True))
    log_mel = told.module.log_mel(batches[0]["waveform"], batches[0]["lengths"])
    if short == "pad":
        own = told.module.own_patches(batches[0]["lengths"])
        columns = own[:, : ours.shape[1]]
        torch.testing.assert_close(ours[columns], theirs[columns], atol=4e-3, rtol=2e-3)
        mask = told.module.draw_mask("train", range(12), batches[0]["lengths"])
        values = [told.module.objectives(log_mel, mask, None, own, None, one) for one in (ours, theirs)]
        assert values[0]["distillation"].item() == pytest.approx(values[1]["distillation"].item(), rel=1e-3)
    else:  # the teacher hears the repetition, and the shards have the recording alone
        assert (ours - theirs).square().mean() < 0.5 * ours.square().mean()


@pytest.mark.parametrize("workers", [0, 2])
def test_training_reads_the_features_of_what_it_hears(workers: int, recipes: Recipes, taught: Path) -> None:
    """Crops of packed recordings: each column's features are those of the recording that sounds then."""
    built = build(recipes, *ALONE, *stored_in(taught), f"data.num_workers={workers}")
    data: ClipDataModule = built.data
    batch = next(iter(data.train_dataloader()))
    stored = data.features
    assert stored is not None
    samples = {one["__key__"]: one for one in wds.tarfile_samples({"url": str(p)} for p in taught.glob("train/*.tar"))}
    order, reader = data.order, data.training_stream().source.reader
    for clip, place in enumerate(batch["positions"]):
        begin, wanted = 0, {}
        for segment in order.clip(place):
            key, _ = reader.name(segment.row)
            frames = np.load(io.BytesIO(samples[key]["teacher.npy"])).astype(np.float64)
            middles = stored.info.first_seconds + np.arange(len(frames)) / stored.info.frame_rate
            for column, seconds in enumerate(stored.seconds.tolist()):
                sample = seconds * 16000
                if begin <= sample < begin + segment.stop - segment.start:
                    at = (sample - begin + segment.start) / 16000
                    wanted[column] = [np.interp(at, middles, frames[:, d]) for d in (0, 50)]
            begin += segment.stop - segment.start
        assert len(wanted) == len(stored.seconds) == 4
        for column, values in wanted.items():
            np.testing.assert_allclose(batch["teacher_features"][clip, column, [0, 50]], values, atol=4e-3)


@pytest.mark.parametrize("source", ["teacher", "shards"])
def test_a_run_that_was_stopped_is_as_if_it_was_not(
    source: str, recipes: Recipes, teacher: Path, taught: Path, tmp_path: Path
) -> None:
    words = stored_in(taught) if source == "shards" else [f"objective.distillation.teacher={teacher}"]
    words = [*words, "objective.parts.distillation=1", "objective.parts.latent=0.5", "data.num_workers=1"]
    command = ["pretrain", str(recipes["pretrain"]), *words]
    assert main([*command, f"run_dir={tmp_path / 'undisturbed'}"]) == 0
    with signalled(15, step=3):
        assert main([*command, f"run_dir={tmp_path / 'run'}"]) == 143
    assert main(["pretrain", str(tmp_path / "run"), "--resume", str(tmp_path / "run")]) == 0
    assert_same(tmp_path / "run", tmp_path / "undisturbed")


def test_a_student_that_says_the_same_of_all_ends_the_run(
    recipes: Recipes, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pretraining, "COLLAPSE_AFTER", 2)
    forward = FeatureHead.forward
    monkeypatch.setattr(FeatureHead, "forward", lambda *given: 1 + 1e-4 * forward(*given))
    words = [*ALONE, f"objective.distillation.teacher={teacher}", f"run_dir={tmp_path / 'run'}"]
    assert main(["pretrain", str(recipes["pretrain"]), *words]) == 2
    said = capsys.readouterr().err
    assert "step 2: the predictions of objective.parts.distillation collapsed: distillation_spread is" in said
    assert "take another objective.distillation.teacher or layer" in said and "Traceback" not in said


def test_a_run_goes_on_with_the_model_that_it_has_learned_from(
    recipes: Recipes, teacher: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    own, run = tmp_path / "teacher", tmp_path / "run"
    shutil.copytree(teacher, own)
    words = [f"objective.distillation.teacher={own}", *ALONE, f"run_dir={run}"]
    with signalled(15, step=2):
        assert main(["pretrain", str(recipes["pretrain"]), *words]) == 143
    before = OwnTeacher(str(teacher), -1).fingerprint
    torch.manual_seed(8)
    save_model(own, MaskedPatchModel(encoder()), AudioSettings(11025, -5.0, 3.0, "pad"))
    said = refused("pretrain", run, "--resume", run)
    assert f"weights have the sha256 {before}, and those of objective.distillation.teacher have" in said
    shutil.copytree(teacher, own, dirs_exist_ok=True)
    assert main(["pretrain", str(run), "--resume", str(run)]) == 0
    assert json.loads((run / "run.json").read_text())["teacher_sha256"] == before


# Mistakes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "objective.parts.distillation is 1 and objective.distillation.teacher is null"),
        (
            ["objective.distillation.teacher=a", "objective.mix=0.5"],
            "hears each clip by itself, and objective.mix is 0.5",
        ),
        (["objective.distillation.teacher=shards", "data.order=streaming"], "is shards, whose features an index"),
        (["objective.distillation.teacher=shards", "objective.distillation.layer=2"], "leave it -1"),
        (["objective.distillation.teacher=shards"], "has no features; `ssamba embed TEACHER SHARDS --into-shards OUT`"),
        (["objective.distillation.teacher=none/there"], "objective.distillation.teacher: none/there holds no model"),
        (["objective.distillation.teacher=TEACHER", "objective.distillation.layer=9"], "layer is 9; this model has"),
    ],
)
def test_a_teacher_that_cannot_be_is_told_before_work(
    words: list[str], said: str, recipes: Recipes, teacher: Path, refused: Callable[..., str], tmp_path: Path
) -> None:
    words = [word.replace("TEACHER", str(teacher)) if word.endswith("TEACHER") else word for word in words]
    assert said in refused("pretrain", recipes["pretrain"], f"run_dir={tmp_path / 'run'}", *ALONE, *words)


def test_features_of_two_teachers_are_told(
    recipes: Recipes, corpus: Path, teacher: Path, taught: Path, refused: Callable[..., str], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    words = ["embed", str(teacher), str(corpus / "validation"), "--into-shards", str(other), "--layer", "0"]
    assert main(words) == 0
    words = [*stored_in(taught), f"data.validation={other / 'validation'}", f"run_dir={tmp_path / 'run'}"]
    said = refused("pretrain", recipes["pretrain"], *ALONE, *words)
    assert "are of layer -1 of" in said and "of layer 0 of" in said and "expected one teacher and layer" in said


def test_samples_without_features_are_skipped_and_too_many_end_the_run(
    recipes: Recipes, taught: Path, copy_of: Callable[[Path], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A member that is damaged in every sample: of another type than the index tells."""
    folder = copy_of(taught)
    for shard in folder.glob("*/*.tar"):
        shard.write_bytes(shard.read_bytes().replace(b"'<f2'", b"'<i2'"))
    words = [*ALONE, *stored_in(folder), f"run_dir={tmp_path / 'run'}", "audio.mean=-4", "audio.std=4"]
    assert main(["pretrain", str(recipes["pretrain"]), *words]) == 2
    said = capsys.readouterr().err
    assert "its teacher.npy cannot be used: it is an array of int16" in said and "Traceback" not in said


def test_the_index_tells_of_the_features(teacher: Path, taught: Path) -> None:
    held = json.loads((taught / "train" / "index.json").read_text())["features"]
    assert held["teacher"] == str(teacher) and held["layer"] == -1 and held["width"] == 2 * 96
    assert held["frame_rate"] == pytest.approx(11025 / (16 * 110)) and 0.05 < held["first_seconds"] < 0.1
