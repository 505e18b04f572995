"""`ssamba pretrain`, `ssamba finetune` and `ssamba evaluate`."""

import argparse
from pathlib import Path
from typing import Any

from ssamba.config import FinetuneRecipe, PretrainRecipe, Recipe, load_recipe
from ssamba.errors import UserError
from ssamba.files import check_place
from ssamba.printable import printable
from ssamba.values import add_argument, path, path_text, plain_text, whole_number


def add(commands: Any) -> None:
    """Add the commands to a parser's."""
    for command in (pretrain, finetune, evaluate):
        sub = commands.add_parser(command.__name__, help=command.__doc__, description=command.__doc__)
        add_argument(
            sub, "recipe", path, metavar="RECIPE", help="a YAML file, or a run folder for the recipe.yaml in it"
        )
        sub.add_argument("overrides", nargs="*", metavar="key=value", help="changes to it: trainer.max_steps=1000")
        sub.add_argument("--overwrite", action="store_true", help="replace what an earlier run wrote there")
        if command is not evaluate:
            goes_on = (
                "go on with the run in this folder; auto: with that in run_dir, or start it if it has no checkpoint"
            )
            add_argument(sub, "--resume", _run_or_auto, metavar="RUN|auto", help=goes_on)
        if command is finetune:
            each = "a run for each fold, below run_dir, and a table of them: data.fold_by says of what"
            sub.add_argument("--folds", choices=("all",), help=each)
            seeds = "a run for each of so many seeds, from the recipe's on, below run_dir, and a table of them"
            add_argument(sub, "--seeds", whole_number, 1, 1000, metavar="N", help=seeds)
            address = "such runs are made by a Dask cluster, by its scheduler's address; default: one after another"
            add_argument(sub, "--cluster", plain_text, metavar="ADDRESS", help=address)
        sub.set_defaults(call=command)


def pretrain(arguments: argparse.Namespace) -> None:
    """Train an encoder on unlabelled clips; run_dir gets checkpoints, metrics, pictures and model/."""
    recipe = load_recipe(arguments.recipe, _overrides(arguments), "pretrain")
    assert isinstance(recipe, PretrainRecipe)
    from ssamba import train

    _print_run(train.pretrain(recipe, resume=arguments.resume, overwrite=arguments.overwrite), recipe)


def finetune(arguments: argparse.Namespace) -> None:
    """Train a classifier on labelled clips, from model.pretrained or from scratch; scored on data.test at the end."""
    recipe = load_recipe(arguments.recipe, _overrides(arguments), "finetune")
    assert isinstance(recipe, FinetuneRecipe)
    if arguments.folds or arguments.seeds or arguments.cluster:
        return _finetune_members(recipe, arguments)
    from ssamba import train

    _print_run(train.finetune(recipe, resume=arguments.resume, overwrite=arguments.overwrite), recipe)


def _finetune_members(recipe: FinetuneRecipe, arguments: argparse.Namespace) -> None:
    if not (arguments.folds or arguments.seeds):
        raise UserError("--cluster is for the runs of --folds all or --seeds N; give one of them")
    if arguments.folds and (recipe.data.fold_by is None or recipe.data.fold is not None):
        raise UserError(
            f"--folds all takes each name of data.fold_by, which is {recipe.data.fold_by or 'null'}, and data.fold is "
            f"{recipe.data.fold or 'null'}; expected a label such as data.fold_by=speaker, and no data.fold"
        )
    from ssamba.evaluation.tables import markdown_table
    from ssamba.protocols.many import finetune_members

    tables = finetune_members(
        recipe,
        folds=arguments.folds is not None,
        seeds=arguments.seeds or 1,
        resume=arguments.resume is not None,
        overwrite=arguments.overwrite,
        address=arguments.cluster,
    )
    print("\n\n".join(map(markdown_table, tables)))
    print(f"written to {printable(recipe.run_dir)}")


def _overrides(arguments: argparse.Namespace) -> list[str]:
    """With the run that is to go on as run_dir."""
    named = [] if arguments.resume in (None, "auto") else [f"run_dir={arguments.resume}"]
    return [*arguments.overrides, *named]


def _print_run(run: Any, recipe: Recipe) -> None:
    """Print a finished run's results, on the first rank."""
    from ssamba.evaluation.report import exported_text, watched

    place, record = printable(str(run.folder)), run.record
    if not run.trained:
        early, larger = "", "trainer.max_steps"
        if record["steps"] < recipe.trainer.max_steps:
            early, larger = f", after {run.stale} validations without a better score", "trainer.patience"
        print(f"the run in {place} is finished: {record['steps']} steps{early}. A larger {larger} goes on with it")
    elif record:
        print(f"model: {exported_text(record['exported'])}")
        _print_scores(record["test"] or watched(record["last_metrics"]), run.folder)
        for name, value in record.get("baseline", {}).get("scores", {}).items():
            if name in ("accuracy", "mAP"):
                print(f"log-mel baseline, {name}: {value:.4f}")


def evaluate(arguments: argparse.Namespace) -> None:
    """Score a finished run on the recipe's test split (a pretrained one on its validation split)."""
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    out = Path(recipe.run_dir) / "evaluation"
    if out.exists() and not arguments.overwrite:
        raise UserError(f"{out} exists; --overwrite replaces the scores in it")
    check_place(out)
    from ssamba.build.evaluation import build_masked_evaluation
    from ssamba.evaluation.report import write_evaluation_report
    from ssamba.evaluation.scores import write_masked_scores
    from ssamba.protocols.finetuned import evaluate_finetuned
    from ssamba.training.runs import RunLock, command_record

    run = Path(recipe.run_dir)
    with RunLock(run):
        if isinstance(recipe, PretrainRecipe):
            scores = write_masked_scores(out, build_masked_evaluation(recipe))
            write_evaluation_report(out, run, scores, {}, command_record())
        else:
            scores = evaluate_finetuned(recipe, out)
    _print_scores(scores, out)


def _print_scores(scores: dict[str, Any], folder: Path) -> None:
    from ssamba.evaluation.report import score_text

    for name in scores:
        if not name.endswith(("_low", "_high")):  # the ends of an interval, which stand beside its score
            print(f"{name}: {score_text(scores, name)}")
    print(f"written to {printable(str(folder))}")


def _run_or_auto(text: str) -> str:
    return text if text == "auto" else path_text(text)
