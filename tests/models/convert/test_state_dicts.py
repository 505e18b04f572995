"""Weights in the authors' format, to our modules and back; what their format cannot say."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssamba.errors import UserError
from ssamba.models.convert.families import UNUSED
from ssamba.models.convert.state_dicts import from_authors, to_authors
from ssamba.models.decoder import decoder_of
from ssamba.models.encoder import SIZES, AudioEncoder
from ssamba.models.heads import AudioClassifier, MaskedPatchModel
from ssamba.models.pools import POOLINGS

FIXTURES = Path(__file__).parents[2] / "fixtures" / "parity"
KINDS = ("pretrain", "finetuned_shorter", "finetuned_longer")
STRIDES = {("patch16", "finetuned_shorter"): (10, 10), ("frame", "finetuned_shorter"): (128, 1)}

each_patch = pytest.mark.parametrize("patch", ["patch16", "frame"])
each_family = pytest.mark.parametrize("family", ["ssamba", "ssast"])
each_kind = pytest.mark.parametrize("kind", KINDS)


def checkpoint(patch: str, family: str, kind: str) -> dict[str, Tensor]:
    return torch.load(FIXTURES / f"{patch}_{family}.pth", weights_only=True)[kind]


def told(patch: str, family: str, kind: str) -> dict[str, Any]:
    frequency, time = STRIDES.get((patch, kind), (None, None))
    heads = {"patch16": 4, "frame": 2}[patch] if family == "ssast" else None
    return {"num_attention_heads": heads, "frequency_stride": frequency, "time_stride": time}


def make(
    family: str = "ssamba",
    *,
    bins: int = 32,
    frames: int = 64,
    patch: tuple[int, int] = (16, 16),
    stride: tuple[int, int] | None = None,
    **options: Any,
) -> AudioEncoder:
    small = {**SIZES[family]["nano"], "hidden_size": 24, "num_hidden_layers": 2, **options}
    return AudioEncoder(family, small, bins, frames, *patch, *(stride or patch))


@each_patch
@each_family
@each_kind
def test_a_model_made_here_has_all_the_names_shapes_and_types_that_the_originals_load(
    patch: str, family: str, kind: str
) -> None:
    theirs = checkpoint(patch, family, kind)
    encoder = AudioEncoder(**from_authors(theirs, **told(patch, family, kind)).arguments)
    ours = to_authors(MaskedPatchModel(encoder) if kind == "pretrain" else AudioClassifier(encoder, 35, "mean"))
    assert {name: (x.shape, x.dtype) for name, x in ours.items()} == {
        name: (x.shape, x.dtype) for name, x in theirs.items()
    }
    for name, tensor in ours.items():
        assert type(tensor) is Tensor and tensor.is_contiguous() and not tensor.requires_grad
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
        if name.removeprefix("module.") in UNUSED:
            assert not tensor.any()


@each_family
def test_what_is_written_shares_no_memory_with_the_model(family: str) -> None:
    model = MaskedPatchModel(make(family))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for tensor in to_authors(model).values():
        tensor.fill_(7)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_model_of_half_precision_is_written_as_float32() -> None:
    model = AudioClassifier(make(), 3, "mean").to(torch.bfloat16)
    written = to_authors(model)
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}
    assert torch.equal(written["module.mlp_head.1.weight"].bfloat16(), model.head[1].weight)


@each_family
@pytest.mark.parametrize("stride", [(16, 16), (10, 5)])
def test_both_ways_give_the_same_model(family: str, stride: tuple[int, int]) -> None:
    model = AudioClassifier(make(family, stride=stride), 3, "class")
    source = from_authors(to_authors(model), 3, 32, 64, *stride)
    if family == "ssamba":
        assert model.encoder.arguments["options"]["state_size"] == 8  # not the published models' 16
    assert source.arguments == model.encoder.arguments
    found = {f"encoder.{name}": tensor for name, tensor in source.encoder.items()} | source.heads
    own = model.state_dict()
    assert found.keys() == own.keys()
    # A classifier of theirs has no mask token.
    assert not found.pop("encoder.mask_token").any()
    assert all(torch.equal(tensor, own[name]) for name, tensor in found.items())


def pretraining(**changes: Any) -> MaskedPatchModel:
    return MaskedPatchModel(make(**changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"residual": "plain"}, "ssamba's authors: residual is plain (theirs is always doubling)"),
        ({"residual": "plain", "num_hidden_layers": 3}, "residual is plain"),
        ({"layer_norm_eps": 1e-6}, "layer_norm_eps is 1e-06 (theirs is always 1e-05)"),
        ({"family": "ssast", "layer_norm_eps": 1e-5}, "ssast's authors: layer_norm_eps is 1e-05"),
        ({"stride": (16, 8)}, "strides are 16 and 8 (theirs pretrain without overlap)"),
        ({"patch": (8, 8)}, "patches have 64 pixels (theirs pretrain with 256 always)"),
        ({"patch": (8, 8), "stride": (8, 4), "residual": "plain"}, "doubling); its strides are 8 and 4"),
    ],
)
def test_what_their_format_cannot_say(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        to_authors(pretraining(**changes))
    assert said in str(caught.value)


def test_their_heads_read_no_decoder() -> None:
    encoder = make()
    with pytest.raises(UserError, match="ssamba's authors: its heads read a decoder, model.encode=visible") as caught:
        to_authors(MaskedPatchModel(encoder, decoder=decoder_of(encoder)))
    assert str(caught.value).count(";") == 0


def test_a_classifier_may_have_any_patch_but_needs_its_norm() -> None:
    model = AudioClassifier(make(patch=(8, 8), stride=(8, 4)), 3, "mean")
    assert to_authors(model)["module.v.patch_embed.proj.weight"].shape == (24, 1, 8, 8)
    for norm in ("batch", "none"):
        with pytest.raises(UserError, match=f"its head_norm is {norm} \\(theirs is always layer\\)"):
            to_authors(AudioClassifier(make(), 3, "mean", norm))
    for norm in ("batch", "layer"):
        with pytest.raises(UserError, match=f"its head_norm is {norm} \\(theirs is always none\\)"):
            to_authors(AudioClassifier(make("aum"), 3, "class", norm))


def test_a_classifier_needs_one_of_their_pools() -> None:
    for pooling in POOLINGS:
        model = AudioClassifier(make(), 3, pooling)  # 2 rows of patches
        if pooling in ("mean", "class"):
            assert to_authors(model)["module.mlp_head.1.weight"].shape == (3, 24)
            continue
        with pytest.raises(
            UserError, match=rf"its pooling is {pooling} \(theirs is mean or class: fine-tune with task"
        ):
            to_authors(model)
    # Of one row the mean is that of all tokens.
    row, mean = (AudioClassifier(make(patch=(32, 2)), 3, pooling) for pooling in ("rows", "mean"))
    mean.load_state_dict(row.state_dict())
    for name, tensor in to_authors(row).items():
        assert torch.equal(tensor, to_authors(mean)[name])
    with pytest.raises(UserError, match="its pooling is statistics"):
        to_authors(AudioClassifier(make(patch=(32, 2)), 3, "statistics"))


@each_family
@pytest.mark.parametrize("kind", ["pretrain", "finetuned_shorter"])
def test_a_tensor_of_any_other_shape_is_an_error_that_names_it(family: str, kind: str) -> None:
    state = checkpoint("frame", family, kind)
    for name, tensor in state.items():
        short = name.removeprefix("module.")
        if short in UNUSED or any(f".{part}.1." in name for part in ("layers", "blocks")):
            continue
        with pytest.raises(UserError):
            larger = torch.zeros([size + 1 for size in tensor.shape] or [2])
            from_authors({**state, name: larger}, **told("frame", family, kind))
        with pytest.raises(UserError, match=rf"^{re.escape(short)} has shape \(1,.*expected \("):
            from_authors({**state, name: tensor.unsqueeze(0)}, **told("frame", family, kind))


@pytest.mark.parametrize("size", [float("nan"), float("inf"), 0, -128, 10**9])
def test_a_size_of_the_input_that_is_none(size: float) -> None:
    state = checkpoint("frame", "ssamba", "pretrain") | {"module.p_input_tdim": torch.tensor(size)}
    with pytest.raises(UserError, match="p_input_tdim is .*expected a number of mel bins or frames"):
        from_authors(state)


@pytest.mark.parametrize("kind", ["pretrain", "finetuned_shorter"])
def test_no_tensor_of_a_head_or_of_the_input_size_is_optional(kind: str) -> None:
    state = checkpoint("frame", "ssamba", kind)
    heads = ("p_input_", "mask_embed", "cpredlayer.", "gpredlayer.", "mlp_head.")
    names = [name for name in state if name.removeprefix("module.").startswith(heads)]
    assert len(names) == (11 if kind == "pretrain" else 4)
    for name in names:
        rest = {key: tensor for key, tensor in state.items() if key != name}
        with pytest.raises(UserError, match=f"has no tensor {name.removeprefix('module.')}"):
            from_authors(rest, **told("frame", "ssamba", kind))


def test_the_same_tensor_twice_is_an_error() -> None:
    state = checkpoint("frame", "ssamba", "pretrain")
    with pytest.raises(UserError, match="twice, with and without module"):
        from_authors(state | {"mask_embed": torch.zeros(1, 1, 24)})


def test_many_unknown_tensors_are_not_all_listed() -> None:
    state = checkpoint("frame", "ssamba", "pretrain") | {f"module.extra.{n}": torch.zeros(1) for n in range(500)}
    with pytest.raises(UserError, match=r"no known use: extra\.0, .*\.\.\. \(500 in all\)") as caught:
        from_authors(state)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(("width", "heads"), [(192, 3), (384, 6), (768, 12)])
def test_the_attention_heads_of_the_published_sizes_are_known(width: int, heads: int) -> None:
    model = AudioClassifier(make("ssast", hidden_size=width, num_attention_heads=heads), 2, "mean")
    found = from_authors(to_authors(model), num_mel_bins=32, max_length=64).arguments
    assert found == model.encoder.arguments
    assert from_authors(to_authors(model), 1, 32, 64).arguments["options"]["num_attention_heads"] == 1


# Patches, strides and clip lengths with which the originals publish fine-tuned models.
PUBLISHED = [
    *(
        (family, (16, 16), strides, frames)
        for family in ("ssamba", "ssast")
        for strides in ((10, 10), (16, 16))
        for frames in (128, 512, 1024)
    ),
    *(("ssast", (128, 2), (128, step), frames) for step in (1, 2) for frames in (128, 512, 1024)),
    *(("aum", (16, 16), (16, 16), frames) for frames in (128, 512, 1024)),
]


@pytest.mark.parametrize(("family", "patch", "strides", "frames"), PUBLISHED)
def test_a_published_grid_is_read_as_it_is_or_the_readings_are_told(
    family: str, patch: tuple[int, int], strides: tuple[int, int], frames: int
) -> None:
    encoder = make(family, bins=128, frames=frames, patch=patch, stride=strides)
    theirs = to_authors(AudioClassifier(encoder, 2, "mean", "none" if family == "aum" else "layer"))
    heads = encoder.arguments["options"].get("num_attention_heads")
    # With the strides of the recipe everything else follows, the length of its clips as well.
    found = from_authors(theirs, heads, frequency_stride=strides[0], time_stride=strides[1])
    assert found.arguments == encoder.arguments
    assert set(found.assumed) == {"num_mel_bins", "max_length"}
    try:
        found = from_authors(theirs, heads)
    except UserError as error:
        rows, columns = encoder.grid
        way = f"{rows} x {columns} patches of 128 mel bins x {frames} frames with --frequency-stride {strides[0]} "
        assert way + f"--time-stride {strides[1]}" in str(error)
        assert strides != patch or " frames, or " in str(error)
    else:
        assert found.arguments == encoder.arguments and strides == patch
        assert set(found.assumed) == {"num_mel_bins", "max_length", "frequency_stride", "time_stride"}


def test_a_grid_of_two_readings_lists_both_and_any_option_decides() -> None:
    encoder = make("ssast", bins=128, frames=128, stride=(10, 10))  # Speech Commands
    theirs = to_authors(AudioClassifier(encoder, 2, "mean"))
    heads = encoder.arguments["options"]["num_attention_heads"]
    with pytest.raises(UserError, match="144 patches") as caught:
        from_authors(theirs, heads)
    other = "8 x 18 patches of 128 mel bins x 288 frames with --frequency-stride 16 --time-stride 16, or "
    assert other in str(caught.value)
    assert from_authors(theirs, heads, max_length=128).arguments == encoder.arguments
    found = from_authors(theirs, heads, frequency_stride=16, time_stride=16)
    assert (found.arguments["max_length"], found.encoder["positions"].shape[:2]) == (288, (8, 18))


def test_a_grid_that_does_not_fit_names_the_options() -> None:
    with pytest.raises(UserError, match="give --max-length, --num-mel-bins, --time-stride or --frequency-stride"):
        from_authors(checkpoint("patch16", "ssamba", "finetuned_shorter"))
    state = checkpoint("frame", "ssamba", "pretrain") | {"module.p_input_tdim": torch.tensor(90)}
    with pytest.raises(UserError, match="48 patches; 90 frames") as caught:
        from_authors(state)
    assert "give" not in str(caught.value)
