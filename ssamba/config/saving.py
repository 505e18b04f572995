"""A recipe as plain values: written into a run folder, and compared with another."""

import glob
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, cast, get_args, get_type_hints

from omegaconf import OmegaConf

from ssamba.config.checks import PathText, SourceText, TeacherText
from ssamba.config.recipes import Recipe, leaves
from ssamba.config.variables import escaped
from ssamba.errors import UserError
from ssamba.files import write_text
from ssamba.printable import masked
from ssamba.values import STORED, TRANSFORMERS, is_remote

# What may change when a run is resumed: where, how fast and how long it is computed, and what is shown of it. Paths of
# data may change, too: fingerprints show whether the data are the same.
_MAY_CHANGE = (
    "run_dir",
    "wandb",
    "trainer",
    "evaluation",
    "model.scan_backend",
    "optimizer.bad_steps",
    "optimizer.spike_factor",
    "data.train",
    "data.validation",
    "data.test",
    "data.cache",
    "data.num_workers",
    "data.max_bad_fraction",
)


def differences(saved: Recipe, recipe: Recipe) -> Iterator[str]:
    """The values of `recipe` with which a run by `saved` would be another run: "key is value; in the run it is
    value"."""
    if recipe.task_type != saved.task_type:
        yield f"task_type is {recipe.task_type}; in the run it is {saved.task_type}"
        return
    ours, theirs = flat_recipe(recipe), flat_recipe(saved)
    for key in sorted(ours):
        if key.startswith(_MAY_CHANGE):
            continue
        if ours[key] != theirs[key]:
            yield f"{key} is {ours[key]!r}; in the run it is {theirs[key]!r}"


def flat_recipe(recipe: Recipe) -> dict[str, Any]:
    """Every key of a recipe, such as "trainer.max_steps" -> its value, as `described` has it."""
    return dict(leaves(described(recipe)))


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the recipe with every default filled in and its paths absolute, so that it means the same wherever it is
    read; `load_recipe` reads it back. Secrets in its urls are left out and must be given again."""
    try:
        write_text(path, OmegaConf.to_yaml(OmegaConf.create(escaped(described(recipe)))))
    except UnicodeEncodeError as error:
        raise UserError(f"{path} cannot be written: the name of the working folder is not in Unicode") from error


def described(recipe: Recipe) -> dict[str, Any]:
    """The recipe as sections of plain values: its paths no longer relative to the working folder, and without what may
    be secret in its urls."""

    def placed(value: Any, kind: Any) -> Any:
        if is_dataclass(kind):
            types = get_type_hints(kind, include_extras=True)
            return {name: placed(one, types[name]) for name, one in value.items()}
        if NoneType in get_args(kind) and value is not None:
            (kind,) = set(get_args(kind)) - {NoneType}
        if isinstance(value, list):
            return [placed(one, get_args(kind)[0]) for one in value]
        if kind == PathText:
            return os.path.join(os.getcwd(), value)
        if kind == TeacherText:
            return _placed_teacher(value)
        if kind == SourceText and is_remote(value):
            return masked(value)
        if kind == SourceText:
            # What would be a pattern in the folder's name is escaped, as the source is one.
            here = re.sub(r"[\\{}]", r"\\\g<0>", glob.escape(os.getcwd()))
            return os.path.join(here, value)
        return value

    return cast(dict[str, Any], placed(asdict(recipe), type(recipe)))


def _placed_teacher(teacher: str) -> str:
    """A teacher with its path absolute; after `TRANSFORMERS` what is no local folder is a name on the Hub."""
    if teacher == STORED:
        return teacher
    if teacher.startswith(TRANSFORMERS):
        name = teacher.removeprefix(TRANSFORMERS)
        return TRANSFORMERS + (os.path.abspath(name) if os.path.isdir(name) else name)
    return os.path.join(os.getcwd(), teacher)
