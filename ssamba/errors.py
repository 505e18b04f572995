"""The errors that a user can mend: the command prints their message, without a traceback, and exits with status 2."""

import re

from ssamba.printable import masked, printable


class UserError(Exception):
    """A mistake in a recipe, a path, labels or a checkpoint: what was given, what was expected, how to mend it.

    As text it is safe to show: whatever acts in the names that it tells is escaped, and secrets in urls are left out.

    Args:
        message: one line.
        details: further ones, such as a list of complaints.
    """

    def __init__(self, message: str = "", *details: str) -> None:
        super().__init__(message, *details)

    def __str__(self) -> str:
        lines = [str(part) for part in self.args]
        # torch gives the error of a loader's worker the text of its traceback, which ends with the message.
        if lines[0].startswith("Caught "):
            lines = re.split(r"\n[\w.]+: ", lines[0])[-1].strip().split("\n  ")
        return "\n  ".join(printable(masked(line)) for line in lines)


class BadAudio(Exception):
    """One recording that cannot be used: unreadable, absurdly long, empty. Skipped, counted and named by its reader."""


class Stopped(Exception):
    """A signal asked a run to end, and it ended in order: the command's exit status, and in lines how it goes on.

    As text it is safe to show, as a `UserError` is.
    """

    def __init__(self, status: int, *lines: str) -> None:
        super().__init__(*lines)
        self.status = status

    def __str__(self) -> str:
        return "\n".join(printable(str(line)) for line in self.args)
