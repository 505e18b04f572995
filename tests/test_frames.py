"""Frames told at other times, number by number."""

import numpy as np
import pytest
import torch

from ssamba.frames import FrameTimes


@pytest.mark.parametrize("kind", [torch.float32, torch.float16])
@pytest.mark.parametrize("count", [1, 2, 9])
def test_frames_are_told_along_lines_between_their_middles(count: int, kind: torch.dtype) -> None:
    times = FrameTimes(0.0125, 50.0)
    frames = torch.randn(count, 3, generator=torch.Generator().manual_seed(0)).to(kind)
    seconds = torch.linspace(-0.1, 0.4, 23, dtype=torch.float64)
    told = times.interpolated(frames, seconds)
    middles = [0.0125 + frame / 50 for frame in range(count)]
    for dimension in range(3):
        wanted = np.interp(seconds.numpy(), middles, frames[:, dimension].double().numpy())
        np.testing.assert_allclose(told[:, dimension], wanted, atol=1e-5)
    assert told.dtype == torch.float32


def test_the_times_of_frames_tell_the_frames() -> None:
    times = FrameTimes(0.1, 6.25)
    frames = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    assert times.seconds(5).tolist() == pytest.approx([0.1, 0.26, 0.42, 0.58, 0.74])
    torch.testing.assert_close(times.interpolated(frames, times.seconds(5)), frames, atol=1e-6, rtol=0)
