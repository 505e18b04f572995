"""What a model says of the windows of a recording, from Python."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from plain_pools import plain_pool

from ssamba import SsambaModel
from ssamba.errors import BadAudio, UserError
from ssamba.inference import predict_file
from ssamba.recordings import read_audio

MakeModel = MakeSound = Callable[..., Path]
CLIP = (400 + 1023 * 160) / 16000


def close(one: torch.Tensor | None, other: torch.Tensor) -> None:
    assert one is not None
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("short", ["pad", "repeat", "keep"])
@pytest.mark.parametrize("seconds", [0.5, 3.0, CLIP])
def test_a_recording_in_one_window_is_what_the_model_says_of_the_file(
    short: str, seconds: float, make_model: MakeModel, make_sound: MakeSound
) -> None:
    model = SsambaModel.from_pretrained(make_model(short=short))
    path = make_sound("sound.flac", seconds, 44100, 2)
    with torch.no_grad():
        features = model.feature_extractor(path)
        out = model(*features, layers=[1])
    (window,) = predict_file(model, path, layer=1)
    assert (window.path, window.start) == (str(path), 0) and window.end == pytest.approx(seconds, abs=1e-4)
    assert out.logits is not None
    close(window.probabilities, out.logits[0].softmax(0))
    close(window.pooled, out.pooled[0][0])
    frames = {0.5: 48, 3.0: 298, CLIP: 1024}[seconds]
    close(window.spectrogram, features.input_values[0, :frames])
    # Columns with a frame of the recording, whatever fills up the clip: the last of 3 s has 10 of its 16.
    columns = {0.5: 3, 3.0: 18 if short == "keep" else 19, CLIP: 64}[seconds]
    assert window.tokens is not None and window.tokens.shape == (columns, 8, 32)
    close(window.tokens, out.hidden_states[0][0].transpose(0, 1)[:columns])
    assert not window.tokens.requires_grad and not window.tokens.is_inference()


@pytest.mark.parametrize(("pooling", "padding"), [("mean", False), ("mean", True), ("segments", False)])
def test_a_short_recording_is_classified_by_its_own_columns(
    pooling: str, padding: bool, make_model: MakeModel, make_sound: MakeSound
) -> None:
    model = SsambaModel.from_pretrained(make_model(pooling=pooling, padding=padding))
    path = make_sound("sound.wav", 3.0)
    (window,) = predict_file(model, path, layer=-1)
    with torch.no_grad():
        encoded = model.network.encoder(model.feature_extractor(path).input_values)
        vector = plain_pool(model.network.pool, encoded, None if padding else [19])  # of 64
        logits = model.network.head(torch.from_numpy(vector).float())
    close(window.probabilities, logits[0].softmax(0))
    close(window.pooled, torch.from_numpy(vector[0]).float())


def test_the_windows_of_a_long_recording_are_clips_of_their_own(classifier: Path, make_sound: MakeSound) -> None:
    model = SsambaModel.from_pretrained(classifier)
    path = make_sound("long.wav", 25.3, 22050)
    whole = read_audio(path, 16000, 60)
    found = list(predict_file(model, path, 4, 3, layer=-1, batch_size=3))
    starts = [0.0, 3.0, 6.0, 9.0, 12.0, 15.0, 18.0, 21.0, whole.size / 16000 - 4]
    assert [window.start for window in found] == pytest.approx(starts)
    assert [window.step for window in found] == pytest.approx([3.0] * 8 + [starts[-1] - 21])
    assert [window.end - window.start for window in found] == pytest.approx([4.0] * 9)
    pieces = [whole[round(16000 * start) :][:64000] for start in starts]
    with torch.no_grad():
        out = model(*model.feature_extractor(pieces), layers=[-1])
    assert out.logits is not None
    for row, window in enumerate(found):
        close(window.probabilities, out.logits[row].softmax(0))
        close(window.pooled, out.pooled[0][row])


def test_columns_of_patches_know_their_seconds(make_model: MakeModel, make_sound: MakeSound) -> None:
    model = SsambaModel.from_pretrained(make_model(None, stride=10, short="keep"))
    *_, window = predict_file(model, make_sound("long.wav", 12.0), 2, layer=0)
    assert window.start == 10
    seconds = window.column_seconds
    assert len(seconds) == (198 - 16) // 10 + 1
    torch.testing.assert_close(seconds[:3, 0], torch.tensor([10.0, 10.1, 10.2], dtype=torch.float64))
    torch.testing.assert_close(seconds[:, 1] - seconds[:, 0], torch.full((19,), 0.175, dtype=torch.float64))


@pytest.mark.parametrize("seconds", [1, 5, 10, 60])
@pytest.mark.parametrize(("bins", "stride"), [(64, 16), (64, 10), (128, 10)])
def test_any_length_bins_and_stride(
    seconds: int, bins: int, stride: int, make_model: MakeModel, make_sound: MakeSound
) -> None:
    model = SsambaModel.from_pretrained(make_model(bins=bins, stride=stride))
    found = list(predict_file(model, make_sound("sound.wav", seconds, 8000), layer=-1))
    rows, columns = (bins - 16) // stride + 1, (1024 - 16) // stride + 1
    assert len(found) == {60: 6}.get(seconds, 1)
    assert found[-1].end == pytest.approx(seconds)
    for window in found:
        assert window.probabilities is not None and window.tokens is not None
        assert window.probabilities.sum().item() == pytest.approx(1) and window.tokens.shape[1:] == (rows, 32)
    assert found[0].tokens is not None
    assert len(found[0].tokens) == (columns if seconds == 60 else -(-(100 * seconds - 2) // stride))


def test_a_window_may_be_longer_than_the_clip(make_model: MakeModel, make_sound: MakeSound) -> None:
    model = SsambaModel.from_pretrained(make_model(bins=64, stride=10))
    path = make_sound("sound.wav", 60)
    (window,) = predict_file(model, path, 60, layer=0)
    with torch.no_grad():
        out = model(*model.feature_extractor(path), layers=[0])
    assert out.logits is not None
    close(window.probabilities, out.logits[0].softmax(0))
    close(window.pooled, out.pooled[0][0])


def test_a_model_for_several_labels_gives_each_its_own_probability(
    make_model: MakeModel, make_sound: MakeSound
) -> None:
    model = SsambaModel.from_pretrained(make_model(loss="bce"))
    path = make_sound("sound.wav", 2)
    (window,) = predict_file(model, path)
    logits = model(*model.feature_extractor(path)).logits
    assert logits is not None
    close(window.probabilities, logits[0].sigmoid().detach())
    assert window.pooled is None and window.tokens is None


def test_without_a_classifier_there_are_vectors_alone(encoder: Path, make_sound: MakeSound) -> None:
    (window,) = predict_file(SsambaModel.from_pretrained(encoder), make_sound("sound.wav", 2), layer=0)
    assert window.probabilities is None and window.pooled is not None


# Mistakes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layer": 2}, "layer is 2; this model has 2"),
        ({"window_seconds": 0.1}, "window is 0.100 s"),
        ({"hop_seconds": 0}, "hop is 0 s"),
        ({"batch_size": 0}, "batch size is 0"),
        ({"pooling": "max"}, "'max'; expected one of mean, class, rows"),
        ({"pooling": "attentive"}, "attentive, which is learned, and this model has none"),
        ({"pooling": "segments", "segments": 0}, "segments is 0; expected at least 1"),
    ],
)
def test_what_cannot_be_is_told_at_once(options: dict[str, Any], said: str, classifier: Path) -> None:
    with pytest.raises(UserError, match=said):
        predict_file(SsambaModel.from_pretrained(classifier), "nowhere.wav", **options)


def test_a_recording_that_turns_bad_fails_after_its_first_windows(classifier: Path, tmp_path: Path) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, 30 * 16000).astype(np.float32)
    samples[20 * 16000] = np.inf
    soundfile.write(tmp_path / "bad.wav", samples, 16000, subtype="FLOAT")
    model = SsambaModel.from_pretrained(classifier)
    found = predict_file(model, tmp_path / "bad.wav", 2, batch_size=2)
    starts = []
    with pytest.raises(BadAudio, match=r"bad.wav: it holds samples that are not finite, the first at 20.000 s"):
        for window in found:
            starts.append(window.start)
    assert starts[:2] == [0, 2] and starts[-1] <= 18


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        (np.zeros(0), "it holds no samples"),
        (np.zeros(800), r"it has 0.050 s; the model needs 0.175 s"),
        (np.resize([1e30, -1e30], 8000), r"its samples reach 1e\+30, where full scale is 1"),
        (np.resize([1e4, -1e4], 8000), r"its samples reach 10000, where full scale is 1"),
    ],
)
def test_what_cannot_be_used_is_named(samples: np.ndarray, said: str, classifier: Path, tmp_path: Path) -> None:
    soundfile.write(tmp_path / "bad.wav", samples, 16000, subtype="FLOAT")
    with pytest.raises(BadAudio, match=f"bad.wav: {said}"):
        list(predict_file(SsambaModel.from_pretrained(classifier), tmp_path / "bad.wav"))


def flac_with_length(path: Path, samples: int) -> None:
    """Let a FLAC's header say that it has so many samples; 0: that it does not know."""
    content = bytearray(path.read_bytes())
    content[21] = (content[21] & 0xF0) | samples >> 32
    content[22:26] = (samples & 0xFFFFFFFF).to_bytes(4, "big")
    path.write_bytes(content)


