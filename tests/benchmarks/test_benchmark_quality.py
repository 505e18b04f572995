"""benchmarks/quality.py: every row is a recipe, and a row goes from recordings to its line of the table."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from ssamba.evaluation.scores import read_scores

Script = Callable[[str], Any]


def test_every_row_is_a_recipe(benchmark: Script, tmp_path: Path) -> None:
    quality = benchmark("quality")
    for row in quality.ROWS:
        work = quality.Work(row, 1.0, 2, tmp_path)
        pretraining = work.pretraining(100)
        assert pretraining.seed == 2 and pretraining.trainer.max_steps == 100
        teacher = str(tmp_path / "joint-visible-16-clips-10-2" / "pretrain") if "distilled" in row else None
        assert pretraining.objective.distillation.teacher == teacher
        assert {speaker for _, speaker, _ in work.tunings()} == {"", "lucas", "yweweler"}
        for tuning in work.tunings():
            finetuning = work.finetuning(*tuning)
            assert finetuning.model.pretrained == str(work.folder / "pretrain")
            for name in ("encoder", "size", "fshape", "tshape", "patch_order"):
                assert getattr(finetuning.model, name) == getattr(pretraining.model, name)
    # Takes 0 to 4, the official test, are in no shards that it reads.
    assert {str(path) for path in pretraining.data.train} == {str(tmp_path / "tuning-shards" / "train")}


def test_a_row_is_pretrained_scored_and_told(
    benchmark: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quality, fsdd = benchmark("quality"), benchmark("fsdd")
    recordings, out = tmp_path / "recordings", tmp_path / "out"
    recordings.mkdir()
    generator = np.random.default_rng(0)
    for take in (0, 5, 6, *range(15, 19)):
        for digit in range(4):
            for speaker in ("george", "jackson"):
                sound = 0.1 * np.sin(np.arange(4000) * (0.05 + 0.2 * digit)) + 0.01 * generator.standard_normal(4000)
                soundfile.write(recordings / f"{digit}_{speaker}_{take}.wav", sound, 8000)
    fsdd.Benchmark(out, 1, ()).prepare(recordings)
    for name, value in (("STEPS", 1), ("SPEAKERS", ("george", "jackson")), ("SHARES", {"5 %": 0.5, "1 %": 0.25})):
        monkeypatch.setattr(quality, name, value)
    frozen = ("frozen 5 %", "frozen speaker")
    for name, value in (("DRAWS", 2), ("FROZEN", frozen), ("TASKS", (*quality.TUNED, *frozen))):
        monkeypatch.setattr(quality, name, value)
    plan = [("scratch", 0.0), ("joint-runs", 1.0), ("joint-runs", 2.0)]
    works = [quality.Work(row, minutes, 0, out) for row, minutes in plan]
    told = [quality.make(quality.Job(work, int(2 * work.minutes))) for work in works]
    assert told[1] == "joint-runs, 1 min, seed 0: 2 steps"
    assert quality.make(quality.Job(works[1], 2)) == "joint-runs, 1 min, seed 0: was there"

    quality.report(out, plan, 1)
    results = json.loads((out / "results.json").read_text())
    assert [row["row"] for row in results["rows"]] == ["scratch", "joint-runs", "joint-runs"]
    assert [row["steps"] for row in results["rows"]] == [0, 2, 4]
    for row, work in zip(results["rows"], works, strict=True):
        for task, (accuracy, low, high) in row["scores"].items():
            folder = work.folder / quality.named(task)
            draws = [folder / str(draw) for draw in range(2)] if task == "frozen 5 %" else [folder]
            draws = [folder / speaker for speaker in ("george", "jackson")] if task.endswith("speaker") else draws
            predictions = [read_scores(draw / "test")[0] for draw in draws]
            hits = [(one.logits.argmax(1) == one.labels).float().mean().item() for one in predictions]
            assert accuracy == pytest.approx(sum(hits) / len(hits))
            assert low <= accuracy <= high and all(len(one.keys) == 16 for one in predictions)
    less = [list(row["differences"]) for row in results["rows"]]
    most = "joint-runs, 2 min"
    assert less == [[most], [most], []]
    assert set(results["rows"][1]["differences"][most]) == set(quality.TASKS)
    assert set(results["baseline"]) == set(quality.TASKS)
    table = (out / "results.md").read_text()
    assert table.count("| joint-runs ") == 3 and "| log-mel " in table
    assert (out / "quality.png").read_bytes()[:4] == b"\x89PNG"


def test_paces_are_measured_once(benchmark: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quality = benchmark("quality")
    asked: list[str] = []

    def pace(work: Any) -> float:
        asked.append(work.row)
        return float(len(asked))

    monkeypatch.setattr(quality, "pace", pace)
    rows = ("scratch", "joint-runs", "latent", "joint-runs")
    works = [quality.Work(row, 1.0, 0, tmp_path) for row in rows]
    with ThreadPoolExecutor(1) as pool:
        assert quality.measured_paces(tmp_path, works[:2], pool) == {"joint-runs": 1.0}
        assert quality.measured_paces(tmp_path, works, pool) == {"joint-runs": 1.0, "latent": 3.0}
    assert asked == ["joint-runs", "joint-runs", "latent", "latent"]
