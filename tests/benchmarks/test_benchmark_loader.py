"""The benchmark of the loader runs, on seconds of audio."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.mark.skipif(sys.platform != "linux", reason="pages are dropped and memory is told on Linux alone")
def test_the_script_measures_each_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, benchmark: Callable[[str], Any]
) -> None:
    script = benchmark("loader")
    out = tmp_path / "loader.json"
    words = ["--rounds", "1", "--clips", "16", "--read", "32", "--streamed", "160", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["loader", *words])
    script.main()
    result = json.loads(out.read_text())
    timed = [
        "features",
        "decode",
        "indexed beside webdataset",
        "streaming beside webdataset",
        "mp3 beside flac",
        "m4a beside flac",
        "bytes from memory",
        "bytes from the disk",
        "resume",
    ]
    assert list(result["measured"]) == [*timed, "memory"]
    for name in timed:
        one = result["measured"][name]
        ((ours, theirs),) = one["rounds"]
        assert ours > 0 and one["ratio"] == pytest.approx(ours / theirs)
    assert all(megabytes > 50 for megabytes in result["measured"]["memory"]["resident_megabytes"])
    assert len(result["goals"]) == 8 and result["recordings"] == "synthesized"
