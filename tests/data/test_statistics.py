"""Mean and deviation of log-mel values: of whole frames alone, of so many clips and no more."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from ssamba.audio import LogMel, frames_in
from ssamba.data.statistics import measure_statistics

RATE = 8000


class Clips:
    """A stream of 11 clips of 400 to 2400 samples, again and again, each padded with zeros."""

    sampling_rate = RATE

    def __init__(self, batch_size: int, samples: int) -> None:
        self.batch_size, self.samples = batch_size, samples
        generator = torch.Generator().manual_seed(0)
        self.clips = [torch.randn(400 + 200 * n, generator=generator) * 10.0 ** (n % 3 - 2) for n in range(11)]

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        endless = itertools.cycle(self.clips)
        while True:
            rows = list(itertools.islice(endless, self.batch_size))
            waveform = torch.stack([pad(row, (0, self.samples - len(row))) for row in rows])
            yield {"waveform": waveform, "lengths": torch.tensor([len(row) for row in rows])}


@pytest.mark.parametrize(("batch_size", "samples"), [(1, 2400), (3, 2400), (11, 9000), (16, 2400)])
@pytest.mark.parametrize("total", [1, 4, 11])
def test_whole_frames_of_so_many_clips_whatever_the_batch(batch_size: int, samples: int, total: int) -> None:
    stream: Any = Clips(batch_size, samples)
    log_mel = LogMel(RATE, 20, 0.0, 0.5)
    values = torch.cat(
        [log_mel.log_mel(clip.unsqueeze(0), torch.tensor([len(clip)]))[0] for clip in stream.clips[:total]]
    ).double()
    found = measure_statistics(stream, 20, total)
    assert (found.clips, found.frames) == (total, len(values))
    assert found.frames == sum(frames_in(len(clip), RATE) for clip in stream.clips[:total])
    assert found.mean == pytest.approx(float(values.mean()), rel=1e-6)
    assert found.std == pytest.approx(float(values.std(correction=0)), rel=1e-6)
