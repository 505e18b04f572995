"""`ssamba import` and `ssamba export`: checkpoints through files, what comes back, and what is refused.

With the environment variable SSAMBA_PARITY naming a folder, every {patch16,frame}/*.pth in it is tried as well, beside
a *_expected.npz of what the originals compute with it.
"""

import argparse
import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssamba.cli import main
from ssamba.errors import UserError
from ssamba.losses import info_nce, reconstruction_mse
from ssamba.models.checkpoint import SavedModel, load_model, save_model
from ssamba.models.convert.families import UNUSED
from ssamba.models.convert.state_dicts import from_authors, to_authors
from ssamba.models.convert.transfer import AUDIOSET_LIBRISPEECH, read_label_names, read_state_dict
from ssamba.models.encoder import SIZES, AudioEncoder
from ssamba.models.heads import AudioClassifier, MaskedPatchModel
from ssamba.models.pools import build_pool
from ssamba.models.settings import ClassifierSettings, read_audio_settings, read_config

FIXTURES = Path(__file__).parents[2] / "fixtures" / "parity"
KINDS = ("pretrain", "finetuned_shorter", "finetuned_longer")
STRIDES = {("patch16", "finetuned_shorter"): (10, 10), ("frame", "finetuned_shorter"): (128, 1)}
# What a recipe says for a model that the originals' scripts load.
THEIRS = {"ssamba": ["model.encoder=ssamba", "model.residual=doubling"], "ssast": ["model.encoder=ssast"]}
Capture = pytest.CaptureFixture[str]
Refused = Callable[..., str]

each_family = pytest.mark.parametrize("family", ["ssamba", "ssast"])
each_checkpoint = pytest.mark.parametrize(
    ("patch", "family", "kind"),
    [(patch, family, kind) for patch in ("patch16", "frame") for family in ("ssamba", "ssast") for kind in KINDS],
)


def words(patch: str, family: str, kind: str) -> list[str]:
    """What has to be said of a fixture besides its tensors."""
    said = ["--num-attention-heads", {"patch16": "4", "frame": "2"}[patch]] if family == "ssast" else []
    if (patch, kind) in STRIDES:
        frequency, time = STRIDES[patch, kind]
        said += ["--frequency-stride", str(frequency), "--time-stride", str(time)]
    return said


def checkpoint(patch: str, family: str, kind: str) -> dict[str, Tensor]:
    """A fixture, its unused classifiers (zeros there) drawn, and with values that only bits tell apart."""
    state = torch.load(FIXTURES / f"{patch}_{family}.pth", weights_only=True)[kind]
    generator = torch.Generator().manual_seed(0)
    for name in state:
        if name.removeprefix("module.") in UNUSED:
            state[name] = torch.randn(state[name].shape, generator=generator)
    bias = state["module.v.patch_embed.proj.bias"].clone()
    bias[:2] = torch.tensor([-0.0, 1e-45])
    return {**state, "module.v.patch_embed.proj.bias": bias}


