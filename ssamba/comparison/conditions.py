"""What may differ between runs that are compared: conditions must be equal, treatments are compared, and the machine
does not matter. Imports no torch.

A key of a recipe is of one of three kinds. What a machine or a folder decides is passed over. A condition (data, split,
budget, statistics, intervals, pretraining) is the same for all runs, or the comparison is none; `--allow` admits it by
its name, or all of its kind. Everything else is a treatment: runs of the same treatments are seeds of one another, and
the treatments that differ define the groups.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ssamba.config import FinetuneRecipe, flat_recipe
from ssamba.errors import UserError
from ssamba.printable import masked

MACHINE = (
    "run_dir",
    "wandb",
    "seed",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.accelerator",
    "trainer.strategy",
    "trainer.accumulate",
    "trainer.recompute",
    "trainer.compile",
    "trainer.log_every_steps",
    "trainer.tensorboard",
    "model.scan_backend",
    "data.num_workers",
    "data.cache",
    "data.cache_gigabytes",
    "data.max_bad_fraction",
    "evaluation.baseline",
    "evaluation.probe",
    "evaluation.label",
    "evaluation.probe_clips",
    "evaluation.every_validations",
)
"""Keys, and sections, that change nothing of what is learned, but for what a seed or rounding does."""
CONDITIONS = {
    "data": (
        "data.train",
        "data.validation",
        "data.test",
        "data.weights",
        "data.label_fraction",
        "audio.sampling_rate",
    ),
    "split": ("data.fold_by", "data.fold"),
    "budget": (
        "trainer.max_steps",
        "trainer.patience",
        "trainer.validate_every_steps",
        "data.batch_size",
        "audio.max_length",
    ),
    "statistics": ("audio.mean", "audio.std"),
    "intervals": ("evaluation.group_by",),
}
"""Kind -> keys that are the same for all runs. Of data.train, validation and test what counts is the fingerprint, of
data.test the keys and labels of the examples as well, and of data.fold the set of folds of each group."""
PRETRAINING = "pretraining"
"""The kind of the conditions of the run that weights come from, and the beginning of its keys, such as
pretraining.trainer.max_steps. Where nothing is known of it, nothing is asked."""
TASK = ("task_type", "task.label", "task.loss", "task.hop_ms")
"""Keys whose scores are of different things; nothing admits a difference."""
_OF_PRETRAINING = ("data", "split", "budget", "statistics", PRETRAINING)
_SAME_MODEL = (
    "encoder",
    "size",
    "fshape",
    "tshape",
    "frequency_stride",
    "time_stride",
    "patch_order",
    "residual",
    "scan_layout",
)
_SPLITS = ("data.train", "data.validation", "data.test")
_TOLERANCE = 0.05  # of audio.std: each run measures its statistics by clips that its own seed draws
_SHOWN = 4  # runs of a message

_KIND = {key: kind for kind, keys in CONDITIONS.items() for key in keys}


def kind_of(key: str) -> str | None:
    """The kind of a condition, "task" of `TASK`, "machine" of `MACHINE`; None of a treatment."""
    if key.startswith(f"{PRETRAINING}."):
        below = kind_of(key.removeprefix(f"{PRETRAINING}."))
        return "machine" if below in ("machine", "intervals") else PRETRAINING if below in _OF_PRETRAINING else None
    if key in TASK:
        return "task"
    if any(key == one or key.startswith(f"{one}.") for one in MACHINE):
        return "machine"
    return _KIND.get(key)


@dataclass(frozen=True)
class Described:
    """What a run is, as far as it is compared: where it lies, its own seed and those of the runs that its weights come
    from, its fold ("" without folds), and the values of its conditions and treatments by their keys."""

    place: str
    seeds: tuple[int, ...]
    fold: str
    conditions: Mapping[str, Any]
    treatments: Mapping[str, Any]


def describe(place: str, recipe: Mapping[str, Any], record: Mapping[str, Any], fingerprints: bool = True) -> Described:
    """Sort the keys of a run's flat recipe, with its run.json for what its weights come from.

    Args:
        fingerprints: the data are known by those of the record; else by their places, as of a log without them.
    """
    conditions, treatments, seeds = dict[str, Any](), dict[str, Any](), list[int]()
    for key, value in _values(recipe, record, fingerprints):
        if key.rpartition(".")[2] == "seed":
            seeds.append(value)
        kind = kind_of(key)
        if kind is None:
            treatments[key] = value
        elif kind not in ("machine", "task") or key in TASK:
            conditions[key] = value
    fold = conditions.pop("data.fold", None)
    return Described(place, tuple(seeds), str(fold or ""), conditions, treatments)


def _values(
    recipe: Mapping[str, Any], record: Mapping[str, Any], fingerprints: bool, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Key and value of a recipe and, with "pretraining." before each, of that of its weights."""
    recipe = dict(recipe)
    origin, pretrained = record.get("origin"), recipe.get("model.pretrained")
    if pretrained is not None:
        recipe["model.pretrained"] = f"from {origin['recipe'].get('task_type')}" if origin else masked(str(pretrained))
    for name, shape in (("frequency_stride", "fshape"), ("time_stride", "tshape")):  # null means side by side
        recipe[f"model.{name}"] = recipe.get(f"model.{name}") or recipe.get(f"model.{shape}")
    recipe["model.patch_order"] = recipe.get("model.patch_order") or "frequency"  # of runs that knew no other
    if recipe.get("trainer.average_checkpoints", 1) == 1:  # how many there are changes nothing then
        recipe.pop("trainer.checkpoint_every_steps", None)
    data = record["data"] if fingerprints else {}
    for name in _SPLITS:
        split = data.get(name.removeprefix("data."))
        if split:
            recipe[name] = f"fingerprint {split['fingerprint'][:16]}"
        elif name in recipe:
            recipe[name] = ", ".join(masked(source) for source in recipe[name] or []) or None
    for key, value in recipe.items():
        inner = key.startswith("model.") and key.removeprefix("model.") in _SAME_MODEL
        if not (prefix and (inner or key in ("task_type", "data.test"))):
            yield f"{prefix}{key}", value
    if pretrained is not None and origin:
        yield from _values(origin["recipe"], origin, fingerprints, f"{prefix}{PRETRAINING}.")


