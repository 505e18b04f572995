"""Checkpoints read back: only what a run wrote itself, of the types that it keeps, and of the same model.

`checkpoints/step-0001000.ckpt` is finished once `step-0001000.json` is beside it with its SHA-256, step and size.
"""

import hashlib
import itertools
import logging
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from torch import Tensor

from ssamba.errors import UserError
from ssamba.files import Count, Sha256, read_json
from ssamba.models.record import Start
from ssamba.training.common import TrainingModule

log = logging.getLogger(__name__)

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
    """A checkpoint that can be used: its file, its optimizer steps, and the state of `Checkpoints` then."""

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
        if content["global_step"] != described.step or path.stem not in ("best", step_name(described.step)):
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
        return {key: _named_tensors(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_named_tensors(item) for item in value]
    return "a tensor" if isinstance(value, Tensor) else value


def _tensors(optimizer_states: list[Any]) -> Iterator[tuple[str, Tensor]]:
    for index, moments in ((n, entry) for one in optimizer_states for n, entry in one["state"].items()):
        for name, value in moments.items():
            if not isinstance(value, Tensor):
                raise ValueError(f"{name} of parameter {index} of the optimizer is no tensor")
            yield f"{name} of parameter {index}", value


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
    for index, moments in state["state"].items():
        own = parameters[index] if index < len(parameters) else None
        expected = {"step": (), "exp_avg": own, "exp_avg_sq": own}
        if {name: tuple(value.shape) for name, value in moments.items()} != expected:
            wrong.append(f"the optimizer's moments of parameter {index}")
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
    for path in sorted(step_files(folder, "ckpt"), key=step_of, reverse=True):
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


def step_name(step: int) -> str:
    return f"step-{step:07d}"


def step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))


def step_files(folder: Path, ending: str) -> list[Path]:
    """The files that are named as checkpoints of steps are."""
    numbered = [path for path in folder.glob(f"step-*.{ending}") if path.stem.removeprefix("step-").isdecimal()]
    return [path for path in numbered if path.stem == step_name(step_of(path))]
