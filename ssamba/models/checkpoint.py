"""A trained model as a folder, readable without the recipe that made it: model.safetensors, config.json (the network
and its classes) and preprocessor_config.json (what its spectrograms are), with the names that `transformers` uses."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ssamba.errors import UserError
from ssamba.files import write_json, written_beside
from ssamba.models.encoder import SIZES, STACKS, AudioEncoder
from ssamba.models.heads import AudioClassifier, MaskedPatchModel
from ssamba.models.patches import fit_positions

_PATCH_FIELDS = ("num_mel_bins", "max_length", "fshape", "tshape", "frequency_stride", "time_stride")
_PROBLEMS = {"cross_entropy": "single_label_classification", "bce": "multi_label_classification"}
SHORT = ("pad", "repeat", "keep")


@dataclass(frozen=True)
class AudioSettings:
    """What a model's spectrograms were: sampling rate in Hz, statistics of the log-mel values, and what became of a
    recording shorter than the clip: filled with zeros ("pad"), with itself ("repeat"), or left as it is ("keep")."""

    sampling_rate: int
    mean: float
    std: float
    short: str


@dataclass(frozen=True)
class ClassifierSettings:
    """What a classifier says: the names of its classes and the label of the data that they come from; loss and head."""

    labels: tuple[str, ...]
    label: str
    loss: str
    pooling: str
    head_norm: bool = True

    @property
    def problem_type(self) -> str:
        """The loss as `transformers` names it."""
        return _PROBLEMS[self.loss]


@dataclass(frozen=True)
class SavedModel:
    """A model folder, read and built. `classifier` is None for a pretrained model."""

    model: MaskedPatchModel | AudioClassifier
    audio: AudioSettings
    classifier: ClassifierSettings | None


def save_model(folder: Path, model: MaskedPatchModel | AudioClassifier, audio: AudioSettings,
               classifier: ClassifierSettings | None = None,
               weights: Mapping[str, Tensor] | None = None) -> None:  # fmt: skip
    """Write the files of a model folder, each beside its place and then renamed.

    `weights`: the model's tensors, where it does not hold them itself, whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    arguments = model.encoder.arguments
    config: dict[str, Any] = {
        "model_type": arguments["encoder"],
        "architectures": ["AudioClassifier" if classifier else "MaskedPatchModel"],
        **arguments["options"], **{name: arguments[name] for name in _PATCH_FIELDS},
    }  # fmt: skip
    if classifier:
        config |= {
            "label": classifier.label,
            "problem_type": classifier.problem_type,
            "pooling": classifier.pooling,
            "head_norm": classifier.head_norm,
            "id2label": dict(enumerate(classifier.labels)),
            "label2id": {name: number for number, name in enumerate(classifier.labels)},
        }
    path, held = folder / "model.safetensors", model.state_dict() if weights is None else weights
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in held.items()}
    write_safetensors(path, tensors)
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", {
        "feature_extractor_type": "FeatureExtractor", "num_mel_bins": arguments["num_mel_bins"],
        "max_length": arguments["max_length"], **asdict(audio),
    })  # fmt: skip


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


def read_config(path: str | Path) -> dict[str, Any]:
    """The config.json of a model or run folder; UserError if it is none of ours."""
    text = model_folder(path) / "config.json"
    try:
        config = json.loads(text.read_text())
        family = config["model_type"]
        known = family in STACKS and {*_PATCH_FIELDS, *SIZES[family]["nano"]} <= config.keys()
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{text} is not a model's config.json: {error!r}") from error
    if not known:
        raise UserError(f"{text} describes a {family!r}; expected one of {', '.join(STACKS)}, complete")
    assert isinstance(config, dict)
    return config


def read_audio_settings(path: str | Path) -> AudioSettings:
    """The preprocessor_config.json of a model or run folder; UserError if it is missing or incomplete."""
    text = model_folder(path) / "preprocessor_config.json"
    try:
        config = json.loads(text.read_text())
        settings = AudioSettings(**{field.name: config[field.name] for field in fields(AudioSettings)})
    except FileNotFoundError as error:
        raise UserError(f"{text} is missing; expected sampling_rate, mean, std and short in it") from error
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{text} does not describe a model's spectrograms: {error!r}") from error
    if settings.short not in SHORT:
        raise UserError(f"{text} has short {settings.short!r}; expected one of {', '.join(SHORT)}")
    return settings


def build_encoder(config: Mapping[str, Any], scan_backend: str = "auto") -> AudioEncoder:
    """The encoder that a config.json describes, with fresh weights."""
    options = {name: config[name] for name in SIZES[config["model_type"]]["nano"]}
    patch = {name: config[name] for name in _PATCH_FIELDS}
    return AudioEncoder(config["model_type"], options, **patch, scan_backend=scan_backend)


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a model or run folder, on the CPU."""
    return read_safetensors(model_folder(path) / "model.safetensors")


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, on the CPU; UserError for a damaged one."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def load_model(path: str | Path, scan_backend: str = "auto") -> SavedModel:
    """Read a model or run folder. UserError for weights that do not fit their config.json, with the names."""
    config = read_config(path)
    encoder = build_encoder(config, scan_backend)
    settings = None
    model: MaskedPatchModel | AudioClassifier
    if "id2label" in config:
        settings = _classifier_settings(config, path)
        model = AudioClassifier(encoder, len(settings.labels), settings.pooling, settings.head_norm)
    else:
        model = MaskedPatchModel(encoder)
    _load_strictly(model, read_weights(path), path)
    model.eval()
    return SavedModel(model, read_audio_settings(path), settings)


def _classifier_settings(config: Mapping[str, Any], path: str | Path) -> ClassifierSettings:
    try:
        names = {int(number): name for number, name in config["id2label"].items()}
        loss = {problem: loss for loss, problem in _PROBLEMS.items()}[config["problem_type"]]
        labels = tuple(names[number] for number in range(len(names)))
        return ClassifierSettings(labels, config["label"], loss, config["pooling"], config["head_norm"])
    except (KeyError, ValueError, AttributeError) as error:
        raise UserError(
            f"config.json in {path} does not describe a classifier: {error!r}; expected id2label (numbers from 0), "
            f"label, pooling, and problem_type {' or '.join(_PROBLEMS.values())}"
        ) from error


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
