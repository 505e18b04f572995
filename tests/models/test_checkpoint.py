"""A model as a folder: what comes back, what it says of itself, and which mismatches are told."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ssamba.errors import UserError
from ssamba.models.checkpoint import build_classifier, load_model, load_pretrained_encoder, save_model
from ssamba.models.decoder import decoder_of
from ssamba.models.encoder import SIZES, AudioEncoder
from ssamba.models.heads import AudioClassifier, MaskedPatchModel
from ssamba.models.patches import fit_positions
from ssamba.models.pools import POOLINGS
from ssamba.models.settings import AudioSettings, ClassifierSettings, model_folder, read_config
from ssamba.models.tensor_files import write_safetensors

SMALL: dict[str, dict[str, Any]] = {
    "ssamba": {**SIZES["ssamba"]["nano"], "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "ssast": {**SIZES["ssast"]["nano"], "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    "aum": {**SIZES["aum"]["nano"], "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "conformer": {**SIZES["conformer"]["nano"], "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48},
    "bilstm": {**SIZES["bilstm"]["nano"], "hidden_size": 32, "state_size": 24},
    "ssd": {**SIZES["ssd"]["nano"], "hidden_size": 32, "state_size": 4, "head_dim": 16},
}
AUDIO = AudioSettings(16000, -4.25, 4.5, "repeat")
each_encoder = pytest.mark.parametrize("encoder", list(SMALL))


def make(
    encoder: str,
    *,
    seed: int = 0,
    bins: int = 32,
    frames: int = 48,
    patch: tuple[int, int] = (8, 8),
    stride: tuple[int, int] | None = None,
    **options: Any,
) -> AudioEncoder:
    torch.manual_seed(seed)
    return AudioEncoder(encoder, {**SMALL[encoder], **options}, bins, frames, *patch, *(stride or patch))


def spectrogram(frames: int = 48, bins: int = 32) -> Tensor:
    return torch.randn(2, frames, bins, generator=torch.Generator().manual_seed(1))


def pretrained(folder: Path, encoder: str, **changes: Any) -> AudioEncoder:
    """Written to `folder` with its heads."""
    made = make(encoder, **changes)
    save_model(folder, MaskedPatchModel(made), AUDIO)
    return made


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@each_encoder
def test_a_pretrained_model_comes_back_bitwise(encoder: str, tmp_path: Path) -> None:
    model = MaskedPatchModel(make(encoder))
    save_model(tmp_path / "model", model, AUDIO)
    saved = load_model(tmp_path)  # the run folder
    assert isinstance(saved.model, MaskedPatchModel) and not saved.model.training
    assert (saved.audio, saved.classifier) == (AUDIO, None)
    assert equal(saved.model, model)
    mask = torch.arange(24).expand(2, -1) % 3 == 0
    with torch.inference_mode():
        ours, theirs = saved.model(spectrogram(), mask), model.eval()(spectrogram(), mask)
    for one, other in zip(ours[:3], theirs[:3], strict=True):
        assert torch.equal(one, other)


@each_encoder
def test_a_decoder_is_part_of_a_pretrained_model_and_of_no_encoder(encoder: str, tmp_path: Path) -> None:
    first = make(encoder)
    model = MaskedPatchModel(first, decoder=decoder_of(first))
    save_model(tmp_path, model, AUDIO)
    assert read_config(tmp_path)["decoder"] == {"hidden_size": 10, "num_hidden_layers": 3}
    saved = load_model(tmp_path)
    assert isinstance(saved.model, MaskedPatchModel) and equal(saved.model, model)
    mask = torch.arange(24).expand(2, -1) % 4 > 0
    with torch.inference_mode():
        ours, theirs = saved.model(spectrogram(), mask), model.eval()(spectrogram(), mask)
    for one, other in zip(ours[:3], theirs[:3], strict=True):
        assert torch.equal(one, other)
    other = make(encoder, seed=1)
    load_pretrained_encoder(other, tmp_path)
    assert equal(first, other)


@pytest.mark.parametrize(
    ("decoder", "said"),
    [
        (None, "decoder.embedding.bias is not known"),
        ({"hidden_size": 24, "num_hidden_layers": 3}, r"decoder.mask_token has shape \(10,\), expected \(24,\)"),
        ({"hidden_size": 10, "num_hidden_layers": 1000}, "decoder.layers.3.conv.weight is missing"),
        ({"hidden_size": 10}, "Object missing required field `num_hidden_layers`"),
        ({"hidden_size": 10, "num_hidden_layers": -1}, "Expected `int` >= 1"),
        ("light", r"Expected `object \| null`, got `str`"),
    ],
)
def test_weights_that_are_not_of_the_decoder_that_is_told(decoder: Any, said: str, tmp_path: Path) -> None:
    encoder = make("ssast")
    save_model(tmp_path, MaskedPatchModel(encoder, decoder=decoder_of(encoder)), AUDIO)
    damaged(tmp_path, "config.json", "decoder", decoder)
    with pytest.raises(UserError, match=said):
        load_model(tmp_path)


@each_encoder
@pytest.mark.parametrize("padding", [False, True])
@pytest.mark.parametrize(
    ("pooling", "head_norm"), [*((name, "layer") for name in POOLINGS), ("class", "none"), ("statistics", "batch")]
)
def test_a_classifier_comes_back_bitwise(
    encoder: str, pooling: str, head_norm: str, padding: bool, tmp_path: Path
) -> None:
    settings = ClassifierSettings(("no", "yes", "später"), "word", "bce", pooling, head_norm, 3, padding)
    model = AudioClassifier(make(encoder), 3, pooling, head_norm, 3, padding)
    save_model(tmp_path, model, AUDIO, settings)
    saved = load_model(tmp_path)
    assert isinstance(saved.model, AudioClassifier)
    assert (saved.audio, saved.classifier) == (AUDIO, settings)
    assert equal(saved.model, model)
    frames = torch.tensor([48, 20])
    with torch.inference_mode():
        found = saved.model(spectrogram(), frames)
        assert torch.equal(found, model.eval()(spectrogram(), frames))
        whole = model(spectrogram())
    assert ((found - whole)[1].abs().max() > 1e-4) == (not padding and pooling != "class")


def test_a_folder_of_an_earlier_version_pools_padding_as_it_did(tmp_path: Path) -> None:
    model = AudioClassifier(make("ssamba"), 2, "mean", pool_padding=True).eval()
    save_model(tmp_path, model, AUDIO, ClassifierSettings(("no", "yes"), "word", "bce", "mean", pool_padding=True))
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for name in ("segments", "pool_padding"):
        del config[name]
    path.write_text(json.dumps(config))
    saved = load_model(tmp_path)
    assert saved.classifier is not None and saved.classifier.pool_padding
    with torch.inference_mode():
        tokens = model.encoder(spectrogram()).tokens
        assert torch.equal(saved.model(spectrogram(), torch.tensor([20, 9])), model.head(tokens.mean(1)))


@pytest.mark.parametrize(("earlier", "norm"), [(True, "layer"), (False, "none")])
def test_a_folder_of_an_earlier_version_has_its_norm_or_none(earlier: bool, norm: str, tmp_path: Path) -> None:
    settings = ClassifierSettings(("no", "yes"), "word", "bce", "mean", norm)
    save_model(tmp_path, build_classifier(make("ssast"), settings), AUDIO, settings)
    damaged(tmp_path, "config.json", "head_norm", earlier)
    assert load_model(tmp_path).classifier == settings


def test_segments_are_those_of_the_weights(tmp_path: Path) -> None:
    settings = ClassifierSettings(("no", "yes"), "word", "bce", "segments", segments=3)
    save_model(tmp_path, build_classifier(make("ssast"), settings), AUDIO, settings)
    damaged(tmp_path, "config.json", "segments", 2)
    with pytest.raises(UserError, match=r"do not fit: head.0.weight has shape \(384,\), expected \(256,\)"):
        load_model(tmp_path)


def test_what_the_folder_says(tmp_path: Path) -> None:
    model = AudioClassifier(make("ssamba", residual="plain"), 2, "mean")
    save_model(tmp_path, model, AUDIO, ClassifierSettings(("no", "yes"), "word", "cross_entropy", "mean"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    config = json.loads((tmp_path / "config.json").read_text())
    assert (
        config
        == read_config(tmp_path)
        == {
            "model_type": "ssamba",
            "architectures": ["AudioClassifier"],
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 4,
            "expand": 2,
            "conv_kernel": 4,
            "residual": "plain",
            "layer_norm_eps": 1e-5,
            "num_mel_bins": 32,
            "max_length": 48,
            "fshape": 8,
            "tshape": 8,
            "frequency_stride": 8,
            "time_stride": 8,
            "patch_order": "frequency",
            "label": "word",
            "problem_type": "single_label_classification",
            "pooling": "mean",
            "head_norm": "layer",
            "segments": 4,
            "pool_padding": False,
            "id2label": {"0": "no", "1": "yes"},
            "label2id": {"no": 0, "yes": 1},
        }
    )
    assert json.loads((tmp_path / "preprocessor_config.json").read_text()) == {
        "feature_extractor_type": "FeatureExtractor",
        "num_mel_bins": 32,
        "max_length": 48,
        "sampling_rate": 16000,
        "mean": -4.25,
        "std": 4.5,
        "short": "repeat",
    }
    tensors = load_file(tmp_path / "model.safetensors")
    assert tensors.keys() == model.state_dict().keys()
    assert tensors["encoder.positions"].shape == (4, 6, 32)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


@each_encoder
def test_attention_heads_and_layers_are_named_as_in_transformers(encoder: str, tmp_path: Path) -> None:
    pretrained(tmp_path, encoder)
    config = read_config(tmp_path)
    assert config["architectures"] == ["MaskedPatchModel"] and "id2label" not in config
    assert ("num_attention_heads" in config) == (encoder in ("ssast", "conformer"))


@each_encoder
def test_weights_start_an_encoder_of_the_same_size_bitwise(encoder: str, tmp_path: Path) -> None:
    first = pretrained(tmp_path, encoder)
    other = make(encoder, seed=1)
    assert not equal(first, other)
    load_pretrained_encoder(other, tmp_path)
    assert equal(first, other)


@each_encoder
@pytest.mark.parametrize(
    ("changes", "grid"),
    [
        ({"frames": 24}, (4, 3)),
        ({"frames": 80}, (4, 10)),
        ({"stride": (8, 4)}, (4, 11)),
        ({"stride": (5, 4), "frames": 96}, (5, 23)),
        ({"bins": 64}, (8, 6)),
    ],
)
def test_the_grid_of_positions_follows_another_clip_or_stride(
    encoder: str, changes: dict[str, Any], grid: tuple[int, int], tmp_path: Path
) -> None:
    first = pretrained(tmp_path, encoder)
    other = make(encoder, seed=1, **changes)
    load_pretrained_encoder(other, tmp_path)
    assert other.positions.shape == (*grid, 32)
    assert torch.equal(other.positions, fit_positions(first.positions, *grid))
    rest = first.state_dict().keys() - {"positions"}
    assert all(torch.equal(first.state_dict()[name], other.state_dict()[name]) for name in rest)


def test_a_shorter_clip_sees_the_middle_positions(tmp_path: Path) -> None:
    first = pretrained(tmp_path, "ssast")
    other = make("ssast", seed=1, frames=24)
    load_pretrained_encoder(other, tmp_path)
    assert torch.equal(other.positions, first.positions[:, 2:5])


def test_a_classifier_lends_its_encoder(tmp_path: Path) -> None:
    model = AudioClassifier(make("ssamba"), 3, "mean")
    save_model(tmp_path, model, AUDIO, ClassifierSettings(("a", "b", "c"), "word", "cross_entropy", "mean"))
    other = make("ssamba", seed=1)
    load_pretrained_encoder(other, tmp_path)
    assert equal(model.encoder, other)


@pytest.mark.parametrize(
    ("asked", "has", "wants"),
    [
        ({"encoder": "ssast"}, "has encoder ssamba", "asks for encoder ssast"),
        ({"encoder": "ssamba", "patch": (32, 2)}, "has fshape 8, tshape 8", "asks for fshape 32, tshape 2"),
        ({"encoder": "ssamba", "hidden_size": 48}, "has hidden_size 32", "asks for hidden_size 48"),
        ({"encoder": "ssamba", "num_hidden_layers": 4}, "has num_hidden_layers 2", "asks for num_hidden_layers 4"),
        ({"encoder": "ssamba", "residual": "plain"}, "has residual doubling", "asks for residual plain"),
    ],
)
def test_weights_that_do_not_fit_are_told_with_both_sides(
    asked: dict[str, Any], has: str, wants: str, tmp_path: Path
) -> None:
    pretrained(tmp_path, "ssamba")
    other = make(**asked)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(UserError) as caught:
        load_pretrained_encoder(other, tmp_path)
    assert has in str(caught.value) and wants in str(caught.value) and str(tmp_path) in str(caught.value)
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())


def test_scan_layouts_must_agree(tmp_path: Path) -> None:
    pretrained(tmp_path, "aum")
    with pytest.raises(UserError, match="has scan_layout fo_bi; the recipe asks for scan_layout bi_bi"):
        load_pretrained_encoder(make("aum", scan_layout="bi_bi"), tmp_path)


def test_attention_heads_must_agree_though_no_shape_tells(tmp_path: Path) -> None:
    pretrained(tmp_path, "ssast")
    with pytest.raises(UserError, match="has num_attention_heads 2; the recipe asks for num_attention_heads 4"):
        load_pretrained_encoder(make("ssast", num_attention_heads=4), tmp_path)


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights_are_told(keep: float, tmp_path: Path) -> None:
    pretrained(tmp_path, "ssamba")
    weights = tmp_path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: math.floor(keep * len(whole))])
    with pytest.raises(UserError, match=f"{weights} is damaged"):
        load_model(tmp_path)
    with pytest.raises(UserError, match=f"{weights} is damaged"):
        load_pretrained_encoder(make("ssamba"), tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_hidden_layers": 4}, "stack.layers.2.norm.weight is missing"),
        ({"hidden_size": 48}, r"encoder.class_tokens has shape \(1, 32\), expected \(1, 48\)"),
        ({"residual": "plain", "num_hidden_layers": 1}, "stack.layers.1.mixer.ahead.A_log is not known"),
    ],
)
def test_weights_that_their_config_does_not_describe(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    pretrained(tmp_path, "ssamba")
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=f"the weights in {tmp_path} do not fit: .*{said}"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be used: Input data was truncated; expected a model's config.json"),
        ("[]", "cannot be used: Expected `object`, got `array`"),
        ("{}", "cannot be used: Object missing required field `model_type`"),
        ('{"model_type": "bert"}', "a model with the encoder 'bert'; expected one of ssamba, ssast"),
        ('{"model_type": ["ssamba"]}', "cannot be used: Expected `str`, got `array` at `model_type`"),
        ('{"model_type": "ssamba", "mean": 0}', "cannot be used: Object missing required field .*complete"),
        ('{"a":' * 100_000, "cannot be used: it is nested too deep|cannot be used: .*truncated"),
    ],
)
def test_a_config_that_is_none(text: str, said: str, tmp_path: Path) -> None:
    pretrained(tmp_path, "ssamba")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=said):
        read_config(tmp_path)


def test_a_config_without_the_sizes_of_its_stack(tmp_path: Path) -> None:
    pretrained(tmp_path, "ssamba")
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["state_size"]
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match="complete"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"short": "wrap"}, r"Expected `str` matching regex .* at `short`; expected .* short \(pad, repeat or keep\)"),
        ({"std": None}, "missing required field `std`"),
        ({"max_length": 47}, "has max_length 47; expected 48, as in its config.json"),
        ({"num_mel_bins": 64}, "has num_mel_bins 64; expected 32, as in its config.json"),
    ],
)
def test_spectrograms_that_are_not_described(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    pretrained(tmp_path, "ssamba")
    path = tmp_path / "preprocessor_config.json"
    held = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({name: value for name, value in held.items() if value is not None}))
    with pytest.raises(UserError, match=said):
        load_model(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="preprocessor_config.json is missing; expected sampling_rate, mean, std"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "change", [{"id2label": {"1": "no", "2": "yes"}}, {"id2label": {"0": "no", "01": "yes"}}, {"id2label": {}}]
)
def test_classes_that_are_not_described(change: dict[str, Any], tmp_path: Path) -> None:
    settings = ClassifierSettings(("no", "yes"), "word", "bce", "mean")
    save_model(tmp_path, AudioClassifier(make("ssamba"), 2, "mean"), AUDIO, settings)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=r"does not describe a classifier.*expected id2label \(numbers from 0\)"):
        load_model(tmp_path)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no model; expected config.json and model.safetensors"):
        model_folder(tmp_path)
    with pytest.raises(UserError, match="holds no model"):
        load_model(tmp_path / "nowhere")
    # A folder that is half written is none, either.
    pretrained(tmp_path / "model", "ssamba")
    assert model_folder(tmp_path) == tmp_path / "model" == model_folder(str(tmp_path / "model"))
    (tmp_path / "model" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no model"):
        model_folder(tmp_path)


# Each field of each file, with each value that it may not have

NUMBERS = (1.5, -1, 0, 10**6, 10**12, 10**400, -(10**400), 1e300, math.nan, math.inf)
WRONG: tuple[Any, ...] = ("x", None, [], {}, True, *NUMBERS)
RIGHT: dict[str, tuple[Any, ...]] = {
    "label": ("x",),
    "head_norm": (True,),
    "mean": (1.5, -1, 0),
    "std": (1.5,),
    "architectures": (None, []),
    "label2id": (None, {}),
    "segments": (None,),
    "pool_padding": (None, True),
}
"""Of `WRONG`, those that can stand in a field."""


def damaged(folder: Path, name: str, field: str, value: Any) -> None:
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))


@each_encoder
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_no_field_is_believed(encoder: str, name: str, tmp_path: Path) -> None:
    settings = ClassifierSettings(("no", "yes"), "word", "bce", "mean")
    save_model(tmp_path, AudioClassifier(make(encoder), 2, "mean"), AUDIO, settings)
    whole = (tmp_path / name).read_text()
    for field in json.loads(whole):
        if field == "feature_extractor_type":
            continue
        for value in WRONG:
            (tmp_path / name).write_text(whole)
            damaged(tmp_path, name, field, value)
            if any(type(value) is type(one) and value == one for one in RIGHT.get(field, ())):
                load_model(tmp_path)
                continue
            with pytest.raises(UserError) as told:
                load_model(tmp_path)
            assert "\n" not in str(told.value) and str(tmp_path) in str(told.value), (field, value)
    for content in (
        b"",
        b"\xff\xfe\x00",
        b"null",
        b"[" * 100_000,
        whole.encode()[:40],
        b'{"model_type":"\xed\xa0\x80"}',
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{tmp_path / name} cannot be used"):
            load_model(tmp_path)


@each_encoder
def test_a_config_costs_nothing_before_the_weights_agree(encoder: str, tmp_path: Path) -> None:
    pretrained(tmp_path, encoder)
    for field, value in (("hidden_size", 65_536), ("num_hidden_layers", 1024), ("fshape", 32), ("max_length", 60_000)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("ssamba.models.tensor_files.load_file", lambda path: pytest.fail("the weights were read"))
            whole = (tmp_path / "config.json").read_text()
            damaged(tmp_path, "config.json", field, value)
            damaged(tmp_path, "preprocessor_config.json", "max_length", value if field == "max_length" else 48)
            with pytest.raises(UserError, match="do not fit: encoder"):
                load_model(tmp_path)
            (tmp_path / "config.json").write_text(whole)


@pytest.mark.parametrize(
    ("dtype", "said"),
    [
        (torch.bfloat16, None),
        (torch.float16, None),
        (torch.float64, "mask_token has type F64; expected one of F32"),
        (torch.int64, "mask_token has type I64"),
        (torch.bool, "has type BOOL"),
        (torch.float8_e5m2, "has type F8_E5M2"),
    ],
)
def test_types_of_weights(dtype: torch.dtype, said: str | None, tmp_path: Path) -> None:
    pretrained(tmp_path, "ssamba")
    weights = load_file(tmp_path / "model.safetensors")
    held = weights["encoder.mask_token"].to(dtype)
    write_safetensors(tmp_path / "model.safetensors", {**weights, "encoder.mask_token": held})
    if said is not None:
        with pytest.raises(UserError, match=said):
            load_model(tmp_path)
        return
    loaded = load_model(tmp_path).model.encoder.mask_token
    assert loaded.dtype == torch.float32 and torch.equal(loaded, held.float())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers(value: float, tmp_path: Path) -> None:
    pretrained(tmp_path, "ssamba")
    weights = load_file(tmp_path / "model.safetensors")
    weights["encoder.mask_token"][3] = value
    write_safetensors(tmp_path / "model.safetensors", weights)
    with pytest.raises(UserError, match="not finite in encoder.mask_token: the model is of no use"):
        load_model(tmp_path)
    with pytest.raises(UserError, match="not finite in encoder.mask_token"):
        load_pretrained_encoder(make("ssamba"), tmp_path)


def test_headers_that_are_none(tmp_path: Path) -> None:
    pretrained(tmp_path, "ssamba")
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    told = json.loads(whole[8 : 8 + size])
    told["encoder.mask_token"]["shape"] = [10**12]
    other = json.dumps(told).encode()
    for content in (
        b"",
        b"\xff" * 8 + whole[8:],
        (1 << 40).to_bytes(8, "little") + whole[8:],
        whole + b"more",
        len(other).to_bytes(8, "little") + other + whole[8 + size :],
        b"[" * 10_000,
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"{path} is damaged"):
            load_model(tmp_path)
