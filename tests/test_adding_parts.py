"""CONTRIBUTING's "Adding parts", followed: the package is made of its blocks, and its commands are run."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from contributed import SECTION, blocks, install_contributed
from one_process import COMMANDS
from torchmetrics.functional.classification import multiclass_f1_score

from ssamba.data.shards.finding import find_shards
from ssamba.evaluation.scores import read_scores
from ssamba.packaged import packaged

ROOT = Path(__file__).parents[1]
SMALL = ["model.size=nano", "audio.max_length=64", "data.batch_size=4", "data.num_workers=0"]
STEPS = ["trainer.max_steps=2", "trainer.validate_every_steps=1", "trainer.accelerator=cpu"]
Followed = tuple[Path, dict[str, str], Callable[..., "subprocess.CompletedProcess[str]"]]


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Followed:
    """The folder in which the commands were run, what each of them said, and what runs others there."""
    place = tmp_path_factory.mktemp("birds")
    install_contributed(place / "site")
    (place / "recipes").symlink_to(packaged("recipes"))
    (place / "recordings").mkdir()
    rng = np.random.default_rng(0)
    for species, rate in (("finch", 0.3), ("wren", 0.05)):
        for number in range(9):
            sound = np.sin(rate * np.arange(8000)) + rng.normal(0, 0.1, 8000)
            soundfile.write(place / "recordings" / f"{species}-{number}.wav", 0.4 * sound, 16000)

    def run(*commands: list[str], beside: str = "site") -> "subprocess.CompletedProcess[str]":
        paths = os.pathsep.join([str(place / beside), str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
        return subprocess.run(
            [sys.executable, "-c", COMMANDS, json.dumps(commands)],
            cwd=place,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    commands = []
    for line in "".join(blocks("sh")).splitlines():
        program, command, *words = line.split()
        assert program == "ssamba"
        commands.append([command, *words, *([*SMALL, *STEPS] if command in ("pretrain", "finetune") else [])])
    done = run(*commands)
    assert done.returncode == 0, done.stderr
    parts = re.split(r"^\$ (\w+).*\n", done.stdout, flags=re.MULTILINE)[1:]
    return place, dict(zip(parts[::2], parts[1::2], strict=True)), run


def test_the_data_set_is_prepared(followed: Followed) -> None:
    place, said, run = followed
    assert "shards/birds/train: 12 recordings" in said["prepare"]
    shards = find_shards(str(place / "shards" / "birds" / "test"))
    assert shards.samples == 6 and list(shards.label_list("species")) == ["finch", "wren"]
    assert "birds " in (listed := run(["prepare"]).stdout) and "of the package bird-parts" in listed


def test_the_encoder_is_pretrained_and_fine_tuned_from_there(followed: Followed) -> None:
    place = followed[0]
    for name in ("pretrained", "species"):
        assert json.loads((place / "runs" / name / "run.json").read_text())["steps"] == 2
        config = json.loads((place / "runs" / name / "model" / "config.json").read_text())
        assert (config["model_type"], config["hidden_size"], config["num_hidden_layers"]) == ("gru", 96, 2)
        classifier = {"pool": "bird-parts"} if name == "species" else {}
        assert config["packages"] == {"encoder": "bird-parts", **classifier}
    assert (config["pooling"], config["problem_type"]) == ("max", "single_label_classification")
    origin = json.loads((place / "runs" / "species" / "run.json").read_text())["origin"]
    assert origin["recipe"]["model.encoder"] == "gru"


def test_the_task_scores_what_it_has_learned(followed: Followed) -> None:
    run = followed[0] / "runs" / "species"
    record = json.loads((run / "run.json").read_text())
    predictions, names = read_scores(run / "test")
    assert names == ["finch", "wren"] and len(predictions.keys) == 6
    wanted = float(multiclass_f1_score(predictions.logits, predictions.labels, 2, average="macro"))
    assert record["test"]["macro_F1"] == pytest.approx(wanted) and "accuracy_low" in record["test"]
    assert "macro_F1" in record["baseline"]["scores"]
    assert record["exported"]["best"] == "val/macro_F1"
    assert "val/macro_F1" in (run / "metrics.csv").read_text().partition("\n")[0]


def test_recordings_are_told_apart(followed: Followed) -> None:
    lines = followed[1]["predict"].splitlines()
    assert len(lines) == 18 and all("finch" in line and "wren" in line for line in lines)


def test_a_finished_run_is_scored_again(followed: Followed) -> None:
    place, _, run = followed
    assert run(["evaluate", "runs/species"]).returncode == 0
    again = json.loads((place / "runs" / "species" / "evaluation" / "scores.json").read_text())
    assert again == json.loads((place / "runs" / "species" / "run.json").read_text())["test"]


def test_without_the_package_the_model_says_what_is_missing(followed: Followed) -> None:
    done = followed[2](["predict", "runs/species", "recordings"], beside="elsewhere")
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stdout.count("\n") == 1
    assert "the encoder 'gru' of the package 'bird-parts', which is not installed here" in done.stderr


def test_focal_loss_is_what_it_says() -> None:
    (source,) = (block for block in blocks("python") if "class Focal" in block)
    made: dict[str, type] = {}
    exec(source, made)
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 2, 1, 1, 0])
    chances = logits.softmax(1)[torch.arange(5), labels]
    wanted = -((1 - chances) ** 2 * chances.log())
    targets = torch.eye(3)[labels]
    torch.testing.assert_close(made["Focal"]().loss(logits, targets), wanted.mean())
    weights = torch.tensor([1.0, 2.0, 3.0])
    torch.testing.assert_close(made["Focal"]().loss(logits, targets, weights), (wanted * weights[labels]).mean())


def test_the_files_that_are_named_exist() -> None:
    named = re.findall(r"`((?:ssamba|tests|data_prep)/[\w/.]*)`", SECTION) + re.findall(r"tests/\w+\.py", SECTION)
    assert len(named) > 8
    for name in named:
        assert (ROOT / name).exists(), name
