"""What another, trained model says of the whole clip, told by a student that hears a part of it (USAD, arXiv
2506.18843).

Told are all patches of the clip, the hidden ones by what is around them and the others by what they are: one encoder
pass gives both, and what the model is used for later hears everything. Targets are standardised, so that the squared
error of what says nothing is 1, whichever the teacher; of standardised vectors it is a cosine but for a factor.

Shapes: B clips, V masks of each, F and P grid sizes in frequency and time, L = F * P patches, D width of the teacher's
features.
"""

from torch import Tensor, nn

from ssamba.models.encoder import Encoded
from ssamba.objectives.latent import projection
from ssamba.objectives.seen import Seen
from ssamba.objectives.teacher import spread


class FeatureHead(nn.Module):
    """The tokens of all patches -> (B, L, D)."""

    def __init__(self, width: int, target_width: int) -> None:
        super().__init__()
        self.projection = projection(width, target_width)

    def forward(self, tokens: Tensor, encoded: Encoded) -> Tensor:
        predicted: Tensor = self.projection(encoded.tokens)
        return predicted


def distillation(seen: Seen) -> dict[str, Tensor]:
    """distillation: the mean squared error, over their dimensions, of the teacher's features at the time of each patch;
    patches of one column have one target, those of padding none. distillation_spread: how much the student's
    predictions differ from one another."""
    assert seen.features is not None
    wanted = seen.features.float().repeat_interleave(seen.masks, 0).unsqueeze(1)  # (B * V, 1, P, D)
    predicted = seen.prediction.more["distillation"].float()
    own = seen.own
    errors = (predicted.unflatten(1, (-1, wanted.shape[2])) - wanted).square().mean(3).flatten(1)
    loss = errors.mean() if own is None else (errors * own).sum() / own.sum()
    return {"distillation": loss, "distillation_spread": spread(predicted, own)}
