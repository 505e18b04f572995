"""An audio encoder of Hugging Face's transformers as a teacher: wav2vec 2.0, HuBERT, WavLM and others that take
waveforms, Whisper's encoder, AST.

Shapes: S samples, N frames, F and P grid sizes in frequency and time, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssamba.audio import samples_for
from ssamba.errors import UserError
from ssamba.features import column_times
from ssamba.frames import FrameTimes
from ssamba.models.patches import PatchShape
from ssamba.recordings import Waveform
from ssamba.teachers.teacher import FeatureTeacher
from ssamba.values import TRANSFORMERS

_WINDOW_SECONDS = 30.0  # of models that take any length; attention costs the square of the length
_LEAST_SECONDS = 0.1  # more than the convolutions of any of them span
_EXPECTED = "an audio encoder with its feature extractor, as transformers saves them"


class _Shape(NamedTuple):
    """The layout of a model's hidden states.

    Attributes:
        samples: of a window.
        least: samples that a window has at least.
        times: of its frames; None: they divide its time into equal parts.
        tokens: how many states are before those of patches.
        rows: of patches, which are concatenated.
    """

    samples: int
    least: int
    times: FrameTimes | None = None
    tokens: int = 0
    rows: int = 1


@dataclass(frozen=True)
class _Encoder:
    """A model of transformers with its feature extractor, and which of its layers is meant."""

    name: str
    extractor: Any
    network: Any
    shape: _Shape
    layer: int

    def states(self, windows: Sequence[Waveform]) -> Tensor:
        """Of windows of one length, filled up where the model wants that: float32 (B, N, D); UserError: no layer."""
        inputs = self.extractor(list(windows), sampling_rate=self.extractor.sampling_rate, return_tensors="pt")
        device = next(self.network.parameters()).device
        inputs = {name: value.to(device) for name, value in inputs.items() if name != "attention_mask"}
        out = self.network(**inputs, output_hidden_states=self.layer != -1)
        if self.layer == -1:
            states = out.last_hidden_state
        elif -len(out.hidden_states) <= self.layer < len(out.hidden_states):
            states = out.hidden_states[self.layer]
        else:
            raise UserError(f"layer is {self.layer}; {self.name} has {len(out.hidden_states)}, counted from 0")
        patches = states.float()[:, self.shape.tokens :].unflatten(1, (self.shape.rows, -1))
        return patches.transpose(1, 2).flatten(2)


class TransformersTeacher(FeatureTeacher):
    """A frame is one of a layer's hidden states; of AST a column of patches, its rows concatenated.

    Args:
        place: a folder, or a name on the Hugging Face Hub.
        layer: 0 is what the first layer takes, -1 the last hidden state.

    Raises:
        UserError: `transformers` is not installed, no such model or layer, or no audio encoder.
    """

    def __init__(self, place: str, layer: int) -> None:
        extractor, network = _loaded(place)
        rate = int(extractor.sampling_rate)
        shape = _shape(network.config, extractor, rate)
        self._encoder = _Encoder(TRANSFORMERS + place, extractor, network.eval(), shape, layer)
        # How many frames a window has, and how wide they are, the model knows.
        noise = np.random.default_rng(0).normal(0, 0.1, shape.samples).astype(np.float32)
        with torch.no_grad():
            (frames,) = self._encoder.states([noise])
        apart = shape.samples / rate / len(frames)
        super().__init__(
            network,
            name=self._encoder.name,
            layer=layer,
            width=frames.shape[1],
            sampling_rate=rate,
            times=shape.times or FrameTimes(apart / 2, 1 / apart),
            window_samples=shape.samples,
            window_frames=len(frames),
            least_samples=shape.least,
        )

    def window_features(self, windows: Sequence[Waveform]) -> list[Tensor]:
        features: dict[int, Tensor] = {}
        # By equal length: padding would change the models' normalisation.
        for size in {one.size for one in windows}:
            places = [place for place, one in enumerate(windows) if one.size == size]
            states = self._encoder.states([windows[place] for place in places])
            own = int((self.times.seconds(states.shape[1]) < size / self.sampling_rate).sum())
            features |= {place: frames[: max(1, own)] for place, frames in zip(places, states, strict=True)}
        return [features[place] for place in range(len(windows))]


def _loaded(place: str) -> tuple[Any, Any]:
    """The feature extractor and the encoder."""
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise UserError(
            f"{TRANSFORMERS}{place} is a model of transformers, which is not installed: pip install "
            "'ssamba[transformers]'"
        ) from error
    try:
        extractor = transformers.AutoFeatureExtractor.from_pretrained(place)
        network = transformers.AutoModel.from_pretrained(place)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{TRANSFORMERS}{place} cannot be loaded: {lines[0]}; expected {_EXPECTED}") from error
    if not hasattr(extractor, "sampling_rate"):
        raise UserError(f"{TRANSFORMERS}{place} hears no sound; expected {_EXPECTED}")
    if network.config.is_encoder_decoder:
        network = network.get_encoder()
    return extractor, network


def _shape(config: Any, extractor: Any, rate: int) -> _Shape:
    if config.model_type == "audio-spectrogram-transformer":
        patch = PatchShape(config.patch_size, config.patch_size, config.frequency_stride, config.time_stride)
        samples, least = (samples_for(frames, rate) for frames in (config.max_length, patch.tshape))
        rows, _ = patch.grid(config.num_mel_bins, config.max_length)
        return _Shape(samples, least, column_times(patch, rate), tokens=2, rows=rows)
    samples, least = round(_WINDOW_SECONDS * rate), round(_LEAST_SECONDS * rate)
    if config.model_type == "whisper":  # of frames with their middles at 0, 10 ms, ... every other one
        return _Shape(extractor.n_samples, least, FrameTimes(0.0, rate / extractor.hop_length / 2))
    if not hasattr(config, "conv_stride") or getattr(config, "add_adapter", False):
        return _Shape(samples, least)
    step = span = 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        span, step = span + (kernel - 1) * step, step * stride
    return _Shape(samples // step * step + span - step, least, FrameTimes(span / 2 / rate, rate / step))
