"""Scores of a classifier.

Shapes: B clips, C classes.
"""

import torch
from torch import Tensor
from torchmetrics.functional.classification import multilabel_average_precision


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


def confusion_matrix(logits: Tensor, labels: Tensor) -> Tensor:
    """Counts, int64 (C, C): a row for each true class, a column for each predicted one."""
    classes = logits.shape[1]
    return torch.bincount(labels * classes + logits.argmax(1), minlength=classes**2).view(classes, classes)
