"""Recordings of every format that there is a decoder for, whole, in part, cut, and without a decoder."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr

from ssamba.errors import BadAudio
from ssamba.recordings import (
    read_audio,
    stream_audio,
)


def encoded(samples: Any, sampling_rate: int, container: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.asarray(samples), sampling_rate, format=container, subtype=subtype)
    return file.getvalue()


def tone(seconds: float, sampling_rate: int, hertz: float = 440.0) -> Any:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * sampling_rate)) / sampling_rate)


@pytest.mark.parametrize(
    ("container", "subtype", "error"),
    [("WAV", "PCM_16", 2**-15), ("WAV", "FLOAT", 1e-7), ("FLAC", "PCM_16", 2**-15), ("FLAC", "PCM_24", 2**-23),
     ("AIFF", "PCM_16", 2**-15), ("OGG", "VORBIS", 0.02)],
)  # fmt: skip
def test_samples_are_read_at_full_scale_one(container: str, subtype: str, error: float) -> None:
    samples = tone(0.5, 16000)
    waveform = read_audio(encoded(samples, 16000, container, subtype), 16000, 10)
    assert waveform.dtype == np.float32 and waveform.flags["C_CONTIGUOUS"]
    np.testing.assert_allclose(waveform, samples, atol=error)


def test_a_path_an_open_file_and_bytes_give_the_same(tmp_path: Path) -> None:
    data = encoded(tone(0.1, 16000), 16000, "FLAC")
    path = tmp_path / "tone.flac"
    path.write_bytes(data)
    with path.open("rb") as file:
        waveforms = [read_audio(source, 16000, 10) for source in (data, path, str(path), file)]
    assert all(np.array_equal(waveform, waveforms[0]) for waveform in waveforms)


def test_channels_are_mixed_by_their_mean() -> None:
    left, right = tone(0.1, 16000), tone(0.1, 16000, 1000.0)
    waveform = read_audio(encoded(np.stack([left, right], 1), 16000, subtype="FLOAT"), 16000, 10)
    np.testing.assert_allclose(waveform, (left + right) / 2, atol=1e-6)
    opposite = read_audio(encoded(np.stack([left, -left], 1), 16000, subtype="FLOAT"), 16000, 10)
    assert np.abs(opposite).max() < 1e-6


@pytest.mark.parametrize("recorded", [8000, 22050, 44100, 48000])
def test_another_sampling_rate_is_resampled(recorded: int) -> None:
    waveform = read_audio(encoded(tone(1.0, recorded), recorded, subtype="FLOAT"), 16000, 10)
    wanted = tone(1.0, 16000)
    assert abs(len(waveform) - 16000) <= 1
    np.testing.assert_allclose(waveform[1000:15000], wanted[1000:15000], atol=1e-3)


def test_tones_above_the_new_nyquist_frequency_are_gone() -> None:
    waveform = read_audio(encoded(tone(1.0, 44100, 12000.0), 44100, subtype="FLOAT"), 16000, 10)
    assert np.abs(waveform[1000:15000]).max() < 2e-3


@pytest.mark.parametrize("recorded", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG", "MP3"])
def test_blocks_resampled_in_turn_are_the_recording_resampled_at_once(
    container: str, recorded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(tone(1.3, recorded), recorded, container)
    whole = soundfile.read(io.BytesIO(data), dtype="float32")[0]
    wanted = whole if recorded == 16000 else soxr.resample(whole, recorded, 16000, quality="HQ")
    for block in (1000, 1 << 16):
        monkeypatch.setattr("ssamba.recordings._BLOCK", block)
        blocks = list(stream_audio(data, 16000))
        assert min(map(len, blocks)) > 0
        if block == 1000:  # the resampler has blocks of its own, too
            assert len(blocks) > 9 and max(map(len, blocks)) < 4000
        np.testing.assert_allclose(np.concatenate(blocks), wanted, rtol=0, atol=1e-6)
        assert np.array_equal(read_audio(data, 16000, 10), np.concatenate(blocks))


def test_a_recording_that_its_header_says_is_too_long_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(tone(2.0, 16000), 16000)
    assert len(read_audio(data, 16000, 2.0)) == 32000

    def decode(*_: Any, **__: Any) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(soundfile.SoundFile, "read", decode)
    with pytest.raises(BadAudio, match=r"2 s; at most 1\.5 s"):
        read_audio(data, 16000, 1.5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be decoded"),
        (b"these are words, not sounds " * 50, "cannot be decoded"),
        (encoded(tone(1.0, 16000), 16000, "FLAC")[:60], "cannot be decoded"),
        (encoded(tone(1.0, 16000), 16000, "FLAC")[:9000], "cannot be decoded"),
        (encoded(np.zeros(0), 16000), "no samples"),
        (encoded(np.zeros(0), 44100), "no samples"),
        (encoded(np.ones(1), 48000), "no samples"),  # not one sample at 16 kHz
        (encoded([0.1, np.nan, 0.2], 16000, subtype="FLOAT"), "not finite"),
        (encoded([0.1, np.inf, 0.2], 44100, subtype="FLOAT"), "not finite"),
    ],
)
def test_what_is_no_usable_audio_is_refused_with_the_reason(data: bytes, message: str) -> None:
    with pytest.raises(BadAudio, match=message):
        read_audio(data, 16000, 10)


@pytest.mark.parametrize("name", ["words.wav", "headerless.raw", "missing.flac", "."])
def test_a_path_that_cannot_be_decoded_is_refused(name: str, tmp_path: Path) -> None:
    for written in ("words.wav", "headerless.raw"):
        (tmp_path / written).write_bytes(b"words " * 100)
    with pytest.raises(BadAudio, match="cannot be decoded"):
        read_audio(tmp_path / name, 16000, 10)
