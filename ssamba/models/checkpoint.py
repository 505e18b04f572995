"""A trained model as a folder, readable without the recipe that made it: its weights (`tensor_files`) and their
description (`settings`), with the names that `transformers` uses."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssamba.errors import UserError
from ssamba.files import write_json
from ssamba.models.decoder import PatchDecoder
from ssamba.models.encoder import AudioEncoder, find_stack
from ssamba.models.heads import AudioClassifier, MaskedPatchModel, TokenClassifier
from ssamba.models.patches import fit_positions
from ssamba.models.settings import (
    LOSSES,
    AudioSettings,
    ClassifierSettings,
    model_folder,
    read_audio_settings,
    read_config,
)
from ssamba.models.tensor_files import read_header, read_safetensors, write_safetensors
from ssamba.parts import recorded_package

_PATCH_FIELDS = ("num_mel_bins", "max_length", "fshape", "tshape", "frequency_stride", "time_stride", "patch_order")
_FLOATS = ("F32", "F16", "BF16")  # that float32 holds exactly


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
    packages = {"encoder": recorded_package("encoder", arguments["encoder"])}
    if classifier:
        packages["pool"] = recorded_package("pool", classifier.pooling)
    config: dict[str, Any] = {
        "model_type": arguments["encoder"],
        "architectures": [_architecture(classifier)],
        **arguments["options"],
        **{name: arguments[name] for name in _PATCH_FIELDS},
    }
    if any(packages.values()):
        config["packages"] = {kind: package for kind, package in packages.items() if package is not None}
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
            "label2id": {name: index for index, name in enumerate(classifier.labels)},
        }
    path, state = folder / "model.safetensors", model.state_dict() if weights is None else weights
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in state.items()
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


def described_encoder(config: Mapping[str, Any], scan_backend: str = "auto") -> AudioEncoder:
    """The encoder that a config.json describes, with fresh weights."""
    options = {name: config[name] for name in find_stack(config["model_type"]).option_types()}
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


def load_model(path: str | Path, scan_backend: str = "auto", finite: bool = True) -> SavedModel:
    """Read a model or run folder.

    Args:
        finite: refuse weights that are not; a conversion takes them as they are.

    Raises:
        UserError: a file that is damaged or has invalid values, or weights that do not fit their config.json.
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
    layers = _layers_to_build(header, "encoder.stack.layers.", config["num_hidden_layers"])
    try:
        with torch.device("meta"):
            encoder = described_encoder({**config, "num_hidden_layers": layers}, scan_backend)
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


def _layers_to_build(header: Iterable[str], layers: str, stated: int) -> int:
    """How many layers to build of those in a config.json, whose tensors' names begin with `layers`."""
    weights = {name.removeprefix(layers).split(".")[0] for name in header if name.startswith(layers)}
    return min(stated, len(weights) + 2)


def _build_decoder(config: Mapping[str, Any], encoder: AudioEncoder, header: Iterable[str]) -> PatchDecoder | None:
    """The decoder that a config.json describes, with fresh weights; None: of an encoder that gets all patches."""
    if "decoder" not in config:
        return None
    sizes = config["decoder"]
    layers = _layers_to_build(header, "decoder.layers.", sizes["num_hidden_layers"])
    return PatchDecoder(encoder.hidden_size, encoder.grid, sizes["hidden_size"], layers)


def _classifier_settings(config: Mapping[str, Any], path: str | Path) -> ClassifierSettings:
    missing = [name for name in ("label", "problem_type", "pooling", "head_norm") if name not in config]
    names = config["id2label"]
    indices = [str(index) for index in range(len(names))]
    if missing or not indices or names.keys() != set(indices):
        problem = f"it has no {missing[0]}" if missing else "its id2label is none"
        raise UserError(
            f"config.json in {path} does not describe a classifier: {problem}; expected id2label (numbers from 0), "
            f"label, pooling, head_norm, and problem_type {' or '.join(LOSSES)}"
        )
    labels = tuple(names[index] for index in indices)
    loss = LOSSES[config["problem_type"]]
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
        UserError: another encoder, size or patch shape; with the folder's and the recipe's.
    """
    config = read_config(path)
    arguments = encoder.arguments
    saved = {"encoder": config["model_type"], **{name: config[name] for name in ("fshape", "tshape", "patch_order")}}
    asked: dict[str, Any] = {name: arguments[name] for name in saved}
    for name in arguments["options"] if saved["encoder"] == asked["encoder"] else ():
        saved[name], asked[name] = config[name], arguments["options"][name]
    if saved != asked:
        differing = [name for name in saved if saved[name] != asked[name]]
        raise UserError(
            f"the pretrained model in {path} has "
            + ", ".join(f"{name} {saved[name]}" for name in differing)
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
