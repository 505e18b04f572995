"""The benchmark of data preparation, on three seconds of audio."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile


@pytest.fixture
def script(benchmark: Callable[[str], Any]) -> Any:
    return benchmark("preparation")


def test_what_is_made_is_44_khz_stereo(script: Any, tmp_path: Path) -> None:
    (path,) = script.write_recordings(tmp_path, 1)
    samples, rate = soundfile.read(path)
    assert rate == 44100 and samples.shape == (441000, 2) and 0.1 < samples.std() < 0.4


def test_tones_tell_a_good_resampler_from_none(script: Any) -> None:
    def nearest(samples: np.ndarray[Any, Any], rate: int) -> np.ndarray[Any, Any]:
        return samples[np.arange(len(samples) * 16000 // rate) * rate // 16000]

    assert max(script.tones(script.RESAMPLERS["soxr HQ"])) < -60
    stays, goes = script.tones(nearest)
    assert stays > -10 and goes == pytest.approx(0, abs=1)


def test_the_script_measures_real_recordings(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for number in range(3):
        (tmp_path / "in").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "in" / f"{number}.flac", rng.normal(0, 0.1, (48000, 2)), 48000)
    out = tmp_path / "preparation.json"
    call = ["preparation", f"--recordings={tmp_path / 'in'}", "--clips=2", "--rounds=1", f"--out={out}"]
    monkeypatch.setattr(sys, "argv", call)
    script.main()
    result = json.loads(out.read_text())
    assert (result["recordings"], result["made"], result["audio_seconds"]) == (2, False, 2.0)
    assert {"whole", "whole, mp3", "whole, m4a", "decode", "tar", *script.RESAMPLERS, *script.LEVELS} < result[
        "seconds"
    ].keys()
    assert all(len(times) == 1 and times[0] > 0 for times in result["seconds"].values())
    assert result["flac_bytes"]["flac 8"] <= result["flac_bytes"]["flac"] <= result["flac_bytes"]["flac 0"]
    assert result["hardware"]["threads"] >= 1 and result["goals"][0]["bound"] == 150
    assert "| whole " in capsys.readouterr().out
