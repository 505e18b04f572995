"""Models with weights at random, small and for clips of 10 s, and recordings of many kinds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from ssamba.models.checkpoint import build_classifier, save_model
from ssamba.models.encoder import AudioEncoder
from ssamba.models.heads import MaskedPatchModel
from ssamba.models.settings import AudioSettings, ClassifierSettings

LABELS = ("cat", "dog", "rain", "wind")
OPTIONS = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "state_size": 4,
    "expand": 2,
    "conv_kernel": 4,
    "residual": "doubling",
    "layer_norm_eps": 1e-5,
}

MakeModel = MakeSound = Callable[..., Path]


@pytest.fixture(scope="session")
def make_model(tmp_path_factory: pytest.TempPathFactory) -> MakeModel:
    """The folder of a model: its labels (None: pretrained), frames, mel bins, stride, rule for short ones, loss, pool,
    and whether that pools padding, as imported ones do."""

    def make(
        labels: tuple[str, ...] | None = LABELS,
        max_length: int = 1024,
        bins: int = 128,
        stride: int = 16,
        short: str = "pad",
        loss: str = "cross_entropy",
        pooling: str = "mean",
        padding: bool = False,
    ) -> Path:
        folder = tmp_path_factory.mktemp("models") / "model"
        with torch.random.fork_rng():
            torch.manual_seed(0)
            encoder = AudioEncoder("ssamba", OPTIONS, bins, max_length, 16, 16, stride, stride)
            settings = None
            model: Any = MaskedPatchModel(encoder)
            if labels is not None:
                settings = ClassifierSettings(labels, "sound", loss, pooling, pool_padding=padding)
                model = build_classifier(encoder, settings)
                model.head[1].weight.data *= 20  # else all classes are as probable
        save_model(folder, model, AudioSettings(16000, -4.0, 4.0, short), settings)
        return folder

    return make


@pytest.fixture(scope="session")
def classifier(make_model: MakeModel) -> Path:
    return make_model()


@pytest.fixture(scope="session")
def encoder(make_model: MakeModel) -> Path:
    """Without a classifier; it leaves short recordings as they are."""
    return make_model(None, short="keep")


@pytest.fixture
def make_sound(tmp_path: Path) -> MakeSound:
    """Write a rising tone, ever another one, with noise."""

    def make(name: str, seconds: float, rate: int = 16000, channels: int = 1, **options: Any) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(len(name) + round(10 * seconds))
        time = np.arange(round(seconds * rate)) / rate
        sound = 0.3 * np.sin(2 * np.pi * (rng.uniform(200, 2000) + 90 * time) * time)
        soundfile.write(path, sound[:, None] + rng.normal(0, 0.03, (time.size, channels)), rate, **options)
        return path

    return make
