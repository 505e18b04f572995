"""Every fold and seed by one command: folders, scores, what goes on, and what is told before the first."""

import json
import pickle
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ssamba.cli import main
from ssamba.evaluation.scores import read_scores
from ssamba.protocols import many, processes
from ssamba.protocols.many import Run

Runs = Callable[[str], Path]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def within(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs are made by this process, which has imported everything; the folders that were asked for."""
    made: list[str] = []

    def train(run: Run) -> int:
        made.append(run.folder)
        return main(["finetune", run.recipe, "--resume", "auto"])

    monkeypatch.setattr(many, "train_run", train)
    return made


@pytest.fixture
def words(recipes: dict[str, Path], corpus: Path, tmp_path: Path) -> list[str]:
    more = [
        "model.encoder=ssast",
        "data.test=[]",
        "data.fold_by=speaker",
        "evaluation.baseline=log-mel",
        "audio.mean=-4",
        "audio.std=4",
    ]
    return ["finetune", str(recipes["finetune"]), f"run_dir={tmp_path / 'runs'}", *more]


def test_each_fold_is_a_run_and_finished_ones_stay(
    words: list[str], within: list[str], tmp_path: Path, capsys: Capture, refused: Callable[..., str]
) -> None:
    root = tmp_path / "runs"
    assert main([*words, "--folds", "all"]) == 0
    folders = [str(root / f"fold-{name}") for name in ("ada", "ben", "cyd")]
    assert within == folders
    said = capsys.readouterr().out
    accuracies = []
    for name in ("ada", "ben", "cyd"):
        predictions, _ = read_scores(root / f"fold-{name}" / "test")
        assert len(predictions.keys) == 20 and all(f"-{name}-" in key for key in predictions.keys)
        record = json.loads((root / f"fold-{name}" / "run.json").read_text())
        accuracies.append(record["test"]["accuracy"])
        baseline = record["baseline"]
        assert baseline["training_clips"] == 40 and baseline["scores"]["accuracy"] > 0.6
        assert baseline["difference"]["accuracy"] == pytest.approx(accuracies[-1] - baseline["scores"]["accuracy"])
        # The fold is neither learned from nor watched.
        recipe = yaml.safe_load((root / f"fold-{name}" / "recipe.yaml").read_text())
        assert (recipe["data"]["fold"], recipe["wandb"]["group"]) == (name, "runs")
        assert f"| {name} " in said
    scores = json.loads((root / "members.json").read_text())["scores"]
    assert scores["model"]["accuracy"] == pytest.approx(sum(accuracies) / 3)
    assert scores["model"]["accuracy_low"] <= scores["model"]["accuracy"] <= scores["model"]["accuracy_high"]
    assert "| difference" in (root / "report.md").read_text() and (root / "report.html").is_file()
    assert "log-mel" in (root / "fold-ada" / "report.md").read_text()

    assert "--resume auto goes on with them" in refused(*words, "--folds", "all")
    weights = [(Path(folder) / "model" / "model.safetensors").stat().st_mtime_ns for folder in folders]
    assert main([*words, "--folds", "all", "--resume", "auto"]) == 0
    assert capsys.readouterr().out.count("is finished: 4 steps") == 3
    assert weights == [(Path(folder) / "model" / "model.safetensors").stat().st_mtime_ns for folder in folders]
    # The same test clips, scored again.
    assert main(["evaluate", str(root / "fold-ada")]) == 0
    again = json.loads((root / "fold-ada" / "evaluation" / "scores.json").read_text())
    assert again["accuracy"] == accuracies[0] and again["clips"] == 20
    assert "model minus log-mel" in (root / "fold-ada" / "evaluation" / "report.md").read_text()


def test_seeds_and_what_is_left_of_them(
    words: list[str],
    corpus: Path,
    within: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    refused: Callable[..., str],
    capsys: Capture,
) -> None:
    words = [*words, "data.fold_by=null", f"data.test={corpus / 'test'}", "seed=3", "evaluation.baseline=none"]
    train = many.train_run
    monkeypatch.setattr(many, "train_run", lambda run: 2 if run.seed == 4 else train(run))
    assert main([*words, "--seeds", "2"]) == 2
    assert "the run in " in capsys.readouterr().err and within == [str(tmp_path / "runs" / "seed-3")]
    monkeypatch.setattr(many, "train_run", train)
    assert main([*words, "--seeds", "2", "--resume", "auto"]) == 0
    seeds = [yaml.safe_load((Path(folder) / "recipe.yaml").read_text())["seed"] for folder in within[1:]]
    assert seeds == [3, 4]
    first, second = (read_scores(Path(folder) / "test")[0].logits for folder in within[1:])
    assert not torch.equal(first, second)
    monkeypatch.setattr(many, "train_run", lambda run: 143)
    assert main([*words, "--seeds", "2", "--overwrite"]) == 143
    assert "was stopped; ssamba finetune" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "seed-3").exists()  # replaced


def test_mistakes_are_told_before_the_first_run(
    words: list[str], within: list[str], corpus: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert "data.fold_by, which is null" in refused(*words, "data.fold_by=null", "--folds", "all")
    assert "and data.fold is ada" in refused(*words, "data.fold=ada", "--folds", "all")
    assert "give one of them" in refused(*words, "--cluster", "tcp://127.0.0.1:1")
    assert "data.fold_by is 'mood', which the shards lack" in refused(*words, "data.fold_by=mood", "--folds", "all")
    said = refused(*words, "data.fold_by=sound", "--folds", "all")
    assert said.startswith("data.test has recordings with sound falling, which no training recording has")
    assert "data.fold_by is 'speaker'; expected one of it" in refused(*words, f"data.test={corpus / 'test'}")
    assert "data.fold is null; expected one of the 3 names of data.fold_by speaker" in refused(*words)
    assert "no recording is in the fold 'eve' of data.fold_by speaker; expected one of ada, ben, cyd" in refused(
        *words, "data.fold=eve"
    )
    assert "data.fold is 'ada', a name of the label data.fold_by" in refused(
        *words, "data.fold_by=null", "data.fold=ada"
    )
    assert "nothing to score" in refused(*words, "data.fold_by=null", "--seeds", "2")
    assert "one fold and one seed" in refused(*words, "data.fold=ada", "--seeds", "1")
    assert "evaluation.group_by is 'mood'" in refused(*words, "evaluation.group_by=mood", "data.fold=ada")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "file").write_text("")
    assert "has no members.json" in refused(*words, "--folds", "all", "--overwrite")
    assert not within


def test_groups_are_drawn_for_the_intervals(finetuned: Runs, copy_of: Callable[[Path], Path]) -> None:
    run = copy_of(finetuned("ssast"))
    scores: list[dict[str, Any]] = []
    for more in ([], ["evaluation.group_by=sound"]):
        assert main(["evaluate", str(run), "--overwrite", *more]) == 0
        scores.append(json.loads((run / "evaluation" / "scores.json").read_text()))
    alone, grouped = scores
    assert grouped["accuracy"] == alone["accuracy"]
    assert (grouped["accuracy_low"], grouped["accuracy_high"]) != (alone["accuracy_low"], alone["accuracy_high"])


def test_a_run_is_a_process_of_its_own_that_is_told_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its status is what it ends with; what asks this process to end is handed on."""
    (tmp_path / "no.yaml").write_text("")
    assert many.train_run(Run(str(tmp_path / "no.yaml"), str(tmp_path), "", 0)) == 2
    program = "import os, signal, sys; os.kill(os.getppid(), signal.SIGTERM); signal.pause()"
    monkeypatch.setattr(processes, "PROGRAM", program)
    with processes.signals_handed_on():
        assert many.train_run(Run("", "", "", 0)) == -signal.SIGTERM


def test_a_cluster_makes_the_runs(
    words: list[str], within: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the executor that data preparation uses, to which function and runs are pickled."""
    asked: list[str] = []

    @contextmanager
    def workers(address: str) -> Iterator[Executor]:
        asked.append(address)
        with ThreadPoolExecutor(1) as executor:
            yield executor

    monkeypatch.setattr(many, "cluster", workers)
    more = ["--seeds", "2", "data.fold=ada", "evaluation.baseline=none", "--cluster", "tcp://host:8786"]
    assert main([*words, *more]) == 0
    assert asked == ["tcp://host:8786"]
    assert sorted(within) == [str(tmp_path / "runs" / f"seed-{seed}") for seed in range(2)]


def test_a_run_can_be_handed_over() -> None:
    run = Run("recipe.yaml", "folder", "ada", 3)
    assert pickle.loads(pickle.dumps((many.train_run, run))) == (many.train_run, run)
