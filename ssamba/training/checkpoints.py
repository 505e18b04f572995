"""Checkpoints that outlive whatever ends a run, written, and how a run goes on from one (training.saved reads them).

`checkpoints/step-0001000.ckpt` is finished once `step-0001000.json` is beside it with its SHA-256, step and size;
of these the last two are kept, or as many as are averaged in the end. `best.ckpt` has the weights of the best
validation, written in the same way.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from ssamba.data.batches import Batch
from ssamba.data.datamodule import ClipDataModule
from ssamba.errors import UserError
from ssamba.files import TEMPORARY, written_beside
from ssamba.training.averaging import mean_of
from ssamba.training.common import TrainingModule
from ssamba.training.distributed import gathered
from ssamba.training.energy import EnergyMeter
from ssamba.training.lightning_internals import set_progress, validate_now
from ssamba.training.loggers import MetricsFile
from ssamba.training.saved import read_checkpoint, step_files, step_name, step_of

log = logging.getLogger(__name__)

_KEPT = 2


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint beside, onto the disk, renames it, and then writes its JSON file.

    `error` is why the last one could not be written. It is kept, not raised: a full disk ends no run, and the other
    ranks wait for this one where the save ends.
    """

    error: OSError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.error = None
        try:
            self.write(checkpoint, Path(path))
        except (OSError, RuntimeError) as error:
            # torch raises an error of its own when a write fails under it.
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            if cause is None:
                raise
            self.error = cause

    def write(self, checkpoint: dict[str, Any], path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        sidecar = path.with_suffix(".json")
        # Exited in reverse order: the checkpoint is renamed, then the JSON file that marks it as finished.
        with written_beside(sidecar, durable=True) as described, written_beside(path, durable=True) as beside:
            with beside.open("wb") as file:
                torch.save(checkpoint, file)
            with beside.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            description = {"sha256": digest, "step": checkpoint["global_step"], "bytes": beside.stat().st_size}
            described.write_text(json.dumps(description) + "\n")
            sidecar.unlink(missing_ok=True)


class Checkpoints(Checkpoint):
    """Saves a run so that it goes on, from wherever it was ended, to the same bits as if nothing had happened.

    A save is made between two optimizer steps, when all that belongs to the one before is done: its validation, the
    plateau rule, its row of metrics. What Lightning keeps of its loops is left out; `set_progress` stands in for it.

    Args:
        run: the run's folder.
        every_steps: optimizer steps from one save to the next; there is one after the last step, too.
        monitor: the metric by which the best validation is chosen, and "min" or "max"; None: no validation tells.
        patience: validations without a better score after which training ends; None: it goes on.
        averaged: of so many last checkpoints, those of interruptions aside, `trained_weights` is the mean; 1: none.
        judges: whether the validation after so many steps has the metric; None: all have.
    """

    def __init__(
        self,
        run: Path,
        every_steps: int,
        monitor: tuple[str, str] | None,
        patience: int | None = None,
        averaged: int = 1,
        judges: Callable[[int], bool] | None = None,
    ) -> None:
        self.folder, self.every_steps, self.monitor = run / "checkpoints", every_steps, monitor
        self.patience, self.averaged, self.judges = patience, averaged, judges
        self.record: dict[str, Any] = {}
        """The first half of run.json."""
        self.metrics: dict[str, float] = {}
        """The newest value of each, as of the newest checkpoint."""
        self.best: dict[str, float] | None = None
        """score and step of best.ckpt."""
        self.stale = 0
        """Validations since the best one."""
        self.seconds = 0.0
        """Of training, over all the starts of the run, up to the newest checkpoint."""
        self._meter: EnergyMeter | None = None
        self._joules_before: float | None = 0.0
        self.started = False
        """Whether training is under way: what a checkpoint holds has its place."""
        self._saved = (0, False)  # the newest checkpoint: its step, and whether the validation after that is due
        self._validation_due = False  # in what is being saved
        self._counted = time.perf_counter()

    @property
    def joules(self) -> float | None:
        """The energy of training, over all the starts of the run; None where one of the machines did not report it, or
        there were several."""
        own = self._meter.joules if self._meter is not None else None
        return None if own is None or self._joules_before is None else self._joules_before + own

    @property
    def saved_step(self) -> int:
        """The step of the newest checkpoint; 0 before the first."""
        return self._saved[0]

    def trained_weights(self, trainer: lightning.Trainer) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The model's tensors after training, whole, and which they are, for run.json; nothing on all ranks but the
        first, which must call this, too.

        They are those of the best validation, where none tells the last ones. Several last ones that are averaged
        come before either, and the average over the steps, if there is one, before the weights themselves.
        """
        state, module = trainer.strategy.lightning_module_state_dict(), trainer.lightning_module
        assert isinstance(module, TrainingModule)
        average = {} if module.average is None else module.average.whole()
        if trainer.global_rank:
            return {}, {}
        origin: dict[str, Any] = {"steps": [trainer.global_step], "averaged_over_steps": module.average is not None}
        if self.averaged > 1:
            steps = [step for step in map(step_of, step_files(self.folder, "json")) if step <= trainer.global_step]
            last = sorted(step for step in steps if self._is_regular(step) or step == trainer.global_step)
            origin["steps"] = last[-self.averaged :]
            contents = [read_checkpoint(self.folder / f"{step_name(step)}.ckpt") for step in origin["steps"]]
            state = mean_of([{**content["state_dict"], **(content.get("average") or {})} for content in contents])
        elif self.best is not None:
            assert self.monitor is not None
            origin |= {"steps": [self.best["step"]], "best": self.monitor[0], "score": self.best["score"]}
            state = read_checkpoint(self.folder / "best.ckpt")["state_dict"]
        else:
            state = {**state, **average}
        own = "model."  # the rest of a module, such as a teacher, is of training alone
        return {name.removeprefix(own): tensor for name, tensor in state.items() if name.startswith(own)}, origin

    def _is_regular(self, step: int) -> bool:
        """Whether a checkpoint is one of those that a run makes by itself, whatever interrupts it."""
        return step > 0 and step % self.every_steps == 0

    @property
    def stopped_early(self) -> str | None:
        """Why training ended, or would end, before its last step; None where it would not."""
        if self.patience is None or self.stale < self.patience or self.monitor is None:
            return None
        than = f" than {self.best['score']:.4g} of step {self.best['step']}" if self.best else ""
        return f"{self.stale} validations without a better {self.monitor[0]}{than}"

    # Saving

    def save(self, trainer: lightning.Trainer, validation_due: bool = False) -> bool:
        """Save on all ranks, if this step is not saved yet; False if the disk did not take it.

        Call it between two optimizer steps; `validation_due` if the validation after the last one is not through.
        """
        step = trainer.global_step
        if self._saved in ((step, validation_due), (step, False)):
            return True
        for logger in trainer.loggers:
            logger.save()
        self._validation_due = validation_due
        if self._meter is not None:
            self._meter.read(at_once=True)
        now = time.perf_counter()
        self.seconds, self._counted = self.seconds + now - self._counted, now
        self.metrics |= {name: float(value) for name, value in trainer.callback_metrics.items()}
        assert isinstance(data := trainer.datamodule, ClipDataModule)  # type: ignore[attr-defined]
        if data.progress is not None:  # shards without an index, of which each rank knows its own
            data.progress.merge(gathered(data.progress))
        if not self._written(trainer, self.folder / f"{step_name(step)}.ckpt"):
            return False
        self._saved = (step, validation_due)
        if trainer.is_global_zero:
            self._prune(step)
        return True

    def _written(self, trainer: lightning.Trainer, path: Path, weights_only: bool = False) -> bool:
        files = trainer.strategy.checkpoint_io
        assert isinstance(files, CheckpointFiles)
        trainer.save_checkpoint(path, weights_only)
        if files.error is not None:
            log.warning(
                "%s COULD NOT BE WRITTEN: %s. Training goes on; the newest checkpoint is that of step %d. "
                "Make room before the end",
                path,
                files.error,
                self.saved_step,
            )
        return not trainer.strategy.reduce_boolean_decision(files.error is not None, all=False)

    def _prune(self, step: int) -> None:
        # Later ones than this are obsolete: the run was resumed from an earlier one, as they were damaged.
        steps = sorted(map(step_of, step_files(self.folder, "json")), reverse=True)
        earlier = [other for other in steps if other <= step]
        kept = earlier[:_KEPT] + [other for other in earlier if self._is_regular(other)][: self.averaged]
        for ending in ("json", "ckpt"):
            for path in step_files(self.folder, ending):
                if step_of(path) not in kept:
                    path.unlink()
        # Left by a process that was killed: only the holder of the run's lock writes here.
        for path in self.folder.glob(f"{TEMPORARY}*"):
            path.unlink()

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["run"] = {
            "record": self.record,
            "metrics": self.metrics,
            "best": self.best,
            "seconds": self.seconds,
            "validation_due": self._validation_due,
            "stale": self.stale,
            "joules": self.joules,
            "rows": next((logger.rows for logger in trainer.loggers if isinstance(logger, MetricsFile)), 0),
            "wandb_id": next((logger.version for logger in trainer.loggers if isinstance(logger, WandbLogger)), None),
        }

    def on_train_batch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if batch_idx % trainer.accumulate_grad_batches == 0 and trainer.global_step % self.every_steps == 0:
            self.save(trainer)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        assert isinstance(data := trainer.datamodule, ClipDataModule)  # type: ignore[attr-defined]
        data.count(batch)
        if self._meter is not None:
            self._meter.read()

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not self.save(trainer):
            raise UserError(
                f"the last checkpoint could not be written to {self.folder}; make room there and go on with --resume"
            )

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if self.monitor is None or (self.judges is not None and not self.judges(trainer.global_step)):
            return
        name, mode = self.monitor
        score = float(trainer.callback_metrics[name])
        sign = 1 if mode == "max" else -1
        if math.isnan(score) or (self.best is not None and sign * score <= sign * self.best["score"]):
            self.stale += 1
            trainer.should_stop = trainer.should_stop or self.stopped_early is not None
            return
        self.stale = 0
        if self._written(trainer, self.folder / "best.ckpt", weights_only=True):
            self.best = {"score": score, "step": trainer.global_step}

    # Going on

    def _step_of_best(self) -> int | None:
        """The step of best.ckpt; None where there is none, or one that cannot be used, which is logged."""
        path = self.folder / "best.ckpt"
        if not path.exists():
            return None
        try:
            return int(read_checkpoint(path)["global_step"])
        except UserError as error:
            log.warning("%s; the best validation from here on takes its place", error)
            return None

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        run, step = checkpoint["run"], checkpoint["global_step"]
        self.metrics, self.best, self.seconds = run["metrics"], run["best"], run["seconds"]
        self.stale, self._joules_before = run.get("stale", 0), run.get("joules")
        self._saved = (step, run["validation_due"])
        if self.monitor is None or (self.best is not None and self.best["step"] != self._step_of_best()):
            self.best = None  # none is chosen, or best.ckpt is of a later step than the one resumed from
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.keep(run["rows"], run["seconds"])
        self._max_steps = trainer.max_steps
        set_progress(trainer, step, run["validation_due"])
        trainer.should_stop = not run["validation_due"] and self.stopped_early is not None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.started = True
        if trainer.is_global_zero and trainer.num_nodes == 1:
            self._meter = EnergyMeter(trainer.num_devices if trainer.strategy.root_device.type == "cuda" else 0)
        if self._saved[1]:
            validate_now(trainer, self._max_steps)
