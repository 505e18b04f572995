"""Sweeps: every point a run folder, made in processes, and a comparison of them all."""

import logging
import os
import queue
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ssamba.build.labels import build_labels, build_rows, check_labels
from ssamba.build.models import check_machine
from ssamba.build.shards import build_shards
from ssamba.comparison.compare import Comparison, compare_runs
from ssamba.comparison.conditions import CONDITIONS, PRETRAINING, kind_of
from ssamba.comparison.page import write_comparison
from ssamba.comparison.runs import find_runs
from ssamba.config import FinetuneRecipe, Recipe, save_recipe
from ssamba.errors import UserError
from ssamba.files import check_place, read_json, write_json, write_text
from ssamba.jobs import cluster, run_jobs, usable_cores
from ssamba.models.record import RECORD_NAME, read_record
from ssamba.progress import progress_bar
from ssamba.protocols.processes import Work, make_run, only_runs_below, signals_handed_on, stopped, was_stopped
from ssamba.sweep import Point, Sweep
from ssamba.training.runs import command_record

log = logging.getLogger(__name__)

SWEEP_NAME = "sweep.json"
"""In run_dir: the points, what their budgets came to, and which of them failed."""

_TIMED_STEPS = (4, 20)  # of two runs, whose difference is free of how long a start takes


def prepare_sweep(sweep: Sweep, *, resume: bool, overwrite: bool) -> dict[Point, Path]:
    """Check data, machine and labels of all points, and write the recipe of each; no point is begun.

    recipes/pretrain.txt and recipes/finetune.txt of run_dir have the files' names, one a line, for job arrays.

    Args:
        resume: run_dir may hold some of the runs.
        overwrite: run_dir may hold another sweep, which goes.

    Returns:
        The file of each point's resolved recipe.

    Raises:
        UserError: whatever is wrong with one of them, before the first is trained.
    """
    root = Path(sweep.run_dir)
    _check_root(root, resume, overwrite)
    _check_data(sweep.recipes)
    if overwrite and root.exists():
        shutil.rmtree(root)
    root.mkdir(parents=True, exist_ok=True)
    with only_runs_below(root):
        timed = _timed_steps(sweep, root)
        paths = {}
        for point, recipe in sweep.recipes.items():
            steps = timed.get(point.without("seed"))
            path = (root / "recipes" / f"{point.name}.yaml").absolute()
            path.parent.mkdir(parents=True, exist_ok=True)
            save_recipe(sweep.load(point, f"trainer.max_steps={steps}") if steps else recipe, path)
            paths[point] = path
    for stage in sweep.stages:
        lines = [str(path) for point, path in paths.items() if point.stage == stage]
        write_text(root / "recipes" / f"{stage}.txt", "\n".join(lines) + "\n")
    return paths


def run_sweep(
    sweep: Sweep, *, jobs: int = 1, address: str | None = None, resume: bool = False, overwrite: bool = False
) -> list[Point]:
    """Make the runs of all points, those of pretraining first; what is finished is not made again.

    Args:
        jobs: runs at a time on this machine, each with its share of the threads, and of the GPUs if they go round.
        address: of a Dask cluster's scheduler, whose workers make the runs; they must see the same files.

    Returns:
        The points that failed, or whose pretraining did.

    Raises:
        UserError: as `prepare_sweep`.
        Stopped: a signal asked for it.
    """
    root = Path(sweep.run_dir)
    paths = prepare_sweep(sweep, resume=resume, overwrite=overwrite)
    record = {**command_record(), "budgets": _budgets(sweep), "points": _described(paths)}
    write_json(root / SWEEP_NAME, {**record, "failed": None})
    failed: list[Point] = []
    with _makers(jobs, address) as (make, executor), only_runs_below(root), signals_handed_on():
        for stage in sweep.stages:
            points = [point for point in sweep.points if point.stage == stage]
            failed += (without := [point for point in points if point.after in failed])
            logs = root.absolute() / "logs" if executor else None
            works = {
                Work(stage, str(paths[point]), str(logs / f"{point.name}.log") if logs else None): point
                for point in points
                if point not in without
            }
            failed += _made(stage, works, make, executor, root)
    write_json(root / SWEEP_NAME, {**record, "failed": [point.name for point in failed]})
    return failed


