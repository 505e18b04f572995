"""A whole model: outputs for clips of unequal lengths, hidden states, and what saving and loading keep."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import ssamba
from ssamba.config import ENCODERS
from ssamba.errors import UserError
from ssamba.features import Features
from ssamba.hub import SsambaModel
from ssamba.models.checkpoint import load_model

Runs = Callable[[str], Path]
each_encoder = pytest.mark.parametrize("encoder", ENCODERS)
each_kind = pytest.mark.parametrize("kind", ["pretrained", "finetuned"])
RATE = 16000


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(seconds * RATE)).astype(np.float32)


@pytest.fixture
def run(kind: str, encoder: str, request: pytest.FixtureRequest) -> Path:
    folder: Path = request.getfixturevalue(kind)(encoder)
    return folder


@each_kind
@each_encoder
def test_saved_and_loaded_the_outputs_are_the_same_bitwise(run: Path, kind: str, tmp_path: Path) -> None:
    model = ssamba.SsambaModel.from_pretrained(run)
    model.save_pretrained(tmp_path / "saved")
    names = {"README.md", "config.json", "model.safetensors", "preprocessor_config.json", "run.json"}
    assert {path.name for path in (tmp_path / "saved").iterdir()} == names
    again = SsambaModel.from_pretrained(tmp_path / "saved")
    assert (again.audio, again.classifier, again.record) == (model.audio, model.classifier, model.record)
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        assert (tmp_path / "saved" / name).read_bytes() == (run / "model" / name).read_bytes()
    with torch.inference_mode():
        features = model.feature_extractor([noise(0.3), noise(1.0)])
        first, second = model(*features, layers=[0, -1]), again(*features, layers=[0, -1])
    assert (first.logits is None) == (kind == "pretrained")
    for one, other in zip(
        [*first.hidden_states, *first.pooled, first.columns, *([first.logits] if first.logits is not None else [])],
        [
            *second.hidden_states,
            *second.pooled,
            second.columns,
            *([second.logits] if second.logits is not None else []),
        ],
        strict=True,
    ):
        assert torch.equal(one, other)


@each_kind
@each_encoder
def test_each_clip_is_encoded_as_it_would_be_alone(run: Path) -> None:
    model = SsambaModel.from_pretrained(run)
    clips = [noise(0.9), noise(1.3, 1), noise(0.9, 2)]
    with torch.inference_mode():
        together = model(*model.feature_extractor(clips), layers=[1, -1])
        for number, clip in enumerate(clips):
            features = model.feature_extractor(clip)
            encoded = model.network.encoder(features.input_values)
            alone = model(*features, layers=[1, -1])
            columns = int(together.columns[number])
            assert columns == (int(features.lengths[0]) - 16) // 16 + 1 == int(alone.columns[0])
            own = together.hidden_states[1][number]
            torch.testing.assert_close(own[:, :columns].flatten(0, 1), encoded.tokens[0], rtol=1e-4, atol=1e-5)
            assert not own[:, columns:].any()
            for one, other in zip(together.hidden_states, alone.hidden_states, strict=True):
                torch.testing.assert_close(one[number, :, :columns], other[0], rtol=1e-4, atol=1e-5)
            for one, other in zip(together.pooled, alone.pooled, strict=True):
                torch.testing.assert_close(one[number], other[0], rtol=1e-4, atol=1e-5)
            if together.logits is not None:
                logits = model.network(features.input_values, features.own)
                torch.testing.assert_close(together.logits[number], logits[0], rtol=1e-4, atol=1e-5)
    own = together.hidden_states[1][0][:, : together.columns[0]]
    statistics = torch.cat([own.mean(1).flatten(), own.std(1, correction=0).flatten()])
    torch.testing.assert_close(together.pooled[1][0], statistics, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["pretrained"])
@each_encoder
def test_layers_are_numbered_from_the_patches_to_the_output(run: Path) -> None:
    model = SsambaModel.from_pretrained(run)
    count = model.num_hidden_states
    assert count == 2 + 1
    features = model.feature_extractor(noise(1.0))
    with torch.inference_mode():
        found = model(*features, layers=range(count)).hidden_states
        again = model(*features, layers=[-1, 0]).hidden_states
        encoder = model.network.encoder
        embedded = encoder._split(encoder._embed(features.input_values, None), encoder.grid).tokens
    assert len(found) == count
    assert torch.equal(again[0], found[-1]) and torch.equal(again[1], found[0])
    torch.testing.assert_close(found[0][0].flatten(0, 1), embedded[0])
    for one, other in zip(found, found[1:], strict=False):
        assert (one - other).abs().max() > 1e-3
    for wrong in (count, -count - 1):
        with pytest.raises(UserError, match=rf"layer is {wrong}; this model has {count}: 0 .* to {count - 1}"):
            model(*features, layers=[wrong])


@pytest.mark.parametrize(("kind", "encoder"), [("finetuned", "ssamba")])
def test_the_card_says_what_the_run_measured_and_nothing_else(run: Path, tmp_path: Path) -> None:
    SsambaModel.from_pretrained(run).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    record = json.loads((run / "run.json").read_text())
    assert card.startswith("---\n") and "library_name: ssamba" in card and "pipeline_tag: audio-classification" in card
    assert f"- accuracy: {record['test']['accuracy']:.4f}" in card
    assert f"`{' '.join(record['command'])}`" in card and f"{record['parameters']:,}" in card
    assert "- train: 60" not in card and "- data, train: 60 recordings" in card


@pytest.mark.parametrize(("kind", "encoder"), [("finetuned", "ssast")])
def test_a_card_without_a_run_gives_no_score(run: Path, tmp_path: Path) -> None:
    saved = load_model(run)
    SsambaModel(saved.model, saved.audio, saved.classifier).save_pretrained(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "without the record of a run" in card and "accuracy" not in card
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "[" * 100_000, '{"steps": -1}', '{"command": 5, "data": null}', '"\\ud800"', "\xff" * 10],
)
def test_a_record_that_is_none_costs_its_place_in_the_card(
    text: str, finetuned: Runs, copy_of: Callable[[Path], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = copy_of(finetuned("ssast"))
    (run / "run.json").write_text(text)
    model = SsambaModel.from_pretrained(run)
    assert model.record is None and f"{run / 'run.json'} cannot be used" in caplog.text
    model.save_pretrained(tmp_path / "saved")
    assert "without the record of a run" in (tmp_path / "saved" / "README.md").read_text()


@pytest.mark.parametrize(
    "field", ["command", "started", "hardware", "versions", "data", "test", "last_metrics", "seed"]
)
def test_every_field_of_a_record_is_typed(
    field: str, finetuned: Runs, copy_of: Callable[[Path], Path], caplog: pytest.LogCaptureFixture
) -> None:
    run = copy_of(finetuned("ssast"))
    record = json.loads((run / "run.json").read_text())
    assert SsambaModel.from_pretrained(run).record == record and not caplog.records
    for value in (None, 1.5, {"a": []}, [{}]):
        (run / "run.json").write_text(json.dumps({**record, field: value}))
        assert SsambaModel.from_pretrained(run).record is None


@pytest.mark.parametrize(("kind", "encoder"), [("finetuned", "ssamba")])
def test_a_model_goes_to_the_hub_as_its_folder(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, Any] = {}

    class Api:
        def __init__(self, token: str | None = None) -> None:
            pass

        def create_repo(self, repo_id: str, **more: Any) -> Any:
            return type("Repository", (), {"repo_id": repo_id})

        def upload_folder(self, repo_id: str, folder_path: Path, **more: Any) -> str:
            sent[repo_id] = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
            return "sent"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    assert SsambaModel.from_pretrained(run).push_to_hub("someone/words") == "sent"
    assert sent["someone/words"]["model.safetensors"] == (run / "model" / "model.safetensors").read_bytes()
    assert {"README.md", "config.json", "preprocessor_config.json", "run.json"} < sent["someone/words"].keys()


def test_a_model_comes_from_the_hub(finetuned: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repo_id: str, **options: Any) -> str:
        asked.append((repo_id, options["revision"]))
        return str(finetuned("ssamba") / "model")

    monkeypatch.setattr("ssamba.hub.snapshot_download", download)
    assert SsambaModel.from_pretrained("someone/words", revision="v1").classifier is not None
    assert asked == [("someone/words", "v1")]


def test_what_is_neither_here_nor_on_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a folder here nor a model"):
        SsambaModel.from_pretrained("someone/words", local_files_only=True, cache_dir=tmp_path)
    with pytest.raises(UserError, match="neither a folder here nor a model"):
        SsambaModel.from_pretrained("runs/of/mine")


def test_padding_enters_no_pool_whatever_it_holds(pretrained: Runs) -> None:
    """Patches alone, whose tokens know nothing of each other: the hidden state 0."""
    model = SsambaModel.from_pretrained(pretrained("ssast"))
    values = torch.randn(2, 64, 128)
    own = torch.tensor([64, 17])  # 4 and 2 columns
    for name in ("mean", "rows", "statistics", "segments"):
        pool = model.pool(name)
        with torch.inference_mode():
            first = model(values, own=own, layers=[0], pool=pool).pooled[0]
            values[1, 32:] += 1
            again = model(values, own=own, layers=[0], pool=pool).pooled[0]
            whole = model(values, layers=[0], pool=pool).pooled[0]
        assert torch.equal(first, again) and first.shape == (2, pool.size)
        assert (whole[1] - again[1]).abs().max() > 0.01
        torch.testing.assert_close(whole[0], again[0])


def test_mel_bins_of_another_model_are_told(pretrained: Runs) -> None:
    model = SsambaModel.from_pretrained(pretrained("ssast"))
    with pytest.raises(
        UserError, match="input_values has 64 mel bins; expected 128, as this model's feature extractor"
    ):
        model(torch.randn(1, 64, 64), layers=[0])


def test_features_without_lengths_count_in_full(pretrained: Runs) -> None:
    model = SsambaModel.from_pretrained(pretrained("ssamba"))
    values = torch.randn(2, 40, 128)
    with torch.inference_mode():
        found = model(values, layers=[-1])
        again = model(*Features(values, torch.tensor([40, 40]), torch.tensor([40, 40])), layers=[-1])
    assert torch.equal(found.hidden_states[0], again.hidden_states[0]) and found.columns.tolist() == [2, 2]
    assert torch.equal(found.pooled[0], again.pooled[0])
