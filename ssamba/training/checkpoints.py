"""Checkpoints that outlive whatever ends a run, and how a run goes on from one.

`checkpoints/step-0001000.ckpt` is finished once `step-0001000.json` stands beside it with its SHA-256, step and size;
of these the last two are kept, or as many as are averaged in the end. `best.ckpt` has the weights of the best
validation, written in the same way.
"""

import hashlib
import itertools
import json
import logging
import math
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import lightning
import msgspec
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from ssamba.data.batches import Batch
from ssamba.data.datamodule import ClipDataModule
from ssamba.errors import UserError
from ssamba.files import TEMPORARY, Count, Sha256, read_json, written_beside
from ssamba.models.record import Start
from ssamba.training.averaging import mean_of
from ssamba.training.common import TrainingModule
from ssamba.training.distributed import gathered
from ssamba.training.energy import EnergyMeter
from ssamba.training.loggers import MetricsFile

log = logging.getLogger(__name__)

_KEPT = 2
# What torch and msgspec raise of a file that is not what it should be.
_UNUSABLE = (
    UserError,
    OSError,
    ValueError,
    LookupError,
    TypeError,
    RuntimeError,
    EOFError,
    pickle.UnpicklingError,
    msgspec.MsgspecError,
)


@dataclass(frozen=True)
class Saved:
    """A checkpoint that can be used: its file, the optimizer steps behind it, and what `Checkpoints` knew then."""

    path: Path
    step: int
    run: dict[str, Any]

    @property
    def stale(self) -> int:
        """Validations since the best one."""
        return int(self.run.get("stale", 0))


@dataclass(frozen=True)
class _Description:
    """The JSON file beside a checkpoint."""

    sha256: Sha256
    step: Count
    bytes: Count


@dataclass(frozen=True)
class _Best:
    score: float
    step: Count


@dataclass(frozen=True)
class _RunState:
    """What `Checkpoints` keeps."""

    record: Start
    metrics: dict[str, float]
    best: _Best | None
    seconds: Annotated[float, msgspec.Meta(ge=0)]
    validation_due: bool
    rows: Count
    wandb_id: str | None
    stale: Count = 0
    joules: Annotated[float, msgspec.Meta(ge=0)] | None = None


@dataclass(frozen=True)
class _Judged:
    """What `TrainingModule` keeps."""

    recent: list[float]
    skipped: Count
    in_a_row: Count


@dataclass(frozen=True)
class _Turns:
    """What it keeps of shards without an index."""

    first: Count
    done: list[Count]
    taken: dict[Count, list[Count]]


@dataclass(frozen=True)
class _Place:
    """What `ClipDataModule` keeps."""

    epoch: Count
    clips: Count
    order: dict[str, Any]
    shards: _Turns | None = None


@dataclass(frozen=True)
class _ParameterGroup:
    """Of AdamW."""

    lr: Annotated[float, msgspec.Meta(ge=0)]
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    params: list[Count]


@dataclass(frozen=True)
class _OptimizerState:
    state: dict[Count, dict[str, Any]]
    param_groups: list[_ParameterGroup]


@dataclass(frozen=True)
class _Skipped:
    """What `SkippedSamples` keeps."""

    names: list[str]


@dataclass(frozen=True)
class _Weights:
    """Of best.ckpt, and in every other checkpoint."""

    global_step: Count
    state_dict: dict[str, Any]


