"""What all teachers have in common: recordings of any rate and length, window by window, to standardised features.

Shapes: S samples, N frames, D width.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssamba.frames import FrameTimes
from ssamba.recordings import Waveform

_BATCH = 16  # windows at once


class FeatureTeacher:
    """A trained encoder that computes features as targets. It is no nn.Module, so that a module that has one neither
    trains nor saves it.

    A recording longer than a window is cut into windows that join without a gap; each is a recording of its own to the
    model.

    Args:
        network: the model; its weights stay as they are.
        name: for messages and records.
        layer: whose output the features are.
        width: D.
        sampling_rate: of its input, in Hz.
        times: when the frames of a recording are.
        window_samples, window_frames: of a recording that is longer each window's samples, at `sampling_rate`, and how
            many frames there are from one window's first to the next one's.
        least_samples: shorter ones are filled up with zeros.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        layer: int,
        width: int,
        sampling_rate: int,
        times: FrameTimes,
        window_samples: int,
        window_frames: int,
        least_samples: int,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.name, self.layer, self.width = name, layer, width
        self.sampling_rate, self.times = sampling_rate, times
        self.window_samples, self.window_frames, self.least_samples = window_samples, window_frames, least_samples

    @property
    def fingerprint(self) -> str:
        """Of the weights: sha256 over their names and numbers, in hex."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device) -> None:
        """Move it to a device."""
        self.network.to(device)

    def window_features(self, windows: Sequence[Waveform]) -> list[Tensor]:
        """Features of windows (S,) at its rate, float32 (N, D) each, without the frames of padding."""
        raise NotImplementedError

    @torch.no_grad()
    def features(self, waveforms: Sequence[Waveform], sampling_rate: int) -> list[Tensor]:
        """Features of recordings (S,) of a sampling rate in Hz: float32 (N, D) each, every frame standardised over
        its dimensions, so that no dimension outweighs the others by its size. A recording's features do not depend on
        the others."""
        windows: list[Waveform] = []
        counts: list[int] = []
        for waveform in waveforms:
            cut = self._windows(waveform, sampling_rate)
            windows += cut
            counts.append(len(cut))
        outputs: list[Tensor] = []
        for first in range(0, len(windows), _BATCH):
            outputs += self.window_features(windows[first : first + _BATCH])
        frames = iter(outputs)
        return [self._joined([next(frames) for _ in range(count)]) for count in counts]

    def _windows(self, waveform: Waveform, sampling_rate: int) -> list[Waveform]:
        if sampling_rate != self.sampling_rate:
            waveform = soxr.resample(waveform, sampling_rate, self.sampling_rate, quality="HQ")
        if waveform.size < self.least_samples:
            waveform = np.concatenate([waveform, np.zeros(self.least_samples - waveform.size, np.float32)])
        step = round(self.window_frames / self.times.rate * self.sampling_rate)
        starts = range(0, max(1, waveform.size - self.least_samples + 1), step)
        return [waveform[start : start + self.window_samples] for start in starts]

    def _joined(self, windows: Sequence[Tensor]) -> Tensor:
        frames = [one[: self.window_frames] for one in windows[:-1]]
        return F.layer_norm(torch.cat([*frames, windows[-1]]).float(), (self.width,))
