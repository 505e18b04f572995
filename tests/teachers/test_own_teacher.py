"""A model of ours as a teacher: its features against the encoder itself, of any rate, length and filling."""

from pathlib import Path

import numpy as np
import pytest
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.audio import LogMel
from ssamba.data.datamodule import Batch
from ssamba.errors import UserError
from ssamba.models.checkpoint import save_model
from ssamba.models.encoder import SIZES, AudioEncoder
from ssamba.models.heads import MaskedPatchModel
from ssamba.models.settings import AudioSettings
from ssamba.teachers import ClipFeatures, OwnTeacher

OPTIONS = {**SIZES["ssamba"]["nano"], "num_hidden_layers": 2, "residual": "plain", "hidden_size": 32}
RATE, BINS, FRAMES = 8000, 48, 64


def folder_of(short: str, place: Path) -> Path:
    torch.manual_seed(0)
    encoder = AudioEncoder("ssamba", OPTIONS, BINS, FRAMES, 16, 16, 16, 16)
    save_model(place, MaskedPatchModel(encoder), AudioSettings(RATE, -4.0, 4.0, short))
    return place


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> OwnTeacher:
    """Of clips of 0.65 s, 3 x 4 patches."""
    return OwnTeacher(str(folder_of("pad", tmp_path_factory.mktemp("teachers") / "pad")), -1)


def sound(seconds: float, rate: int = RATE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * rate)).astype(np.float32)


def plainly(teacher: OwnTeacher, waveform: np.ndarray, layer: int = -1) -> Tensor:
    """The columns of one clip, by the encoder alone: each of its rows in turn, standardised."""
    samples = teacher.model.feature_extractor.clip_samples
    padded = torch.zeros(1, samples)
    padded[0, : waveform.size] = torch.from_numpy(waveform)
    log_mel = LogMel(RATE, BINS, -4.0, 4.0)(padded, torch.tensor([waveform.size]))
    with torch.no_grad():
        tokens = teacher.model.network.encoder.hidden_states(log_mel)[layer].tokens[0]
    columns = [torch.cat([tokens[row * 4 + column] for row in range(3)]) for column in range(4)]
    return torch.stack([(one - one.mean()) / (one.var(correction=0) + 1e-5).sqrt() for one in columns])


def test_a_frame_is_a_column_of_patches_standardised(teacher: OwnTeacher) -> None:
    waveform = sound(0.655)
    (found,) = teacher.features([waveform], RATE)
    torch.testing.assert_close(found, plainly(teacher, waveform), atol=1e-5, rtol=1e-5)
    assert teacher.width == 96 and not found.requires_grad
    # A column is 16 frames of 25 ms, one every 10 ms.
    assert teacher.times.rate == pytest.approx(6.25) and teacher.times.first == pytest.approx((0.15 + 0.025) / 2)


@pytest.mark.parametrize("layer", [0, 1])
def test_another_layer(layer: int, teacher: OwnTeacher) -> None:
    other = OwnTeacher(teacher.name, layer)
    waveform = sound(0.655)
    (found,) = other.features([waveform], RATE)
    torch.testing.assert_close(found, plainly(teacher, waveform, layer), atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="layer is 3; this model has 3"):
        OwnTeacher(teacher.name, 3)


def test_padding_has_no_frames_and_others_change_nothing(teacher: OwnTeacher) -> None:
    short, tiny, whole = sound(0.3), sound(0.02, seed=1), sound(0.655, seed=2)
    found = teacher.features([short, tiny, whole], RATE)
    assert [len(frames) for frames in found] == [2, 1, 4]
    torch.testing.assert_close(found[0], plainly(teacher, short)[:2], atol=1e-5, rtol=1e-5)
    filled = np.concatenate([tiny, np.zeros(1400 - tiny.size, np.float32)])  # one patch
    torch.testing.assert_close(found[1], plainly(teacher, filled)[:1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[2], teacher.features([whole], RATE)[0], atol=1e-6, rtol=0)


def test_what_is_longer_than_a_clip_is_heard_window_by_window(teacher: OwnTeacher) -> None:
    waveform = sound(1.6)
    (found,) = teacher.features([waveform], RATE)
    # Every 64 frames of 80 samples a window begins, with the 120 samples more that its last frame takes.
    parts = [plainly(teacher, waveform[start : start + 5240]) for start in (0, 5120)]
    tail = plainly(teacher, waveform[10240:])[:2]
    torch.testing.assert_close(found, torch.cat([*parts, tail]), atol=1e-5, rtol=1e-5)
    assert len(found) == 10 and teacher.times.seconds(10)[-1] < 1.6


def test_a_recording_of_another_rate_is_resampled(teacher: OwnTeacher) -> None:
    waveform = sound(0.655, 22050)
    (found,) = teacher.features([waveform], 22050)
    wanted = teacher.features([soxr.resample(waveform, 22050, RATE, quality="HQ")], RATE)[0]
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("short", ["repeat", "keep"])
def test_short_recordings_are_filled_as_the_teachers_training_did(short: str, tmp_path: Path) -> None:
    teacher = OwnTeacher(str(folder_of(short, tmp_path / "model")), -1)
    waveform = sound(0.4)
    (found,) = teacher.features([waveform], RATE)
    with torch.no_grad():
        if short == "repeat":
            wanted = plainly(teacher, np.resize(waveform, 5240))[:3]
        else:
            log_mel = LogMel(RATE, BINS, -4.0, 4.0)(torch.from_numpy(waveform)[None], torch.tensor([waveform.size]))
            tokens = teacher.model.network.encoder(log_mel).tokens[0]
            wanted = F.layer_norm(tokens.unflatten(0, (3, -1)).transpose(0, 1).flatten(1), (96,))
    torch.testing.assert_close(found, wanted[: len(found)], atol=1e-5, rtol=1e-5)
    assert len(found) == len(wanted)


def test_clips_have_features_at_the_times_of_their_patches(teacher: OwnTeacher) -> None:
    seconds = torch.tensor([0.05, 0.2, 0.4, 0.6], dtype=torch.float64)
    waveform, lengths = torch.zeros(2, 5240), torch.tensor([5240, 2400])
    for row, length in zip(waveform, lengths.tolist(), strict=True):
        row[:length] = torch.from_numpy(sound(length / RATE, seed=length))
    batch = Batch(
        waveform=waveform, lengths=lengths, labels=torch.empty(0), keys=[], positions=[], consumed=0, skipped=[]
    )
    told = ClipFeatures(teacher, RATE, seconds)(batch)
    middles = 0.0875 + 0.16 * np.arange(4)
    for clip, length in enumerate(lengths.tolist()):
        frames = plainly(teacher, waveform[clip, :length].numpy())[: 4 if clip == 0 else 2]
        for dimension in (0, 40, 95):
            wanted = np.interp(seconds.numpy(), middles[: len(frames)], frames[:, dimension].numpy())
            np.testing.assert_allclose(told[clip, :, dimension], wanted, atol=1e-4)


def test_the_fingerprint_is_of_the_weights(teacher: OwnTeacher) -> None:
    again = OwnTeacher(teacher.name, 0)
    assert again.fingerprint == teacher.fingerprint
    with torch.no_grad():
        again.model.network.encoder.positions[0, 0, 0] += 1e-3
    assert again.fingerprint != teacher.fingerprint
