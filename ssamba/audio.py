"""Waveforms in, log-mel spectrograms out.

Shapes: B batch, S samples, T frames, M mel bins.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FRAME_MS = 25.0
HOP_MS = 10.0
_PREEMPHASIS = 0.97
_LOWEST_HZ = 20.0
_FLOOR = float(torch.finfo(torch.float32).eps)
# By is_cuda: on a CPU few enough to stay in its cache, on a GPU a bound on what a long recording takes on the way.
FRAMES_AT_ONCE = (32, 8192)
_NEPERS = math.log(10) / 10  # a decibel in the natural logarithm of the power
_BANDS = 4  # a filter reads few of the frequencies, so that filters are multiplied with their own share of them


def frames_in(samples: int, sampling_rate: int) -> int:
    """How many whole frames fit into so many samples (Kaldi's snip_edges)."""
    frame, hop = _frame_samples(sampling_rate)
    return max(0, (samples - frame) // hop + 1)


def samples_for(frames: int, sampling_rate: int) -> int:
    """The fewest samples that hold so many frames."""
    frame, hop = _frame_samples(sampling_rate)
    return frame + (frames - 1) * hop


def _frame_samples(sampling_rate: int) -> tuple[int, int]:
    return int(sampling_rate * FRAME_MS / 1000), int(sampling_rate * HOP_MS / 1000)


def mel_filters(num_mel_bins: int, bins: int, sampling_rate: int) -> Tensor:
    """Kaldi's (HTK-compatible) triangular filters from 20 Hz to the Nyquist frequency, float32 (bins, num_mel_bins).

    The triangles have straight sides on the mel scale, mel(f) = 1127 ln(1 + f / 700), not in Hz.
    """

    def mel(hertz: Tensor) -> Tensor:
        return 1127.0 * torch.log1p(hertz / 700.0)

    nyquist = sampling_rate / 2
    low, high = mel(torch.tensor([_LOWEST_HZ, nyquist], dtype=torch.float64))
    edges = low + torch.arange(num_mel_bins + 2, dtype=torch.float64) * ((high - low) / (num_mel_bins + 1))
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    place = mel(torch.arange(bins, dtype=torch.float64) * (nyquist / (bins - 1))).unsqueeze(1)
    rising, falling = (place - left) / (centre - left), (right - place) / (right - centre)
    filters = torch.minimum(rising, falling).clamp(min=0)
    filters[-1] = 0  # Kaldi leaves out the Nyquist bin
    return filters.float()


def _band(filters: Tensor, bins: Tensor) -> tuple[int, int, int, int]:
    """Some filters' first frequency and the one behind their last, the first filter and the one behind the last."""
    first, last = int(bins[0]), int(bins[-1]) + 1
    read = filters[:, first:last].any(1).nonzero()
    # Narrow filters at low frequencies may lie between two bins of the spectrum and read none.
    return (int(read[0]), int(read[-1]) + 1, first, last) if len(read) else (0, 1, first, last)


def move_bins(log_mel: Tensor, bins: Tensor) -> Tensor:
    """Move spectrograms (B, T, M) up by so many mel bins (B,), int64, below 0 down. What is moved out is gone, and the
    bin at the edge fills what is left."""
    most = log_mel.shape[2] - 1
    index = (torch.arange(most + 1, device=log_mel.device) - bins.unsqueeze(1)).clamp(0, most)
    return log_mel.gather(2, index.unsqueeze(1).expand_as(log_mel))


def make_louder(log_mel: Tensor, gain: Tensor, tilt: Tensor, scale: float) -> Tensor:
    """Change the level of spectrograms.

    Args:
        log_mel: normalised (B, T, M); a difference of 1 is one of `scale` in the natural logarithm of the power.
        gain: float32 (B,), decibels louder.
        tilt: float32 (B,), decibels that the highest bin is louder and the lowest softer, those between along a line,
            as by another microphone.
    """
    line = torch.linspace(-1, 1, log_mel.shape[2], device=log_mel.device)
    louder = gain.unsqueeze(1) + tilt.unsqueeze(1) * line
    return log_mel + (louder * (_NEPERS / scale)).unsqueeze(1)


class LogMel(nn.Module):
    """Waveforms to normalised log-mel spectrograms, as Kaldi computes them and SSAST section 3.1 uses them.

    Frames of 25 ms every 10 ms; mean of the frame removed; pre-emphasis 0.97; Hann window;
    power spectrum of the next power of two; mel filters; natural logarithm; (x - mean) / (2 * std). No dither.
    Frames after the end of a recording are log-mel 0 before the normalisation, the originals' padding, which their
    weights have learned.

    Batched, on the device of its input, float32 also under autocast.

    Attributes:
        scale: what a difference of 1 is in the natural logarithm of the power.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, sampling_rate: int, num_mel_bins: int, mean: float, std: float) -> None:
        super().__init__()
        self.sampling_rate, self.mean, self.scale = sampling_rate, mean, 2 * std
        self.frame, self.hop = _frame_samples(sampling_rate)
        self.fft = 1 << (self.frame - 1).bit_length()
        # Without its first value, which is 0: see _energies. As long as the transform.
        window = torch.hann_window(self.frame, periodic=False)[1:]
        self.register_buffer("window", F.pad(window, (0, self.fft - len(window))), persistent=False)
        filters = mel_filters(num_mel_bins, self.fft // 2 + 1, sampling_rate)
        self.register_buffer("filters", filters, persistent=False)
        self.bands = [_band(filters, bins) for bins in torch.arange(num_mel_bins).chunk(_BANDS)]

    def frames(self, lengths: Tensor) -> Tensor:
        """How many frames lie within so many samples (B,), 0 or less if none: int64 (B,)."""
        return (lengths - self.frame).div(self.hop, rounding_mode="floor") + 1

    def log_mel(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """Without normalisation: waveform (B, S), lengths (B,) valid samples -> (B, T, M), 0 after the end."""
        with torch.autocast(waveform.device.type, enabled=False):
            waveform = waveform.float()
            frames, at_once = frames_in(waveform.shape[1], self.sampling_rate), FRAMES_AT_ONCE[waveform.is_cuda]
            blocks = (
                waveform[:, first * self.hop : (min(first + at_once, frames) - 1) * self.hop + self.frame]
                for first in range(0, frames, at_once)
            )
            log_mel = torch.cat([self._energies(block).log_() for block in blocks], dim=1)
            inside = torch.arange(frames, device=waveform.device) < self.frames(lengths).unsqueeze(1)
            return log_mel.masked_fill_(~inside.unsqueeze(2), 0.0)

    def _energies(self, waveform: Tensor) -> Tensor:
        """Samples of some whole frames (B, S) -> mel energies (B, T, M)."""
        # Kaldi removes each frame's mean and takes its first sample as its own predecessor in the pre-emphasis. The
        # window hides that sample, so the frames may be cut from the pre-emphasised signal, one sample late, which the
        # power does not show. To remove the clip's mean as well, as the originals do, would change nothing.
        part = math.gcd(self.frame, self.hop)
        sums = waveform.unflatten(1, (-1, part)).sum(2).unfold(1, self.frame // part, self.hop // part).sum(2)
        emphasised = torch.sub(waveform[:, 1:], waveform[:, :-1], alpha=_PREEMPHASIS)
        frames = F.pad(emphasised, (0, self.fft - self.frame + 1)).unfold(1, self.fft, self.hop)
        centred = torch.sub(frames, sums.unsqueeze(2), alpha=(1 - _PREEMPHASIS) / self.frame)
        spectrum = torch.fft.rfft(centred.mul_(self.window))
        power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)
        energies = [power[..., low:high] @ self.filters[low:high, first:last] for low, high, first, last in self.bands]
        return torch.cat(energies, dim=-1).clamp_(min=_FLOOR)

    def forward(self, waveform: Tensor, lengths: Tensor) -> Tensor:
        """waveform (B, S) with S of at least one frame, lengths (B,) valid samples -> normalised (B, T, M)."""
        return self.log_mel(waveform, lengths).sub_(self.mean).div_(self.scale)
