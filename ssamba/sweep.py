"""Sweep files: a grid over keys of a pretraining and a fine-tuning recipe, and the points that it comes to.

    run_dir: runs/encoders
    pretrain:
      recipe: recipes/pretrain/fsdd.yaml
      budget: {clips: 16000}    # of every point; or steps, or hours
      set: {data.batch_size: 32}
    finetune:
      recipe: recipes/finetune/fsdd_digits.yaml
      budget: {steps: 100}
      starts: [pretrained, scratch]
    grid:
      model.encoder: [ssamba, ssast]
      seed: [0, 1, 2]
      patches:
        frames: {model.fshape: 96, model.tshape: 2}
        squares: {model.fshape: 16, model.tshape: 16, pretrain.mask.largest: 3}

A key is set in each stage whose recipe has it, one that begins with `pretrain.` or `finetune.` in that one alone. An
axis is a key with its values, or a name with named values of several keys. A stage has a point for every combination
of the axes that set something in it, and fine-tuning one for every pretrained model besides. Imports no torch.
"""

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ssamba.config import Recipe, load_recipe, recipe_keys
from ssamba.errors import UserError
from ssamba.recipe_yaml import MOST_BYTES, Node, Scalar, read_yaml
from ssamba.values import number, path_text, whole_number

STAGES = ("pretrain", "finetune")
STARTS = ("pretrained", "scratch")
BUDGETS = ("steps", "clips", "hours")
_MOST_POINTS = 10_000
_SECTIONS = ("run_dir", *STAGES, "grid")
_EXPECTED = "expected run_dir, pretrain or finetune (or both) with a recipe each, and grid"


@dataclass(frozen=True)
class Budget:
    """How long every point of a stage trains: so many steps, clips or hours."""

    unit: str
    amount: float

    def steps(self, batch_size: int) -> int | None:
        """Optimizer steps of so many clips each; None for hours, of which a machine's speed decides."""
        if self.unit == "hours":
            return None
        return max(1, round(self.amount if self.unit == "steps" else self.amount / batch_size))


@dataclass(frozen=True)
class Stage:
    """What all points of a stage have in common."""

    recipe: str
    settings: Mapping[str, str]
    """Key -> value, as in an override."""
    budget: Budget | None
    starts: Sequence[str] = ("pretrained",)


@dataclass(frozen=True, eq=False)
class Point:
    """A run of a sweep."""

    stage: str
    values: Mapping[str, str]
    """Axis -> the name of its value."""
    overrides: Mapping[str, str]
    """Of the stage's recipe, run_dir among them."""
    after: "Point | None" = None
    """The pretraining whose model it starts from."""

    @property
    def name(self) -> str:
        """Its folder below that of the sweep."""
        values = ",".join(f"{axis.rpartition('.')[2]}={value}" for axis, value in self.values.items())
        return f"{self.stage}/{re.sub(r'[^A-Za-z0-9=,.+-]', '_', values) or 'run'}"

    def without(self, axis: str) -> tuple[str, tuple[tuple[str, str], ...]]:
        """What it has in common with the points that differ along an axis alone."""
        return self.stage, tuple((name, value) for name, value in self.values.items() if name != axis)


Axes = Mapping[str, Mapping[str, Mapping[str, str]]]
"""Axis -> name of a value -> key -> what it is set to."""


@dataclass(frozen=True)
class Sweep:
    """A sweep file."""

    path: str
    run_dir: str
    stages: Mapping[str, Stage]
    axes: Axes
    recipes: Mapping[Point, Recipe] = field(default_factory=dict, repr=False)
    """Of each point, trained for what its budget comes to; for a budget in hours as long as the recipe says."""

    @property
    def points(self) -> list[Point]:
        return list(self.recipes)

    def load(self, point: Point, *more: str) -> Recipe:
        """The recipe of a point, with further overrides.

        Raises:
            UserError: it accepts no such point.
        """
        words = [f"{key}={value}" for key, value in point.overrides.items()]
        return load_recipe(self.stages[point.stage].recipe, [*words, *more], point.stage)


