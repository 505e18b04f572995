"""`ssamba demo`, from recordings to its page."""

import json
import re
import shutil
from pathlib import Path

import pytest

from ssamba.cli import main
from ssamba.data.prepare.recordings import Recording


def test_goes_the_whole_road_on_a_folder_of_recordings(
    recordings: dict[str, list[Recording]],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    data, out = tmp_path / "data", tmp_path / "demo"
    for recording in [one for split in recordings.values() for one in split]:
        label = str(recording.labels["sound"])
        (data / label).mkdir(parents=True, exist_ok=True)
        shutil.copy(recording.path, data / label)

    assert main(["demo", "--data", str(data), "--out", str(out), "--scale", "0.005"]) == 0

    said = capfd.readouterr().out
    page = (out / "report.html").read_text()
    for encoder in ("ssamba", "ssast"):
        for run in ("pretrain", "labels-pretrained", "labels-scratch"):
            record = json.loads((out / "runs" / f"{encoder}-{run}" / "run.json").read_text())
            assert record["steps"] == (3 if run == "pretrain" else 1)
        score = json.loads((out / "runs" / f"{encoder}-labels-scratch" / "test" / "scores.json").read_text())
        assert re.search(rf"<td[^>]*>{score['accuracy']:.3f} \[", page)
        for start in ("pretrained", "from scratch"):
            assert re.search(rf"\| [A-D] +\| {encoder} +\| {start} ", said)
    baseline = json.loads((out / "runs" / "ssamba-labels-pretrained" / "run.json").read_text())["baseline"]["scores"]
    assert f"without a network: {baseline['accuracy']:.3f}\n" in said
    assert said.count(" not told apart ") + said.count(", of these runs ") == 6  # pairs of four groups of one seed
    assert re.search(r"\| ssast .*\| 3 of over [0-9,]+ needed", said)
    for picture in out.glob("**/*.png"):
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(list(out.glob("**/test/confusion.png"))) == 4


@pytest.mark.parametrize("case", ["no such data", "not a demo"])
def test_a_mistake_is_told_before_anything_is_written(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    if case == "not a demo":
        out.mkdir()
        (out / "thesis.txt").write_text("mine")
    data = ["--data", str(tmp_path / "nowhere")] if case == "no such data" else []
    assert main(["demo", "--out", str(out), *data]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said and ("nowhere" if case == "no such data" else str(out)) in said
    assert not out.exists() or [path.name for path in out.iterdir()] == ["thesis.txt"]
