"""A run, from a recipe to its scores: `pretrain` and `finetune`, what happens in the order in which it does.

From Python or a notebook:

    from ssamba.config import load_recipe
    from ssamba.train import finetune

    run = finetune(load_recipe("recipes/finetune/fsdd.yaml", ["run_dir=runs/digits", "model.encoder=ssast"]))
    print(run.record["test"]["accuracy"])

The commands of the same names do no more than that.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only

from ssamba.build.models import VARIANTS, AnyRecipe
from ssamba.build.runs import Finetuner, Pretrainer, build_finetuner, build_pretrainer, build_trainer
from ssamba.build.shards import find_training
from ssamba.config import FinetuneRecipe, PretrainRecipe, Recipe, differences, load_recipe, save_recipe
from ssamba.data.batches import Stage
from ssamba.errors import UserError
from ssamba.evaluation.pictures import draw_curves
from ssamba.evaluation.report import write_run_report
from ssamba.files import check_place, write_json
from ssamba.launch import check_launch
from ssamba.models.checkpoint import save_model
from ssamba.models.heads import parameter_count
from ssamba.models.record import RECORD_NAME, read_record
from ssamba.origin import read_origin
from ssamba.protocols.finetuned import score_finetuned
from ssamba.protocols.tracking import show_results
from ssamba.training.distributed import part_at_exit
from ssamba.training.runs import RunLock, RunTrainer, check_run, command_record, fit, open_run, peak_memory_bytes
from ssamba.training.saved import Saved, check_fits, newest_checkpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    record: Mapping[str, Any]
    """What is in its run.json; empty on all ranks but the first."""
    trained: bool
    """False if it was finished before, and nothing was done."""
    stale: int
    """Validations since the best one."""


def pretrain(
    recipe: PretrainRecipe, *, resume: str | None = None, overwrite: bool = False, stages: Sequence[Stage] = ()
) -> Run:
    """Train an encoder on unlabelled clips; its model is exported into run_dir/model.

    Args:
        resume: None for a new run; "auto" to go on with the run in run_dir if it has a checkpoint; any other text to
            go on with it, or fail.
        overwrite: a run that is in run_dir goes.
        stages: of webdataset, such as `wds.map(f)`, through which every training clip passes; see
            `ssamba.data.pipeline`. A run that goes on needs the same ones.

    Raises:
        UserError: the recipe, the data, run_dir or the machine do not fit; said before any long work.
        Stopped: a signal asked for it; the run can go on.
    """
    return _run(recipe, partial(build_pretrainer, stages=stages), resume, overwrite)


def finetune(
    recipe: FinetuneRecipe, *, resume: str | None = None, overwrite: bool = False, stages: Sequence[Stage] = ()
) -> Run:
    """Train a classifier on labelled clips, from model.pretrained or from scratch, and score it on data.test.

    Arguments and errors are those of `pretrain`.
    """
    return _run(recipe, partial(build_finetuner, stages=stages), resume, overwrite)


def _run(
    recipe: AnyRecipe,
    build: Callable[[AnyRecipe], Pretrainer | Finetuner],
    resume: str | None,
    overwrite: bool,
) -> Run:
    folder = Path(recipe.run_dir)
    check_launch(recipe.trainer.devices, recipe.trainer.num_nodes)
    check_place(folder)
    with RunLock(folder) as lock:
        start = find_start(recipe, resume, overwrite)
        if start is not None:
            recipe = _as_begun(recipe, start)
            if (finished := _finished_record(recipe, start)) is not None:
                return Run(folder, finished, trained=False, stale=start.stale)

        built = build(recipe)
        training = build_trainer(built.recipe, built.data, start)

        if start is None:
            open_run(folder, overwrite or resume is not None, lock)
        else:
            check_fits(start.path, built.module)
            _check_teacher(built, start)
        training.checkpoints.record = _begin_record(built, start)

        fit(training, built.module, built.data, start.path if start else None)
        weights, exported = training.checkpoints.trained_weights(training.trainer)
        part_at_exit()
        if training.trainer.global_rank > 0:  # from here on the ranks are by themselves
            return Run(folder, {}, trained=True, stale=training.checkpoints.stale)

        save_model(folder / "model", built.module.model, built.audio, built.classifier, weights)
        scores = _score(built, folder)
        record = _finish_record(folder, training, exported, scores)
        show_results(built, folder, record, training.trainer.loggers)
        return Run(folder, record, trained=True, stale=training.checkpoints.stale)


def _score(built: Pretrainer | Finetuner, folder: Path) -> dict[str, Any]:
    """For run.json; of pretraining nothing, whose validation has said what there is to say."""
    if isinstance(built, Pretrainer) or built.shards.test is None:
        return {"test": {}}
    scores, more = score_finetuned(built, folder)
    return {"test": scores, **more}


# What to go on from


def find_start(recipe: Recipe, resume: str | None, overwrite: bool) -> Saved | None:
    """The checkpoint to go on from, None for a new run; changes nothing on the disk.

    Raises:
        UserError: there is nothing to go on from, or run_dir may not be taken.
    """
    folder = Path(recipe.run_dir)
    if resume is None:
        check_run(folder, overwrite)
        return None
    if overwrite:
        raise UserError("--resume goes on with a run and --overwrite replaces it; give one of them")
    saved = newest_checkpoint(folder)
    if saved is None:
        if resume != "auto":
            raise UserError(f"{folder} has no checkpoint to go on from; --resume auto starts a run that has none")
        if (folder / RECORD_NAME).exists():
            raise UserError(f"the run in {folder} is finished and its checkpoints are gone; --overwrite replaces it")
        check_run(folder, overwrite=True)
    return saved


def _as_begun(recipe: AnyRecipe, saved: Saved) -> AnyRecipe:
    """The recipe with what it leaves open as the run in its run_dir has it, which is to go on from a checkpoint.

    Raises:
        UserError: by this recipe it would learn something else.
    """
    earlier = load_recipe(recipe.run_dir)
    left = [name for name in VARIANTS if getattr(recipe.model, name) is None]
    model = replace(recipe.model, **{name: getattr(earlier.model, name) for name in left})
    audio = recipe.audio
    if audio.mean is None:
        audio = replace(audio, mean=earlier.audio.mean, std=earlier.audio.std)
    recipe = replace(recipe, model=model, audio=audio)
    complaints = list(differences(earlier, recipe))
    fingerprint = find_training(recipe).fingerprint
    before = saved.run["record"]["data"]["train"]["fingerprint"]
    if fingerprint != before:
        complaints.append(f"data.train has fingerprint {fingerprint}; in the run it is {before}")
    if recipe.trainer.max_steps < saved.step:
        complaints.append(f"trainer.max_steps is {recipe.trainer.max_steps}; the run has {saved.step} behind it")
    if complaints:
        raise UserError(f"the run in {recipe.run_dir} cannot go on by this recipe:", *complaints)
    return recipe


def _finished_record(recipe: Recipe, start: Saved) -> dict[str, Any] | None:
    """run.json of the run that would go on from `start`, if that has all its steps behind it, or was ended early by a
    patience that is still the recipe's, and wrote what comes after them."""
    path = Path(recipe.run_dir) / RECORD_NAME
    if not path.exists():
        return None
    try:
        record = read_record(path)
    except UserError as error:
        log.warning("%s; the run goes on from its checkpoint of step %d", error, start.step)
        return None
    patience = recipe.trainer.patience
    early = patience is not None and start.stale >= patience
    ended = record["steps"] == recipe.trainer.max_steps or early
    return record if record["steps"] == start.step and ended else None


