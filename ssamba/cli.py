"""The `ssamba` command."""

import argparse
import errno
import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from ssamba.commands import (
    bench,
    compare,
    doctor,
    inference,
    models,
    packaged,
    protocols,
    shards,
    sweep,
    tasks,
    training,
)
from ssamba.errors import Stopped, UserError
from ssamba.launch import rank
from ssamba.printable import log_to_stderr
from ssamba.shell import ENOUGH, is_of_stdout, message_of, name_stdout

_DEFER_SECONDS = 10.0  # seconds; Lightning looks after its processes every 5
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ssamba", description="Self-supervised audio pretraining with bidirectional state space models."
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for area in (training, sweep, protocols, compare, inference, tasks, packaged, shards, models, bench, doctor):
        area.add(commands)
    return parser


def _version() -> str:
    from importlib import metadata

    return metadata.version("ssamba")


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """The program: `main`, with whose status the process ends."""
    status = main(argv)
    if "ssamba.training.distributed" in sys.modules:
        from ssamba.training.distributed import end_rank

        end_rank(status)
    sys.exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; 0 or the command's own status, or 2 after the message of a mistake that the user can mend."""
    if sys.stderr is None:  # closed
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    later_rank = False
    try:
        later_rank = rank() > 0
        status = _run(argv, logging.WARNING if later_rank else logging.INFO)
        sys.stdout.flush()
        return status
    except Stopped as stop:
        if str(stop):
            _say(str(stop))
        return stop.status
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except UserError as error:
        _defer_to_other_ranks(later_rank)
        _say(str(error))
    except (OSError, MemoryError) as error:
        of_stdout = is_of_stdout(error)
        if of_stdout and isinstance(error, BrokenPipeError):
            return ENOUGH
        _defer_to_other_ranks(_is_distributed())
        room = isinstance(error, OSError) and error.errno in _NO_ROOM and not of_stdout
        _say(message_of(error) + ("; make room, and go on with --resume if it was training" if room else ""))
    except Exception:
        _defer_to_other_ranks(_is_distributed())
        raise
    return 2


def _run(argv: Sequence[str] | None, level: int) -> int:
    name_stdout()
    log_to_stderr("%(levelname)s %(name)s: %(message)s", logging.WARNING)
    logging.getLogger("ssamba").setLevel(level)
    parser = build_parser()
    arguments, rest = parser.parse_known_args(argv)
    # Overrides may stand after an option, too, where argparse does not look for them.
    if any(text.startswith("-") or not hasattr(arguments, "overrides") for text in rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    status: int | None = arguments.call(arguments)
    return status or 0


def _say(message: str) -> None:
    print(f"ssamba: {message}", file=sys.stderr)


def _is_distributed() -> bool:
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_initialized() and distributed.get_world_size() > 1


def _defer_to_other_ranks(distributed: bool) -> None:
    """Wait before this rank reports an error. Either all ranks have it, and the first one reports it, or another rank
    failed and this one lost its connection: the launcher ends this process meanwhile, and there is one message in
    all."""
    if distributed:
        time.sleep(_DEFER_SECONDS)
