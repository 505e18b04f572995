"""Features of recordings, as clips of any place and making have them."""

import io

import numpy as np
import pytest
import torch

from ssamba.data.features import FeaturePart, StoredFeatures
from ssamba.data.shards.arrays import parse_array
from ssamba.data.shards.features import MEMBER, FeatureInfo, parse_features
from ssamba.errors import BadAudio

RATE = 1000
INFO = FeatureInfo("a", "0" * 64, -1, 2, 0.01, 50.0)  # frames of 20 samples, their middles at 10, 30, ...


def frames(count: int, first: float) -> np.ndarray:
    """Each frame says when its middle is, in samples, and the opposite."""
    middles = first + 10 + 20 * np.arange(count)
    return np.stack([middles, -middles], 1).astype(np.float16)


def clip_of(parts: list[FeaturePart], filled: int, seconds: list[float]) -> list[float]:
    stored = StoredFeatures(INFO, RATE, torch.tensor(seconds, dtype=torch.float64))
    told = stored.of_clip(parts, filled)
    assert told.dtype == torch.float16 and torch.equal(told[:, 1], -told[:, 0])
    return told[:, 0].tolist()


def test_a_crop_has_the_features_of_its_window() -> None:
    times = [0.0, 0.015, 0.0405, 0.1]
    # From sample 137 of a recording on: at each time what is 137 samples later.
    assert clip_of([FeaturePart(137, 200, frames(30, 0))], 200, times) == pytest.approx([137, 152, 177.5, 237], abs=0.1)


def test_what_lies_outside_of_the_frames_is_as_the_nearest() -> None:
    assert clip_of([FeaturePart(0, 60, frames(3, 0))], 60, [0.0, 0.055, 0.2]) == pytest.approx([10, 50, 50], abs=0.1)


def test_joined_recordings_have_each_its_own() -> None:
    parts = [
        FeaturePart(500, 40, frames(40, 0)),
        FeaturePart(0, 100, frames(5, 1000)),
        FeaturePart(20, 60, frames(9, 1500)),
    ]
    times = [0.0, 0.039, 0.04, 0.09, 0.139, 0.14, 0.19]
    wanted = [500, 539, 1010, 1050, 1090, 1520, 1570]
    assert clip_of(parts, 200, times) == pytest.approx(wanted, abs=1)


def test_a_recording_that_is_repeated_says_the_same_again() -> None:
    heard = [FeaturePart(0, 80, frames(4, 0))]
    assert clip_of(heard, 240, [0.03, 0.11, 0.2]) == pytest.approx([30, 30, 40], abs=0.1)


def npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def test_features_are_read_as_they_were_written() -> None:
    written = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float16)
    assert np.array_equal(parse_features(npy(written), 2), written)
    stored = StoredFeatures(INFO, RATE, torch.zeros(1, dtype=torch.float64))
    assert np.array_equal(stored.read({MEMBER: npy(written)}), written)


GOOD = np.ones((3, 2), np.float16)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "it has no teacher.npy"),
        (b"", "no array of numpy"),
        (npy(GOOD)[:-1], "in 11 bytes"),
        (npy(GOOD) + b"0", "in 13 bytes"),
        (npy(GOOD.astype(np.float32)), "float32"),
        (npy(np.ones((3, 3), np.float16)), r"shape \(3, 3\)"),
        (npy(np.ones(6, np.float16)), r"shape \(6,\)"),
        (npy(np.asfortranarray(GOOD)), "cannot be used"),
        (npy(np.ones((0, 2), np.float16)), "no frames"),
        (npy(GOOD * np.float16(np.nan)), "not finite"),
        (npy(GOOD).replace(b"(3, 2)", b"(9**9,2)"), "no array of numpy"),
        (npy(np.array([[None, 1]], object)), "cannot be used"),
        (npy(GOOD)[:10] + b"{" * 60 + npy(GOOD)[70:], "no array of numpy"),
    ],
)
def test_other_members_are_refused(content: bytes | None, why: str) -> None:
    with pytest.raises(BadAudio, match=why):
        parse_features(content, 2)


def test_no_more_is_made_than_there_is() -> None:
    huge = npy(GOOD).replace(b"(3, 2)", b"(3000000000, 2)").replace(b"          \n", b"\n")
    with pytest.raises(ValueError):
        parse_array(huge, np.float16, (None, 2))
