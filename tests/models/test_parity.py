"""The authors' outputs, losses and gradients, reproduced from checkpoints in their format (tests/fixtures/parity)."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.errors import UserError
from ssamba.losses import info_nce, reconstruction_mse
from ssamba.models.convert.state_dicts import FromAuthors, from_authors
from ssamba.models.encoder import AudioEncoder
from ssamba.models.heads import AudioClassifier, MaskedPatchModel
from ssamba.models.patches import fit_positions

FIXTURES = Path(__file__).parent.parent / "fixtures" / "parity"
PATCHES = ("patch16", "frame")
BACKENDS = ("reference", "torch-chunked", "cpu")
# An encoder without a scan has nothing to choose between.
MODELS = [*(("ssamba", backend) for backend in BACKENDS), ("ssast", "auto")]
LAYOUTS = ("fo_fo", "fo_bi", "bi_bi")
HEADS = {"patch16": 4, "frame": 2}

each_model = pytest.mark.parametrize(("family", "backend"), MODELS)
each_patch = pytest.mark.parametrize("patch", PATCHES)
each_family = pytest.mark.parametrize("family", ["ssamba", "ssast"])
each_layout = pytest.mark.parametrize("layout", LAYOUTS)
each_source = pytest.mark.parametrize("source", ["frame_ssamba", "frame_ssast", *(f"aum_{name}" for name in LAYOUTS)])


def checkpoint(patch: str, family: str, kind: str = "pretrain") -> dict[str, Tensor]:
    return torch.load(FIXTURES / f"{patch}_{family}.pth", weights_only=True)[kind]


def checkpoint_of(source: str) -> dict[str, Tensor]:
    """Of a name in `each_source`."""
    held = torch.load(FIXTURES / f"{source}.pth", weights_only=True)
    return held if source.startswith("aum") else held["pretrain"]


def expected(patch: str, family: str, kind: str = "pretrain") -> dict[str, Any]:
    return expected_of(f"{patch}_{family}_{kind}")


def expected_of(source: str) -> dict[str, Any]:
    with np.load(FIXTURES / f"{source}.npz") as file:
        return dict(file)


def translated(patch: str, family: str, kind: str = "pretrain", **arguments: Any) -> FromAuthors:
    return from_authors(checkpoint(patch, family, kind), num_attention_heads=HEADS[patch], **arguments)


def load(model: torch.nn.Module, source: FromAuthors) -> torch.nn.Module:
    model.load_state_dict({f"encoder.{name}": tensor for name, tensor in source.encoder.items()} | source.heads)
    return model.eval()


def assert_close_to_scale(ours: Tensor, theirs: np.ndarray, tolerance: float = 1e-4) -> None:
    assert ours.shape == theirs.shape
    error = np.abs(ours.detach().numpy() - theirs).max()
    assert error <= tolerance * np.abs(theirs).max()


@functools.cache
def pretraining(patch: str, family: str, backend: str) -> dict[str, Any]:
    """One forward and backward pass of our model on the fixture's input; predictions in the order of `mask_index`."""
    source, theirs = translated(patch, family), expected(patch, family)
    model = load(MaskedPatchModel(AudioEncoder(**source.arguments, scan_backend=backend)), source)
    index = torch.from_numpy(theirs["mask_index"])
    log_mel = torch.from_numpy(theirs["input"])
    mask = torch.zeros(len(index), model.encoder.positions[..., 0].numel(), dtype=torch.bool).scatter_(1, index, True)
    with torch.no_grad():
        encoded = model.encoder(log_mel, mask)
    prediction = model(log_mel, mask)
    contrast = info_nce(prediction.contrastive, prediction.target)
    mse = reconstruction_mse(prediction.reconstruction, prediction.target)
    (contrast.loss + 10 * mse).backward()
    # Ours come in ascending order of the patches: the place of mask_index[b, j] among its clip's is its rank.
    rank = index.argsort(1).argsort(1).unsqueeze(-1).expand_as(prediction.contrastive)
    return {
        "encoder_output": torch.cat([encoded.class_tokens, encoded.tokens], 1),
        "contrastive_prediction": prediction.contrastive.gather(1, rank),
        "reconstruction": prediction.reconstruction.gather(1, rank),
        "nce": contrast.loss.item(),
        "mse": mse.item(),
        "accuracy": contrast.accuracy.item(),
        "gradients": {name: parameter.grad for name, parameter in model.named_parameters()},
    }


def their_norms(state: dict[str, Tensor], gradients: dict[str, Tensor], **arguments: Any) -> dict[str, float]:
    """Norms of our gradients by the authors' names: a checkpoint whose tensors hold their own numbers shows which
    elements of ours each of theirs became, however tensors are split, joined or reshaped."""
    numbered = {
        name: torch.full_like(tensor, number) if tensor.is_floating_point() else tensor
        for number, (name, tensor) in enumerate(state.items(), 1)
    }
    source = from_authors(numbered, **arguments)
    origin = {f"encoder.{name}": tensor for name, tensor in source.encoder.items()} | source.heads
    assert origin.keys() == gradients.keys()
    squares = torch.zeros(len(state) + 1, dtype=torch.float64)
    for name, number in origin.items():
        squares.index_add_(0, number.flatten().long(), gradients[name].double().square().flatten())
    return {name.removeprefix("module."): squares[number].sqrt().item() for number, name in enumerate(state, 1)}


