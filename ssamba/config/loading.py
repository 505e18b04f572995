"""A recipe from YAML and command line, with every complaint in one error."""

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf

from ssamba.config.pretraining import SSAMBA_PARTS
from ssamba.config.recipes import RECIPES, FinetuneRecipe, PretrainRecipe, Recipe, problems_between, section_problems
from ssamba.config.variables import escaped, unescaped
from ssamba.errors import UserError
from ssamba.recipe_yaml import MOST_BYTES, Node, Scalar, read_yaml
from ssamba.values import number, plain_text, truth, whole_number


def load_recipe(path: str | Path, overrides: Sequence[str] = (), kind: str | None = None) -> Recipe:
    """Read a YAML recipe, apply `key=value` overrides and check all of it.

    A value is what its key's type makes of the text that was typed, in the file and in an override alike: a text is
    that text, whole numbers are decimal, numbers are finite, yes and no are true and false, and null or nothing at all
    switches off what is optional. In quotes null is a text. Nothing is put in for ${...}; \\${ is that text itself. In
    paths ~ is the home folder, and what is relative is relative to the working folder.

    Args:
        path: the recipe; a run folder stands for the recipe.yaml in it, and is its run_dir, wherever it was made.
        overrides: "section.key=value"; [a, b] is a list.
        kind: "pretrain" or "finetune" if only such a recipe will do.

    Raises:
        UserError: with every complaint at once: unknown keys (and the nearest known one), values of the wrong type or
            out of range, with what was expected.
    """
    source, run = Path(path), None
    if (source / "recipe.yaml").is_file():
        source, run = source / "recipe.yaml", source
    written = _read(source)
    task_type = written.get("task_type")
    if not isinstance(task_type, Scalar) or task_type.text not in RECIPES:
        shown = f"task_type {_shown(task_type)}" if task_type else "no task_type"
        raise UserError(f"recipe {source} has {shown}; expected one of {', '.join(RECIPES)}")
    if kind is not None and task_type.text != kind:
        raise UserError(
            f"recipe {source} is a {task_type.text} recipe; expected a {kind} recipe (its task_type says which)"
        )
    schema = OmegaConf.structured(RECIPES[task_type.text])
    complaints: list[str] = []
    _merge(schema, written, "", str(source), complaints)
    if run is not None:
        schema.run_dir = escaped(str(run))
    for text in overrides:
        _merge(schema, _override(text), "", "command line", complaints)
    refused = {complaint.partition(" ")[0] for complaint in complaints}
    if task_type.text == "pretrain":
        _fill_parts(schema.objective.parts)
    if OmegaConf.is_missing(schema, "run_dir") and "run_dir" not in refused:
        complaints.append("run_dir is missing; expected a new folder for what the run makes")
    if schema.task_type != task_type.text:
        complaints.append(
            f"task_type is {schema.task_type!r} on the command line; the recipe is a {task_type.text} recipe"
        )
    # Fields that were refused have their defaults, which need no complaint.
    complaints.extend(problem for problem in section_problems(schema) if not any(name in problem for name in refused))
    if not complaints:
        recipe = OmegaConf.to_object(schema)
        assert isinstance(recipe, PretrainRecipe | FinetuneRecipe)
        complaints.extend(problems_between(recipe))
        if not complaints:
            return recipe
    raise UserError(f"recipe {source}:", *complaints)


def _fill_parts(parts: DictConfig) -> None:
    """The weights in `PartsConfig` of the parts that a recipe does not name."""
    default = {} if any(weight is not None for weight in parts.values()) else SSAMBA_PARTS
    for name, weight in parts.items():
        if weight is None:
            parts[name] = default.get(str(name), 0.0)


