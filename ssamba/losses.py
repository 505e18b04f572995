"""The two objectives of masked-patch pretraining (SSAMBA section 2.3, SSAST section 2.3).

Shapes: B batch, N masked patches of a clip, K pixels of a patch.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Contrast(NamedTuple):
    """loss: the mean InfoNCE, nats; accuracy: the share of predictions that are matched to their own patch."""

    loss: Tensor
    accuracy: Tensor


def info_nce(prediction: Tensor, target: Tensor) -> Contrast:
    """Match each true patch to its prediction among all the predictions of its clip (SSAST equation 1).

    scores[b, i, j] = target[b, i] . prediction[b, j]; the loss is the mean over i of -log softmax_j(scores)[i, i].
    Accuracy is the originals': of the softmaxed scores, the share of predictions j whose largest entry over the
    patches i is their own. Scores and softmax are float32 whatever the inputs and under autocast, where the
    originals overflow.

    Args:
        prediction: (B, N, K). target: (B, N, K).
    """
    with torch.autocast(prediction.device.type, enabled=False):
        scores = target.float() @ prediction.float().transpose(1, 2)
        log_share = F.log_softmax(scores, dim=2)
        loss = -log_share.diagonal(dim1=1, dim2=2).mean()
        own = torch.arange(scores.shape[1], device=scores.device)
        accuracy = (log_share.detach().argmax(1) == own).float().mean()
    return Contrast(loss, accuracy)


def reconstruction_mse(prediction: Tensor, target: Tensor) -> Tensor:
    """The mean squared error over the masked patches (SSAST equation 2), float32; both (B, N, K)."""
    return F.mse_loss(prediction.float(), target.float())
