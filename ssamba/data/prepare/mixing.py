"""Recordings mixed into one, which the writer's workers do. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ssamba.data.prepare.writer import MAX_SECONDS
from ssamba.errors import BadAudio
from ssamba.recordings import read_audio

BACKGROUND_DB = -50.0
"""RMS of the background, where a full scale of 1 is 0 dB."""
_LOWEST_HZ = 20.0


@dataclass(frozen=True)
class Event:
    """A recording in a mix."""

    path: Path
    onset: int
    """Where it is heard first, in seconds of the mix."""
    seconds: int
    """How long it is heard at most."""
    start: int = 0
    """What is left out at its beginning, in seconds."""
    snr: float | None = None
    """Its level in dB above the background, both as RMS, its own of the whole recording; None: as it was recorded."""


@dataclass(frozen=True)
class Mix:
    """Events, and perhaps a background, as a function of the sampling rate."""

    events: tuple[Event, ...]
    seconds: int
    noise: int | None = None
    """The seed of brown noise at BACKGROUND_DB; None: no background."""

    def __call__(self, sampling_rate: int) -> npt.NDArray[np.float32]:
        """float32 (seconds * sampling_rate,); quieter as a whole where its peak would be above 1.

        Raises:
            BadAudio: a recording in it that is unreadable.
        """
        mixed = np.zeros(self.seconds * sampling_rate, np.float32)
        if self.noise is not None:
            mixed += _brown(np.random.default_rng(self.noise), len(mixed), sampling_rate)
        for event in self.events:
            try:
                samples = read_audio(event.path, sampling_rate, MAX_SECONDS)
            except BadAudio as error:
                raise BadAudio(f"{event.path.name} in it: {error}") from error
            if event.snr is not None:
                samples = _at_level(samples, BACKGROUND_DB + event.snr)
            onset, start = event.onset * sampling_rate, event.start * sampling_rate
            samples = samples[start : start + event.seconds * sampling_rate]
            mixed[onset : onset + len(samples)] += samples
        return mixed / np.maximum(np.abs(mixed).max(), np.float32(1))


def _at_level(samples: npt.NDArray[np.float32], db: float) -> npt.NDArray[np.float32]:
    """With this RMS; silence stays silence."""
    rms = np.sqrt(np.mean(samples**2, dtype=np.float64))
    return samples * np.float32(10 ** (db / 20) / rms) if rms else samples


def _brown(rng: np.random.Generator, samples: int, sampling_rate: int) -> npt.NDArray[np.float32]:
    """Gaussian noise whose power falls by 6 dB an octave, with nothing below what can be heard."""
    frequencies = np.fft.rfftfreq(samples, 1 / sampling_rate)
    spectrum = np.fft.rfft(rng.standard_normal(samples)) / np.maximum(frequencies, _LOWEST_HZ)
    spectrum[frequencies < _LOWEST_HZ] = 0
    return _at_level(np.fft.irfft(spectrum, samples).astype(np.float32), BACKGROUND_DB)
