"""Sweeps: their runs, what is told of those that fail, and that nothing is made twice."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ssamba.cli import main
from ssamba.models.record import read_record
from ssamba.protocols import processes, sweeping
from ssamba.protocols.processes import Work, make_run
from ssamba.protocols.sweeping import shares_of_machine

Capture = pytest.CaptureFixture[str]
Write = Callable[..., Path]


@pytest.fixture
def write(recipes: dict[str, Path], tmp_path: Path) -> Write:
    def writing(**more: Any) -> Path:
        common = {"audio.mean": -4, "audio.std": 4}
        path = tmp_path / "sweep.yaml"
        content = {
            "run_dir": str(tmp_path / "sweep"),
            "pretrain": {"recipe": str(recipes["pretrain"]), "budget": {"clips": 8}, "set": dict(common)},
            "finetune": {"recipe": str(recipes["finetune"]), "set": dict(common)},
            "grid": {"model.encoder": ["ssast"], "seed": [0, 1]},
        }
        path.write_text(yaml.safe_dump(content | more))
        return path

    return writing


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[Work]:
    """Runs are made by this process, which has imported everything; what was asked for."""
    works: list[Work] = []

    def make(work: Work) -> int:
        works.append(work)
        return main([work.task_type, work.recipe, "--resume", "auto"])

    monkeypatch.setattr(sweeping, "make_run", make)
    return works


def test_every_point_is_a_run_and_finished_ones_stay(
    write: Write, made: list[Work], tmp_path: Path, capsys: Capture, refused: Callable[..., str]
) -> None:
    recipe = yaml.safe_load(write().read_text())["finetune"]["recipe"]
    tuning = {"recipe": recipe, "set": {"audio.mean": -4, "audio.std": 4}, "starts": ["pretrained", "scratch"]}
    path, root = write(grid={"model.encoder": ["ssast"], "seed": [3]}, finetune=tuning), tmp_path / "sweep"
    assert main(["sweep", str(path)]) == 0
    names = ["pretrain/encoder=ssast,seed=3"]
    names += [f"finetune/encoder=ssast,seed=3,start={start}" for start in ("pretrained", "scratch")]
    assert [work.recipe for work in made] == [str(root / "recipes" / f"{name}.yaml") for name in names]
    records = [read_record(root / name / "run.json") for name in names]
    assert [record["steps"] for record in records] == [2, 4, 4]  # 8 clips of 4 a step; the recipe's own 4
    assert yaml.safe_load((root / names[1] / "recipe.yaml").read_text())["model"]["pretrained"] == str(root / names[0])
    sweep = json.loads((root / "sweep.json").read_text())
    assert sweep["budgets"] == {"pretrain": {"clips": 8}, "finetune": None} and sweep["failed"] == []
    values = {"model.encoder": "ssast", "seed": "3", "start": "scratch"}
    assert sweep["points"][2] == {"folder": names[2], "stage": "finetune", **values}
    compared = json.loads((root / "comparison" / "comparison.json").read_text())
    assert len(compared["groups"]) == 2 and "from scratch" in capsys.readouterr().out

    assert "holds a sweep; --resume auto goes on with it" in refused("sweep", str(path))
    before = [(root / name / "run.json").read_bytes() for name in names]
    capsys.readouterr()
    assert main(["sweep", str(path), "--resume", "auto"]) == 0
    assert capsys.readouterr().out.count("is finished:") == 3
    assert [(root / name / "run.json").read_bytes() for name in names] == before


def test_pretraining_alone_is_not_compared(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sweeping, "make_run", lambda work: 0)
    content = yaml.safe_load((path := write()).read_text())
    path.write_text(yaml.safe_dump({name: part for name, part in content.items() if name != "finetune"}))
    assert main(["sweep", str(path)]) == 0
    assert "with a section finetune, a sweep compares what its runs are worth" in caplog.text
    assert not (tmp_path / "sweep" / "comparison").exists()


def test_what_fails_is_told_at_the_end(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[str] = []

    def make(work: Work) -> int:
        asked.append(work.recipe)
        return 2 if "pretrain/encoder=ssast,seed=0" in work.recipe else 0

    monkeypatch.setattr(sweeping, "make_run", make)
    monkeypatch.setattr(sweeping, "compare_sweep", lambda *_: None)
    assert main(["sweep", str(write())]) == 1
    assert len(asked) == 3  # what would start from the failed model is not begun
    said = capsys.readouterr().out
    assert "failed: pretrain/encoder=ssast,seed=0\nfailed: finetune/encoder=ssast,seed=0\n" in said
    assert f"the run in {tmp_path}/sweep/pretrain/encoder=ssast,seed=0 failed; as it says above" in caplog.text
    assert len(json.loads((tmp_path / "sweep" / "sweep.json").read_text())["failed"]) == 2

    monkeypatch.setattr(sweeping, "make_run", lambda work: -9)
    assert main(["sweep", str(write()), "--resume", "auto"]) == 137
    assert "was stopped; ssamba sweep ... --resume auto goes on" in capsys.readouterr().err


def test_nothing_runs_where_data_are_missing(write: Write, made: list[Work], refused: Callable[..., str]) -> None:
    path = write(grid={"data.test": [["no/such"]], "seed": [0]})
    assert f"pretrain/test=_no_such_,seed=0: {Path.cwd()}/no/such" in refused("sweep", str(path)) and not made


def test_recipes_for_job_arrays(write: Write, made: list[Work], tmp_path: Path, capsys: Capture) -> None:
    assert main(["sweep", str(write()), "--prepare"]) == 0 and not made
    for stage in ("pretrain", "finetune"):
        lines = (tmp_path / "sweep" / "recipes" / f"{stage}.txt").read_text().split()
        assert lines == [f"{tmp_path}/sweep/recipes/{stage}/encoder=ssast,seed={seed}.yaml" for seed in (0, 1)]


def test_a_budget_in_hours_is_timed_once(write: Write, made: list[Work], tmp_path: Path) -> None:
    more = {
        "pretrain": {
            "recipe": yaml.safe_load(write().read_text())["pretrain"]["recipe"],
            "budget": {"hours": 1e-3},
            "set": {"audio.mean": -4, "audio.std": 4},
        }
    }
    path = write(**more)
    assert main(["sweep", str(path), "--prepare"]) == 0
    assert len(made) == 2 and all("/timing/" in work.recipe for work in made)
    kept = json.loads((tmp_path / "sweep" / "recipes" / "steps.json").read_text())
    (steps,) = kept.values()
    for seed in (0, 1):
        text = (tmp_path / "sweep" / "recipes" / "pretrain" / f"encoder=ssast,seed={seed}.yaml").read_text()
        assert yaml.safe_load(text)["trainer"]["max_steps"] == steps > 0
    assert main(["sweep", str(path), "--prepare", "--resume", "auto"]) == 0 and len(made) == 2
    assert not (tmp_path / "sweep" / "timing").exists()


def test_side_by_side_each_has_its_share(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str | None, str]] = []

    def make(work: Work) -> int:
        assert work.environment is not None
        seen.append((work.log, work.environment["OMP_NUM_THREADS"]))
        return 0

    monkeypatch.setattr(sweeping, "make_run", make)
    monkeypatch.setattr(sweeping, "usable_cores", lambda: 6)
    monkeypatch.setattr(sweeping, "compare_sweep", lambda *_: None)
    assert main(["sweep", str(write()), "--jobs", "2"]) == 0
    assert {threads for _, threads in seen} == {"3"}
    assert (f"{tmp_path}/sweep/logs/finetune/encoder=ssast,seed=1.log", "3") in seen


def test_shares_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert shares_of_machine(3, 2, 2) == [{"OMP_NUM_THREADS": "1"}] * 3  # GPUs do not go round
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares_of_machine(2, 8, 4)] == ["0,1", "2,3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares_of_machine(2, 8, 2)] == ["5", "7"]


def test_runs_that_outlive_their_sweep_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever makes the runs is killed; a run of its goes on for a moment, and no other begins until it has ended."""
    done = tmp_path / "done"
    run = f"import time, pathlib; time.sleep(1); pathlib.Path({str(done)!r}).touch()"
    program = (
        "import os\nfrom pathlib import Path\nfrom ssamba.protocols import processes\n"
        f"processes.PROGRAM = {run!r}\n"
        f"with processes.only_runs_below(Path({str(tmp_path)!r})):\n"
        "    print('begun', flush=True)\n    processes.make_run(processes.Work('pretrain', 'x'))\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as sweep:
        assert sweep.stdout is not None and sweep.stdout.readline() == b"begun\n"
        while not (children := Path(f"/proc/{sweep.pid}/task/{sweep.pid}/children").read_text().split()):
            time.sleep(0.01)
        os.kill(sweep.pid, signal.SIGKILL)
    assert len(children) == 1 and not done.exists()
    with processes.only_runs_below(tmp_path):
        assert done.exists()


def test_a_run_writes_its_log(tmp_path: Path) -> None:
    said = tmp_path / "run.log"
    for _ in range(2):
        assert make_run(Work("pretrain", str(tmp_path / "none.yaml"), str(said))) == 2
    assert said.read_text().count("none.yaml does not exist") == 2
