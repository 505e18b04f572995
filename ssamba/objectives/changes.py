"""Clips changed before the student hears them, whose teacher hears them as they are: what a recording says is told in
spite of the voice, the level and the microphone. BYOL-A (arXiv 2204.07402) changes what both of its networks hear, by
crops that are resized to other pitches, by fading and by mixing.

Shapes: B clips, T frames, M mel bins.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ssamba.audio import make_louder, move_bins


class Changes(NamedTuple):
    """How each of B clips is changed.

    Attributes:
        bins: int64 (B,), mel bins up, as by another vocal tract.
        gain, tilt: float32 (B,), decibels, as of `make_louder`.
        frames: int64 (B,), how many are the clip's own. What follows them is padding, and stays what it is.
    """

    bins: Tensor
    gain: Tensor
    tilt: Tensor
    frames: Tensor


class ChangeSettings(NamedTuple):
    """frequency_shift: at most so many bins up or down, all equally likely. gain, tilt: standard deviations, in
    decibels."""

    frequency_shift: int
    gain: float
    tilt: float


def draw_changes(settings: ChangeSettings, generators: Sequence[torch.Generator], frames: Tensor) -> Changes:
    """Each clip's by a generator of its own, on the device of `frames`, as of `Changes`."""
    most = settings.frequency_shift
    bins = torch.stack([torch.randint(-most, most + 1, (), generator=generator) for generator in generators])
    gain, tilt = torch.stack([torch.randn(2, generator=generator) for generator in generators], 1)
    device = frames.device
    return Changes(bins.to(device), settings.gain * gain.to(device), settings.tilt * tilt.to(device), frames)


def changed(log_mel: Tensor, changes: Changes, scale: float) -> Tensor:
    """Change clips.

    Args:
        log_mel: normalised (B, T, M); a difference of 1 is one of `scale` in the natural logarithm of the power.
        changes: on the device of log_mel.
    """
    moved = make_louder(move_bins(log_mel, changes.bins), changes.gain, changes.tilt, scale)
    own = torch.arange(log_mel.shape[1], device=log_mel.device) < changes.frames.unsqueeze(1)
    return torch.where(own.unsqueeze(2), moved, log_mel)
