"""Recordings to spectrograms: the rule for short ones, files and rates, and batches that do not mix."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from ssamba.audio import LogMel
from ssamba.errors import BadAudio
from ssamba.features import FeatureExtractor
from ssamba.models.settings import AudioSettings

RATE = 16000
CLIP = 64


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)


def extractor(short: str, min_length: int = 16) -> FeatureExtractor:
    return FeatureExtractor(AudioSettings(RATE, -4.0, 3.0, short), 32, CLIP, min_length)


def alone(waveform: np.ndarray) -> torch.Tensor:
    """The normalised spectrogram of one recording, nothing added."""
    log_mel = LogMel(RATE, 32, -4.0, 3.0)
    return log_mel(torch.from_numpy(waveform)[None], torch.tensor([waveform.size]))[0]


def test_pad_fills_up_to_the_clip_with_the_originals_padding() -> None:
    short, long = noise(0.3), noise(1.5, 1)
    values, lengths, own = extractor("pad")([short, long])
    assert lengths.tolist() == [CLIP, 148] and own.tolist() == [28, 148]
    torch.testing.assert_close(values[0, :28], alone(short))
    assert (values[0, 28:] == 4.0 / 6.0).all()  # log-mel 0
    torch.testing.assert_close(values[1], alone(long))


def test_repeat_fills_up_to_the_clip_with_the_recording() -> None:
    short = noise(0.3)
    values, lengths, own = extractor("repeat")(short)
    assert values.shape == (1, CLIP, 32) and lengths.tolist() == own.tolist() == [CLIP]
    torch.testing.assert_close(values[0], alone(np.resize(short, 400 + 63 * 160)))


def test_keep_leaves_a_recording_as_long_as_it_is_whatever_stands_beside_it() -> None:
    values, lengths, own = extractor("keep")([noise(0.3), noise(1.5, 1)])
    assert lengths.tolist() == own.tolist() == [28, 148]
    torch.testing.assert_close(values[0, :28], extractor("keep")(noise(0.3)).input_values[0])


def test_files_of_any_rate_and_waveforms_of_another_rate(tmp_path: Path) -> None:
    seconds = np.arange(2 * 44100) / 44100
    tone = (0.5 * np.sin(2 * np.pi * 1000 * seconds)).astype(np.float32)
    path = tmp_path / "stereo.flac"
    soundfile.write(path, np.stack([tone, tone], 1), 44100)
    extract = extractor("keep")
    from_file, from_array = extract(path), extract(tone, sampling_rate=44100)
    assert from_file.lengths.tolist() == from_array.lengths.tolist() == [198]
    loud = from_array.input_values > 1.0  # where 16 bits are fine enough
    assert loud.sum() > 300
    torch.testing.assert_close(from_file.input_values[loud], from_array.input_values[loud], rtol=0, atol=1e-3)
    wanted = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(2 * RATE) / RATE)
    np.testing.assert_allclose(extract.waveform(tone, 44100)[1000:-1000], wanted[1000:-1000], atol=1e-4)


def test_one_waveform_a_batch_and_a_list_are_the_same() -> None:
    clips = torch.from_numpy(np.stack([noise(1), noise(1, 1)]))
    extract = extractor("pad")
    torch.testing.assert_close(extract(clips).input_values, extract(list(clips)).input_values)
    torch.testing.assert_close(extract(clips[1]).input_values[0], extract(clips).input_values[1])


@pytest.mark.parametrize(
    ("audio", "said"),
    [
        (np.zeros(800, np.float32), "0: it has 0.050 s; the model needs 0.175 s"),
        (np.zeros(0, np.float32), "it has 0.000 s"),
        (np.full(RATE, np.nan, np.float32), "expected finite samples"),
        (np.zeros((2, 3, 4), np.float32), r"shape \(3, 4\)"),
        ("nowhere.wav", "nowhere.wav: it cannot be decoded"),
    ],
)
def test_what_cannot_be_used_is_named(audio: object, said: str) -> None:
    with pytest.raises(BadAudio, match=said):
        extractor("pad")(audio)
    with pytest.raises(BadAudio, match="1: it has 0.050 s"):
        extractor("pad")([noise(1), noise(0.05)])
