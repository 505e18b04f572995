"""The table of tasks; and every recipe of fine-tuning by the commands in its own comment, on a tiny set in its data
set's public layout: the shards, two steps, and scores of every class and clip."""

import csv
import json
import multiprocessing
import os
import re
import shlex
import signal
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import layouts
import numpy as np
import pytest
import torch

from ssamba.cli import main
from ssamba.config import ENCODERS, FinetuneRecipe, load_recipe
from ssamba.data.shards.finding import find_shards
from ssamba.evaluation.classification import Predictions
from ssamba.evaluation.scores import read_scores
from ssamba.protocols import many
from ssamba.tasks import NONE, TASKS
from ssamba.training.finetuning import FineTuning

ROOT = Path(__file__).parents[1]
RECIPES = {path.stem: path for path in sorted((ROOT / "recipes" / "finetune").glob("*.yaml"))}


class Tree(NamedTuple):
    """What OUT is made of: a layout, the list in it that is SOURCE, and what a command needs where there is little."""

    make: Callable[[Path], object]
    source: str = "."
    options: tuple[str, ...] = ()


TREES = {
    "demo/shards/keywords": Tree(layouts.keywords, "keywords.csv"),
    "shards/audioset": Tree(layouts.audioset, options=("--validation=0.2",)),
    "shards/epic_sounds": Tree(layouts.epic_sounds),
    "shards/epic_sounds_16k": Tree(layouts.epic_sounds),
    "shards/esc50": Tree(layouts.esc50),
    "shards/fma_small": Tree(layouts.fma),
    "shards/fsdd": Tree(layouts.fsdd),
    "shards/gtzan": Tree(layouts.gtzan, options=("--max-bad-fraction=0.91",)),
    "shards/iemocap": Tree(layouts.iemocap),
    "shards/labelled": Tree(layouts.folder),
    "shards/librispeech-text": Tree(layouts.librispeech),
    "shards/nsynth": Tree(layouts.nsynth),
    "shards/soundscapes": Tree(layouts.urbansound8k, options=("--seconds=3",)),
    "shards/speech": Tree(layouts.sentences, "sentences.csv"),
    "shards/speech_commands_v1": Tree(layouts.speech_commands_v1),
    "shards/speech_commands_v2": Tree(layouts.speech_commands_v2),
    "shards/urbansound8k": Tree(layouts.urbansound8k),
    "shards/vggsound": Tree(layouts.vggsound),
    "shards/voxceleb1": Tree(layouts.voxceleb1),
}


def commands(recipe: str) -> list[list[str]]:
    """The commands in a recipe's comment, word by word; a line that ends with a backslash goes on."""
    lines = [line.removeprefix("#") for line in RECIPES[recipe].read_text().splitlines() if line.startswith("#   ")]
    return [shlex.split(line) for line in "\n".join(lines).replace("\\\n", "").splitlines()]


def test_the_table_is_printed_and_kept(capsys: pytest.CaptureFixture[str]) -> None:
    """`ssamba tasks > docs/tasks.md` keeps it."""
    assert main(["tasks"]) == 0
    assert capsys.readouterr().out == (ROOT / "docs" / "tasks.md").read_text()


def test_the_table_has_every_recipe_and_script_and_names_no_other() -> None:
    cells = [cell for task in TASKS for cell in task]
    named = {name for cell in cells for name in re.findall(r"recipes/[\w/]+\.\w+", cell)}
    named |= {f"data_prep/{name}.py" for cell in cells for name in re.findall(r"ssamba prepare (\w+)", cell)}
    there = {path.relative_to(ROOT).as_posix() for path in (*RECIPES.values(), *layouts.SCRIPTS.glob("*.py"))}
    assert there <= named
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_the_table_tells_what_the_recipes_tell() -> None:
    for task in TASKS:
        for recipe in re.findall(r"recipes/finetune/(\w+)\.yaml", task.recipe):
            assert shlex.split(task.preparation) in commands(recipe)
    rows = {recipe: task for task in TASKS for recipe in re.findall(r"finetune/(\w+)\.yaml", task.recipe)}
    for name, path in RECIPES.items():
        recipe = load_recipe(path)
        assert isinstance(recipe, FinetuneRecipe)
        assert ("mAP" in rows[name].metric) >= (recipe.task.loss == "bce")
        assert ("--folds all" in rows[name].protocol) >= (recipe.data.fold_by is not None)


