"""Several answers a clip: a label a hop, and what is said. Losses by their definitions, runs, and what is refused."""

import csv
import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import yaml
from torch import Tensor

from ssamba.build.runs import build_finetuner
from ssamba.cli import main
from ssamba.config import FinetuneRecipe, load_recipe
from ssamba.data.labels import NO_LABEL
from ssamba.data.prepare.recordings import Recording
from ssamba.data.prepare.writer import write_shards
from ssamba.data.shards.index import ShardIndex
from ssamba.evaluation.scores import read_scores

RATE, HOP = 16000, 0.4
TONES = {"background": 0.0, "low": 500.0, "high": 2500.0}
LETTERS = {"background": "", "low": "lo", "high": "hi"}
Refused = Callable[..., str]


def recording(path: Path, names: list[str], rng: np.random.Generator, seconds: float | None = None) -> Recording:
    time = np.arange(round(HOP * RATE)) / RATE
    parts = [0.3 * np.sin(2 * np.pi * TONES[name] * time) for name in names]
    sound = np.concatenate(parts)[: None if seconds is None else round(seconds * RATE)]
    soundfile.write(path, sound + rng.normal(0, 0.01, sound.shape), RATE)
    text = " ".join(LETTERS[name] for name in names if LETTERS[name])
    return Recording(path.stem, path, {"scene": names, "text": text, "last": names[-1]})


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of recordings of four hops, or three and a half."""
    folder, rng = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0)
    splits: dict[str, list[Recording]] = {}
    for split, count in (("train", 24), ("validation", 6), ("test", 8)):
        splits[split] = []
        for number in range(count):
            names = ["low", *rng.choice(list(TONES), 3).tolist()]
            seconds = 1.4 if number % 3 == 2 else None
            splits[split].append(recording(folder / f"{split}-{number}.wav", names, rng, seconds))
    write_shards(splits, folder / "shards", "scenes")
    return folder / "shards"


@pytest.fixture(scope="module")
def make_recipe(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def make(**task: Any) -> Path:
        recipe = {
            "task_type": "finetune",
            "audio": {"max_length": 160},
            "model": {"encoder": "ssamba", "size": "nano", "fshape": 128, "tshape": 4},
            "data": {split: str(scenes / split) for split in ("train", "validation", "test")} | {"batch_size": 4},
            "task": task,
            "optimizer": {"learning_rate": 3e-3, "warmup_steps": 2},
            "trainer": {"max_steps": 4, "validate_every_steps": 2, "log_every_steps": 1, "accelerator": "cpu"},
        }
        path = tmp_path_factory.mktemp("recipes") / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe))
        return path

    return make


@pytest.fixture(scope="module")
def hops(make_recipe: Callable[..., Path]) -> Path:
    return make_recipe(label="scene", hop_ms=400)


@pytest.fixture(scope="module")
def spoken(make_recipe: Callable[..., Path]) -> Path:
    return make_recipe(label="text", loss="ctc", pooling="rows")


def build(path: Path, *words: str) -> Any:
    recipe = load_recipe(path, ["run_dir=unused", "audio.mean=-8", "audio.std=4", *words])
    assert isinstance(recipe, FinetuneRecipe)
    return build_finetuner(recipe)


def first_batch(built: Any) -> Any:
    return next(iter(built.data.training_stream()))


def test_labels_are_those_of_the_hops(hops: Path, scenes: Path) -> None:
    built = build(hops)
    names = built.classifier.labels
    for batch in itertools.islice(built.data.training_stream(), 6):
        for waveform, length, row in zip(batch["waveform"], batch["lengths"].tolist(), batch["labels"], strict=True):
            own = row[row != NO_LABEL].tolist()
            assert len(own) == math.ceil(length / (HOP * RATE)) and len(row) == 4
            for place, number in enumerate(own):
                start = round(place * HOP * RATE)
                sound = waveform[start : min(length, start + round(HOP * RATE))]
                spectrum = torch.fft.rfft(sound).abs()
                peak = float(spectrum.argmax()) * RATE / len(sound)
                heard = "background" if spectrum.max() < 100 else "low" if peak < 1500 else "high"
                assert names[number] == heard


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_of_hops_is_the_mean_over_clips_of_their_means(hops: Path, smoothing: float) -> None:
    built = build(hops, f"task.label_smoothing={smoothing}")
    module = built.module
    logits = torch.randn(2, 4, 3)
    labels = torch.tensor([[0, 2, 1, 1], [1, 0, NO_LABEL, NO_LABEL]])
    chances = logits.double().log_softmax(2)
    expected, right = [], []
    for row, own in ((0, 4), (1, 2)):
        each = []
        for hop in range(own):
            target = torch.full((3,), smoothing / 3, dtype=torch.float64)
            target[labels[row, hop]] += 1 - smoothing
            each.append(float(-(target * chances[row, hop]).sum()))
        expected.append(sum(each) / own)
        right.append(float((logits[row, :own].argmax(1) == labels[row, :own]).float().mean()))
    found = module.objectives(logits, labels, torch.tensor([160, 80]))
    assert float(found["loss"]) == pytest.approx(sum(expected) / 2, rel=1e-5)
    assert float(found["accuracy"]) == pytest.approx(sum(right) / 2)


def ctc(chances: Tensor, text: list[int]) -> float:
    """Minus the log of the summed chances of all paths that spell the text."""
    total = 0.0
    for path in itertools.product(range(chances.shape[1]), repeat=len(chances)):
        if [number for number, _ in itertools.groupby(path) if number] == text:
            total += math.exp(sum(float(chances[hop, number]) for hop, number in enumerate(path)))
    return -math.log(total)


def test_the_loss_of_what_is_said_sums_over_all_paths(spoken: Path) -> None:
    module = build(spoken).module
    logits = torch.randn(2, 40, len(module.names))
    frames = torch.tensor([20, 16])  # five hops, four
    labels = torch.tensor([[2, 2, 1], [3, 1, NO_LABEL]])
    chances = logits.double().log_softmax(2)
    expected = ctc(chances[0, :5], [2, 2, 1]) / 3, ctc(chances[1, :4], [3, 1]) / 2
    assert float(module.objectives(logits, labels, frames)["loss"]) == pytest.approx(sum(expected) / 2, rel=1e-5)


@pytest.mark.parametrize("encoder", ["ssamba", "ssast", "aum"])
def test_a_run_of_hops_is_scored_hop_by_hop(hops: Path, tmp_path: Path, encoder: str) -> None:
    run = tmp_path / "run"
    assert main(["finetune", str(hops), f"run_dir={run}", f"model.encoder={encoder}"]) == 0
    record = json.loads((run / "run.json").read_text())
    predictions, names = read_scores(run / "test")
    assert names == ["background", "high", "low"] and len(predictions.keys) == record["test"]["clips"] == 32
    assert sorted(predictions.keys) == sorted(f"test-{number}@{hop}" for number in range(8) for hop in range(4))
    said = predictions.logits.argmax(1)
    assert record["test"]["accuracy"] == pytest.approx(float((said == predictions.labels).float().mean()))
    assert record["test"]["accuracy_low"] <= record["test"]["accuracy"] <= record["test"]["accuracy_high"]
    assert {"segment_F1", "event_F1"} <= record["test"].keys() & record["baseline"]["scores"].keys()
    assert record["baseline"]["scores"]["accuracy"] > 0.9  # tones are told by their spectrum
    assert {"val/accuracy", "val/loss"} <= record["last_metrics"].keys()
    assert "segment F1" in (run / "report.md").read_text()

    assert main(["evaluate", str(run)]) == 0
    again = json.loads((run / "evaluation" / "scores.json").read_text())
    assert again == record["test"]


def test_hops_are_learned(hops: Path, tmp_path: Path) -> None:
    words = ["trainer.max_steps=20", "trainer.validate_every_steps=20", "evaluation.baseline=none"]
    assert main(["finetune", str(hops), f"run_dir={tmp_path / 'run'}", *words]) == 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["test"]["accuracy"] > 0.9 and record["test"]["event_F1"] > 0.7


@pytest.mark.parametrize("encoder", ["ssamba", "ssast", "aum"])
def test_a_run_of_what_is_said_is_scored_by_its_errors(spoken: Path, tmp_path: Path, encoder: str) -> None:
    run = tmp_path / "run"
    assert main(["finetune", str(spoken), f"run_dir={run}", f"model.encoder={encoder}"]) == 0
    record = json.loads((run / "run.json").read_text())
    with (run / "test" / "texts.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == record["test"]["clips"] == 8
    edits, letters = (sum(int(row[name]) for row in rows) for name in ("greedy edits", "characters"))
    assert letters == sum(len(row["true"]) for row in rows)
    assert record["test"]["CER"] == pytest.approx(edits / letters)
    assert {"val/CER", "val/WER", "val/loss"} <= record["last_metrics"].keys() and "baseline" not in record
    assert "| key" in (run / "report.md").read_text()
    assert main(["evaluate", str(run)]) == 0
    assert json.loads((run / "evaluation" / "scores.json").read_text()) == record["test"]


def test_what_is_said_is_learned(spoken: Path, tmp_path: Path) -> None:
    words = ["trainer.max_steps=120", "trainer.validate_every_steps=120", "optimizer.learning_rate=1e-2"]
    assert main(["finetune", str(spoken), f"run_dir={tmp_path / 'run'}", *words]) == 0
    assert json.loads((tmp_path / "run" / "run.json").read_text())["test"]["CER"] < 0.3


def test_training_leaves_out_what_cannot_be_spelled(
    spoken: Path, caplog: pytest.LogCaptureFixture, scenes: Path
) -> None:
    built = build(spoken, "model.time_stride=16", "model.tshape=16")
    assert "training recordings are left out" in caplog.text
    kept = built.data.train.rows
    assert 0 < len(kept) < built.shards.train.samples


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["task.hop_ms=410"], "task.hop_ms is 410; expected a multiple of 40"),
        (["task.hop_ms=5"], "task.hop_ms is 5"),
        (["task.loss=bce"], "task.hop_ms is of one label a hop; task.loss is bce"),
        (["task.pooling=class"], "task.pooling is class"),
        (["task.class_weights=balanced"], "task.class_weights counts recordings"),
        (["data.short=repeat"], "data.short is repeat"),
        (["augmentation.time_shift=3"], "augmentation.time_shift moves or mixes"),
        (["augmentation.time_stretch=0.1"], "augmentation.time_stretch moves or mixes"),
        (["augmentation.mixup=0.1"], "augmentation.mixup moves or mixes"),
        (["data.balance=true"], "data.balance draws recordings by their one label"),
        (["task.loss=ctc", "task.label_smoothing=0.1"], "task.label_smoothing is for cross_entropy"),
        (["task.loss=ctc", "data.label_fraction=0.5"], "data.label_fraction is stratified by label"),
        (["task.hop_ms=200"], "24 of 24 recordings of data.train have another number of scene than hops"),
        (["task.hop_ms=800"], "recordings of data.train have another number of scene than hops"),
        (["task.label=last"], "have another number of last than hops"),
        (["audio.max_length=100"], "data.validation has 6 recordings of more than audio.max_length, 100 frames"),
        (["task.hop_ms=null", "task.loss=ctc"], "data.train has 24 recordings, of which 0 have a text as their scene"),
    ],
)
def test_what_does_not_go_with_hops_is_told(
    hops: Path, tmp_path: Path, refused: Refused, words: list[str], told: str
) -> None:
    assert told in refused("finetune", hops, f"run_dir={tmp_path / 'run'}", *words)


def test_characters_that_training_does_not_hear_are_told(
    spoken: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, refused: Refused
) -> None:
    folder, rng = tmp_path_factory.mktemp("other"), np.random.default_rng(1)
    one = recording(folder / "a.wav", ["low"], rng)
    other = Recording("b", one.path, {**one.labels, "text": "lo, Zoë"})
    write_shards({"test": [one, other]}, folder / "shards", "other")
    message = refused("finetune", spoken, f"run_dir={tmp_path / 'run'}", f"data.test={folder / 'shards/test'}")
    assert "data.test has 1 texts with characters that no text of data.train has: ',' 'Z' 'ë'" in message


def test_what_is_said_is_no_class(
    spoken: Path, scenes: Path, tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    """An index lists none of it, so that shards of several corpora go together and no list is as long as they are."""
    assert ShardIndex.read(scenes / "train").labels["text"] == ()
    assert "task.label is 'text', what is said" in refused(
        "finetune", spoken, f"run_dir={tmp_path / 'run'}", "task.loss=cross_entropy"
    )
    other = tmp_path / "other"
    write_shards({"train": [recording(tmp_path / "a.wav", ["low", "high"], np.random.default_rng(0))]}, other, "other")
    built = build(spoken, f"data.train=[{scenes / 'train'},{other / 'train'}]")
    assert built.shards.train.samples == 25 and set(built.classifier.labels) == {"<blank>", *" hilo"}
    for action in ("verify", "info"):
        assert main(["shards", action, str(scenes / "train")]) == 0
    assert "text: what is said" in capsys.readouterr().out
    shutil.copytree(scenes / "train", tmp_path / "again")
    assert main(["shards", "index", str(tmp_path / "again"), "--overwrite"]) == 0
    assert ShardIndex.read(tmp_path / "again").labels["text"] == ()
    assert "text: what is said" in capsys.readouterr().out


def test_a_run_is_evaluated_as_it_was_trained(hops: Path, tmp_path: Path, refused: Refused) -> None:
    run = tmp_path / "run"
    assert main(["finetune", str(hops), f"run_dir={run}", "trainer.max_steps=1", "evaluation.baseline=none"]) == 0
    message = refused("evaluate", run, "task.hop_ms=800")
    assert "answers of 10 columns; by the recipe it would be cross_entropy and 20" in message


def test_seeds_are_of_classifiers(tmp_path: Path, refused: Refused, spoken: Path) -> None:
    assert "task.loss is ctc" in refused("finetune", spoken, f"run_dir={tmp_path / 's'}", "--seeds", "2")