@each_patch
@each_model
@pytest.mark.parametrize("output", ["encoder_output", "contrastive_prediction", "reconstruction"])
def test_pretraining_outputs_equal_the_originals(patch: str, family: str, backend: str, output: str) -> None:
    assert_close_to_scale(pretraining(patch, family, backend)[output], expected(patch, family)[output])


@each_patch
@each_model
def test_pretraining_losses_and_accuracy_equal_the_originals(patch: str, family: str, backend: str) -> None:
    ours, theirs = pretraining(patch, family, backend), expected(patch, family)
    for loss in ("nce", "mse"):
        assert ours[loss] == pytest.approx(float(theirs[loss]), rel=1e-5)
    assert ours["accuracy"] == pytest.approx(float(theirs["accuracy"]), abs=1e-6)


@each_patch
@each_model
def test_gradient_norms_equal_the_originals(patch: str, family: str, backend: str) -> None:
    gradients = pretraining(patch, family, backend)["gradients"]
    ours = their_norms(checkpoint(patch, family), gradients, num_attention_heads=HEADS[patch])
    theirs = expected(patch, family)
    wanted = dict(zip(theirs["grad_names"].tolist(), theirs["grad_norms"].tolist(), strict=True))
    assert wanted.keys() <= ours.keys()
    # The key bias of attention has no true gradient: what the originals report there is rounding.
    rounding = 1e-6 * max(wanted.values())
    assert {name: ours[name] for name in wanted} == pytest.approx(wanted, rel=1e-3, abs=rounding)
    assert sum(norm for name, norm in ours.items() if name not in wanted) == 0


FINETUNED = [("patch16", "finetuned_shorter"), ("patch16", "finetuned_longer"), ("frame", "finetuned_shorter")]


@pytest.mark.parametrize(("patch", "kind"), FINETUNED)
@each_model
@pytest.mark.parametrize(("pooling", "output"), [("mean", "logits_avgtok"), ("class", "logits_cls")])
def test_finetuned_logits_equal_the_originals(
    patch: str, kind: str, family: str, backend: str, pooling: str, output: str
) -> None:
    theirs = expected(patch, family, kind)
    strides = {"frequency_stride": int(theirs["fstride"]), "time_stride": int(theirs["tstride"])}
    source = translated(patch, family, kind, max_length=theirs["input"].shape[1], **strides)
    model = load(AudioClassifier(AudioEncoder(**source.arguments, scan_backend=backend), 35, pooling), source)
    with torch.no_grad():
        assert_close_to_scale(model(torch.from_numpy(theirs["input"])), theirs[output])


@pytest.mark.parametrize(
    ("patch", "kind", "strides", "grid"),
    [
        ("patch16", "finetuned_shorter", (10, 10), (12, 9)),
        ("patch16", "finetuned_longer", (16, 16), (8, 28)),
        ("frame", "finetuned_shorter", (128, 1), (1, 99)),
        ("frame", "finetuned_longer", (128, 2), (1, 176)),
    ],
)
@each_family
def test_pretraining_positions_fitted_to_the_finetuned_grid_are_the_originals(
    patch: str, kind: str, strides: tuple[int, int], grid: tuple[int, int], family: str
) -> None:
    finetuned = translated(patch, family, kind, frequency_stride=strides[0], time_stride=strides[1]).encoder
    assert finetuned["positions"].shape[:2] == grid
    fitted = fit_positions(translated(patch, family).encoder["positions"], *grid)
    torch.testing.assert_close(fitted, finetuned["positions"], rtol=1e-5, atol=1e-6)


@functools.cache
def classification(layout: str, backend: str) -> dict[str, Any]:
    """One forward and backward pass of our AuM on the fixture's input."""
    source, theirs = from_authors(checkpoint_of(f"aum_{layout}")), expected_of(f"aum_{layout}")
    encoder = AudioEncoder(**source.arguments, scan_backend=backend)
    model = load(AudioClassifier(encoder, 20, "class", source.head_norm), source)
    assert isinstance(model, AudioClassifier)
    log_mel = torch.from_numpy(theirs["input"])
    with torch.no_grad():
        features = model.pool(model.encoder(log_mel))
    logits = model(log_mel)
    F.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits)).backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    unused = found.pop("encoder.mask_token")
    assert unused is None
    return {"features": features, "logits": logits, "gradients": {**found, "encoder.mask_token": torch.zeros(32)}}


@each_layout
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("output", ["features", "logits"])
def test_aums_outputs_equal_the_originals(layout: str, backend: str, output: str) -> None:
    assert_close_to_scale(classification(layout, backend)[output], expected_of(f"aum_{layout}")[output])


