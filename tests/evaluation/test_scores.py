"""What evaluations write of each clip, and that it is read back as it was."""

import csv
import io
import json
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ssamba.errors import UserError
from ssamba.evaluation.classification import Predictions
from ssamba.evaluation.intervals import Scored, paired_differences, score_intervals
from ssamba.evaluation.metrics import class_scores, clip_metrics, summary_metrics
from ssamba.evaluation.scores import SCORES_NAME, fill_scores, mistakes, probabilities, read_groups, read_scores

NAMES = ["cat", "=dog", "owl"]
ONE = Predictions(
    ["a", "b", "c", "d\n"],
    torch.tensor([[2.0, 0, 0], [3.0, 0, 0], [0, 0, 1.0], [0, 4.0, 0]]),
    torch.tensor([0, 1, 1, 1]),
)
SEVERAL = Predictions(
    ["a", "b", "c"],
    torch.tensor([[3.0, -4, 1], [-1.0, -2, -5], [0.5, 0.1, -3]]),
    torch.tensor([[1.0, 0, 1], [1, 0, 0], [0, 1, 0]]),
)


def test_the_surest_mistakes_come_first() -> None:
    found = mistakes(ONE, NAMES)
    assert [(one.key, one.true, one.wrong) for one in found] == [("b", "=dog", "said cat"), ("c", "=dog", "said owl")]
    assert found[0].probability == pytest.approx(float(ONE.logits[1].softmax(0)[0]))
    assert mistakes(ONE, NAMES, most=1) == found[:1]
    both = mistakes(SEVERAL, NAMES)
    assert [(one.key, one.true, one.wrong) for one in both] == [("b", "cat", "missed cat"), ("c", "=dog", "said cat")]
    assert both[0].probability == pytest.approx(1 - float(torch.tensor(-1.0).sigmoid()))


@pytest.mark.parametrize("scored", [ONE, SEVERAL], ids=["one", "several"])
def test_scores_are_read_back(scored: Predictions, tmp_path: Path) -> None:
    scores = fill_scores(tmp_path, scored, NAMES, "title")
    read, names = read_scores(tmp_path)
    assert (read.keys, names) == (scored.keys, NAMES)
    assert torch.equal(read.labels, scored.labels)
    torch.testing.assert_close(probabilities(read).float(), probabilities(scored))
    assert clip_metrics(read.logits, read.labels) == pytest.approx(clip_metrics(scored.logits, scored.labels))
    assert all(value == 0 for one in paired_differences([Scored(read)], [Scored(scored)]).values() for value in one)
    assert json.loads((tmp_path / "scores.json").read_text()) == scores
    for name, interval in score_intervals(scored).items():
        assert (scores[name], scores[f"{name}_low"], scores[f"{name}_high"]) == pytest.approx(tuple(interval))
        assert scores[f"{name}_low"] <= scores[name] <= scores[f"{name}_high"]
    # Anybody reads them.
    with np.load(tmp_path / SCORES_NAME) as arrays:
        assert json.loads(arrays["keys"].tobytes()) == scored.keys
        assert arrays["probabilities"].dtype == np.float32
    classes = class_scores(probabilities(scored), scored.labels)
    assert scores["AUC"] == summary_metrics(classes, probabilities(scored), scored.labels)["AUC"]
    with (tmp_path / "classes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["cat", "'=dog", "owl"]
    for row, one in zip(rows, classes, strict=True):
        assert int(row["clips"]) == one.clips and float(row["f1"]) == pytest.approx(one.f1, abs=1e-4)
        assert (row["auc"] == "") == math.isnan(one.auc)
    with (tmp_path / "mistakes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == [one.key for one in mistakes(scored, NAMES)]
    assert rows[0]["true"] == ("'=dog" if scored is ONE else "cat")


def test_groups_widen_the_intervals(tmp_path: Path) -> None:
    hits = torch.arange(60) % 12 < 6  # whole speakers right or wrong
    scored = Predictions([str(i) for i in range(60)], torch.stack([hits, ~hits], 1).float(), torch.zeros(60).long())
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    alone = fill_scores(tmp_path / "a", scored, ["x", "y"], "")
    grouped = fill_scores(tmp_path / "b", scored, ["x", "y"], "", [str(i // 6) for i in range(60)])
    assert grouped["accuracy_high"] - grouped["accuracy_low"] > 1.5 * (alone["accuracy_high"] - alone["accuracy_low"])
    assert (
        read_groups(tmp_path / "b") == {str(i): str(i // 6) for i in range(60)} and read_groups(tmp_path / "a") is None
    )
    with np.load(tmp_path / "b" / SCORES_NAME) as arrays:
        np.savez(tmp_path / "b" / SCORES_NAME, **{**arrays, "groups": np.frombuffer(b'["1"]', np.uint8)})
    with pytest.raises(UserError, match="has groups of 1 of its 60 clips; expected the scores of a run"):
        read_groups(tmp_path / "b")


def test_scores_that_are_damaged_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be used"):
        read_scores(tmp_path)
    fill_scores(tmp_path, ONE, NAMES, "")
    path = tmp_path / SCORES_NAME
    whole = path.read_bytes()
    with np.load(path) as arrays:
        held = dict(arrays)

    def changed(**others: object) -> bytes:
        file = io.BytesIO()
        np.savez(file, **{**held, **others})  # type: ignore[arg-type]
        return file.getvalue()

    bad = [
        whole[:100],
        b"",
        b"text",
        changed(labels=np.array([0, 1, 2, 3])),
        changed(labels=np.array([0, 1])),
        changed(keys=np.frombuffer(b"[1]", np.uint8)),
        changed(keys=np.array([{}], object)),
        changed(probabilities=held["probabilities"] * 2),
        changed(probabilities=held["probabilities"].astype("f8")),
        changed(probabilities=held["probabilities"] * np.float32("nan")),
    ]
    for content in bad:
        path.write_bytes(content)
        with pytest.raises(UserError, match="expected the scores of a run"):
            read_scores(tmp_path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("keys.npy", b"x")
        archive.infolist()[0].file_size = 1 << 40
    with pytest.raises(UserError):
        read_scores(tmp_path)
