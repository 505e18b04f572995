"""A run's folder: what is in it, that the same seed makes the same run, and when an old one may go."""

import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from safetensors.torch import load_file

from ssamba.cli import main
from ssamba.config import ENCODERS, load_recipe
from ssamba.data.shards.finding import find_shards
from ssamba.errors import UserError
from ssamba.training.runs import RunLock, check_run, command_record, open_run

each_encoder = pytest.mark.parametrize("encoder", ENCODERS)
Runs = Callable[[str], Path]
CHECKPOINTS = [
    f"checkpoints/{name}.{end}" for name in ("best", "step-0000002", "step-0000004") for end in ("ckpt", "json")
]


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# The same seed


@each_encoder
def test_the_same_seed_pretrains_the_same_weights_bitwise(
    encoder: str, pretrained: Runs, recipes: dict[str, Path], tmp_path: Path
) -> None:
    first = pretrained(encoder)
    torch.rand(3)  # what was drawn before has no say
    for name, seed in (("again", 0), ("other", 1)):
        words = [f"run_dir={tmp_path / name}", f"model.encoder={encoder}", f"seed={seed}"]
        assert main(["pretrain", str(recipes["pretrain"]), *words]) == 0
    assert_same_run(first, tmp_path / "again", tmp_path / "other")


@each_encoder
def test_the_same_seed_fine_tunes_the_same_weights_bitwise(
    encoder: str, pretrained: Runs, recipes: dict[str, Path], tmp_path: Path
) -> None:
    # With everything that is left to chance: labels, augmentation, order, heads.
    chance = [
        "data.label_fraction=0.5",
        "augmentation.mixup=0.5",
        "augmentation.noise=0.1",
        "augmentation.time_shift=8",
        "augmentation.frequency_mask=16",
        "augmentation.time_mask=8",
    ]
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        torch.rand(3)
        words = [f"run_dir={tmp_path / name}", f"model.encoder={encoder}", f"seed={seed}", *chance]
        start = f"model.pretrained={pretrained(encoder)}"
        assert main(["finetune", str(recipes["finetune"]), *words, start]) == 0
    assert_same_run(tmp_path / "first", tmp_path / "again", tmp_path / "other")


def assert_same_run(first: Path, again: Path, other: Path) -> None:
    weights = Path("model", "model.safetensors")
    assert (first / weights).read_bytes() == (again / weights).read_bytes()
    assert (first / weights).read_bytes() != (other / weights).read_bytes()
    logged = [
        [{k: v for k, v in row.items() if k not in ("samples_per_second", "seconds")} for row in rows(run)]
        for run in (first, again, other)
    ]
    assert logged[0] == logged[1] != logged[2]
    ours, theirs = (load_recipe(run) for run in (first, again))
    ours.run_dir = theirs.run_dir
    assert ours == theirs


def test_workers_change_no_clip_that_is_read(pretrained: Runs, recipes: dict[str, Path], tmp_path: Path) -> None:
    """One worker reads as the training process itself does."""
    words = [f"run_dir={tmp_path / 'run'}", "model.encoder=ssast", "data.num_workers=1"]
    assert main(["pretrain", str(recipes["pretrain"]), *words]) == 0
    weights = Path("model", "model.safetensors")
    assert (tmp_path / "run" / weights).read_bytes() == (pretrained("ssast") / weights).read_bytes()


# The folder


@each_encoder
def test_what_a_pretraining_run_leaves(encoder: str, pretrained: Runs, corpus: Path) -> None:
    run = pretrained(encoder)
    assert {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()} == {
        "recipe.yaml",
        "metrics.csv",
        "run.json",
        "report.html",
        "report.md",
        *CHECKPOINTS,
        "model/config.json",
        "model/model.safetensors",
        "model/preprocessor_config.json",
        "pictures/curves.png",
        "pictures/reconstruction-0000002.png",
        "pictures/reconstruction-0000004.png",
    }
    logged = rows(run)
    train = [
        "train/loss",
        "train/contrastive",
        "train/accuracy",
        "train/reconstruction",
        "gradient_norm",
        "learning_rate",
        "samples_per_second",
    ]
    validation = ["val/loss", "val/contrastive", "val/accuracy", "val/reconstruction"]
    assert set(logged[0]) == {"epoch", "seconds", "step", *train, *validation}
    for names, steps in ((train, ["0", "1", "2", "3"]), (validation, ["1", "3"])):
        for name in names:
            assert [row["step"] for row in logged if row[name]] == steps
            assert all(float(row[name]) >= 0 for row in logged if row[name])
    record = assert_record(run, corpus, ("train", "validation"))
    assert record["test"] == {}
    assert set(record["last_metrics"]) >= set(train) | set(validation)


