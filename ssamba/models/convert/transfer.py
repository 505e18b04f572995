"""Checkpoint files of the originals' authors into model folders, and model folders into such files.

Nothing in a checkpoint is executed: files are read by torch.load(weights_only=True) or safetensors.
"""

import csv
import re
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssamba.errors import UserError
from ssamba.files import check_out, whole_folder, written_beside
from ssamba.models.checkpoint import build_classifier, load_model, save_model
from ssamba.models.convert.families import UNUSED
from ssamba.models.convert.state_dicts import FromAuthors, from_authors, some_of, to_authors
from ssamba.models.encoder import SIZES, AudioEncoder
from ssamba.models.heads import AudioClassifier, MaskedPatchModel, parameter_count
from ssamba.models.settings import AudioSettings, ClassifierSettings, model_folder, read_config
from ssamba.models.tensor_files import read_safetensors, write_safetensors
from ssamba.printable import printable

# Of the log-mel values of AudioSet and LibriSpeech, on which the originals were pretrained: both repositories' scripts.
AUDIOSET_LIBRISPEECH = AudioSettings(16000, -4.2677393, 4.5689974, "pad")

# Where other trainers put the state dict in what they save.
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_UNUSED_FILE = "unused.safetensors"
_MOST_REPEATED = 1 << 26  # bytes of numbers that are stored once for several places, as in classifiers of zeros
_WEIGHT_TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_SIZE_TYPES = (torch.int64, torch.int32)


class ClassifierOptions(NamedTuple):
    """`ClassifierSettings` as far as they are given; None: "0", "1", ..., "label", "cross_entropy" and
    "mean" (AuM: "class")."""

    labels: tuple[str, ...] | None = None
    label: str | None = None
    loss: str | None = None
    pooling: str | None = None


class Imported(NamedTuple):
    """An imported checkpoint. used: how many of its tensors the model has; unused: the names of those kept beside it;
    types: what the used ones were, other than float32; assumed: name and value of what neither its tensors nor the
    caller gave."""

    model: MaskedPatchModel | AudioClassifier
    audio: AudioSettings
    classifier: ClassifierSettings | None
    used: int
    unused: tuple[str, ...]
    types: tuple[str, ...]
    assumed: dict[str, Any]


class Exported(NamedTuple):
    """What was written: the state dict, and which of its tensors are zeros because nothing reads them. padding: whether
    the authors' code pools what fills up short clips where this model leaves it out, which no tensor shows."""

    tensors: dict[str, Tensor]
    zeros: tuple[str, ...]
    padding: bool


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint, by their names in it; on the CPU, of any type.

    The file is torch.save's, or safetensors' if its name ends in .safetensors. The state dict may stand under
    "state_dict", "model" or "model_state_dict" among other things, and under "model." as in a LightningModule.

    Raises:
        UserError: no such file, a damaged one, one that would execute code, or something else than plain tensors in it.
    """
    if not path.is_file():
        raise UserError(f"{path} is {'a folder' if path.is_dir() else 'not there'}; expected a checkpoint file")
    content = read_safetensors(path) if path.suffix == ".safetensors" else _unpickle(path)
    if isinstance(content, Mapping):
        content = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds a {type(content).__name__}; expected a state dict, of names and tensors")
    if odd := [_named(name) for name, value in content.items() if not (isinstance(name, str) and _is_plain(value))]:
        raise UserError(f"{path} holds what is no plain tensor: {some_of(odd)}; expected a state dict alone")
    _check_numbers(path, content)
    prefix = "model."
    if all(name.startswith(prefix) for name in content):
        return {name.removeprefix(prefix): tensor for name, tensor in content.items()}
    return dict(content)


def _named(name: object) -> str:
    # What else a name may be can be nested without end, or have more digits than Python writes.
    known = isinstance(name, str) or (isinstance(name, int) and abs(name) < 10**9)
    return str(name) if known else f"one named by a {type(name).__name__}"


def _check_numbers(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """UserError for tensors that claim far more numbers than are stored, of types that no weights have, or not finite.

    A tensor of one number may claim any shape by strides of 0, and many may lie in one storage: nothing is copied, or
    built by their shapes, before that is known.
    """
    claimed = sum(tensor.nbytes for tensor in tensors.values())
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors.values()}
    stored = sum(storages.values())
    if claimed > 2 * stored + _MOST_REPEATED:
        name = max(tensors, key=lambda name: tensors[name].nbytes)
        raise UserError(
            f"{path} stores {stored:,} bytes for tensors of {claimed:,}, the largest {name} of "
            f"{tuple(tensors[name].shape)}; expected tensors with all their numbers"
        )
    for name, tensor in tensors.items():
        # The sizes of the input are whole numbers, of no dimension.
        if tensor.dtype not in _WEIGHT_TYPES and (tensor.ndim or tensor.dtype not in _SIZE_TYPES):
            types = ", ".join(str(dtype).removeprefix("torch.") for dtype in _WEIGHT_TYPES)
            raise UserError(f"{path}: {name} is of {str(tensor.dtype).removeprefix('torch.')}; expected {types}")
    if wrong := [name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())]:
        raise UserError(
            f"{path} holds numbers that are not finite, in {some_of(wrong)}; expected those of a trained model"
        )


def read_label_names(path: Path) -> tuple[str, ...]:
    """Class names in order: one a line, or AudioSet's class_labels_indices.csv (index,mid,display_name)."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [line.strip() for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}; expected a text file of class names") from error
    if lines and lines[0] == "index,mid,display_name":
        rows = list(csv.DictReader(lines))
        if [row["index"] for row in rows] != [str(index) for index in range(len(rows))]:
            raise UserError(f"{path} does not number its classes 0, 1, 2, ...")
        lines = [row["display_name"] or "" for row in rows]
    if not lines or "" in lines or len(set(lines)) < len(lines):
        raise UserError(f"{path} has no class names, or an empty one, or one twice")
    return tuple(lines)


