"""The two parts of SSAST and SSAMBA: which patch is hidden, and what it looks like (SSAMBA section 2.3)."""

from torch import Tensor

from ssamba.losses import info_nce, reconstruction_mse
from ssamba.objectives.seen import Seen


def contrastive(seen: Seen) -> dict[str, Tensor]:
    """contrastive: the loss of `info_nce`, nats; accuracy: the share of its matches."""
    prediction = seen.prediction
    contrast = info_nce(prediction.contrastive, prediction.target, prediction.hidden)
    return {"contrastive": contrast.loss, "accuracy": contrast.accuracy}


def reconstruction(seen: Seen) -> dict[str, Tensor]:
    """reconstruction: the mean squared error of the masked patches' pixels."""
    prediction = seen.prediction
    return {"reconstruction": reconstruction_mse(prediction.reconstruction, prediction.target, prediction.hidden)}
