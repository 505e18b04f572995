"""What a run says before it trains, and that saying it changes nothing."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ssamba.cli import main
from ssamba.progress import spoken
from ssamba.training import callbacks


@pytest.mark.parametrize(
    "words",
    [
        ["pretrain", "model.encoder=ssamba", "data.short=pad"],
        ["finetune", "task.label=sound", "augmentation.mixup=0.5", "augmentation.noise=0.1"],
        ["finetune", "task.label=tags", "task.loss=bce", "trainer.accumulate=2"],
    ],
)
def test_a_run_says_how_long_it_will_take_and_is_the_same_as_without(
    words: list[str],
    recipes: dict[str, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind, *rest = words
    weights, said = [], []
    for name, few in (("silent", 5), ("told", 4)):
        monkeypatch.setattr(callbacks, "FEW_STEPS", few)
        assert main([kind, str(recipes[kind]), f"run_dir={tmp_path / name}", "trainer.max_steps=4", *rest]) == 0
        weights.append(load_file(tmp_path / name / "model" / "model.safetensors"))
        said.append(caplog.text)
        caplog.clear()
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[1][key], tensor) for key, tensor in weights[0].items())
    assert "will take about" not in said[0]
    (line,) = [line for line in said[1].splitlines() if "will take about" in line]
    assert "4 steps will take about " in line


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.123, "0.12 s"), (59, "59 s"), (299, "5 min"), (3600, "1 h"), (9600, "2 h 40 min"), (295_000, "3 d 9 h")],
)
def test_lengths_of_time_in_words(seconds: float, words: str) -> None:
    assert spoken(seconds) == words
