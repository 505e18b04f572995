"""Runs that are ended and go on: to the same bits as if nothing had happened, or with one message of what is wrong."""

import contextlib
import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from forked import Forked

from ssamba import train
from ssamba.build.runs import build_pretrainer
from ssamba.cli import main
from ssamba.config import PretrainRecipe, load_recipe
from ssamba.errors import Stopped
from ssamba.train import Run
from ssamba.training.callbacks import Throughput
from ssamba.training.saved import newest_checkpoint, read_checkpoint

Runs = Callable[[str], Path]
Recipes = dict[str, Path]


def rows(run: Path) -> list[dict[str, str]]:
    """metrics.csv, but what is measured by the clock."""
    with (run / "metrics.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if k not in ("samples_per_second", "seconds")} for row in found]


def assert_same(run: Path, undisturbed: Path) -> None:
    weights = Path("model", "model.safetensors")
    assert (run / weights).read_bytes() == (undisturbed / weights).read_bytes()
    assert rows(run) == rows(undisturbed)
    ours, theirs = (json.loads((folder / "run.json").read_text()) for folder in (run, undisturbed))
    for record in (ours, theirs):
        record["last_metrics"].pop("samples_per_second")
    for name in ("steps", "seed", "data", "parameters", "last_metrics", "test", "skipped_samples"):
        assert ours[name] == theirs[name]
    # The optimizer, its schedule and the clips that come next.
    step = f"step-{ours['steps']:07d}.ckpt"
    ours, theirs = (read_checkpoint(folder / "checkpoints" / step) for folder in (run, undisturbed))
    for name in ("optimizer_states", "lr_schedulers", "ClipDataModule", "judged", "average"):
        assert str(ours.get(name)) == str(theirs.get(name))
    assert ours["run"]["best"] == theirs["run"]["best"]


@contextlib.contextmanager
def signalled(number: int, *, step: int, within_validation: bool = False) -> Iterator[None]:
    """This process gets the signal while the step is trained, or at the start of the validation after it."""
    hook = "on_validation_batch_start" if within_validation else "on_train_batch_end"
    sent = []

    def send(self: Throughput, trainer: Any, *_: Any) -> None:
        if trainer.global_step == step and not sent:
            sent.append(number)
            os.kill(os.getpid(), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Throughput, hook, send)
        yield
    assert sent


# To the same bits

PLATEAU = ["optimizer.schedule=plateau", "optimizer.plateau_patience=0", "optimizer.learning_rate=0.1"]
CHANCE = [
    "augmentation.mixup=0.5",
    "augmentation.noise=0.1",
    "augmentation.time_mask=8",
    "data.label_fraction=0.5",
    "model.drop_path=0.5",
    "data.balance=true",
    "optimizer.layer_decay=0.5",
    "optimizer.ema_decay=0.9",
]
CHANGES = ["objective.parts.latent=1", "objective.changes.frequency_shift=5", "objective.changes.gain=9"]


@pytest.mark.parametrize(
    ("kind", "words", "step", "within_validation"),
    [
        ("pretrain", ["trainer.accumulate=2", "model.encoder=ssamba"], 3, False),
        ("pretrain", [*PLATEAU, "optimizer.ema_decay=0.9"], 4, True),
        (
            "pretrain",
            ["objective.parts.latent=1", "objective.parts.clip=1", "objective.mix=0.7", "mask.per_clip=2"],
            3,
            False,
        ),
        (
            "pretrain",
            ["model.encode=visible", "data.short=pad", "model.drop_path=0.5", "mask.per_clip=2", *CHANGES],
            3,
            False,
        ),
        ("finetune", [*PLATEAU, *CHANCE, "trainer.accumulate=2", "trainer.average_checkpoints=3"], 3, False),
        ("finetune", ["data.num_workers=2", "trainer.log_every_steps=4"], 2, True),
        ("finetune", CHANCE, 6, True),  # the validation after the last step
    ],
)
def test_a_run_that_was_stopped_is_as_if_it_was_not(
    kind: str,
    words: list[str],
    step: int,
    within_validation: bool,
    recipes: Recipes,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    # Validations of several batches.
    command = [kind, str(recipes[kind]), "model.encoder=ssast", "trainer.max_steps=6", "data.batch_size=6", *words]
    assert main([*command, f"run_dir={undisturbed}"]) == 0
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    with signalled(signal.SIGTERM, step=step, within_validation=within_validation):
        assert main([*command, f"run_dir={run}"]) == 143
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == handlers
    assert multiprocessing.active_children() == []
    said = capsys.readouterr().err
    ends = f"after step {step} of 6, which is saved. To go on: ssamba {kind} {run} --resume {run}\n"
    assert "\nssamba: stopped by SIGTERM " in said and said.endswith(ends) and "Traceback" not in said
    saved = newest_checkpoint(run)
    assert saved is not None and (saved.step, saved.run["validation_due"]) == (step, within_validation)
    assert not (run / "run.json").exists() and not (run / "model").exists()
    assert main([kind, str(run), "--resume", str(run)]) == 0
    assert_same(run, undisturbed)
    record = json.loads((run / "run.json").read_text())
    assert [again["step"] for again in record["resumed"]] == [step]
    assert record["resumed"][0]["started"] >= record["started"]
    with (run / "metrics.csv").open(newline="") as file:  # the time of both starts, one after the other
        times = [float(row["seconds"]) for row in csv.DictReader(file)]
    assert times == sorted(times) and times[-1] >= saved.run["seconds"]
    assert record["training_seconds"] >= saved.run["seconds"] > 0


def test_stages_of_a_user_belong_to_a_run_that_goes_on(recipes: Recipes, pretrained: Runs, tmp_path: Path) -> None:
    """A filter of webdataset that draws at random, by the place: stopped, and gone on with other workers."""
    plain = (pretrained("ssast") / "model" / "model.safetensors").read_bytes()
    keys: list[str] = []

    def noisy(clip: dict[str, Any]) -> dict[str, Any]:
        keys.append(clip["__key__"])
        chance = np.random.default_rng([7, clip["__place__"]])
        return {**clip, "waveform": clip["waveform"].numpy() + chance.normal(0, 0.1, len(clip["waveform"]))}

    def pretrain(recipe: Path, *words: str, resume: str | None = None) -> Run:
        loaded = load_recipe(recipe, words)
        assert isinstance(loaded, PretrainRecipe)
        return train.pretrain(loaded, resume=resume, stages=[wds.map(noisy)])

    run, undisturbed = tmp_path / "run", tmp_path / "undisturbed"
    pretrain(recipes["pretrain"], "model.encoder=ssast", f"run_dir={undisturbed}")
    heard, keys[:] = list(keys), []
    with signalled(signal.SIGTERM, step=2), pytest.raises(Stopped) as stopped:
        pretrain(recipes["pretrain"], "model.encoder=ssast", f"run_dir={run}")
    assert stopped.value.status == 143
    pretrain(run, "data.num_workers=2", resume=str(run))
    assert_same(run, undisturbed)
    assert len(heard) == 16 and keys[:8] == heard[:8]
    assert (run / "model" / "model.safetensors").read_bytes() != plain


def test_a_run_that_is_stopped_at_every_step_and_looked_at_in_between(
    recipes: Recipes, finetuned: Runs, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    start = load_recipe(finetuned("ssast")).model.pretrained
    command = ["finetune", str(recipes["finetune"]), f"run_dir={run}", "model.encoder=ssast", "--resume", "auto"]
    for step in (1, 2, 3):
        with signalled(signal.SIGINT, step=step):
            assert main([*command, f"model.pretrained={start}"]) == 130
    with signalled(signal.SIGUSR1, step=4, within_validation=True):
        assert main([*command, f"model.pretrained={start}"]) == 138
    assert main([*command, f"model.pretrained={start}"]) == 0
    assert_same(run, finetuned("ssast"))
    assert [again["step"] for again in json.loads((run / "run.json").read_text())["resumed"]] == [1, 2, 3, 4]


def test_what_came_after_the_checkpoint_is_done_again(
    recipes: Recipes, pretrained: Runs, copy_of: Callable[[Path], Path], caplog: pytest.LogCaptureFixture
) -> None:
    """Killed while it wrote what comes after training, and its last checkpoint damaged: from the one before."""
    run = copy_of(pretrained("ssast"))
    command = ["pretrain", str(recipes["pretrain"]), "model.encoder=ssast", "--resume", str(run)]
    (run / "run.json").unlink()
    assert main(command) == 0
    assert not caplog.records
    assert_same(run, pretrained("ssast"))
    (run / "run.json").unlink()
    newest = run / "checkpoints" / "step-0000004.ckpt"
    newest.write_bytes(newest.read_bytes()[:-100])
    (run / "model" / "model.safetensors").unlink()
    assert main(command) == 0
    assert [record.getMessage().split(" cannot")[0] for record in caplog.records] == [f"checkpoint {newest}"]
    assert_same(run, pretrained("ssast"))
    assert load_recipe(run).run_dir == str(run)


def test_more_steps_for_a_finished_run(recipes: Recipes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["pretrain", str(recipes["pretrain"]), "model.encoder=ssast", "optimizer.schedule=constant"]
    assert main([*command, f"run_dir={tmp_path / 'six'}", "trainer.max_steps=6"]) == 0
    again = [*command, f"run_dir={tmp_path / 'run'}", "--resume", "auto"]
    for steps in (3, 6):
        assert main([*again, f"trainer.max_steps={steps}"]) == 0
    assert_same(tmp_path / "run", tmp_path / "six")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    capsys.readouterr()
    assert main([*again, "trainer.max_steps=6"]) == 0
    said = capsys.readouterr().out
    assert said == f"the run in {tmp_path / 'run'} is finished: 6 steps. A larger trainer.max_steps goes on with it\n"
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}


def test_where_and_how_fast_may_change(recipes: Recipes, pretrained: Runs, corpus: Path, tmp_path: Path) -> None:
    run = tmp_path / "elsewhere"
    command = ["pretrain", str(recipes["pretrain"]), "model.encoder=ssast"]
    with signalled(signal.SIGTERM, step=1):
        assert main([*command, f"run_dir={run}"]) == 143
    # Other paths to the same shards, other workers, and the same clips a step in two halves.
    moved = tmp_path / "moved"
    moved.symlink_to(corpus)
    free = [f"data.train={moved / 'train'}", "data.num_workers=1", "trainer.checkpoint_every_steps=1"]
    assert main([*command, *free, "--resume", str(run)]) == 0
    assert_same(run, pretrained("ssast"))
    assert load_recipe(run).data.num_workers == 1


# Processes and real signals


def wait_for(process: Forked, what: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not what():
        assert process.poll() is None, process.err.read_text()
        assert time.monotonic() < end
        time.sleep(0.02)


def logged(run: Path, least: int) -> Callable[[], bool]:
    return lambda: (run / "metrics.csv").exists() and len((run / "metrics.csv").read_text().splitlines()) > least


@pytest.mark.parametrize(
    ("number", "workers", "of_the_group"),
    [(signal.SIGTERM, 2, True), (signal.SIGINT, 1, True), (signal.SIGKILL, 0, False)],
)
def test_signals_to_a_process(number: int, workers: int, of_the_group: bool, recipes: Recipes, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["pretrain", str(recipes["pretrain"]), "model.encoder=ssast", "optimizer.schedule=constant"]
    often = "trainer.checkpoint_every_steps=1" if number == signal.SIGKILL else "trainer.validate_every_steps=1000"
    words = [f"run_dir={run}", "trainer.max_steps=5000", "data.validation=[]", f"data.num_workers={workers}", often]
    with Forked([*command, *words], tmp_path / "process") as process:
        wait_for(process, logged(run, 3))
        (os.killpg if of_the_group else os.kill)(process.pid, number)
        assert process.wait() == (-number if number == signal.SIGKILL else 128 + number)
        said = process.err.read_text()
        assert "Traceback" not in said
    saved = newest_checkpoint(run)
    assert saved is not None
    if number != signal.SIGKILL:
        assert f"stopped by {signal.Signals(number).name} after step {saved.step} of 5000, which is saved" in said
        assert [path.name for path in (run / "checkpoints").glob("*.ckpt")] == [f"step-{saved.step:07d}.ckpt"]
    end = [f"trainer.max_steps={saved.step + 2}", "data.validation=[]"]
    assert main([*command, *end, f"run_dir={run}", "--resume", "auto"]) == 0
    assert main([*command, *end, f"run_dir={tmp_path / 'undisturbed'}"]) == 0
    assert_same(run, tmp_path / "undisturbed")


def test_slurm_has_its_job_back(
    recipes: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    monkeypatch.setenv("PATH", str(scontrol.parent), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    command = ["pretrain", str(recipes["pretrain"]), "model.encoder=ssast", "data.validation=[]"]

    def stopped(name: str, number: int) -> str:
        with signalled(number, step=1):
            assert main([*command, f"run_dir={tmp_path / name}"]) == 128 + number
        said = capsys.readouterr().err
        assert f"To go on: ssamba pretrain {tmp_path / name} --resume {tmp_path / name}\n" in said
        return said

    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called; ls {tmp_path}/one/checkpoints >> {tmp_path}/called')
    scontrol.chmod(0o755)
    assert "job 41 is in the queue again" in stopped("one", signal.SIGUSR1)
    # By then the run was saved.
    assert (tmp_path / "called").read_text() == "requeue 41\nstep-0000001.ckpt\nstep-0000001.json\n"
    (tmp_path / "called").unlink()
    stopped("two", signal.SIGTERM)
    assert not (tmp_path / "called").exists()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    scontrol.write_text("#!/bin/sh\necho Access denied >&2; exit 1")
    said = stopped("three", signal.SIGUSR1)
    assert "`scontrol requeue 7_3` failed, so the job is not in the queue again: Access denied" in said
    scontrol.unlink()
    assert "`scontrol requeue 7_3` failed" in stopped("four", signal.SIGUSR1)


def test_a_second_signal_kills_at_once(recipes: Recipes, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code = (
        "import time\n"
        "from ssamba.training.checkpoints import Checkpoints\n"
        "Checkpoints.save = lambda self, trainer, *_: trainer.global_step and time.sleep(600)\n"
        "sys.exit(main())\n"
    )
    words = [
        "pretrain",
        str(recipes["pretrain"]),
        f"run_dir={run}",
        "model.encoder=ssast",
        "trainer.max_steps=5000",
        "trainer.validate_every_steps=1000",
        "data.num_workers=1",
    ]
    with Forked(words, tmp_path / "process", code) as process:
        wait_for(process, logged(run, 1))
        os.kill(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.5)  # what comes right after the first counts as one with it
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
        assert process.poll() == -signal.SIGTERM


AT_FORK: list[Callable[[], object]] = []
"""What is done in each forked process; `os.register_at_fork` forgets nothing."""
os.register_at_fork(after_in_child=lambda: [begin() for begin in AT_FORK])


def test_workers_leave_the_answer_to_their_parent(recipes: Recipes, monkeypatch: pytest.MonkeyPatch) -> None:
    # As telemetry does: threads that would take the signal, whatever the worker's own does.
    threads = [threading.Thread(target=time.sleep, args=(600,), daemon=True).start for _ in range(8)]
    monkeypatch.setattr(sys.modules[__name__], "AT_FORK", threads)
    recipe = load_recipe(recipes["pretrain"], ["run_dir=run", "model.encoder=ssast", "data.num_workers=1"])
    assert isinstance(recipe, PretrainRecipe)
    before = {process.pid for process in multiprocessing.active_children()}  # of loaders that nothing has collected yet
    batches = iter(build_pretrainer(recipe).data.train_dataloader())
    next(batches)
    (worker,) = (process for process in multiprocessing.active_children() if process.pid not in before)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        subprocess.run(["kill", f"-{int(number)}", str(worker.pid)], check=True)
    for _ in range(20):  # more than were under way
        next(batches)
    worker.terminate()
    worker.join(60)
    assert worker.exitcode == 0


def test_a_worker_that_is_killed(recipes: Recipes, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [
        "pretrain",
        str(recipes["pretrain"]),
        f"run_dir={run}",
        "model.encoder=ssast",
        "trainer.max_steps=5000",
        "trainer.validate_every_steps=1000",
        "trainer.checkpoint_every_steps=2",
        "data.num_workers=2",
    ]
    with Forked(words, tmp_path / "process") as process:
        wait_for(process, lambda: newest_checkpoint(run) is not None)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if not children.exists():
            pytest.skip("this kernel does not tell a process's children")
        os.kill(int(children.read_text().split()[-1]), signal.SIGKILL)
        status, said = process.wait(), process.err.read_text()
    assert status == 2 and "Traceback" not in said, said
    message = said[said.rindex("ssamba: ") :]
    assert message.startswith("ssamba: a worker that reads data was killed, ") and "fewer data.num_workers" in message
    assert "go on with --resume" in message
    assert newest_checkpoint(run) is not None


def test_a_worker_is_missed_in_the_middle_of_anything(
    recipes: Recipes, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch raises from the signal, within a checkpoint say; or the connection to the worker is first to break."""

    def save(*_: Any) -> None:
        try:
            raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")
        finally:
            raise RuntimeError("unexpected pos 704 vs 598")

    def _try_get_data(*_: Any, **__: Any) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    def elsewhere(*_: Any, **__: Any) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    words = ["pretrain", str(recipes["pretrain"]), "model.encoder=ssast", "trainer.checkpoint_every_steps=1"]
    for place, fail, told in (
        ("CheckpointFiles.write", save, "killed by signal: Killed.): give fewer"),
        ("Checkpoints.on_train_batch_end", _try_get_data, "Connection refused): give fewer"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"ssamba.training.checkpoints.{place}", fail)
            assert main([*words, f"run_dir={tmp_path / fail.__name__}"]) == 2
        assert told in capsys.readouterr().err
    monkeypatch.setattr("ssamba.training.checkpoints.Checkpoints.on_train_batch_end", elsewhere)
    assert main([*words, f"run_dir={tmp_path / 'elsewhere'}"]) == 2
    assert capsys.readouterr().err.endswith("\nssamba: Connection refused\n")


# What cannot go on


def test_nothing_to_go_on_from(
    recipes: Recipes, refused: Callable[..., str], tmp_path: Path, copy_of: Callable[[Path], Path], pretrained: Runs
) -> None:
    command = ["pretrain", recipes["pretrain"], "model.encoder=ssast", f"run_dir={tmp_path / 'run'}"]
    assert f"{tmp_path / 'gone'} has no checkpoint to go on from" in refused(*command, "--resume", tmp_path / "gone")
    assert "give one of them" in refused(*command, "--resume", "auto", "--overwrite")
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "a.txt").write_text("years of work")
    assert "it is no run" in refused(*command, f"run_dir={notes}", "--resume", "auto")
    finished = copy_of(pretrained("ssast"))
    for path in (finished / "checkpoints").iterdir():
        path.unlink()
    said = refused(*command, f"run_dir={finished}", "--resume", "auto")
    assert f"the run in {finished} is finished and its checkpoints are gone" in said


def test_auto_starts_a_run_that_never_came_to_a_checkpoint(recipes: Recipes, pretrained: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["pretrain", str(recipes["pretrain"]), "model.encoder=ssast", f"run_dir={run}", "--resume", "auto"]

    def die(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ssamba.training.runs.lightning.Trainer.fit", die)
        assert main(command) == 130
    assert [path.name for path in run.iterdir()] == ["recipe.yaml"]
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "step-0000002.ckpt").write_bytes(b"half of it")
    assert main(command) == 0
    assert_same(run, pretrained("ssast"))
    assert json.loads((run / "run.json").read_text())["resumed"] == []


def test_what_would_be_another_run_is_refused_in_one_message(
    recipes: Recipes, refused: Callable[..., str], copy_of: Callable[[Path], Path], pretrained: Runs, corpus: Path
) -> None:
    run = copy_of(pretrained("ssast"))
    held = load_recipe(run)
    command = ["pretrain", recipes["pretrain"], "--resume", run]
    said = refused(
        *command,
        "model.encoder=ssamba",
        "model.size=tiny",
        "seed=3",
        "data.batch_size=8",
        "objective.parts.reconstruction=0",
        "audio.mean=1",
        "audio.std=2",
        "optimizer.learning_rate=0.5",
        "trainer.max_steps=3",
        f"data.train={corpus / 'validation'}",
        "trainer.precision=bf16-mixed",
        "data.num_workers=3",
    )
    head, *lines = said.strip().splitlines()
    assert head == f"the run in {run} cannot go on by this recipe:"
    expected = [
        f"audio.mean is 1.0; in the run it is {held.audio.mean}",
        f"audio.std is 2.0; in the run it is {held.audio.std}",
        "data.batch_size is 8; in the run it is 4",
        "model.encoder is 'ssamba'; in the run it is 'ssast'",
        "model.size is 'tiny'; in the run it is 'nano'",
        "objective.parts.reconstruction is 0.0; in the run it is 10.0",
        "optimizer.learning_rate is 0.5; in the run it is 0.001",
        "seed is 3; in the run it is 0",
        "trainer.max_steps is 3; the run has 4 behind it",
    ]
    assert [line.strip() for line in lines if "fingerprint" not in line] == expected
    (data,) = [line for line in lines if "fingerprint" in line]
    assert data.strip().startswith("data.train has fingerprint ")


def test_another_kind_of_run_is_refused(
    recipes: Recipes, refused: Callable[..., str], copy_of: Callable[[Path], Path], pretrained: Runs
) -> None:
    run = copy_of(pretrained("ssast"))
    said = refused("finetune", recipes["finetune"], "model.encoder=ssast", "--resume", run)
    assert "task_type is finetune; in the run it is pretrain" in said and "pooling" not in said


def test_all_of_them_damaged(
    recipes: Recipes, refused: Callable[..., str], copy_of: Callable[[Path], Path], pretrained: Runs
) -> None:
    run = copy_of(pretrained("ssast"))
    for path in (run / "checkpoints").glob("step-*.ckpt"):
        path.write_bytes(b"")
    assert "--overwrite starts the run again" in refused("pretrain", run, "--resume", run)
