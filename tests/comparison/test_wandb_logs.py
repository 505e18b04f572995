"""Runs that were logged offline: the same numbers as in their folders, and logs that are none."""

import contextlib
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from ssamba.cli import main
from ssamba.comparison.compare import compare_runs
from ssamba.comparison.runs import read_examples, read_run
from ssamba.comparison.wandb_logs import find_logs, read_log
from ssamba.errors import UserError
from ssamba.training.loggers import wandb_logger

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def wandb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The package, with nothing of its settings here."""
    module = pytest.importorskip("wandb")
    home = tmp_path_factory.mktemp("wandb-home")
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("WANDB_"):
                patch.delenv(name)
        for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
            patch.setenv(f"WANDB_{name}_DIR", str(home))
        patch.setenv("WANDB_SILENT", "true")
        yield module
        module.teardown()


def await_log(folder: Path, rows: int, summary: Iterable[str]) -> None:
    """Until the newest log of a run has so many rows and these in its summary: wandb's service writes the last of it a
    moment after the run has ended."""
    path = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))[-1]
    for _ in range(200):
        with contextlib.suppress(UserError):
            log = read_log(path)
            if len(log.history) >= rows and {*summary} <= log.summary.keys():
                break
        time.sleep(0.1)


@pytest.fixture(scope="module")
def logged(recipes: dict[str, Path], wandb: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Run folders with their logs, to be read only; the second was ended after two steps and went on."""
    folders, above = [], tmp_path_factory.mktemp("logged")
    for name, starts in (("whole", [[]]), ("in-parts", [["trainer.max_steps=2"], ["--resume", "auto"]])):
        folder = above / name
        for number, words in enumerate(starts):
            if number:
                (folder / "run.json").unlink()
            words = [f"run_dir={folder}", "model.encoder=ssast", f"seed={len(folders)}", "wandb.mode=offline", *words]
            assert main(["finetune", str(recipes["finetune"]), *words]) == 0
            wandb.finish()
        await_log(folder, 1, {"test/accuracy"})
        folders.append(folder)
    return folders


@pytest.fixture(scope="module")
def log_alone(logged: list[Path], wandb: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """What our logger wrote of a run, in a folder without its run; with a group, a config and a summary."""
    above = tmp_path_factory.mktemp("alone")

    def make(name: str, group: str, config: dict[str, Any], scores: dict[str, float]) -> Path:
        folder = above / group / name
        options = {"mode": "offline", "project": "ours", "tags": [], "job_type": "finetune", "wandb_id": None}
        logger = wandb_logger(folder, group=group or None, config=config, **options)
        for row in read_run(logged[0]).history:
            logger.log_metrics({k: v for k, v in row.items() if k not in ("step", "seconds")}, int(row["step"]))
        logger.experiment.summary.update(scores)
        wandb.finish()
        await_log(folder, 6, scores)
        return folder

    return make


def recipe_of(run: Path, encoder: str) -> dict[str, Any]:
    recipe: dict[str, Any] = yaml.safe_load((run / "recipe.yaml").read_text())
    return {**recipe, "model": {**recipe["model"], "encoder": encoder}}


def without_clock(rows: Any) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_a_log_has_what_the_run_folder_has(logged: list[Path]) -> None:
    for folder in logged:
        (run,), passed = find_logs(folder)
        own = read_run(folder)
        assert own.record["origin"] is None
        assert not passed and run.folder == folder.resolve() and run.recipe == {**own.recipe, "run_dir": str(folder)}
        assert without_clock(run.history) == without_clock(own.history)
        seconds = [row["seconds"] for row in run.history]
        assert len(seconds) == 6 and seconds == sorted(seconds) and seconds[0] > 0
        for name, value in own.record["last_metrics"].items():
            log = read_log(sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))[-1])
            assert log.summary[name] == pytest.approx(value)
        assert log.project == "ssamba" and log.run_id and log.config["model"]["encoder"] == "ssast"


def test_logs_without_their_folders_have_the_same_scores_intervals_and_differences(
    logged: list[Path], tmp_path: Path
) -> None:
    """By the table of test clips; beside a run folder as well."""
    alone = []
    for number, folder in enumerate(logged):
        shutil.copytree(folder / "wandb", tmp_path / folder.name, symlinks=True)
        (run,), _ = find_logs(tmp_path / folder.name)
        assert run.folder is None and run.recipe["seed"] == number
        own = read_run(folder)
        assert {name: run.record["test"][name] for name in own.record["test"]} == pytest.approx(own.record["test"])
        for name in ("steps", "parameters", "training_seconds"):
            assert run.record[name] == own.record[name]
        assert read_examples(run).digest == read_examples(own).digest
        # As if they were groups.
        alone.append(replace(run, recipe={**run.recipe, "model.drop_path": number / 10}))
    folders = [replace(read_run(one), recipe=run.recipe) for one, run in zip(logged, alone, strict=True)]
    logs, whole, mixed = (compare_runs(some, ["statistics"]) for some in (alone, folders, [alone[0], folders[1]]))
    for comparison in (logs, mixed):
        assert [group.scores for group in comparison.groups] == [group.scores for group in whole.groups]
        assert comparison.pairs[0].difference == whole.pairs[0].difference
    (table,) = (tmp_path / logged[0].name).glob("offline-run-*/files/media/table/test/predictions_*.table.json")
    table.write_text(table.read_text().replace("probability", "chance"))
    assert not find_logs(tmp_path / logged[0].name)[0][0].scored
    table.write_text("[]")
    with pytest.raises(UserError, match="expected a table of test clips"):
        find_logs(tmp_path / logged[0].name)