def assert_same_bits(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(*(x.flatten().contiguous().view(torch.uint8) for x in (ours[name], tensor)))


def call(*given: object) -> None:
    assert main([str(word) for word in given]) == 0


def statistics(saved: SavedModel) -> list[object]:
    return ["--mean", saved.audio.mean, "--std", saved.audio.std, "--short", saved.audio.short]


def plain_load(path: Path) -> dict[str, Tensor]:
    return torch.load(path, weights_only=True)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A pretraining checkpoint of SSAMBA in a file."""
    torch.save(checkpoint("frame", "ssamba", "pretrain"), tmp_path / "small.pth")
    return tmp_path / "small.pth"


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    """A classifier of SSAMBA of 35 classes in a file."""
    torch.save(checkpoint("frame", "ssamba", "finetuned_longer"), tmp_path / "tuned.pth")
    return tmp_path / "tuned.pth"


# There and back


@each_checkpoint
@pytest.mark.parametrize("prefix", ["module.", ""])
def test_import_and_export_give_back_every_tensor_bit_for_bit(
    prefix: str, patch: str, family: str, kind: str, tmp_path: Path, capsys: Capture
) -> None:
    theirs = checkpoint(patch, family, kind)
    given = {prefix + name.removeprefix("module."): tensor for name, tensor in theirs.items()}
    torch.save(given, tmp_path / "theirs.pth")
    call("import", tmp_path / "theirs.pth", tmp_path / "model", *words(patch, family, kind))
    said = capsys.readouterr().out
    call("export", tmp_path / "model", tmp_path / "ours.pth", "--format", family)
    assert_same_bits(plain_load(tmp_path / "ours.pth"), theirs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "ours.pth", "theirs.pth"]
    unused = 4 if family == "ssast" else 2
    assert f"tensors: {len(theirs) - unused} used, {unused} kept that nothing reads (v.head.weight" in said
    assert capsys.readouterr().out == f"tensors: {len(theirs)}\nwritten to {tmp_path / 'ours.pth'}\n"


@each_family
def test_a_pretrained_model_of_ours_comes_back_from_the_authors_format(
    family: str, recipes: dict[str, Path], tmp_path: Path, capsys: Capture
) -> None:
    run = tmp_path / "run"
    call("pretrain", recipes["pretrain"], f"run_dir={run}", *THEIRS[family], "trainer.max_steps=2")
    capsys.readouterr()
    call("export", run, tmp_path / "theirs.pth", "--format", family)
    zeros = [f"module.{name}" for name in sorted(UNUSED) if family == "ssast" or "dist" not in name]
    assert f"zeros, which nothing reads: {', '.join(zeros)}\n" in capsys.readouterr().out
    saved = load_model(run)
    call("import", tmp_path / "theirs.pth", tmp_path / "model", *statistics(saved))
    assert f"family: {family}, nano\n" in capsys.readouterr().out
    assert read_config(tmp_path / "model") == read_config(run)
    ours, back = saved.model, load_model(tmp_path / "model").model
    assert_same_bits(dict(back.state_dict()), dict(ours.state_dict()))
    log_mel, mask = torch.randn(2, 64, 128), torch.arange(32).expand(2, -1) % 3 == 0
    with torch.inference_mode():
        for one, other in zip(ours(log_mel, mask)[:3], back(log_mel, mask)[:3], strict=True):
            assert torch.equal(one, other)


@each_family
def test_a_classifier_of_ours_comes_back_from_the_authors_format(
    family: str, recipes: dict[str, Path], tmp_path: Path, capsys: Capture
) -> None:
    run = tmp_path / "run"
    words = [*THEIRS[family], "task.pooling=mean", "trainer.max_steps=2", "data.test=[]"]
    call("finetune", recipes["finetune"], f"run_dir={run}", *words)
    capsys.readouterr()
    call("export", run, tmp_path / "theirs.pth", "--format", family)
    assert "padding" not in capsys.readouterr().out  # short clips are repeated: there is none
    assert "module.mask_embed" not in plain_load(tmp_path / "theirs.pth")
    ours = load_model(run)
    (tmp_path / "names.txt").write_text("\n".join(ours.classifier.labels) + "\n")
    given = [*statistics(ours), "--labels", tmp_path / "names.txt", "--label", "sound"]
    call("import", tmp_path / "theirs.pth", tmp_path / "model", *given)
    assert read_config(tmp_path / "model") == {**read_config(run), "pool_padding": True}
    back = load_model(tmp_path / "model")
    assert (ours.audio, replace(ours.classifier, pool_padding=True)) == (back.audio, back.classifier)
    log_mel = torch.randn(3, 64, 128)
    with torch.inference_mode():
        assert torch.equal(ours.model(log_mel), back.model(log_mel))


# What the originals compute

PAIRS = [path for patch in ("patch16", "frame") for path in sorted(FIXTURES.glob(f"{patch}_*.npz"))]
LAYOUTS = ("fo_fo", "fo_bi", "bi_bi")
if FOLDER := os.environ.get("SSAMBA_PARITY"):
    FURTHER = [path for patch in ("patch16", "frame", "aum") for path in sorted(Path(FOLDER, patch).glob("*.pth"))]
    FURTHER = FURTHER or [Path(FOLDER, "patch16", "ssamba_pretrain.pth")]  # which fails, for it is not there
else:
    reason = "SSAMBA_PARITY names no folder of checkpoints and of what the originals compute with them"
    FURTHER = [pytest.param(Path(), marks=pytest.mark.skip(reason))]


def assert_close(ours: Tensor, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    assert np.abs(ours.numpy() - theirs).max() <= 1e-4 * np.abs(theirs).max()


def check_outputs(folder: Path, expected: dict[str, Any]) -> None:
    """An imported model gives what the originals gave, by every backend of a CPU."""
    scans = read_config(folder)["model_type"] != "ssast"
    for backend in ("reference", "torch-chunked", "cpu") if scans else ("auto",):
        check_outputs_of(load_model(folder, backend), expected)


def check_outputs_of(saved: SavedModel, expected: dict[str, Any]) -> None:
    log_mel = torch.from_numpy(expected["input"])
    with torch.inference_mode():
        if isinstance(saved.model, AudioClassifier):
            if "logits" in expected:  # AuM's
                assert_close(saved.model(log_mel), expected["logits"])
                return
            for pooling, name in (("mean", "logits_avgtok"), ("class", "logits_cls")):
                encoder = saved.model.encoder
                saved.model.pool = build_pool(pooling, encoder.grid[0], encoder.hidden_size, padding=True)
                assert_close(saved.model(log_mel), expected[name])
            return
        index = torch.from_numpy(expected["mask_index"])
        mask = torch.zeros(len(index), saved.model.encoder.grid[0] * saved.model.encoder.grid[1], dtype=torch.bool)
        prediction = saved.model(log_mel, mask.scatter_(1, index, True))
        rank = index.argsort(1).argsort(1).unsqueeze(-1).expand_as(prediction.contrastive)
        assert_close(prediction.contrastive.gather(1, rank), expected["contrastive_prediction"])
        assert_close(prediction.reconstruction.gather(1, rank), expected["reconstruction"])
        nce = info_nce(prediction.contrastive, prediction.target).loss.item()
        assert nce == pytest.approx(float(expected["nce"]), rel=1e-5)
        mse = reconstruction_mse(prediction.reconstruction, prediction.target).item()
        assert mse == pytest.approx(float(expected["mse"]), rel=1e-5)


@pytest.mark.parametrize("pair", PAIRS, ids=lambda path: path.stem)
def test_an_imported_checkpoint_gives_the_originals_outputs(pair: Path, tmp_path: Path) -> None:
    patch, family, kind = pair.stem.split("_", 2)
    state = torch.load(FIXTURES / f"{patch}_{family}.pth", weights_only=True)[kind]
    torch.save(state, tmp_path / "theirs.pth")
    call("import", tmp_path / "theirs.pth", tmp_path / "model", *words(patch, family, kind))
    with np.load(pair) as expected:
        check_outputs(tmp_path / "model", dict(expected))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prefix", ["module.", ""])
def test_aum_comes_back_bit_for_bit_and_gives_the_originals_outputs(
    prefix: str, layout: str, tmp_path: Path, capsys: Capture
) -> None:
    theirs = torch.load(FIXTURES / f"aum_{layout}.pth", weights_only=True)
    given = {prefix + name.removeprefix("module."): tensor for name, tensor in theirs.items()}
    torch.save(given, tmp_path / "theirs.pth")
    call("import", tmp_path / "theirs.pth", tmp_path / "model", "--loss", "bce")
    said = capsys.readouterr().out
    assert (
        "family: aum, " in said and f"scan_layout {layout}" in said and f"tensors: {len(theirs)} used, 0 kept" in said
    )
    assert "classes: 20 (label: 0, 1, 2, 3, 4, 5, ...), bce, class pooling" in said
    with np.load(FIXTURES / f"aum_{layout}.npz") as expected:
        check_outputs(tmp_path / "model", dict(expected))
    call("export", tmp_path / "model", tmp_path / "ours.pth", "--format", "aum")
    assert_same_bits(plain_load(tmp_path / "ours.pth"), theirs)


def test_a_classifier_of_aum_made_here_comes_back(tmp_path: Path, capsys: Capture) -> None:
    encoder = AudioEncoder("aum", SIZES["aum"]["nano"], 128, 96, 16, 16, 16, 16)
    model = AudioClassifier(encoder, 3, "class", head_norm="none").eval()
    settings = ClassifierSettings(("0", "1", "2"), "label", "cross_entropy", "class", "none")
    save_model(tmp_path / "ours", model, AUDIOSET_LIBRISPEECH, settings)
    call("export", tmp_path / "ours", tmp_path / "theirs.pth", "--format", "aum")
    assert "padding" not in capsys.readouterr().out  # a class token pools none
    call("import", tmp_path / "theirs.pth", tmp_path / "back")
    assert read_config(tmp_path / "back") == {**read_config(tmp_path / "ours"), "pool_padding": True}
    assert read_audio_settings(tmp_path / "back") == read_audio_settings(tmp_path / "ours")
    back = load_model(tmp_path / "back")
    log_mel = torch.randn(2, 96, 128)
    with torch.inference_mode():
        assert torch.equal(back.model(log_mel), model(log_mel))


@pytest.mark.parametrize("padding", [False, True])
def test_an_export_says_that_theirs_pools_padding(padding: bool, tmp_path: Path, capsys: Capture) -> None:
    encoder = AudioEncoder("ssast", SIZES["ssast"]["nano"], 128, 96, 16, 16, 16, 16)
    settings = ClassifierSettings(("0", "1", "2"), "label", "cross_entropy", "mean", pool_padding=padding)
    model = AudioClassifier(encoder, 3, "mean", pool_padding=padding)
    save_model(tmp_path / "ours", model, AUDIOSET_LIBRISPEECH, settings)  # which pads short clips
    call("export", tmp_path / "ours", tmp_path / "theirs.pth", "--format", "ssast")
    assert ("code pools their padding too, which this model leaves out" in capsys.readouterr().out) == (not padding)


def test_what_aums_authors_cannot_load(tmp_path: Path, refused: Refused) -> None:
    encoder = AudioEncoder("aum", SIZES["aum"]["nano"], 128, 96, 16, 16, 16, 16)
    save_model(tmp_path / "pretrained", MaskedPatchModel(encoder), AUDIOSET_LIBRISPEECH)
    said = refused("export", tmp_path / "pretrained", tmp_path / "out.pth", "--format", "aum")
    assert "it is a pretraining model (theirs are all classifiers)" in said
    settings = ClassifierSettings(("0", "1", "2"), "label", "bce", "class", "layer")
    save_model(tmp_path / "normed", AudioClassifier(encoder, 3, "class"), AUDIOSET_LIBRISPEECH, settings)
    assert "its head_norm is layer (theirs is always none)" in refused(
        "export", tmp_path / "normed", tmp_path / "out.pth", "--format", "aum"
    )


@pytest.mark.parametrize("path", FURTHER, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_further_checkpoints_come_back_and_give_the_originals_outputs(path: Path, tmp_path: Path) -> None:
    family, kind = path.stem.split("_", 1)
    with np.load(path.with_name(f"{path.stem}_expected.npz")) as file:
        expected = dict(file)
    given: list[object] = ["--num-attention-heads", expected["num_heads"]] if family == "ssast" else []
    if "fstride" in expected:
        given += ["--frequency-stride", expected["fstride"], "--time-stride", expected["tstride"]]
        given += ["--max-length", expected["input"].shape[1]]
    call("import", path, tmp_path / "model", *given)
    check_outputs(tmp_path / "model", expected)
    call("export", tmp_path / "model", tmp_path / "ours.pth", "--format", family)
    assert_same_bits(plain_load(tmp_path / "ours.pth"), plain_load(path))


# What an import writes and says


def test_what_is_read_off_a_checkpoint_and_what_is_assumed(small: Path, tmp_path: Path, capsys: Capture) -> None:
    theirs = plain_load(small)
    used = sum(tensor.numel() for name, tensor in theirs.items() if tensor.ndim and "v.head" not in name)
    call("import", small, tmp_path / "deep" / "model")
    assert capsys.readouterr().out.splitlines() == [
        "family: ssamba, hidden_size 24, num_hidden_layers 2, state_size 16, expand 2, conv_kernel 4, "
        "residual doubling, layer_norm_eps 1e-05",
        "patch: 128 mel bins x 2 frames, strides 128 and 2",
        "grid: 1 x 48 patches of 128 mel bins x 96 frames",
        "audio: 16000 Hz, log-mel mean -4.2677393 and standard deviation 4.5689974",
        "classes: none, a pretraining model",
        f"parameters: {used:,}",
        "tensors: 53 used, 2 kept that nothing reads (v.head.weight, v.head.bias)",
        "assumed, for the checkpoint does not tell it: --sampling-rate 16000 --mean -4.2677393 --std 4.5689974 "
        "--short pad",
        f"written to {tmp_path / 'deep' / 'model'}",
    ]
    folder = tmp_path / "deep" / "model"
    saved = load_model(folder)
    assert isinstance(saved.model, MaskedPatchModel) and not saved.model.training
    assert (saved.audio.sampling_rate, saved.audio.mean, saved.audio.std) == (16000, -4.2677393, 4.5689974)
    kept = load_file(folder / "unused.safetensors")
    assert_same_bits(kept, {name: theirs[f"module.{name}"] for name in ("v.head.weight", "v.head.bias")})


def test_the_defaults_of_a_classifier_and_its_options(tuned: Path, tmp_path: Path, capsys: Capture) -> None:
    call("import", tuned, tmp_path / "model")
    assert "\nclasses: 35 (label: 0, 1, 2, 3, 4, 5, ...), cross_entropy, mean pooling\n" in capsys.readouterr().out
    settings = load_model(tmp_path / "model").classifier
    assert settings and (settings.label, settings.loss, settings.pooling) == ("label", "cross_entropy", "mean")
    assert settings.labels == tuple(str(number) for number in range(35))
    names = [f"word {number}, spoken" for number in range(35)]
    rows = [f'{number},/m/{number:03},"{name}"' for number, name in enumerate(names)]
    (tmp_path / "labels.csv").write_text("\r\n".join(["index,mid,display_name", *rows]) + "\r\n")
    given = [
        "--labels",
        tmp_path / "labels.csv",
        "--label",
        "word",
        "--loss",
        "bce",
        "--pooling",
        "class",
        "--sampling-rate",
        "8000",
        "--mean",
        "-6.8",
        "--std",
        "5.5",
        "--max-length",
        "353",
    ]
    call("import", tuned, tmp_path / "other", *given)
    saved = load_model(tmp_path / "other")
    assert saved.classifier and (saved.audio.sampling_rate, saved.audio.mean, saved.audio.std) == (8000, -6.8, 5.5)
    assert saved.classifier.labels == tuple(names)
    assert (saved.classifier.label, saved.classifier.loss, saved.classifier.pooling) == ("word", "bce", "class")
    assert saved.model.encoder.arguments["max_length"] == 353 and saved.model.encoder.grid == (1, 176)


def test_what_is_assumed_of_a_classifier_is_said_and_what_is_given_is_not(tmp_path: Path, capsys: Capture) -> None:
    torch.save(checkpoint("patch16", "ssast", "finetuned_longer"), tmp_path / "file.pth")
    call("import", tmp_path / "file.pth", tmp_path / "model", "--num-attention-heads", "4")
    given = "--num-mel-bins 128 --max-length 448 --frequency-stride 16 --time-stride 16 --sampling-rate 16000 "
    rest = "--mean -4.2677393 --std 4.5689974 --short pad --loss cross_entropy --pooling mean"
    assert f"\nassumed, for the checkpoint does not tell it: {given}{rest}\n" in capsys.readouterr().out
    said = f"{given}{rest}".split()
    call("import", tmp_path / "file.pth", tmp_path / "other", "--num-attention-heads", "4", *said)
    assert "\nassumed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("ja\nnein\n", ("ja", "nein")),
        ("\ufeffon\r\n off \r\n\r\n", ("on", "off")),
        ('index,mid,display_name\n0,/m/1,"A, B"\n1,/m/2,C\n', ("A, B", "C")),
    ],
)
def test_label_names(text: str, names: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "names").write_text(text, encoding="utf-8")
    assert read_label_names(tmp_path / "names") == names


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "no class names"),
        (b"a\nb\na\n", "one twice"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"index,mid,display_name\n", "no class names"),
        (b"index,mid,display_name\n0,/m/0,a\n2,/m/2,b\n", "number its"),
        (b"index,mid,display_name\n0,/m/0,a\n1,/m/1\n", "an empty one"),
        (b"index,mid,display_name\nx,y,z", "number its"),
    ],
)
def test_label_names_that_are_none(text: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "names").write_bytes(text)
    with pytest.raises(UserError, match=said):
        read_label_names(tmp_path / "names")
    with pytest.raises(UserError, match="cannot be read"):
        read_label_names(tmp_path / "nothing")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_become_float32_and_the_import_says_so(dtype: torch.dtype, tmp_path: Path, capsys: Capture) -> None:
    theirs = {
        name: tensor.to(dtype) if tensor.ndim else tensor
        for name, tensor in checkpoint("frame", "ssast", "pretrain").items()
    }
    torch.save(theirs, tmp_path / "theirs.pth")
    call("import", tmp_path / "theirs.pth", tmp_path / "model", "--num-attention-heads", "2")
    word = str(dtype).removeprefix("torch.")
    assert f"\ntypes: {word} became float32, which an export writes\n" in capsys.readouterr().out
    call("export", tmp_path / "model", tmp_path / "ours.pth", "--format", "ssast")
    wanted = {
        name: tensor.float() if tensor.ndim and name.removeprefix("module.") not in UNUSED else tensor
        for name, tensor in theirs.items()
    }
    assert_same_bits(plain_load(tmp_path / "ours.pth"), wanted)


def test_a_checkpoint_without_the_unused_tensors_is_exported_with_zeros(small: Path, tmp_path: Path) -> None:
    rest = {name: tensor for name, tensor in plain_load(small).items() if "v.head" not in name}
    torch.save(rest, small)
    call("import", small, tmp_path / "model")
    assert not (tmp_path / "model" / "unused.safetensors").exists()
    call("export", tmp_path / "model", tmp_path / "ours.pth", "--format", "ssamba")
    zeros = {"module.v.head.weight": torch.zeros(1000, 24), "module.v.head.bias": torch.zeros(1000)}
    assert_same_bits(plain_load(tmp_path / "ours.pth"), rest | zeros)


# Files


def wrapped(state: dict[str, Tensor], how: str) -> Any:
    if how == "lightning":
        return {
            "epoch": 3,
            "state_dict": {f"model.{name}": tensor for name, tensor in state.items()},
            "optimizer_states": [{"lr": 0.1}],
            "pytorch-lightning_version": "2.6.0",
        }
    return {how: state, "epoch": 3, "args": "--lr 0.1"}


@pytest.mark.parametrize("how", ["state_dict", "model", "model_state_dict", "lightning"])
def test_the_usual_wrappers_are_opened(how: str, small: Path, tmp_path: Path) -> None:
    theirs = plain_load(small)
    torch.save(wrapped(theirs, how), tmp_path / "wrapped.pth")
    assert_same_bits(read_state_dict(tmp_path / "wrapped.pth"), theirs)


def test_safetensors_and_the_old_format_of_torch_are_read(small: Path, tmp_path: Path) -> None:
    theirs = {name: tensor.clone() for name, tensor in plain_load(small).items()}
    save_file(theirs, tmp_path / "theirs.safetensors")
    assert_same_bits(read_state_dict(tmp_path / "theirs.safetensors"), theirs)
    torch.save(theirs, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_same_bits(read_state_dict(tmp_path / "old.pth"), theirs)


class Payload:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("new", [True, False])
def test_code_in_a_checkpoint_is_refused_and_not_executed(new: bool, tmp_path: Path, refused: Refused) -> None:
    state = checkpoint("frame", "ssamba", "pretrain")
    file, proof = tmp_path / "evil.pth", tmp_path / "executed"
    torch.save({**state, "extra": Payload(proof)}, file, _use_new_zipfile_serialization=new)
    message = refused("import", file, tmp_path / "model")
    assert f"{file} was not read: to read it means to call {os.mkdir.__module__}.mkdir" in message
    assert not proof.exists()
    # The file is what it claims to be.
    torch.load(file, weights_only=False)
    assert proof.exists()


def test_a_pickled_namespace_is_named(tmp_path: Path, refused: Refused) -> None:
    torch.save({"state_dict": {}, "args": argparse.Namespace(lr=1)}, tmp_path / "file.pth")
    assert "to call argparse.Namespace" in refused("import", tmp_path / "file.pth", tmp_path / "model")


@pytest.mark.parametrize("suffix", ["pth", "old.pth", "safetensors"])
@pytest.mark.parametrize("keep", [0, 1, 7, 100, 0.3, 0.6, 0.99])
def test_a_truncated_checkpoint(suffix: str, keep: float, small: Path, tmp_path: Path, refused: Refused) -> None:
    file = tmp_path / f"cut.{suffix}"
    if suffix == "safetensors":
        save_file({name: tensor.clone() for name, tensor in plain_load(small).items()}, file)
    else:
        torch.save(plain_load(small), file, _use_new_zipfile_serialization=suffix == "pth")
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    assert f"{file} is damaged" in refused("import", file, tmp_path / "model")


def empty_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text("hello\n" * 50),
        lambda path: path.write_text('{"a": 1}'),
        lambda path: path.write_bytes(bytes(1000)),
        lambda path: path.write_bytes(pickle.dumps({"a": 1})),
        lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
        empty_zip,
    ],
)
def test_a_file_that_is_no_checkpoint(write: Callable[[Path], None], tmp_path: Path, refused: Refused) -> None:
    write(tmp_path / "file.pth")
    message = refused("import", tmp_path / "file.pth", tmp_path / "model")
    assert f"{tmp_path / 'file.pth'} is damaged, or no checkpoint; expected a file written by torch.save" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([torch.zeros(3)], "holds a list; expected a state dict"),
        (torch.zeros(3), "holds a Tensor; expected a state dict"),
        ({}, "neither SSAMBA's (v.layers.0.mixer.A_b_log) nor SSAST's (v.blocks.0.attn.qkv.weight)"),
        ({}, "; it holds nothing"),
        ({"encoder.weight": torch.zeros(3)}, "it holds encoder.weight"),
        ({f"w{n}": torch.zeros(1) for n in range(300)}, "w0, w1, w10, w100, w101, w102, w103, w104, ... (300 in all)"),
        ({"a": torch.zeros(3), "epoch": 3, "note": "x"}, "no plain tensor: epoch, note; expected a state dict alone"),
        ({"state_dict": {"a": torch.zeros(3), "b": [1]}}, "no plain tensor: b;"),
        ({"state_dict": 3}, "no plain tensor: state_dict;"),
        ({7: torch.zeros(3)}, "no plain tensor: 7;"),
        ({"a": torch.eye(3).to_sparse()}, "no plain tensor: a;"),
        ({"a": torch.ones(3, dtype=torch.complex64)}, "no plain tensor: a;"),
        ({"a": torch.empty(3, device="meta")}, "no plain tensor: a;"),
    ],
)
def test_a_file_of_something_else(content: Any, said: str, tmp_path: Path, refused: Refused) -> None:
    torch.save(content, tmp_path / "file.pth")
    message = refused("import", tmp_path / "file.pth", tmp_path / "model")
    assert message.startswith(str(tmp_path / "file.pth")) and said in message and len(message) < 600


WEIGHT = "module.v.layers.0.mixer.A_b_log"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"module.v.head.weight": torch.zeros(1).expand(10**10)}, "largest module.v.head.weight of (10000000000,);"),
        ({WEIGHT: torch.zeros(9999).as_strided((5000, 5000), (1, 1))}, f"largest {WEIGHT} of (5000, 5000);"),
        ({f"module.x{n}": torch.zeros(10**5) for n in range(3)}, "tensors of no known use: x0, x1, x2"),
        ({WEIGHT: torch.ones(48, 16, dtype=torch.int64)}, f"{WEIGHT} is of int64; expected float32, bfloat16"),
        ({WEIGHT: torch.ones(48, 16, dtype=torch.bool)}, f"{WEIGHT} is of bool"),
        ({WEIGHT: torch.ones(48, 16, dtype=torch.uint8)}, f"{WEIGHT} is of uint8"),
        ({WEIGHT: torch.ones(48, 16).to(torch.float8_e4m3fn)}, f"{WEIGHT} is of float8_e4m3fn"),
        ({WEIGHT: torch.quantize_per_tensor(torch.ones(48, 16), 1, 0, torch.qint8)}, f"no plain tensor: {WEIGHT};"),
        ({WEIGHT: torch.full((48, 16), float("nan"))}, f"not finite, in {WEIGHT};"),
        ({WEIGHT: torch.full((48, 16), float("-inf"))}, f"not finite, in {WEIGHT};"),
        ({WEIGHT: torch.ones(())}, "has shape ()"),
        ({"module.p_input_tdim": torch.tensor(2**62)}, "p_input_tdim is 4611686018427387904; expected"),
        ({"module.p_input_tdim": torch.tensor([96])}, "p_input_tdim is of int64;"),
        ({"module.p_input_tdim": torch.tensor([96.0])}, "p_input_tdim has shape (1,)"),
        ({10**20: torch.ones(1)}, "no plain tensor: one named by a int;"),
        ({("a", ("b",)): torch.ones(1)}, "no plain tensor: one named by a tuple;"),
        ({"x" * 10**6: [[[]]]}, "no plain tensor: " + "x" * 100 + "...;"),
        ({"a": {"b": {"c": torch.ones(1)}}}, "no plain tensor: a;"),
    ],
)
def test_odd_tensors_are_told_before_anything_is_built(
    change: dict[Any, Any], said: str, small: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({**plain_load(small), **change}, small)
    monkeypatch.setattr("ssamba.models.convert.transfer.AudioEncoder", None)
    message = refused("import", small, tmp_path / "model")
    assert message.startswith(f"{small}") and said in message and len(message) < 600


def test_many_tensors_of_one_storage_are_told_and_a_few_are_fine(small: Path, tmp_path: Path, refused: Refused) -> None:
    state = plain_load(small)
    whole = torch.zeros(10**6)  # 4 MB
    torch.save({**state, **{f"x{n}": whole for n in range(100)}}, small)
    message = refused("import", small, tmp_path / "model")
    assert "for tensors of 400," in message and "expected tensors with all" in message
    # Views of one tensor that holds them all, as some trainers save.
    flat = torch.cat([tensor.flatten().float() for tensor in state.values()])
    parts = flat.split([tensor.numel() for tensor in state.values()])
    views = {
        name: part.view(state[name].shape) if state[name].ndim else state[name]
        for name, part in zip(state, parts, strict=True)
    }
    torch.save(views, small)
    assert_same_bits(read_state_dict(small), state)


def test_a_compressed_archive_is_not_unpacked(small: Path, tmp_path: Path, refused: Refused) -> None:
    torch.save({**plain_load(small), "module.v.head.weight": torch.zeros(10**6)}, small)
    with zipfile.ZipFile(small) as whole, zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in whole.namelist():
            packed.writestr(name, whole.read(name))
    assert "is a compressed archive" in refused("import", tmp_path / "packed.pth", tmp_path / "model")


def test_a_file_that_is_not_there(tmp_path: Path, refused: Refused) -> None:
    assert "nothing.pth is not there; expected" in refused("import", tmp_path / "nothing.pth", tmp_path / "model")
    assert f"{tmp_path} is a folder; expected" in refused("import", tmp_path, tmp_path / "model")


def test_what_is_missing_is_named(small: Path, tmp_path: Path, refused: Refused) -> None:
    state = plain_load(small)
    del state["module.v.layers.1.mixer.x_proj_b.weight"]
    torch.save(state, small)
    message = refused("import", small, tmp_path / "model")
    assert message == f"{small}: the checkpoint has no tensor v.layers.1.mixer.x_proj_b.weight\n"


# Contradictions


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--std", "0", "--mean", "1"], "--std is 0; expected at least 0.001 and at most 1000"),
        (["--std", "nan", "--mean", "1"], "--std is nan; expected a finite number"),
        (["--std", "1", "--mean", "inf"], "--mean is inf; expected a finite number"),
        (["--mean", "1"], "give both or neither"),
        (["--max-length", "0"], "--max-length is 0; expected at least 1"),
        (["--sampling-rate", "16"], "--sampling-rate is 16; expected at least 1000"),
        (["--num-mel-bins", "64"], "--num-mel-bins is 64; the checkpoint has 128"),
        (["--time-stride", "1"], "--time-stride is 1; the checkpoint has 2"),
        (["--num-attention-heads", "3"], "--num-attention-heads is 3; ssamba has none"),
        (["--label", "word", "--loss", "bce"], "--label, --loss is said of a classifier"),
        (["--labels", "nowhere.txt"], "nowhere.txt cannot be read"),
    ],
)
def test_options_that_contradict_a_pretraining_checkpoint(
    given: list[str], said: str, small: Path, tmp_path: Path, refused: Refused
) -> None:
    assert said in refused("import", small, tmp_path / "model", *given)


def test_options_that_only_repeat_the_checkpoint_are_fine(small: Path, tmp_path: Path) -> None:
    call("import", small, tmp_path / "model", "--num-mel-bins", "128", "--max-length", "96", "--time-stride", "2")


def test_another_number_of_classes_than_the_classifiers(tuned: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "names.txt").write_text("yes\nno\n")
    message = refused("import", tuned, tmp_path / "model", "--labels", tmp_path / "names.txt")
    assert message == "--labels has 2 names; the checkpoint's classifier has 35 classes\n"


def test_a_grid_that_does_not_fit_says_which_options_to_give(tmp_path: Path, refused: Refused) -> None:
    torch.save(checkpoint("patch16", "ssast", "finetuned_shorter"), tmp_path / "file.pth")
    given = ["import", tmp_path / "file.pth", tmp_path / "model"]
    assert "give --num-attention-heads" in refused(*given)
    message = refused(*given, "--num-attention-heads", "4")
    assert "108 patches" in message and "--time-stride or --frequency-stride" in message


# Where it is written


def test_an_existing_folder_is_left_alone(small: Path, tuned: Path, tmp_path: Path, refused: Refused) -> None:
    out = tmp_path / "model"
    out.mkdir()
    call("import", small, out)  # an empty folder holds nothing to lose
    assert f"{out} exists; expected a new folder, or --overwrite" in refused("import", tuned, out)
    (out / "notes.txt").write_text("years of work")
    assert "is no model folder, or holds more than a model" in refused("import", tuned, out, "--overwrite")
    (out / "notes.txt").unlink()
    assert (out / "unused.safetensors").exists()
    state = {name: tensor for name, tensor in plain_load(tuned).items() if "v.head" not in name}
    torch.save(state, tuned)
    call("import", tuned, out, "--overwrite")
    assert not (out / "unused.safetensors").exists()
    assert load_model(out).classifier is not None
    # A checkpoint that cannot be imported costs nobody the model that is there.
    small.write_bytes(small.read_bytes()[:1000])
    assert "is damaged" in refused("import", small, out, "--overwrite")


@pytest.mark.parametrize("name", ["file", "run", "link"])
def test_what_is_no_model_folder_is_not_replaced(name: str, small: Path, tmp_path: Path, refused: Refused) -> None:
    call("import", small, tmp_path / "run" / "model")
    (tmp_path / "file").write_text("a file")
    (tmp_path / "link").symlink_to(tmp_path / "run" / "model")
    assert "exists" in refused("import", small, tmp_path / name)
    assert "--overwrite does not remove it" in refused("import", small, tmp_path / name, "--overwrite")


def test_a_place_that_cannot_be_written_to(small: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "file").write_text("a file")
    assert "cannot be written" in refused("import", small, tmp_path / "file" / "model")
    call("import", small, tmp_path / "model")
    assert "there is no folder" in refused(
        "export", tmp_path / "model", tmp_path / "no" / "x.pth", "--format", "ssamba"
    )
    assert "is no name" in refused("import", small, ".")


def test_a_folder_is_complete_or_not_there(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    def full(*given: Any, **named: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ssamba.models.tensor_files.save_file", full)
    assert "No space left on device" in refused("import", small, tmp_path / "model")
    monkeypatch.undo()
    call("import", small, tmp_path / "model")
    monkeypatch.setattr("torch.save", full)
    assert "No space left" in refused("export", tmp_path / "model", tmp_path / "x.pth", "--format", "ssamba")


# Exports that cannot be


def test_an_export_of_another_family(small: Path, tmp_path: Path, refused: Refused) -> None:
    call("import", small, tmp_path / "model")
    message = refused("export", tmp_path / "model", tmp_path / "out.pth", "--format", "ssast")
    assert message == f"{tmp_path / 'model'} holds a model of ssamba; expected one of ssast for --format ssast\n"


def test_an_export_over_something(small: Path, tmp_path: Path, refused: Refused) -> None:
    call("import", small, tmp_path / "model")
    given = ["export", tmp_path / "model", tmp_path / "out.pth", "--format", "ssamba"]
    (tmp_path / "out.pth").write_text("precious")
    assert "out.pth exists; --overwrite replaces it" in refused(*given)
    call(*given, "--overwrite")
    assert_same_bits(plain_load(tmp_path / "out.pth"), plain_load(small))
    given[2] = tmp_path / "model"
    assert "model is a folder; expected the name of a file" in refused(*given, "--overwrite")


def test_an_export_of_no_model(tmp_path: Path, refused: Refused) -> None:
    assert "holds no model" in refused("export", tmp_path / "nothing", tmp_path / "out.pth", "--format", "ssamba")


def test_an_export_of_what_the_authors_cannot_load(tmp_path: Path, refused: Refused) -> None:
    arguments = from_authors(checkpoint("frame", "ssamba", "pretrain")).arguments
    arguments["options"]["residual"] = "plain"
    save_model(tmp_path / "model", MaskedPatchModel(AudioEncoder(**arguments)), AUDIOSET_LIBRISPEECH)
    message = refused("export", tmp_path / "model", tmp_path / "out.pth", "--format", "ssamba")
    assert "residual is plain (theirs is always doubling)" in message


def test_kept_tensors_that_are_damaged_or_others(small: Path, tmp_path: Path, refused: Refused) -> None:
    call("import", small, tmp_path / "model")
    kept = tmp_path / "model" / "unused.safetensors"
    given = ["export", tmp_path / "model", tmp_path / "out.pth", "--format", "ssamba"]
    save_file({"v.cls_token": torch.zeros(1, 1, 24)}, kept)
    assert f"{kept} holds v.cls_token; expected none but v.head.weight" in refused(*given)
    kept.write_bytes(kept.read_bytes()[:-10])
    assert f"{kept} is damaged" in refused(*given)


@pytest.mark.parametrize("encoder", ["conformer", "bilstm", "ssd"])
def test_an_export_of_what_has_no_authors_format(encoder: str, tmp_path: Path, refused: Refused) -> None:
    model = MaskedPatchModel(AudioEncoder(encoder, SIZES[encoder]["nano"], 32, 32, 16, 16, 16, 16))
    save_model(tmp_path / "model", model, AUDIOSET_LIBRISPEECH)
    message = refused("export", tmp_path / "model", tmp_path / "out.pth", "--format", "ssamba")
    assert f"holds a model of {encoder}; expected one of ssamba for --format ssamba" in message
    with pytest.raises(UserError, match=f"{encoder} has no format of its authors; expected a model of ssamba"):
        to_authors(model)


def test_a_format_that_there_is_not(tmp_path: Path, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["export", str(tmp_path), str(tmp_path / "out.pth"), "--format", "bilstm"])
    assert stopped.value.code == 2 and "'ssamba', 'ssast', 'aum', 'torch'" in capsys.readouterr().err
