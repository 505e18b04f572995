"""The benchmark of visible patches: that its two steps differ in what the encoder gets alone, and that it runs. No test
looks at a time."""

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch


@pytest.fixture
def script(benchmark: Callable[[str], Any]) -> Any:
    return benchmark("visible")


def test_steps_differ_in_what_the_encoder_gets(script: Any) -> None:
    setting = script.Setting("nano", 8000, 96, 16, (96, 2), 2)
    modules = [script.make_module("ssamba", setting, 0.75, encode) for encode in ("all", "visible")]
    started = [module.model.encoder.state_dict() for module in modules]
    assert all(torch.equal(started[0][name], started[1][name]) for name in started[0])
    tokens: list[int] = []
    for module in modules:
        module.model.encoder.stack.register_forward_pre_hook(lambda _, inputs: tokens.append(inputs[0].shape[1]))
        before = module.model.encoder.projection.weight.detach().clone()
        script.make_step(module, setting)()
        assert not torch.equal(before, module.model.encoder.projection.weight)
    assert tokens == [8 + 1, 2 + 1]


def test_the_script_tells_times_and_their_ratio(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "SETTINGS", {"frames": script.Setting("nano", 8000, 96, 16, (96, 2), 2)})
    times = {"all": [3.0, 6.0, 2.0], "visible": [1.0, 3.0, 2.0]}

    # The clock is read before and after each step, in turn; the first rounds do not count.
    spans = [[1.0, 1.0]] * script.WARMUP + [list(span) for span in zip(times["all"], times["visible"], strict=True)]
    readings = [reading for round in spans * 2 for span in round for reading in (100.0, 100.0 + span)]
    monkeypatch.setattr(script, "time", SimpleNamespace(process_time=iter(readings).__next__))
    out = tmp_path / "visible.json"
    words = ["--settings", "frames", "--rounds", "3", "--encoders", "ssamba", "ssast", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["visible", *words])
    script.main()
    result = json.loads(out.read_text())
    for found in result["seconds"]["frames"].values():
        assert (found["all"], found["visible"]) == (3, 2)
        assert found["ratio"] == {"value": statistics.median([3, 2, 1]), "low": 1, "high": 3}
    (goal,) = result["goals"]
    assert (goal["bound"], goal["measured"]) == (1.9, 2)
    said = capsys.readouterr().out
    assert "| ssast" in said and "2.000 [1.000, 3.000]" in said
