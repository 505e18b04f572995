"""Fine-tuning of every fold and seed of a recipe by one command: a run folder each, then a table of all."""

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ssamba.build.labels import build_groups, build_labels, build_rows, check_labels, read_folds
from ssamba.build.shards import build_shards
from ssamba.config import FinetuneRecipe, save_recipe
from ssamba.data.labels import all_folds
from ssamba.errors import UserError
from ssamba.evaluation.intervals import Scored
from ssamba.evaluation.pages import Section, Table, Text, write_report
from ssamba.evaluation.report import fact_rows, recipe_section
from ssamba.evaluation.scores import flat_scores, groups_by_key, read_scores
from ssamba.files import check_place, write_json
from ssamba.jobs import cluster, run_jobs
from ssamba.models.record import RECORD_NAME, read_record
from ssamba.protocols.finetuned import BASELINE
from ssamba.protocols.processes import Work, make_run, only_runs_below, signals_handed_on, stopped, was_stopped
from ssamba.protocols.summary import Member, Rows, member_folder, member_rows, summarise, summary_rows
from ssamba.training.runs import command_record

MEMBERS_NAME = "members.json"
"""In run_dir: the folders of the runs, their folds and seeds, and in the end their mean scores."""


class Run(NamedTuple):
    """One of the runs: its recipe's file, its folder, and what it is of."""

    recipe: str
    folder: str
    fold: str
    seed: int


def finetune_members(
    recipe: FinetuneRecipe, *, folds: bool, seeds: int, resume: bool, overwrite: bool, address: str | None
) -> list[Rows]:
    """Train and score every fold of data.fold_by (or that of data.fold) with every seed from the recipe's on.

    Each is a run folder below run_dir, made by a process of its own, one after another or by the workers of a Dask
    cluster, which must see the same files. Runs that are finished are not made again.

    Args:
        resume: run_dir may hold some of them.
        overwrite: run_dir may hold others, which go.
        address: of a cluster's scheduler.

    Returns:
        A table of the runs, and one of their mean scores with intervals; run_dir has them in a report.

    Raises:
        UserError: whatever is wrong with a fold, before the first is trained; or one that failed.
        Stopped: a signal asked for it.
    """
    if not (recipe.data.test or recipe.data.fold_by):
        raise UserError("there is nothing to score: data.test is empty and data.fold_by null")
    if recipe.task.loss == "ctc":
        raise UserError("folds and seeds are of classifiers; task.loss is ctc, whose runs are scored one by one")
    shards = build_shards(recipe)
    names, by = [recipe.data.fold or ""], recipe.data.fold_by
    if folds and by:
        of = read_folds(recipe, shards.indexed)
        names = all_folds(of, shards.indexed.label_list(by), f"data.fold_by {by}", "data.fold=NAME, without --folds")
    root = Path(recipe.run_dir)
    _check_root(root, resume, overwrite)
    variants: list[FinetuneRecipe] = []
    for fold in names:
        for seed in range(recipe.seed, recipe.seed + seeds):
            place = root / member_folder(fold, seed, len(names), seeds)
            data = dataclasses.replace(recipe.data, fold=fold or None)
            wandb = dataclasses.replace(recipe.wandb, group=recipe.wandb.group or root.resolve().name)
            variants.append(dataclasses.replace(recipe, run_dir=str(place), seed=seed, data=data, wandb=wandb))
    for variant in variants:
        if variant.seed == recipe.seed or recipe.data.label_fraction < 1:
            check_labels(variant, shards, build_labels(variant, shards), build_rows(variant, shards))
    if len(variants) == 1:
        raise UserError("there is one fold and one seed; expected several, or no --folds and --seeds")
    groups = build_groups(recipe, shards.test)
    if overwrite and root.exists():
        shutil.rmtree(root)
    runs = [_prepared(variant, root, len(names), seeds) for variant in variants]
    content = {**command_record(), "runs": [run._asdict() for run in runs]}
    write_json(root / MEMBERS_NAME, content)
    again = f"ssamba finetune ... run_dir={root} --resume auto goes on with the runs that are left"
    with _executor(address) as executor, only_runs_below(root), signals_handed_on():
        for run, status in run_jobs(train_run, runs, executor):
            if was_stopped(status):
                raise stopped(status, f"the run in {run.folder} was stopped; {again}")
            if status:
                raise UserError(f"the run in {run.folder} failed, as it says above; {again}")
    return _collected(root, runs, groups, content, None if recipe.hop_frames is None else recipe.hop_frames / 100)


def _check_root(root: Path, resume: bool, overwrite: bool) -> None:
    check_place(root)
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return
    if not (root / MEMBERS_NAME).is_file():
        raise UserError(
            f"{root} exists and has no {MEMBERS_NAME}, so it is none of folds or seeds; give another run_dir"
        )
    if not (resume or overwrite):
        raise UserError(f"{root} holds such runs; --resume auto goes on with them, --overwrite replaces them")


def _prepared(variant: FinetuneRecipe, root: Path, folds: int, seeds: int) -> Run:
    fold, place = variant.data.fold or "", Path(variant.run_dir)
    name = member_folder(fold, variant.seed, folds, seeds).replace("/", "_")
    path = root / "recipes" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_recipe(variant, path)
    # Absolute, for the workers of a cluster.
    return Run(str(path.absolute()), str(place.absolute()), fold, variant.seed)


@contextmanager
def _executor(address: str | None) -> Iterator[Executor | None]:
    if address is None:
        yield None
        return
    with cluster(address) as executor:
        yield executor


def train_run(run: Run) -> int:
    """Make a run by a process of its own, or go on with it; the status that it ends with."""
    return make_run(Work("finetune", run.recipe))


def _collected(
    root: Path, runs: Sequence[Run], groups: Mapping[str, str] | None, content: dict[str, Any], hop: float | None
) -> list[Rows]:
    members = []
    for run in runs:
        folder, record = Path(run.folder), read_record(Path(run.folder) / RECORD_NAME)
        baseline = Scored(read_scores(folder / BASELINE)[0], run.fold) if (folder / BASELINE).is_dir() else None
        duration = f"{record['training_seconds']:.0f} s"
        members.append(
            Member(run.fold, run.seed, Scored(read_scores(folder / "test")[0], run.fold), baseline, duration)
        )
    keys = [key for member in members for key in member.scored.predictions.keys]
    summary = summarise(members, groups_by_key(keys, groups, hop))
    scores = {kind: flat_scores(intervals) for kind, intervals in summary.items()}
    write_json(root / MEMBERS_NAME, {**content, "scores": scores})
    tables = [member_rows(members, "training"), summary_rows(summary, {"model": "mean of all"})]
    explanation = (
        "In brackets: 95 % bootstrap intervals over the recordings, the seeds and the folds. Each run has a report in "
        "its own folder."
    )
    sections = [
        Section("Scores", [Table(tables[1]), Text(explanation)]),
        Section("Folds and seeds", [Table(tables[0])]),
        Section("How it was made", [Table(fact_rows(content))]),
        *recipe_section(Path(runs[0].recipe)),
    ]
    write_report(root, f"Runs of {root.resolve().name}", sections)
    return tables
