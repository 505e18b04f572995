"""`ssamba sweep`."""

import argparse
from typing import Any

from ssamba.commands.compare import print_comparison
from ssamba.errors import UserError
from ssamba.printable import printable
from ssamba.sweep import read_sweep
from ssamba.values import add_argument, path, plain_text, whole_number

EPILOG = """
SWEEP is a YAML file: a pretraining recipe, a fine-tuning recipe or both, how long each of their runs trains, and a grid
over keys of theirs. recipes/sweep/ has some, and the opening of ssamba/sweep.py says what can be in it.

files of run_dir:
  pretrain/ and finetune/ with a run folder for each point, recipes/ with the recipe of each, sweep.json, logs/ of runs
  that were made side by side, and comparison/ as `ssamba compare` writes it.

job arrays:
  --prepare checks everything and writes recipes/pretrain.txt and recipes/finetune.txt, with a recipe a line, each of
  which `ssamba pretrain|finetune RECIPE --resume auto` makes: see recipes/slurm/sweep.sh. With --resume auto the sweep
  then finds them finished, and compares."""


def add(commands: Any) -> None:
    """Add the command to a parser's."""
    sub = commands.add_parser(
        "sweep",
        help=sweep.__doc__,
        description=sweep.__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_argument(sub, "sweep", path, metavar="SWEEP", help="a YAML file, see below")
    jobs = "runs at a time, each with its share of the threads and the GPUs; default: 1"
    add_argument(sub, "--jobs", whole_number, 1, 1024, metavar="N", help=jobs)
    address = "the runs are made by a Dask cluster, by its scheduler's address"
    add_argument(sub, "--cluster", plain_text, metavar="ADDRESS", help=address)
    sub.add_argument("--prepare", action="store_true", help="check all points and write their recipes; run none")
    sub.add_argument("--resume", choices=("auto",), help="go on with the runs in run_dir, or start them")
    sub.add_argument("--overwrite", action="store_true", help="replace the sweep in run_dir")
    sub.set_defaults(call=sweep)


def sweep(arguments: argparse.Namespace) -> int:
    """Make the runs of a grid over keys of recipes, and compare them."""
    if arguments.cluster and arguments.jobs:
        raise UserError("--jobs is of this machine and --cluster of another's; give one of them")
    asked = read_sweep(arguments.sweep)
    from ssamba.protocols.sweeping import compare_sweep, prepare_sweep, run_sweep

    resume = arguments.resume is not None
    if arguments.prepare:
        paths = prepare_sweep(asked, resume=resume, overwrite=arguments.overwrite)
        print(f"{len(paths)} recipes: written to {printable(asked.run_dir)}")
        return 0
    failed = run_sweep(
        asked, jobs=arguments.jobs or 1, address=arguments.cluster, resume=resume, overwrite=arguments.overwrite
    )
    comparison = compare_sweep(asked, failed)
    if comparison is not None:
        print_comparison(comparison)
    for point in failed:
        print(f"failed: {printable(point.name)}")
    print(f"{len(asked.points) - len(failed)} runs: written to {printable(asked.run_dir)}")
    return 1 if failed else 0
