"""Vectors of frames, such as a teacher's features of a clip, told at other times than their own.

Shapes: N frames, P times, D width.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class FrameTimes(NamedTuple):
    """first: the middle of the first frame, in seconds; rate: frames a second."""

    first: float
    rate: float

    def seconds(self, count: int) -> Tensor:
        """The middles of so many frames, float64 (count,)."""
        return self.first + torch.arange(count, dtype=torch.float64) / self.rate

    def interpolated(self, frames: Tensor, seconds: Tensor) -> Tensor:
        """Frames (N, D), N at least 1, at some times (P,): float32 (P, D), along a line between the middles of two
        frames; before the first and after the last one, that frame."""
        places = ((seconds.to(frames.device) - self.first) * self.rate).clamp(0, len(frames) - 1)
        before = places.floor().long()
        after = (before + 1).clamp(max=len(frames) - 1)
        share = (places - before).float().unsqueeze(1)
        return frames[before].float().lerp(frames[after].float(), share)
