"""The two recipes, and what is wrong between their sections."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from ssamba.config.checks import PathText, within
from ssamba.config.finetuning import AugmentationConfig, EvaluationConfig, TaskConfig
from ssamba.config.inputs import AudioConfig, DataConfig, ModelConfig
from ssamba.config.pretraining import MaskConfig, ObjectiveConfig, OnlineEvaluationConfig
from ssamba.config.running import OptimizerConfig, TrainerConfig, WandbConfig
from ssamba.values import STORED


@dataclass
class PretrainRecipe:
    """Masked-patch pretraining on unlabelled clips."""

    run_dir: PathText
    """A new folder for everything that the run makes."""
    task_type: str = "pretrain"
    seed: int = 0
    audio: AudioConfig = field(default_factory=AudioConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    mask: MaskConfig = field(default_factory=MaskConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    evaluation: OnlineEvaluationConfig = field(default_factory=OnlineEvaluationConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)

    def problems(self) -> Iterator[str]:
        if moving := self.objective.parts.moving:
            ranks_nothing = f"val/loss, which ranks nothing with the moving targets of objective.parts.{moving[0]}"
            if self.optimizer.schedule == "plateau":
                yield f"optimizer.schedule is plateau, which watches {ranks_nothing}; expected cosine or constant"
            if self.trainer.patience is not None and self.evaluation.best == "loss":
                yield f"trainer.patience counts by {ranks_nothing}; expected evaluation.best=probe, or null"
        if self.evaluation.probe and not self.data.validation:
            yield "evaluation.probe is scored at validations; data.validation is empty"
        for name, stride, shape in _strides(self.model):
            if stride is not None and stride != shape:
                yield f"model.{name} is {stride}; pretraining needs patches side by side, {shape} (or null)"
        clips = self.data.batch_size // (self.trainer.ranks * self.trainer.accumulate)
        if self.objective.mix and clips < 2:
            yield (
                f"objective.mix is {self.objective.mix:g}, and each device takes {clips} clip at a time of "
                f"data.batch_size {self.data.batch_size}; expected 2 at least, of which one is mixed with another"
            )
        if self.optimizer.head_learning_rate is not None:
            yield "optimizer.head_learning_rate is for fine-tuning; leave it null in pretraining"
        if self.optimizer.layer_decay != 1:
            yield "optimizer.layer_decay is for fine-tuning; leave it 1 in pretraining"
        if self.data.label_fraction != 1:
            yield "data.label_fraction is for fine-tuning; pretraining uses no labels"
        if self.data.balance:
            yield "data.balance is for fine-tuning; pretraining uses no labels"
        if self.data.fold_by is not None:
            yield "data.fold_by is for fine-tuning; pretraining uses no labels"
        weight, teacher = self.objective.parts.distillation, self.objective.distillation.teacher
        if weight and teacher is None:
            yield (
                f"objective.parts.distillation is {weight:g} and objective.distillation.teacher is null; expected a "
                "model's folder, hf:NAME or shards"
            )
        if weight and self.objective.mix:
            yield (
                f"objective.parts.distillation is {weight:g}, whose teacher hears each clip by itself, and "
                f"objective.mix is {self.objective.mix:g}; expected 0"
            )
        if weight and teacher == STORED and self.data.order == "streaming":
            yield (
                "objective.distillation.teacher is shards, whose features an index describes, and data.order is "
                "streaming; expected data.order=indexed, or another teacher"
            )
        patches, hidden = _patches(self.audio, self.model), self.masked_patches
        if patches and not 0 < hidden < patches:
            yield f"mask.share is {self.mask.share:g}, {hidden} of a clip's {patches} patches; expected some, not all"

    @property
    def masked_patches(self) -> int:
        """Of a whole clip."""
        return round(self.mask.share * _patches(self.audio, self.model))


@dataclass
class FinetuneRecipe:
    """Training a classifier on labelled clips, from pretrained weights or from scratch."""

    run_dir: PathText
    """A new folder for everything that the run makes."""
    task_type: str = "finetune"
    seed: int = 0
    audio: AudioConfig = field(default_factory=AudioConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    wandb: WandbConfig = field(default_factory=WandbConfig)

    def problems(self) -> Iterator[str]:
        if self.data.order == "streaming":
            yield (
                "data.order is streaming; fine-tuning needs the labels that an index lists: `ssamba shards index "
                "FOLDER --label KEY=FIELD` makes one"
            )
        if self.model.encode == "visible":
            yield "model.encode is visible, which is for pretraining; fine-tuning hides nothing: expected all"
        if self.data.short == "pack":
            yield "data.short is pack, which joins recordings of different labels; fine-tuning takes pad or repeat"
        clips = self.data.batch_size // self.trainer.accumulate
        if self.task.head_norm == "batch" and clips < 2:
            yield (
                f"task.head_norm is batch, of the clips that all devices see at once, and data.batch_size / "
                f"trainer.accumulate is {clips}; expected at least 2"
            )
        if self.task.is_sequence:
            yield from self._sequence_problems()

    @property
    def hop_columns(self) -> int | None:
        """Columns of patches of an answer; None: a clip has one."""
        if not self.task.is_sequence:
            return None
        return 1 if self.task.hop_ms is None else round(self.task.hop_ms / self._column_ms)

    @property
    def hop_frames(self) -> int | None:
        """Frames of an answer; None: a clip has one."""
        return None if self.hop_columns is None else self.hop_columns * self._column_ms // 10

    @property
    def _column_ms(self) -> int:
        return 10 * (self.model.time_stride or self.model.tshape)

    def _sequence_problems(self) -> Iterator[str]:
        """What several answers a clip do not go with."""
        kind = "task.loss=ctc" if self.task.loss == "ctc" else "task.hop_ms"
        hop, column = self.task.hop_ms, self._column_ms
        if hop is not None and hop % column:
            yield (
                f"task.hop_ms is {hop:g}; expected a multiple of {column}, the milliseconds of model.time_stride "
                f"{column // 10}, or a model.time_stride that divides it"
            )
        if self.data.short == "repeat":
            yield f"data.short is repeat, which says a recording's labels again; expected pad with {kind}"
        for name in ("time_shift", "time_stretch", "mixup"):
            if getattr(self.augmentation, name):
                yield f"augmentation.{name} moves or mixes what {kind} has labels of; expected 0"
        if self.data.balance:
            yield f"data.balance draws recordings by their one label, and with {kind} they have many; expected false"
        if self.data.label_fraction < 1 and self.task.loss == "ctc":
            yield "data.label_fraction is stratified by label, and texts are all different; task.loss=ctc needs 1"


Recipe = PretrainRecipe | FinetuneRecipe
RECIPES: dict[str, type[PretrainRecipe] | type[FinetuneRecipe]] = {
    "pretrain": PretrainRecipe,
    "finetune": FinetuneRecipe,
}


@functools.cache
def recipe_keys(kind: str) -> frozenset[str]:
    """All keys of a recipe, such as trainer.max_steps."""
    schema = cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(RECIPES[kind])))
    return frozenset(name for name, _ in leaves(schema))


def leaves(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _strides(model: ModelConfig) -> list[tuple[str, int | None, int]]:
    return [
        ("frequency_stride", model.frequency_stride, model.fshape),
        ("time_stride", model.time_stride, model.tshape),
    ]


def _patches(audio: AudioConfig, model: ModelConfig) -> int:
    """Patches of a clip, 0 where the patch does not fit or a stride is no stride (said elsewhere)."""
    rows = (audio.num_mel_bins - model.fshape) // max(1, model.frequency_stride or model.fshape) + 1
    columns = (audio.max_length - model.tshape) // max(1, model.time_stride or model.tshape) + 1
    return max(0, rows) * max(0, columns)


def section_problems(schema: DictConfig) -> Iterator[str]:
    """What is wrong within one section; a field whose value could not be taken has its default here."""
    for node in (schema._get_node(name) for name in schema):
        if isinstance(node, DictConfig):
            yield from cast(Any, OmegaConf.to_object(node)).problems()
    yield from within("seed", schema.seed, 0, 2**32 - 1)


def problems_between(recipe: Recipe) -> Iterator[str]:
    """What is wrong between sections."""
    for name, bins, patch in (
        ("audio.num_mel_bins", recipe.audio.num_mel_bins, recipe.model.fshape),
        ("audio.max_length", recipe.audio.max_length, recipe.model.tshape),
    ):
        if bins < patch:
            yield f"{name} is {bins}; a clip must be at least one patch, {patch}"
    if not recipe.data.train:
        yield "data.train is empty; expected the folder of a training split, as a data_prep script writes it"
    batch, parts = recipe.data.batch_size, recipe.trainer.ranks * recipe.trainer.accumulate
    if batch % parts:
        t, above = recipe.trainer, batch - batch % parts + parts
        nearest = f"{above - parts} or {above}" if batch > parts else f"{above}"
        yield (
            f"data.batch_size is {batch}, the clips of a step over all devices, and trainer.devices * num_nodes * "
            f"accumulate = {t.devices} * {t.num_nodes} * {t.accumulate} does not divide it; the nearest that would do: "
            f"{nearest}"
        )
    if recipe.optimizer.schedule == "plateau" and not recipe.data.validation:
        yield "optimizer.schedule is plateau, which watches the validation loss; data.validation is empty"
    if recipe.trainer.patience is not None and not recipe.data.validation:
        yield "trainer.patience counts validations; data.validation is empty"
    t = recipe.trainer
    if t.average_checkpoints > (checkpoints := -(-t.max_steps // t.steps_between_checkpoints)):
        yield (
            f"trainer.average_checkpoints is {t.average_checkpoints}; a run of {t.max_steps} steps with a checkpoint "
            f"every {t.steps_between_checkpoints} has {checkpoints}"
        )
    yield from recipe.problems()