def import_checkpoint(
    checkpoint: Path,
    out: Path,
    audio: Mapping[str, Any],
    stated: Mapping[str, int | None],
    options: ClassifierOptions,
    overwrite: bool = False,
) -> Imported:
    """Make a model folder of a checkpoint in its authors' format: model.safetensors, config.json and, if the checkpoint
    has tensors that its own code never reads, unused.safetensors with these.

    Args:
        checkpoint: as `read_state_dict`; tensors of another type than float32 become float32.
        out: a new folder.
        audio: fields of `AudioSettings` as far as they are given; the others are `AUDIOSET_LIBRISPEECH`'s.
        stated: arguments of `from_authors`, None where not given.
        options: of a classifier.
        overwrite: replace `out` if it is a model folder.

    Raises:
        UserError: `out` exists, a checkpoint that cannot be read or is another model's, or arguments that contradict
            it. Nothing is written then.
    """
    _check_folder(out, overwrite)
    state = read_state_dict(checkpoint)
    try:
        source = from_authors(state, **stated)
    except UserError as error:
        raise UserError(f"{checkpoint}: {error}") from error
    _check_stated(source, stated)
    model, classifier = _build(source, options)
    short = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    unused = {name: short[name].clone(memory_format=torch.contiguous_format) for name in UNUSED if name in short}
    types = {str(x.dtype).removeprefix("torch.") for name, x in short.items() if name not in unused and x.ndim}
    settings = replace(AUDIOSET_LIBRISPEECH, **audio)
    with whole_folder(out) as folder:
        save_model(folder, model, settings, classifier)
        if unused:
            write_safetensors(folder / _UNUSED_FILE, unused)
    used, others = len(state) - len(unused), tuple(sorted(types - {"float32"}))
    assumed = {name: {**source.arguments, **source.arguments["options"]}[name] for name in source.assumed}
    assumed |= {name: value for name, value in asdict(settings).items() if name not in audio}
    if classifier is not None:
        options_used = {"loss": classifier.loss, "pooling": classifier.pooling}
        assumed |= {name: value for name, value in options_used.items() if getattr(options, name) is None}
    return Imported(model, settings, classifier, used, tuple(unused), others, assumed)


def import_report(imported: Imported) -> str:
    """The report of an import, in lines."""
    audio, encoder = imported.audio, imported.model.encoder
    arguments, options = encoder.arguments, encoder.arguments["options"]
    family = arguments["encoder"]
    size = next((name for name, sizes in SIZES[family].items() if sizes == options), None)
    rows, columns = encoder.grid
    lines = [
        f"family: {family}, " + (size or ", ".join(f"{name} {value}" for name, value in options.items())),
        f"patch: {arguments['fshape']} mel bins x {arguments['tshape']} frames, strides "
        f"{arguments['frequency_stride']} and {arguments['time_stride']}",
        f"grid: {rows} x {columns} patches of {arguments['num_mel_bins']} mel bins x {arguments['max_length']} frames",
        f"audio: {audio.sampling_rate} Hz, log-mel mean {audio.mean} and standard deviation {audio.std}",
        f"classes: {_classes(imported.classifier)}",
        f"parameters: {parameter_count(imported.model):,}",
        f"tensors: {imported.used} used, {len(imported.unused)} kept that nothing reads"
        + (f" ({', '.join(imported.unused)})" if imported.unused else ""),
    ]
    if imported.types:
        lines.append(f"types: {', '.join(imported.types)} became float32, which an export writes")
    if imported.assumed:
        options = (f"--{name.replace('_', '-')} {value}" for name, value in imported.assumed.items())
        lines.append(f"assumed, for the checkpoint does not tell it: {' '.join(options)}")
    return "\n".join(map(printable, lines))


