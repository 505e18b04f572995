"""Checkpoints as files: when they are made, which are kept, what becomes of damaged ones, and of a full disk."""

import errno
import hashlib
import json
import logging
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from ssamba.build.runs import build_pretrainer, build_trainer
from ssamba.cli import main
from ssamba.config import PretrainRecipe, load_recipe
from ssamba.errors import UserError
from ssamba.training.checkpoints import CheckpointFiles
from ssamba.training.loggers import MetricsFile
from ssamba.training.saved import newest_checkpoint, read_checkpoint

Runs = Callable[[str], Path]
NoRoom = Callable[[int], AbstractContextManager[None]]


def content(step: int) -> dict[str, Any]:
    """What a run of one weight keeps after a step."""
    split = {"samples": 3, "seconds": 2.5, "fingerprint": "0f"}
    record = {
        "command": ["ssamba"],
        "started": "2026-01-02",
        "seed": 0,
        "git_commit": None,
        "python": "3",
        "parameters": 9,
        "versions": {},
        "hardware": {"processor": "", "threads": 1, "gpus": []},
        "data": {"train": split},
        "resumed": [],
    }
    run = {
        "record": record,
        "metrics": {"train/loss": 0.5},
        "best": None,
        "seconds": 1.5 * step,
        "rows": 0,
        "validation_due": False,
        "wandb_id": None,
    }
    moments = {"step": torch.tensor(1.0), "exp_avg": torch.zeros(1000), "exp_avg_sq": torch.zeros(1000)}
    group = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.0, "params": [0]}
    return {
        "global_step": step,
        "run": run,
        "state_dict": {"w": torch.arange(1000.0)},
        "lr_schedulers": [{}],
        "optimizer_states": [{"state": {0: moments}, "param_groups": [group]}],
        "callbacks": {},
        "judged": {"recent": [], "skipped": 0, "in_a_row": 0},
        "ClipDataModule": {"epoch": 0, "clips": 8, "order": {}},
    }


def write(run: Path, *steps: int) -> None:
    files = CheckpointFiles()
    run.mkdir(exist_ok=True)
    for step in steps:
        files.save_checkpoint(content(step), run / "checkpoints" / f"step-{step:07d}.ckpt")
        assert files.error is None


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


# When, and which


