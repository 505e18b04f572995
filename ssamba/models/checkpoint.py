"""A trained model as a folder, readable without the recipe that made it: model.safetensors, config.json (the network
and its classes) and preprocessor_config.json (what its spectrograms are), with the names that `transformers` uses."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from msgspec import UNSET, Meta, UnsetType
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ssamba.errors import UserError
from ssamba.files import parse_json, read_bounded, read_json, write_json, written_beside
from ssamba.models.decoder import PatchDecoder
from ssamba.models.encoder import SIZES, AudioEncoder
from ssamba.models.heads import AudioClassifier, MaskedPatchModel, TokenClassifier
from ssamba.models.patches import fit_positions
from ssamba.models.pools import MOST_SEGMENTS, Pooling

_PATCH_FIELDS = ("num_mel_bins", "max_length", "fshape", "tshape", "frequency_stride", "time_stride", "patch_order")
Problem = Literal["single_label_classification", "multi_label_classification", "ctc"]
_PROBLEMS: dict[str, Problem] = {
    "cross_entropy": "single_label_classification",
    "bce": "multi_label_classification",
    "ctc": "ctc",
}
_LOSSES = {problem: loss for loss, problem in _PROBLEMS.items()}


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
    """What a classifier says: the names of its classes and the label of the data that they come from; its loss; its
    pool and head, as `AudioClassifier` takes them; and the columns of a hop of a `TokenClassifier`, None for one answer
    a clip. Of the loss ctc the classes are the blank and the characters."""

    labels: tuple[str, ...]
    label: str
    loss: str
    pooling: str
    head_norm: bool = True
    segments: int = 4
    pool_padding: bool = False
    hop_columns: int | None = None

    @property
    def problem_type(self) -> Problem:
        """The loss as `transformers` names it."""
        return _PROBLEMS[self.loss]


@dataclass(frozen=True)
class SavedModel:
    """A model folder, read and built. `classifier` is None for a pretrained model."""

    model: MaskedPatchModel | AudioClassifier
    audio: AudioSettings
    classifier: ClassifierSettings | None


def save_model(
    folder: Path,
    model: MaskedPatchModel | AudioClassifier,
    audio: AudioSettings,
    classifier: ClassifierSettings | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the files of a model folder, each beside its place and then renamed.

    `weights`: the model's tensors, where it does not hold them itself, whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arguments = model.encoder.arguments
    config: dict[str, Any] = {
        "model_type": arguments["encoder"],
        "architectures": [_architecture(classifier)],
        **arguments["options"],
        **{name: arguments[name] for name in _PATCH_FIELDS},
    }
    if isinstance(model, MaskedPatchModel) and model.decoder is not None:
        config["decoder"] = model.decoder.arguments
    if classifier:
        config |= {
            "label": classifier.label,
            "problem_type": classifier.problem_type,
            "pooling": classifier.pooling,
            "head_norm": classifier.head_norm,
            "segments": classifier.segments,
            "pool_padding": classifier.pool_padding,
            **({"hop_columns": classifier.hop_columns} if classifier.hop_columns else {}),
            "id2label": dict(enumerate(classifier.labels)),
            "label2id": {name: number for number, name in enumerate(classifier.labels)},
        }
    path, held = folder / "model.safetensors", model.state_dict() if weights is None else weights
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in held.items()
        if not name.startswith("more_heads.")  # of pretraining alone
    }
    write_safetensors(path, tensors)
    write_json(folder / "config.json", config)
    write_json(
        folder / "preprocessor_config.json",
        {
            "feature_extractor_type": "FeatureExtractor",
            "num_mel_bins": arguments["num_mel_bins"],
            "max_length": arguments["max_length"],
            **asdict(audio),
        },
    )


def _architecture(classifier: ClassifierSettings | None) -> str:
    if classifier is None:
        return "MaskedPatchModel"
    return "AudioClassifier" if classifier.hop_columns is None else "TokenClassifier"


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write contiguous tensors on the CPU, each with memory of its own; NotWritten if the disk does not take them."""
    with written_beside(path) as beside:
        try:
            save_file(dict(tensors), beside, metadata={"format": "pt"})
        except SafetensorError as error:
            if number := re.search(r"os error (\d+)", str(error)):  # which safetensors tells in its words alone
                raise OSError(int(number[1]), os.strerror(int(number[1])), str(beside)) from error
            raise


def model_folder(path: str | Path) -> Path:
    """The folder that holds config.json: `path` itself, or model/ in a run folder. UserError if there is none."""
    for folder in (Path(path), Path(path) / "model"):
        if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
            return folder
    raise UserError(f"{path} holds no model; expected config.json and model.safetensors in it or in its model/ folder")