@each_layout
@pytest.mark.parametrize("backend", BACKENDS)
def test_aums_gradient_norms_equal_the_originals(layout: str, backend: str) -> None:
    ours = their_norms(checkpoint_of(f"aum_{layout}"), classification(layout, backend)["gradients"])
    theirs = expected_of(f"aum_{layout}")
    wanted = dict(zip(theirs["grad_names"].tolist(), theirs["grad_norms"].tolist(), strict=True))
    assert ours == pytest.approx(wanted, rel=1e-3)


@each_layout
def test_aums_sizes_and_layout_are_read_off_its_tensors(layout: str) -> None:
    source = from_authors(checkpoint_of(f"aum_{layout}"))
    assert source.arguments == {
        "encoder": "aum",
        "patch_order": "frequency",
        "num_mel_bins": 128,
        "max_length": 128,
        "fshape": 16,
        "tshape": 16,
        "frequency_stride": 16,
        "time_stride": 16,
        "options": {
            "hidden_size": 32,
            "num_hidden_layers": 3,
            "state_size": 16,
            "expand": 2,
            "conv_kernel": 4,
            "scan_layout": layout,
            "rms_norm_eps": 1e-5,
        },
    }
    assert sorted(source.heads) == ["head.1.bias", "head.1.weight"] and source.head_norm == "none"
    assert torch.equal(source.encoder["mask_token"], torch.zeros(32))


@each_source
def test_translation_needs_no_module_prefix_and_shares_no_memory(source: str) -> None:
    state = checkpoint_of(source)
    bare = from_authors({name.removeprefix("module."): x.half() for name, x in state.items()}, num_attention_heads=2)
    prefixed = from_authors(state, num_attention_heads=2)
    assert bare.arguments == prefixed.arguments
    before = {name: tensor.clone() for name, tensor in prefixed.encoder.items()}
    for tensor in state.values():
        tensor.zero_()
    for name, tensor in before.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(bare.encoder[name], tensor, rtol=1e-3, atol=1e-3)
        assert torch.equal(prefixed.encoder[name], tensor)


def test_a_finetuned_checkpoint_gets_a_mask_token_of_zeros_and_the_shortest_clip_of_its_grid() -> None:
    source = translated("patch16", "ssamba", "finetuned_shorter", frequency_stride=10, time_stride=10)
    assert source.arguments["max_length"] == 96
    assert torch.equal(source.encoder["mask_token"], torch.zeros(32))
    assert sorted(source.heads) == ["head.0.bias", "head.0.weight", "head.1.bias", "head.1.weight"]


@each_source
def test_an_unknown_tensor_is_an_error_that_names_it(source: str) -> None:
    state = checkpoint_of(source) | {"module.v.surprise": torch.zeros(3)}
    with pytest.raises(UserError, match=r"v\.surprise"):
        from_authors(state, num_attention_heads=2)


@each_source
def test_every_tensor_but_the_known_unused_ones_is_needed_and_named_when_missing(source: str) -> None:
    state = checkpoint_of(source)
    optional = ("v.head", "cpredlayer", "gpredlayer", "p_input_", "head.")
    for name in state:
        short = name.removeprefix("module.")
        if short.startswith(optional):
            continue
        rest = {key: tensor for key, tensor in state.items() if key != name}
        with pytest.raises(UserError, match=short.replace(".", r"\.")):
            from_authors(rest, num_attention_heads=2)


def test_a_tensor_of_the_wrong_shape_is_an_error_that_names_it() -> None:
    state = checkpoint("frame", "ssamba") | {"module.v.layers.1.mixer.D_b": torch.zeros(47)}
    with pytest.raises(UserError, match=r"v\.layers\.1\.mixer\.D_b.*\(47,\).*\(48,\)"):
        from_authors(state)
    state = checkpoint_of("aum_fo_bi") | {"module.layers.1.mixer.A_b_log": torch.zeros(64, 8)}
    with pytest.raises(UserError, match=r"^layers\.1\.mixer\.A_b_log.*\(64, 8\).*\(64, 16\)"):
        from_authors(state)


def test_what_cannot_be_read_off_the_tensors_is_asked_for() -> None:
    with pytest.raises(UserError, match="num_attention_heads"):
        from_authors(checkpoint("frame", "ssast"))
    with pytest.raises(UserError, match="24 is not a multiple of 5"):
        from_authors(checkpoint("frame", "ssast"), num_attention_heads=5)
    with pytest.raises(UserError, match="108 patches"):
        from_authors(checkpoint("patch16", "ssamba", "finetuned_shorter"))  # made with strides of 10
    with pytest.raises(UserError, match="108 patches; 50 frames"):
        from_authors(checkpoint("patch16", "ssamba", "finetuned_shorter"), max_length=50)
    # One reading of the published recipes is left, and it is the right one.
    read = from_authors(checkpoint("patch16", "ssamba", "finetuned_shorter"), max_length=100)
    assert (read.arguments["frequency_stride"], read.arguments["time_stride"]) == (10, 10)
    assert {"frequency_stride", "time_stride"} <= set(read.assumed)


def test_another_models_checkpoint_is_refused() -> None:
    with pytest.raises(UserError, match=r"neither SSAMBA.*AuM.*holds encoder\.weight"):
        from_authors({"encoder.weight": torch.zeros(1)})
    with pytest.raises(UserError, match="nothing"):
        from_authors({})
