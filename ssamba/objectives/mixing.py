"""Clips mixed with others of their batch, of which both sources stay the target (SSLAM, arXiv 2506.12222).

Of two sources that know nothing of each other the powers add up, on average over their phases, so that is what is done
with their mel energies: no second spectrogram is needed, and a quiet source stays under a loud one as it would in a
room. The paper takes the larger of both log-mel values, which is never more than ln 2 (3 dB) below that.

The paper's student hears each clip twice, by itself and mixed over a part of its time, and its teacher the mixture as
well as both sources. Here a mixture, over the whole time, takes the clip's place: the teacher hears each clip of a
batch once, as a source of its own and of others' mixtures, and a step costs what it does without.

Shapes: B clips, T frames, M mel bins, L patches, D width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ssamba.objectives.teacher import Targets


class Mixture(NamedTuple):
    """A batch, some of whose clips are mixed with others.

    Attributes:
        log_mel: normalised spectrograms (B, T, M), as the student hears them.
        partners: int64 (B,), which clip of the batch each one is mixed with: itself, if it is left alone.
    """

    log_mel: Tensor
    partners: Tensor


def draw_partners(chance: float, generators: Sequence[torch.Generator]) -> Tensor:
    """Which clip of a batch each one is mixed with, by a generator of its own: with this chance another one, all of
    them equally likely, else itself. Of a batch of one it is itself. int64 (B,) on the CPU."""
    draws = torch.stack([torch.rand(2, generator=generator) for generator in generators])
    own = torch.arange(len(draws))
    others = (own + 1 + (draws[:, 1] * (len(draws) - 1)).long()) % len(draws)
    return torch.where(draws[:, 0] < chance, others, own)


def mixed_with(log_mel: Tensor, frames: Tensor, partners: Tensor, scale: float) -> Mixture:
    """Add the powers of each clip and its partner.

    Args:
        log_mel: normalised (B, T, M); a difference of 1 is one of `scale` in the natural logarithm of the power.
        frames: int64 (B,), how many of the T are a clip's own. What follows them is padding, of no power: there is the
            partner alone, and padding stays where both have ended.
        partners: of `draw_partners`, on the device of log_mel.
    """
    other, place = log_mel[partners], torch.arange(log_mel.shape[1], device=log_mel.device)
    first, second = (place < ends.unsqueeze(1) for ends in (frames, frames[partners]))
    apart = (partners != torch.arange(len(partners), device=partners.device)).unsqueeze(1)
    louder = torch.logaddexp(scale * log_mel, scale * other) / scale
    single = torch.where((second & ~first).unsqueeze(2), other, log_mel)
    return Mixture(torch.where((first & second & apart).unsqueeze(2), louder, single), partners)


def retained(targets: Targets, partners: Tensor, own: Tensor | None = None) -> Targets:
    """The targets of mixtures: the mean of both sources' targets (the paper's source retention loss), and for a patch
    that is padding in one of them the target of the other.

    Args:
        targets: of the clips as they are without mixtures.
        partners: of `draw_partners`, on their device.
        own: bool (B, L), the patches of each clip that are no padding; None: all.
    """
    patches, clips = targets.patches, targets.clips
    first = torch.ones(patches.shape[:2], device=patches.device) if own is None else own.float()
    second = first[partners]
    both = first.unsqueeze(2) * patches + second.unsqueeze(2) * patches[partners]
    return Targets(both / (first + second).clamp(min=1).unsqueeze(2), (clips + clips[partners]) / 2, targets.spread)
