"""The schema of a recipe: dataclasses, YAML and command line merged into them, and every complaint in one error.

Nothing here imports torch, so that a mistake in a recipe is told at once. Imported by whatever reads a whole recipe,
such as build, train and the command line; never by models, data or training.
"""

from ssamba.config.checks import (
    AUDIO_RANGES,
    AUTHORS_FORMATS,
    ENCODERS,
    MODEL_SIZES,
    MOST_SEGMENTS,
    PATCH_ORDERS,
    SCAN_BACKENDS,
    SCAN_LAYOUTS,
    PathText,
    SourceText,
    TeacherText,
)
from ssamba.config.finetuning import AugmentationConfig, EvaluationConfig, TaskConfig
from ssamba.config.inputs import AudioConfig, DataConfig, ModelConfig
from ssamba.config.loading import load_recipe
from ssamba.config.pretraining import (
    DistillationConfig,
    MaskConfig,
    ObjectiveConfig,
    OnlineEvaluationConfig,
    PartsConfig,
    TeacherConfig,
)
from ssamba.config.recipes import FinetuneRecipe, PretrainRecipe, Recipe, recipe_keys
from ssamba.config.running import OptimizerConfig, TrainerConfig, WandbConfig
from ssamba.config.saving import described, differences, flat_recipe, save_recipe

__all__ = [
    "AUDIO_RANGES",
    "AUTHORS_FORMATS",
    "ENCODERS",
    "MODEL_SIZES",
    "MOST_SEGMENTS",
    "PATCH_ORDERS",
    "SCAN_BACKENDS",
    "SCAN_LAYOUTS",
    "AudioConfig",
    "AugmentationConfig",
    "DataConfig",
    "DistillationConfig",
    "EvaluationConfig",
    "FinetuneRecipe",
    "MaskConfig",
    "ModelConfig",
    "ObjectiveConfig",
    "OnlineEvaluationConfig",
    "OptimizerConfig",
    "PartsConfig",
    "PathText",
    "PretrainRecipe",
    "Recipe",
    "SourceText",
    "TaskConfig",
    "TeacherConfig",
    "TeacherText",
    "TrainerConfig",
    "WandbConfig",
    "described",
    "differences",
    "flat_recipe",
    "load_recipe",
    "recipe_keys",
    "save_recipe",
]