def test_every_figure_of_the_table_says_where_it_stands() -> None:
    figures = [cell for task in TASKS for cell in (task.ssamba, task.ssast, task.aum) if cell != NONE]
    assert figures and all(re.fullmatch(r"\d+\.\d+(, \d+\.\d+)? \((Table \d+|README)\)", cell) for cell in figures)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A recipe -> a working folder with its shards, as its comment's command makes them."""
    place, made = tmp_path_factory.mktemp("tasks"), set[str]()

    def prepare(recipe: str) -> Path:
        # The last one: what a synthesizer says is there already.
        *_, (_, _, name, _, out, *options) = [words for words in commands(recipe) if words[1] == "prepare"]
        if out not in made:
            tree = TREES[out]
            source = place / "sources" / out
            source.parent.mkdir(parents=True, exist_ok=True)
            tree.make(source)
            words = [str(source / tree.source), str(place / out), "--workers=1", *options, *tree.options]
            assert layouts.script(name).main(words) == 0
            made.add(out)
        return place

    return prepare


def small(recipe: FinetuneRecipe, encoder: str) -> list[str]:
    """Overrides for a second's work: a small model, clips of a third of a second, two steps of four."""
    averaged = 1 + (recipe.trainer.average_checkpoints > 1)
    frames = 32 if recipe.task.hop_ms is None else 300  # hops are scored to a recording's end
    baseline = recipe.evaluation.baseline if encoder == ENCODERS[0] else "none"  # it is the same beside all of them
    return [
        f"model.encoder={encoder}",
        "model.size=nano",
        "model.pretrained=null",
        f"audio.max_length={frames}",
        "data.batch_size=4",
        "data.num_workers=0",
        "trainer.max_steps=2",
        "trainer.validate_every_steps=2",
        "trainer.checkpoint_every_steps=1",
        f"trainer.average_checkpoints={averaged}",
        "trainer.precision=32",
        "trainer.accelerator=cpu",
        f"evaluation.baseline={baseline}",
    ]


@pytest.mark.parametrize("encoder", ENCODERS[:3])  # the papers'
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_leads_from_its_public_layout_to_scores(
    name: str, encoder: str, prepared: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(RECIPES[name])
    assert isinstance(recipe, FinetuneRecipe)
    monkeypatch.chdir(prepared(name))
    (command,) = [words for words in commands(name) if words[0] == "ssamba" and words[1] == "finetune"]
    assert command[2] == f"recipes/finetune/{name}.yaml"
    overrides = [word for word in command[3:] if "=" in word]
    shards = find_shards(recipe.data.test or recipe.data.train)
    classes = shards.labels[recipe.task.label]
    fold = []
    if recipe.data.fold_by:
        assert command[-2:] == ["--folds", "all"]
        fold = [f"data.fold={shards.labels[recipe.data.fold_by][0]}"]
    run = tmp_path / "run"
    words = [*overrides, *small(recipe, encoder), *fold, f"run_dir={run}"]
    assert main(["finetune", str(RECIPES[name]), *words]) == 0

    record = json.loads((run / "run.json").read_text())
    assert record["steps"] == 2 and record["skipped_samples"] == []
    if recipe.task.loss == "ctc":
        assert {"WER", "CER"} <= set(record["test"])
        with (run / "test" / "texts.csv").open() as file:
            assert len({row["key"] for row in csv.DictReader(file)}) == shards.samples == record["test"]["clips"]
        return
    predictions, names = read_scores(run / "test")
    clips = len(predictions.keys)
    assert names == list(classes) and len(set(predictions.keys)) == clips == record["test"]["clips"]
    scored = {key.partition("@")[0] for key in predictions.keys}  # of hops their recordings
    assert len(scored) == shards.samples if not fold else 0 < len(scored) < shards.samples
    assert recipe.task.hop_ms is None or clips > len(scored)
    several = recipe.task.loss == "bce"
    assert ("mAP" if several else "accuracy") in record["test"]
    assert encoder != ENCODERS[0] or set(record["baseline"]["scores"]) == set(record["test"])
    with (run / "test" / "classes.csv").open() as file:
        rows = {row["class"]: int(row["clips"]) for row in csv.DictReader(file)}
    labels = predictions.labels.numpy()
    heard = labels.sum(0) if several else np.bincount(labels, minlength=len(names))
    assert rows == dict(zip(names, heard.astype(int).tolist(), strict=True))


FOLDS = {"esc50": 5, "iemocap": 5, "urbansound8k": 10}


@pytest.fixture
def folds(
    prepared: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str, str], list[str]]:
    """A recipe and a name for its runs' folder -> the words of its command; runs are made by this process, which has
    imported everything."""
    monkeypatch.setattr(many, "train_run", lambda run: main(["finetune", run.recipe, "--resume", "auto"]))

    def words(name: str, folder: str) -> list[str]:
        monkeypatch.chdir(prepared(name))
        recipe = load_recipe(RECIPES[name])
        assert isinstance(recipe, FinetuneRecipe)
        return ["finetune", str(RECIPES[name]), *small(recipe, "ssamba"), f"run_dir={tmp_path / folder}"]

    return words


