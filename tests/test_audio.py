"""Spectrograms against torchaudio's port of Kaldi."""

import pytest
import torch
import torchaudio.compliance.kaldi
from torch import Tensor

from ssamba.audio import LogMel, frames_in, samples_for

RATES = (8000, 16000, 22050, 44100)


def sound(samples: int, sampling_rate: int, seed: int = 0) -> Tensor:
    """A rising tone, noise and an offset, (S,): energy in every filter, a mean to remove."""
    time = torch.arange(samples, dtype=torch.float64) / sampling_rate
    noise = torch.randn(samples, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return (0.3 * torch.sin(2 * torch.pi * (200 + 900 * time) * time) + 0.02 * noise + 0.05).float()


def kaldi(waveform: Tensor, sampling_rate: int, num_mel_bins: int) -> Tensor:
    """(S,) -> (T, M) by the settings of SSAST and SSAMBA."""
    return torchaudio.compliance.kaldi.fbank(
        (waveform - waveform.mean()).unsqueeze(0),
        htk_compat=True,
        sample_frequency=sampling_rate,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=num_mel_bins,
        dither=0.0,
        frame_shift=10,
    )


def log_mel(waveform: Tensor, sampling_rate: int, num_mel_bins: int) -> Tensor:
    return LogMel(sampling_rate, num_mel_bins, 0.0, 0.5).log_mel(waveform[None], torch.tensor([len(waveform)]))[0]


@pytest.mark.parametrize("sampling_rate", [*RATES, 32000, 48000])
@pytest.mark.parametrize("num_mel_bins", [40, 64, 128])
def test_log_mel_is_kaldis(sampling_rate: int, num_mel_bins: int) -> None:
    waveform = sound(sampling_rate, sampling_rate)
    ours, wanted = log_mel(waveform, sampling_rate, num_mel_bins), kaldi(waveform, sampling_rate, num_mel_bins)
    assert ours.shape == wanted.shape
    # Logarithms of what is next to nothing: Kaldi in float32 is as far from itself in float64, and further on the mean.
    assert (ours - wanted).abs().max() < 2e-3 and (ours - wanted).abs().mean() < 2e-5


@pytest.mark.parametrize("samples", [400, 559, 560, 561, 4321])
def test_log_mel_is_kaldis_at_any_length(samples: int) -> None:
    waveform = sound(samples, 16000)
    ours, wanted = log_mel(waveform, 16000, 128), kaldi(waveform, 16000, 128)
    assert ours.shape == wanted.shape
    assert (ours - wanted).abs().max() < 2e-3


def test_log_mel_of_silence_is_kaldis_floor() -> None:
    silence = torch.zeros(800)
    assert torch.equal(log_mel(silence, 16000, 128), kaldi(silence, 16000, 128))


def test_clips_of_a_batch_are_padded_by_zeros_after_their_own_frames_and_do_not_influence_each_other() -> None:
    lengths = [8000, 3000, 401, 399, 0]
    waveform = 9 * torch.randn(5, 8000, generator=torch.Generator().manual_seed(1))  # what is left in a buffer
    for row, length in enumerate(lengths):
        waveform[row, :length] = sound(length, 16000, seed=row)
    batch = LogMel(16000, 64, -4.0, 4.0).log_mel(waveform, torch.tensor(lengths))
    assert batch.shape == (5, frames_in(8000, 16000), 64)
    for row, length in enumerate(lengths):
        frames = frames_in(length, 16000)
        assert torch.equal(batch[row, frames:], torch.zeros(batch.shape[1] - frames, 64))
        if frames:
            assert (batch[row, :frames] - kaldi(waveform[row, :length], 16000, 64)).abs().max() < 2e-3


def test_normalisation_halves_the_standard_deviation_and_reaches_the_padding() -> None:
    model = LogMel(16000, 64, -4.5, 3.9)
    waveform, lengths = sound(8000, 16000)[None], torch.tensor([4000])
    normalised, plain = model(waveform, lengths), model.log_mel(waveform, lengths)
    torch.testing.assert_close(normalised, (plain + 4.5) / 7.8)
    assert normalised[0, -1].tolist() == pytest.approx([4.5 / 7.8] * 64)


def test_spectrograms_are_float32_under_autocast_and_for_half_waveforms() -> None:
    model, waveform, lengths = LogMel(16000, 64, -4.0, 4.0), sound(8000, 16000)[None], torch.tensor([8000])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(waveform, lengths), model(waveform.float(), lengths))
        assert model(waveform, lengths).dtype == torch.float32
    assert model(waveform.half(), lengths).dtype == torch.float32


def test_a_spectrogram_is_the_same_a_few_frames_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    transform, lengths = LogMel(16000, 64, -4.0, 4.0), torch.tensor([16000, 9000])
    waveform = torch.stack([sound(16000, 16000), sound(16000, 16000, 1)])
    expected = transform(waveform, lengths)
    monkeypatch.setattr("ssamba.audio.FRAMES_AT_ONCE", (7, 7))
    torch.testing.assert_close(transform(waveform, lengths), expected, rtol=0, atol=1e-5)


def test_filters_and_window_are_no_part_of_a_checkpoint() -> None:
    assert LogMel(16000, 64, -4.0, 4.0).state_dict() == {}


@pytest.mark.parametrize("sampling_rate", RATES)
@pytest.mark.parametrize("frames", [1, 2, 98, 1024])
def test_samples_for_is_the_fewest_that_hold_so_many_frames(sampling_rate: int, frames: int) -> None:
    samples = samples_for(frames, sampling_rate)
    assert frames_in(samples, sampling_rate) == frames
    assert frames_in(samples - 1, sampling_rate) == frames - 1


def test_there_are_no_frames_in_less_than_one() -> None:
    assert [frames_in(samples, 16000) for samples in (0, 1, 239, 399, 400)] == [0, 0, 0, 0, 1]
