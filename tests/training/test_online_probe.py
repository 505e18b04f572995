"""Labelled clips that a pretraining run watches, and which of its weights it exports."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from ssamba.cli import main
from ssamba.data.prepare.recordings import Recording
from ssamba.data.shards.finding import find_shards
from ssamba.evaluation.ridge import ridge_score
from ssamba.hub import SsambaModel
from ssamba.training.saved import read_checkpoint

Recipes = dict[str, Path]
SCORES = [0.5, 0.7, 0.6, 0.9, 0.7, 0.8]  # of the probe at each step


def run_of(recipes: Recipes, corpus: Path, run: Path, *words: str) -> int:
    common = [
        "model.encoder=ssast",
        "trainer.max_steps=6",
        "trainer.validate_every_steps=1",
        "audio.mean=-4",
        "audio.std=4",
        f"evaluation.probe={corpus / 'test'}",
        "evaluation.label=sound",
    ]
    return main(["pretrain", str(recipes["pretrain"]), f"run_dir={run}", *common, *words])


def rows(run: Path, name: str) -> dict[int, float]:
    with (run / "metrics.csv").open(newline="") as file:
        return {int(row["step"]) + 1: float(row[name]) for row in csv.DictReader(file) if row.get(name)}


def record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Probes have these scores, in turn; how many there were."""
    asked: list[int] = []

    def score(x: torch.Tensor, labels: torch.Tensor, classes: int) -> tuple[str, float]:
        asked.append(len(x))
        return "accuracy", SCORES[len(asked) - 1]

    monkeypatch.setattr("ssamba.training.callbacks.ridge_score", score)
    return asked


@pytest.mark.parametrize(("label", "name"), [("speaker", "accuracy"), ("tags", "mAP")])
def test_the_probe_is_a_ridge_on_means_and_deviations_of_rows(
    label: str, name: str, recipes: Recipes, corpus: Path, recordings: dict[str, list[Recording]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = [f"evaluation.label={label}", "trainer.validate_every_steps=6", "evaluation.best=probe"]
    assert run_of(recipes, corpus, run, *words) == 0
    ((step, logged),) = rows(run, f"probe/{name}").items()
    names = list(find_shards([str(corpus / "test")]).labels[label])
    model = SsambaModel.from_pretrained(run)
    encoder, vectors, labels = model.network.encoder, [], []
    for recording in recordings["test"]:
        wave = soundfile.read(recording.path, dtype="float32")[0]
        extractor = model.feature_extractor
        clip = np.resize(wave, max(wave.size, extractor.clip_samples))[: extractor.clip_samples]
        log_mel = extractor.log_mel(torch.from_numpy(clip)[None], torch.tensor([clip.size]))
        with torch.inference_mode():
            tokens = encoder(log_mel).tokens.unflatten(1, (encoder.grid[0], -1))
        vectors.append(torch.cat([tokens.mean(2).flatten(), tokens.std(2, correction=0).flatten()]))
        told = recording.labels[label]
        labels.append(torch.tensor([float(one in ([told] if isinstance(told, str) else told)) for one in names]))
    hot = torch.stack(labels)
    expected = ridge_score(torch.stack(vectors), hot if name == "mAP" else hot.argmax(1), len(names))
    assert (step, name) == (6, expected[0]) and logged == pytest.approx(expected[1], abs=1e-6) and 0 < logged < 1
    exported = {"steps": [6], "averaged_over_steps": False, "best": f"probe/{name}", "score": pytest.approx(logged)}
    assert record(run)["exported"] == exported


def test_the_best_probe_is_what_is_exported(
    scored: list[int], recipes: Recipes, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert run_of(recipes, corpus, run, "evaluation.best=probe") == 0
    assert rows(run, "probe/accuracy") == pytest.approx(dict(enumerate(SCORES, 1))) and scored == [24] * 6
    assert record(run)["exported"]["steps"] == [4]
    best = read_checkpoint(run / "checkpoints" / "best.ckpt")
    assert best["global_step"] == 4
    exported = load_file(run / "model" / "model.safetensors")
    for name, tensor in exported.items():
        assert torch.equal(tensor, best["state_dict"][f"model.{name}"])
    assert "model: step 4, the best probe/accuracy (0.9000)" in capsys.readouterr().out
    assert "step 4, the best probe/accuracy (0.9000)" in (run / "report.md").read_text()


def test_validations_without_a_probe_judge_nothing(
    scored: list[int], recipes: Recipes, corpus: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["evaluation.best=probe", "evaluation.every_validations=2", "trainer.patience=2"]
    assert run_of(recipes, corpus, run, *words) == 0
    assert rows(run, "probe/accuracy") == pytest.approx({2: 0.5, 4: 0.7, 6: 0.6})
    assert record(run)["exported"]["steps"] == [4] and record(run)["steps"] == 6


def test_a_probe_changes_no_step(recipes: Recipes, corpus: Path, tmp_path: Path) -> None:
    for name, words in (("watched", []), ("alone", ["evaluation.probe=[]"])):
        assert run_of(recipes, corpus, tmp_path / name, "model.drop_path=0.2", *words) == 0
    ours, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("watched", "alone"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert record(tmp_path / "watched")["exported"]["best"] == "val/loss"


def test_the_best_of_the_losses_is_exported(recipes: Recipes, corpus: Path, tmp_path: Path) -> None:
    """At a rate that destroys what the first steps learned."""
    run = tmp_path / "run"
    words = ["evaluation.probe=[]", "optimizer.learning_rate=0.3", "optimizer.warmup_steps=6"]
    assert run_of(recipes, corpus, run, *words) == 0
    losses = rows(run, "val/loss")
    best = min(losses, key=lambda step: losses[step])
    assert record(run)["exported"]["steps"] == [best] and best < 6
    state = read_checkpoint(run / "checkpoints" / "best.ckpt")["state_dict"]
    exported = load_file(run / "model" / "model.safetensors")
    assert all(torch.equal(tensor, state[f"model.{name}"]) for name, tensor in exported.items())


def test_a_share_of_many_clips_is_drawn_by_label(
    scored: list[int], recipes: Recipes, corpus: Path, tmp_path: Path
) -> None:
    words = ["evaluation.probe_clips=8", "trainer.validate_every_steps=6"]
    assert run_of(recipes, corpus, tmp_path / "run", *words) == 0
    assert scored == [8]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["evaluation.label=colour"], "evaluation.label is 'colour', which the shards lack"),
        (["data.validation=[]"], "evaluation.probe is scored at validations; data.validation is empty"),
        (["evaluation.probe=[]", "evaluation.best=probe"], "evaluation.best is probe; evaluation.probe is empty"),
        (["evaluation.best=accuracy"], "evaluation.best is 'accuracy'; expected one of loss, probe"),
    ],
)
def test_what_cannot_be_watched_is_told_before_any_work(
    words: list[str], told: str, recipes: Recipes, corpus: Path, refused: Callable[..., str], tmp_path: Path
) -> None:
    common = [f"run_dir={tmp_path / 'run'}", f"evaluation.probe={corpus / 'test'}", "evaluation.label=sound"]
    assert told in refused("pretrain", str(recipes["pretrain"]), *common, *words)
