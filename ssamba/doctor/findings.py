"""What a check finds."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "absent", "problem"]
LOCK = "pip install -r requirements.lock"
"""What mends most installations, with the file of the repository."""


@dataclass(frozen=True)
class Finding:
    """What was found of one thing.

    Args:
        name: what was looked at.
        state: "ok"; "absent": an option that is not here, which is no fault; "problem": it should work, and does not.
        said: what was found, in a line.
        remedy: what to do about it; "" where nothing need be done.
    """

    name: str
    state: State
    said: str
    remedy: str = ""


def ok(name: str, said: str) -> Finding:
    return Finding(name, "ok", said)


def absent(name: str, said: str, remedy: str = "") -> Finding:
    return Finding(name, "absent", said, remedy)


def problem(name: str, said: str, remedy: str) -> Finding:
    return Finding(name, "problem", said, remedy)


def cause_of(error: BaseException) -> str:
    """An error as part of a line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:500]}" if text else type(error).__name__
