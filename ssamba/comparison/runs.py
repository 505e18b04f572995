"""Finished runs, read from their folders."""

import csv
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssamba.comparison.bootstrap import ratio
from ssamba.config import Recipe, flat_recipe, load_recipe
from ssamba.data.labels import one_name_each, read_asked_labels
from ssamba.data.shards.finding import find_shards
from ssamba.data.shards.remote import ShardCache
from ssamba.errors import UserError
from ssamba.evaluation.classification import Predictions
from ssamba.evaluation.hops import recording_of
from ssamba.evaluation.intervals import weighted_metrics
from ssamba.evaluation.pictures import read_metrics
from ssamba.evaluation.scores import SCORES_NAME, TEXTS_NAME, read_groups, read_scores
from ssamba.files import TEMPORARY
from ssamba.models.record import RECORD_NAME, read_record
from ssamba.origin import read_origin
from ssamba.printable import csv_cell

RECIPE_NAME = "recipe.yaml"
_EXPECTED = "the folder of a finished run, or one of such runs"


@dataclass(frozen=True)
class Run:
    """A finished run.

    Args:
        place: its folder, as it was named.
        recipe: flat: key -> value, as `ssamba.config.flat_recipe` has it.
        record: run.json; of a log the part of it that the log has.
        folder: None of a log outside of a run folder.
        logged: of a log, its rows of metrics, each with its step; None: those of metrics.csv.
        answers: of a log, the predictions in its table of test clips; None: those in test/ of the folder.
    """

    place: str
    recipe: Mapping[str, Any]
    record: Mapping[str, Any]
    folder: Path | None
    logged: Sequence[Mapping[str, float]] | None = field(default=None, repr=False)
    answers: tuple[Predictions, list[str]] | None = field(default=None, repr=False)

    @property
    def metric(self) -> str:
        """The metric of its examples: accuracy, mAP for several labels a clip, CER for transcripts."""
        return {"bce": "mAP", "ctc": "CER"}.get(self.recipe["task.loss"], "accuracy")

    @property
    def history(self) -> Sequence[Mapping[str, float]]:
        """What was logged while it trained, in the order of time."""
        if self.logged is not None:
            return self.logged
        assert self.folder is not None
        rows = read_metrics(self.folder / "metrics.csv")
        return [{name: float(value) for name, value in row.items()} for row in rows]

    @property
    def scored(self) -> bool:
        """Whether there are scores of its examples."""
        if self.answers is not None:
            return True
        return self.folder is not None and (self.folder / "test" / self._scores_name).is_file()

    @property
    def _scores_name(self) -> str:
        return TEXTS_NAME if self.metric == "CER" else SCORES_NAME

    def predictions(self) -> tuple[Predictions, list[str]]:
        """Its classifier's predictions, and the names of the classes; UserError if that is damaged."""
        if self.answers is not None:
            return self.answers
        assert self.folder is not None
        return read_scores(self.folder / "test")


def read_run(folder: Path, recipe: Recipe | None = None) -> Run:
    """Read a run folder.

    Args:
        recipe: that of the folder, if it has been read.

    Raises:
        UserError: it holds no finished run, or one whose recipe or record is damaged.
    """
    if not (folder / RECORD_NAME).is_file():
        state = "an unfinished run" if (folder / RECIPE_NAME).is_file() else "none"
        raise UserError(f"{folder} has no {RECORD_NAME}; expected the folder of a finished run, and this is {state}")
    recipe = recipe or load_recipe(folder)
    record = read_record(folder / RECORD_NAME)
    if "origin" not in record:  # of a version that did not keep it
        record["origin"] = read_origin(recipe.model.pretrained)
    return Run(str(folder), flat_recipe(recipe), record, folder)


