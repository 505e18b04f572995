"""Scores of a classifier.

Shapes: B clips, C classes.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    binary_calibration_error,
    multiclass_calibration_error,
    multilabel_average_precision,
)

_BINS = 15  # of confidence, as Guo et al. (arXiv 1706.04599) have them


def clip_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Scores of logits (B, C): accuracy and balanced accuracy for int64 labels (B,); mAP for multi-hot labels (B, C).

    Balanced accuracy is the mean over the classes that occur of the share of their clips that is recognised.
    """
    if labels.ndim == 2:
        mean = multilabel_average_precision(logits.sigmoid(), labels.long(), num_labels=labels.shape[1])
        return {"mAP": float(mean)}
    confusion = confusion_matrix(logits, labels)
    hits, counts = confusion.diagonal(), confusion.sum(1)
    occurring = counts > 0
    return {
        "accuracy": float(hits.sum() / counts.sum()),
        "balanced_accuracy": float((hits[occurring] / counts[occurring]).mean()),
    }


class ClassScores(NamedTuple):
    """Of one class: how many clips have it; precision, recall and F1 of the predictions (the likeliest class, or with
    several labels a clip each above 0.5); average precision and area under the ROC curve of its probability against the
    rest. NaN where nothing is to be divided: a class that no clip has has no recall, one that is never predicted no
    precision."""

    clips: int
    precision: float
    recall: float
    f1: float
    average_precision: float
    auc: float


def class_scores(probabilities: Tensor, labels: Tensor) -> list[ClassScores]:
    """Of each class, from probabilities (B, C) and labels int64 (B,) or multi-hot (B, C)."""
    if labels.ndim == 2:
        hot, predicted = labels.bool(), probabilities > 0.5
    else:
        classes = probabilities.shape[1]
        hot, predicted = (torch.nn.functional.one_hot(one, classes).bool() for one in (labels, probabilities.argmax(1)))
    hits, counts, claims = (hot & predicted).sum(0), hot.sum(0), predicted.sum(0)
    scores = []
    for place, (hit, count, claim) in enumerate(zip(hits.tolist(), counts.tolist(), claims.tolist(), strict=True)):
        score, truth = probabilities[:, place].double(), hot[:, place].long()
        precision, recall = (hit / claim if claim else math.nan), (hit / count if count else math.nan)
        f1 = 2 * hit / (count + claim) if count + claim else math.nan
        ranked = float(binary_average_precision(score, truth)) if count else math.nan
        auc = float(binary_auroc(score, truth)) if 0 < count < len(truth) else math.nan
        scores.append(ClassScores(count, precision, recall, f1, ranked, auc))
    return scores


def summary_metrics(classes: list[ClassScores], probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """AUC and F1, means over the classes that have one; d_prime, sqrt(2) times the normal deviate of that AUC, as
    AudioSet's papers have it; calibration_error, the expected difference of confidence and accuracy (of several labels:
    of each class's probability and frequency), in 15 bins."""
    auc = _mean([one.auc for one in classes])
    d_prime = math.sqrt(2) * float(torch.special.ndtri(torch.tensor(auc, dtype=torch.float64)))
    sure = probabilities.double()
    if labels.ndim == 2:
        error = binary_calibration_error(sure.flatten(), labels.long().flatten(), _BINS)
    else:
        error = multiclass_calibration_error(sure, labels, sure.shape[1], _BINS)
    return {"AUC": auc, "d_prime": d_prime, "F1": _mean([one.f1 for one in classes]), "calibration_error": float(error)}


def _mean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def confusion_matrix(logits: Tensor, labels: Tensor) -> Tensor:
    """Counts, int64 (C, C): a row for each true class, a column for each predicted one."""
    classes = logits.shape[1]
    return torch.bincount(labels * classes + logits.argmax(1), minlength=classes**2).view(classes, classes)
