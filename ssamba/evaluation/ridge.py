"""Ridge classifiers, of which each clip is scored by the one that was fitted on all others: seconds, and no clips that
are held back.

Shapes: N clips, D features, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.evaluation.linear import Scaling
from ssamba.evaluation.metrics import clip_metrics
from ssamba.evaluation.probes import main_metric

_PENALTIES = (10.0, 1.0, 0.1, 0.01, 1e-3)  # relative to the mean square of a clip's features along all axes


def leave_one_out(x: Tensor, labels: Tensor, classes: int) -> dict[str, Tensor]:
    """For each penalty, the prediction for each clip of the ridge regression of 0 and 1 on standardised features that
    is fitted on the other clips.

    With an intercept that is not penalised, the fit is linear in the labels, y' = H y, and leaving clip i out changes
    its own y'_i to (y'_i - H_ii y_i) / (1 - H_ii): one decomposition serves all clips and penalties.

    Args:
        x: (N, D); the means and deviations are those of all N.
        labels: int64 (N,), or multi-hot (N, C).

    Returns:
        float64 (N, C) for each penalty, by its name.
    """
    targets = (F.one_hot(labels, classes) if labels.ndim == 1 else labels).double()
    centred = Scaling.of(x)(x)
    values, axes = torch.linalg.eigh(centred @ centred.T)
    values = values.clamp(min=0)
    means = targets.mean(0)
    along = axes.T @ (targets - means)
    scores = {}
    for penalty in _PENALTIES:
        kept = values / (values + penalty * values.mean().clamp(min=1e-30))
        fitted = means + axes @ (kept.unsqueeze(1) * along)
        own = (axes.square() @ kept + 1 / len(x)).unsqueeze(1)
        scores[f"{penalty:g}"] = (fitted - own * targets) / (1 - own).clamp(min=1e-9)
    return scores


def ridge_score(x: Tensor, labels: Tensor, classes: int) -> tuple[str, float]:
    """Name and value of the score, accuracy or mAP, of `leave_one_out` with the penalty that is best for it."""
    name = main_metric(labels)
    # Of a sum that is no probability, mAP reads the order alone, which the sigmoid it takes does not change.
    return name, max(clip_metrics(scores, labels)[name] for scores in leave_one_out(x, labels, classes).values())