def compare_sweep(sweep: Sweep, failed: Sequence[Point]) -> Comparison | None:
    """Compare the fine-tuned runs that are finished, into run_dir/comparison; None where there is nothing to compare,
    which is told.

    What the sweep itself varies may differ, and the steps that a budget in clips or hours comes to.
    """
    root = Path(sweep.run_dir)
    points = [point for point in sweep.points if point.stage == "finetune"]
    if not points:
        log.warning(
            "there is no comparison: pretraining has no scores of examples; with a section finetune, a sweep compares "
            "what its runs are worth"
        )
        return None
    passed_over = [f"{point.name}, which failed" for point in points if point in failed]
    try:
        runs, passed = find_runs([root / point.name for point in points if point not in failed])
        comparison = compare_runs(runs, _varied(sweep), [*passed, *passed_over])
    except UserError as error:
        log.warning("there is no comparison: %s", error)
        return None
    write_comparison(root / "comparison", comparison, command_record())
    return comparison


def _varied(sweep: Sweep) -> list[str]:
    """The conditions of a comparison that differ between points because the sweep says so."""
    names = set()
    for stage, prefix in (("pretrain", f"{PRETRAINING}."), ("finetune", "")):
        if stage not in sweep.stages:
            continue
        keys = {key for point in sweep.points if point.stage == stage for key in point.overrides}
        budget = sweep.stages[stage].budget
        if budget is not None and budget.unit != "steps":
            keys.add("trainer.max_steps")
        names |= {f"{prefix}{key}" for key in keys}
    return sorted(name for name in names if kind_of(name) in (*CONDITIONS, PRETRAINING))


def _check_root(root: Path, resume: bool, overwrite: bool) -> None:
    check_place(root)
    if resume and overwrite:
        raise UserError("--resume goes on with a sweep and --overwrite replaces it; give one of them")
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return
    if not (root / SWEEP_NAME).is_file() and not (root / "recipes").is_dir():
        raise UserError(f"{root} exists and has no {SWEEP_NAME}, so it is no sweep's; give another run_dir")
    if not (resume or overwrite):
        raise UserError(f"{root} holds a sweep; --resume auto goes on with it, --overwrite replaces it")


def _check_data(recipes: Mapping[Point, Recipe]) -> None:
    """Whether the machine and the data are what the points need, each thing once."""
    checked = set()
    for point, recipe in recipes.items():
        check_machine(recipe)
        parts: tuple[Any, ...] = (recipe.data, recipe.audio)
        if isinstance(recipe, FinetuneRecipe):
            # The seed chooses the recordings whose labels are used.
            parts += (recipe.task, recipe.seed if recipe.data.label_fraction < 1 else None)
        if repr(parts) in checked:
            continue
        checked.add(repr(parts))
        try:
            shards = build_shards(recipe)
            if isinstance(recipe, FinetuneRecipe):
                check_labels(recipe, shards, build_labels(recipe, shards), build_rows(recipe, shards))
        except UserError as error:
            raise UserError(f"{point.name}: {error.args[0]}", *error.args[1:]) from error


# Budgets


def _budgets(sweep: Sweep) -> dict[str, dict[str, float] | None]:
    return {
        name: None if stage.budget is None else {stage.budget.unit: stage.budget.amount}
        for name, stage in sweep.stages.items()
    }


