"""What people type, in a recipe or on a command line: text, whole numbers, numbers, yes or no, paths.

Each reader takes the text as it was typed, and raises a ValueError that says what was expected. Imports no torch.
"""

import argparse
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssamba.errors import UserError
from ssamba.files import check_place

_REMOTE = re.compile(r"pipe:|[A-Za-z][A-Za-z0-9+.-]*://")
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_LONGEST_NAME = 255  # bytes, of a file or folder, on every file system that is in use


def plain_text(text: str) -> str:
    """A text that can be written into a file: not empty, no NUL, no half of a character."""
    if not text or "\0" in text or not is_unicode(text):
        raise ValueError("expected a text, not empty, in Unicode and without NUL")
    return text


def whole_number(text: str) -> int:
    """In decimal digits: 010 is ten; 0x10, 1_000, 1e3 and 1:30 are none."""
    if not _WHOLE.fullmatch(text.strip()):
        raise ValueError("expected a whole number in decimal digits, such as 1000")
    return int(text)


def number(text: str) -> float:
    """A finite number in decimal digits, with a point and an exponent or without."""
    value = float(text) if _NUMBER.fullmatch(text.strip()) else math.nan
    if not math.isfinite(value):
        raise ValueError("expected a finite number, such as 0.5 or 1e-4")
    return value


def share(text: str) -> float:
    """A number of at least 0 and below 1, of what is taken out of a whole of which something stays."""
    value = number(text)
    if not 0 <= value < 1:
        raise ValueError("expected a fraction of at least 0 and below 1")
    return value


def truth(text: str) -> bool:
    """true, yes or on; false, no or off; in small or large letters."""
    if text.lower() not in _TRUTH:
        raise ValueError("expected true or false")
    return _TRUTH[text.lower()]


def path_text(text: str) -> str:
    """A path, in which ~ and ~user at the beginning are home folders."""
    if is_remote(text):
        raise ValueError("expected a path on this machine, not a url or a command")
    path = pattern_text(text)
    if any(len(os.fsencode(name)) > _LONGEST_NAME for name in path.split("/")):
        raise ValueError(f"expected a path of names that have at most {_LONGEST_NAME} bytes each")
    return path


def pattern_text(text: str) -> str:
    """A path or a pattern of paths, as `path_text`."""
    if not text or "\0" in text or not _is_encodable(text):
        raise ValueError("expected a path, not empty and without NUL")
    path = os.path.expanduser(text)
    if path.startswith("~"):
        raise ValueError(f"expected a user of this machine after ~; a file of that name is ./{text}")
    return path


def source_text(text: str) -> str:
    """A path or a pattern as `pattern_text`, or a url or a command (`pipe:`) as it is."""
    return plain_text(text) if is_remote(text) else pattern_text(text)


STORED = "shards"
"""A teacher whose features lie in the shards."""
TRANSFORMERS = "hf:"
"""What a teacher's name begins with that is a model of `transformers`."""


def teacher_text(text: str) -> str:
    """Where a teacher's features come from: a path as `path_text`, `STORED` as it is, or, behind `TRANSFORMERS`, a path
    or a name on the Hugging Face Hub."""
    if text.startswith(TRANSFORMERS):
        return TRANSFORMERS + path_text(text.removeprefix(TRANSFORMERS))
    return text if text == STORED else path_text(text)


def is_remote(source: str) -> bool:
    """Whether a source is a url or a command, not a path."""
    return _REMOTE.match(source) is not None


def is_unicode(text: str) -> bool:
    """Whether a text has no half of a character, as names of files that are not in UTF-8 have."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_encodable(path: str) -> bool:
    """Whether the file system has bytes for a path, in UTF-8 or not."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return True


def expected_range(value: float, low: float, high: float | None = None) -> str | None:
    """What is expected instead of a value that is not in a range, ends included; None if it is."""
    if value >= low and (high is None or value <= high):
        return None
    return f"expected at least {low:.15g}" + ("" if high is None else f" and at most {high:.15g}")


@dataclass(frozen=True)
class Argument:
    """A type for argparse: what was typed, by a reader; UserError with the argument's name if that cannot be.

    Args:
        name: what the argument is called.
        read: a reader, such as `whole_number`.
        low, high: of a number's range, ends included.
    """

    name: str
    read: Callable[[str], Any]
    low: float | None = None
    high: float | None = None

    def __call__(self, text: str) -> Any:
        try:
            value = self.read(text)
            if self.low is not None and (problem := expected_range(value, self.low, self.high)):
                raise ValueError(problem)
        except ValueError as error:
            shown = text if text and text.isprintable() else ascii(text)
            raise UserError(f"{self.name} is {shown[:200]}; {error}") from error
        return value


def add_argument(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup,
    name: str,
    read: Callable[[str], Any],
    low: float | None = None,
    high: float | None = None,
    **details: Any,
) -> None:
    """Add an argument whose text a reader of this module takes.

    Args:
        low, high: of a number's range, ends included.
        details: as argparse takes them.
    """
    called = name if name.startswith("-") else details["metavar"]
    parser.add_argument(name, type=Argument(called, read, low, high), **details)


def path(text: str) -> Path:
    """As `path_text`."""
    return Path(path_text(text))


def new_place(text: str) -> Path | str:
    """As `new_path`, or the url of a folder, without a slash at its end."""
    return plain_text(text).rstrip("/") if is_remote(text) else new_path(text)


def new_path(text: str) -> Path:
    """As `path`, of something that is to be written; UserError if its place cannot be."""
    place = path(text)
    check_place(place)
    return place
