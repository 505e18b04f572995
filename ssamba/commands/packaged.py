"""`ssamba prepare`, `ssamba recipes`, `ssamba demo`: what comes with the package, wherever it is installed."""

import argparse
import difflib
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ssamba.errors import UserError
from ssamba.packaged import first_line, packaged, preparations, recipe_files
from ssamba.parts import OWN, load_main, names, parts
from ssamba.printable import printable
from ssamba.values import add_argument, new_path, number, path, plain_text


def add(commands: Any) -> None:
    """Add the commands to a parser's."""
    _add_prepare(commands)
    _add_recipes(commands)
    _add_demo(commands)


def _add_prepare(commands: Any) -> None:
    sub = commands.add_parser(
        "prepare",
        help=prepare.__doc__,
        description=prepare.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Without NAME: what there is. `ssamba prepare NAME --help` says what a data set needs.",
    )
    kinds = "a data set, or folder, listed, huggingface, lhotse"
    add_argument(sub, "name", plain_text, nargs="?", metavar="NAME", help=kinds)
    add_argument(sub, "rest", plain_text, nargs=argparse.REMAINDER, metavar="ARGUMENT", help="of its script")
    sub.set_defaults(call=prepare)


def prepare(arguments: argparse.Namespace) -> int:
    """Make shards of a data set, of a folder, of lists: the scripts of data_prep, and those of other packages."""
    if arguments.name is None:
        _list_preparations()
        return 0
    main = load_main(_known(arguments.name, names("data set"), "data set", "ssamba prepare"))
    before = sys.argv
    sys.argv = [f"ssamba prepare {arguments.name}"]  # the program's name in its messages
    try:
        status = main(arguments.rest)
    except SystemExit as end:  # of argparse, after --help or a wrong argument
        return end.code if isinstance(end.code, int) else 0
    finally:
        sys.argv = before
    return status


def _list_preparations() -> None:
    """Print every name: of a script the first line of its docstring, of a part of another package, which is not
    imported for this, the package."""
    scripts = preparations()
    width = max(map(len, names("data set")))
    for name, candidates in parts("data set").items():
        for part in candidates:
            description = first_line(scripts[name]) if part.package == OWN else f"of the package {part.package}"
            print(printable(f"{name:{width}}  {description}"))


def _add_recipes(commands: Any) -> None:
    sub = commands.add_parser("recipes", help=recipes.__doc__, description=recipes.__doc__)
    actions = sub.add_subparsers(title="actions", required=True, metavar="ACTION")
    listed = actions.add_parser("list", help=list_recipes.__doc__, description=list_recipes.__doc__)
    listed.set_defaults(call=list_recipes)
    shown = actions.add_parser("show", help=show_recipe.__doc__, description=show_recipe.__doc__)
    add_argument(shown, "name", plain_text, metavar="NAME", help="as `ssamba recipes list` has it")
    shown.set_defaults(call=show_recipe)
    copied = actions.add_parser("copy", help=copy_recipe.__doc__, description=copy_recipe.__doc__)
    add_argument(copied, "name", plain_text, metavar="NAME", help="as `ssamba recipes list` has it")
    add_argument(copied, "to", new_path, nargs="?", metavar="TO", help="a file; default: recipes/NAME.yaml, here")
    copied.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    copied.set_defaults(call=copy_recipe)


def recipes() -> None:
    """List, show and copy the recipes that come with the package."""


def list_recipes(arguments: argparse.Namespace) -> None:
    """Print the names of all recipes, with what they say of themselves."""
    files = recipe_files()
    width = max(map(len, files))
    print("\n".join(f"{name:{width}}  {_first_comment(file)}" for name, file in files.items()))


def _first_comment(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    return next((line.lstrip("# ") for line in lines if line.startswith("# ")), "")


def show_recipe(arguments: argparse.Namespace) -> None:
    """Print a recipe."""
    files = recipe_files()
    print(files[_known(arguments.name, files, "recipe", "ssamba recipes list")].read_text(encoding="utf-8"), end="")


def copy_recipe(arguments: argparse.Namespace) -> None:
    """Copy a recipe, to be changed, and to be run as its comment says."""
    from ssamba.files import written_beside

    files = recipe_files()
    source = files[_known(arguments.name, files, "recipe", "ssamba recipes list")]
    target = arguments.to or Path("recipes") / source.relative_to(packaged("recipes"))
    if target.exists() and not arguments.overwrite:
        raise UserError(f"{target} exists; expected a new file, or --overwrite")
    target.parent.mkdir(parents=True, exist_ok=True)
    with written_beside(target) as beside:
        shutil.copy(source, beside)
    print(f"written to {target}")


def _known(name: str, names: Iterable[str], what: str, command: str) -> str:
    names = list(names)
    if name in names:
        return name
    near = difflib.get_close_matches(name, names, 1)
    hint = f"did you mean {near[0]}?" if near else f"`{command}` lists them"
    raise UserError(f"{name} is no {what} here; {hint}")


def _add_demo(commands: Any) -> None:
    sub = commands.add_parser("demo", help=demo.__doc__, description=demo.__doc__)
    of = "recordings: label/name.wav, or FSDD's; default: a synthesizer speaks some"
    add_argument(sub, "--data", path, metavar="FOLDER", help=of)
    add_argument(sub, "--out", new_path, default=Path("demo"), help="replaced if it is an earlier demo; default: demo")
    add_argument(sub, "--scale", number, 1e-4, 1e4, default=1.0, help="of the numbers of steps; default: 1")
    sub.set_defaults(call=demo)


def demo(arguments: argparse.Namespace) -> None:
    """Go the whole road on a small corpus: shards, pretraining, two tasks, one table and a page."""
    from ssamba.demo import run_demo

    run_demo(arguments.data, arguments.out, arguments.scale)
