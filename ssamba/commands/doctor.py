"""`ssamba doctor`."""

import argparse
import logging
from typing import Any

from ssamba.files import check_out
from ssamba.printable import printable
from ssamba.values import add_argument, new_path

EPILOG = """
exit status:
  0; 1 if something that should work does not, each with what to do about it; 2 for a mistake in the arguments."""


def add(commands: Any) -> None:
    """Add the command to a parser's."""
    sub = commands.add_parser(
        "doctor",
        help=doctor.__doc__,
        description=doctor.__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_argument(sub, "--json", new_path, metavar="FILE", help="also write everything as JSON")
    sub.add_argument("--overwrite", action="store_true", help="replace FILE")
    sub.set_defaults(call=doctor)


def doctor(arguments: argparse.Namespace) -> int:
    """Say what works on this machine: versions, devices, kernels, decoders, storage, two steps of training."""
    if arguments.json:
        check_out(arguments.json, arguments.overwrite)
    from ssamba.doctor import report
    from ssamba.files import write_json

    logging.getLogger("ssamba").setLevel(logging.WARNING)  # which backend is taken, say, is in the findings
    findings = report.examine(report.CHECKS)
    print(report.as_text(findings))
    if arguments.json:
        write_json(arguments.json, report.as_json(findings))
        print(f"written to {printable(str(arguments.json))}")
    return 1 if report.problems(findings) else 0
