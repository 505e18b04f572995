"""`ssamba verify`: what it scores, writes and refuses."""

import csv
import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from ssamba.audio import LogMel
from ssamba.cli import main
from ssamba.data.prepare.recordings import Recording
from ssamba.evaluation.linear import Scaling
from ssamba.evaluation.verification import Trials, cosines, verification_scores
from ssamba.hub import SsambaModel

Runs = Callable[[str], Path]


@pytest.fixture
def trials(recordings: dict[str, list[Recording]], tmp_path: Path) -> Path:
    """A list, in VoxCeleb's form, of all pairs of the test recordings, beside their folder."""
    speakers = {}
    for recording in recordings["test"]:
        place = tmp_path / "wav" / str(recording.labels["speaker"])
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(recording.path, place)
        speakers[f"{recording.labels['speaker']}/{recording.path.name}"] = recording.labels["speaker"]
    lines = [
        f"{int(speakers[one] == speakers[other])} {one} {other}" for one, other in itertools.combinations(speakers, 2)
    ]
    path = tmp_path / "trials.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def read(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "verify.json").read_text())
    return found


@pytest.mark.parametrize("words", [[], ["--raw", "--layer", "1", "--pooling", "rows"]])
def test_trials_are_scored_by_cosines_of_vectors(
    words: list[str], trials: Path, pretrained: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = pretrained("ssast"), tmp_path / "out"
    wav = trials.parent / "wav"
    assert main(["verify", str(run), str(trials), "--recordings", str(wav), "--out", str(out), *words]) == 0
    rows = list(csv.DictReader((out / "trials.csv").open()))
    names = sorted({row[side] for row in rows for side in ("first", "second")})
    place = {name: number for number, name in enumerate(names)}
    listed = Trials(
        names,
        *(torch.tensor([place[row[side]] for row in rows]) for side in ("first", "second")),
        torch.tensor([row["target"] == "1" for row in rows]),
    )
    model = SsambaModel.from_pretrained(run)
    layer, pool = (1, model.pool("rows")) if words else (-1, model.pool("statistics"))
    log_mel = LogMel(16000, 128, model.feature_extractor.log_mel.mean, model.feature_extractor.log_mel.scale / 2)
    vectors, statistics = [], []
    for name in names:
        # A recording that is longer than the model's clip is the mean of its windows, by the time that each stands for.
        wave = soundfile.read(wav / name, dtype="float32")[0]
        clip = model.feature_extractor.clip_samples
        starts = [*range(0, max(1, len(wave) - clip + 1), clip)]
        if starts[-1] + clip < len(wave):
            starts.append(len(wave) - clip)
        steps = np.diff([starts[0] - clip, *starts])
        parts, moments = [], []
        for start in starts:
            some = wave[start : start + clip]
            with torch.inference_mode():
                parts.append(model(*model.feature_extractor(some), layers=[layer], pool=pool).pooled[0][0].double())
            x = log_mel(torch.from_numpy(some)[None], torch.tensor([len(some)]))[0].double()
            moments.append(torch.stack([x.mean(0), x.square().mean(0)]))
        share = torch.from_numpy(steps / steps.sum())
        vectors.append(torch.einsum("w,wv->v", share, torch.stack(parts)))
        mean, square = torch.einsum("w,wkm->km", share, torch.stack(moments))
        statistics.append(torch.cat([mean, (square - mean.square()).sqrt()]))
    scores = read(out)["scores"]
    for kind, column, of in (("model", "model", vectors), ("log-mel", "log-mel", statistics)):
        x = torch.stack(of)
        expected = cosines(x if "--raw" in words else Scaling.of(x)(x), listed)
        found = torch.tensor([float(row[column]) for row in rows], dtype=torch.float64)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
        for name, value in verification_scores(found, listed.target).items():
            assert scores[kind][name] == pytest.approx(value, abs=0.02)
            assert f"{scores[kind][name]:.3f}" in (out / "report.md").read_text()
    said = capsys.readouterr().out
    assert "| 276 trials" in said and "| log-mel statistics" in said and "minDCF, prior 0.01" in said
    assert (out / "error_rates.png").read_bytes()[:4] == b"\x89PNG" and (out / "report.html").is_file()
    assert read(out)["trials"] == 276 and read(out)["failed"] == []


def test_a_recording_that_cannot_be_used_takes_its_trials_with_it(
    trials: Path, pretrained: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wav, out = trials.parent / "wav", tmp_path / "out"
    bad = next(path for path in sorted(wav.rglob("*.wav")))
    bad.write_bytes(b"no sound")
    words = ["verify", str(pretrained("ssast")), str(trials), "--recordings", str(wav), "--baseline", "none"]
    assert main([*words, "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert "1 recordings failed; their trials are left out" in said.err and "log-mel" not in said.out
    told = read(out)
    assert told["failed"] == [str(bad.relative_to(wav))] and (told["trials"], told["recordings"]) == (253, 23)
    assert bad.name in (out / "report.md").read_text()
    assert main([*words, "--out", str(out), "--overwrite", "--layer", "0"]) == 1
    assert read(out)["settings"]["layer"] == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "of the 24 recordings that"),
        (["--recordings", "WAV", "--layer", "9"], "layer"),
        (["--recordings", "WAV", "--hop", "2", "--window", "1"], "hop is 2 s and the window 1 s"),
        (["--recordings", "WAV", "--segments", "3"], "segments is 3"),
        (["--recordings", "WAV", "--overwrite"], "--overwrite is for --out FOLDER"),
        (["--recordings", "WAV", "--out", "WAV"], "has no verify.json, so it is not this command's"),
    ],
)
def test_mistakes_are_told_before_any_recording_is_read(
    words: list[str], told: str, trials: Path, pretrained: Runs, refused: Callable[..., str]
) -> None:
    wav = str(trials.parent / "wav")
    placed = [wav if word == "WAV" else word for word in words]
    assert told in refused("verify", pretrained("ssast"), trials, *placed)
