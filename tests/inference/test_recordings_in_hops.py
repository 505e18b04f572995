"""What a classifier of hops says of recordings of any length, as one row a hop or as words."""

import csv
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssamba.cli import main
from ssamba.hub import SsambaModel
from ssamba.inference.spelling import Spelling, Word
from ssamba.inference.windows import Ended, Window, predict_file, stitched
from ssamba.models.checkpoint import build_classifier, save_model
from ssamba.models.encoder import AudioEncoder
from ssamba.models.settings import AudioSettings, ClassifierSettings

LABELS = ("background", "cat", "dog")
LETTERS = ("<blank>", " ", "a", "b")
OPTIONS = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "state_size": 4,
    "expand": 2,
    "conv_kernel": 4,
    "residual": "plain",
    "layer_norm_eps": 1e-5,
}
HOP = 0.2


@pytest.fixture(scope="module")
def make_hops(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A model with answers of 200 ms, for clips of 4 s."""

    def make(labels: tuple[str, ...] = LABELS, loss: str = "cross_entropy") -> Path:
        folder = tmp_path_factory.mktemp("models") / "model"
        with torch.random.fork_rng():
            torch.manual_seed(0)
            encoder = AudioEncoder("ssamba", OPTIONS, 128, 400, 128, 4, 128, 4)
            settings = ClassifierSettings(labels, "scene", loss, "rows", hop_columns=5)
            model = build_classifier(encoder, settings)
            model.head[1].weight.data *= 40
        save_model(folder, model, AudioSettings(16000, -4.0, 4.0, "pad"), settings)
        return folder

    return make


def window(start: float, end: float, hops: list[int], path: str = "r.wav") -> Window:
    chances, frames = torch.eye(4)[torch.tensor(hops)], torch.zeros(round(100 * (end - start)), 3)
    frames[:, 0] = start + torch.arange(len(frames)) / 100
    return Window(path, start, end, 1.0, frames, chances.mean(0), None, None, torch.zeros(0, 2), chances, HOP)


def test_hops_come_from_the_window_in_whose_middle_they_lie() -> None:
    windows = [
        window(0.0, 2.0, [0] * 10),
        window(1.0, 3.0, [1] * 10),
        window(1.3, 3.3, [2] * 10),
        Ended("r.wav", 3.3, None),
    ]
    *hops, ended = stitched(windows)
    assert isinstance(ended, Ended)
    answers = [(round(one.start, 3), round(one.end, 3), int(one.probabilities.argmax())) for one in hops]
    # Between the first two the border is at 1.5, between the others at 2.15; hops belong where their middle lies.
    ends = [
        *(round(HOP * place, 3) for place in range(1, 11)),
        2.2,
        *(round(2.3 + HOP * place, 3) for place in range(6)),
    ]
    assert answers == list(zip([0.0, *ends[:-1]], ends, [0] * 7 + [1] * 4 + [2] * 6, strict=True))
    assert hops[-1].end == 3.3 and all(one.hops is None for one in hops)
    for one in hops:  # each with its own frames
        assert abs(float(one.spectrogram[0, 0]) - one.start) < HOP and len(one.spectrogram) == 20
        assert one.step == pytest.approx(one.end - one.start)


def test_recordings_are_not_mixed() -> None:
    found = list(
        stitched(
            [
                window(0.0, 2.0, [0] * 10),
                window(1.0, 3.0, [0] * 10),
                Ended("r.wav", 3.0, None),
                window(0.0, 0.4, [1, 2], "s.wav"),
                Ended("s.wav", 0.4, None),
                Ended("t.wav", 0.0, "torn"),
                window(0.0, 0.2, [3], "u.wav"),
                Ended("u.wav", 0.2, None),
            ]
        )
    )
    assert [one.path for one in found] == ["r.wav"] * 16 + ["s.wav"] * 3 + ["t.wav"] + ["u.wav"] * 2
    assert [one.start for one in found if isinstance(one, Window) and one.path == "s.wav"] == [0.0, HOP]


@pytest.mark.parametrize("seconds", [0.5, 3.9, 4.0, 9.3])
def test_a_file_is_told_hop_by_hop(
    make_hops: Callable[..., Path], make_sound: Callable[..., Path], seconds: float
) -> None:
    model, path = SsambaModel.from_pretrained(make_hops()), make_sound("a.wav", seconds)
    hops = list(predict_file(model, path))
    assert hops[0].start == 0 and hops[-1].end == pytest.approx(seconds)
    assert all(one.end == other.start < other.end for one, other in itertools.pairwise(hops))
    assert sum(len(one.spectrogram) for one in hops) >= round(100 * (seconds - HOP))
    if seconds <= 4:  # one window: what the model says of the clip
        logits = model(*model.feature_extractor(path)).logits[0]
        expected = logits.softmax(1)[: len(hops)]
        assert torch.allclose(torch.stack([one.probabilities for one in hops]), expected, atol=1e-5)
    layered = list(predict_file(model, path, layer=-1))
    assert all(one.hops is not None and one.pooled is not None for one in layered)


def test_a_timeline_has_a_line_a_hop(
    make_hops: Callable[..., Path], make_sound: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_sound("long/a.wav", 9.3)
    words = ["predict", str(make_hops()), str(path), "--timeline", str(tmp_path / "t"), "--format", "jsonl"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    with (tmp_path / "t" / "a.wav.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert told["windows"] == len(rows) >= 46 and float(rows[-1]["end"]) == pytest.approx(9.3)
    means = {
        name: np.average(
            [float(row[name]) for row in rows], weights=[float(row["end"]) - float(row["start"]) for row in rows]
        )
        for name in LABELS
    }
    for one in told["labels"]:
        assert one["probability"] == pytest.approx(means[one["label"]], abs=1e-4)
    assert (tmp_path / "t" / "a.wav.png").is_file()


def test_words_are_spelled_over_hops() -> None:
    spelling, words = Spelling(LETTERS), list[Word]()
    #        a  a  -  a  b  _  _  -  b  -
    numbers = [2, 2, 0, 2, 3, 1, 1, 0, 3, 0]
    for place, number in enumerate(numbers):
        hop = window(place * HOP, (place + 1) * HOP, [number])
        words += spelling.add(hop._replace(probabilities=hop.hops[0]))
    words += spelling.end()
    assert [(word.text, round(word.start, 3), round(word.end, 3)) for word in words] == [
        ("aab", 0.0, 1.0),
        ("b", 1.6, 1.8),
    ]
    assert spelling.end() == []


def test_what_is_said_is_written_down(
    make_hops: Callable[..., Path], make_sound: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, path = make_hops(LETTERS, "ctc"), make_sound("a.wav", 3.0)
    words = ["predict", str(folder), str(path), str(make_sound("b.wav", 0.3)), "--timeline", str(tmp_path / "t")]
    assert main([*words, "--format", "jsonl"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    model = SsambaModel.from_pretrained(folder)
    for one, name in zip(told, ("a.wav", "b.wav"), strict=True):
        hops = torch.stack([hop.probabilities for hop in predict_file(model, tmp_path / name)]).argmax(1)
        letters = [LETTERS[number] for number in hops.unique_consecutive().tolist() if number]
        assert one == {
            "path": str(tmp_path / name),
            "seconds": one["seconds"],
            "text": " ".join("".join(letters).split()),
        }
        with (tmp_path / "t" / f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert " ".join(row["word"] for row in rows) == one["text"]
    assert told[0]["text"]
    assert main([*words, "--overwrite"]) == 0
    assert told[0]["text"] in capsys.readouterr().out


def test_programs_and_other_formats_are_of_whole_clips(
    make_hops: Callable[..., Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    folder = make_hops()
    assert "answers hop by hop" in refused("export", folder, tmp_path / "m.pt2", "--format", "torch")
    assert "answers hop by hop" in refused("export", folder, tmp_path / "m.pth", "--format", "ssamba")


def test_memory_does_not_grow_with_a_recording(make_hops: Callable[..., Path], tmp_path: Path) -> None:
    """As many hops are held as two windows have, however long a recording is."""
    held: list[int] = []

    def windows() -> Any:
        for place in range(200):
            held.append(place)
            yield window(place * 1.0, place + 2.0, [0] * 10)
        yield Ended("r.wav", 201.0, None)

    hops = 0
    for one in stitched(windows()):
        if isinstance(one, Window):
            assert one.start >= len(held) - 2.5
            hops += 1
    assert hops == 1005
