"""What a program of the command line says of what the system refuses, its own stdout among it. Imports no torch."""

import io
import os
import sys
from collections.abc import Callable
from typing import Any

from ssamba.errors import UserError
from ssamba.printable import printable

_STDOUT = "stdout"
ENOUGH = 141
"""The status of a program whose output nobody reads any more, as `| head` does not."""


class _Stdout(io.FileIO):
    """stdout, of which it is said what cannot be written to it."""

    def write(self, content: Any, /) -> int:
        try:
            return super().write(content)
        except OSError as error:
            raise OSError(error.errno, error.strerror, _STDOUT) from error


def name_stdout() -> None:
    """Let errors of stdout say that they are its own; letters that it lacks are escaped.

    Raises:
        UserError: it is closed.
    """
    if sys.stdout is None:
        raise UserError("stdout is closed; expected a place for what is printed, such as a file, or >/dev/null")
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        stream = sys.stdout
        raw = io.BufferedWriter(_Stdout(stream.fileno(), "wb", closefd=False))
        sys.stdout = io.TextIOWrapper(
            raw, stream.encoding, "backslashreplace", line_buffering=stream.isatty(), write_through=stream.write_through
        )


def is_of_stdout(error: BaseException) -> bool:
    """Whether a write to stdout failed, which is then dropped: Python would complain of it again at its end."""
    if not isinstance(error, OSError) or error.filename != _STDOUT:
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def message_of(error: UserError | OSError | MemoryError) -> str:
    """What is shown of an error that is no programmer's: one line, that of the system with the place."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, MemoryError):
        return "there is not enough memory for what was asked for"
    places = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    # A loader's worker leaves the text of its traceback alone, which ends with it.
    message = error.strerror or (str(error).strip().splitlines() or [type(error).__name__])[-1]
    return printable(": ".join([*places, message]))


def run_program(work: Callable[[], int]) -> int:
    """A script's work, whose status is given back; 2 after one line on stderr for an error that is no programmer's,
    130 after an interrupt."""
    try:
        name_stdout()
        status = work()
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (UserError, OSError, MemoryError) as error:
        if is_of_stdout(error) and isinstance(error, BrokenPipeError):
            return ENOUGH
        print(f"error: {message_of(error)}", file=sys.stderr)
        return 2
