"""Recordings of any length cut into windows.

Shapes: S samples.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

from ssamba.errors import UserError
from ssamba.features import FeatureExtractor
from ssamba.recordings import Waveform


class Windows(NamedTuple):
    """How a recording is cut: windows of `size` samples, one every `hop`, at the model's rate."""

    size: int
    hop: int

    @classmethod
    def of(cls, extractor: FeatureExtractor, window_seconds: float | None, hop_seconds: float | None) -> "Windows":
        """In seconds; the defaults are the model's clip, and the window for the hop.

        Raises:
            UserError: a window too short for the model, a hop of no sample, or one that leaves samples out.
        """
        rate, least = extractor.sampling_rate, extractor.min_samples
        size = extractor.clip_samples if window_seconds is None else _samples(window_seconds, rate, "window")
        if size < least:
            raise UserError(f"window is {size / rate:.3f} s; the model needs {least / rate:.3f} s, one patch")
        hop = size if hop_seconds is None else _samples(hop_seconds, rate, "hop")
        if not 0 < hop <= size:
            raise UserError(
                f"hop is {hop_seconds:g} s and the window {size / rate:g} s; expected a hop above 0 and at most the "
                "window, since what lies between windows would be left out"
            )
        return cls(size, hop)

    def cut(self, blocks: Iterable[Waveform]) -> Iterator[tuple[int, Waveform]]:
        """Joined blocks -> the first sample of each window, and its samples (S,).

        A recording no longer than a window is one window. If the last one does not end with the recording, another
        one that does comes after it, so that no sample is left out; it too is a whole window.
        """
        pending: list[Waveform] = []
        first, end = 0, 0  # `pending` has the samples from `first` up to `end`
        start, covered = 0, 0  # where the next window begins, and where the last one ended
        for block in blocks:
            pending.append(block)
            end += block.size
            if end >= start + self.size:
                joined = np.concatenate(pending)
                while end >= start + self.size:
                    covered = start + self.size
                    yield start, joined[start - first : covered - first]
                    start += self.hop
                keep = min(start, end - self.size)  # the last window reaches back from wherever the end will be
                pending, first = [joined[keep - first :]], keep
        if covered < end:
            start = max(0, end - self.size)
            yield start, np.concatenate(pending)[start - first :]


def _samples(seconds: float, rate: int, name: str) -> int:
    if not abs(seconds) < 1e9:
        raise UserError(f"{name} is {seconds} s; expected a length of time")
    return round(seconds * rate)
