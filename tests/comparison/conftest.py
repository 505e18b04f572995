"""Small run folders, written as training writes them, with scores that a test chooses."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ssamba.config import FinetuneRecipe, load_recipe, save_recipe
from ssamba.evaluation.classification import Predictions
from ssamba.evaluation.scores import fill_scores
from ssamba.files import write_json
from ssamba.models.record import RECORD_NAME
from ssamba.origin import read_origin
from ssamba.training.loggers import MetricsFile
from ssamba.training.runs import command_record

CLASSES = ["falling", "high", "low", "rising"]
SPLITS = {
    name: {"samples": 24, "seconds": 20.0, "fingerprint": name[0] * 64} for name in ("train", "validation", "test")
}


def predictions(hits: Sequence[bool], sure: float = 2.0) -> Predictions:
    """Of examples named 000, 001, ... whose classes take turns; a miss says the class after the true one."""
    labels = torch.arange(len(hits)) % len(CLASSES)
    said = (labels + ~torch.tensor(hits, dtype=torch.bool)) % len(CLASSES)
    return Predictions([f"{i:03d}" for i in range(len(hits))], sure * torch.eye(len(CLASSES))[said], labels)


@pytest.fixture
def make_run(recipes: dict[str, Path], tmp_path: Path) -> Callable[..., Path]:
    """Name of a folder below tmp_path, key=value and what the run scored -> the folder of a finished run."""

    def make(
        name: str,
        *words: str,
        hits: Sequence[bool] | Predictions = (True, False) * 12,
        data: Any = SPLITS,
        mean: float = -3.6,
        groups: Sequence[str] | None = None,
        losses: Sequence[float] = (2.0, 1.0),
        **more: Any,
    ) -> Path:
        folder = tmp_path / name
        recipe = load_recipe(recipes["finetune"], [f"run_dir={folder}", *words])
        assert isinstance(recipe, FinetuneRecipe)
        if recipe.audio.mean is None:
            recipe.audio.mean, recipe.audio.std = mean, 3.7
        (folder / "test").mkdir(parents=True)
        save_recipe(recipe, folder / "recipe.yaml")
        metrics = MetricsFile(folder / "metrics.csv")
        for step, loss in enumerate(losses):
            metrics.log_metrics({"train/loss": loss, "samples_per_second": 100.0 + step}, step)
            metrics.log_metrics({"val/loss": loss + 0.5}, step)
        metrics.save()
        found = hits if isinstance(hits, Predictions) else predictions(hits)
        names = CLASSES if found.labels.ndim == 1 else [f"tag {i}" for i in range(found.labels.shape[1])]
        record = {
            **command_record(),
            "seed": recipe.seed,
            "parameters": 1234,
            "data": data,
            "resumed": [],
            "origin": read_origin(recipe.model.pretrained),
            "steps": recipe.trainer.max_steps,
            "training_seconds": 36.0,
            "energy_joules": None,
            "last_metrics": {},
            "peak_memory_bytes": {"process": 10**9},
            "test": fill_scores(folder / "test", found, names, name, groups),
        }
        write_json(folder / RECORD_NAME, {**record, **more})
        return folder

    return make
