"""`ssamba compare`."""

import argparse
from typing import Any

from ssamba.errors import UserError
from ssamba.printable import printable
from ssamba.values import add_argument, new_path, path, plain_text

_EPILOG = """
what is compared:
  Runs that differ in nothing but their seed (and fold) are one group, whose scores are means. What else differs is of
  one of three kinds, and docs/comparing.md has every key:
  conditions   the same for all runs, or the command ends with status 2 and says in what they differ; --allow admits a
               condition by its key or all of its kind, and the table has a column for it:
               data          data.train, data.validation, data.test (by what they hold), data.weights,
                             data.label_fraction, audio.sampling_rate
               split         data.fold_by, and the folds that there are runs of
               budget        trainer.max_steps, trainer.patience, trainer.validate_every_steps, data.batch_size,
                             audio.max_length
               statistics    audio.mean and audio.std, but for 5 % of audio.std
               intervals     evaluation.group_by
               pretraining   those of the run that the weights come from, such as pretraining.trainer.max_steps, where
                             it is known
  treatments   everything else: encoder, size, pool, pretrained or not, learning rate, augmentation, ...: what tells
               the groups apart
  passed over  run_dir, loggers, devices, workers, caches, the scan's backend
  task_type, task.label, task.loss and task.hop_ms are the same in any case.

differences:
  Of each pair of groups, by the same bootstrap resamples of examples (of groups of recordings, where the runs'
  intervals are of those) and by what seeds and folds vary; corrected for the number of pairs (Holm). What is not
  significant is not called a difference; of one run in a group it is said of that run alone.

files of --out:
  comparison.html (one file with everything in it: losses, scores by cost, confusion, examples that one group gets right
  and another wrong, to be heard), comparison.md, comparison.csv, comparison-pairs.csv, comparison.tex,
  comparison.json, pictures/."""


def add(commands: Any) -> None:
    """Add the command to a parser's."""
    sub = commands.add_parser(
        "compare",
        help=compare.__doc__,
        description=compare.__doc__,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = "a run folder, or a folder of such, as `finetune --seeds` makes one"
    add_argument(sub, "runs", path, nargs="*", metavar="RUN", help=where)
    add_argument(sub, "--out", new_path, metavar="FOLDER", help="a new folder for tables, pictures and the page")
    names = "conditions, or kinds of them, that may differ (behind the runs)"
    add_argument(sub, "--allow", plain_text, nargs="+", action="extend", default=[], metavar="NAME", help=names)
    logs = "of runs that Weights & Biases logged offline: wandb/, or a folder above several"
    add_argument(sub, "--wandb-dir", path, metavar="DIR", help=logs)
    add_argument(sub, "--group", plain_text, metavar="NAME", help="of --wandb-dir the runs of this group alone")
    sub.add_argument("--overwrite", action="store_true", help="replace what this command wrote there")
    sub.set_defaults(call=compare)


def compare(arguments: argparse.Namespace) -> None:
    """Put finished runs side by side: scores with intervals, which differences are some, costs, and a page."""
    _check(arguments)
    from ssamba.comparison.compare import compare_runs
    from ssamba.comparison.page import write_comparison
    from ssamba.comparison.runs import find_runs
    from ssamba.comparison.wandb_logs import find_logs
    from ssamba.training.runs import command_record

    runs, passed_over = find_runs(arguments.runs) if arguments.runs else ([], [])
    if arguments.wandb_dir:
        logged, passed = find_logs(arguments.wandb_dir, arguments.group)
        known = {run.folder.resolve() for run in runs if run.folder}
        runs += [run for run in logged if run.folder is None or run.folder.resolve() not in known]
        passed_over += passed
    comparison = compare_runs(runs, arguments.allow, passed_over)
    print_comparison(comparison)
    if arguments.out:
        write_comparison(arguments.out, comparison, command_record())
        print(f"written to {printable(str(arguments.out))}")


def print_comparison(comparison: Any) -> None:
    """Print a `Comparison`'s tables, with what is to be said of them."""
    from ssamba.comparison.page import COST_TEXT, pair_text, score_text
    from ssamba.comparison.tables import cost_rows, pair_rows, score_rows
    from ssamba.evaluation.tables import markdown_table

    parts = [
        markdown_table(score_rows(comparison)),
        score_text(comparison),
        *map(printable, comparison.notes),
        markdown_table(pair_rows(comparison)),
        pair_text(comparison),
        markdown_table(cost_rows(comparison)),
        COST_TEXT,
    ]
    print("\n\n".join(parts))


def _check(arguments: argparse.Namespace) -> None:
    """UserError for arguments that do not go together."""
    from ssamba.commands.protocols import check_folder
    from ssamba.comparison.conditions import check_names

    if not arguments.runs and not arguments.wandb_dir:
        raise UserError("there is nothing to compare; expected run folders, or --wandb-dir DIR")
    if arguments.group and not arguments.wandb_dir:
        raise UserError("--group is of the runs of --wandb-dir, which is not given")
    if arguments.overwrite and not arguments.out:
        raise UserError("--overwrite is for --out FOLDER, which is not given")
    check_names(arguments.allow)
    if arguments.out:
        check_folder(arguments.out, arguments.overwrite, "comparison.json")
