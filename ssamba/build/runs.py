"""All of a run, ready to fit."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from torch import nn

from ssamba.build.distillation import Distilled, build_distilled
from ssamba.build.labels import build_groups, build_labels, build_probe, build_rows, check_labels
from ssamba.build.models import build_audio, build_encoder, build_log_mel, check_machine, compile_model, settle
from ssamba.build.shards import Shards, build_clip_settings, build_shards, build_training_shards
from ssamba.config import FinetuneRecipe, PretrainRecipe, Recipe, described
from ssamba.data.batches import Stage
from ssamba.data.datamodule import ClipDataModule
from ssamba.data.labels import (
    balancing_weights,
    class_weights,
)
from ssamba.evaluation.task import check_monitor, find_task
from ssamba.masking import Masking
from ssamba.models.checkpoint import build_classifier
from ssamba.models.decoder import decoder_of
from ssamba.models.heads import MaskedPatchModel
from ssamba.models.settings import LOSSES, AudioSettings, ClassifierSettings
from ssamba.objectives import HEADS, ChangeSettings, Teacher
from ssamba.training.callbacks import (
    OnlineProbe,
    PredictionPictures,
    SkippedSamples,
    StepProgress,
    Throughput,
    TimeEstimate,
)
from ssamba.training.checkpoints import CheckpointFiles, Checkpoints
from ssamba.training.common import OptimizerSettings
from ssamba.training.distributed import make_strategy
from ssamba.training.finetuning import Augmentation, FineTuning
from ssamba.training.interruptions import Interruptions
from ssamba.training.lightning_internals import leave_signals_alone
from ssamba.training.loggers import MetricsFile, quieten_lightning, tensorboard_logger, wandb_logger
from ssamba.training.pretraining import Pretraining
from ssamba.training.runs import RunTrainer
from ssamba.training.saved import Saved
from ssamba.training.sequences import CtcFineTuning, HopFineTuning


@dataclass(frozen=True)
class Pretrainer:
    """All of a pretraining run, ready to fit."""

    recipe: PretrainRecipe
    """With nothing left open."""
    module: Pretraining
    data: ClipDataModule
    audio: AudioSettings
    shards: Shards
    distilled: Distilled | None
    classifier: None = None


@dataclass(frozen=True)
class Finetuner:
    """All of a fine-tuning run, ready to fit."""

    recipe: FinetuneRecipe
    """With nothing left open."""
    module: FineTuning
    data: ClipDataModule
    audio: AudioSettings
    classifier: ClassifierSettings
    shards: Shards
    groups: dict[str, str] | None
    """Of the test recordings, for intervals."""


def build_pretrainer(recipe: PretrainRecipe, stages: Sequence[Stage] = ()) -> Pretrainer:
    """Everything that `recipe` says, checked against the machine and the data, before any long work.

    Args:
        stages: of webdataset, through which every training clip passes.
    """
    check_machine(recipe)
    shards, probe = build_shards(recipe), build_probe(recipe)
    distilled = build_distilled(recipe, shards)
    recipe = settle(recipe, shards)
    audio = build_audio(recipe)
    # One seed, one model: weights are drawn right after it is set, whatever was built before.
    lightning.seed_everything(recipe.seed, workers=True, verbose=False)
    encoder, parts = build_encoder(recipe), recipe.objective.parts.weights
    changes = asdict(recipe.objective.changes)
    heads = build_heads(parts, encoder.hidden_size, distilled)
    model = MaskedPatchModel(encoder, heads, decoder_of(encoder) if recipe.model.encode == "visible" else None)
    module = Pretraining(
        model,
        build_log_mel(recipe, audio),
        _optimizer_settings(recipe),
        parts=parts,
        masking=build_masking(recipe),
        masks=recipe.mask.per_clip,
        teacher=Teacher(encoder, **asdict(recipe.objective.teacher)) if recipe.objective.parts.moving else None,
        mix=recipe.objective.mix,
        changes=ChangeSettings(**changes) if any(changes.values()) else None,
        features=distilled.of_batch if distilled else None,
        drop_path=recipe.model.drop_path,
        seed=recipe.seed,
    )
    compile_model(recipe, module)
    train = build_training_shards(recipe, shards.train)
    data = ClipDataModule(
        build_clip_settings(recipe),
        train=train,
        validation=shards.validation,
        probe=probe,
        stages=stages,
        features=distilled.stored if distilled else None,
    )
    return Pretrainer(recipe, module, data, audio, shards, distilled)


def build_heads(parts: Mapping[str, float], width: int, distilled: Distilled | None) -> dict[str, nn.Module]:
    """The heads of the parts that have one of their own, for an encoder of so many dimensions."""
    widths = {"distillation": distilled.width} if distilled else {}
    return {name: HEADS[name](width, widths.get(name, width)) for name in parts if name in HEADS}


def build_finetuner(recipe: FinetuneRecipe, stages: Sequence[Stage] = ()) -> Finetuner:
    """Everything that `recipe` says, checked against the machine and the data, before any long work; see
    `build_pretrainer`."""
    check_machine(recipe)
    shards = build_shards(recipe)
    labels = build_labels(recipe, shards)
    rows = build_rows(recipe, shards)
    counts = check_labels(recipe, shards, labels, rows)
    groups = build_groups(recipe, shards.test)
    recipe = settle(recipe, shards)
    audio = build_audio(recipe)
    lightning.seed_everything(recipe.seed, workers=True, verbose=False)
    task, learned = recipe.task, find_task(recipe.task.loss)
    if not task.is_sequence:
        check_monitor(task.loss, learned, len(labels.names))
    classifier = ClassifierSettings(
        tuple(labels.names),
        task.label,
        LOSSES[learned.problem_type],
        task.pooling,
        task.head_norm,
        task.segments,
        hop_columns=recipe.hop_columns,
    )
    model = build_classifier(build_encoder(recipe), classifier)
    weights = balance = None
    if task.class_weights == "balanced":
        assert counts is not None
        weights = torch.from_numpy(class_weights(counts, labels.names, labels.multi_label)).float()
    if recipe.data.balance:
        assert counts is not None
        balance = balancing_weights(counts, shards.indexed.samples)
    augmentation = asdict(recipe.augmentation)
    mixup = augmentation["mixup"] if augmentation.pop("mixup_from") == "set" else 0.0
    if mixup:
        augmentation["mixup"] = 0.0  # those who read the clips mix them
    kind: Any = FineTuning
    if task.is_sequence:
        kind = partial(CtcFineTuning, names=labels.names) if task.loss == "ctc" else HopFineTuning
    log_mel = build_log_mel(recipe, audio)
    module = kind(
        model,
        log_mel,
        _optimizer_settings(recipe),
        task=learned,
        label_smoothing=task.label_smoothing,
        class_weights=weights,
        augmentation=Augmentation(**augmentation, scale=log_mel.scale),
        freeze_encoder=task.freeze_encoder,
        freeze_steps=task.freeze_steps if recipe.model.pretrained else 0,
        unfreeze_every=task.unfreeze_every if recipe.model.pretrained else 0,
        drop_path=recipe.model.drop_path,
        seed=recipe.seed,
    )
    compile_model(recipe, module)
    data = ClipDataModule(
        build_clip_settings(recipe),
        train=build_training_shards(recipe, shards.indexed, rows.get("train"), balance),
        validation=shards.validation,
        test=shards.test,
        labels=labels,
        mixup=mixup,
        rows=rows,
        stages=stages,
    )
    return Finetuner(recipe, module, data, audio, classifier, shards, groups)


def build_masking(recipe: PretrainRecipe) -> Masking:
    """How a recipe's clips are masked."""
    mask = recipe.mask
    return Masking(mask.kind, recipe.masked_patches, (mask.smallest, mask.largest), recipe.data.short == "pad")