@each_encoder
def test_what_a_fine_tuning_run_leaves(encoder: str, finetuned: Runs, corpus: Path) -> None:
    run = finetuned(encoder)
    assert {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()} == {
        "recipe.yaml",
        "metrics.csv",
        "run.json",
        "report.html",
        "report.md",
        *CHECKPOINTS,
        "model/config.json",
        "model/model.safetensors",
        "model/preprocessor_config.json",
        "pictures/curves.png",
        "test/scores.json",
        "test/scores.npz",
        "test/classes.csv",
        "test/predictions.csv",
        "test/mistakes.csv",
        "test/confusion.png",
    }
    train = ["train/loss", "train/accuracy", "gradient_norm", "learning_rate", "samples_per_second"]
    validation = ["val/loss", "val/accuracy", "val/balanced_accuracy"]
    assert set(rows(run)[0]) == {"epoch", "seconds", "step", *train, *validation}
    record = assert_record(run, corpus, ("train", "validation", "test"))
    assert record["test"] == json.loads((run / "test" / "scores.json").read_text())
    assert record["test"]["clips"] == 24


def assert_record(run: Path, corpus: Path, splits: tuple[str, ...]) -> dict[str, Any]:
    """run.json says what is so, and every picture is one."""
    record: dict[str, Any] = json.loads((run / "run.json").read_text())
    assert set(record) == {
        "command",
        "started",
        "seed",
        "git_commit",
        "python",
        "versions",
        "hardware",
        "parameters",
        "data",
        "steps",
        "training_seconds",
        "peak_memory_bytes",
        "last_metrics",
        "test",
        "skipped_samples",
        "resumed",
        "stopped_early",
        "exported",
        "origin",
        "teacher_sha256",
        "energy_joules",
    }
    assert record["peak_memory_bytes"]["process"] > 10**8  # torch alone
    assert (record["steps"], record["seed"], record["skipped_samples"], record["resumed"]) == (4, 0, [], [])
    assert record["versions"]["torch"] == torch.__version__.split("+")[0] and "ssamba" in record["versions"]
    assert record["hardware"]["threads"] == torch.get_num_threads()
    weights = load_file(run / "model" / "model.safetensors")
    assert record["parameters"] == sum(tensor.numel() for tensor in weights.values())
    for split in splits:
        held = find_shards([str(corpus / split)])
        assert record["data"][split] == {
            "samples": held.samples,
            "seconds": round(held.seconds, 3),
            "fingerprint": held.fingerprint,
        }
    assert set(record["data"]) == set(splits)
    for path in run.rglob("*.png"):
        assert matplotlib.image.imread(path).std() > 0.01
    assert not list(run.rglob("*.tmp"))
    return record


@pytest.mark.parametrize("kind", ["pretrained", "finetuned"])
def test_the_recipe_in_the_folder_says_what_was_measured(kind: str, request: pytest.FixtureRequest) -> None:
    run = request.getfixturevalue(kind)("ssamba")
    recipe = load_recipe(run)
    config = json.loads((run / "model" / "preprocessor_config.json").read_text())
    assert recipe.run_dir == str(run)
    assert (recipe.audio.mean, recipe.audio.std) == (config["mean"], config["std"])
    # Log-mel values of full-scale audio with a little noise.
    assert recipe.audio.mean is not None and -12 < recipe.audio.mean < 5
    assert recipe.audio.std is not None and 0.5 < recipe.audio.std < 8


