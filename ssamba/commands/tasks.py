"""`ssamba tasks`."""

import argparse
from typing import Any


def add(commands: Any) -> None:
    """Add the command to a parser's."""
    sub = commands.add_parser("tasks", help=tasks.__doc__, description=tasks.__doc__)
    sub.set_defaults(call=tasks)


def tasks(arguments: argparse.Namespace) -> None:
    """Print the table of tasks: data sets, how they are prepared, recipes, protocols and published figures."""
    from ssamba.evaluation.tables import markdown_table
    from ssamba.tasks import HEADER, INTRODUCTION, TASKS

    print(f"{INTRODUCTION}\n{markdown_table([HEADER, *TASKS])}")