def export_model(path: Path, out: Path, family: str, overwrite: bool = False) -> Exported:
    """Write a model or run folder as a checkpoint in the format of `family`'s authors, by torch.save.

    Tensors that nothing reads are the imported ones, or zeros in a model that was trained here.

    Raises:
        UserError: `out` exists (a file is replaced with `overwrite`), no model in `path` or one of another family, or
            as `to_authors`.
    """
    check_out(out, overwrite)
    model_type = read_config(path)["model_type"]
    if model_type != family:
        raise UserError(f"{path} holds a model of {model_type}; expected one of {family} for --format {family}")
    kept = _read_unused(path)
    saved = load_model(path, finite=False)
    tensors = to_authors(saved.model) | kept
    zeros = {f"module.{name}" for name in UNUSED} & tensors.keys() - kept.keys()
    with written_beside(out) as beside, beside.open("wb") as file:
        torch.save(tensors, file)
    pools = saved.classifier is not None and saved.classifier.pooling != "class" and not saved.classifier.pool_padding
    return Exported(tensors, tuple(sorted(zeros)), pools and saved.audio.short == "pad")


def _classes(settings: ClassifierSettings | None) -> str:
    if settings is None:
        return "none, a pretraining model"
    names = ", ".join(settings.labels[:6]) + (", ..." if len(settings.labels) > 6 else "")
    return f"{len(settings.labels)} ({settings.label}: {names}), {settings.loss}, {settings.pooling} pooling"


def _unpickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's guesses about a file that is none of its own
            # Mapped, so that a storage has no more bytes than the file, whatever the pickle claims.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except UserError:
        raise
    except Exception as error:  # a damaged file makes the unpickler raise nearly anything
        if asked := re.search(r"GLOBAL ([\w.]+)", str(error)):
            raise UserError(
                f"{path} was not read: to read it means to call {asked[1]}, which could do anything; expected tensors "
                "alone. Whoever trusts it can load it elsewhere and torch.save its state_dict()"
            ) from error
        raise UserError(f"{path} is damaged, or no checkpoint; expected a file written by torch.save") from error


def _is_zip(path: Path) -> bool:
    """Whether a file is of torch's new format, whose parts are stored as they are; UserError where they are not."""
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
    with zipfile.ZipFile(path) as archive:
        if packed := [part.filename for part in archive.infolist() if part.compress_type != zipfile.ZIP_STORED]:
            raise UserError(f"{path} is a compressed archive ({some_of(packed)}); expected what torch.save writes")
    return True


def _is_plain(value: object) -> bool:
    """Numbers in memory, one after another: not sparse, quantized or complex."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_complex()
    )


def _check_folder(out: Path, overwrite: bool) -> None:
    """Whether a model folder may be made in `out`."""
    if not out.name or out.name == "..":
        raise UserError(f"{out} is no name for a new folder")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not overwrite:
        raise UserError(f"{out} exists; expected a new folder, or --overwrite to replace the model in it")
    names = [path.name for path in out.iterdir()] if out.is_dir() and not out.is_symlink() else []
    if not {"model.safetensors", "config.json"} <= set(names) or not all(
        name.endswith((".safetensors", ".json")) or name == "README.md" for name in names
    ):
        raise UserError(f"{out} is no model folder, or holds more than a model; --overwrite does not remove it")


def _check_stated(source: FromAuthors, stated: Mapping[str, int | None]) -> None:
    """UserError where the caller's arguments contradict the checkpoint."""
    arguments = {**source.arguments, **source.arguments["options"]}
    for name, value in stated.items():
        if value is not None and arguments.get(name) != value:
            option = f"--{name.replace('_', '-')}"
            own = f"the checkpoint has {arguments[name]}" if name in arguments else f"{arguments['encoder']} has none"
            raise UserError(f"{option} is {value}; {own}")


def _build(
    source: FromAuthors, options: ClassifierOptions
) -> tuple[MaskedPatchModel | AudioClassifier, ClassifierSettings | None]:
    """The model with its weights, and its settings if it is a classifier."""
    encoder = AudioEncoder(**source.arguments)
    model: MaskedPatchModel | AudioClassifier
    settings = None
    if "head.1.weight" in source.heads:
        classes = len(source.heads["head.1.weight"])
        names = options.labels or tuple(map(str, range(classes)))
        if len(names) != classes:
            raise UserError(f"--labels has {len(names)} names; the checkpoint's classifier has {classes} classes")
        pooling = options.pooling or ("class" if source.arguments["encoder"] == "aum" else "mean")
        label, loss = options.label or "label", options.loss or "cross_entropy"
        settings = ClassifierSettings(names, label, loss, pooling, source.head_norm, pool_padding=True)
        model = build_classifier(encoder, settings)
    elif flags := [f"--{name}" for name, value in options._asdict().items() if value is not None]:
        raise UserError(f"{', '.join(flags)} is said of a classifier; the checkpoint is a pretraining model's")
    else:
        model = MaskedPatchModel(encoder)
    model.load_state_dict({f"encoder.{name}": tensor for name, tensor in source.encoder.items()} | source.heads)
    return model.eval(), settings


def _read_unused(path: Path) -> dict[str, Tensor]:
    """The tensors kept beside an imported model, by the authors' names."""
    file = model_folder(path) / _UNUSED_FILE
    kept = read_safetensors(file) if file.is_file() else {}
    if unknown := kept.keys() - set(UNUSED):
        raise UserError(f"{file} holds {some_of(unknown)}; expected none but {', '.join(UNUSED)}")
    return {f"module.{name}": tensor for name, tensor in kept.items()}
