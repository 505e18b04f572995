"""Scores written into a folder: JSON, predictions, pictures."""

import csv
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ssamba.audio import LogMel
from ssamba.data.stream import ClipStream
from ssamba.evaluation.classification import Predictions, predict
from ssamba.evaluation.masked import MaskedEvaluation, score_masked
from ssamba.evaluation.metrics import clip_metrics, confusion_matrix
from ssamba.evaluation.pictures import draw_confusion
from ssamba.files import write_json
from ssamba.models.heads import AudioClassifier


def write_class_scores(folder: Path, model: AudioClassifier, log_mel: LogMel, stream: ClipStream, total: int,
                       names: Sequence[str]) -> dict[str, Any]:  # fmt: skip
    """Score a classifier: scores.json, predictions.csv; for one label a clip, confusion.png. Replaces the folder."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = predict(model, log_mel, stream, total, device)
    scores: dict[str, Any] = {**clip_metrics(found.logits, found.labels), "clips": len(found.keys)}
    with _replaced(folder) as beside:
        write_json(beside / "scores.json", scores)
        _write_predictions(beside / "predictions.csv", found, names)
        if found.labels.ndim == 1:
            title = f"{folder.parent.name}: {scores['accuracy']:.1%} of {len(found.keys)} clips"
            draw_confusion(beside / "confusion.png", confusion_matrix(found.logits, found.labels), names, title)
    return scores


def write_masked_scores(folder: Path, evaluation: MaskedEvaluation) -> dict[str, Any]:
    """Score a pretrained model on masked clips: scores.json. Replaces the folder."""
    scores = score_masked(evaluation)._asdict()
    with _replaced(folder) as beside:
        write_json(beside / "scores.json", scores)
    return scores


class _replaced:
    """A folder written beside its place and put there only when it is complete."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.beside = folder, folder.with_name(f"{folder.name}.tmp")

    def __enter__(self) -> Path:
        shutil.rmtree(self.beside, ignore_errors=True)
        self.beside.mkdir(parents=True)
        return self.beside

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            os.replace(self.beside, self.folder)


def _write_predictions(path: Path, found: Predictions, names: Sequence[str]) -> None:
    several = found.labels.ndim == 2
    chances = found.logits.sigmoid() if several else found.logits.softmax(1)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "true", "predicted", "probability"])
        for key, label, row in zip(found.keys, found.labels, chances, strict=True):
            true = [names[i] for i in torch.nonzero(label).flatten()] if several else [names[int(label)]]
            best = int(row.argmax())
            writer.writerow([key, "|".join(true), names[best], f"{float(row[best]):.4f}"])
