"""A teacher that is the moving average of its student (data2vec 2.0, arXiv 2212.07525; EAT, arXiv 2401.03497).

Shapes: B clips, T frames, M mel bins, L patches, D width.
"""

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ssamba.models.encoder import AudioEncoder

_EPS = 1e-5


class Targets(NamedTuple):
    """What a teacher says of whole clips.

    Attributes:
        patches: float32 (B, L, D), of each patch.
        clips: float32 (B, D), of each clip.
        spread: float32 scalar, see `spread`: of the teacher's last layer, before any normalisation.
    """

    patches: Tensor
    clips: Tensor
    spread: Tensor


class Teacher(nn.Module):
    """A copy of an encoder that no gradient reaches and that follows the encoder after each step.

    Args:
        encoder: the student.
        layers: how many of the last layers' outputs make the targets; all, if there are fewer.
        decay, final_decay: the share of itself that the teacher keeps at the first and at the last step; in between
            along a line.
    """

    def __init__(self, encoder: AudioEncoder, layers: int, decay: float, final_decay: float) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.layers, self.decay, self.final_decay = layers, decay, final_decay

    @torch.no_grad()
    def follow(self, encoder: AudioEncoder, done: float) -> None:
        """teacher <- decay * teacher + (1 - decay) * student, when a share of `done` of all steps is behind."""
        decay = self.decay + (self.final_decay - self.decay) * min(1.0, done)
        pairs = zip(self.encoder.parameters(), encoder.parameters(), strict=True)
        ours, theirs = zip(*[(local_part(mine), local_part(its)) for mine, its in pairs], strict=True)
        torch._foreach_lerp_(list(ours), list(theirs), 1 - decay)

    @torch.no_grad()
    def forward(self, log_mel: Tensor, own: Tensor | None = None) -> Targets:
        """The targets of whole clips.

        Of each of the last `layers` layers, patch tokens are normalised over the clip's patches, each dimension by
        itself; their mean over layers is normalised over its dimensions. The clip's target is made of the same states
        before the first normalisation, which takes a clip's mean away: each token is normalised over its dimensions,
        and their mean over layers and patches once more.

        Args:
            log_mel: (B, T, M).
            own: bool (B, L), the patches that are no padding, of which alone statistics and means are; None: all.
        """
        states = [one.tokens.float() for one in self.encoder.hidden_states(log_mel)[-self.layers :]]
        own = torch.ones(states[0].shape[:2], dtype=torch.bool, device=log_mel.device) if own is None else own
        share = (own / own.sum(1, keepdim=True)).unsqueeze(-1)  # (B, L, 1), of a clip's patches
        width = states[0].shape[2:]
        with torch.autocast(log_mel.device.type, enabled=False):
            patches, clips = torch.zeros_like(states[0]), torch.zeros_like(states[0][:, 0])
            for state in states:
                mean = (state * share).sum(1, keepdim=True)
                variance = ((state - mean).square() * share).sum(1, keepdim=True)
                patches += (state - mean) * (variance + _EPS).rsqrt()
                clips += (F.layer_norm(state, width) * share).sum(1)
            return Targets(
                F.layer_norm(patches / len(states), width),
                F.layer_norm(clips / len(states), width),
                spread(states[-1], own),
            )


def spread(x: Tensor, own: Tensor | None = None) -> Tensor:
    """How much vectors differ: the root of (their mean squared distance from their mean / their mean square), a float32
    scalar from 0 (all are one) to 1.

    Args:
        x: (B, N, D). What all clips have in common at a place among the N counts as one with it, so that positions
            alone make no spread; of one clip the mean is over all places.
        own: bool (B, N), which count; None: all.
    """
    x = x.detach().float()
    own = torch.ones(x.shape[:2], device=x.device) if own is None else own.float()
    own = own.unsqueeze(-1)
    over = 0 if len(x) > 1 else 1
    mean = (x * own).sum(over, keepdim=True) / own.sum(over, keepdim=True).clamp(min=1)
    return (((x - mean).square() * own).sum() / (x.square() * own).sum().clamp(min=1e-30)).sqrt()


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part, where a tensor is spread over ranks; it shares memory with the whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