def test_a_flac_that_does_not_know_its_length(classifier: Path, make_sound: MakeSound) -> None:
    model = SsambaModel.from_pretrained(classifier)
    path = make_sound("sound.flac", 9)
    wanted = list(predict_file(model, path, 2))
    flac_with_length(path, 0)
    found = list(predict_file(model, path, 2))
    assert [window.start for window in found] == [0, 2, 4, 6, 7]
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one.probabilities, other.probabilities)  # type: ignore[arg-type]


def test_a_recording_that_promises_more_than_it_holds(classifier: Path, make_sound: MakeSound) -> None:
    """It is of no use, whatever was found until it was missed."""
    model = SsambaModel.from_pretrained(classifier)
    flac, wav = make_sound("sound.flac", 9), make_sound("sound.wav", 5)
    flac_with_length(flac, 16000 * 3600 * 24)
    with pytest.raises(BadAudio, match=r"sound.flac: it .* 9.000 s? ?of .*86400.000 s"):
        list(predict_file(model, flac, 2))
    wav.write_bytes(wav.read_bytes()[: 44 + 2 * 16000 * 3])
    with pytest.raises(BadAudio, match=r"sound.wav: it is cut: 3.000 s of the 5.000 s that its header tells of"):
        list(predict_file(model, wav, 2))
