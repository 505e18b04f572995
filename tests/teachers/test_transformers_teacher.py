"""Small models of transformers with weights at random, as teachers: their frames, and when those are."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.cli import main
from ssamba.errors import UserError
from ssamba.teachers import FeatureTeacher, load_teacher

transformers = pytest.importorskip("transformers")

RATE = 16000
CONVOLUTIONS = {
    "conv_dim": (8,) * 7,
    "conv_kernel": (10, 3, 3, 3, 3, 2, 2),
    "conv_stride": (5, 2, 2, 2, 2, 2, 2),
}  # as published: a state every 320 samples, of 400
TRANSFORMER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


def speech(kind: str) -> Callable[[Path], None]:
    def save(folder: Path) -> None:
        config = getattr(transformers, f"{kind}Config")(
            **TRANSFORMER,
            **CONVOLUTIONS,
            num_feat_extract_layers=7,
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2,
        )
        getattr(transformers, f"{kind}Model")(config).save_pretrained(folder)
        transformers.Wav2Vec2FeatureExtractor(sampling_rate=RATE).save_pretrained(folder)

    return save


def whisper(folder: Path) -> None:
    layers = {f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    sizes = {f"{side}_ffn_dim": 24 for side in ("encoder", "decoder")}
    config = transformers.WhisperConfig(
        **layers,
        **sizes,
        d_model=16,
        vocab_size=99,
        num_mel_bins=20,
        max_source_positions=100,
        max_target_positions=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    transformers.WhisperModel(config).save_pretrained(folder)
    transformers.WhisperFeatureExtractor(feature_size=20, chunk_length=2).save_pretrained(folder)


def ast(folder: Path) -> None:
    config = transformers.ASTConfig(
        **TRANSFORMER, num_mel_bins=36, max_length=104, patch_size=16, frequency_stride=10, time_stride=10
    )
    transformers.ASTModel(config).save_pretrained(folder)
    transformers.ASTFeatureExtractor(num_mel_bins=36, max_length=104).save_pretrained(folder)


KINDS: dict[str, Callable[[Path], None]] = {
    "wav2vec2": speech("Wav2Vec2"),
    "hubert": speech("Hubert"),
    "wavlm": speech("WavLM"),
    "whisper": whisper,
    "ast": ast,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("transformers")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for kind, save in KINDS.items():
            save(root / kind)
    return {kind: root / kind for kind in KINDS}


def teacher_of(folder: Path, layer: int = -1) -> FeatureTeacher:
    return load_teacher(f"hf:{folder}", layer)


def sound(seconds: float, rate: int = RATE, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * rate)).astype(np.float32)


def plainly(folder: Path, waveform: np.ndarray[Any, Any], layer: int | None = None) -> Tensor:
    """The hidden states of one recording, as the documentation of transformers calls the model: standardised."""
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    model = model.get_encoder() if folder.name == "whisper" else model
    with torch.no_grad():
        out = model(**extractor(waveform, sampling_rate=RATE, return_tensors="pt"), output_hidden_states=True)
    states = (out.last_hidden_state if layer is None else out.hidden_states[layer])[0]
    if folder.name == "ast":  # 3 rows of 9 patches behind two tokens
        states = torch.stack([torch.cat([states[2 + row * 9 + column] for row in range(3)]) for column in range(9)])
    return F.layer_norm(states, states.shape[1:])


# The first middle and the frames a second: 25 ms every 20; a state for each two frames of 10 ms, which lie around their
# time; 16 frames of 25 ms every 100.
SPEECH = (0.0125, 50)
TIMES = {"wav2vec2": SPEECH, "hubert": SPEECH, "wavlm": SPEECH, "whisper": (0, 50), "ast": (0.0875, 10)}


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_the_hidden_states_standardised(kind: str, folders: dict[str, Path]) -> None:
    folder, (short, other) = folders[kind], (sound(0.5), sound(0.7, seed=1))
    teacher = teacher_of(folder)
    found = teacher.features([short, other, short], RATE)
    for waveform, frames in ((short, found[0]), (other, found[1]), (short, found[2])):
        wanted, seconds = plainly(folder, waveform), len(waveform) / RATE
        own = [frame for frame in range(len(wanted)) if TIMES[kind][0] + frame / TIMES[kind][1] < seconds]
        torch.testing.assert_close(frames, wanted[: len(own)], atol=1e-4, rtol=1e-4)
        assert len(frames) == pytest.approx(seconds * TIMES[kind][1], abs=1)
    assert teacher.width == found[0].shape[1] == (48 if kind == "ast" else 16)
    assert (teacher.times.first, teacher.times.rate) == pytest.approx(TIMES[kind])
    assert teacher.window_frames == {"whisper": 100, "ast": 9}.get(kind, 1500)


@pytest.mark.parametrize("kind", ["wav2vec2", "whisper"])
def test_another_layer_and_another_rate(kind: str, folders: dict[str, Path]) -> None:
    waveform = sound(0.5, 22050)
    (found,) = teacher_of(folders[kind], 1).features([waveform], 22050)
    wanted = plainly(folders[kind], soxr.resample(waveform, 22050, RATE, quality="HQ"), 1)
    torch.testing.assert_close(found, wanted[: len(found)], atol=1e-4, rtol=1e-4)
    with pytest.raises(UserError, match=r"layer is 7; hf:.* has 3, counted from 0"):
        teacher_of(folders[kind], 7)


def test_what_is_longer_than_a_window_is_heard_window_by_window(folders: dict[str, Path]) -> None:
    waveform = sound(4.5)
    (found,) = teacher_of(folders["whisper"]).features([waveform], RATE)
    parts = [plainly(folders["whisper"], waveform[start : start + 32000]) for start in (0, 32000, 64000)]
    torch.testing.assert_close(found, torch.cat(parts)[:225], atol=1e-4, rtol=1e-4)
    # Nine columns of patches are a window of AST's, and the next one begins where the tenth would.
    (found,) = teacher_of(folders["ast"]).features([waveform], RATE)
    parts = [plainly(folders["ast"], waveform[start : start + 16720]) for start in range(0, 72000, 14400)]
    torch.testing.assert_close(found, torch.cat(parts)[: len(found)], atol=1e-4, rtol=1e-4)
    assert len(found) == 45


def test_rows_of_patches_are_those_of_one_time(folders: dict[str, Path]) -> None:
    """Of what patches are embedded as, a change in the last tenth of a second is in the last column alone."""
    waveform = sound(1.04)
    changed = waveform.copy()
    changed[-1600:] = sound(0.1, seed=1)
    before, after = teacher_of(folders["ast"], 0).features([waveform, changed], RATE)
    differ = (before - after).abs().amax(1) > 1e-3
    assert differ.tolist() == [False] * 8 + [True]
    assert bool(((before - after)[8].unflatten(0, (3, -1)).abs().amax(1) > 1e-3).all())  # low to high


def test_a_student_learns_from_it_and_from_its_features_in_shards(
    recipes: dict[str, Path], corpus: Path, folders: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "shards"
    splits = [str(corpus / split) for split in ("train", "validation")]
    assert main(["embed", f"hf:{folders['hubert']}", *splits, "--into-shards", str(out)]) == 0
    words = ["objective.parts.distillation=1", "objective.parts.contrastive=1"]
    for name, teacher in (("told", f"hf:{folders['hubert']}"), ("stored", "shards")):
        places = [f"data.{split}={out / split}" for split in ("train", "validation")]
        words_of = [*words, f"objective.distillation.teacher={teacher}", *places, f"run_dir={tmp_path / name}"]
        assert main(["pretrain", str(recipes["pretrain"]), *words_of]) == 0
        assert (tmp_path / name / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize("what", ["nothing", "of_text", "of_ours"])
def test_what_is_no_audio_encoder_is_told(what: str, folders: dict[str, Path], tmp_path: Path) -> None:
    place = tmp_path / what
    if what == "of_text":
        config = transformers.BertConfig(**TRANSFORMER, vocab_size=20)
        transformers.BertModel(config).save_pretrained(place)
    elif what == "of_ours":
        place.mkdir()
        (place / "config.json").write_text('{"model_type": "ssamba"}')
    with pytest.raises(UserError, match=f"hf:{place} cannot be loaded: .*; expected an audio encoder"):
        teacher_of(place)


def test_without_the_package_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"hf:a is a model of transformers, which is not installed: pip install"):
        load_teacher("hf:a", -1)
