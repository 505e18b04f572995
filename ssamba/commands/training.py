"""`ssamba pretrain`, `ssamba finetune` and `ssamba evaluate`."""

import argparse
from pathlib import Path
from typing import Any

from ssamba.config import FinetuneRecipe, PretrainRecipe, Recipe, load_recipe
from ssamba.errors import UserError
from ssamba.files import check_place
from ssamba.launch import check_launch
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
            several = "a run for each of so many seeds, from the recipe's on, below run_dir, and a table of them"
            add_argument(sub, "--seeds", whole_number, 1, 1000, metavar="N", help=several)
            address = "such runs are made by a Dask cluster, by its scheduler's address; default: one after another"
            add_argument(sub, "--cluster", plain_text, metavar="ADDRESS", help=address)
        sub.set_defaults(call=command)


def pretrain(arguments: argparse.Namespace) -> None:
    """Train an encoder on unlabelled clips; run_dir gets checkpoints, metrics, pictures and model/."""
    recipe = load_recipe(arguments.recipe, _overrides(arguments), "pretrain")
    assert isinstance(recipe, PretrainRecipe)
    from ssamba.build import build_pretrainer, find_start
    from ssamba.models.checkpoint import save_model
    from ssamba.training.runs import RunLock

    check_launch(recipe.trainer.devices, recipe.trainer.num_nodes)
    folder = Path(recipe.run_dir)
    check_place(folder)
    with RunLock(folder) as lock:
        start = find_start(recipe, arguments.resume, arguments.overwrite)
        if _already_finished(recipe, start):
            return
        built = build_pretrainer(recipe)
        trainer, checkpoints, weights, skipped = _train(recipe, built, start, arguments, lock)
        if trainer.global_rank == 0:
            save_model(folder / "model", built.module.model, built.audio, weights=weights)
            _finish(folder, trainer, checkpoints, skipped, {}, {})


def finetune(arguments: argparse.Namespace) -> None:
    """Train a classifier on labelled clips, from model.pretrained or from scratch; scored on data.test at the end."""
    recipe = load_recipe(arguments.recipe, _overrides(arguments), "finetune")
    assert isinstance(recipe, FinetuneRecipe)
    if arguments.folds or arguments.seeds or arguments.cluster:
        return _finetune_members(recipe, arguments)
    from ssamba.build import build_finetuner, find_start
    from ssamba.models.checkpoint import save_model
    from ssamba.protocols.finetuned import score_finetuned
    from ssamba.training.runs import RunLock

    check_launch(recipe.trainer.devices, recipe.trainer.num_nodes)
    folder = Path(recipe.run_dir)
    check_place(folder)
    with RunLock(folder) as lock:
        start = find_start(recipe, arguments.resume, arguments.overwrite)
        if _already_finished(recipe, start):
            return
        built = build_finetuner(recipe)
        trainer, checkpoints, weights, skipped = _train(recipe, built, start, arguments, lock)
        if trainer.global_rank == 0:
            save_model(folder / "model", built.module.model, built.audio, built.classifier, weights)
            scores, more = score_finetuned(recipe, built, folder) if built.shards.test else ({}, {})
            _finish(folder, trainer, checkpoints, skipped, scores, more)


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
        recipe, folds=arguments.folds is not None, seeds=arguments.seeds or 1, resume=arguments.resume is not None,
        overwrite=arguments.overwrite, address=arguments.cluster,
    )  # fmt: skip
    print("\n\n".join(map(markdown_table, tables)))
    print(f"written to {printable(recipe.run_dir)}")


def _overrides(arguments: argparse.Namespace) -> list[str]:
    """With the run that is to go on as run_dir."""
    named = [] if arguments.resume in (None, "auto") else [f"run_dir={arguments.resume}"]
    return [*arguments.overrides, *named]


def _already_finished(recipe: Recipe, start: Any) -> bool:
    from ssamba.build import is_finished

    if not is_finished(recipe, start):
        return False
    place = printable(recipe.run_dir)
    early, larger = "", "trainer.max_steps"
    if start.step < recipe.trainer.max_steps:
        early, larger = f", after {start.run['stale']} validations without a better score", "trainer.patience"
    print(f"the run in {place} is finished: {start.step} steps{early}. A larger {larger} goes on with it")
    return True


def _train(recipe: Recipe, built: Any, start: Any, arguments: argparse.Namespace,
           lock: Any) -> tuple[Any, Any, Any, Any]:  # fmt: skip
    """Make the run folder and train: the trainer, its checkpoints, the weights that are exported on the first rank, and
    the samples that were skipped. From here on the ranks are by themselves."""
    from ssamba.build import build_trainer, start_run
    from ssamba.training.callbacks import SkippedSamples
    from ssamba.training.distributed import part_at_exit
    from ssamba.training.runs import fit

    skipped = SkippedSamples()
    trainer, checkpoints = build_trainer(recipe, built.data, skipped, start)
    checkpoints.record = start_run(recipe, built, start, arguments.overwrite or arguments.resume is not None, lock)
    fit(trainer, built.module, built.data, start and start.path, checkpoints)
    weights, checkpoints.record["exported"] = checkpoints.trained_weights(trainer)
    part_at_exit()
    return trainer, checkpoints, weights, skipped


def _finish(folder: Path, trainer: Any, checkpoints: Any, skipped: Any, scores: dict[str, Any],
            more: dict[str, Any]) -> None:  # fmt: skip
    """Write run.json, with `more` in it, the curves and the report, and print the scores."""
    from ssamba.evaluation.pictures import draw_curves
    from ssamba.evaluation.report import exported_text, watched, write_run_report
    from ssamba.files import write_json
    from ssamba.models.record import RECORD_NAME
    from ssamba.training.runs import peak_memory_bytes

    values = checkpoints.metrics
    record = {
        **checkpoints.record,
        "steps": trainer.global_step,
        "training_seconds": round(checkpoints.seconds, 1),
        "stopped_early": checkpoints.stopped_early if trainer.global_step < trainer.max_steps else None,
        "peak_memory_bytes": peak_memory_bytes(),
        "last_metrics": values,
        "test": scores,
        **more,
        "skipped_samples": list(skipped.names),
    }
    draw_curves(folder / "pictures" / "curves.png", folder / "metrics.csv", folder.name)
    write_run_report(folder, record)
    write_json(folder / RECORD_NAME, record)
    print(f"model: {exported_text(record['exported'])}")
    _print_scores(scores or watched(values), folder)
    if "baseline" in more:
        for name, value in more["baseline"]["scores"].items():
            if name in ("accuracy", "mAP"):
                print(f"log-mel baseline, {name}: {value:.4f}")


def evaluate(arguments: argparse.Namespace) -> None:
    """Score a finished run on the recipe's test split (a pretrained one on its validation split)."""
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    out = Path(recipe.run_dir) / "evaluation"
    if out.exists() and not arguments.overwrite:
        raise UserError(f"{out} exists; --overwrite replaces the scores in it")
    check_place(out)
    from ssamba.build import build_masked_evaluation
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