# What the files of a model folder may say. The bounds are far above the largest published model, and low enough that
# whatever is within them is refused or built without harm.
Width = Annotated[int, Meta(ge=1, le=65_536)]
Positive = Annotated[int, Meta(ge=1, le=1024)]
Frames = Annotated[int, Meta(ge=1, le=1_000_000)]
Epsilon = Annotated[float, Meta(ge=1e-12, le=1)]
_MOST_CLIP_SAMPLES = 1 << 25
_MOST_JSON_BYTES = 1 << 24
_MOST_HEADER_BYTES = 1 << 24
_FLOATS = ("F32", "F16", "BF16")  # that float32 holds exactly


@dataclass(frozen=True, kw_only=True)
class _DecoderConfig:
    hidden_size: Width
    num_hidden_layers: Positive


@dataclass(frozen=True, kw_only=True)
class _Config:
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
    pooling: Pooling | None = None
    head_norm: bool | None = None
    segments: Annotated[int, Meta(ge=1, le=MOST_SEGMENTS)] | None = None
    pool_padding: bool | None = None
    hop_columns: Frames | None = None
    id2label: dict[str, str] | None = None
    label2id: dict[str, int] | None = None
    architectures: list[str] | None = None


@dataclass(frozen=True, kw_only=True)
class _SsambaConfig(_Config):
    model_type: Literal["ssamba"]
    state_size: Positive
    expand: Positive
    conv_kernel: Positive
    residual: Literal["doubling", "plain"]
    layer_norm_eps: Epsilon


@dataclass(frozen=True, kw_only=True)
class _SsastConfig(_Config):
    model_type: Literal["ssast"]
    num_attention_heads: Positive
    layer_norm_eps: Epsilon


@dataclass(frozen=True, kw_only=True)
class _AumConfig(_Config):
    model_type: Literal["aum"]
    state_size: Positive
    expand: Positive
    conv_kernel: Positive
    scan_layout: Literal["fo_fo", "fo_bi", "bi_bi"]
    rms_norm_eps: Epsilon


@dataclass(frozen=True, kw_only=True)
class _ConformerConfig(_Config):
    model_type: Literal["conformer"]
    num_attention_heads: Positive
    intermediate_size: Width
    conv_depthwise_kernel_size: Positive


@dataclass(frozen=True, kw_only=True)
class _BilstmConfig(_Config):
    model_type: Literal["bilstm"]
    state_size: Width
    layer_norm_eps: Epsilon


@dataclass(frozen=True, kw_only=True)
class _SsdConfig(_Config):
    model_type: Literal["ssd"]
    state_size: Positive
    expand: Positive
    head_dim: Width
    conv_kernel: Positive
    layer_norm_eps: Epsilon


_CONFIGS: dict[str, type[_Config]] = {
    "ssamba": _SsambaConfig,
    "ssast": _SsastConfig,
    "aum": _AumConfig,
    "conformer": _ConformerConfig,
    "bilstm": _BilstmConfig,
    "ssd": _SsdConfig,
}


@dataclass(frozen=True)
class _Family:
    model_type: str


@dataclass(frozen=True)
class _Preprocessor(AudioSettings):
    num_mel_bins: int | UnsetType = UNSET
    max_length: int | UnsetType = UNSET


def read_config(path: str | Path) -> dict[str, Any]:
    """The config.json of a model or run folder, the fields that mean something here.

    Raises:
        UserError: it is none of ours, or a field is missing or of another type or size than a model's.
    """
    place, expected = model_folder(path) / "config.json", "a model's config.json, complete, as `ssamba` writes it"
    content = read_bounded(place, expected, _MOST_JSON_BYTES)
    family = parse_json(content, _Family, place, expected).model_type
    if family not in _CONFIGS:
        raise UserError(f"{place} describes a {family!r}; expected one of {', '.join(_CONFIGS)}")
    config = parse_json(content, _CONFIGS[family], place, expected)
    return {name: value for name, value in asdict(config).items() if value is not None}