@dataclass(frozen=True)
class Variants:
    """Runs sorted by what they are: for each group the places of its runs in the list that was sorted; the keys that
    differ between groups, of treatments and of conditions that were admitted; and the value of each key in each."""

    members: Sequence[Sequence[int]]
    treatments: Sequence[str]
    admitted: Sequence[str]
    values: Sequence[Mapping[str, Any]] = field(repr=False)

    @property
    def keys(self) -> list[str]:
        return [*self.treatments, *self.admitted]


def check_names(allowed: Sequence[str]) -> None:
    """UserError for an `--allow` that names neither a kind nor a condition."""
    known = flat_recipe(FinetuneRecipe(run_dir="run")).keys()
    kinds = (*CONDITIONS, PRETRAINING)
    for name in allowed:
        own = name.removeprefix(f"{PRETRAINING}.")
        if name in kinds or (own in known and kind_of(name) in kinds):
            continue
        why = {
            None: "is a treatment, which may differ as it is",
            "unknown": "is no condition",
            "machine": "changes nothing of what is learned, and may differ as it is",
            "task": "is of the task, and scores of two tasks cannot be compared",
        }[kind_of(name) if own in known else "unknown"]
        raise UserError(
            f"--allow {name} {why}; expected of {', '.join(kinds)}, or one of their keys, such as trainer.max_steps "
            "(the runs stand before --allow)"
        )


def sort_runs(runs: Sequence[Described], allowed: Sequence[str], examples: Sequence[str | None]) -> Variants:
    """Runs as groups of seeds and folds.

    Args:
        allowed: names of conditions, or of kinds of them, that may differ.
        examples: of each run a digest of what it was scored on, None where nothing is known of it.

    Raises:
        UserError: of different tasks; conditions that differ and are not allowed, all at once; two runs that are the
            same; nothing to compare.
    """
    conditions = _conditions(runs, examples)
    differing = [key for key in conditions if len({json.dumps(value) for value in conditions[key]}) > 1]
    if mixed := [key for key in differing if key in TASK]:
        raise UserError(
            "runs of different tasks cannot be compared:", *(_complaint(key, conditions[key], runs) for key in mixed)
        )
    admitted = [key for key in differing if key in allowed or kind_of(key) in allowed]
    treatments = list(dict.fromkeys(key for run in runs for key in run.treatments))
    values = [
        {key: run.treatments.get(key) for key in treatments} | {key: conditions[key][place] for key in admitted}
        for place, run in enumerate(runs)
    ]
    groups: dict[str, list[int]] = {}
    for place, value in enumerate(values):
        groups.setdefault(json.dumps(value, sort_keys=True), []).append(place)
    # The bootstrap draws the same, whatever the order of the runs.
    members = [sorted(group, key=lambda place: (runs[place].fold, runs[place].seeds)) for group in groups.values()]
    folds = [sorted({runs[place].fold for place in group}) for group in members]
    complaints = [_complaint(key, conditions[key], runs) for key in differing if key not in admitted]
    if any(fold != folds[0] for fold in folds):
        firsts = [runs[group[0]] for group in members]
        if "data.fold" in allowed or "split" in allowed:
            admitted.append("data.fold")
            for group, own in zip(members, folds, strict=True):
                for place in group:
                    values[place]["data.fold"] = ", ".join(own)
        else:
            complaints.append(_complaint("data.fold", [", ".join(own) or None for own in folds], firsts))
    if complaints:
        kinds = sorted({kind_of(complaint.partition(" ")[0]) or "" for complaint in complaints})
        raise UserError(
            "the runs cannot be put side by side as equals; they differ in:",
            *complaints,
            f"--allow {' '.join(kinds)} puts them into one table all the same, with a column for each",
        )
    _check_seeds(runs, members)
    shown = [values[group[0]] for group in members]
    if len(members) == 1:
        kind = "seeds and folds" if any(folds[0]) else "seeds"
        raise UserError(
            f"the {len(runs)} runs are {kind} of one another, and there is nothing to compare them with; expected runs "
            "that differ in more than their seeds"
        )
    different = [key for key in (*treatments, *admitted) if _differs(key, shown)]
    return Variants(
        members,
        _distinguishing([key for key in different if key in treatments], shown),
        [key for key in different if key in admitted],
        shown,
    )


