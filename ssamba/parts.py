"""Parts that a word chooses, those of this package and those that other packages bring: one table.

The words are `model.encoder`, `task.pooling` and `task.loss` of a recipe, and NAME of `ssamba prepare NAME`. A package
that is installed beside this one adds to them by entry points, of a group for each kind of part:

| group             | what an entry point names                                                              |
|-------------------|----------------------------------------------------------------------------------------|
| `ssamba.encoders` | a subclass of `ssamba.models.stack.Stack`: layers over tokens, with their `sizes`      |
| `ssamba.pools`    | a subclass of `ssamba.models.pools.Pool`: the tokens of a clip to one vector           |
| `ssamba.tasks`    | a subclass of `ssamba.evaluation.task.Task`: a loss, and scores of what was learned    |
| `ssamba.datasets` | a module with a function `main`, as the scripts of data_prep are                       |

CONTRIBUTING.md has an example of each. Which names there are is read from the installed packages' entry points alone; a
part is imported when it is asked for by its name. Whatever asks, a recipe or the config.json of an untrusted model, can
name what is in this table and nothing else. Imports no torch.
"""

import functools
import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TypeVar

from ssamba.errors import UserError
from ssamba.packaged import preparations

Kind = Literal["encoder", "pool", "task", "data set"]
GROUPS: dict[Kind, str] = {
    "encoder": "ssamba.encoders",
    "pool": "ssamba.pools",
    "task": "ssamba.tasks",
    "data set": "ssamba.datasets",
}
OWN = "ssamba"
"""The package of the parts that come with this one."""

_OWN_PARTS: dict[Kind, dict[str, str]] = {
    "encoder": {
        "ssamba": "ssamba.models.ssamba:SsambaStack",
        "ssast": "ssamba.models.ssast:SsastStack",
        "aum": "ssamba.models.aum:AumStack",
        "conformer": "ssamba.models.conformer:ConformerStack",
        "bilstm": "ssamba.models.bilstm:BilstmStack",
        "ssd": "ssamba.models.ssd:SsdStack",
    },
    "pool": {
        "mean": "ssamba.models.pools:MeanPool",
        "class": "ssamba.models.pools:ClassPool",
        "rows": "ssamba.models.pools:RowsPool",
        "statistics": "ssamba.models.pools:StatisticsPool",
        "segments": "ssamba.models.pools:SegmentsPool",
        "attentive": "ssamba.models.pools:AttentivePool",
    },
    "task": {
        "cross_entropy": "ssamba.evaluation.task:CrossEntropy",
        "bce": "ssamba.evaluation.task:BinaryCrossEntropy",
        "ctc": "ssamba.evaluation.task:Ctc",
    },
}

Class = TypeVar("Class")


@dataclass(frozen=True)
class Part:
    """What a name stands for.

    Attributes:
        package, version: that it is installed with.
        read: imports it.
    """

    name: str
    package: str
    version: str
    read: Callable[[], Any]


@functools.cache
def parts(kind: Kind) -> Mapping[str, tuple[Part, ...]]:
    """Each name's parts, this package's own first: one each, unless packages have the same name."""
    by_name: dict[str, tuple[Part, ...]] = {}
    for part in (*_own_parts(kind), *_installed_parts(kind)):
        by_name[part.name] = (*by_name.get(part.name, ()), part)
    return by_name


def _own_parts(kind: Kind) -> Sequence[Part]:
    if kind == "data set":
        return [Part(name, OWN, "", functools.partial(_script, path)) for name, path in preparations().items()]
    entries = [metadata.EntryPoint(name, value, GROUPS[kind]) for name, value in _OWN_PARTS[kind].items()]
    return [Part(entry.name, OWN, "", entry.load) for entry in entries]


def _installed_parts(kind: Kind) -> Sequence[Part]:
    entries = sorted(metadata.entry_points(group=GROUPS[kind]), key=lambda entry: (entry.name, entry.value))
    return [
        Part(entry.name, entry.dist.name, entry.dist.version, entry.load) for entry in entries if entry.dist is not None
    ]


