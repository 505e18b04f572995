"""The two objectives of masked-patch pretraining (SSAMBA section 2.3, SSAST section 2.3).

Shapes: B batch, N masked patches of a clip (the most of a clip, where clips have unequal numbers), K pixels of a patch.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Contrast(NamedTuple):
    """loss: the mean InfoNCE, nats; accuracy: the share of predictions that are matched to their own patch."""

    loss: Tensor
    accuracy: Tensor


def info_nce(prediction: Tensor, target: Tensor, hidden: Tensor | None = None) -> Contrast:
    """Match each true patch to its prediction among all the predictions of its clip (SSAST equation 1).

    scores[b, i, j] = target[b, i] . prediction[b, j]; the loss is the mean over i of -log softmax_j(scores)[i, i].
    Accuracy is the originals': of the softmaxed scores, the share of predictions j whose largest entry over the
    patches i is their own. Scores and softmax are float32 whatever the inputs and under autocast, where the
    originals overflow.

    Patches of a clip that are the same in every pixel (digital silence, dead bands) are no negatives of one another,
    since nothing could tell them apart: for each such i the predictions of the others are left out.

    Args:
        prediction: (B, N, K). target: (B, N, K).
        hidden: bool (B, N), which of the N are masked patches: the others count for nothing; None: all.
    """
    with torch.autocast(prediction.device.type, enabled=False):
        target = target.float()
        scores = target @ prediction.float().transpose(1, 2)
        own = torch.eye(scores.shape[1], dtype=torch.bool, device=scores.device)
        scores = scores.masked_fill(_equal(target) & ~own, -torch.inf)
        if hidden is not None:
            # A row or column of nothing but infinities would have no softmax: its own entry stays.
            scores = scores.masked_fill(~(hidden.unsqueeze(1) & hidden.unsqueeze(2)) & ~own, -torch.inf)
        log_share = F.log_softmax(scores, dim=2)
        losses = -log_share.diagonal(dim1=1, dim2=2)
        hits = (log_share.detach().argmax(1) == torch.arange(scores.shape[1], device=scores.device)).float()
        if hidden is None:
            return Contrast(losses.mean(), hits.mean())
        count = hidden.sum()
        return Contrast((losses * hidden).sum() / count, (hits * hidden).sum() / count)


def _equal(target: Tensor) -> Tensor:
    """Which patches of a clip are the same in every pixel: bool (B, N, N)."""
    # By a sum that hardly any two others share; in float64, summed in the same order for each patch.
    weights = torch.arange(1, target.shape[2] + 1, dtype=torch.float64, device=target.device).sqrt()
    sums = (target.double() * weights).sum(2)
    return sums.unsqueeze(1) == sums.unsqueeze(2)


def reconstruction_mse(prediction: Tensor, target: Tensor, hidden: Tensor | None = None) -> Tensor:
    """The mean squared error over the masked patches (SSAST equation 2), float32; arguments as of `info_nce`."""
    if hidden is None:
        return F.mse_loss(prediction.float(), target.float())
    errors = F.mse_loss(prediction.float(), target.float(), reduction="none").mean(2)
    return (errors * hidden).sum() / hidden.sum()
