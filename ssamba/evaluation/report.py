"""Scores written into a folder: JSON, predictions, pictures."""

import csv
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
from ssamba.files import whole_folder, write_json
from ssamba.models.heads import AudioClassifier
from ssamba.printable import csv_cell


def scoring_device() -> torch.device:
    """Where classifiers are scored: on a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def write_class_scores(folder: Path, model: AudioClassifier, log_mel: LogMel, stream: ClipStream, total: int,
                       names: Sequence[str]) -> dict[str, Any]:  # fmt: skip
    """Score a classifier: scores.json, predictions.csv; for one label a clip, confusion.png. Replaces the folder."""
    found = predict(model, log_mel, stream, total, scoring_device())
    scores: dict[str, Any] = {**clip_metrics(found.logits, found.labels), "clips": len(found.keys)}
    with whole_folder(folder) as beside:
        write_json(beside / "scores.json", scores)
        _write_predictions(beside / "predictions.csv", found, names)
        if found.labels.ndim == 1:
            title = f"{folder.resolve().parent.name}: {scores['accuracy']:.1%} of {len(found.keys)} clips"
            draw_confusion(beside / "confusion.png", confusion_matrix(found.logits, found.labels), names, title)
    return scores


def write_masked_scores(folder: Path, evaluation: MaskedEvaluation) -> dict[str, Any]:
    """Score a pretrained model on masked clips: scores.json. Replaces the folder."""
    scores = score_masked(evaluation)._asdict()
    with whole_folder(folder) as beside:
        write_json(beside / "scores.json", scores)
    return scores


def _write_predictions(path: Path, found: Predictions, names: Sequence[str]) -> None:
    several = found.labels.ndim == 2
    chances = found.logits.sigmoid() if several else found.logits.softmax(1)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["key", "true", "predicted", "probability"])
        for key, label, row in zip(found.keys, found.labels, chances, strict=True):
            true = [names[i] for i in torch.nonzero(label).flatten()] if several else [names[int(label)]]
            best = int(row.argmax())
            told = (key, "|".join(true), names[best])
            writer.writerow([*map(csv_cell, told), f"{float(row[best]):.4f}"])
