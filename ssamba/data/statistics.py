"""Mean and standard deviation of the log-mel values of a data set, for the normalisation of spectrograms."""

import logging
import math
from typing import NamedTuple

import torch

from ssamba.audio import LogMel
from ssamba.data.stream import BatchStream
from ssamba.errors import UserError
from ssamba.progress import progress_bar

log = logging.getLogger(__name__)

_SILENT = 1e-3  # of natural logarithms: values that differ by less are one, as those of silence and of a constant are


class Statistics(NamedTuple):
    """Of the log-mel values of all whole frames; padding does not count."""

    mean: float
    std: float
    clips: int
    frames: int


def measure_statistics(stream: BatchStream, num_mel_bins: int, total: int) -> Statistics:
    """Read up to `total` clips of a stream, in float64 sums; a progress bar shows the rate and the time left.

    Clips that say nothing, as silence does, are counted in a warning.

    Raises:
        UserError: all of them say nothing, or are shorter than a frame.
    """
    log_mel = LogMel(stream.sampling_rate, num_mel_bins, 0.0, 0.5)
    added, squared, frames, clips, silent = 0.0, 0.0, 0, 0, 0
    with progress_bar(total, "clip", "statistics") as bar, torch.inference_mode():
        for batch in stream:
            lengths = batch["lengths"][: total - clips]
            # A minute of padding behind every second of speech would cost a minute's work.
            waveform = batch["waveform"][: len(lengths), : int(lengths.max())]
            values = log_mel.log_mel(waveform, lengths).double()
            counts = log_mel.frames(lengths).clamp(min=0)
            frames += int(counts.sum())
            added += float(values.sum())  # frames after the end are 0
            squared += float(values.square().sum())
            clips += len(values)
            # Those frames, if any, count as the first one.
            own = torch.arange(values.shape[1]) < counts.unsqueeze(1)
            values = torch.where(own.unsqueeze(2), values, values[:, :1]).flatten(1)
            silent += int((values.amax(1) - values.amin(1) < _SILENT).sum()) if values.numel() else len(values)
            bar.update(len(values))
            if clips >= total:
                break
    if not frames:
        raise UserError(f"none of {clips} clips has a whole frame, {log_mel.frame} samples; expected longer recordings")
    count = frames * num_mel_bins
    mean = added / count
    std = math.sqrt(max(0.0, squared / count - mean**2))
    if silent == clips or std < _SILENT:
        raise UserError(
            f"all of {clips} clips are silent, or each of one value throughout: there is nothing to hear in them "
            f"(log-mel mean {mean:.4f}, standard deviation {std:.4f}); expected recordings of sound"
        )
    if silent:
        log.warning("%d of %d clips are silent, or of one value throughout", silent, clips)
    return Statistics(mean, std, clips, frames)
