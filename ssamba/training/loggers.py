"""Where metrics go: metrics.csv, and Weights & Biases and TensorBoard beside it if a recipe asks for them."""

import csv
import importlib.util
import logging
import os
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.image import imread

from ssamba.errors import UserError
from ssamba.evaluation.pictures import SECONDS, read_metrics
from ssamba.files import written_beside

log = logging.getLogger(__name__)

WANDB_SECONDS = 30  # to wait for its server
_WANDB_LAST_SECONDS = 300  # at the end of a run, for what is not sent by then; `wandb sync` sends it later


class MetricsFile(Logger):
    """A CSV file with a row for each time that something is logged, on the disk at once.

    Each has the seconds of training until then, over all starts of the run. `rows` is how many were logged. A disk that
    is full ends no run: rows wait in memory until it takes them.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.rows = path, 0
        self._before, self._started = 0.0, time.perf_counter()
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
        seconds = self._before + time.perf_counter() - self._started
        self._waiting.append({**metrics, SECONDS: round(seconds, 3), "step": step})
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
    def keep(self, rows: int, seconds: float) -> None:
        """Go on with the file that is there, from its first `rows` rows, after so many seconds of training."""
        self._before = seconds
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
    """Logs into the run folder alone if the server does not answer; `wandb sync` sends that later. What cannot be
    logged during training is told once, and ends no run."""

    _warned = False

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

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        try:
            super().log_metrics(metrics, step)
        except Exception as error:  # its service has errors of many kinds, and none is worth a run
            if not self._warned:
                log.warning("wandb does not log any more: %s; metrics.csv has everything", error)
            self._warned = True


def wandb_logger(
    run: Path,
    *,
    mode: str,
    project: str,
    group: str | None,
    tags: Sequence[str],
    job_type: str,
    config: Mapping[str, Any],
    wandb_id: str | None,
) -> WandbLogger:
    """A logger whose files lie in the run folder; with the id of an earlier one it goes on with that.

    Args:
        mode, project, group, tags: of the recipe's wandb section.
        job_type: pretrain or finetune.
        config: what the run is made by, as sections of plain values.

    Raises:
        UserError: wandb is not installed.
    """
    settings: dict[str, Any] = {"init_timeout": WANDB_SECONDS}
    try:
        from wandb import Settings

        if "finish_timeout" in Settings.model_fields:  # of newer releases
            settings["finish_timeout"] = _WANDB_LAST_SECONDS
        return _Wandb(
            project=project,
            name=run.name,
            save_dir=str(run),
            id=wandb_id,
            mode=mode,
            group=group,
            tags=list(tags),
            job_type=job_type,
            config=dict(config),
            allow_val_change=True,  # a run that goes on may have another place, devices or steps
            settings=settings,
        )
    except ModuleNotFoundError as error:
        raise UserError(f"wandb.mode is {mode!r}, but wandb is not installed: pip install 'ssamba[wandb]'") from error


class _TensorBoard(TensorBoardLogger):
    """What cannot be logged during training is told once, and ends no run."""

    _warned = False

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        try:
            super().log_metrics(metrics, step)
        except Exception as error:  # of its thread, of an earlier write
            self._warn(error)

    @rank_zero_only
    def save(self) -> None:
        # Without a hparams.yaml: the run has a recipe.yaml.
        try:
            self.experiment.flush()
        except Exception as error:
            self._warn(error)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        self.save()  # and open for what the run has come to

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            log.warning("TensorBoard's file is not written any more: %s; metrics.csv has everything", error)
        self._warned = True


def tensorboard_logger(run: Path, start: int | None) -> TensorBoardLogger:
    """A logger into the run's folder tensorboard; what an earlier process logged after step `start` is hidden.

    Raises:
        UserError: tensorboard is not installed.
    """
    # Lightning takes tensorboardX as well, by which a full disk stops a run: it waits for a thread that has ended.
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "trainer.tensorboard is true, but tensorboard is not installed: pip install 'ssamba[tensorboard]'"
        )
    return _TensorBoard(run, "tensorboard", "", default_hp_metric=False, purge_step=start)


def log_picture(loggers: Iterable[Logger], name: str, path: Path, step: int) -> None:
    """Show a PNG in wandb and TensorBoard, where they are among the loggers."""
    for logger in loggers:
        with not_worth_a_run(f"the picture {path.name}"):
            if isinstance(logger, WandbLogger):
                logger.log_image(name, [str(path)])
            elif isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image(name, imread(path)[..., :3], step, dataformats="HWC")


@contextmanager
def not_worth_a_run(what: str) -> Iterator[None]:
    """What a logger raises is told, and no more."""
    try:
        yield
    except Exception as error:  # of services, disks and libraries
        log.warning("%s could not be logged: %s: %s", what, type(error).__name__, error)


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
