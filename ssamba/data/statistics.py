"""Mean and standard deviation of the log-mel values of a data set, for the normalisation of spectrograms."""

import math
from typing import NamedTuple

import torch

from ssamba.audio import LogMel
from ssamba.data.stream import ClipStream
from ssamba.progress import progress_bar


class Statistics(NamedTuple):
    """Of the log-mel values of all whole frames; padding does not count."""

    mean: float
    std: float
    clips: int
    frames: int


def measure_statistics(stream: ClipStream, num_mel_bins: int, total: int) -> Statistics:
    """Read up to `total` clips of a stream, in float64 sums; a progress bar shows the rate and the time left."""
    log_mel = LogMel(stream.sampling_rate, num_mel_bins, 0.0, 0.5)
    added, squared, frames, clips = 0.0, 0.0, 0, 0
    with progress_bar(total, "clip", "statistics") as bar, torch.inference_mode():
        for batch in stream:
            lengths = batch["lengths"][: total - clips]
            # A minute of padding behind every second of speech would cost a minute's work.
            waveform = batch["waveform"][: len(lengths), : int(lengths.max())]
            values = log_mel.log_mel(waveform, lengths).double()
            frames += int(((lengths - log_mel.frame) // log_mel.hop + 1).clamp(min=0).sum())
            added += float(values.sum())  # frames after the end are 0
            squared += float(values.square().sum())
            clips += len(values)
            bar.update(len(values))
            if clips >= total:
                break
    count = frames * num_mel_bins
    mean = added / count
    return Statistics(mean, math.sqrt(squared / count - mean**2), clips, frames)