def read_sweep(path: Path) -> Sweep:
    """Read a sweep file, and all recipes that it comes to.

    Raises:
        UserError: what is wrong with the file, with a key, or with the recipes of any of its points, all at once.
    """
    try:
        content = read_yaml(path.read_bytes()[: MOST_BYTES + 1])
    except ValueError as error:
        raise UserError(f"sweep {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"sweep {path} is no mapping; {_EXPECTED}")
    complaints = [f"{key} is no key of a sweep; {_EXPECTED}" for key in content if key not in _SECTIONS]
    run_dir = _text(content.get("run_dir"), "run_dir", complaints)
    stages = {name: _stage(name, content[name], complaints) for name in STAGES if name in content}
    if not stages:
        complaints.append(f"there is nothing to run: neither pretrain nor finetune; {_EXPECTED}")
    axes = _axes(content.get("grid", {}), complaints)
    _check_keys(stages, axes, complaints)
    if complaints:
        raise UserError(f"sweep {path}:", *complaints)
    sweep = Sweep(str(path), path_text(run_dir), stages, axes)
    return replace(sweep, recipes=_recipes(sweep, _points(sweep)))


# What is in the file


def _text(node: Node | None, name: str, complaints: list[str]) -> str:
    if isinstance(node, Scalar) and not node.is_nothing:
        return node.text
    complaints.append(f"{name} is {'missing' if node is None else 'no text'}; expected one value")
    return ""


def _value(node: Node, name: str, complaints: list[str]) -> str:
    """As an override has it: a text, or a list of texts."""
    if isinstance(node, Scalar):
        return f"'{node.text}'" if node.quoted else node.text
    if isinstance(node, list) and all(isinstance(one, Scalar) for one in node):
        return f"[{', '.join(_value(one, name, complaints) for one in node)}]"
    complaints.append(f"{name} is no value; expected one, or a list")
    return ""


def _mapping(node: Node | None, name: str, complaints: list[str]) -> Mapping[str, Node]:
    if isinstance(node, dict):
        return node
    if node is not None:
        complaints.append(f"{name} is no mapping of keys to values")
    return {}


def _stage(name: str, node: Node, complaints: list[str]) -> Stage:
    section = _mapping(node, name, complaints)
    known = ("recipe", "budget", "set", *(("starts",) if name == "finetune" else ()))
    complaints += [f"{name}.{key} is no key; known here: {', '.join(known)}" for key in section if key not in known]
    recipe = _text(section.get("recipe"), f"{name}.recipe", complaints)
    settings = {
        key: _value(value, f"{name}.set.{key}", complaints)
        for key, value in _mapping(section.get("set"), f"{name}.set", complaints).items()
    }
    budget = _budget(f"{name}.budget", section["budget"], complaints) if "budget" in section else None
    starts = [one.text for one in _list(section.get("starts", [Scalar("pretrained")])) if isinstance(one, Scalar)]
    if not starts or set(starts) - set(STARTS):
        complaints.append(f"{name}.starts is {starts}; expected some of {', '.join(STARTS)}")
    return Stage(recipe, settings, budget, list(dict.fromkeys(starts)))


def _budget(name: str, node: Node, complaints: list[str]) -> Budget | None:
    section = _mapping(node, name, complaints)
    if len(section) == 1 and (unit := next(iter(section))) in BUDGETS:
        text = _text(section[unit], f"{name}.{unit}", complaints)
        try:
            amount = number(text) if unit == "hours" else whole_number(text)
            if amount > 0:
                return Budget(unit, amount)
            complaints.append(f"{name}.{unit} is {text}; expected more than 0")
        except ValueError as error:
            complaints.append(f"{name}.{unit} is {text!r}; {error}")
        return None
    complaints.append(f"{name} names {', '.join(section) or 'nothing'}; expected one of {', '.join(BUDGETS)}")
    return None


def _list(node: Node) -> Sequence[Node]:
    return node if isinstance(node, list) else [node]


def _axes(node: Node, complaints: list[str]) -> Axes:
    axes: dict[str, dict[str, dict[str, str]]] = {}
    for axis, values in _mapping(node, "grid", complaints).items():
        name = f"grid.{axis}"
        if isinstance(values, dict):
            axes[axis] = {
                value: {
                    key: _value(one, f"{name}.{value}.{key}", complaints)
                    for key, one in _mapping(keys, f"{name}.{value}", complaints).items()
                }
                for value, keys in values.items()
            }
        else:
            texts = [_value(one, name, complaints) for one in _list(values)]
            if len(set(texts)) < len(texts):
                complaints.append(f"{name} has a value twice")
            axes[axis] = {text: {axis: text} for text in texts}
        if not axes[axis]:
            complaints.append(f"{name} has no values")
    return axes


def _check_keys(stages: Mapping[str, Stage], axes: Axes, complaints: list[str]) -> None:
    for name, stage in stages.items():
        unknown = [key for key in stage.settings if key not in recipe_keys(name)]
        complaints += [f"{name}.set.{key} is no key of a {name} recipe" for key in unknown]
    for axis, values in axes.items():
        keys = dict.fromkeys(key for settings in values.values() for key in settings)
        for key in keys:
            if not any(_own(key, name) for name in stages):
                complaints.append(f"grid.{axis} sets {key}, which is no key of a {' or '.join(stages)} recipe")
    own = {"run_dir", "model.pretrained", "trainer.max_steps"}
    for name, stage in stages.items():
        of_stage = {key for values in axes.values() for one in values.values() for key in _of(one, name)}
        for key in sorted(own & {*of_stage, *stage.settings}):
            if key == "trainer.max_steps" and stage.budget is None and key not in of_stage:
                continue
            if key == "model.pretrained" and len(stages) == 1 and "scratch" not in stage.starts:
                continue
            complaints.append(f"{key} of {name} is the sweep's to say: by run_dir, budget or starts")


def _own(key: str, stage: str) -> str | None:
    """What a key of an axis is called in a stage's recipe; None if it is not for that."""
    first, _, rest = key.partition(".")
    if first in STAGES:
        return rest if first == stage and rest in recipe_keys(stage) else None
    return key if key in recipe_keys(stage) else None


def _of(settings: Mapping[str, str], stage: str) -> dict[str, str]:
    """Those of an axis's settings that are for a stage; those that name it come last."""
    own = {key: name for key in settings if (name := _own(key, stage)) is not None}
    return {own[key]: settings[key] for key in sorted(own, key=lambda key: key != own[key])}


# Points


def _points(sweep: Sweep) -> list[Point]:
    pretrained = [_point(sweep, "pretrain", values) for values in _combinations(sweep, ["pretrain"])]
    if "finetune" not in sweep.stages:
        return pretrained
    stage = sweep.stages["finetune"]
    points = list(pretrained)
    for start in stage.starts if "pretrain" in sweep.stages or "scratch" in stage.starts else [""]:
        if start == "pretrained" and "pretrain" in sweep.stages:
            models = {tuple(point.values.items()): point for point in pretrained}
            for values in _combinations(sweep, STAGES):
                of_model = {axis: value for axis, value in values.items() if axis in pretrained[0].values}
                points.append(_point(sweep, "finetune", values, start, models[tuple(of_model.items())]))
        else:
            points += [_point(sweep, "finetune", values, start) for values in _combinations(sweep, ["finetune"])]
    return points


def _combinations(sweep: Sweep, stages: Iterable[str]) -> list[dict[str, str]]:
    """Of the axes that set something in any of the stages."""
    stages = [name for name in stages if name in sweep.stages]
    if not stages:
        return []
    axes = {
        axis: list(values)
        for axis, values in sweep.axes.items()
        if any(_of(settings, name) for settings in values.values() for name in stages)
    }
    count = 1
    for values in axes.values():
        count *= len(values)
    if count > _MOST_POINTS:
        raise UserError(f"sweep {sweep.path} comes to {count} points; expected at most {_MOST_POINTS}")
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def _point(sweep: Sweep, stage: str, values: dict[str, str], start: str = "", after: Point | None = None) -> Point:
    overrides = dict(sweep.stages[stage].settings)
    for axis, value in values.items():
        overrides |= _of(sweep.axes[axis][value], stage)
    if start and len(sweep.stages["finetune"].starts) > 1:
        values = {**values, "start": start}
    if after is not None:
        overrides["model.pretrained"] = f"{sweep.run_dir}/{after.name}"
    elif start == "scratch":
        overrides["model.pretrained"] = "null"
    point = Point(stage, values, overrides, after)
    return Point(stage, values, {**overrides, "run_dir": f"{sweep.run_dir}/{point.name}"}, after)


def _recipes(sweep: Sweep, points: Sequence[Point]) -> dict[Point, Recipe]:
    names = [point.name for point in points]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(
            f"sweep {sweep.path}: several points are called {twice[0]}; give the axes names that differ after the last "
            "dot, and values that differ in letters and digits"
        )
    recipes: dict[Point, Recipe] = {}
    complaints: dict[str, str] = {}
    for point in points:
        budget = sweep.stages[point.stage].budget
        try:
            recipe = sweep.load(point)
            steps = budget.steps(recipe.data.batch_size) if budget else None
            recipes[point] = recipe if steps is None else sweep.load(point, f"trainer.max_steps={steps}")
        except UserError as error:
            complaints.setdefault(str(error).partition("\n")[2].strip() or str(error), point.name)
    if complaints:
        raise UserError(f"sweep {sweep.path}:", *(f"{point}: {text}" for text, point in complaints.items()))
    return recipes
