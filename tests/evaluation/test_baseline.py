"""Log-mel statistics, by hand."""

import torch

from ssamba.evaluation.baseline import STRETCHES, log_mel_features


def test_statistics_and_stretches_of_a_clips_own_frames() -> None:
    generator = torch.Generator().manual_seed(0)
    spectrogram = torch.randn(2, 20, 3, generator=generator)
    frames = torch.tensor([20, 16])
    found = log_mel_features(spectrogram, frames)
    own = spectrogram[1, :16]
    deviation = own.std(0, correction=0)
    torch.testing.assert_close(found["statistics"][1], torch.cat([own.mean(0), deviation]))
    # 16 frames: two a stretch; 20 frames: two and a half.
    assert found["stretches"].shape == (2, 3 * STRETCHES)
    torch.testing.assert_close(found["stretches"][1], own.unflatten(0, (STRETCHES, -1)).mean(1).flatten())
    first = (spectrogram[0, 0] + spectrogram[0, 1] + spectrogram[0, 2] / 2) / 2.5
    torch.testing.assert_close(found["stretches"][0, :3], first)


def test_padding_says_nothing() -> None:
    spectrogram = torch.randn(1, 20, 3, generator=torch.Generator().manual_seed(1))
    other = spectrogram.clone()
    other[:, 12:] = 9
    for name, value in log_mel_features(spectrogram, torch.tensor([12])).items():
        torch.testing.assert_close(value, log_mel_features(other, torch.tensor([12]))[name])


def test_a_gain_is_all_that_a_normalisation_changes() -> None:
    spectrogram = torch.randn(1, 20, 3, generator=torch.Generator().manual_seed(1))
    frames = torch.tensor([20])
    before, after = log_mel_features(spectrogram, frames), log_mel_features((spectrogram - 2) / 4, frames)
    torch.testing.assert_close(after["stretches"], (before["stretches"] - 2) / 4)
    torch.testing.assert_close(after["statistics"][:, 3:], before["statistics"][:, 3:] / 4)
