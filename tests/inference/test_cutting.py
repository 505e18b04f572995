"""How recordings are cut into windows."""

import math
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssamba.errors import UserError
from ssamba.features import FeatureExtractor
from ssamba.inference.cutting import Windows
from ssamba.models.settings import AudioSettings
from ssamba.recordings import Waveform


def blocks(samples: Waveform, size: int) -> Iterator[Waveform]:
    yield from (samples[start : start + size] for start in range(0, samples.size, size))


@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 40), st.integers(1, 70))
def test_no_sample_is_left_out_and_every_window_is_whole(length: int, size: int, hop: int, block: int) -> None:
    hop = min(hop, size)
    samples = np.arange(length, dtype=np.float32)
    found = list(Windows(size, hop).cut(blocks(samples, block)))
    regular = [start for start in range(0, length, hop) if start + size <= length]
    starts = [start for start, _ in found]
    if length <= size:
        assert starts == [0] and found[0][1].size == length
    else:
        last = [] if regular[-1] + size == length else [length - size]
        assert starts == regular + last
        assert all(window.size == size for _, window in found)
    for start, window in found:
        np.testing.assert_array_equal(window, samples[start : start + window.size])
    assert set().union(*(window.tolist() for _, window in found)) == set(samples.tolist())


def test_nothing_has_no_windows() -> None:
    assert not list(Windows(4, 4).cut([]))


def test_a_long_recording_is_never_in_memory() -> None:
    size = 50_000
    tracemalloc.start()
    count = sum(1 for _ in Windows(size, size // 2).cut(np.zeros(4000, np.float32) for _ in range(5000)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == math.ceil((5000 * 4000 - size) / (size // 2)) + 1
    assert peak < 5 * 4 * size


def test_the_default_is_the_models_clip() -> None:
    extractor = FeatureExtractor(AudioSettings(16000, -4, 4, "pad"), 128, 1024, 16)
    clip = 400 + 1023 * 160
    assert Windows.of(extractor, None, None) == (clip, clip)
    assert Windows.of(extractor, 2, None) == (32000, 32000)
    assert Windows.of(extractor, None, 0.5) == (clip, 8000)
    assert Windows.of(extractor, 0.175, 0.175) == (2800, 2800)


@pytest.mark.parametrize(
    ("window", "hop", "said"),
    [
        (0.17, None, "window is 0.170 s; the model needs 0.175 s, one patch"),
        (-1.0, None, "window is -1.000 s"),
        (math.nan, None, "window is nan s; expected a length of time"),
        (math.inf, None, "window is inf s"),
        (2.0, 0.0, "hop is 0 s and the window 2 s; expected a hop above 0 and at most the window"),
        (2.0, -1.0, "hop is -1 s"),
        (2.0, 2.5, "hop is 2.5 s and the window 2 s; .* what lies between windows would be left out"),
        (None, 11.0, "hop is 11 s and the window 10.255 s"),
        (None, math.nan, "hop is nan s"),
    ],
)
def test_windows_that_cannot_be(window: float | None, hop: float | None, said: str) -> None:
    extractor = FeatureExtractor(AudioSettings(16000, -4, 4, "pad"), 128, 1024, 16)
    with pytest.raises(UserError, match=said):
        Windows.of(extractor, window, hop)
