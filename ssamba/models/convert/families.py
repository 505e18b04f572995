"""The tables of the authors' formats: SSAMBA, SSAST and AuM, what their tensors are called, and what they share."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from ssamba.models.encoder import SIZES


class Family(NamedTuple):
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
    head_norm: str
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
FAMILIES = {
    "ssamba": Family(
        "SSAMBA",
        "v.layers.0.mixer.A_b_log",
        "v.",
        "v.layers.",
        ("v.cls_token",),
        "v.pos_embed",
        _HEADS,
        "layer",
        ("v.head",),
        _MIXER,
    ),
    "ssast": Family(
        "SSAST",
        "v.blocks.0.attn.qkv.weight",
        "v.",
        "v.blocks.",
        ("v.cls_token", "v.dist_token"),
        "v.pos_embed",
        _HEADS,
        "layer",
        ("v.head", "v.head_dist"),
        (
            (r"^layers\.", "blocks."),
            (r"\.(qkv|proj)\.", r".attn.\1."),
            (r"\.(fc1|fc2)\.", r".mlp.\1."),
        ),
    ),
    # A classifier, with a linear layer alone on its class token.
    "aum": Family(
        "AuM",
        "layers.0.mixer.A_log",
        "",
        "layers.",
        ("cls_token",),
        "pos_embed.pos_embed",
        {"head.1": "head"},
        "none",
        (),
        _MIXER,
    ),
}
FORMATS = tuple(FAMILIES)
"""Encoders that there are checkpoints of by their authors."""

SIZE_OF_INPUT = ("p_input_fdim", "p_input_tdim")
PREDICTED_PIXELS = 256  # of the originals' pretraining heads, whatever the patch
IMAGE_CLASSES = 1000
# Every tensor that is in checkpoints and that nothing reads.
UNUSED = tuple(f"{layer}.{kind}" for layer in FAMILIES["ssast"].image_classifiers for kind in ("weight", "bias"))

# Options that the shapes of the tensors determine; the rest has its family's one value, which the originals' code
# fixes. The number of attention heads is the caller's to know.
SHAPE_OPTIONS = {
    "hidden_size",
    "num_hidden_layers",
    "state_size",
    "expand",
    "conv_kernel",
    "scan_layout",
    "num_attention_heads",
}
ATTENTION_HEADS = {size["hidden_size"]: size["num_attention_heads"] for size in SIZES["ssast"].values()}


def authors_name(name: str, family: str) -> str:
    """The authors' name of a tensor of ours: "encoder.stack.norm.bias" is "v.norm_f.bias" in SSAMBA."""
    names = FAMILIES[family]
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
