"""State dicts as the authors of SSAMBA, SSAST and AuM publish them: to our modules and back, by the same tables.

Shapes: D width, E inner width, N state size, F and P grid sizes in frequency and time, K pixels of a patch, C classes.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssamba.errors import UserError
from ssamba.models.encoder import SIZES, AudioEncoder
from ssamba.models.heads import AudioClassifier, MaskedPatchModel, TokenClassifier


class _Family(NamedTuple):
    """A family of models by its authors' names.

    mark: a tensor that no other family has; top: what its network's names begin with; layers: what stands before a
    layer's number; heads: ours and theirs; head_norm: of `AudioClassifier`; image_classifiers: of the image model that
    theirs is built on, in every checkpoint and never called; renames (ours, theirs): in turn, on the names below
    "encoder.stack.".
    """

    title: str
    mark: str
    top: str
    layers: str
    tokens: tuple[str, ...]
    positions: str
    heads: Mapping[str, str]
    head_norm: bool
    image_classifiers: tuple[str, ...]
    renames: tuple[tuple[str, str], ...]


_HEADS = {"contrastive_head": "cpredlayer", "reconstruction_head": "gpredlayer", "head": "mlp_head"}
_MIXER = (
    (r"^norm\.", "norm_f."),
    (r"\.(ahead|back)\.conv\.", r".\1.conv1d."),
    (r"\.back\.A_log$", ".A_b_log"),
    (r"\.back\.(\w+)", r".\1_b"),
    (r"\.ahead\.", "."),
)
_FAMILIES = {
    "ssamba": _Family(
        "SSAMBA",
        "v.layers.0.mixer.A_b_log",
        "v.",
        "v.layers.",
        ("v.cls_token",),
        "v.pos_embed",
        _HEADS,
        True,
        ("v.head",),
        _MIXER,
    ),
    "ssast": _Family(
        "SSAST",
        "v.blocks.0.attn.qkv.weight",
        "v.",
        "v.blocks.",
        ("v.cls_token", "v.dist_token"),
        "v.pos_embed",
        _HEADS,
        True,
        ("v.head", "v.head_dist"),
        (
            (r"^layers\.", "blocks."),
            (r"\.(qkv|proj)\.", r".attn.\1."),
            (r"\.(fc1|fc2)\.", r".mlp.\1."),
        ),
    ),
    # A classifier, with a linear layer alone on its class token.
    "aum": _Family(
        "AuM",
        "layers.0.mixer.A_log",
        "",
        "layers.",
        ("cls_token",),
        "pos_embed.pos_embed",
        {"head.1": "head"},
        False,
        (),
        _MIXER,
    ),
}
FORMATS = tuple(_FAMILIES)
"""Encoders that there are checkpoints of by their authors."""

_SIZE_OF_INPUT = ("p_input_fdim", "p_input_tdim")
_PREDICTED_PIXELS = 256  # of the originals' pretraining heads, whatever the patch
_IMAGE_CLASSES = 1000
# Every tensor that is in checkpoints and that nothing reads.
UNUSED = tuple(f"{layer}.{kind}" for layer in _FAMILIES["ssast"].image_classifiers for kind in ("weight", "bias"))

# Options that the shapes of the tensors tell; the rest has its family's one value, which the originals' code fixes.
# The number of attention heads is the caller's to know.
_TOLD = {
    "hidden_size",
    "num_hidden_layers",
    "state_size",
    "expand",
    "conv_kernel",
    "scan_layout",
    "num_attention_heads",
}
_ATTENTION_HEADS = {size["hidden_size"]: size["num_attention_heads"] for size in SIZES["ssast"].values()}


# Strides of the originals' published fine-tuning recipes, beside the patch's own sides, which make no overlap:
# 10 and 10 of patches of 16 x 16, and the whole height and 1 of frames. AuM's are all without overlap.
_OVERLAPPING = {(16, 16): (10, 10), (128, 2): (128, 1)}
_OVERLAPPING_FAMILIES = ("ssamba", "ssast")
# Frames of their clips, from Speech Commands (1 s) over ESC-50 and AudioSet to UrbanSound8K in one piece.
_PUBLISHED_LENGTHS = (128, 256, 512, 1024, 2048, 6144)
_GIVE = "give --max-length, --num-mel-bins, --time-stride or --frequency-stride, as its recipe says"


class _Reading(NamedTuple):
    """One way to read a positional grid: of patches with these strides, of clips with so many mel bins and frames."""

    frequency_stride: int
    time_stride: int
    rows: int
    columns: int
    num_mel_bins: int
    max_length: int

    def __str__(self) -> str:
        return (
            f"{self.rows} x {self.columns} patches of {self.num_mel_bins} mel bins x {self.max_length} frames with "
            f"--frequency-stride {self.frequency_stride} --time-stride {self.time_stride}"
        )


class FromAuthors(NamedTuple):
    """arguments: of `AudioEncoder`; encoder: its state dict; heads: tensors named as in `MaskedPatchModel` or
    `AudioClassifier`, so that {"encoder." + name: encoder's tensors} and heads together are that model's state dict;
    head_norm: of such a classifier; assumed: the names of the arguments that neither the tensors nor the caller told.
    """

    arguments: dict[str, Any]
    encoder: dict[str, Tensor]
    heads: dict[str, Tensor]
    head_norm: bool
    assumed: tuple[str, ...]


def from_authors(
    state: Mapping[str, Tensor],
    num_attention_heads: int | None = None,
    num_mel_bins: int | None = None,
    max_length: int | None = None,
    frequency_stride: int | None = None,
    time_stride: int | None = None,
) -> FromAuthors:
    """Translate a pretraining or fine-tuned checkpoint of SSAMBA or SSAST, or a classifier of AuM, of any scan layout.

    The family, its sizes and the patch are read off the tensors, and the size of the clips off a pretraining
    checkpoint. Every tensor is used, or is one of `UNUSED`. A fine-tuned checkpoint has no mask token: ours is zero.

    Args:
        state: tensors by the authors' names, with or without "module." in front (v.pos_embed (1, 1 or 2 + F * P, D),
            v.patch_embed.proj.weight (D, 1, fshape, tshape), v.layers.0.mixer.A_b_log (E, N), mlp_head.1.weight (C, D),
            cpredlayer.2.weight (K, D), ...; AuM: pos_embed.pos_embed (1, 1 + F * P, D), head.weight (C, D), ...).
        num_attention_heads: of an SSAST model, whose tensors do not tell it; if None that of the size of its width.
        num_mel_bins, frequency_stride, time_stride: of a fine-tuned model; if None 128 and the patch's own sides.
            Pretraining is always without overlap.
        max_length: frames of a fine-tuned model's clips; if None a length that the originals publish, else the fewest
            that fill its positional grid.

    Raises:
        UserError: another model's checkpoint, a tensor that is missing, unknown or of the wrong shape, arguments that
            do not fit the tensors, or a positional grid that the originals' recipes read in several ways.
    """
    rest = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if len(rest) < len(state):
        raise UserError("the checkpoint has the same tensors twice, with and without module. in front")
    family = next((name for name, row in _FAMILIES.items() if row.mark in rest), None)
    if family is None:
        marks = " nor ".join(f"{row.title}'s ({row.mark})" for row in _FAMILIES.values())
        raise UserError(f"the checkpoint is neither {marks}; it holds {some_of(state) or 'nothing'}")
    names = _FAMILIES[family]
    layers = len({name.removeprefix(names.layers).split(".")[0] for name in rest if name.startswith(names.layers)})
    kernel = _take(rest, _authors_name("encoder.projection.weight", family), "D", 1, "fshape", "tshape")
    width, _, fshape, tshape = kernel.shape
    options = {**SIZES[family]["base"], "hidden_size": width, "num_hidden_layers": layers}
    if family != "ssast":
        inner, states = _look(rest, f"{names.layers}0.mixer.A_log", "E", "N").shape
        conv_kernel = _look(rest, f"{names.layers}0.mixer.conv1d.weight", "E", 1, "taps").shape[2]
        options |= {"expand": inner // width, "state_size": states, "conv_kernel": conv_kernel}
        if family == "aum":
            convolves_back, scans_back = (any(end in name for name in rest) for end in (".conv1d_b.", ".A_b_log"))
            options["scan_layout"] = "bi_bi" if convolves_back else "fo_bi" if scans_back else "fo_fo"
    elif num_attention_heads is None and width not in _ATTENTION_HEADS:
        raise UserError(
            f"num_attention_heads is not given, and an SSAST checkpoint of width {width} does not tell it (tiny, of "
            f"{SIZES[family]['tiny']['hidden_size']}, has 3; small 6; base 12): give --num-attention-heads"
        )
    else:
        options["num_attention_heads"] = num_attention_heads or _ATTENTION_HEADS[width]

    pretraining = not rest.keys().isdisjoint((*_SIZE_OF_INPUT, "mask_embed"))
    if pretraining:
        num_mel_bins, max_length = (_size(rest, name) for name in _SIZE_OF_INPUT)
        frequency_stride, time_stride = fshape, tshape
    leading = len(names.tokens)
    positions = _take(rest, names.positions, 1, "tokens", width)[0]
    tokens = len(positions) - leading
    given = {
        "num_attention_heads": num_attention_heads,
        "num_mel_bins": num_mel_bins,
        "max_length": max_length,
        "frequency_stride": frequency_stride,
        "time_stride": time_stride,
    }
    num_mel_bins = num_mel_bins or 128
    own = (frequency_stride or fshape, time_stride or tshape)
    readings = _readings(family, tokens, (fshape, tshape), num_mel_bins, max_length, frequency_stride, time_stride)
    if not readings:
        rows = (num_mel_bins - fshape) // own[0] + 1
        frames = max_length or (tokens // max(1, rows) - 1) * own[1] + tshape
        raise UserError(
            f"{names.positions} has {tokens} patches; {frames} frames x {num_mel_bins} mel bins in patches of "
            f"{tshape} x {fshape} with strides {own[1]} and {own[0]} make {(frames - tshape) // own[1] + 1} x {rows}"
            + ("" if pretraining else f": {_GIVE}")
        )
    # Without overlap is what is meant where nothing else is said, unless the recipes know another way.
    if len(readings) > 1 or (max_length is None and readings[0][:2] != own):
        raise UserError(
            f"{names.positions} has {tokens} patches, and the tensors do not tell their grid: it may be "
            f"{', or '.join(map(str, readings))}: {_GIVE}"
        )
    reading = readings[0]
    rows, columns = reading.rows, reading.columns
    assumed = [] if pretraining else [name for name in given if given[name] is None]
    if family != "ssast":
        assumed = [name for name in assumed if name != "num_attention_heads"]
    elif num_attention_heads is None:
        assumed = ["num_attention_heads", *(name for name in assumed if name != "num_attention_heads")]

    arguments = {
        "encoder": family,
        "options": options,
        "num_mel_bins": reading.num_mel_bins,
        "max_length": reading.max_length,
        "fshape": fshape,
        "tshape": tshape,
        "frequency_stride": reading.frequency_stride,
        "time_stride": reading.time_stride,
        "patch_order": "frequency",
    }
    tensors = {
        "encoder.projection.weight": kernel.flatten(1),
        "encoder.class_tokens": torch.cat([_take(rest, name, 1, 1, width)[0] for name in names.tokens]),
        "encoder.class_positions": positions[:leading],
        "encoder.positions": positions[leading:].reshape(rows, columns, -1),
    }
    tensors["encoder.mask_token"] = (
        _take(rest, "mask_embed", 1, 1, width).flatten() if pretraining else torch.zeros(width)
    )
    classes = None if pretraining else len(_look(rest, _authors_name("head.1.weight", family), "C", width))
    for name, shape in _shapes(arguments, classes, names.head_norm).items():
        if name not in tensors:
            tensors[name] = _take(rest, _authors_name(name, family), *shape)
    if unknown := rest.keys() - set(UNUSED):
        raise UserError(f"the {family} checkpoint has tensors of no known use: {some_of(unknown)}")
    prefix = "encoder."
    return FromAuthors(
        arguments,
        {name.removeprefix(prefix): _copy(x) for name, x in tensors.items() if name.startswith(prefix)},
        {name: _copy(x) for name, x in tensors.items() if not name.startswith(prefix)},
        names.head_norm,
        tuple(assumed),
    )


def _readings(
    family: str,
    tokens: int,
    patch: tuple[int, int],
    num_mel_bins: int,
    max_length: int | None,
    frequency_stride: int | None,
    time_stride: int | None,
) -> list[_Reading]:
    """The ways in which the originals' recipes read so many patches, as far as the arguments leave them open."""
    overlapping = _OVERLAPPING.get(patch) if family in _OVERLAPPING_FAMILIES else None
    found = []
    for strides in (patch, overlapping) if overlapping else (patch,):
        rows_apart, columns_apart = frequency_stride or strides[0], time_stride or strides[1]
        rows = (num_mel_bins - patch[0]) // rows_apart + 1
        if rows < 1 or tokens < 1 or tokens % rows:
            continue
        columns = tokens // rows
        fewest = (columns - 1) * columns_apart + patch[1]
        lengths = range(fewest, fewest + columns_apart)
        length = max_length or next((frames for frames in _PUBLISHED_LENGTHS if frames in lengths), fewest)
        # One row of frames may have any number of columns: there a length that nobody has is no way to read it.
        usual = strides == patch or rows > 1 or max_length or time_stride or length in _PUBLISHED_LENGTHS
        reading = _Reading(rows_apart, columns_apart, rows, columns, num_mel_bins, length)
        if length in lengths and usual and reading not in found:
            found.append(reading)
    return found


