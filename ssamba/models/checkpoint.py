"""A trained model as a folder: model.safetensors and config.json, readable without the recipe that made it."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ssamba.errors import UserError
from ssamba.files import write_json
from ssamba.models.encoder import SIZES, STACKS, AudioEncoder
from ssamba.models.heads import AudioClassifier, MaskedPatchModel
from ssamba.models.patches import fit_positions

_PATCH_FIELDS = ("num_mel_bins", "max_length", "fshape", "tshape", "frequency_stride", "time_stride")
_AUDIO_FIELDS = ("sampling_rate", "mean", "std")


@dataclass(frozen=True)
class AudioSettings:
    """What the spectrograms of a model were: sampling rate in Hz, statistics of the log-mel values."""

    sampling_rate: int
    mean: float
    std: float


@dataclass(frozen=True)
class ClassifierSettings:
    """What a classifier says: the names of its classes and the label of the data that they come from; loss and head."""

    labels: tuple[str, ...]
    label: str
    loss: str
    pooling: str
    head_norm: bool = True


@dataclass(frozen=True)
class SavedModel:
    """A model folder, read and built. `classifier` is None for a pretrained model."""

    model: MaskedPatchModel | AudioClassifier
    audio: AudioSettings
    classifier: ClassifierSettings | None


def save_model(folder: Path, model: MaskedPatchModel | AudioClassifier, audio: AudioSettings,
               classifier: ClassifierSettings | None = None) -> None:  # fmt: skip
    """Write model.safetensors and config.json, each beside its place and then renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments = model.encoder.arguments
    config: dict[str, Any] = {
        "model_type": arguments["encoder"],
        "architecture": "AudioClassifier" if classifier else "MaskedPatchModel",
        **arguments["options"], **{name: arguments[name] for name in _PATCH_FIELDS}, **asdict(audio),
    }  # fmt: skip
    if classifier:
        config["classifier"] = asdict(classifier)
    weights = folder / "model.safetensors"
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, f"{weights}.tmp", metadata={"format": "pt"})
    os.replace(f"{weights}.tmp", weights)
    write_json(folder / "config.json", config)


def model_folder(path: str | Path) -> Path:
    """The folder that holds config.json: `path` itself, or model/ in a run folder. UserError if there is none."""
    for folder in (Path(path), Path(path) / "model"):
        if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
            return folder
    raise UserError(f"{path} holds no model; expected config.json and model.safetensors in it or in its model/ folder")


def read_config(path: str | Path) -> dict[str, Any]:
    """The config.json of a model or run folder; UserError if it is none of ours."""
    text = model_folder(path) / "config.json"
    try:
        config = json.loads(text.read_text())
        family = config["model_type"]
        known = family in STACKS and {*_PATCH_FIELDS, *_AUDIO_FIELDS, *SIZES[family]["nano"]} <= config.keys()
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{text} is not a model's config.json: {error!r}") from error
    if not known:
        raise UserError(f"{text} describes a {family!r}; expected one of {', '.join(STACKS)}, complete")
    assert isinstance(config, dict)
    return config


def build_encoder(config: Mapping[str, Any], scan_backend: str = "auto") -> AudioEncoder:
    """The encoder that a config.json describes, with fresh weights."""
    options = {name: config[name] for name in SIZES[config["model_type"]]["nano"]}
    patch = {name: config[name] for name in _PATCH_FIELDS}
    return AudioEncoder(config["model_type"], options, **patch, scan_backend=scan_backend)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a model or run folder, on the CPU."""
    weights = model_folder(path) / "model.safetensors"
    try:
        return load_file(weights)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{weights} is damaged: {error}") from error


def load_model(path: str | Path, scan_backend: str = "auto") -> SavedModel:
    """Read a model or run folder. UserError for weights that do not fit their config.json, with the names."""
    config = read_config(path)
    encoder = build_encoder(config, scan_backend)
    settings = None
    model: MaskedPatchModel | AudioClassifier
    if described := config.get("classifier"):
        settings = ClassifierSettings(**{**described, "labels": tuple(described["labels"])})
        model = AudioClassifier(encoder, len(settings.labels), settings.pooling, settings.head_norm)
    else:
        model = MaskedPatchModel(encoder)
    _load_strictly(model, read_weights(path), path)
    model.eval()
    return SavedModel(model, AudioSettings(**{name: config[name] for name in _AUDIO_FIELDS}), settings)


def load_pretrained_encoder(encoder: AudioEncoder, path: str | Path) -> None:
    """Fill an encoder from a model or run folder, its positional grid cut or interpolated to the encoder's.

    Raises:
        UserError: another encoder, size or patch shape; says what the folder holds and what was asked for.
    """
    config = read_config(path)
    arguments = encoder.arguments
    held = {"encoder": config["model_type"], "fshape": config["fshape"], "tshape": config["tshape"]}
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
    prefix = "encoder."
    state = {name.removeprefix(prefix): x for name, x in read_weights(path).items() if name.startswith(prefix)}
    if "positions" in state:
        with torch.no_grad():
            state["positions"] = fit_positions(state["positions"], *encoder.grid).contiguous()
    _load_strictly(encoder, state, path)


def _load_strictly(module: nn.Module, state: Mapping[str, Tensor], path: str | Path) -> None:
    own = module.state_dict()
    wrong = [f"{name} is missing" for name in own if name not in state]
    wrong += [f"{name} is not known" for name in state if name not in own]
    wrong += [
        f"{name} has shape {tuple(state[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if wrong:
        raise UserError(
            f"the weights in {path} do not fit: " + "; ".join(wrong[:8]) + ("; ..." if len(wrong) > 8 else "")
        )
    module.load_state_dict(dict(state))