def per_fold(root: Path, count: int) -> dict[str, Predictions]:
    """What the clips of each fold got."""
    found = {path.name: read_scores(path / "test")[0] for path in root.glob("fold-*")}
    assert set(found) == {f"fold-{fold}" for fold in range(1, count + 1)}
    return found


@pytest.mark.parametrize(("name", "count"), FOLDS.items())
def test_one_command_scores_each_fold_once(
    name: str, count: int, folds: Callable[[str, str], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["evaluation.baseline=none", "optimizer.learning_rate=0.01"]  # so that not all clips get one class
    assert main([*folds(name, "runs"), "--folds", "all", *more]) == 0
    found = per_fold(tmp_path / "runs", count)
    keys = [key for predictions in found.values() for key in predictions.keys]
    recipe = load_recipe(RECIPES[name])
    assert len(set(keys)) == len(keys) == find_shards(recipe.data.train).samples
    right = [float((one.logits.argmax(1) == one.labels).double().mean()) for one in found.values()]
    spread = f"{statistics.mean(right):.3f} ± {statistics.stdev(right):.3f}"
    for said in (capsys.readouterr().out, (tmp_path / "runs" / "report.md").read_text()):
        assert re.search(rf"^\| mean [ |]+ {spread} +\|$", said, re.MULTILINE)
    scores = json.loads((tmp_path / "runs" / "members.json").read_text())["scores"]
    assert scores["model"]["accuracy"] == pytest.approx(statistics.mean(right))


def test_folds_that_are_killed_midway_go_on_to_the_same_numbers(
    folds: Callable[[str, str], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main([*folds("esc50", "whole"), "--folds", "all"]) == 0
    words = [*folds("esc50", "killed"), "--folds", "all"]
    step = FineTuning.training_step

    def killed(module: FineTuning, *arguments: Any) -> Any:
        """In the third fold's second step, the first one's checkpoint behind it."""
        if module.global_step == 1 and (tmp_path / "killed" / "fold-2" / "run.json").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return step(module, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(FineTuning, "training_step", killed)
        process = multiprocessing.get_context("fork").Process(target=main, args=(words,))
        process.start()
        process.join()
    assert process.exitcode == -signal.SIGKILL
    done = sorted(path.parent.name for path in (tmp_path / "killed").glob("*/run.json"))
    assert done == ["fold-1", "fold-2"]
    assert main([*words, "--resume", "auto"]) == 0
    first, second = (per_fold(tmp_path / name, 5) for name in ("whole", "killed"))
    for fold, predictions in first.items():
        assert predictions.keys == second[fold].keys
        assert torch.equal(predictions.logits, second[fold].logits)
    assert json.loads((tmp_path / "killed" / "fold-3" / "run.json").read_text())["resumed"][0]["step"] == 1
    scores = [json.loads((tmp_path / name / "members.json").read_text())["scores"] for name in ("whole", "killed")]
    assert scores[0] == scores[1]


def test_a_fold_without_clips_is_told_before_training(
    folds: Callable[[str, str], list[str]], pretrained: Callable[[str], Path], refused: Callable[..., str]
) -> None:
    """Of the split train alone, which lacks the fold that is the split test."""
    said = refused(*folds("esc50", "runs"), "data.train=shards/esc50/train", "--folds", "all")
    assert said.startswith("data.fold_by fold: no recording is in the fold 5 of the 5 of the label list")
    assert "are all splits of the data set named? Some folds alone: data.fold=NAME" in said
    said = refused("probe", pretrained("ssast"), "shards/esc50/train", "--label", "category", "--fold-by", "fold")
    assert said.startswith("--fold-by fold: no recording is in the fold 5 of the 5") and "--folds NAME ..." in said