def to_authors(model: MaskedPatchModel | AudioClassifier) -> dict[str, Tensor]:
    """The inverse of `from_authors`: a state dict that the authors' scripts load strictly.

    Every name has "module." in front, as `torch.nn.DataParallel` saves it; the tensors are copies, on the CPU, float32
    (p_input_fdim and p_input_tdim: int64 of no dimension). The classifiers in `UNUSED` are zeros.

    Raises:
        UserError: an encoder that no authors' checkpoints are of; what their format cannot say: a residual or an
            epsilon that their code does not have, pretraining with overlapping patches or with others than 256 pixels,
            a LayerNorm in the head that theirs lacks or the other way about, a pool that theirs lack, a pretraining
            model of AuM, or one with a decoder.
    """
    arguments = model.encoder.arguments
    family, options = arguments["encoder"], arguments["options"]
    if family not in FORMATS:
        raise UserError(f"{family} has no format of its authors; expected a model of {', '.join(FORMATS)}")
    fshape, tshape = arguments["fshape"], arguments["tshape"]
    names, usual = _FAMILIES[family], SIZES[family]["base"]
    problems = [
        f"{name} is {options[name]} (theirs is always {usual[name]})"
        for name in sorted(usual.keys() - _TOLD)
        if options[name] != usual[name]
    ]
    pretraining = isinstance(model, MaskedPatchModel)
    strides = arguments["frequency_stride"], arguments["time_stride"]
    if pretraining and strides != (fshape, tshape):
        problems.append(f"its strides are {strides[0]} and {strides[1]} (theirs pretrain without overlap)")
    # A single row is in both orders at once.
    if arguments["patch_order"] != "frequency" and model.encoder.grid[0] > 1:
        problems.append(f"its patch_order is {arguments['patch_order']} (theirs is always frequency)")
    if pretraining and fshape * tshape != _PREDICTED_PIXELS:
        problems.append(f"its patches have {fshape * tshape} pixels (theirs pretrain with {_PREDICTED_PIXELS} always)")
    state = model.state_dict()
    if pretraining and "contrastive_head" not in names.heads:
        problems.append("it is a pretraining model (theirs are all classifiers)")
    if isinstance(model, MaskedPatchModel) and model.decoder is not None:
        problems.append(
            "its heads read a decoder, model.encode=visible (theirs read the encoder: export a classifier that was "
            "fine-tuned from it, or pretrain with model.encode=all)"
        )
    if not pretraining and ("head.0.weight" in state) != names.head_norm:
        problems.append(f"its head has {'no' if names.head_norm else 'a'} LayerNorm")
    # Where there is one row of patches, its mean is that of all.
    pools = ("mean", "class", "rows") if model.encoder.grid[0] == 1 else ("mean", "class")
    if isinstance(model, AudioClassifier) and model.pool.name not in pools:
        problems.append(f"its pooling is {model.pool.name} (theirs is mean or class: fine-tune with task.pooling=mean)")
    if isinstance(model, TokenClassifier):
        problems.append("it answers hop by hop (theirs say something of a clip as a whole)")
    if problems:
        raise UserError(f"the model cannot be written in the format of {family}'s authors: {'; '.join(problems)}")

    tensors: dict[str, Tensor] = {}
    if pretraining:
        sizes = (arguments["num_mel_bins"], arguments["max_length"])
        tensors |= {name: torch.tensor(size) for name, size in zip(_SIZE_OF_INPUT, sizes, strict=True)}
    for name, tensor in state.items():
        if name == "encoder.class_tokens":
            tensors |= {token: _copy(row.reshape(1, 1, -1)) for token, row in zip(names.tokens, tensor, strict=True)}
            continue
        theirs = _authors_name(name, family)
        if name == "encoder.positions":
            both = torch.cat([state["encoder.class_positions"], tensor.flatten(0, 1)])
            tensors[theirs] = _copy(both.unsqueeze(0))
        elif name == "encoder.projection.weight":
            tensors[theirs] = _copy(tensor.reshape(-1, 1, fshape, tshape))
        elif name == "encoder.mask_token":
            if pretraining:
                tensors[theirs] = _copy(tensor.reshape(1, 1, -1))
        elif name != "encoder.class_positions":
            tensors[theirs] = _copy(tensor)
    for layer in names.image_classifiers:
        tensors[f"{layer}.weight"] = torch.zeros(_IMAGE_CLASSES, options["hidden_size"])
        tensors[f"{layer}.bias"] = torch.zeros(_IMAGE_CLASSES)
    return {f"module.{name}": tensor.cpu() for name, tensor in tensors.items()}


