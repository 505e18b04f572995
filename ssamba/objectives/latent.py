"""What a teacher that hears the whole clip says of it, told by a student that hears a part: of each hidden patch
(data2vec 2.0, arXiv 2212.07525), and of the clip (EAT, arXiv 2401.03497, section 3.3).

Shapes: B clips, V masks of each, N masked patches of a clip, D width, of the encoder and of what a head tells.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from ssamba.models.encoder import Encoded
from ssamba.models.patches import gather_patches
from ssamba.objectives.seen import Seen
from ssamba.objectives.teacher import spread


def projection(width: int, target_width: int) -> nn.Sequential:
    """Vectors of `width` dimensions -> of `target_width`."""
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, target_width))


class PatchHead(nn.Module):
    """Tokens of masked patches (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, target_width: int) -> None:
        super().__init__()
        self.projection = projection(width, target_width)

    def forward(self, tokens: Tensor, encoded: Encoded) -> Tensor:
        predicted: Tensor = self.projection(tokens)
        return predicted


class ClipHead(nn.Module):
    """Class tokens (B, 1 or 2, D), whose mean is taken -> (B, D)."""

    def __init__(self, width: int, target_width: int) -> None:
        super().__init__()
        self.projection = projection(width, target_width)

    def forward(self, tokens: Tensor, encoded: Encoded) -> Tensor:
        predicted: Tensor = self.projection(encoded.class_tokens.mean(1))
        return predicted


def latent(seen: Seen) -> dict[str, Tensor]:
    """latent: the mean squared error of the masked patches' targets, over their dimensions; latent_spread,
    teacher_spread: how much the student's predictions and the teacher's states differ from one another."""
    prediction, targets = seen.prediction, seen.targets
    assert targets is not None
    predicted = prediction.more["latent"].float()
    wanted = gather_patches(targets.patches.repeat_interleave(seen.masks, 0), prediction.places)
    errors = F.mse_loss(predicted, wanted, reduction="none").mean(2)
    loss = errors.mean() if prediction.hidden is None else (errors * prediction.hidden).sum() / prediction.hidden.sum()
    hidden = None if prediction.hidden is None else prediction.hidden.flatten().unsqueeze(0)
    # Masks differ from clip to clip, so predictions have no place in common: they are taken together.
    return {
        "latent": loss,
        "latent_spread": spread(predicted.flatten(0, 1).unsqueeze(0), hidden),
        "teacher_spread": targets.spread,
    }


def clip(seen: Seen) -> dict[str, Tensor]:
    """clip: the mean squared error of the clips' targets, over their dimensions; clip_spread: how much the student's
    predictions of them differ from one another."""
    targets = seen.targets
    assert targets is not None
    predicted = seen.prediction.more["clip"].float()
    loss = F.mse_loss(predicted, targets.clips.repeat_interleave(seen.masks, 0))
    return {"clip": loss, "clip_spread": spread(predicted.unsqueeze(0))}
