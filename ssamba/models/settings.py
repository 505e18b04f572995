"""What a model folder says beside its weights: config.json, of the network and its classes, and
preprocessor_config.json, of its spectrograms. Read as what nobody vouches for."""

import functools
from dataclasses import asdict, dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from msgspec import UNSET, Meta, UnsetType

from ssamba.errors import UserError
from ssamba.files import parse_json, read_bounded, read_json
from ssamba.models.encoder import find_stack
from ssamba.models.pools import MOST_SEGMENTS
from ssamba.models.stack import Positive, Width
from ssamba.parts import check_package

Problem = Literal["single_label_classification", "multi_label_classification", "ctc"]
_PROBLEMS: dict[str, Problem] = {
    "cross_entropy": "single_label_classification",
    "bce": "multi_label_classification",
    "ctc": "ctc",
}
LOSSES = {problem: loss for loss, problem in _PROBLEMS.items()}
"""What a model's answers are -> the task of this package that learns such."""

SamplingRate = Annotated[int, Meta(ge=1000, le=768_000)]
Level = Annotated[float, Meta(ge=-1000, le=1000)]
Deviation = Annotated[float, Meta(ge=0.001, le=1000)]


@dataclass(frozen=True)
class AudioSettings:
    """What a model's spectrograms were: sampling rate in Hz, statistics of the log-mel values, and what became of a
    recording shorter than the clip: filled with zeros ("pad"), with itself ("repeat"), or left as it is ("keep")."""

    sampling_rate: SamplingRate
    mean: Level
    std: Deviation
    short: Annotated[str, Meta(pattern="^(pad|repeat|keep)$")]


@dataclass(frozen=True)
class ClassifierSettings:
    """What a classifier says: the names of its classes and the label of the data that they come from; its loss, of
    `LOSSES`; its pool and head, as `AudioClassifier` takes them; and the columns of a hop of a `TokenClassifier`, None
    for one answer a clip. Of the loss ctc the classes are the blank and the characters."""

    labels: tuple[str, ...]
    label: str
    loss: str
    pooling: str
    head_norm: str = "layer"
    segments: int = 4
    pool_padding: bool = False
    hop_columns: int | None = None

    @property
    def problem_type(self) -> Problem:
        """The loss as `transformers` names it."""
        return _PROBLEMS[self.loss]


def model_folder(path: str | Path) -> Path:
    """The folder that holds config.json: `path` itself, or model/ in a run folder. UserError if there is none."""
    for folder in (Path(path), Path(path) / "model"):
        if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
            return folder
    raise UserError(f"{path} holds no model; expected config.json and model.safetensors in it or in its model/ folder")


# What the files of a model folder may say; of the encoder's own options, its stack's arguments say it.
Frames = Annotated[int, Meta(ge=1, le=1_000_000)]
_MOST_CLIP_SAMPLES = 1 << 25
_MOST_JSON_BYTES = 1 << 24


@dataclass(frozen=True, kw_only=True)
class _DecoderConfig:
    hidden_size: Width
    num_hidden_layers: Positive


@dataclass(frozen=True, kw_only=True)
class _Config:
    model_type: str
    packages: dict[str, str] | None = None
    num_mel_bins: Positive
    max_length: Frames
    fshape: Positive
    tshape: Frames
    frequency_stride: Positive
    time_stride: Frames
    patch_order: Literal["frequency", "time"] = "frequency"  # folders without it are of versions that knew no other
    hidden_size: Width
    num_hidden_layers: Positive
    decoder: _DecoderConfig | None = None
    label: str | None = None
    problem_type: Problem | None = None
    pooling: str | None = None
    head_norm: Literal["layer", "batch", "none"] | bool | None = None  # earlier versions knew a LayerNorm or none
    segments: Annotated[int, Meta(ge=1, le=MOST_SEGMENTS)] | None = None
    pool_padding: bool | None = None
    hop_columns: Frames | None = None
    id2label: dict[str, str] | None = None
    label2id: dict[str, int] | None = None
    architectures: list[str] | None = None


@dataclass(frozen=True)
class _Family:
    model_type: str
    pooling: str | None = None
    packages: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Preprocessor(AudioSettings):
    num_mel_bins: int | UnsetType = UNSET
    max_length: int | UnsetType = UNSET


@functools.cache
def _config_type(encoder: str) -> type[_Config]:
    """What a config.json of an encoder has: `_Config` and the options of its stack."""
    types = find_stack(encoder).option_types()
    own = [(name, kind) for name, kind in types.items() if name not in get_type_hints(_Config)]
    return make_dataclass("_EncoderConfig", own, bases=(_Config,), frozen=True, kw_only=True)


def read_config(path: str | Path) -> dict[str, Any]:
    """The config.json of a model or run folder, the fields that mean something here.

    Raises:
        UserError: it is none of ours, or a field is missing or of another type or size than a model's.
    """
    place, expected = model_folder(path) / "config.json", "a model's config.json, complete, as `ssamba` writes it"
    content = read_bounded(place, expected, _MOST_JSON_BYTES)
    family = parse_json(content, _Family, place, expected)
    check_package("encoder", family.model_type, family.packages.get("encoder"), place)
    if family.pooling is not None:
        check_package("pool", family.pooling, family.packages.get("pool"), place)
    config = parse_json(content, _config_type(family.model_type), place, expected)
    fields = {name: value for name, value in asdict(config).items() if value is not None}
    if isinstance(norm := fields.get("head_norm"), bool):
        fields["head_norm"] = "layer" if norm else "none"
    return fields


def read_audio_settings(path: str | Path) -> AudioSettings:
    """The preprocessor_config.json of a model or run folder; UserError if it is missing, incomplete or contradicts the
    config.json beside it."""
    place = model_folder(path) / "preprocessor_config.json"
    expected = "sampling_rate, mean, std and short (pad, repeat or keep) of a model's spectrograms"
    if not place.is_file():
        raise UserError(f"{place} is missing; expected {expected} in it")
    settings, config = read_json(place, _Preprocessor, expected, _MOST_JSON_BYTES), read_config(path)
    for name in ("num_mel_bins", "max_length"):
        if getattr(settings, name) not in (UNSET, config[name]):
            raise UserError(
                f"{place} has {name} {getattr(settings, name)}; expected {config[name]}, as in its config.json"
            )
    if (samples := config["max_length"] * settings.sampling_rate // 100) > _MOST_CLIP_SAMPLES:
        raise UserError(
            f"{place} has sampling_rate {settings.sampling_rate}, at which a clip of its config.json's "
            f"{config['max_length']} frames has {samples} samples; expected at most {_MOST_CLIP_SAMPLES}"
        )
    return AudioSettings(settings.sampling_rate, settings.mean, settings.std, settings.short)
