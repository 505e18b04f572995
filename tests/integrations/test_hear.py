"""What HEAR's API asks, for models of every encoder and patch, and its own validator where that is installed."""

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from plain_pools import plain_pool
from torch import Tensor

from ssamba.errors import UserError
from ssamba.hub import SsambaModel
from ssamba.integrations import hear
from ssamba.integrations.timeline import Timeline
from ssamba.models.checkpoint import build_classifier
from ssamba.models.encoder import SIZES, AudioEncoder, Encoded
from ssamba.models.heads import MaskedPatchModel
from ssamba.models.pools import POOLINGS, build_pool
from ssamba.models.settings import AudioSettings, ClassifierSettings

Runs = Callable[[str], Path]
RATE = 16000
ROOT = Path(__file__).resolve().parents[2]
SECONDS = [1.07, 1.98, 4.0, 2.74]  # the validator's
each_kind = pytest.mark.parametrize("kind", ["pretrained", "finetuned"])
each_encoder = pytest.mark.parametrize("encoder", ["ssamba", "ssast"])


def sounds(batch: int, samples: int, seed: int = 0) -> Tensor:
    return 2 * torch.rand(batch, samples, generator=torch.Generator().manual_seed(seed)) - 1


@pytest.fixture
def run(kind: str, encoder: str, request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(kind)(encoder)
    return folder


@pytest.fixture
def folder(encoder: str, patch: tuple[int, int], tmp_path: Path) -> Path:
    torch.manual_seed(0)
    fshape, tshape = patch
    network = AudioEncoder(encoder, SIZES[encoder]["nano"], 128, 128, fshape, tshape, fshape, tshape)
    SsambaModel(MaskedPatchModel(network), AudioSettings(RATE, -4.0, 4.0, "pad")).save_pretrained(tmp_path)
    return tmp_path


@each_encoder
@pytest.mark.parametrize("patch", [(16, 16), (128, 2)])
def test_the_model_and_its_embeddings_are_what_the_api_says(folder: Path, patch: tuple[int, int]) -> None:
    model = hear.load_model(str(folder))
    assert isinstance(model, torch.nn.Module) and model.sample_rate == RATE
    size = (128 // patch[0]) * 96
    assert type(model.scene_embedding_size) is int and type(model.timestamp_embedding_size) is int
    assert (model.scene_embedding_size, model.timestamp_embedding_size) == (2 * size, size)
    for seconds in SECONDS:
        audio = sounds(2, int(seconds * RATE))
        embeddings, timestamps = hear.get_timestamp_embeddings(audio, model)
        assert embeddings.dtype == timestamps.dtype == torch.float32
        assert embeddings.shape == (*timestamps.shape, size) and len(embeddings) == 2
        assert torch.equal(timestamps[0], timestamps[1])
        steps = timestamps.diff()
        assert steps.max() <= 50 and (steps - steps.mean()).abs().max() < 0.01
        assert timestamps.min() <= steps.mean()
        assert 1000 * seconds - steps.mean() <= timestamps.max() <= 1000 * seconds
        scenes = hear.get_scene_embeddings(audio, model)
        assert scenes.shape == (2, 2 * size) and scenes.dtype == torch.float32
        assert embeddings.isfinite().all() and scenes.isfinite().all()
        assert (embeddings[0] - embeddings[1]).abs().max() > 1e-3 and (scenes[0] - scenes[1]).abs().max() > 1e-3


@each_kind
@each_encoder
def test_embeddings_are_those_of_the_timeline(run: Path) -> None:
    model = hear.load_model(run)
    audio = sounds(3, 12000)
    timeline = Timeline(SsambaModel.from_pretrained(run))
    embeddings, timestamps = hear.get_timestamp_embeddings(audio, model)
    with torch.inference_mode():
        expected = timeline(list(audio))[0]
    assert torch.equal(embeddings, expected) and torch.equal(timestamps[2], timeline.middles_ms(19))
    # Of each row its mean and its deviation over time.
    statistics = torch.cat([expected.mean(1), expected.std(1, correction=0)], 1)
    torch.testing.assert_close(hear.get_scene_embeddings(audio, model), statistics, rtol=1e-4, atol=1e-4)
    # Deterministic, each sound by itself, and nothing to differentiate.
    again, _ = hear.get_timestamp_embeddings(audio[1:2], hear.load_model(run))
    torch.testing.assert_close(again[0], embeddings[1], rtol=1e-4, atol=1e-5)
    assert torch.equal(hear.get_timestamp_embeddings(audio, model)[0], embeddings)
    assert not embeddings.requires_grad and not embeddings.is_inference()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_scene_is_the_classifiers_own_pool_of_its_columns(pooling: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {**SIZES["ssast"]["nano"], "hidden_size": 24, "num_hidden_layers": 1}
    settings = ClassifierSettings(("no", "yes"), "word", "bce", pooling, segments=3)
    network = build_classifier(AudioEncoder("ssast", sizes, 128, 64, 32, 16, 32, 16), settings)
    SsambaModel(network, AudioSettings(RATE, -4.0, 4.0, "pad"), settings).save_pretrained(tmp_path)
    model, audio = hear.load_model(tmp_path), sounds(2, 3 * RATE)  # several windows of the model's clip
    with torch.no_grad():
        columns = model(list(audio))[0]
    tokens = columns.unflatten(2, (4, 24)).transpose(1, 2).flatten(1, 2)
    # A timeline has no class token.
    pool = build_pool("statistics", 4, 24) if pooling == "class" else model.model.pool()
    scenes = hear.get_scene_embeddings(audio, model)
    assert scenes.shape == (2, model.scene_embedding_size) and model.timestamp_embedding_size == 4 * 24
    assert scenes.dtype == torch.float32 and not scenes.requires_grad
    np.testing.assert_allclose(scenes, plain_pool(pool, Encoded(tokens, tokens[:, :0])), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("encoder", "patch"), [("ssamba", (16, 16)), ("ssast", (128, 2))])
def test_timestamps_lie_in_the_clip_whatever_its_length(folder: Path) -> None:
    model = hear.load_model(folder)
    for samples in [*range(1, 4000, 313), 4239, 4240, 4241, 4639, 4640, 4641, 30001]:
        embeddings, timestamps = hear.get_timestamp_embeddings(sounds(1, samples), model)
        milliseconds = samples / 16
        assert embeddings.shape[1] == timestamps.shape[1] >= 1 and embeddings.isfinite().all()
        assert timestamps.max() <= milliseconds or timestamps.shape[1] == 1
        assert timestamps.max() > milliseconds - model.hop_ms
        assert hear.get_scene_embeddings(sounds(1, samples), model).isfinite().all()


def test_an_event_has_the_timestamps_of_its_time(pretrained: Runs) -> None:
    model = hear.load_model(pretrained("ssamba"))
    quiet = 0.001 * sounds(1, 2 * RATE)
    loud = quiet.clone()
    loud[:, 12000:16000] = sounds(1, 4000, 1)  # from 750 to 1,000 ms
    (before, timestamps), (after, _) = (hear.get_timestamp_embeddings(audio, model) for audio in (quiet, loud))
    change = (after - before)[0].norm(dim=1)
    within = timestamps[0][change > change.max() / 2]
    assert abs(within.min() - 750) <= 100 and abs(within.max() - 1000) <= 100  # a patch reaches 87.5 ms to both sides


def test_without_a_model_or_with_other_audio_it_says_what_it_takes(pretrained: Runs, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="load_model was given no model; expected a model folder"):
        hear.load_model()
    with pytest.raises(UserError, match="holds no model"):
        hear.load_model(str(tmp_path))
    model = hear.load_model(pretrained("ssamba"))
    for function in (hear.get_timestamp_embeddings, hear.get_scene_embeddings):
        with pytest.raises(UserError, match=r"audio has shape \(800,\); expected \(sounds, samples\)"):
            function(torch.zeros(800), model)


def validator(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments[1:], ROOT / "benchmarks" / "hear_validator.py", arguments[0]]
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=ROOT)


@each_kind
@each_encoder
def test_hear_s_own_validator_accepts_it(run: Path) -> None:
    if importlib.util.find_spec("hearvalidator") is None:
        pytest.skip("hearvalidator is not installed; benchmarks/hear_validator.py says how")
    done = validator(run)
    assert done.returncode == 0, done.stderr
    assert "Looks good!" in done.stdout


def test_the_script_without_the_validator_says_so() -> None:
    done = validator("runs/mine", "-S")  # without installed packages
    assert done.returncode == 2 and "hearvalidator is not installed" in done.stderr