def some_of(names: Iterable[str]) -> str:
    """Names for a message: all if they are few, else the first and how many there are."""
    names = sorted(name if len(name) <= 100 else f"{name[:100]}..." for name in names)
    return ", ".join(names[:8]) + (f", ... ({len(names)} in all)" if len(names) > 8 else "")


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float32, copy=True).contiguous()


def _look(state: Mapping[str, Tensor], name: str, *shape: str | int) -> Tensor:
    """state[name], of that shape, where a word stands for any size of at least 1; UserError if it is not."""
    if name not in state:
        raise UserError(f"the checkpoint has no tensor {name}")
    sizes = state[name].shape
    if len(sizes) != len(shape) or any(
        size != wanted if isinstance(wanted, int) else size < 1 for size, wanted in zip(sizes, shape, strict=True)
    ):
        expected = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise UserError(f"{name} has shape {tuple(sizes)}; expected ({expected})")
    return state[name]


def _take(state: dict[str, Tensor], name: str, *shape: str | int) -> Tensor:
    tensor = _look(state, name, *shape)
    del state[name]
    return tensor


def _size(state: dict[str, Tensor], name: str) -> int:
    size = _take(state, name).item()
    if not 1 <= size <= 1_000_000:
        raise UserError(f"{name} is {size}; expected a number of mel bins or frames")
    return int(size)


def _shapes(arguments: Mapping[str, Any], classes: int | None, head_norm: bool) -> dict[str, torch.Size]:
    """Of all tensors of a model: of a classifier, or with `classes` None of a pretraining model."""
    try:
        with torch.device("meta"):
            encoder = AudioEncoder(**arguments)
            model = (
                MaskedPatchModel(encoder) if classes is None else AudioClassifier(encoder, classes, "mean", head_norm)
            )
    except ValueError as error:
        raise UserError(str(error)) from error
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _authors_name(name: str, family: str) -> str:
    """The authors' name of a tensor of ours: "encoder.stack.norm.bias" is "v.norm_f.bias" in SSAMBA."""
    names = _FAMILIES[family]
    for ours, theirs in names.heads.items():
        if name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    special = {
        "projection.weight": f"{names.top}patch_embed.proj.weight",
        "projection.bias": f"{names.top}patch_embed.proj.bias",
        "class_positions": names.positions,
        "positions": names.positions,
        "mask_token": "mask_embed",
    }
    name = name.removeprefix("encoder.")
    if name in special:
        return special[name]
    name = name.removeprefix("stack.")
    for ours, theirs in names.renames:
        name = re.sub(ours, theirs, name)
    return names.top + name
