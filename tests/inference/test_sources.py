"""What stands for which recordings, and how they are cut."""

import math
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssamba.errors import UserError
from ssamba.features import FeatureExtractor
from ssamba.inference.sources import Windows, find_recordings
from ssamba.models.checkpoint import AudioSettings
from ssamba.recordings import Waveform


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name in (
        "b.wav",
        "a.FLAC",
        "notes.txt",
        ".hidden.wav",
        "deep/er/c.ogg",
        "deep/d.aif",
        ".git/e.wav",
        "take[1].wav",
        "deep/raw.raw",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "none").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("places", "wanted"),
    [
        (["."], ["a.FLAC", "b.wav", "deep/d.aif", "deep/er/c.ogg", "take[1].wav"]),
        (["notes.txt", "deep/er/../er/c.ogg"], ["notes.txt", "deep/er/../er/c.ogg"]),
        (["deep/d.aif", ".", "./b.wav"], ["deep/d.aif", "a.FLAC", "b.wav", "deep/er/c.ogg", "take[1].wav"]),
        (["*.wav", "b.wav"], ["b.wav", "take[1].wav"]),
        (["**/*.ogg"], ["deep/er/c.ogg"]),
        (["de*"], ["deep/d.aif", "deep/er/c.ogg"]),
        (["take[1].wav"], ["take[1].wav"]),
    ],
)
def test_files_folders_and_patterns(
    places: list[str], wanted: list[str], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    found = find_recordings(places)
    assert [path.removeprefix("./") for path in found] == wanted


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("gone.wav", "gone.wav does not exist"),
        ("*.mp3", r"\*.mp3 matches no file"),
        ("none", "none holds no recording"),
    ],
)
def test_what_is_not_there(place: str, said: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    with pytest.raises(UserError, match=said):
        find_recordings(["b.wav", place])


def test_a_home_links_and_what_is_no_file(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links to folders are followed, each folder once; pipes and folders that are named as recordings are none."""
    monkeypatch.setenv("HOME", str(files))
    (files / "elsewhere").mkdir()
    (files / "elsewhere/x.m4a").touch()
    view = files / "view"
    (view / "folder.wav").mkdir(parents=True)
    (view / "folder.wav/inner.wav").touch()
    os.mkfifo(view / "pipe.wav")
    os.symlink("gone.wav", view / "dangling.wav")
    os.symlink("../elsewhere", view / "linked")
    os.symlink("../elsewhere", view / "linked again")
    os.symlink("..", view / "above")
    found = [Path(path).relative_to(view).as_posix() for path in find_recordings(["~/view"])]
    assert found == ["folder.wav/inner.wav", "linked/x.m4a"]
    for place in (str(view / "pipe.wav"), "~/view/pi*.wav"):
        with pytest.raises(UserError, match="is a pipe or a device; expected a file"):
            find_recordings([place])


# Windows


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