def _timed_steps(sweep: Sweep, root: Path) -> dict[Any, int]:
    """Of the points with a budget in hours: the steps that are as long, by the rate of a few of them, measured once for
    all seeds and kept."""
    steps: dict[Any, int] = {}
    kept = root / "recipes" / "steps.json"
    known = read_json(kept, dict[str, int], "the steps that a sweep measured") if kept.exists() else {}
    for point in sweep.points:
        budget = sweep.stages[point.stage].budget
        if budget is None or budget.unit != "hours" or point.without("seed") in steps:
            continue
        if point.name not in known:
            known[point.name] = max(1, round(budget.amount * 3600 / _seconds_a_step(sweep, point, root)))
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_json(kept, known)
        steps[point.without("seed")] = known[point.name]
    return steps


def _seconds_a_step(sweep: Sweep, point: Point, root: Path) -> float:
    """From the start that the point itself has: of fine-tuning without its pretrained weights, which cost no time."""
    log.info("%s: a few steps are timed", point.name)
    seconds = []
    for steps in _TIMED_STEPS:
        folder = root / "timing" / point.name / str(steps)
        more = ["model.pretrained=null"] if point.after else []
        recipe = sweep.load(
            point,
            *more,
            f"run_dir={folder}",
            f"trainer.max_steps={steps}",
            "optimizer.warmup_steps=0",
            "wandb.mode=off",
        )
        path = folder.with_suffix(".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_recipe(recipe, path)
        if status := make_run(Work(point.stage, str(path))):
            if was_stopped(status):
                raise stopped(status, f"the timing of {point.name} was stopped")
            raise UserError(f"{point.name} cannot be timed, as it says above; the sweep did not begin")
        seconds.append(read_record(folder / RECORD_NAME)["training_seconds"])
    shutil.rmtree(root / "timing")
    return float(max(1e-3, (seconds[1] - seconds[0]) / (_TIMED_STEPS[1] - _TIMED_STEPS[0])))


# Processes


def _described(paths: Mapping[Point, Path]) -> list[dict[str, Any]]:
    return [{"folder": point.name, "stage": point.stage, **point.values} for point in paths]


def _made(
    stage: str, works: Mapping[Work, Point], make: Callable[[Work], int], executor: Executor | None, root: Path
) -> list[Point]:
    """The points of the runs that failed."""
    failed = []
    for work in works:
        if work.log:
            Path(work.log).parent.mkdir(parents=True, exist_ok=True)
    with progress_bar(len(works), "run", f"sweep, {stage}", disable=not works) as bar:
        for work, status in run_jobs(make, works, executor):
            point = works[work]
            if was_stopped(status):
                again = f"ssamba sweep ... --resume auto goes on with {root}"
                raise stopped(status, f"the run in {root / point.name} was stopped; {again}")
            if status:
                where = f"{work.log} says why" if work.log else "as it says above"
                log.error("the run in %s failed; %s", root / point.name, where)
                failed.append(point)
            bar.update()
    return failed


@contextmanager
def _makers(jobs: int, address: str | None) -> Iterator[tuple[Callable[[Work], int], Executor | None]]:
    """What makes a run, and where."""
    if address is not None:
        with cluster(address) as executor:
            yield make_run, executor
    elif jobs == 1:
        yield make_run, None
    else:
        shares: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        for share in shares_of_machine(jobs, usable_cores(), gpus):
            shares.put(share)

        def make(work: Work) -> int:
            share = shares.get()
            try:
                return make_run(replace(work, environment={**os.environ, **share}))
            finally:
                shares.put(share)

        with ThreadPoolExecutor(jobs) as executor:
            yield make, executor


def shares_of_machine(jobs: int, cores: int, gpus: int) -> list[dict[str, str]]:
    """What each of several runs at a time has in its environment: its share of the cores as threads, and GPUs of its
    own where there are as many as runs; those that CUDA_VISIBLE_DEVICES leaves, by the names that it has for them."""
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name] or [*map(str, range(gpus))]
    each = gpus // jobs
    return [
        {
            "OMP_NUM_THREADS": str(max(1, cores // jobs)),
            **({"CUDA_VISIBLE_DEVICES": ",".join(names[job * each : (job + 1) * each])} if each else {}),
        }
        for job in range(jobs)
    ]