def build_trainer(recipe: Recipe, data: ClipDataModule, start: Saved | None) -> RunTrainer:
    """The recipe's trainer; its callbacks and loggers write into run_dir."""
    folder = Path(recipe.run_dir)
    settings = recipe.trainer
    validates = bool(recipe.data.validation)
    judges, probe = None, None
    monitor: tuple[str, str] | None
    if isinstance(recipe, FinetuneRecipe):
        score, best = find_task(recipe.task.loss).monitor
        monitor = (f"val/{score}", best)
    else:
        monitor = None if recipe.objective.parts.moving else ("val/loss", "min")
        if data.probe is not None:
            probe = OnlineProbe(settings.validate_every_steps * recipe.evaluation.every_validations)
            if recipe.evaluation.best == "probe":
                monitor, judges = (
                    ("probe/mAP" if data.probe.labels.multi_label else "probe/accuracy", "max"),
                    probe.is_due,
                )
    checkpoints = Checkpoints(
        folder,
        settings.steps_between_checkpoints,
        monitor if validates else None,
        settings.patience,
        settings.average_checkpoints,
        judges,
    )
    skipped = SkippedSamples()
    command = f"ssamba {recipe.task_type} {folder} --resume {folder}"
    callbacks: list[Callback] = [
        TimeEstimate(),
        StepProgress(),
        Throughput(),
        skipped,
        Interruptions(checkpoints, command),
    ]
    if isinstance(recipe, PretrainRecipe):
        callbacks.append(PredictionPictures(folder / "pictures"))
    if probe is not None:
        callbacks.append(probe)
    loggers: list[Logger] = [MetricsFile(folder / "metrics.csv")]
    if recipe.wandb.mode != "off":
        wandb_id = start.run["wandb_id"] if start else None
        loggers.append(
            wandb_logger(
                folder,
                **asdict(recipe.wandb),
                job_type=recipe.task_type,
                config=described(recipe),
                wandb_id=wandb_id,
            )
        )
    if settings.tensorboard:
        loggers.append(tensorboard_logger(folder, start.step if start else None))
    quieten_lightning()
    trainer = lightning.Trainer(
        default_root_dir=folder,
        max_steps=settings.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=settings.accumulate,
        precision=settings.precision,  # type: ignore[arg-type]
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        accelerator=settings.accelerator,
        strategy=make_strategy(settings.strategy, settings.ranks),
        val_check_interval=settings.validate_every_steps * settings.accumulate if validates else None,
        check_val_every_n_epoch=None,
        limit_val_batches=None if validates else 0,
        num_sanity_val_steps=0,
        log_every_n_steps=min(settings.log_every_steps, settings.max_steps),
        gradient_clip_val=recipe.optimizer.gradient_clip or None,
        logger=loggers,
        callbacks=[*callbacks, checkpoints],
        plugins=[CheckpointFiles()],
        enable_model_summary=False,
        deterministic="warn",
        use_distributed_sampler=False,
    )
    leave_signals_alone(trainer)  # `Interruptions` acts on them, at the end of a step
    return RunTrainer(trainer, checkpoints, skipped)


def _optimizer_settings(recipe: Recipe) -> OptimizerSettings:
    fields = asdict(recipe.optimizer)
    del fields["gradient_clip"]  # the trainer's
    return OptimizerSettings(**fields, max_steps=recipe.trainer.max_steps)