@dataclass(frozen=True)
class _Content(_Weights):
    run: _RunState
    judged: _Judged
    callbacks: dict[str, _Skipped]
    optimizer_states: Annotated[list[_OptimizerState], msgspec.Meta(min_length=1, max_length=1)]
    lr_schedulers: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1, max_length=1)]
    average: dict[str, Any] | None = None


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a finished checkpoint holds, its tensors mapped from the file.

    Raises:
        UserError: without its JSON file, of other bytes than were written, with more in it than plain data, or with
            something else than a run keeps: other types, weights that are not finite.
    """
    try:
        described = read_json(path.with_suffix(".json"), _Description, "what was written beside a checkpoint")
        if (size := path.stat().st_size) != described.bytes:
            raise ValueError(f"it has {size} bytes; {described.bytes} were written")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != described.sha256:
                raise ValueError("its bytes are not those that were written")
        content: dict[str, Any] = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        _check_content(content, _Weights if path.stem == "best" else _Content)
        if content["global_step"] != described.step or path.stem not in ("best", _name(described.step)):
            raise ValueError(f"it is of step {content['global_step']}, and described as of step {described.step}")
    except _UNUSABLE as error:
        raise UserError(f"checkpoint {path} cannot be used: {error}") from error
    return content


def _check_content(content: Any, kind: type[_Weights]) -> None:
    """ValueError for something else than a run keeps."""
    if not isinstance(content, dict):
        raise TypeError(f"it holds a {type(content).__name__}, and no run")
    shape = _named_tensors(content)
    msgspec.convert(shape, kind)
    if kind is _Content:
        msgspec.convert(shape.get("ClipDataModule"), _Place)
        if "train" not in content["run"]["record"]["data"]:
            raise ValueError("its record does not say what was trained on")
    for name, tensor in itertools.chain(content["state_dict"].items(), (content.get("average") or {}).items()):
        if not isinstance(tensor, Tensor) or not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} is no tensor of finite numbers")
    for name, tensor in _tensors(content.get("optimizer_states", [])):
        if bool(tensor.isnan().any()):
            raise ValueError(f"{name} of the optimizer holds what is no number")


def _named_tensors(value: Any) -> Any:
    """The same with a word in the place of each tensor, which msgspec would take for a mapping."""
    if isinstance(value, dict):
        return {key: _named_tensors(held) for key, held in value.items()}
    if isinstance(value, list | tuple):
        return [_named_tensors(held) for held in value]
    return "a tensor" if isinstance(value, Tensor) else value


def _tensors(optimizer_states: list[Any]) -> Iterator[tuple[str, Tensor]]:
    for number, moments in ((n, held) for one in optimizer_states for n, held in one["state"].items()):
        for name, value in moments.items():
            if not isinstance(value, Tensor):
                raise ValueError(f"{name} of parameter {number} of the optimizer is no tensor")
            yield f"{name} of parameter {number}", value


def check_fits(path: Path, module: TrainingModule) -> None:
    """Whether a checkpoint that can be read is one of this module: its tensors and what its optimizer keeps of them.

    Raises:
        UserError: it is not.
    """
    content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    wrong = [name for name, tensor in content["state_dict"].items() if shapes.get(name) != tensor.shape]
    wrong += sorted(shapes.keys() - content["state_dict"].keys())
    if module.settings.ema_decay is not None:
        trained = {name: p.shape for name, p in module.named_parameters() if p.requires_grad}
        if {name: tensor.shape for name, tensor in (content.get("average") or {}).items()} != trained:
            wrong.append("the average of the weights")
    (state,), (schedule,) = content["optimizer_states"], content["lr_schedulers"]
    optimizer = torch.optim.AdamW(module.parameter_groups())
    own_schedule = module.scheduler(optimizer).state_dict()
    groups = optimizer.state_dict()["param_groups"]
    if [group["params"] for group in state["param_groups"]] != [group["params"] for group in groups] or not all(
        _alike(saved.get(name), value)
        for saved, group in zip(state["param_groups"], groups, strict=True)
        for name, value in group.items()
    ):
        wrong.append("the optimizer's groups of parameters")
    parameters = [tuple(parameter.shape) for group in optimizer.param_groups for parameter in group["params"]]
    for number, moments in state["state"].items():
        own = parameters[number] if number < len(parameters) else None
        expected = {"step": (), "exp_avg": own, "exp_avg_sq": own}
        if {name: tuple(value.shape) for name, value in moments.items()} != expected:
            wrong.append(f"the optimizer's moments of parameter {number}")
    if schedule.keys() != own_schedule.keys() or not all(
        _alike(schedule[name], value) for name, value in own_schedule.items()
    ):
        wrong.append("the schedule of the learning rate")
    if wrong:
        raise UserError(
            f"checkpoint {path} is of another model than the recipe's: {', '.join(wrong[:8])}"
            + (", ..." if len(wrong) > 8 else "")
            + "; --overwrite starts the run again"
        )


def _alike(value: Any, own: Any) -> bool:
    """Whether a plain value is of the kind of another; None is of any."""
    if isinstance(own, list | tuple) and isinstance(value, list | tuple):
        return len(value) == len(own) and all(map(_alike, value, own))
    numbers = isinstance(own, int | float) and isinstance(value, int | float)
    return value is None or own is None or numbers or type(value) is type(own)


def newest_checkpoint(run: Path) -> Saved | None:
    """The newest usable checkpoint of a run, None if no checkpoint was ever finished in it.

    Each that is newer and damaged is named in a warning.

    Raises:
        UserError: there are finished checkpoints, and every one is damaged.
    """
    folder = run / "checkpoints"
    damaged = []
    for path in sorted(_of_steps(folder, "ckpt"), key=_step, reverse=True):
        if not path.with_suffix(".json").exists():
            log.warning("checkpoint %s was not finished; it is passed over", path)
            continue
        try:
            content = read_checkpoint(path)
            return Saved(path, content["global_step"], content["run"])
        except UserError as error:
            log.warning("%s; it is passed over", error)
            damaged.append(path.name)
    if damaged:
        raise UserError(
            f"every checkpoint in {folder} is damaged ({', '.join(damaged)}); --overwrite starts the run again"
        )
    return None


def _name(step: int) -> str:
    return f"step-{step:07d}"


def _step(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def _of_steps(folder: Path, ending: str) -> list[Path]:
    """The files that are named as checkpoints of steps are."""
    numbered = [path for path in folder.glob(f"step-*.{ending}") if path.stem.removeprefix("step-").isdecimal()]
    return [path for path in numbered if path.stem == _name(_step(path))]


class CheckpointFiles(TorchCheckpointIO):
    """Writes a checkpoint beside, onto the disk, renames it, and then writes its JSON file.

    `error` is why the last one could not be written. It is kept, not raised: a full disk ends no run, and the other
    ranks wait for this one where the save ends.
    """

    error: OSError | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.error = None
        try:
            self._write(checkpoint, Path(path))
        except (OSError, RuntimeError) as error:
            # torch complains in its own words of a write that failed under it.
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            if cause is None:
                raise
            self.error = cause

    def _write(self, checkpoint: dict[str, Any], path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        sidecar = path.with_suffix(".json")
        # Left in the reverse order: the checkpoint is renamed, then what tells that it is finished.
        with written_beside(sidecar, durable=True) as described, written_beside(path, durable=True) as beside:
            with beside.open("wb") as file:
                torch.save(checkpoint, file)
            with beside.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            said = {"sha256": digest, "step": checkpoint["global_step"], "bytes": beside.stat().st_size}
            described.write_text(json.dumps(said) + "\n")
            sidecar.unlink(missing_ok=True)


class Checkpoints(Checkpoint):
    """Saves a run so that it goes on, from wherever it was ended, to the same bits as if nothing had happened.

    A save is made between two optimizer steps, when all that belongs to the one before is done: its validation, the
    plateau rule, its row of metrics. What Lightning keeps of its loops is left out; `set_progress` stands in for it.

    Args:
        run: the run's folder.
        every_steps: optimizer steps from one save to the next; there is one after the last step, too.
        monitor: the metric that tells the best validation, and "min" or "max"; None without validation.
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
        """The energy of training, over all the starts of the run; None where the machine of one of them did not tell
        it, or there were several."""
        own = self._meter.joules if self._meter is not None else None
        return None if own is None or self._joules_before is None else self._joules_before + own

    @property
    def saved_step(self) -> int:
        """The step of the newest checkpoint; 0 before the first."""
        return self._saved[0]

    def trained_weights(self, trainer: lightning.Trainer) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The model's tensors after training, whole, and which they are, for run.json; nothing on all ranks but the
        first, which must call this, too.

        They are those of the best validation, without validation the last ones. Several last ones that are averaged
        come before either, and the average over the steps, if there is one, before the weights themselves.
        """
        state, module = trainer.strategy.lightning_module_state_dict(), trainer.lightning_module
        assert isinstance(module, TrainingModule)
        average = {} if module.average is None else module.average.whole()
        if trainer.global_rank:
            return {}, {}
        told: dict[str, Any] = {"steps": [trainer.global_step], "averaged_over_steps": module.average is not None}
        if self.averaged > 1:
            steps = [step for step in map(_step, _of_steps(self.folder, "json")) if step <= trainer.global_step]
            last = sorted(step for step in steps if self._is_regular(step) or step == trainer.global_step)
            told["steps"] = last[-self.averaged :]
            contents = [read_checkpoint(self.folder / f"{_name(step)}.ckpt") for step in told["steps"]]
            state = mean_of([{**held["state_dict"], **(held.get("average") or {})} for held in contents])
        elif self.best is not None:
            assert self.monitor is not None
            told |= {"steps": [self.best["step"]], "best": self.monitor[0], "score": self.best["score"]}
            state = read_checkpoint(self.folder / "best.ckpt")["state_dict"]
        else:
            state = {**state, **average}
        own = "model."  # the rest of a module, such as a teacher, is of training alone
        return {name.removeprefix(own): tensor for name, tensor in state.items() if name.startswith(own)}, told

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
        if not self._written(trainer, self.folder / f"{_name(step)}.ckpt"):
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
        # Later ones than this are of a future that did not happen: it was damaged, and an earlier one taken.
        steps = sorted(map(_step, _of_steps(self.folder, "json")), reverse=True)
        behind = [other for other in steps if other <= step]
        kept = behind[:_KEPT] + [other for other in behind if self._is_regular(other)][: self.averaged]
        for ending in ("json", "ckpt"):
            for path in _of_steps(self.folder, ending):
                if _step(path) not in kept:
                    path.unlink()
        # What was left by a process that was killed: who holds the lock of the run writes here alone.
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
        data.behind(batch)
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
        """The step of best.ckpt; None where there is none, or one that cannot be used, which is told."""
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
        if self.best is not None and self.best["step"] != self._step_of_best():
            self.best = None  # best.ckpt is of a future that did not happen
        for logger in trainer.loggers:
            if isinstance(logger, MetricsFile):
                logger.keep(run["rows"], run["seconds"])
        set_progress(trainer, step)
        loop = trainer.fit_loop.epoch_loop
        self._max_steps = loop.max_steps
        if run["validation_due"] and step == loop.max_steps:
            loop.max_steps += 1  # or the loop does not even start
        trainer.should_stop = not run["validation_due"] and self.stopped_early is not None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self.started = True
        if trainer.is_global_zero and trainer.num_nodes == 1:
            self._meter = EnergyMeter(trainer.num_devices if trainer.strategy.root_device.type == "cuda" else 0)
        if not self._saved[1]:
            return
        # As the training loop validates after a step.
        loop = trainer.fit_loop.epoch_loop
        loop._batches_that_stepped -= 1  # the row of metrics is that step's
        trainer.validating = True
        loop.val_loop.run()
        trainer.training = True
        loop._batches_that_stepped += 1
        loop.max_steps = self._max_steps


def set_progress(trainer: lightning.Trainer, step: int) -> None:
    """Let a trainer that is about to start stand where it stands after `step` optimizer steps and all that belongs to
    them. It restores its own counts in the middle of an epoch as well, but leaves out a validation that is due and
    counts a step twice, depending on the hook in which it was saved."""
    loop = trainer.fit_loop.epoch_loop
    loop.automatic_optimization.optim_progress.optimizer.step.total.increment_by(step)  # trainer.global_step
    loop.batch_progress.total.increment_by(step * trainer.accumulate_grad_batches)  # when a validation is due
    loop._batches_that_stepped = step  # when metrics are logged, and as which step
