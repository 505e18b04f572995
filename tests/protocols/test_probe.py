"""`ssamba probe` on real runs: its scores, its options, its messages, and what it writes."""

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from ssamba.cli import main
from ssamba.data.labels import Labels
from ssamba.data.prepare.recordings import Recording
from ssamba.data.prepare.writer import write_shards
from ssamba.data.shards.finding import find_shards
from ssamba.data.shards.remote import ShardCache
from ssamba.evaluation import probes
from ssamba.evaluation.scores import read_scores
from ssamba.hub import SsambaModel
from ssamba.protocols import clips
from ssamba.protocols.clips import extract

Runs = Callable[[str], Path]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def words(corpus: Path, pretrained: Runs) -> list[str]:
    return ["probe", str(pretrained("ssast")), str(corpus / "train"), "--label", "sound", "--device", "cpu"]


@pytest.fixture(scope="module")
def quick(words: list[str]) -> list[str]:
    """A probe that fits nothing."""
    return [*words, "--protocol", "knn", "--k", "3", "--baseline", "none"]


@pytest.fixture
def few_strengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the penalty, so that fits are few."""
    monkeypatch.setattr(probes, "STRENGTHS", (1.0, 0.1))


def test_vectors_are_those_of_the_model(corpus: Path, pretrained: Runs, recordings: dict[str, list[Recording]]) -> None:
    """Whatever runs together with it, a clip has the vector that the model gives for the recording alone."""
    model = SsambaModel.from_pretrained(pretrained("ssamba"))
    shards = find_shards(str(corpus / "test"))
    labels = Labels("sound", shards.labels["sound"])
    pool = model.pool("statistics")
    found = extract(
        model, shards, [20, 3, 4], labels, ShardCache(10**9), layers=[0, 1], pool=pool, batch_size=2, desc="test"
    )
    assert found.rows == [3, 4, 20] and found.labels.dtype == torch.int64
    by_key = {one.key: one for one in recordings["test"]}
    for place, key in enumerate(found.keys):
        recording = by_key[key]
        assert shards.labels["sound"][found.labels[place]] == recording.labels["sound"]
        features = model.feature_extractor(
            model.feature_extractor.waveform(recording.path)[: model.feature_extractor.clip_samples]
        )
        with torch.no_grad():
            pooled = model(*features, layers=[0, 1], pool=pool).pooled
        for layer, vector in zip((0, 1), pooled, strict=True):
            torch.testing.assert_close(found.layers[layer][place], vector[0], atol=1e-4, rtol=1e-4)
        own = features.input_values[0, : int(features.own[0])]
        torch.testing.assert_close(found.baseline["statistics"][place][:128], own.mean(0), atol=1e-4, rtol=1e-4)
    assert found.places([4, 99, 3]).tolist() == [1, 0]


def test_a_recording_shorter_than_a_patch_is_scored_too(corpus: Path, pretrained: Runs, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, seconds in (("short", 0.06), ("long", 0.5)):  # a patch has 0.175 s
        soundfile.write(tmp_path / f"{name}.wav", rng.normal(0, 0.1, round(seconds * 16000)), 16000)
    records = [Recording(name, tmp_path / f"{name}.wav", {"sound": name}) for name in ("short", "long")]
    write_shards({"test": records}, tmp_path / "s", "s")
    shards = find_shards(str(tmp_path / "s" / "test"))
    model = SsambaModel.from_pretrained(pretrained("ssast"))
    assert model.audio.short == "keep"  # as packing in pretraining leaves it
    found = extract(
        model,
        shards,
        [0, 1],
        Labels("sound", ("long", "short")),
        ShardCache(10**9),
        layers=[-1 % 3],
        pool=model.pool(),
        batch_size=2,
        desc="test",
    )
    assert sorted(found.keys) == ["long", "short"]
    assert all(vector.isfinite().all() for vector in (*found.layers.values(), *found.baseline.values()))


def test_a_probe_is_scored_once_beside_its_baseline(
    words: list[str], corpus: Path, tmp_path: Path, capsys: Capture, few_strengths: None
) -> None:
    out = tmp_path / "probe"
    assert main([*words, "--test", str(corpus / "test"), "--layer", "all", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    record = json.loads((out / "probe.json").read_text())
    scores = json.loads((out / "scores.json").read_text())
    assert scores["clips"] == 24 and record["scores"]["model"]["accuracy"] == pytest.approx(scores["accuracy"])
    # Tones and chirps: log-mel knows them.
    baseline = json.loads((out / "baseline" / "scores.json").read_text())
    assert baseline["accuracy"] > 0.9
    assert record["scores"]["difference"]["accuracy"] == pytest.approx(scores["accuracy"] - baseline["accuracy"])
    (part,) = record["parts"]
    assert [row["name"] for row in part["rows"]][:3] == ["layer 0", "layer 1", "layer 2"]
    best = max(part["rows"][:3], key=lambda row: row["held_back"])
    assert best["name"] == part["chosen"] and part["training_clips"] == 60
    assert all(f"| {row['name']}" in said for row in part["rows"][:3]) and "| log-mel" in said
    predictions, names = read_scores(out)
    assert names == ["falling", "high", "low", "rising"]
    hits = (predictions.logits.argmax(1) == predictions.labels).double().mean()
    assert float(hits) == pytest.approx(scores["accuracy"])
    with (out / "mistakes.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == min(20, round(24 * (1 - scores["accuracy"])))
    # One file, which fetches nothing.
    page = (out / "report.html").read_text()
    assert "data:image/png;base64," in page and not re.search(r"(src|href)=\"(?!data:)", page)
    assert "| linear, layer" in (out / "report.md").read_text()


def run(words: list[str], out: Path, *more: str) -> dict[str, Any]:
    assert main([*words, "--out", str(out), *more]) == 0
    result: dict[str, Any] = json.loads((out / "probe.json").read_text())
    return result


def test_every_option_does_something(
    words: list[str], quick: list[str], corpus: Path, tmp_path: Path, few_strengths: None
) -> None:
    test = ["--test", str(corpus / "test")]
    plain = run(quick, tmp_path / "plain", *test)
    (row,) = plain["parts"][0]["rows"]
    assert plain["pooling"] == "statistics" and (row["name"], row["setting"]) == ("layer 2", 3)
    assert set(plain["scores"]) == {"model"} and not (tmp_path / "plain" / "baseline").exists()
    run([*words, "--protocol", "knn"], tmp_path / "knn", *test)
    assert (tmp_path / "knn" / "baseline").exists()
    logits = read_scores(tmp_path / "plain")[0].logits
    for option in (["--temperature", "10"], ["--layer", "0"], ["--pooling", "rows"]):
        run(quick, tmp_path / option[0].strip("-"), *test, *option)
        assert not torch.allclose(read_scores(tmp_path / option[0].strip("-"))[0].logits, logits)
    more = ["--protocol", "weighted", "--pooling", "segments", "--segments", "2", "--baseline", "none"]
    weighted = run(words, tmp_path / "weighted", *test, *more)
    (part,) = weighted["parts"]
    assert sum(part["layer_weights"]) == pytest.approx(1) and len(part["layer_weights"]) == 3
    assert (
        weighted["pooling"] == "segments" and "Weights of the layers" in (tmp_path / "weighted/report.md").read_text()
    )
    few = run(quick, tmp_path / "few", *test, "--limit", "12")
    assert few["parts"][0]["training_clips"] == 12
    assert json.loads((tmp_path / "few" / "scores.json").read_text())["clips"] == 12
    hard = [*quick, *test, "--label", "speaker"]
    scores = [run(hard, tmp_path / "hard", "--overwrite", *more) for more in ([], ["--group-by", "sound"])]
    alone, grouped = (one["scores"]["model"] for one in scores)
    assert grouped["accuracy"] == alone["accuracy"] < 1
    assert (grouped["accuracy_low"], grouped["accuracy_high"]) != (alone["accuracy_low"], alone["accuracy_high"])


def test_fractions_and_seeds(quick: list[str], corpus: Path, tmp_path: Path, capsys: Capture) -> None:
    more = ["--test", str(corpus / "test"), "--label-fraction", "0.2", "--seeds", "2"]
    record = run(quick, tmp_path / "few", *more)
    assert [part["training_clips"] for part in record["parts"]] == [12, 12]
    said = capsys.readouterr().out
    assert "| mean" in said and " ± " in said
    scores = [json.loads((tmp_path / "few" / f"seed-{seed}" / "scores.json").read_text()) for seed in range(2)]
    mean = sum(one["accuracy"] for one in scores) / 2
    assert record["scores"]["model"]["accuracy"] == pytest.approx(mean)
    # Each seed has other labels, and the same again is the same.
    logits = [read_scores(tmp_path / "few" / f"seed-{seed}")[0].logits for seed in range(2)]
    assert not torch.equal(logits[0], logits[1])
    assert run(quick, tmp_path / "few", *more, "--overwrite")["scores"] == record["scores"]


def test_folds_are_scored_by_the_others(quick: list[str], tmp_path: Path) -> None:
    record = run(quick, tmp_path / "folds", "--fold-by", "speaker")
    assert [part["fold"] for part in record["parts"]] == ["ada", "ben", "cyd"]
    for name in ("ada", "ben", "cyd"):
        predictions, _ = read_scores(tmp_path / "folds" / f"fold-{name}")
        assert len(predictions.keys) == 20 and all(f"-{name}-" in key for key in predictions.keys)
        assert next(part for part in record["parts"] if part["fold"] == name)["training_clips"] == 40
    one = run(quick, tmp_path / "one", "--fold-by", "speaker", "--folds", "ben")
    predictions, _ = read_scores(tmp_path / "one")
    assert [part["fold"] for part in one["parts"]] == ["ben"]
    assert torch.equal(predictions.logits, read_scores(tmp_path / "folds" / "fold-ben")[0].logits)


def test_several_labels_a_clip(words: list[str], corpus: Path, tmp_path: Path) -> None:
    more = ["--protocol", "knn", "--label", "tags", "--loss", "bce", "--test", str(corpus / "test")]
    record = run(words, tmp_path / "tags", *more)
    assert record["scores"]["log-mel"]["mAP"] > 0.9
    predictions, names = read_scores(tmp_path / "tags")
    assert predictions.labels.shape == (24, 6) and "gliding" in names


def test_mistakes(
    words: list[str],
    corpus: Path,
    pretrained: Runs,
    finetuned: Runs,
    refused: Callable[..., str],
    tmp_path: Path,
    recordings: dict[str, list[Recording]],
) -> None:
    test = ["--test", str(corpus / "test")]
    assert "give --test SHARDS to be scored, or --fold-by KEY" in refused(*words)
    assert "one of them" in refused(*words, *test, "--fold-by", "speaker")
    assert "they are the same recordings" in refused(*words, "--test", corpus / "train")
    assert "--folds names recordings of --fold-by" in refused(*words, *test, "--folds", "ada")
    assert "--k is of --protocol knn" in refused(*words, *test, "--k", "3")
    assert "weighted takes all of them" in refused(*words, *test, "--protocol", "weighted", "--layer", "1")
    assert "--layer is x; expected a whole number" in refused(*words, *test, "--layer", "x")
    assert "layer is 9; this model has" in refused(*words, *test, "--layer", "9")
    assert "pooling is attentive, which is learned" in refused(*words, *test, "--pooling", "attentive")
    assert "--label is 'mood', which the shards lack; they have sound" in refused(*words, *test, "--label", "mood")
    assert "--group-by is 'mood'" in refused(*words, *test, "--group-by", "mood")
    assert "--label is tags, of which 0 of 60 recordings have one name; 60 have several" in refused(
        *words, *test, "--label", "tags"
    )
    assert "no recording is in the fold 'eve' of --fold-by speaker; expected one of ada, ben" in refused(
        *words, "--fold-by", "speaker", "--folds", "eve"
    )
    assert "no training recording without falling is of falling" in refused(*words, "--fold-by", "sound")
    assert "is to be scored (seed 0, --label-fraction 0.05); expected every class" in refused(
        *words, *test, "--label-fraction", "0.05"
    )
    run_folder = finetuned("ssast")
    said = refused("probe", run_folder, corpus / "train", "--label", "sound", *test)
    assert f"SHARDS is what {run_folder} was fine-tuned on (data.train of its run.json" in said
    said = refused("probe", run_folder, corpus / "test", "--label", "sound", "--test", corpus / "validation")
    assert said.startswith("--test is what") and "data.validation" in said
    slow = [Recording(one.key, one.path, one.labels) for one in recordings["test"]]
    write_shards({"test": slow}, tmp_path / "slow", "slow", sampling_rate=8000)
    assert "--test holds audio at 8000 Hz; the model hears 16000 Hz" in refused(
        *words, "--test", tmp_path / "slow" / "test"
    )
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("")
    assert "so it is not this command" in refused(*words, *test, "--out", tmp_path / "other", "--overwrite")


def test_a_folder_with_scores_is_not_replaced_unasked(
    quick: list[str], tmp_path: Path, refused: Callable[..., str]
) -> None:
    run(quick, tmp_path / "probe", "--fold-by", "speaker", "--folds", "ada")
    words = [*quick, "--fold-by", "speaker", "--out", tmp_path / "probe"]
    assert "--overwrite replaces the scores in it" in refused(*words)


def test_features_that_do_not_fit_into_memory(
    words: list[str], corpus: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clips, "MOST_BYTES", 1000)
    said = refused(*words, "--test", str(corpus / "test"))
    assert said.startswith("84 clips x 1 layers x ") and "give --limit, one --layer or a smaller --pooling" in said
