"""Recordings and labels from which nothing can be learned: told in one line before a step."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from ssamba.build.labels import check_labels
from ssamba.build.runs import build_finetuner
from ssamba.build.shards import build_shards
from ssamba.cli import main
from ssamba.config import FinetuneRecipe, load_recipe
from ssamba.data.labels import Labels
from ssamba.data.prepare.recordings import Recording
from ssamba.data.prepare.writer import write_shards
from ssamba.errors import UserError

RATE = 16000
SAMPLES = RATE // 2
Array = np.ndarray[Any, Any]


def noise(seed: int) -> Array:
    return np.random.default_rng(seed).normal(0, 0.1, SAMPLES)


def shards(folder: Path, recordings: list[tuple[Array, Any]]) -> Path:
    """A training split of recordings with the label sound."""
    found = []
    for number, (waveform, label) in enumerate(recordings):
        path = folder / f"{number:03}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, waveform, RATE, "FLOAT")
        found.append(Recording(path.stem, path, {} if label is None else {"sound": label}))
    write_shards({"train": found}, folder / "shards", "few", samples_per_shard=4)
    return folder / "shards" / "train"


NOTHING = {
    "silence": np.zeros(SAMPLES),
    "a constant": np.full(SAMPLES, 0.5),
    "nearly nothing": np.full(SAMPLES, 1e-9) * np.sign(np.sin(np.arange(SAMPLES))),
}


@pytest.mark.parametrize("name", NOTHING)
@pytest.mark.parametrize("known", [True, False])
def test_recordings_that_say_nothing(
    name: str, known: bool, tmp_path: Path, recipes: dict[str, Path], refused: Callable[..., str]
) -> None:
    train = shards(tmp_path / "data", [(NOTHING[name], "a"), (NOTHING[name], "b")])
    said = "all of 2 clips are silent, or each of one value throughout: there is nothing to hear in them"
    if not known:
        assert said in refused("stats", train)
    for kind in ("pretrain", "finetune"):
        words = [f"data.train={train}", "data.validation=[]", "data.short=pad", f"run_dir={tmp_path / 'run'}"]
        words += ["data.test=[]"] if kind == "finetune" else []
        statistics = ["audio.mean=-4", "audio.std=4"] if known else []
        assert said in refused(kind, recipes[kind], *words, *statistics)


def test_some_that_say_nothing_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sounds = [noise(0), NOTHING["silence"], noise(1), NOTHING["a constant"], noise(2)]
    train = shards(tmp_path, [(sound, "a") for sound in sounds])
    assert main(["stats", str(train)]) == 0
    (record,) = caplog.records
    assert record.getMessage() == "2 of 5 clips are silent, or of one value throughout"


def recipe_of(recipes: dict[str, Path], train: Path, *words: str) -> FinetuneRecipe:
    given = [f"data.train={train}", "data.validation=[]", "data.test=[]", "run_dir=unused", *words]
    recipe = load_recipe(recipes["finetune"], given)
    assert isinstance(recipe, FinetuneRecipe)
    return recipe


LABELS = {
    "one class": (["a"] * 3, [], "nothing to tell apart in the sound of the training recordings: a is all;"),
    "one class under bce": (["a"] * 3, ["task.loss=bce"], "training recordings: all 3 have a; expected"),
    "the same two": ([["a", "b"]] * 3, ["task.loss=bce"], "all 3 have a, b;"),
    "none at all": (["a", None, "b"], [], "1 recordings of data.train have no sound that is in the label list: 001"),
    "several": (
        ["a", ["a", "b"], "b"],
        [],
        "1 recordings of data.train have several sound, or none: 001 (a, b); "
        "expected one of the 2 of the label list, or task.loss=bce",
    ),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_that_say_nothing(
    name: str, tmp_path: Path, recipes: dict[str, Path], refused: Callable[..., str]
) -> None:
    labels, words, said = LABELS[name]
    train = shards(tmp_path / "data", [(noise(n), label) for n, label in enumerate(labels)])
    given = [f"data.train={train}", "data.validation=[]", "data.test=[]", f"run_dir={tmp_path / 'run'}", *words]
    message = refused("finetune", recipes["finetune"], *given)
    assert said in message and message.count("\n") == 1


def test_a_class_without_recordings_and_labels_under_bce_are_said(
    tmp_path: Path, recipes: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ssamba")
    train = shards(tmp_path, [(noise(n), label) for n, label in enumerate(["a", "b", "a", "b"])])
    index = json.loads((train / "index.json").read_text())
    index["labels"]["sound"] = ["a", "b", "c"]
    (train / "index.json").write_text(json.dumps(index))
    build_finetuner(recipe_of(recipes, train))
    assert [record.getMessage() for record in caplog.records if "sound" in record.getMessage()] == [
        "no training recording has sound c, of the label list"
    ]
    caplog.clear()
    build_finetuner(recipe_of(recipes, train, "task.loss=bce"))
    assert "every training recording has one sound; task.loss=cross_entropy is for one alone" in caplog.text


def test_held_out_labels_are_looked_at_as_well(tmp_path: Path, recipes: dict[str, Path]) -> None:
    train = shards(tmp_path / "one", [(noise(n), label) for n, label in enumerate("abab")])
    other = shards(tmp_path / "two", [(noise(n), label) for n, label in enumerate(["a", ["b", "a"]])])
    recipe = recipe_of(recipes, train, f"data.validation={other}")
    with pytest.raises(UserError, match=r"1 recordings of data.validation have several sound, or none: 001 \(b, a\)"):
        check_labels(recipe, build_shards(recipe), Labels("sound", ("a", "b")), {})