def _read(source: Path) -> dict[str, Node]:
    if not source.is_file():
        what = "is no file" if source.exists() else "does not exist"
        raise UserError(f"recipe {source} {what}; expected a YAML file (recipes/ has some) or a run folder")
    try:
        with source.open("rb") as file:
            written = read_yaml(file.read(MOST_BYTES + 1))
    except (ValueError, OSError) as error:
        raise UserError(f"recipe {source} cannot be read: {error}") from error
    if not isinstance(written, dict):
        raise UserError(f"recipe {source} is not a mapping of keys to values")
    return written


def _override(text: str) -> dict[str, Node]:
    """section.key=value as the YAML would have it; other values than quoted ones and lists are the text as it is."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UserError(f"override {text!r} is not key=value, for instance trainer.max_steps=1000")
    node: Node | None = Scalar(value)
    if value.startswith("[") or (len(value) > 1 and value[0] == value[-1] and value[0] in "'\""):
        try:
            node = read_yaml(value)
        except ValueError as error:
            raise UserError(f"override {text} cannot be read: {error}") from error
    for name in reversed(key.split(".")):
        node = {name: node or Scalar("")}
    assert isinstance(node, dict)
    return node


def _merge(schema: DictConfig, nodes: Mapping[str, Node], prefix: str, origin: str, complaints: list[str]) -> None:
    """Copy the leaves of `nodes` into `schema`, one by one, so that every mistake is reported, not the first alone."""
    types = get_type_hints(OmegaConf.get_type(schema), include_extras=True)
    for key, node in nodes.items():
        name = f"{prefix}{key}"
        if key not in types:
            near = difflib.get_close_matches(key, types, 1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(types)}"
            complaints.append(f"{name} ({origin}) is no key of a {schema_name(schema)}; {hint}")
        elif is_dataclass(types[key]):
            if isinstance(node, dict):
                _merge(schema[key], node, f"{name}.", origin, complaints)
            else:
                complaints.append(f"{name} ({origin}) is {_shown(node)}; expected a section of keys and values")
        else:
            try:
                value = _value(node, types[key])
            except ValueError as error:
                complaints.append(f"{name} ({origin}) is {_shown(node)}; {error}")
            else:
                OmegaConf.update(schema, key, escaped(value))


_READERS: dict[Any, Callable[[str], Any]] = {str: plain_text, int: whole_number, float: number, bool: truth}


def _value(node: Node, kind: Any) -> Any:
    """What was typed, as the type of its field has it.

    Raises:
        ValueError: it cannot be; says what was expected.
    """
    if NoneType in get_args(kind):
        (kind,) = set(get_args(kind)) - {NoneType}
        if node == Scalar("~"):  # YAML's null, and a home folder in a path
            raise ValueError("expected null, or what is meant: ~/ for the home folder")
        return None if isinstance(node, Scalar) and node.is_nothing else _value(node, kind)
    if get_origin(kind) is list:
        if isinstance(node, Scalar):
            node = [] if node.is_nothing else [node]
        if not isinstance(node, list):
            raise ValueError("expected a list, such as [a, b]")
        return [_value(entry, get_args(kind)[0]) for entry in node]
    if not isinstance(node, Scalar):
        raise ValueError(
            "expected one value" + (", in quotes if it is a text" if kind not in (int, float, bool) else "")
        )
    if node.is_nothing:
        raise ValueError("expected a value, in quotes if this is a text; it is not optional")
    read = kind.__metadata__[0] if get_origin(kind) is Annotated else _READERS[kind]
    return read(unescaped(node.text))


def _shown(node: Node) -> str:
    """What was typed, for messages."""
    if isinstance(node, dict):
        return "a section"
    if isinstance(node, list):
        text = f"[{', '.join(map(_shown, node))}]"
    else:
        text = (node.text or "nothing") if node.is_nothing else repr(node.text)
    return text if len(text) <= 200 else f"{text[:200]}..."


def schema_name(schema: DictConfig) -> str:
    """The section's name in words, for messages."""
    kind = OmegaConf.get_type(schema)
    return "recipe" if kind in RECIPES.values() else f"{kind.__name__.removesuffix('Config').lower()} section"  # type: ignore[union-attr]