def test_logs_in_their_folders_are_compared_as_the_runs_are(
    logged: list[Path], finetuned: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--allow", "statistics"]
    other = str(finetuned("ssast"))
    capsys.readouterr()
    assert main(["compare", *map(str, logged), other, *words]) == 0
    folders = capsys.readouterr().out
    above = os.path.commonpath(logged)
    assert main(["compare", other, "--wandb-dir", above, *words]) == 0
    told = capsys.readouterr().out
    rows = [
        sorted(line.split("|")[2:] for line in text.splitlines() if "seed" in line and "|" in line)
        for text in (folders, told)
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 2
    # Given twice, in its folder and by its log, a run counts once.
    assert main(["compare", *map(str, logged), other, "--wandb-dir", above, *words]) == 0
    assert capsys.readouterr().out == folders


def test_logs_alone_have_scores_and_no_tests(
    logged: list[Path], log_alone: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Sections, flat keys and further facts of a config alike; of a group."""
    nested = recipe_of(logged[0], "ssast")
    flat = {
        f"{section}/{key}": value
        for section, held in recipe_of(logged[0], "ssamba").items()
        if isinstance(held, dict)
        for key, value in held.items()
    }
    first = log_alone("first", "mine", {**nested, "notes": "more"}, {"test/accuracy": 0.75, "parameters": 77})
    log_alone("second", "mine", {**flat, "task_type": "finetune", "seed": 3}, {"test/accuracy": 0.5, "test/clips": 24})
    third = log_alone("third", "other", {**nested, "seed": 5}, {"test/accuracy": 0.25})
    above = first.parent.parent  # of both groups
    runs, _ = find_logs(above, "mine")
    comparison = compare_runs(sorted(runs, key=lambda run: run.place))
    assert [group.label for group in comparison.groups] == ["ssast", "ssamba"]
    assert [group.scores["accuracy"].value for group in comparison.groups] == [0.75, 0.5]
    assert comparison.groups[0].costs.parameters == 77 and comparison.groups[1].costs.parameters is None
    assert without_clock(comparison.groups[0].runs[0].history) == without_clock(read_run(logged[0]).history)
    assert main(["compare", "--wandb-dir", str(above), "--group", "mine"]) == 0
    said = capsys.readouterr().out
    assert "| 0.750" in said and "0.250" not in said and "not tested" in said
    assert len(find_logs(third)[0]) == 1


def test_logs_that_are_none(
    logged: list[Path], log_alone: Callable[..., Path], tmp_path: Path, refused: Refused
) -> None:
    nested = recipe_of(logged[0], "ssast")
    foreign = log_alone("foreign", "", {"lr": 0.1}, {"accuracy": 0.5})
    assert "is of the project ours, and its config holds no recipe (no task_type)" in refused(
        "compare", "--wandb-dir", foreign
    )
    unscored = log_alone("unscored", "", nested, {})
    assert "has no test/accuracy in its summary" in refused("compare", "--wandb-dir", unscored)
    odd = log_alone("odd", "", {**nested, "trainer": {"max_steps": "many"}}, {"test/accuracy": 1.0})
    assert "has trainer.max_steps 'many' in its config" in refused("compare", "--wandb-dir", odd)
    before = log_alone("before", "", {**nested, "task_type": "pretrain"}, {})
    assert find_logs(before) == ([], ["1 logs of pretraining runs, which have no scores of examples"])
    assert "there is nothing to compare" in refused("compare", "--wandb-dir", before)
    (tmp_path / "empty").mkdir()
    assert "empty holds no log" in refused("compare", "--wandb-dir", tmp_path / "empty")
    assert "nowhere does not exist" in refused("compare", "--wandb-dir", tmp_path / "nowhere")
    assert "--group x: no log has it; expected one of none" in refused("compare", "--wandb-dir", odd, "--group", "x")


def test_a_log_is_read_as_far_as_it_was_written_and_damage_is_told(logged: list[Path], tmp_path: Path) -> None:
    (path,) = logged[0].glob("wandb/offline-run-*/run-*.wandb")
    whole = path.read_bytes()
    changed = tmp_path / "run-x.wandb"
    changed.write_bytes(whole[: len(whole) // 2])  # of a process that was killed
    rows = read_log(changed).history
    assert 0 < len(rows) < len(read_log(path).history) and rows == read_log(path).history[: len(rows)]
    half = len(whole) // 2
    for content, why in (
        (whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :], "is damaged at byte"),
        (os.urandom(4000), "is no log of wandb"),
        (b"", "is no log of wandb"),
        (whole[:6] + b"\1" + whole[7:], "of another version of its format"),
        (whole[:7], "ends before it says of which"),
        (whole[:7] + struct.pack("<IHB", 0, 0, 9), "is damaged at byte"),
    ):
        changed.write_bytes(content)
        with pytest.raises(UserError, match=why):
            read_log(changed)