def test_checkpoints_are_read_without_pickle_and_the_exports_are_theirs(pretrained: Runs, finetuned: Runs) -> None:
    run = pretrained("ssamba")
    last = torch.load(run / "checkpoints" / "step-0000004.ckpt", weights_only=True)
    assert last["global_step"] == 4
    assert_exported(run, last["state_dict"])

    run = finetuned("ssamba")
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert_exported(run, best["state_dict"])
    accuracies = {int(row["step"]) + 1: float(row["val/accuracy"]) for row in rows(run) if row["val/accuracy"]}
    assert accuracies[best["global_step"]] == max(accuracies.values())
    run = pretrained("ssast")
    losses = {int(row["step"]) + 1: float(row["val/loss"]) for row in rows(run) if row["val/loss"]}
    best = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    assert losses[best["global_step"]] == min(losses.values())


def test_the_commit_is_that_of_the_checkout_if_this_is_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ssamba.training.runs.__file__", str(tmp_path / "ssamba" / "training" / "runs.py"))
    assert command_record()["git_commit"] is None  # an installed package
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command_record()["git_commit"] is None  # no git, as in an image


def assert_exported(run: Path, state: dict[str, torch.Tensor]) -> None:
    exported = load_file(run / "model" / "model.safetensors")
    held = {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}
    assert exported.keys() == held.keys()
    assert all(torch.equal(exported[name], held[name]) for name in held)


def test_the_last_checkpoint_is_of_the_last_step(recipes: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [f"run_dir={run}", "model.encoder=ssast", "trainer.max_steps=3", "data.test=[]", "data.validation=[]"]
    assert main(["finetune", str(recipes["finetune"]), *words]) == 0
    last = torch.load(run / "checkpoints" / "step-0000003.ckpt", weights_only=True)
    assert last["global_step"] == 3
    assert_exported(run, last["state_dict"])


# Folders that exist


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_an_existing_run_is_left_alone(
    kind: str,
    recipes: dict[str, Path],
    pretrained: Runs,
    copy_of: Callable[[Path], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = copy_of(pretrained("ssast"))
    before = digests(run)
    assert main([kind, str(recipes[kind]), f"run_dir={run}"]) == 2
    assert f"run folder {run} exists; give another run_dir, or --overwrite" in capsys.readouterr().err
    assert digests(run) == before


def test_overwrite_replaces_a_run(recipes: dict[str, Path], pretrained: Runs, copy_of: Callable[[Path], Path]) -> None:
    run = copy_of(pretrained("ssast"))
    (run / "evaluation").mkdir()
    (run / "evaluation" / "scores.json").write_text("{}")
    words = [f"run_dir={run}", "model.encoder=ssast", "trainer.max_steps=1", "data.validation=[]"]
    assert main(["pretrain", str(recipes["pretrain"]), "--overwrite", *words]) == 0
    assert json.loads((run / "run.json").read_text())["steps"] == 1
    assert not (run / "evaluation").exists()
    assert [path.name for path in (run / "pictures").iterdir()] == ["curves.png"]


@pytest.mark.parametrize("mistake", ["data.train=nowhere", "model.pretrained=nowhere", "task.label=mood"])
def test_a_mistake_costs_no_old_run(
    mistake: str, recipes: dict[str, Path], finetuned: Runs, copy_of: Callable[[Path], Path]
) -> None:
    run = copy_of(finetuned("ssast"))
    before = digests(run)
    assert main(["finetune", str(recipes["finetune"]), f"run_dir={run}", "--overwrite", mistake]) == 2
    assert digests(run) == before


def test_overwrite_removes_nothing_but_a_run(
    recipes: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.txt").write_text("years of work")
    assert main(["pretrain", str(recipes["pretrain"]), f"run_dir={folder}", "--overwrite"]) == 2
    assert "holds no recipe.yaml, so it is no run; --overwrite does not remove it" in capsys.readouterr().err
    assert digests(folder) == {"chapter.txt": hashlib.sha256(b"years of work").hexdigest()}


def test_new_and_empty_folders_are_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "a" / "new"):
        check_run(folder, overwrite=False)
        with RunLock(folder) as lock:
            open_run(folder, False, lock)
            assert lock.taken and folder.is_dir()
    check_run(tmp_path / "not" / "made", overwrite=False)
    assert not (tmp_path / "not").exists()
    (tmp_path / "file").write_text("a file")
    for overwrite in (False, True):
        with pytest.raises(UserError), RunLock(tmp_path / "file") as lock:
            open_run(tmp_path / "file", overwrite, lock)
    assert (tmp_path / "file").read_text() == "a file"
