"""A run folder belongs to one process at a time."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest

from ssamba.cli import main
from ssamba.errors import UserError
from ssamba.training.runs import LOCK, RunLock, check_run, open_run

Runs = Callable[[str], Path]
HOLD = """
import filelock, sys
lock = filelock.FileLock(f"{sys.argv[1]}/.lock")
lock.acquire()
print("held", flush=True)
input()
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text("")
    return tmp_path / "run"


@pytest.mark.parametrize("words", [["--overwrite"], ["--resume", "auto"], ["--resume"], ["evaluate"]])
def test_a_second_process_is_told(
    words: list[str],
    recipes: dict[str, Path],
    finetuned: Runs,
    copy_of: Callable[[Path], Path],
    refused: Callable[..., str],
) -> None:
    folder = copy_of(finetuned("ssast"))
    command = [
        "finetune",
        recipes["finetune"],
        f"run_dir={folder}",
        *words,
        *([folder] if words == ["--resume"] else []),
    ]
    if words == ["evaluate"]:
        command = ["evaluate", folder]
    with RunLock(folder):
        said = refused(*command)
    assert said == f"another process is at work on the run in {folder}; wait for its end, or give another run_dir\n"
    assert not (folder / LOCK).exists()


def test_a_new_run_is_locked_when_its_folder_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    with RunLock(folder) as first, RunLock(folder) as second:
        assert not folder.exists()
        open_run(folder, False, first)
        with pytest.raises(UserError, match="another process is at work"):
            open_run(folder, False, second)
        (folder / "recipe.yaml").write_text("")
    # Made and ended between the second's look at an empty place and its start: not replaced.
    with RunLock(tmp_path / "other") as late:
        with RunLock(tmp_path / "other") as first:
            open_run(tmp_path / "other", True, first)
            (tmp_path / "other" / "recipe.yaml").write_text("")
        with pytest.raises(UserError, match="has made a run in .* meanwhile"):
            open_run(tmp_path / "other", True, late)
    assert (tmp_path / "other" / "recipe.yaml").exists()


def test_only_what_is_replaced_goes(run: Path) -> None:
    (run / "model").mkdir()
    (run / "model" / "file").write_text("")
    outside = run.parent / "outside"
    outside.mkdir()
    (outside / "file").write_text("")
    (run / "link").symlink_to(outside)
    with RunLock(run) as lock:
        open_run(run, True, lock)
        assert [path.name for path in run.iterdir()] == [LOCK]
    assert (outside / "file").exists() and not list(run.iterdir())


def test_a_killed_process_leaves_no_lock(run: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match="another process"), RunLock(run):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert (run / LOCK).exists()
    check_run(run, overwrite=True)
    with RunLock(run) as lock:
        assert lock.taken
    # What it left in a folder of its own is no content.
    (run / LOCK).touch()
    (run / "recipe.yaml").unlink()
    check_run(run, overwrite=False)


def test_workers_do_not_hold_it(run: Path) -> None:
    context = multiprocessing.get_context("fork")
    with RunLock(run):
        worker = context.Process(target=os.read, args=(os.pipe()[0], 1), daemon=True)
        worker.start()
    with RunLock(run) as lock:
        assert lock.taken
    worker.kill()
    worker.join()


@pytest.mark.parametrize("error", [OSError(38, "Function not implemented"), OSError(37, "No locks available")])
def test_a_file_system_without_locks_is_told_and_used(
    error: OSError, run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr("fcntl.flock", refuse)
    with RunLock(run) as lock:
        open_run(run, True, lock)
    (record,) = caplog.records
    assert f"{run} cannot be locked" in record.getMessage() and error.strerror in record.getMessage()


def test_the_first_rank_locks_for_all(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with filelock.FileLock(run / LOCK):
        monkeypatch.setenv("LOCAL_RANK", "1")
        with RunLock(run):
            pass


def test_a_run_that_goes_on_removes_what_a_killed_one_left(
    pretrained: Runs, copy_of: Callable[[Path], Path], recipes: dict[str, Path]
) -> None:
    folder = copy_of(pretrained("ssast"))
    left = folder / "checkpoints" / ".ssamba-tmp-0123456789abcdef.ckpt"
    mine = folder / "checkpoints" / "step-0000009.ckpt.tmp"
    words = ["optimizer.schedule=constant", "trainer.max_steps=5"]
    assert main(["pretrain", str(folder), "--overwrite", *words, "trainer.max_steps=1", "data.validation=[]"]) == 0
    left.write_text("half of one")
    mine.write_text("mine")
    assert main(["pretrain", str(folder), *words, "data.validation=[]", "--resume", "auto"]) == 0
    assert not left.exists() and mine.read_text() == "mine"