def read_audio_settings(path: str | Path) -> AudioSettings:
    """The preprocessor_config.json of a model or run folder; UserError if it is missing, incomplete or contradicts the
    config.json beside it."""
    place = model_folder(path) / "preprocessor_config.json"
    expected = "sampling_rate, mean, std and short (pad, repeat or keep) of a model's spectrograms"
    if not place.is_file():
        raise UserError(f"{place} is missing; expected {expected} in it")
    told, config = read_json(place, _Preprocessor, expected, _MOST_JSON_BYTES), read_config(path)
    for name in ("num_mel_bins", "max_length"):
        if getattr(told, name) not in (UNSET, config[name]):
            raise UserError(f"{place} has {name} {getattr(told, name)}; expected {config[name]}, as in its config.json")
    if (samples := config["max_length"] * told.sampling_rate // 100) > _MOST_CLIP_SAMPLES:
        raise UserError(
            f"{place} has sampling_rate {told.sampling_rate}, at which a clip of its config.json's "
            f"{config['max_length']} frames has {samples} samples; expected at most {_MOST_CLIP_SAMPLES}"
        )
    return AudioSettings(told.sampling_rate, told.mean, told.std, told.short)


def build_encoder(config: Mapping[str, Any], scan_backend: str = "auto") -> AudioEncoder:
    """The encoder that a config.json describes, with fresh weights."""
    options = {name: config[name] for name in SIZES[config["model_type"]]["nano"]}
    patch = {name: config[name] for name in _PATCH_FIELDS}
    return AudioEncoder(config["model_type"], options, **patch, scan_backend=scan_backend)


def read_weights(path: str | Path, finite: bool = True) -> dict[str, Tensor]:
    """The tensors of a model or run folder, float32, on the CPU.

    Raises:
        UserError: a damaged file or, with `finite`, numbers that are not.
    """
    place = model_folder(path) / "model.safetensors"
    weights = {name: tensor.to(torch.float32, copy=True) for name, tensor in read_safetensors(place).items()}
    if finite and (bad := [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]):
        raise UserError(
            f"{place} has numbers that are not finite in {', '.join(bad[:8])}{', ...' if len(bad) > 8 else ''}: the "
            "model is of no use; expected one of a training that did not diverge"
        )
    return weights


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, on the CPU; UserError for a damaged one."""
    read_header(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> dtype, in safetensors' words, and shape of what a .safetensors file holds, without reading the tensors.

    Raises:
        UserError: it is damaged, or its header is larger than any model's.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
        if size > _MOST_HEADER_BYTES:
            raise UserError(f"{path} is damaged: its header has {size} bytes; expected {_MOST_HEADER_BYTES} at most")
        with safe_open(path, "pt") as tensors:
            parts = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 - it is no mapping
            return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def load_model(path: str | Path, scan_backend: str = "auto", finite: bool = True) -> SavedModel:
    """Read a model or run folder.

    Args:
        finite: refuse weights that are not; a conversion takes them as they are.

    Raises:
        UserError: a file that is damaged or says what cannot be, or weights that do not fit their config.json.
    """
    config, audio = read_config(path), read_audio_settings(path)
    model, settings = _checked_model(config, path, scan_backend)
    _fill(model, read_weights(path, finite), path)
    model.eval()
    return SavedModel(model, audio, settings)


def _checked_model(
    config: Mapping[str, Any], path: str | Path, scan_backend: str = "auto"
) -> tuple[MaskedPatchModel | AudioClassifier, ClassifierSettings | None]:
    """The model that a folder's config.json describes, without memory for its tensors.

    Raises:
        UserError: it describes none, or another one than the header of the weights.
    """
    model: MaskedPatchModel | AudioClassifier
    settings = _classifier_settings(config, path) if "id2label" in config else None
    header = read_header(model_folder(path) / "model.safetensors")
    # A number of layers costs nothing until the weights have as many: two more show which names are missing.
    layers = _told_layers(header, "encoder.stack.layers.", config["num_hidden_layers"])
    try:
        with torch.device("meta"):
            encoder = build_encoder({**config, "num_hidden_layers": layers}, scan_backend)
            if settings is None:
                model = MaskedPatchModel(encoder, decoder=_build_decoder(config, encoder, header))
            else:
                model = build_classifier(encoder, settings)
    except ValueError as error:
        raise UserError(f"config.json in {path} describes no model: {error}") from error
    _compare(model, {name: shape for name, (_, shape) in header.items()}, path)
    if others := [f"{name} has type {dtype}" for name, (dtype, _) in header.items() if dtype not in _FLOATS]:
        raise UserError(f"the weights in {path} do not fit: {_some(others)}; expected one of {', '.join(_FLOATS)}")
    return model, settings


def _told_layers(header: Iterable[str], layers: str, told: int) -> int:
    """How many layers to build of those that a config.json tells, whose tensors' names begin with `layers`."""
    weights = {name.removeprefix(layers).split(".")[0] for name in header if name.startswith(layers)}
    return min(told, len(weights) + 2)


def _build_decoder(config: Mapping[str, Any], encoder: AudioEncoder, header: Iterable[str]) -> PatchDecoder | None:
    """The decoder that a config.json describes, with fresh weights; None: of an encoder that gets all patches."""
    if "decoder" not in config:
        return None
    sizes = config["decoder"]
    layers = _told_layers(header, "decoder.layers.", sizes["num_hidden_layers"])
    return PatchDecoder(encoder.hidden_size, encoder.grid, sizes["hidden_size"], layers)


def _classifier_settings(config: Mapping[str, Any], path: str | Path) -> ClassifierSettings:
    missing = [name for name in ("label", "problem_type", "pooling", "head_norm") if name not in config]
    names = config["id2label"]
    numbers = [str(number) for number in range(len(names))]
    if missing or not numbers or names.keys() != set(numbers):
        problem = f"it has no {missing[0]}" if missing else "its id2label is none"
        raise UserError(
            f"config.json in {path} does not describe a classifier: {problem}; expected id2label (numbers from 0), "
            f"label, pooling, head_norm, and problem_type {' or '.join(_LOSSES)}"
        )
    labels = tuple(names[number] for number in numbers)
    loss = _LOSSES[config["problem_type"]]
    # Folders without these are of versions that pooled padding, as the originals do.
    pool = config.get("segments", ClassifierSettings.segments), config.get("pool_padding", True)
    hop = config.get("hop_columns")
    if loss == "ctc" and hop is None:
        raise UserError(f"config.json in {path} has problem_type ctc and no hop_columns; expected a number of columns")
    return ClassifierSettings(labels, config["label"], loss, config["pooling"], config["head_norm"], *pool, hop)


def build_classifier(encoder: AudioEncoder, settings: ClassifierSettings) -> AudioClassifier:
    """The classifier of these settings on an encoder, its head with fresh weights.

    Raises:
        ValueError: settings that cannot be.
    """
    if settings.hop_columns is not None:
        return TokenClassifier(
            encoder, len(settings.labels), settings.pooling, settings.hop_columns, settings.head_norm, settings.segments
        )
    return AudioClassifier(
        encoder, len(settings.labels), settings.pooling, settings.head_norm, settings.segments, settings.pool_padding
    )


def load_pretrained_encoder(encoder: AudioEncoder, path: str | Path) -> None:
    """Fill an encoder from a model or run folder, its positional grid cut or interpolated to the encoder's.

    Raises:
        UserError: another encoder, size or patch shape; says what the folder holds and what was asked for.
    """
    config = read_config(path)
    arguments = encoder.arguments
    held = {"encoder": config["model_type"], **{name: config[name] for name in ("fshape", "tshape", "patch_order")}}
    asked: dict[str, Any] = {name: arguments[name] for name in held}
    for name in arguments["options"] if held["encoder"] == asked["encoder"] else ():
        held[name], asked[name] = config[name], arguments["options"][name]
    if held != asked:
        differing = [name for name in held if held[name] != asked[name]]
        raise UserError(
            f"the pretrained model in {path} has "
            + ", ".join(f"{name} {held[name]}" for name in differing)
            + "; the recipe asks for "
            + ", ".join(f"{name} {asked[name]}" for name in differing)
            + ". Pretrain such a model, or change the recipe's model section"
        )
    _checked_model(config, path)
    prefix = "encoder."
    state = {name.removeprefix(prefix): x for name, x in read_weights(path).items() if name.startswith(prefix)}
    if "positions" in state:
        with torch.no_grad():
            state["positions"] = fit_positions(state["positions"], *encoder.grid).contiguous()
    _fill(encoder, state, path)


def _fill(module: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    """Give a module tensors of the shapes that it has; the tensors become the module's."""
    _compare(module, {name: tuple(tensor.shape) for name, tensor in state.items()}, path)
    module.load_state_dict(dict(state), assign=True)


def _compare(module: nn.Module, shapes: Mapping[str, tuple[int, ...]], path: str | Path) -> None:
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    wrong = [f"{name} is missing" for name in own if name not in shapes]
    wrong += [f"{name} is not known" for name in shapes if name not in own]
    wrong += [
        f"{name} has shape {shapes[name]}, expected {shape}"
        for name, shape in own.items()
        if name in shapes and shapes[name] != shape
    ]
    if wrong:
        raise UserError(f"the weights in {path} do not fit: {_some(wrong)}")


def _some(complaints: Sequence[str]) -> str:
    return "; ".join(complaints[:8]) + ("; ..." if len(complaints) > 8 else "")
