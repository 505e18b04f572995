"""Means over bins of time, however long the time gets."""

import pytest
import torch

from ssamba.inference import timeline_files
from ssamba.inference.timeline_files import TimeBins


def test_bins_hold_means_and_gaps_what_was_before() -> None:
    bins = TimeBins(0.5, 2)
    bins.add(torch.tensor([0.0, 0.4, 0.5], dtype=torch.float64), torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 5.0]]))
    bins.add(torch.tensor([1.9], dtype=torch.float64), torch.tensor([[7.0, 8.0]]))
    assert bins.seconds == 0.5
    assert bins.means().tolist() == [[2.0, 4.0], [5.0, 5.0], [5.0, 5.0], [7.0, 8.0]]


@pytest.mark.parametrize("steps", [7, 8, 9, 33, 1000])
def test_neighbours_are_joined_when_the_bins_run_out(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timeline_files, "MOST_BINS", 8)
    bins = TimeBins(1.0, 1)
    values = torch.randn(steps, 1, generator=torch.Generator().manual_seed(0))
    for first in range(0, steps, 3):
        times = torch.arange(first, min(first + 3, steps), dtype=torch.float64)
        bins.add(times, values[first : first + 3])
    assert bins.seconds == {7: 1, 8: 1, 9: 2, 33: 8, 1000: 128}[steps]
    found = bins.means()
    assert len(bins.sums) == 8 and len(found) == -(-steps // int(bins.seconds))
    for row, part in zip(found, values.split(int(bins.seconds)), strict=True):
        torch.testing.assert_close(row, part.mean(0), rtol=1e-4, atol=1e-5)
