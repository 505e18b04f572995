"""Recordings of any kind and length to a batch of spectrograms, as a model's training made them.

Shapes: B batch, S samples, T frames, M mel bins.
"""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import soxr
import torch
from torch import Tensor, nn

from ssamba.audio import LogMel, frames_in, samples_for
from ssamba.errors import BadAudio
from ssamba.frames import FrameTimes
from ssamba.models.patches import PatchShape
from ssamba.models.settings import AudioSettings
from ssamba.recordings import Waveform, check_level, read_audio

Audio = str | os.PathLike[str] | Waveform | Tensor
_MAX_SECONDS = 600.0  # of a file that is read at once; longer ones are for windows


class Features(NamedTuple):
    """input_values: float32 (B, T, M), normalised log-mel; lengths: int64 (B,), the frames of each clip that a model is
    to see: what follows them is there to make the clips equally long, and no more; own: int64 (B,), those of them that
    are the recording's, before it was filled up with zeros."""

    input_values: Tensor
    lengths: Tensor
    own: Tensor


class FeatureExtractor(nn.Module):
    """Files, waveforms or lists of them -> `Features`.

    A recording shorter than the clip is filled up as in training (`AudioSettings.short`); a longer one stays whole.
    A recording's spectrogram does not depend on the others of its batch.

    Args:
        audio: sampling rate, statistics, what becomes of short recordings.
        num_mel_bins, max_length: M and the frames of a clip.
        min_length: the fewest frames that a recording must have of its own, those of a patch.
    """

    def __init__(self, audio: AudioSettings, num_mel_bins: int, max_length: int, min_length: int = 1) -> None:
        super().__init__()
        self.audio, self.max_length, self.min_length = audio, max_length, min_length
        self.log_mel = LogMel(audio.sampling_rate, num_mel_bins, audio.mean, audio.std)

    @property
    def sampling_rate(self) -> int:
        """Hz of the waveforms that are taken when no other is named."""
        return self.audio.sampling_rate

    @property
    def min_samples(self) -> int:
        """The fewest samples, at the model's rate, that a recording must have."""
        return samples_for(self.min_length, self.sampling_rate)

    @property
    def clip_samples(self) -> int:
        """The samples of the model's clip, max_length frames of them."""
        return samples_for(self.max_length, self.sampling_rate)

    def too_short(self, samples: int) -> str:
        """What to say of a recording of fewer than `min_samples`."""
        rate = self.sampling_rate
        return f"it has {samples / rate:.3f} s; the model needs {self.min_samples / rate:.3f} s"

    def forward(self, audio: Audio | Sequence[Audio], sampling_rate: int | None = None) -> Features:
        """Extract features.

        Args:
            audio: a path, a waveform (S,) in float or integers of full scale 1, a batch of them (B, S), or a list of
                paths and waveforms of unequal lengths.
            sampling_rate: Hz of the waveforms, if it is not the model's: they are resampled. Files know their own.

        Raises:
            BadAudio: a file or waveform that is unreadable, not finite, or shorter than a patch; says which.
        """
        single = isinstance(audio, str | os.PathLike) or (isinstance(audio, np.ndarray | Tensor) and audio.ndim == 1)
        items: list[Any] = [audio] if single else list(audio)  # type: ignore[arg-type]
        return self.extract([self.waveform(item, sampling_rate, name) for name, item in enumerate(items)])

    def waveform(self, audio: Audio, sampling_rate: int | None = None, name: object = 0) -> Waveform:
        """One recording, float32 (S,) at the model's rate; BadAudio, which gives its path or `name`."""
        rate = self.sampling_rate
        if isinstance(audio, str | os.PathLike):
            name = os.fspath(audio)
            try:
                samples = read_audio(audio, rate, _MAX_SECONDS)
            except BadAudio as error:
                raise BadAudio(f"{name}: {error}") from error
        else:
            samples = np.asarray(audio.detach().cpu() if isinstance(audio, Tensor) else audio, np.float32)
            if samples.ndim != 1 or not np.isfinite(samples).all():
                raise BadAudio(f"waveform {name} has shape {samples.shape}; expected finite samples (S,)")
            try:
                check_level(samples, rate)
            except BadAudio as error:
                raise BadAudio(f"waveform {name}: {error}") from error
            if sampling_rate not in (None, rate) and samples.size:
                samples = soxr.resample(samples, sampling_rate, rate, quality="HQ")
        if samples.size < self.min_samples:
            raise BadAudio(f"{name}: {self.too_short(samples.size)}")
        return np.ascontiguousarray(samples)

    def extract(self, waveforms: Sequence[Waveform]) -> Features:
        """Waveforms (S,) of at least one frame each, at the model's rate -> `Features`, on this module's device."""
        rate, short = self.sampling_rate, self.audio.short
        clip = self.clip_samples
        if short == "repeat":
            waveforms = [np.resize(one, max(one.size, clip)) for one in waveforms]
        sizes = [one.size for one in waveforms]
        batch = torch.zeros(len(waveforms), max([clip if short == "pad" else 0, *sizes]))
        for row, one in zip(batch, waveforms, strict=True):
            row[: one.size] = torch.from_numpy(one)
        own = [frames_in(size, rate) for size in sizes]
        frames = [max(one, self.max_length if short == "pad" else 0) for one in own]
        device = self.log_mel.window.device
        spectrograms = self.log_mel(batch.to(device), torch.tensor(sizes, device=device))
        return Features(spectrograms, torch.tensor(frames, device=device), torch.tensor(own, device=device))


def column_times(patch: PatchShape, sampling_rate: int) -> FrameTimes:
    """When the columns of patches of a spectrogram are; a column lasts from its first frame's first sample to the last
    sample of its last frame."""
    hop = samples_for(2, sampling_rate) - samples_for(1, sampling_rate)
    middle = samples_for(patch.tshape, sampling_rate) / 2
    return FrameTimes(middle / sampling_rate, sampling_rate / (patch.time_stride * hop))