def find_runs(places: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The fine-tuned runs in some folders or below them, each once; and in words what was passed over below them.

    Raises:
        UserError: a folder does not exist or has no runs, a run is not finished, or one named itself has no scores of
            examples.
    """
    folders: dict[Path, Path] = {}
    recipes: dict[Path, Recipe] = {}
    pretraining = 0
    for place in places:
        below = list(_below(place))
        if not below:
            what = "holds no run" if place.is_dir() else "is no folder" if place.exists() else "does not exist"
            raise UserError(f"{place} {what}; expected {_EXPECTED}")
        for folder in below:
            if folder != place:
                recipes[folder] = load_recipe(folder)
                if recipes[folder].task_type == "pretrain":
                    pretraining += 1
                    continue
            folders.setdefault(folder.resolve(), folder)
    if unfinished := [str(folder) for folder in folders.values() if not (folder / RECORD_NAME).is_file()]:
        raise UserError(
            f"{len(unfinished)} of {len(folders)} runs are not finished, and have no {RECORD_NAME}: "
            f"{', '.join(unfinished[:8])}{', ...' if len(unfinished) > 8 else ''}; --resume goes on with a run, or "
            "name those that are to be compared"
        )
    runs = [read_run(folder, recipes.get(folder)) for folder in folders.values()]
    for run in runs:
        check_scored(run)
    passed_over = [f"{pretraining} pretraining runs, which have no scores of examples"] if pretraining else []
    return runs, passed_over


def _below(place: Path) -> Iterator[Path]:
    if (place / RECIPE_NAME).is_file() or (place / RECORD_NAME).is_file():
        yield place
        return
    try:
        entries = sorted(os.scandir(place), key=lambda entry: entry.name) if place.is_dir() else []
    except OSError as error:
        raise UserError(f"{place} cannot be read ({error.strerror}); expected {_EXPECTED}") from error
    for entry in entries:
        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith((".", TEMPORARY)):
            yield from _below(place / entry.name)


def check_scored(run: Run) -> None:
    """UserError for a run without scores of its examples."""
    if run.recipe["task_type"] == "pretrain":
        raise UserError(
            f"{run.place} is a pretraining run, which has no scores of examples; expected runs that were fine-tuned "
            "from it (`ssamba finetune ... model.pretrained=RUN`)"
        )
    if not run.scored:
        raise UserError(
            f"{run.place} has no scores of examples (test/{run._scores_name}); expected a run with test clips, of "
            "data.test or data.fold of its recipe"
        )


@dataclass(frozen=True)
class Examples:
    """What a run was scored on, sorted by keys, and how it was scored.

    Args:
        keys: of the examples, (N,).
        units: of each what the bootstrap draws as a whole: itself, its recording or its group.
        digest: of keys, labels and class names: the same where examples can be compared one by one.
        score: weights, float64 (R, N) -> scores (R,).
    """

    keys: Sequence[str]
    units: Sequence[str]
    digest: str
    score: Callable[[Tensor], Tensor]


def read_examples(run: Run) -> Examples:
    """The examples of a run that has scores of them.

    Raises:
        UserError: they are damaged, or their groups cannot be read any more.
    """
    if run.metric == "CER":
        return _read_texts(run)
    predictions, names = run.predictions()
    order = sorted(range(len(predictions.keys)), key=predictions.keys.__getitem__)
    keys = [predictions.keys[place] for place in order]
    chosen = Predictions(keys, predictions.logits[order], predictions.labels[order])
    if run.metric == "mAP":
        digest = _digest(keys, names, chosen.labels.numpy().tobytes())
        return Examples(keys, _units(run, keys), digest, lambda weights: weighted_metrics(chosen, weights)["mAP"])
    hits = chosen.logits.argmax(1) == chosen.labels
    # By what a logged table has as well: no list of classes, and names escaped for spreadsheets.
    digest = _digest([*map(csv_cell, keys)], [csv_cell(names[label]) for label in chosen.labels.tolist()], b"")
    return Examples(keys, _units(run, keys), digest, ratio(hits, torch.ones(len(keys))))


def _read_texts(run: Run) -> Examples:
    assert run.folder is not None
    path = run.folder / "test" / TEXTS_NAME
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = sorted(csv.DictReader(file), key=lambda row: row["key"])
        numbers = torch.tensor([[float(row[name]) for name in ("greedy edits", "characters")] for row in rows])
        keys, texts = ([row[name] for row in rows] for name in ("key", "true"))
        if not rows or not bool((numbers.isfinite() & (numbers >= 0)).all()) or not bool((numbers[:, 1] > 0).all()):
            raise ValueError("its numbers are no counts")
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UserError(
            f"{path} cannot be used ({error}); expected the texts of a run, as finetune writes them"
        ) from error
    return Examples(keys, keys, _digest(keys, texts, b""), ratio(numbers[:, 0], numbers[:, 1]))


def _digest(keys: Sequence[str], names: Sequence[str], labels: bytes) -> str:
    digest = hashlib.sha256(labels)
    for text in itertools.chain(keys, [""], names):
        digest.update(text.encode(errors="replace") + b"\0")
    return digest.hexdigest()


def _units(run: Run, keys: Sequence[str]) -> list[str]:
    """Of each example what is drawn as a whole, as in the run's own intervals."""
    groups = read_groups(run.folder / "test") if run.answers is None and run.folder else None
    hops = run.recipe["task.hop_ms"] is not None
    label = run.recipe["evaluation.group_by"]
    if groups is None and label is not None:  # of a version that did not keep them
        groups = _read_named(run, label)
        names = [recording_of(key) if hops else key for key in keys]
        if unknown := [name for name in names if name not in groups]:
            raise UserError(
                f"the intervals of {run.place} are those of groups by {label}, and nothing tells the group of "
                f"{unknown[0]} any more; expected its test shards where they were"
            )
        return [groups[name] for name in names]
    if groups is None and hops:
        return [recording_of(key) for key in keys]
    return list(keys) if groups is None else [groups[key] for key in keys]


def _read_named(run: Run, label: str) -> dict[str, str]:
    """The groups of test recordings, from their shards."""
    sources = run.recipe["data.train"] if run.recipe["data.fold_by"] else run.recipe["data.test"]
    try:
        shards = find_shards(sources, run.recipe["data.cache"])
    except UserError as error:
        raise UserError(
            f"the intervals of {run.place} are those of groups by {label}, which are told by its test shards alone: "
            f"{error}"
        ) from error
    option = "evaluation.group_by"
    labels = read_asked_labels(shards, label, option, ShardCache(round(run.recipe["data.cache_gigabytes"] * 1e9)))
    names = one_name_each(labels, shards.samples, label, option)
    return {labels[row][0]: name for row, name in names.items()}
