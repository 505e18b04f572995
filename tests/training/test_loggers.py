"""What wandb and TensorBoard are told of a run, read back from their files; metrics.csv is test_runs's."""

import csv
import errno
import importlib.util
import json
import os
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from lightning.pytorch.loggers import WandbLogger

from ssamba.audio import samples_for
from ssamba.cli import main
from ssamba.config import load_recipe

Runs = Callable[[str], Path]


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def last_metrics(run: Path) -> dict[str, float]:
    """The newest value of each validation metric."""
    return {name: float(row[name]) for row in rows(run) for name in row if row[name] and name.startswith("val/")}


# Weights & Biases


def test_wandb_stays_out_unless_it_is_asked_for(
    recipes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # an import of it would raise
    words = [f"run_dir={tmp_path / 'run'}", "model.encoder=ssast", "trainer.max_steps=1"]
    assert main(["pretrain", str(recipes["pretrain"]), *words]) == 0
    assert not (tmp_path / "run" / "wandb").exists()


@pytest.fixture
def wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package, with nothing of its settings here, and a server that does not answer."""
    module = pytest.importorskip("wandb")
    for name in list(os.environ):
        if name.startswith("WANDB_"):
            monkeypatch.delenv(name)
    for name in ("CACHE", "CONFIG", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb-home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("ssamba.training.loggers.WANDB_SECONDS", 1)
    yield module
    module.teardown()


def test_wandb_goes_offline_if_its_server_does_not_answer(
    recipes: dict[str, Path],
    wandb: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", 40 * "a")
    run = tmp_path / "run"
    words = [f"run_dir={run}", "model.encoder=ssast", "wandb.mode=online", "--resume", "auto"]
    for steps in (2, 4):
        assert main(["pretrain", str(recipes["pretrain"]), *words, f"trainer.max_steps={steps}"]) == 0
        wandb.finish()
        (record,) = [record for record in caplog.records if record.name.startswith("ssamba")]
        assert record.getMessage().startswith("wandb cannot be reached, so it logs offline: ")
        caplog.clear()
    # The run that went on is the same one.
    first, second = sorted(path.name for path in run.glob("wandb/offline-run-*/run-*.wandb"))
    assert first == second
    assert [row["step"] for row in rows(run) if row["train/loss"]] == ["0", "1", "2", "3"]


def test_wandb_without_a_key_is_told(
    recipes: dict[str, Path], wandb: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"run_dir={tmp_path / 'run'}", "model.encoder=ssast", "wandb.mode=online"]
    assert main(["pretrain", str(recipes["pretrain"]), *words]) == 2
    said = capsys.readouterr().err
    assert "wandb.mode is online: No API key" in said and "Traceback" not in said


def test_wandb_that_is_not_installed_is_told(
    recipes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", False)
    words = [f"run_dir={tmp_path / 'run'}", "model.encoder=ssast", "wandb.mode=offline"]
    assert main(["pretrain", str(recipes["pretrain"]), *words]) == 2
    assert "wandb is not installed: pip install 'ssamba[wandb]'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def wandb_records(run: Path) -> Iterator[Any]:
    """What the offline files of a run hold, the earliest file first: records in blocks, as LevelDB keeps its log."""
    from wandb.proto import wandb_internal_pb2

    for path in sorted(run.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime):
        content, place, parts = path.read_bytes(), 7, b""
        while place + 7 <= len(content):
            left = (1 << 15) - place % (1 << 15)
            if left < 7:
                place += left
                continue
            length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
            parts += content[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):  # whole, or the last part
                record = wandb_internal_pb2.Record()
                record.ParseFromString(parts)
                parts = b""
                yield record


def items(updates: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in updates}


def one_table(run: Path, name: str) -> dict[str, Any]:
    (path,) = run.glob(f"wandb/offline-run-*/files/media/table/{name}_*.table.json")
    table: dict[str, Any] = json.loads(path.read_text())
    return table


def test_wandb_offline_holds_all_that_a_run_has_come_to(
    recipes: dict[str, Path], wandb: Any, tmp_path: Path, recordings: dict[str, list[Any]]
) -> None:
    run = tmp_path / "run"
    words = [
        f"run_dir={run}",
        "model.encoder=ssast",
        "trainer.max_steps=2",
        "wandb.mode=offline",
        "wandb.group=encoders",
        "wandb.tags=[digits, first try]",
    ]
    assert main(["finetune", str(recipes["finetune"]), *words]) == 0
    assert wandb.run is None  # another run of this process is one of its own
    wandb.teardown()  # what its service holds is written
    records = list(wandb_records(run))
    (begun,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (begun.run_group, begun.job_type, list(begun.tags)) == ("encoders", "finetune", ["digits", "first try"])
    assert (begun.project, begun.display_name) == ("ssamba", "run")

    config, recipe = items(begun.config.update), load_recipe(run)
    assert (config["seed"], config["run_dir"], config["task"]["label"]) == (0, str(run), "sound")
    assert (config["audio"]["mean"], config["model"]["residual"]) == (recipe.audio.mean, recipe.model.residual)

    summary: dict[str, Any] = {}
    for record in records:
        summary |= items(record.summary.update)
    record = json.loads((run / "run.json").read_text())
    assert {name: summary[name] for name in last_metrics(run)} == pytest.approx(last_metrics(run))
    scores = {f"test/{name}": value for name, value in record["test"].items()}
    assert {name: summary[name] for name in scores} == pytest.approx(scores)
    assert (summary["steps"], summary["parameters"]) == (2, record["parameters"])

    clips, classes, mistakes = (one_table(run, f"test/{name}") for name in ("predictions", "classes", "mistakes"))
    with (run / "test" / "predictions.csv").open(newline="") as file:
        told = list(csv.reader(file))
    assert clips["columns"] == told[0] and [str(row[0]) for row in clips["data"]] == [row[0] for row in told[1:]]
    assert [row[3] for row in clips["data"]] == [float(row[3]) for row in told[1:]]
    assert len(classes["data"]) == 4 and classes["columns"][:2] == ["class", "clips"]

    # The most confident mistakes can be heard: as they were recorded.
    assert mistakes["columns"] == ["key", "true", "wrong", "probability", "sound"]
    heard = [row[0] for row in mistakes["data"] if row[4] is not None]
    assert heard == [row[0] for row in mistakes["data"]][:8] and heard
    artifacts = {one.artifact.type: one.artifact for one in records if one.WhichOneof("record_type") == "artifact"}
    by_type = [one.artifact for one in records if one.WhichOneof("record_type") == "artifact"]
    sounds = [
        Path(entry.local_path) for one in by_type for entry in one.manifest.contents if entry.path.endswith(".wav")
    ]
    assert len(sounds) == len(heard)
    clip = samples_for(64, 16000)
    recorded = {one.key: soundfile.read(one.path)[0] for one in recordings["test"]}
    repeated = [np.resize(recorded[key], clip) for key in heard]  # data.short=repeat
    for path in sounds:
        sound, rate = soundfile.read(path)
        assert rate == 16000
        # wandb writes it at the full scale of its loudest sample.
        assert max(float(np.corrcoef(sound, one)[0, 1]) for one in repeated) > 0.999

    for name, files in (
        ("model", {"config.json", "model.safetensors", "preprocessor_config.json"}),
        ("report", {"report.html", "report.md", "run.json", "recipe.yaml", "metrics.csv"}),
    ):
        contents = {entry.path: Path(entry.local_path) for entry in artifacts[name].manifest.contents}
        assert set(contents) == files
        assert all(place == next(run.rglob(path)) for path, place in contents.items())  # in the run, and once
    assert artifacts["model"].name == f"model-{begun.run_id}"
    every = [Path(entry.local_path) for one in by_type for entry in one.manifest.contents]
    assert not [place for place in every if not (place.is_file() and run in place.parents)]
    for picture in ("curves", "test/confusion"):
        assert len(list(run.glob(f"wandb/offline-run-*/files/media/images/{picture}_*.png"))) == 1


def test_wandb_shows_how_pretraining_goes(recipes: dict[str, Path], wandb: Any, tmp_path: Path) -> None:
    """And a run that goes on is the same one, with what it is made by now."""
    run = tmp_path / "run"
    words = [f"run_dir={run}", "model.encoder=ssast", "wandb.mode=offline", "wandb.tags=[one]", "--resume", "auto"]
    for steps in (2, 4):
        assert main(["pretrain", str(recipes["pretrain"]), *words, f"trainer.max_steps={steps}"]) == 0
    wandb.teardown()
    first, second = [one.run for one in wandb_records(run) if one.WhichOneof("record_type") == "run"]
    assert first.run_id == second.run_id and first.job_type == second.job_type == "pretrain"
    assert [items(one.config.update)["trainer"]["max_steps"] for one in (first, second)] == [2, 4]
    steps = [
        items(one.history.item).get("trainer/global_step")
        for one in wandb_records(run)
        if "train/loss" in items(one.history.item)
    ]
    assert steps == [0, 1, 2, 3]
    assert len(list(run.glob("wandb/offline-run-*/files/media/images/reconstruction*.png"))) == 2


def test_what_wandb_cannot_take_ends_no_run(
    recipes: dict[str, Path],
    wandb: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ConnectionResetError("the service is gone")

    monkeypatch.setattr(WandbLogger, "log_metrics", broken)
    monkeypatch.setattr(wandb.Artifact, "add_dir", broken)
    run = tmp_path / "run"
    words = [f"run_dir={run}", "model.encoder=ssast", "trainer.max_steps=2", "wandb.mode=offline"]
    assert main(["finetune", str(recipes["finetune"]), *words]) == 0
    wandb.finish()
    assert (run / "run.json").exists() and len(rows(run)) == 3
    said = [record.getMessage() for record in caplog.records if record.name == "ssamba.training.loggers"]
    assert said[0] == "wandb does not log any more: the service is gone; metrics.csv has everything"
    assert said[1:] == [
        "what the run has come to (Wandb) could not be logged: ConnectionResetError: the service is gone"
    ]


def test_what_is_staged_goes_where_the_user_says(
    recipes: dict[str, Path], wandb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "mine"))
    run = tmp_path / "run"
    words = [f"run_dir={run}", "model.encoder=ssast", "trainer.max_steps=1", "data.validation=[]", "wandb.mode=offline"]
    assert main(["finetune", str(recipes["finetune"]), *words]) == 0
    assert list((tmp_path / "mine" / "artifacts" / "staging").iterdir())
    assert not (run / "wandb" / "artifacts").exists()


def test_tags_that_wandb_refuses_are_told_at_once(recipes: dict[str, Path], refused: Any) -> None:
    said = refused("finetune", recipes["finetune"], "run_dir=run", f"wandb.tags=[{65 * 'a'}, b]")
    assert "wandb.tags has 'aaa" in said and "expected tags of at most 64 letters" in said


# TensorBoard


def events(run: Path) -> list[Any]:
    """Of all the files of a run, in the order in which they were begun."""
    event_pb2 = pytest.importorskip("tensorboard.compat.proto.event_pb2")
    found = []
    for path in sorted((run / "tensorboard").glob("events.*")):
        content, place = path.read_bytes(), 0
        while place < len(content):
            (length,) = struct.unpack("<Q", content[place : place + 8])
            found.append(event_pb2.Event.FromString(content[place + 12 : place + 12 + length]))
            place += 16 + length
    return found


def test_tensorboard_has_what_the_csv_has_and_what_the_run_has_come_to(
    recipes: dict[str, Path], tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    words = [f"run_dir={run}", "model.encoder=ssast", "trainer.max_steps=2", "trainer.tensorboard=true"]
    assert main(["finetune", str(recipes["finetune"]), *words]) == 0
    values = [(event.step, value) for event in events(run) for value in event.summary.value]
    numbers = {
        (step, value.tag): value.simple_value for step, value in values if value.WhichOneof("value") == "simple_value"
    }
    for row in rows(run):
        for name in row:
            if row[name] and name not in ("step", "epoch", "seconds"):
                assert numbers[int(row["step"]), name] == pytest.approx(float(row[name]))
    scores = json.loads((run / "test" / "scores.json").read_text())
    assert {name: numbers[2, f"test/{name}"] for name in scores} == pytest.approx(scores)
    pictures = {value.tag: value.image for _, value in values if value.WhichOneof("value") == "image"}
    assert set(pictures) == {"curves", "test/confusion"} and pictures["curves"].width == 32
    sounds = [value.audio for _, value in values if value.WhichOneof("value") == "audio"]
    assert 1 <= len(sounds) <= 8 and all(sound.sample_rate == 16000 for sound in sounds)
    parameters = [value.metadata.plugin_data.content for _, value in values if value.tag.startswith("_hparams_")]
    assert any(b"model/encoder" in content and b"ssast" in content for content in parameters)
    assert {path.name.partition(".")[0] for path in (run / "tensorboard").iterdir()} == {"events"}


def test_tensorboard_shows_how_pretraining_goes_and_a_step_once(recipes: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    words = [f"run_dir={run}", "model.encoder=ssast", "trainer.tensorboard=true", "--resume", "auto"]
    for steps in (2, 4):
        assert main(["pretrain", str(recipes["pretrain"]), *words, f"trainer.max_steps={steps}"]) == 0
    found = events(run)
    pictures = [event.step for event in found for value in event.summary.value if value.tag == "reconstruction"]
    assert pictures == [2, 4]
    # What was logged from there on by the process before is hidden.
    assert [event.step for event in found if event.WhichOneof("what") == "session_log"] == [2]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # its own thread's
def test_what_tensorboard_cannot_write_ends_no_run(
    recipes: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    writers = pytest.importorskip("tensorboard.summary.writer.record_writer")

    real, written = writers.RecordWriter.write, list[bytes]()

    def full(writer: Any, content: bytes) -> None:
        written.append(content)
        if len(written) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(writer, content)

    monkeypatch.setattr(writers.RecordWriter, "write", full)
    run = tmp_path / "run"
    words = [f"run_dir={run}", "model.encoder=ssast", "trainer.tensorboard=true"]
    assert main(["finetune", str(recipes["finetune"]), *words]) == 0
    assert (run / "run.json").exists() and len(rows(run)) == 6
    said = [record.getMessage() for record in caplog.records if record.name == "ssamba.training.loggers"]
    assert said[0].startswith("TensorBoard's file is not written any more: ") and "No space left" in said[0]
    assert all("could not be logged" in one for one in said[1:])


def test_tensorboard_that_is_not_installed_is_told(
    recipes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Any
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "tensorboard" else find(name, *more)
    )
    words = [f"run_dir={tmp_path / 'run'}", "model.encoder=ssast", "trainer.tensorboard=true"]
    said = refused("pretrain", recipes["pretrain"], *words)
    assert "trainer.tensorboard is true" in said and "pip install 'ssamba[tensorboard]'" in said
