"""Spectrograms cut into patches, and the positional grid that follows them to another size.

Shapes: B batch, T frames, M mel bins, F and P grid sizes in frequency and time, K pixels of a patch, D width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class PatchShape(NamedTuple):
    """fshape mel bins x tshape frames a patch, and the steps from one patch to the next (mel bins, frames)."""

    fshape: int
    tshape: int
    frequency_stride: int
    time_stride: int

    def grid(self, mel_bins: int, frames: int) -> tuple[int, int]:
        """(F, P) of a spectrogram; frames and bins that fill no whole patch are left out. ValueError if none fits."""
        if mel_bins < self.fshape or frames < self.tshape:
            raise ValueError(
                f"a spectrogram of {frames} frames x {mel_bins} mel bins is smaller than one patch of "
                f"{self.tshape} frames x {self.fshape} mel bins"
            )
        return (mel_bins - self.fshape) // self.frequency_stride + 1, (frames - self.tshape) // self.time_stride + 1

    def own_columns(self, frames: Tensor, columns: int) -> Tensor:
        """How many of a grid's columns begin within so many frames (B,), the first at least: int64 (B,)."""
        return (frames + self.time_stride - 1).div(self.time_stride, rounding_mode="floor").clamp(1, columns)

    def own_patches(self, frames: Tensor, rows: int, columns: int) -> Tensor:
        """Which patches of a grid begin within so many frames (B,): bool (B, rows * columns); others are padding."""
        own = self.own_columns(frames, columns).unsqueeze(1)
        return (torch.arange(columns, device=own.device) < own).repeat(1, rows)

    def cut(self, log_mel: Tensor) -> Tensor:
        """(B, T, M) -> (B, F * P, K): patches one frequency row after another, their pixels mel bin by mel bin."""
        self.grid(log_mel.shape[2], log_mel.shape[1])
        windows = log_mel.transpose(1, 2).unfold(1, self.fshape, self.frequency_stride)
        return windows.unfold(2, self.tshape, self.time_stride).flatten(3).flatten(1, 2)

    def join(self, patches: Tensor, mel_bins: int, frames: int) -> Tensor:
        """The inverse of `cut` for strides equal to the patch: (B, F * P, K) -> (B, P * tshape, F * fshape)."""
        rows, columns = self.grid(mel_bins, frames)
        pixels = patches.unflatten(2, (self.fshape, self.tshape)).unflatten(1, (rows, columns))
        return pixels.permute(0, 2, 4, 1, 3).flatten(3).flatten(1, 2)


def fit_positions(positions: Tensor, rows: int, columns: int) -> Tensor:
    """A positional grid (F, P, D) for `rows` x `columns` patches (SSAST section 2.4).

    Fewer columns (a shorter clip): cut around the middle. More columns (a longer clip, a smaller stride): linear
    interpolation. Another number of rows (other mel bins over the same frequencies, a smaller stride): linear
    interpolation. Differentiable.
    """
    height, width, _ = positions.shape
    if columns < width:
        start = width // 2 - columns // 2
        positions = positions[:, start : start + columns]
    if (rows, columns) != (height, positions.shape[1]):
        image = positions.permute(2, 0, 1).unsqueeze(0)
        resized = F.interpolate(image, size=(rows, columns), mode="bilinear", align_corners=False)
        positions = resized[0].permute(1, 2, 0)
    return positions


def masked_places(mask: Tensor, masked: int | None = None) -> Tensor:
    """Which patches a bool mask (B, L) with equally many True a clip hides: int64 (B, N), ascending.

    `masked` is N; if None it is read off the mask, for which a GPU has to finish what it is doing.
    """
    if masked is None:
        masked = int(mask[0].sum())
    return mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :masked]


def visible_places(mask: Tensor, masked: int, own: Tensor | None = None) -> Tensor:
    """Which patches of each clip an encoder gets that gets no hidden ones: int64 (B, L - N), ascending.

    Args:
        mask: bool (B, L), True where a patch is hidden.
        masked: N, the most that are hidden of a clip.
        own: bool (B, L), the patches that are no padding. A clip with fewer hidden patches gives all that are visible
            of its own and, to be as many as of the others, the first of its padding. None: all hide N.
    """
    order = (~mask).to(torch.uint8)
    if own is not None:
        order = order * (1 + own.to(torch.uint8))
    chosen = order.argsort(dim=1, descending=True, stable=True)[:, : mask.shape[1] - masked]
    return chosen.sort(dim=1).values


def gather_patches(x: Tensor, places: Tensor) -> Tensor:
    """The rows of x (B, L, D) at `places` (B, N): (B, N, D)."""
    return torch.gather(x, 1, places.unsqueeze(-1).expand(-1, -1, x.shape[2]))