def _conditions(runs: Sequence[Described], examples: Sequence[str | None]) -> dict[str, list[Any]]:
    """Key -> of each run its value, the same for all where nothing is known of some, or where they are as good as the
    same."""
    keys = list(dict.fromkeys(key for run in runs for key in run.conditions))
    conditions = {key: [run.conditions.get(key) for run in runs] for key in keys}
    for key in keys:
        if key.startswith(PRETRAINING):  # of those without pretraining there is nothing to be equal
            known = [run.conditions[key] for run in runs if key in run.conditions]
            conditions[key] = [run.conditions.get(key, known[0]) for run in runs]
    for prefix in {key.removesuffix("audio.mean") for key in keys if key.endswith("audio.mean")}:
        pairs = zip(conditions[f"{prefix}audio.mean"], conditions[f"{prefix}audio.std"], strict=True)
        alike = _alike(list(pairs), _same_statistics)
        conditions[f"{prefix}audio.mean"], conditions[f"{prefix}audio.std"] = map(list, zip(*alike, strict=True))
    by_fold: dict[str, list[str]] = {}
    for run, digest in zip(runs, examples, strict=True):
        if digest is not None:
            by_fold.setdefault(run.fold, []).append(digest)
    for fold, digests in by_fold.items():
        if len(set(digests)) > 1:
            for place, (run, digest) in enumerate(zip(runs, examples, strict=True)):
                if run.fold == fold and digest is not None:
                    conditions["data.test"][place] = f"{conditions['data.test'][place] or fold} examples {digest[:8]}"
    return conditions


def _alike(values: Sequence[Any], same: Callable[[Any, Any], bool]) -> list[Any]:
    """Each value replaced by the first one that is the same."""
    firsts: list[Any] = []
    representatives = []
    for value in values:
        first = next((one for one in firsts if same(one, value)), None)
        if first is None:
            firsts.append(value)
            first = value
        representatives.append(first)
    return representatives


def _same_statistics(first: tuple[float | None, float | None], second: tuple[float | None, float | None]) -> bool:
    (mean, std), (other_mean, other_std) = first, second
    if mean is None or std is None or other_mean is None or other_std is None:
        return first == second
    return abs(mean - other_mean) <= _TOLERANCE * std and abs(std - other_std) <= _TOLERANCE * std


def _differs(key: str, groups: Sequence[Mapping[str, Any]]) -> bool:
    """Of pretraining, among those that have any: model.pretrained shows that the others have none."""
    own = [group[key] for group in groups if not key.startswith(PRETRAINING) or group["model.pretrained"] is not None]
    return len({json.dumps(value) for value in own}) > 1


def _distinguishing(keys: list[str], groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """Without those that divide the groups just as the same key of the pretraining, or of the run itself, does."""
    kept: list[str] = []
    for key in keys:
        own = key.removeprefix(f"{PRETRAINING}.")
        pairs = [(group.get(key), group.get(own)) for group in groups if group.get(key) is not None]
        if own == key or own not in keys or any(one != other for one, other in pairs):
            kept.append(key)
    return kept


def _check_seeds(runs: Sequence[Described], members: Sequence[Sequence[int]]) -> None:
    for group in members:
        seen: dict[tuple[str, tuple[int, ...]], str] = {}
        for place in group:
            run = runs[place]
            if (run.fold, run.seeds) in seen:
                raise UserError(
                    f"{seen[run.fold, run.seeds]} and {run.place} are runs of one recipe and one seed, {run.seeds[0]}: "
                    "a copy or a repetition, which says nothing of other seeds; leave one out"
                )
            seen[run.fold, run.seeds] = run.place


def _complaint(key: str, values: Sequence[Any], runs: Sequence[Described]) -> str:
    """A condition that differs: "trainer.max_steps (budget): 4 in a, b; 8 in c"."""
    places: dict[str, list[str]] = {}
    for value, run in zip(values, runs, strict=True):
        places.setdefault(value_text(value), []).append(run.place)
    parts = [
        f"{value} in {', '.join(names[:_SHOWN])}" + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        for value, names in places.items()
    ]
    return f"{key} ({kind_of(key)}): {'; '.join(parts)}"


def value_text(value: Any) -> str:
    """A recipe's value as it is written in a recipe."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
