"""State dicts as the authors of SSAMBA, SSAST and AuM publish them: to our modules and back, by the same tables.

Shapes: D width, E inner width, N state size, F and P grid sizes in frequency and time, K pixels of a patch, C classes.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssamba.errors import UserError
from ssamba.models.convert.families import (
    ATTENTION_HEADS,
    FAMILIES,
    FORMATS,
    IMAGE_CLASSES,
    PREDICTED_PIXELS,
    SHAPE_OPTIONS,
    SIZE_OF_INPUT,
    UNUSED,
    authors_name,
)
from ssamba.models.convert.grids import GIVE, readings_of
from ssamba.models.encoder import SIZES, AudioEncoder
from ssamba.models.heads import AudioClassifier, MaskedPatchModel, TokenClassifier


class FromAuthors(NamedTuple):
    """arguments: of `AudioEncoder`; encoder: its state dict; heads: tensors named as in `MaskedPatchModel` or
    `AudioClassifier`, so that {"encoder." + name: encoder's tensors} and heads together are that model's state dict;
    head_norm: of such a classifier; assumed: the names of the arguments that neither the tensors nor the caller gave.
    """

    arguments: dict[str, Any]
    encoder: dict[str, Tensor]
    heads: dict[str, Tensor]
    head_norm: str
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
        num_attention_heads: of an SSAST model, whose tensors do not determine it; if None that of the size of its
            width.
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
    family = next((name for name, row in FAMILIES.items() if row.mark in rest), None)
    if family is None:
        marks = " nor ".join(f"{row.title}'s ({row.mark})" for row in FAMILIES.values())
        raise UserError(f"the checkpoint is neither {marks}; it holds {some_of(state) or 'nothing'}")
    names = FAMILIES[family]
    layers = len({name.removeprefix(names.layers).split(".")[0] for name in rest if name.startswith(names.layers)})
    kernel = _take(rest, authors_name("encoder.projection.weight", family), "D", 1, "fshape", "tshape")
    width, _, fshape, tshape = kernel.shape
    options = {**SIZES[family]["base"], "hidden_size": width, "num_hidden_layers": layers}
    if family != "ssast":
        inner, states = _look(rest, f"{names.layers}0.mixer.A_log", "E", "N").shape
        conv_kernel = _look(rest, f"{names.layers}0.mixer.conv1d.weight", "E", 1, "taps").shape[2]
        options |= {"expand": inner // width, "state_size": states, "conv_kernel": conv_kernel}
        if family == "aum":
            convolves_back, scans_back = (any(end in name for name in rest) for end in (".conv1d_b.", ".A_b_log"))
            options["scan_layout"] = "bi_bi" if convolves_back else "fo_bi" if scans_back else "fo_fo"
    elif num_attention_heads is None and width not in ATTENTION_HEADS:
        raise UserError(
            f"num_attention_heads is not given, and an SSAST checkpoint of width {width} does not tell it (tiny, of "
            f"{SIZES[family]['tiny']['hidden_size']}, has 3; small 6; base 12): give --num-attention-heads"
        )
    else:
        options["num_attention_heads"] = num_attention_heads or ATTENTION_HEADS[width]

    pretraining = not rest.keys().isdisjoint((*SIZE_OF_INPUT, "mask_embed"))
    if pretraining:
        num_mel_bins, max_length = (_size(rest, name) for name in SIZE_OF_INPUT)
        frequency_stride, time_stride = fshape, tshape
    leading = len(names.tokens)
    positions = _take(rest, names.positions, 1, "tokens", width)[0]
    tokens = len(positions) - leading
    stated = {
        "num_attention_heads": num_attention_heads,
        "num_mel_bins": num_mel_bins,
        "max_length": max_length,
        "frequency_stride": frequency_stride,
        "time_stride": time_stride,
    }
    num_mel_bins = num_mel_bins or 128
    own = (frequency_stride or fshape, time_stride or tshape)
    readings = readings_of(family, tokens, (fshape, tshape), num_mel_bins, max_length, frequency_stride, time_stride)
    if not readings:
        rows = (num_mel_bins - fshape) // own[0] + 1
        frames = max_length or (tokens // max(1, rows) - 1) * own[1] + tshape
        raise UserError(
            f"{names.positions} has {tokens} patches; {frames} frames x {num_mel_bins} mel bins in patches of "
            f"{tshape} x {fshape} with strides {own[1]} and {own[0]} make {(frames - tshape) // own[1] + 1} x {rows}"
            + ("" if pretraining else f": {GIVE}")
        )
    # Without strides no overlap is meant, unless the recipes have another reading.
    if len(readings) > 1 or (max_length is None and readings[0][:2] != own):
        raise UserError(
            f"{names.positions} has {tokens} patches, and the tensors do not tell their grid: it may be "
            f"{', or '.join(map(str, readings))}: {GIVE}"
        )
    reading = readings[0]
    rows, columns = reading.rows, reading.columns
    assumed = [] if pretraining else [name for name in stated if stated[name] is None]
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
    classes = None if pretraining else len(_look(rest, authors_name("head.1.weight", family), "C", width))
    for name, shape in _shapes(arguments, classes, names.head_norm).items():
        if name not in tensors:
            tensors[name] = _take(rest, authors_name(name, family), *shape)
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


def to_authors(model: MaskedPatchModel | AudioClassifier) -> dict[str, Tensor]:
    """The inverse of `from_authors`: a state dict that the authors' scripts load strictly.

    Every name has "module." in front, as `torch.nn.DataParallel` saves it; the tensors are copies, on the CPU, float32
    (p_input_fdim and p_input_tdim: int64 of no dimension). The classifiers in `UNUSED` are zeros.

    Raises:
        UserError: an encoder that no authors' checkpoints are of; what their format cannot express: a residual or an
            epsilon that their code does not have, pretraining with overlapping patches or with others than 256 pixels,
            a LayerNorm in the head that theirs lacks or the other way about, a pool that theirs lack, a pretraining
            model of AuM, or one with a decoder.
    """
    arguments = model.encoder.arguments
    family, options = arguments["encoder"], arguments["options"]
    if family not in FORMATS:
        raise UserError(f"{family} has no format of its authors; expected a model of {', '.join(FORMATS)}")
    fshape, tshape = arguments["fshape"], arguments["tshape"]
    names, usual = FAMILIES[family], SIZES[family]["base"]
    problems = [
        f"{name} is {options[name]} (theirs is always {usual[name]})"
        for name in sorted(usual.keys() - SHAPE_OPTIONS)
        if options[name] != usual[name]
    ]
    pretraining = isinstance(model, MaskedPatchModel)
    strides = arguments["frequency_stride"], arguments["time_stride"]
    if pretraining and strides != (fshape, tshape):
        problems.append(f"its strides are {strides[0]} and {strides[1]} (theirs pretrain without overlap)")
    # A single row is in both orders at once.
    if arguments["patch_order"] != "frequency" and model.encoder.grid[0] > 1:
        problems.append(f"its patch_order is {arguments['patch_order']} (theirs is always frequency)")
    if pretraining and fshape * tshape != PREDICTED_PIXELS:
        problems.append(f"its patches have {fshape * tshape} pixels (theirs pretrain with {PREDICTED_PIXELS} always)")
    state = model.state_dict()
    if pretraining and "contrastive_head" not in names.heads:
        problems.append("it is a pretraining model (theirs are all classifiers)")
    if isinstance(model, MaskedPatchModel) and model.decoder is not None:
        problems.append(
            "its heads read a decoder, model.encode=visible (theirs read the encoder: export a classifier that was "
            "fine-tuned from it, or pretrain with model.encode=all)"
        )
    if isinstance(model, AudioClassifier) and model.head_norm != names.head_norm:
        problems.append(f"its head_norm is {model.head_norm} (theirs is always {names.head_norm})")
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
        tensors |= {name: torch.tensor(size) for name, size in zip(SIZE_OF_INPUT, sizes, strict=True)}
    for name, tensor in state.items():
        if name == "encoder.class_tokens":
            tensors |= {token: _copy(row.reshape(1, 1, -1)) for token, row in zip(names.tokens, tensor, strict=True)}
            continue
        theirs = authors_name(name, family)
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
        tensors[f"{layer}.weight"] = torch.zeros(IMAGE_CLASSES, options["hidden_size"])
        tensors[f"{layer}.bias"] = torch.zeros(IMAGE_CLASSES)
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


def _shapes(arguments: Mapping[str, Any], classes: int | None, head_norm: str) -> dict[str, torch.Size]:
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