# run.json: begun when the run is opened, carried by its checkpoints, written when it is finished


def _begin_record(built: Pretrainer | Finetuner, start: Saved | None) -> dict[str, Any]:
    """The first half of run.json; the resolved recipe is written, and a run that goes on is not finished any more."""
    recipe, folder = built.recipe, Path(built.recipe.run_dir)
    # The module does not know its rank before it is fitted, the launcher's environment does.
    rank_zero_only(save_recipe)(recipe, folder / "recipe.yaml")
    rank_zero_only((folder / RECORD_NAME).unlink)(missing_ok=True)
    now = command_record()
    if start is None:
        size, data = parameter_count(built.module.model), built.shards.fingerprints()
        origin = read_origin(recipe.model.pretrained)
        facts = {"seed": recipe.seed, "parameters": size, "data": data, "origin": origin, "resumed": []}
        return {**now, **facts, "teacher_sha256": _teacher_of(built)}
    again = {"step": start.step, **{name: now[name] for name in ("started", "command", "git_commit", "hardware")}}
    begun = start.run["record"]
    return {**begun, "resumed": [*begun["resumed"], again]}


def _teacher_of(built: Pretrainer | Finetuner) -> str | None:
    """The sha256 of the weights of the model that a run learns from by distillation, if there is one."""
    return built.distilled.teacher_sha256 if isinstance(built, Pretrainer) and built.distilled else None


def _check_teacher(built: Pretrainer | Finetuner, start: Saved) -> None:
    """UserError if the model that a run has learned from so far is another one now."""
    ours, before = _teacher_of(built), start.run["record"].get("teacher_sha256")
    if ours != before:
        raise UserError(
            f"the run in {built.recipe.run_dir} has learned from a model whose weights have the sha256 {before}, and "
            f"those of objective.distillation.teacher have {ours}; expected the same model"
        )


def _finish_record(
    folder: Path, training: RunTrainer, exported: Mapping[str, Any], scores: Mapping[str, Any]
) -> dict[str, Any]:
    """Write run.json, after the curves and the report that are made of it."""
    trainer, checkpoints = training.trainer, training.checkpoints
    record = {
        **checkpoints.record,
        "exported": exported,
        "steps": trainer.global_step,
        "training_seconds": round(checkpoints.seconds, 1),
        "energy_joules": None if checkpoints.joules is None else round(checkpoints.joules, 1),
        "stopped_early": checkpoints.stopped_early if trainer.global_step < trainer.max_steps else None,
        "peak_memory_bytes": peak_memory_bytes(),
        "last_metrics": checkpoints.metrics,
        **scores,
        "skipped_samples": list(training.skipped.names),
    }
    draw_curves(folder / "pictures" / "curves.png", folder / "metrics.csv", folder.name)
    write_run_report(folder, record)
    write_json(folder / RECORD_NAME, record)
    return record
