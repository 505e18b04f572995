"""`ssamba predict`: what it says, in which form, and what becomes of recordings that cannot be used."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from ssamba import SsambaModel
from ssamba.cli import main
from ssamba.data.prepare.recordings import Recording
from ssamba.inference import Window, predict_file, windows
from ssamba.inference.predict import predictions
from ssamba.inference.windows import Ended

MakeModel = MakeSound = Runs = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def call(capsys: Capture) -> Callable[..., tuple[int, str, str]]:
    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main([str(word) for word in words])
        return status, *capsys.readouterr()

    return run


Call = Callable[..., tuple[int, str, str]]


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_any_format_and_rate_in_one_batch_is_what_the_model_says_of_each(
    classifier: Path, make_sound: MakeSound, call: Call
) -> None:
    paths = [
        make_sound("a.wav", 1, 8000),
        make_sound("b.flac", 5, 44100, 2),
        make_sound("c.ogg", 10, 22050),
        make_sound("d.mp3", 0.3, 48000, 2),
        make_sound("e.aiff", 2, 96000, 6),
    ]
    status, out, err = call("predict", classifier, *paths, "--format", "jsonl", "--top", 9, "--batch-size", 3)
    assert status == 0 and "predict: 100%" in err
    model = SsambaModel.from_pretrained(classifier)
    with torch.no_grad():
        logits = model(*model.feature_extractor(paths)).logits
    assert logits is not None and model.classifier is not None
    found = json_lines(out)
    assert [one["path"] for one in found] == [str(path) for path in paths]
    assert [one["seconds"] for one in found] == pytest.approx([1, 5, 10, 0.3, 2], abs=1e-3)
    for one, chances in zip(found, logits.softmax(1), strict=True):
        order = chances.argsort(descending=True).tolist()
        assert [answer["label"] for answer in one["labels"]] == [model.classifier.labels[place] for place in order]
        assert [answer["probability"] for answer in one["labels"]] == pytest.approx(chances[order].tolist(), abs=1e-5)
        assert one["windows"] == 1


@pytest.mark.parametrize("encoder", ["ssamba", "ssast"])
def test_a_test_split_is_predicted_as_it_was_evaluated(
    encoder: str, finetuned: Runs, recordings: dict[str, list[Recording]], call: Call
) -> None:
    run = finetuned(encoder)
    with (run / "test" / "predictions.csv").open(newline="") as file:
        wanted = {row["key"]: row for row in csv.DictReader(file)}
    clip = (400 + 63 * 160) / 16000  # of longer recordings evaluation takes the start
    paths = [one.path for one in recordings["test"] if soundfile.info(one.path).duration <= clip]
    assert len(paths) > 5
    status, out, _ = call("predict", run, *paths, "--format", "jsonl", "--top", 1)
    assert status == 0
    for one in json_lines(out):
        row = wanted[Path(one["path"]).stem]
        assert one["labels"][0]["label"] == row["predicted"]
        assert one["labels"][0]["probability"] == pytest.approx(float(row["probability"]), abs=1e-4)


def test_a_long_recording_is_the_mean_over_its_seconds(classifier: Path, make_sound: MakeSound, call: Call) -> None:
    path = make_sound("long.wav", 9)
    status, out, _ = call("predict", classifier, path, "--format", "jsonl", "--top", 4, "--window", 2)
    model = SsambaModel.from_pretrained(classifier)
    assert model.classifier is not None
    chances = [window.probabilities for window in predict_file(model, path, 2)]
    assert len(chances) == 5
    # Four windows of 2 s, and one that adds the last second.
    mean = (2 * sum(chances[:4]) + chances[4]) / 9  # type: ignore[arg-type, operator]
    (found,) = json_lines(out)
    assert status == 0 and found["windows"] == 5
    for answer in found["labels"]:
        wanted = mean[model.classifier.labels.index(answer["label"])]
        assert answer["probability"] == pytest.approx(wanted.item(), abs=1e-5)


def window(path: str, step: float, *chances: float) -> Window:
    empty = torch.zeros(0)
    return Window(path, 0, 0, step, empty, torch.tensor(chances), None, None, empty)


def test_means_of_one_recording_do_not_reach_the_next() -> None:
    found = [
        window("a", 2, 1.0, 0.0),
        window("a", 1, 0.0, 1.0),
        Ended("a", 3, None),
        Ended("b", 0, "it is bad"),
        window("c", 2, 0.5, 0.5),
        Ended("c", 2, "it is bad, too"),
        window("d", 2, 0.25, 0.75),
        Ended("d", 2, None),
    ]
    a, b, c, d = predictions(found)
    assert (a.path, a.seconds, a.windows, a.error) == ("a", 3, 2, None)
    torch.testing.assert_close(a.probabilities, torch.tensor([2 / 3, 1 / 3], dtype=torch.float64))
    assert b.probabilities is None and b.error == "it is bad" and c.probabilities is None
    torch.testing.assert_close(d.probabilities, torch.tensor([0.25, 0.75], dtype=torch.float64))


def test_a_table_lines_up(classifier: Path, make_sound: MakeSound, call: Call, tmp_path: Path) -> None:
    make_sound("a.wav", 1)
    make_sound("under/longer name.wav", 12)
    status, out, _ = call("predict", classifier, tmp_path, "--top", 2)
    first, second = out.splitlines()
    assert status == 0 and first.startswith(f"{tmp_path}/a.wav  ") and "  12.00 s  " in second
    assert first.index(" s  ") == second.index(" s  ") and len(first) == len(second)
    words = second.split(" s  ")[1].split()
    assert {words[0], words[2]} < {"cat", "dog", "rain", "wind"} and 1 >= float(words[1]) >= float(words[3]) >= 0


def test_a_name_that_is_no_text(classifier: Path, make_sound: MakeSound, call: Call, tmp_path: Path) -> None:
    make_sound("a.wav", 1).rename(tmp_path / os.fsdecode(b"caf\xe9.wav"))
    status, out, _ = call("predict", classifier, tmp_path, "--format", "jsonl")
    assert (
        status == 0 and json.loads(out)["path"] == str(tmp_path / "caf\udce9.wav") and json.loads(out)["seconds"] == 1
    )


def test_answers_into_a_file(classifier: Path, make_sound: MakeSound, call: Call, tmp_path: Path) -> None:
    path, out = make_sound("a.wav", 1), tmp_path / "out.jsonl"
    wanted = call("predict", classifier, path, "--format", "jsonl")[1]
    status, said, _ = call("predict", classifier, path, "--format", "jsonl", "--out", out)
    assert (status, said) == (0, "") and out.read_text() == wanted
    out.write_text("mine")
    status, said, err = call("predict", classifier, path, "--out", out)
    assert status == 2 and f"{out} exists; --overwrite replaces it" in err and out.read_text() == "mine"
    assert call("predict", classifier, path, "--format", "jsonl", "--out", out, "--overwrite")[0] == 0
    assert out.read_text() == wanted and {one.name for one in tmp_path.iterdir()} == {"a.wav", "out.jsonl"}


@pytest.fixture
def mixed(make_sound: MakeSound, tmp_path: Path) -> Path:
    """Two good recordings among bad ones of every kind."""
    folder = tmp_path / "mixed"
    make_sound("mixed/c.wav", 1)
    make_sound("mixed/i.flac", 12)
    make_sound("mixed/short.wav", 0.05)
    (folder / "a.wav").write_bytes(b"")
    (folder / "b.mp3").write_text("these are words")
    broken = make_sound("mixed/d.flac", 8)
    broken.write_bytes(broken.read_bytes()[: broken.stat().st_size // 2])
    samples = np.random.default_rng(0).normal(0, 0.1, 30 * 16000).astype(np.float32)
    soundfile.write(folder / "huge.wav", 1e30 * samples, 16000, subtype="FLOAT")
    samples[20 * 16000] = np.nan
    soundfile.write(folder / "nan.wav", samples, 16000, subtype="FLOAT")
    return folder


REASONS = {
    "a.wav": "cannot be decoded",
    "b.mp3": "cannot be decoded",
    "d.flac": "cannot be decoded",
    "huge.wav": "where full scale is 1",
    "nan.wav": "not finite, the first at 20.000 s",
    "short.wav": "it has 0.050 s; the model needs 0.175 s",
}


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_bad_recordings_are_named_and_the_others_go_on(batch: int, classifier: Path, mixed: Path, call: Call) -> None:
    words = ["--window", 2, "--batch-size", batch]
    status, out, err = call("predict", classifier, mixed, "--format", "jsonl", *words)
    assert status == 1 and "Traceback" not in err
    found = {Path(one["path"]).name: one for one in json_lines(out)}
    assert list(found) == ["a.wav", "b.mp3", "c.wav", "d.flac", "huge.wav", "i.flac", "nan.wav", "short.wav"]
    for name, one in found.items():
        assert one.keys() == ({"path", "error"} if name in REASONS else {"path", "seconds", "windows", "labels"})
        if name in REASONS:
            assert REASONS[name] in one["error"] and f"ssamba: {mixed / name}: {one['error']}\n" in err
    assert "6 recordings failed" in err
    alone = json_lines(call("predict", classifier, mixed / "i.flac", "--format", "jsonl", *words)[1])
    assert [one["label"] for one in alone[0]["labels"]] == [one["label"] for one in found["i.flac"]["labels"]]
    status, out, _ = call("predict", classifier, mixed)
    assert status == 1 and [Path(line.split()[0]).name for line in out.splitlines()] == ["c.wav", "i.flac"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--top", 0], "top is 0; expected at least 1"),
        (["--batch-size", 0], "--batch-size is 0; expected at least 1"),
        (["--window", 0.1], "the model needs 0.175 s, one patch"),
        (["--hop", 0], "--hop is 0; expected at least 0.001"),
        (["--window", 2, "--hop", 3], "would be left out"),
        (["--out", "."], ". is a folder"),
        (["--out", "nowhere/x.jsonl"], "there is no folder nowhere"),
        (["nowhere.wav"], "nowhere.wav does not exist"),
        (["*.nothing"], "*.nothing matches no file"),
    ],
)
def test_mistakes(words: list[object], said: str, classifier: Path, make_sound: MakeSound, call: Call) -> None:
    status, out, err = call("predict", classifier, make_sound("a.wav", 1), *words)
    assert (status, out) == (2, "") and said in err and err.startswith("ssamba: ") and err.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(classifier: Path, make_sound: MakeSound, call: Call) -> None:
    status, _, err = call("predict", classifier, make_sound("a.wav", 1), "--device", "cuda")
    assert status == 2 and "device is cuda, but torch finds no GPU" in err


def test_a_pretrained_model_has_no_labels_to_predict(encoder: Path, make_sound: MakeSound, call: Call) -> None:
    status, out, err = call("predict", encoder, make_sound("a.wav", 1))
    assert (status, out) == (2, "") and f"{encoder} is a pretrained model without a classifier" in err
    assert "`ssamba embed`" in err and err.count("\n") == 1


# Timelines


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.drawn
def test_timelines(classifier: Path, mixed: Path, call: Call, tmp_path: Path) -> None:
    folder = tmp_path / "timelines"
    words = ["predict", classifier, mixed, "--window", 4, "--hop", 2, "--timeline", folder, "--format", "jsonl"]
    status, out, _ = call(*words)
    assert status == 1
    assert {str(path.relative_to(folder)) for path in folder.rglob("*")} == {
        "c.wav.csv",
        "c.wav.png",
        "i.flac.csv",
        "i.flac.png",
    }
    rows = rows_of(folder / "i.flac.csv")
    assert [(row["start"], row["end"]) for row in rows] == [(f"{s}.000", f"{s + 4}.000") for s in range(0, 9, 2)]
    labels = ["cat", "dog", "rain", "wind"]
    for row in rows:
        chances = {label: float(row[label]) for label in labels}
        assert sum(chances.values()) == pytest.approx(1, abs=1e-5)
        assert row["label"] == max(chances, key=lambda label: chances[label])
        assert float(row["probability"]) == max(chances.values())
    (line,) = [one for one in json_lines(out) if one["path"].endswith("i.flac")]
    for answer in line["labels"]:
        mean = np.mean([float(row[answer["label"]]) for row in rows])
        assert answer["probability"] == pytest.approx(mean, abs=1e-5)
    for picture in folder.glob("*.png"):
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"

    before = (folder / "c.wav.csv").read_bytes()
    status, out, err = call(*words)
    assert (status, out) == (2, "") and f"{folder / 'c.wav.csv'} exists; --overwrite replaces the timelines" in err
    assert call(*words, "--overwrite")[0] == 1 and (folder / "c.wav.csv").read_bytes() == before


def test_what_is_interrupted_leaves_nothing(
    classifier: Path, make_sound: MakeSound, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_sound("long.wav", 12)
    infer, calls = windows.infer, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return infer(*arguments)

    monkeypatch.setattr(windows, "infer", interrupted)
    words = [classifier, path, "--window", 4, "--batch-size", 1]
    assert call("predict", *words, "--out", tmp_path / "x.txt", "--timeline", tmp_path / "timeline")[0] == 130
    calls.clear()
    assert call("embed", *words, "--out", tmp_path / "x.npz")[0] == 130
    assert sorted(one.name for one in tmp_path.rglob("*")) == ["long.wav"]


def test_a_folder_for_timelines_is_no_file(classifier: Path, make_sound: MakeSound, call: Call) -> None:
    path = make_sound("a.wav", 1)
    status, _, err = call("predict", classifier, path, "--timeline", path)
    assert status == 2 and f"{path} is a file; expected a folder" in err


def test_recordings_of_one_name_have_timelines_of_their_own(
    classifier: Path, make_sound: MakeSound, call: Call, tmp_path: Path
) -> None:
    for name in ("data/one/a.wav", "data/two/a.wav", "data/two/a.flac"):
        make_sound(name, 1)
    assert call("predict", classifier, tmp_path / "data", "--timeline", tmp_path / "out")[0] == 0
    assert {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.csv")} == {
        "one/a.wav.csv",
        "two/a.wav.csv",
        "two/a.flac.csv",
    }
