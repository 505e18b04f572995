"""Where metrics go: metrics.csv, and Weights & Biases beside it if a recipe asks for it."""

import csv
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from ssamba.errors import UserError
from ssamba.evaluation.pictures import read_metrics
from ssamba.files import written_beside

log = logging.getLogger(__name__)

_WANDB_SECONDS = 30  # to wait for its server


class MetricsFile(Logger):
    """A CSV file with a row for each time that something is logged, on the disk at once.

    `rows` is how many were logged. A disk that is full ends no run: rows wait in memory until it takes them.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.rows = path, 0
        self._columns: list[str] = []
        self._waiting: list[dict[str, Any]] = []

    @property
    def name(self) -> None:
        return None

    @property
    def version(self) -> None:
        return None

    def log_hyperparams(self, *arguments: Any, **options: Any) -> None:
        """The run's recipe.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._waiting.append({**metrics, "step": step})
        self.rows += 1

    @rank_zero_only
    def save(self) -> None:
        """Write the rows that wait; called after each time that something is logged."""
        if not self._waiting:
            return
        columns = sorted({*self._columns, *(name for row in self._waiting for name in row)})
        try:
            if columns != self._columns:
                self._write([*read_metrics(self.path), *self._waiting], columns)
            else:
                self._append()
        except OSError as error:
            log.warning("%s could not be written: %s; its rows wait", self.path, error.strerror)
            return
        self._columns = columns
        self._waiting = []

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()

    @rank_zero_only
    def keep(self, rows: int) -> None:
        """Go on with the file that is there, from its first `rows` rows."""
        kept = read_metrics(self.path)[:rows]
        if len(kept) < rows:
            log.warning("%s has %d rows; there were %d at the checkpoint", self.path, len(kept), rows)
        self.rows = rows
        self._columns = sorted({name for row in kept for name in row})
        if kept:
            self._write(kept, self._columns)

    def _write(self, rows: Sequence[Mapping[str, Any]], columns: list[str]) -> None:
        with written_beside(self.path) as beside, beside.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    def _append(self) -> None:
        size = self.path.stat().st_size
        try:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerows(self._waiting)
        except OSError:
            os.truncate(self.path, size)  # no half row
            raise


class _Wandb(WandbLogger):
    """Logs into the run folder alone if the server does not answer; `wandb sync` sends that later."""

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        import wandb

        try:
            return super().experiment
        except wandb.errors.CommError as error:
            log.warning("wandb cannot be reached, so it logs offline: %s", error)
            wandb.teardown()  # it holds on to the run's id
            self._wandb_init["mode"] = "offline"
            return super().experiment
        except wandb.errors.UsageError as error:
            raise UserError(f"wandb.mode is online: {error} Or take wandb.mode=offline") from error


def wandb_logger(run: Path, mode: str, project: str, wandb_id: str | None) -> WandbLogger:
    """A logger whose files lie in the run folder; with the id of an earlier one it goes on with that.

    Raises:
        UserError: wandb is not installed.
    """
    try:
        return _Wandb(project=project, name=run.name, save_dir=str(run), offline=mode == "offline", id=wandb_id,
                      settings={"init_timeout": _WANDB_SECONDS})  # fmt: skip
    except ModuleNotFoundError as error:
        raise UserError(f"wandb.mode is {mode!r}, but wandb is not installed: pip install 'ssamba[wandb]'") from error


def quieten_lightning() -> None:
    """Lightning says at every start which devices there are, and advertises: what matters of it is in run.json."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    # What is logged without it is the same on every rank already.
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")
    # A start late in a run has few batches left: that they are fewer than the steps between two logs means nothing.
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")
    # One that has all its steps behind it has none.
    warnings.filterwarnings("ignore", message="Total length of `.*` across ranks is zero")
