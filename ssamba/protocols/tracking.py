"""What a finished run shows in Weights & Biases and in TensorBoard beside its metrics: scores, tables, pictures, the
sound of its worst mistakes, the model and the report.

All of it comes from the run's folder, which has everything without them. It is shown once training is over and all is
written; what a logger cannot take is told, and fails no run.
"""

import csv
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from ssamba.build.runs import Finetuner, Pretrainer
from ssamba.config import described
from ssamba.data.datamodule import ClipDataModule
from ssamba.evaluation.scores import CLASSES_NAME, SCORES_NAME, TEXTS_NAME, mistakes, read_scores
from ssamba.training.loggers import log_picture, not_worth_a_run

_MOST_ROWS = 10_000  # of a table, which wandb draws
_SOUNDS = 8  # mistakes, the most confident ones
_STAGING = "WANDB_DATA_DIR"

Cell = str | float | None
Sounds = dict[str, np.ndarray[Any, np.dtype[np.float32]]]


def show_results(
    built: Pretrainer | Finetuner, folder: Path, record: Mapping[str, Any], loggers: Iterable[Logger]
) -> None:
    """Show a finished run in those of its loggers that show more than numbers, and end its wandb run.

    Args:
        record: what is in its run.json.
    """
    shown = [logger for logger in loggers if isinstance(logger, WandbLogger | TensorBoardLogger)]
    if not shown:
        return
    step, sounds = record["steps"], dict[str, Any]()
    with not_worth_a_run("the sound of mistakes"):
        sounds = _mistaken_clips(built, folder)
    for name, path in (("curves", "pictures/curves.png"), ("test/confusion", "test/confusion.png")):
        if (folder / path).is_file():
            log_picture(shown, name, folder / path, step)
    for logger in shown:
        with not_worth_a_run(f"what the run has come to ({type(logger).__name__.strip('_')})"):
            if isinstance(logger, TensorBoardLogger):
                _show_in_tensorboard(logger, built, record, sounds)
            else:
                _show_in_wandb(logger, built, folder, record, sounds)


def _show_in_wandb(
    logger: WandbLogger, built: Pretrainer | Finetuner, folder: Path, record: Mapping[str, Any], sounds: Sounds
) -> None:
    import wandb

    run: Any = logger.experiment
    rate = built.audio.sampling_rate
    tables = {
        "test/predictions": _table(folder / "test" / "predictions.csv"),
        "test/classes": _table(folder / "test" / CLASSES_NAME),
        "test/mistakes": _table(folder / "test" / "mistakes.csv"),
        "test/texts": _table(folder / "test" / TEXTS_NAME),
    }
    with _staged_in(folder / "wandb"):
        shown: dict[str, Any] = {}
        for name, (columns, rows) in tables.items():
            cells: list[list[Any]] = [list(row) for row in rows]
            if name == "test/mistakes" and sounds:
                columns = [*columns, "sound"]
                waveforms = (sounds.get(str(row[0])) for row in rows)
                for row, sound in zip(cells, waveforms, strict=True):
                    row.append(None if sound is None else wandb.Audio(sound, sample_rate=rate))
            if cells:
                shown[name] = wandb.Table(columns=columns, data=cells)
        run.log({**shown, "trainer/global_step": record["steps"]})
        numbers = {name: record[name] for name in ("steps", "parameters", "training_seconds")}
        run.summary.update({**numbers, **{f"test/{name}": value for name, value in record["test"].items()}})
        # By their place in the run's folder: nothing is copied.
        model = wandb.Artifact(f"model-{run.id}", "model", metadata=dict(built.module.model.encoder.arguments))
        model.add_dir(str(folder / "model"), policy="immutable")
        report = wandb.Artifact(f"report-{run.id}", "report")
        for path in ("report.html", "report.md", "run.json", "recipe.yaml", "metrics.csv"):
            report.add_file(str(folder / path), policy="immutable")
        for artifact in (model, report):
            run.log_artifact(artifact)
        run.finish()


def _show_in_tensorboard(
    logger: TensorBoardLogger, built: Pretrainer | Finetuner, record: Mapping[str, Any], sounds: Sounds
) -> None:
    writer, step = logger.experiment, record["steps"]
    scores = {f"test/{name}": value for name, value in record["test"].items()}
    logger.log_hyperparams(described(built.recipe), scores or None, step)
    for key, sound in sounds.items():
        writer.add_audio(f"mistakes/{key}", sound[:, None], step, built.audio.sampling_rate)
    writer.close()


def _table(path: Path) -> tuple[list[Any], list[list[Cell]]]:
    """The columns and the first rows of a CSV of the run, numbers as numbers; nothing where there is none."""
    if not path.is_file():
        return [], []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        columns = next(reader)
        rows = list(itertools.islice(reader, _MOST_ROWS))
    # A name may look like a number: a column is of numbers if all of it is.
    numbers = [all(map(_is_number, column)) for column in zip(*rows, strict=True)]
    return columns, [
        [(float(cell) if cell else None) if is_number else cell for cell, is_number in zip(row, numbers, strict=True)]
        for row in rows
    ]


def _is_number(cell: str) -> bool:
    try:
        float(cell or "0")
    except ValueError:
        return False
    return True


def _mistaken_clips(built: Pretrainer | Finetuner, folder: Path) -> Sounds:
    """The clips of the most confident mistakes by their keys, read again: float32 (S,) each. None of hops and texts."""
    if (
        not isinstance(built, Finetuner)
        or built.classifier.hop_columns
        or not (folder / "test" / SCORES_NAME).is_file()
    ):
        return {}
    predictions, names = read_scores(folder / "test")
    keys = [one.key for one in mistakes(predictions, names, _SOUNDS)]
    # Clips are scored in the order of their rows.
    places = np.array(sorted(predictions.keys.index(key) for key in keys), np.int64)
    rows = built.data.rows.get("test")
    chosen = {"test": places if rows is None else rows[places]}
    data = ClipDataModule(built.data.settings, test=built.shards.test, labels=built.data.labels, rows=chosen)
    sounds: Sounds = {}
    for batch in data.test_stream() if keys else ():
        for key, waveform, length in zip(batch["keys"], batch["waveform"], batch["lengths"], strict=True):
            sounds[key] = waveform[: int(length)].numpy()
    return {key: sounds[key] for key in keys if key in sounds}


@contextmanager
def _staged_in(folder: Path) -> Iterator[None]:
    """What wandb copies to send it later lies in a folder, not in the user's own: a run folder holds all of the run."""
    if _STAGING in os.environ:  # the user's own choice
        yield
        return
    os.environ[_STAGING] = str(folder.absolute())
    try:
        yield
    finally:
        del os.environ[_STAGING]