def _script(path: Path) -> Any:
    """A script of data_prep, which is no module of the package, imported."""
    spec = importlib.util.spec_from_file_location(f"ssamba_prepare_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def names(kind: Kind) -> tuple[str, ...]:
    """Every name that can be asked for, this package's own first."""
    return tuple(parts(kind))


def own_names(kind: Kind) -> tuple[str, ...]:
    """The names of the parts that come with this package."""
    return tuple(part.name for part in _own_parts(kind))


def clash(kind: Kind, name: str) -> str | None:
    """What is wrong with a name that several packages have; None if one has it, or none."""
    candidates = parts(kind).get(name, ())
    if len(candidates) < 2:
        return None
    packages = " and ".join(part.package for part in candidates)
    return f"the {kind} {name} is in the packages {packages}; expected one that has it: uninstall the others"


def find(kind: Kind, name: str) -> Part:
    """The part of a name, which is not imported by this.

    Raises:
        UserError: there is none, or several packages have one.
    """
    if problem := clash(kind, name):
        raise UserError(problem)
    if name not in parts(kind):
        raise UserError(f"there is no {kind} {name!r}; expected one of {', '.join(names(kind))}")
    (part,) = parts(kind)[name]
    return part


def load(kind: Kind, name: str) -> Any:
    """The part of a name, imported.

    Raises:
        UserError: as `find`, or another package's that cannot be imported.
    """
    part = find(kind, name)
    if part.package == OWN:
        return part.read()
    try:
        return part.read()
    except Exception as error:  # whatever another package's code raises
        cause = " ".join(str(error).split())[:500]
        raise UserError(
            f"the {kind} {name} of the package {part.package} cannot be imported: {type(error).__name__}: {cause}; "
            f"mend or uninstall {part.package}"
        ) from error


def load_class(kind: Kind, name: str, base: type[Class]) -> type[Class]:
    """The class of a name, which is a subclass of `base`; UserError as `load`, or if it is none."""
    loaded = load(kind, name)
    if isinstance(loaded, type) and issubclass(loaded, base):
        return loaded
    raise _misfit(kind, name, loaded, f"a subclass of {base.__module__}.{base.__qualname__}")


def load_main(name: str) -> Callable[[Sequence[str]], int]:
    """What prepares the data set of a name: arguments -> exit status; UserError as `load`, or if it is none."""
    module = load("data set", name)
    main = getattr(module, "main", None)
    if not callable(main):
        raise _misfit("data set", name, module, "a module with a function main(arguments)")
    prepare: Callable[[Sequence[str]], int] = main
    return prepare


def _misfit(kind: Kind, name: str, loaded: Any, expected: str) -> UserError:
    return UserError(
        f"the {kind} {name} of the package {find(kind, name).package} is {loaded!r:.200}; expected {expected}"
    )


def recorded_package(kind: Kind, name: str) -> str | None:
    """The package that a model's config.json names for a part; None for a part of this package."""
    package = find(kind, name).package
    return None if package == OWN else package


def check_package(kind: Kind, name: str, package: str | None, place: object) -> None:
    """Whether a part that a file names is here, and is the one that was meant.

    Args:
        package: in the file; None for this one.
        place: the file, for the message.

    Raises:
        UserError: it is not.
    """
    part = f"the {kind} {name!r:.200}" + ("" if package is None else f" of the package {package!r:.200}")
    if name not in parts(kind):
        missing = "" if package is None else ", which is not installed here, or does not have it"
        raise UserError(f"{place} describes a model with {part}{missing}; expected one of {', '.join(names(kind))}")
    if recorded_package(kind, name) != package:
        raise UserError(
            f"{place} describes a model with {part}, and here {name} is of the package {find(kind, name).package}; "
            "expected the package that it was made with"
        )