def test_the_last_two_are_kept_and_one_is_made_after_the_last_step(recipes: dict[str, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [f"run_dir={run}", "model.encoder=ssast", "trainer.max_steps=5", "trainer.checkpoint_every_steps=2"]
    assert main(["pretrain", str(recipes["pretrain"]), *words, "data.validation=[]"]) == 0
    assert names(run) == ["step-0000004.ckpt", "step-0000004.json", "step-0000005.ckpt", "step-0000005.json"]
    for step in (4, 5):
        path = run / "checkpoints" / f"step-{step:07d}.ckpt"
        written = json.loads(path.with_suffix(".json").read_text())
        assert (written["step"], written["bytes"]) == (step, path.stat().st_size)
        content = read_checkpoint(path)
        assert content["global_step"] == step and "loops" not in content
        assert content["ClipDataModule"]["clips"] == 4 * step
        assert content["run"]["rows"] == step  # of metrics.csv
        assert content["run"]["record"]["seed"] == 0 and not content["run"]["validation_due"]
    assert content["run"]["metrics"]["train/loss"] > 0


def test_the_best_is_that_of_the_best_validation(finetuned: Runs) -> None:
    run = finetuned("ssast")
    last, best = (read_checkpoint(run / "checkpoints" / f"{name}.ckpt") for name in ("step-0000004", "best"))
    assert last["run"]["best"]["step"] == best["global_step"]
    assert "optimizer_states" not in best


def test_a_best_of_a_future_that_did_not_happen_is_none(pretrained: Runs, copy_of: Callable[[Path], Path]) -> None:
    run = copy_of(pretrained("ssast"))
    best = read_checkpoint(run / "checkpoints" / "best.ckpt")["global_step"]
    for step in (4, 2):
        recipe = load_recipe(run, [f"run_dir={run}"])
        assert isinstance(recipe, PretrainRecipe)
        made = build_trainer(recipe, build_pretrainer(recipe).data, None)
        trainer, checkpoints = made.trainer, made.checkpoints
        content = read_checkpoint(run / "checkpoints" / f"step-{step:07d}.ckpt")
        checkpoints.on_load_checkpoint(trainer, None, content)
        assert content["run"]["best"] is not None
        assert checkpoints.best == (content["run"]["best"] if best <= step else None)
    assert best == 4


# Reading


def test_the_newest_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert newest_checkpoint(tmp_path / "run") is None
    write(tmp_path / "run", 9_999_999, 10_000_000, 8)
    saved = newest_checkpoint(tmp_path / "run")
    assert saved is not None and (saved.step, saved.run["seconds"]) == (10_000_000, 15_000_000.0)
    assert saved.path.name == "step-10000000.ckpt" and not caplog.records


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(2000)
        (byte,) = file.read(1)
        file.seek(2000)
        file.write(bytes([byte ^ 1]))


def leave_out_its_description(path: Path) -> None:
    path.with_suffix(".json").unlink()


def spoil_its_description(path: Path) -> None:
    path.with_suffix(".json").write_text('{"sha256": ')


def empty_its_description(path: Path) -> None:
    path.with_suffix(".json").write_text("{}")


def remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    "damage", [truncate, flip, leave_out_its_description, spoil_its_description, empty_its_description]
)
def test_a_damaged_one_is_named_and_the_one_before_it_taken(
    damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "run", 2, 4)
    damage(tmp_path / "run" / "checkpoints" / "step-0000004.ckpt")
    saved = newest_checkpoint(tmp_path / "run")
    assert saved is not None and saved.step == 2
    (record,) = caplog.records
    assert record.levelno == logging.WARNING and "step-0000004.ckpt" in record.getMessage()


def test_nothing_is_executed(tmp_path: Path) -> None:
    files = CheckpointFiles()
    path = tmp_path / "run" / "checkpoints" / "step-0000002.ckpt"
    path.parent.mkdir(parents=True)
    files.save_checkpoint({**content(2), "held": Path("a file")}, path)
    with pytest.raises(UserError, match="step-0000002.ckpt cannot be used"):
        read_checkpoint(path)
    with pytest.raises(UserError, match="every checkpoint in .* is damaged"):
        newest_checkpoint(tmp_path / "run")


def test_without_a_usable_one_the_user_decides(tmp_path: Path) -> None:
    write(tmp_path / "run", 2, 4)
    for path in (tmp_path / "run" / "checkpoints").glob("*.ckpt"):
        truncate(path)
    with pytest.raises(UserError, match=r"\(step-0000004.ckpt, step-0000002.ckpt\); --overwrite starts the run again"):
        newest_checkpoint(tmp_path / "run")


# A disk without room: files may not grow beyond a size


def test_what_does_not_fit_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_room: NoRoom) -> None:
    run, files = tmp_path / "run", CheckpointFiles()
    write(run, 2)
    path = run / "checkpoints" / "step-0000004.ckpt"
    for tensor, most in ((torch.zeros(1), 0), (torch.zeros(1_000_000), 1000)):  # told at the start, within torch.save
        with no_room(most):
            files.save_checkpoint({"global_step": 4, "run": {}, "w": tensor}, path)
        assert files.error is not None and files.error.errno == errno.EFBIG
        assert names(run) == ["step-0000002.ckpt", "step-0000002.json"]
    write(run, 4)

    def refuse(*arguments: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", refuse)  # its description alone
        files.save_checkpoint(content(4), path)
    assert files.error is not None and read_checkpoint(path)["state_dict"]["w"].shape == (1000,)


def test_an_error_of_ours_is_no_full_disk(tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        CheckpointFiles().save_checkpoint({"global_step": 1, "w": lambda: 0}, tmp_path / "step-0000001.ckpt")


@pytest.fixture
def full_at(monkeypatch: pytest.MonkeyPatch, no_room: NoRoom) -> Callable[..., None]:
    """The disk is full at these steps."""

    def fill(*steps: int) -> None:
        save = CheckpointFiles.write

        def refuse(self: CheckpointFiles, checkpoint: dict[str, object], path: Path) -> None:
            full = checkpoint["global_step"] in steps and path.name.startswith("step")
            with no_room(1000) if full else nullcontext():
                save(self, checkpoint, path)

        monkeypatch.setattr(CheckpointFiles, "write", refuse)

    return fill


def test_a_full_disk_ends_no_run(
    full_at: Callable[..., None],
    recipes: dict[str, Path],
    pretrained: Runs,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = tmp_path / "run"
    full_at(2, 3)
    words = [f"run_dir={run}", "model.encoder=ssast", "trainer.checkpoint_every_steps=1"]
    assert main(["pretrain", str(recipes["pretrain"]), *words]) == 0
    told = [record.getMessage() for record in caplog.records if "COULD NOT BE WRITTEN" in record.getMessage()]
    assert len(told) == 2 and all("File too large" in text and "that of step 1." in text for text in told)
    assert names(run) == [
        f"{name}.{end}" for name in ("best", "step-0000001", "step-0000004") for end in ("ckpt", "json")
    ]
    weights = Path("model", "model.safetensors")
    assert (run / weights).read_bytes() == (pretrained("ssast") / weights).read_bytes()


def test_at_the_end_a_full_disk_is_told(
    full_at: Callable[..., None],
    recipes: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "run"
    words = ["pretrain", str(recipes["pretrain"]), f"run_dir={run}", "model.encoder=ssast", "--resume", "auto"]
    full_at(4)
    assert main(words) == 2
    said = capsys.readouterr().err
    assert f"the last checkpoint could not be written to {run / 'checkpoints'}; make room" in said
    assert "Traceback" not in said and not (run / "run.json").exists()
    assert names(run) == ["best.ckpt", "best.json", "step-0000002.ckpt", "step-0000002.json"]
    monkeypatch.undo()
    assert main(words) == 0
    assert json.loads((run / "run.json").read_text())["resumed"][0]["step"] == 2


def test_a_score_whose_weights_were_not_written_is_not_the_best(
    recipes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, times = CheckpointFiles.write, []

    def refuse(self: CheckpointFiles, checkpoint: dict[str, object], path: Path) -> None:
        if path.name == "best.ckpt" and (times.append(1) or len(times) == 1):
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        save(self, checkpoint, path)

    monkeypatch.setattr(CheckpointFiles, "write", refuse)
    run = tmp_path / "run"
    words = [f"run_dir={run}", "model.encoder=ssast", "trainer.max_steps=2", "trainer.validate_every_steps=1"]
    assert main(["pretrain", str(recipes["pretrain"]), *words, "optimizer.learning_rate=0"]) == 0
    # The second validation is no better than the first.
    best = read_checkpoint(run / "checkpoints" / "step-0000002.ckpt")["run"]["best"]
    assert best["step"] == read_checkpoint(run / "checkpoints" / "best.ckpt")["global_step"] == 2


# metrics.csv


class Clock:
    """Stands at what it is set to."""

    now = 5.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("ssamba.training.loggers.time", found)
    return found


def test_rows_wait_while_the_disk_is_full(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, no_room: NoRoom, clock: Clock
) -> None:
    path = tmp_path / "metrics.csv"
    logger = MetricsFile(path)
    logger.log_metrics({"b": 1.5}, 0)
    logger.save()
    held = path.read_bytes()
    with no_room(len(held) + 3):  # in the middle of a row
        for step, row in ((1, {"b": 2.5}), (2, {"a": 1, "b": 3.5})):  # to be added, to be written with a new column
            logger.log_metrics(row, step)
            logger.save()
    assert path.read_bytes() == held and os.listdir(tmp_path) == ["metrics.csv"]
    assert caplog.text.count("could not be written") == 2
    logger.save()
    assert path.read_text() == "a,b,seconds,step\n,1.5,0.0,0\n,2.5,0.0,1\n1,3.5,0.0,2\n" and logger.rows == 3


def test_a_file_goes_on_from_its_first_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture, clock: Clock) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("a,b,step\n1,,0\n2,,1\n,0.3,1\n3,,")  # of a version without the time
    logger = MetricsFile(path)
    logger.keep(2, 60.0)
    clock.now += 1.5
    logger.log_metrics({"a": 5}, 2)
    logger.finalize("success")
    assert path.read_text() == "a,seconds,step\n1,,0\n2,,1\n5,61.5,2\n" and not caplog.records
    MetricsFile(path).keep(9, 0.0)
    assert "has 3 rows; there were 9 at the checkpoint" in caplog.text


# Right sums and odd contents


def change(path: str, value: Any) -> Callable[[dict[str, Any]], Any]:
    """What sets one place of a checkpoint, by its keys; of a list its only entry."""

    def apply(content: dict[str, Any]) -> Any:
        *keys, last = [int(key) if key.isdecimal() else key for key in path.split("/")]
        held: Any = content
        for key in keys:
            held = held[key]
        if value is REMOVED:
            del held[last]
        else:
            held[last] = value
        return content

    return apply


REMOVED = object()
NAN = torch.full((1000,), float("nan"))
DEEP: list[Any] = []
for _ in range(100):
    DEEP = [DEEP]
ODD = {
    "a list": lambda content: [content],
    "a tensor": lambda content: torch.zeros(3),
    **{
        f"{key} is {value!r:.20}": change(key, value) for key in content(2) for value in (REMOVED, None, 3.5, DEEP, NAN)
    },
    **{
        f"{key} is {type(value).__name__} {str(value)[:9]}": change(key, value)
        for key, value in (
            ("global_step", -5),
            ("global_step", 3),
            ("global_step", True),
            ("global_step", "2"),
            ("global_step", 2**70),
            ("run/seconds", -1.0),
            ("run/seconds", "1"),
            ("run/rows", -1),
            ("run/best", {"step": 1}),
            ("run/metrics", []),
            ("run/validation_due", 1),
            ("run/record", {}),
            ("run/record/data", {}),
            ("run/record/seed", -1),
            ("run/record/resumed", [1]),
            ("run/record/hardware/gpus", "a"),
            ("run/wandb_id", 1),
            ("judged/recent", ["a"]),
            ("judged/skipped", -1),
            ("callbacks/SkippedSamples", {}),
            ("ClipDataModule/clips", -1),
            ("ClipDataModule/order", 0),
            ("state_dict/w", NAN),
            ("state_dict/w", [1.0]),
            ("state_dict/w", NAN.to(torch.complex64)),
            ("optimizer_states/0/state/0/exp_avg", NAN),
            ("optimizer_states/0/state/0/step", 5),
            ("optimizer_states/0/param_groups/0/lr", "a"),
            ("optimizer_states/0/param_groups/0/params", [-1]),
            ("optimizer_states", []),
            ("lr_schedulers", [1]),
        )
    },
}


@pytest.mark.parametrize("name", ODD)
def test_what_no_run_keeps_is_told_and_the_one_before_taken(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "run", 1, 2)
    path = tmp_path / "run" / "checkpoints" / "step-0000002.ckpt"
    odd = ODD[name](content(2))
    torch.save(odd, path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    path.with_suffix(".json").write_text(json.dumps({"sha256": digest, "step": 2, "bytes": path.stat().st_size}))
    saved = newest_checkpoint(tmp_path / "run")
    assert saved is not None and saved.step == 1
    (record,) = caplog.records
    assert f"checkpoint {path} cannot be used: " in record.getMessage() and len(record.getMessage()) < 500


def test_names_that_are_no_steps_are_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "run", 2)
    for name in ("step-.ckpt", "step-x.ckpt", "step-2.ckpt", "step--000005.ckpt", "step-٣.ckpt"):
        (tmp_path / "run" / "checkpoints" / name).write_text("")
    saved = newest_checkpoint(tmp_path / "run")
    assert saved is not None and saved.step == 2


FOREIGN = {
    "weights": ("state_dict/model.encoder.mask_token", torch.zeros(3), "encoder.mask_token"),
    "moments": ("optimizer_states/0/state/0/exp_avg", torch.zeros(3), "moments of parameter 0"),
    "groups": ("optimizer_states/0/param_groups/0/params", [0, 1], "groups of parameters"),
    "rates": ("optimizer_states/0/param_groups/0/initial_lr", "a", "groups of parameters"),
    "schedule": ("lr_schedulers/0/last_epoch", "a", "schedule of the learning rate"),
    "shadow": ("lr_schedulers/0/step", 1, "schedule of the learning rate"),
    "version": ("pytorch-lightning_version", 3, "cannot be gone on from"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_checkpoint_of_another_model_is_told_before_training(
    name: str, pretrained: Runs, copy_of: Callable[[Path], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run, (place, value, said) = copy_of(pretrained("ssast")), FOREIGN[name]
    (run / "run.json").unlink()
    path = run / "checkpoints" / "step-0000004.ckpt"
    CheckpointFiles().save_checkpoint(change(place, value)(torch.load(path, weights_only=True)), path)
    metrics = (run / "metrics.csv").read_text()
    assert main(["pretrain", str(run), "--resume", str(run), "trainer.max_steps=5"]) == 2
    message = capsys.readouterr().err
    assert f"checkpoint {path} " in message and said in message and "Traceback" not in message
    assert (run / "metrics.csv").read_text() == metrics


def test_a_best_that_is_damaged_is_told_when_the_run_goes_on(
    pretrained: Runs, copy_of: Callable[[Path], Path], caplog: pytest.LogCaptureFixture
) -> None:
    run = copy_of(pretrained("ssast"))
    (run / "run.json").unlink()
    truncate(run / "checkpoints" / "best.ckpt")
    assert main(["pretrain", str(run), "--resume", str(run)]) == 0
    assert "best.ckpt cannot be used" in caplog.text and "takes its place" in caplog.text
