"""State dicts as the authors of SSAMBA, SSAST and AuM publish them, renamed to this package's modules.

Shapes: D width, E inner width, N state size, F and P grid sizes in frequency and time, K pixels of a patch, C classes.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssamba.errors import UserError
from ssamba.models.encoder import SIZES, AudioEncoder

# Classifiers of the image models that the originals are built on: in every checkpoint, never called.
UNUSED = ("v.head.weight", "v.head.bias", "v.head_dist.weight", "v.head_dist.bias")

_MASKED_PATCH_HEADS = {"contrastive_head": "cpredlayer", "reconstruction_head": "gpredlayer", "head": "mlp_head"}
_HEADS = {"ssamba": _MASKED_PATCH_HEADS, "ssast": _MASKED_PATCH_HEADS, "aum": {"head.1": "head"}}
_SIZE_OF_INPUT = ("p_input_fdim", "p_input_tdim")

_MIXER_RENAMES = (
    (r"^norm\.", "norm_f."),
    (r"\.(ahead|back)\.conv\.", r".\1.conv1d."),
    (r"\.back\.A_log$", ".A_b_log"),
    (r"\.back\.(\w+)", r".\1_b"),
    (r"\.ahead\.", "."),
)
# (ours, theirs): in turn, on the names of `AudioEncoder`'s tensors below "stack."; "back" becomes a suffix "_b".
_RENAMES = {
    "ssamba": _MIXER_RENAMES,
    "aum": _MIXER_RENAMES,
    "ssast": (
        (r"^layers\.", "blocks."),
        (r"\.(qkv|proj)\.", r".attn.\1."),
        (r"\.(fc1|fc2)\.", r".mlp.\1."),
    ),
}


class FromAuthors(NamedTuple):
    """arguments: of `AudioEncoder`; encoder: its state dict; heads: tensors named as in `MaskedPatchModel` or
    `AudioClassifier`, so that {"encoder." + name: encoder's tensors} and heads together are that model's state dict;
    head_norm: of such a classifier."""

    arguments: dict[str, Any]
    encoder: dict[str, Tensor]
    heads: dict[str, Tensor]
    head_norm: bool


def from_authors(state: Mapping[str, Tensor], num_attention_heads: int | None = None, num_mel_bins: int = 128,
                 max_length: int | None = None, frequency_stride: int | None = None,
                 time_stride: int | None = None) -> FromAuthors:  # fmt: skip
    """Translate a pretraining or fine-tuned checkpoint of SSAMBA or SSAST, or a classifier of AuM, of any scan layout.

    The family, its sizes and the patch are read off the tensors, and the size of the clips off a pretraining
    checkpoint. Every tensor is used, or is one of `UNUSED`. A classifier has no mask token: ours is zero.

    Args:
        state: tensors by the authors' names, with or without "module." in front (v.pos_embed (1, 1 or 2 + F * P, D),
            v.patch_embed.proj.weight (D, 1, fshape, tshape), v.layers.0.mixer.A_b_log (E, N), mlp_head.1.weight (C, D),
            cpredlayer.2.weight (K, D), ...; AuM: pos_embed.pos_embed (1, 1 + F * P, D), head.weight (C, D), ...).
        num_attention_heads: of an SSAST model, whose tensors do not tell it.
        num_mel_bins, frequency_stride, time_stride: of a classifier; the strides are the patch's own sides if None.
            Pretraining is always without overlap.
        max_length: frames of a classifier's clips; if None the fewest that fill its positional grid.

    Raises:
        UserError: another model's checkpoint, a tensor that is missing, unknown or of the wrong shape, or arguments
            that do not fit the tensors.
    """
    rest = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if "v.layers.0.mixer.A_b_log" in rest:
        family, stem, leading = "ssamba", "v.layers.", ["v.cls_token"]
    elif "v.blocks.0.attn.qkv.weight" in rest:
        family, stem, leading = "ssast", "v.blocks.", ["v.cls_token", "v.dist_token"]
    elif "layers.0.mixer.A_log" in rest:
        family, stem, leading = "aum", "layers.", ["cls_token"]
    else:
        raise UserError(
            "the checkpoint is neither SSAMBA's (v.layers.0.mixer.A_b_log) nor SSAST's (v.blocks.0.attn.qkv.weight) "
            f"nor AuM's (layers.0.mixer.A_log); it holds {', '.join(sorted(state)[:5]) or 'nothing'}"
        )
    layers = len({name.removeprefix(stem).split(".")[0] for name in rest if name.startswith(stem)})
    projection, grid = (_authors_name(name, family) for name in ("projection.weight", "positions"))
    kernel = _take(rest, projection)
    if kernel.ndim != 4 or kernel.shape[1] != 1:
        raise UserError(f"{projection} has shape {tuple(kernel.shape)}; expected (D, 1, fshape, tshape)")
    width, _, fshape, tshape = kernel.shape
    options = {**SIZES[family]["base"], "hidden_size": width, "num_hidden_layers": layers}
    if family in ("ssamba", "aum"):
        inner, states = (_look(rest, stem + "0.mixer.A_log").shape[at] for at in (0, -1))
        conv_kernel = _look(rest, stem + "0.mixer.conv1d.weight").shape[-1]
        options |= {"expand": inner // width, "state_size": states, "conv_kernel": conv_kernel}
        if family == "aum":
            convolves_back, scans_back = (any(end in name for name in rest) for end in (".conv1d_b.", ".A_b_log"))
            options["scan_layout"] = "bi_bi" if convolves_back else "fo_bi" if scans_back else "fo_fo"
    elif num_attention_heads is None:
        raise UserError(
            "num_attention_heads is not given; an SSAST checkpoint does not tell it (tiny 3, small 6, base 12)"
        )
    else:
        options["num_attention_heads"] = num_attention_heads

    pretraining = _SIZE_OF_INPUT[0] in rest
    if pretraining:
        num_mel_bins, max_length = (int(_take(rest, name)) for name in _SIZE_OF_INPUT)
        frequency_stride, time_stride = fshape, tshape
    frequency_stride, time_stride = frequency_stride or fshape, time_stride or tshape
    positions = _take(rest, grid).squeeze(0)
    tokens = len(positions) - len(leading)
    rows = (num_mel_bins - fshape) // frequency_stride + 1
    if max_length is None:
        max_length = (tokens // max(1, rows) - 1) * time_stride + tshape
    columns = (max_length - tshape) // time_stride + 1
    if min(rows, columns) < 1 or rows * columns != tokens:
        raise UserError(
            f"{grid} has {tokens} patches; {max_length} frames x {num_mel_bins} mel bins in patches of {tshape} x "
            f"{fshape} with strides {time_stride} and {frequency_stride} make {columns} x {rows}"
        )

    arguments = {
        "encoder": family, "options": options, "num_mel_bins": num_mel_bins, "max_length": max_length,
        "fshape": fshape, "tshape": tshape, "frequency_stride": frequency_stride, "time_stride": time_stride,
    }  # fmt: skip
    encoder = {
        "projection.weight": kernel.flatten(1),
        "class_tokens": torch.cat([_take(rest, name).flatten(0, -2) for name in leading]),
        "class_positions": positions[: len(leading)],
        "positions": positions[len(leading) :].reshape(rows, columns, -1),
        "mask_token": _take(rest, "mask_embed").flatten() if pretraining else torch.zeros(width),
    }
    wanted = _shapes(arguments)
    for name in wanted.keys() - encoder.keys():
        encoder[name] = _take(rest, _authors_name(name, family))
    for name, shape in wanted.items():
        if encoder[name].shape != shape:
            raise UserError(
                f"{_authors_name(name, family)} (our {name}) has shape {tuple(encoder[name].shape)}; "
                f"expected {tuple(shape)}"
            )
    heads = {
        name.replace(theirs, ours, 1): rest.pop(name)
        for ours, theirs in _HEADS[family].items() for name in sorted(rest) if name.startswith(theirs + ".")
    }  # fmt: skip
    if unknown := sorted(rest.keys() - set(UNUSED)):
        raise UserError(f"the {family} checkpoint has tensors of no known use: {', '.join(unknown)}")
    return FromAuthors(
        arguments, {name: _copy(encoder[name]) for name in wanted}, {n: _copy(t) for n, t in heads.items()},
        head_norm=family != "aum",
    )  # fmt: skip


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to(torch.float32, copy=True).contiguous()


def _look(state: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in state:
        raise UserError(f"the checkpoint has no tensor {name}")
    return state[name]


def _take(state: dict[str, Tensor], name: str) -> Tensor:
    tensor = _look(state, name)
    del state[name]
    return tensor


def _shapes(arguments: Mapping[str, Any]) -> dict[str, torch.Size]:
    try:
        with torch.device("meta"):
            return {name: tensor.shape for name, tensor in AudioEncoder(**arguments).state_dict().items()}
    except ValueError as error:
        raise UserError(str(error)) from error


def _authors_name(name: str, family: str) -> str:
    """The authors' name of a tensor of `AudioEncoder`: "stack.norm.weight" is "v.norm_f.weight" in SSAMBA."""
    top, positions = ("", "pos_embed.pos_embed") if family == "aum" else ("v.", "v.pos_embed")
    special = {
        "projection.weight": f"{top}patch_embed.proj.weight", "projection.bias": f"{top}patch_embed.proj.bias",
        "class_tokens": f"{top}cls_token", "class_positions": positions, "positions": positions,
        "mask_token": "mask_embed",
    }  # fmt: skip
    if name in special:
        return special[name]
    name = name.removeprefix("stack.")
    for ours, theirs in _RENAMES[family]:
        name = re.sub(ours, theirs, name)
    return top + name
