"""The description of a sample beside its audio: its key and its labels, in our and in other programs' format. Imports
no torch.

Label values as other programs write them: a text, an integer, true or false; a list of those; or an object of name ->
true or false, whose names with true are meant. A text file's lines are names.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec

from ssamba.errors import BadAudio, UserError
from ssamba.files import parse_json
from ssamba.recordings import LOUDEST

MOST_BYTES = 1 << 24
"""Of a sample's JSON, or of a file with its label."""
MOST_LETTERS = 10_000
"""Of a label's name."""
TEXT_LABEL = "text"
"""The label that is no class but what is said in a recording: an index does not list what it says."""
HALVES = re.compile("[\ud800-\udfff]")
"""Of characters, which no text file has."""

_DEPTH = 4  # of objects within objects, in which labels are looked for

Names = str | list[str]
"""A label's name, or the names of several."""
FullScale = Annotated[float, msgspec.Meta(gt=0, le=LOUDEST)]
"""What a sample's audio is to be multiplied by."""


def as_list(names: Names | None) -> list[str]:
    """The names of a label as a list; none of one that is not there."""
    return names if isinstance(names, list) else [] if names is None else [names]


class Description(TypedDict):
    """A sample's key, its labels (label key -> names), and its full scale if that is not 1."""

    key: str
    labels: dict[str, Names]
    full_scale: NotRequired[FullScale]


class _Written(TypedDict):
    key: NotRequired[str]
    labels: dict[str, Names]
    full_scale: NotRequired[FullScale]


def parse_description(content: bytes, name: str) -> Description:
    """The description in a sample's JSON; `name` is the key of one that gives none.

    Raises:
        BadAudio: it cannot be parsed, its key is no text, it has no labels of names, or a full scale that cannot be.
    """
    if len(content) > MOST_BYTES:
        raise BadAudio(f"its .json has {len(content)} bytes; expected at most {MOST_BYTES}")
    try:
        written = parse_json(content, _Written, "its .json", 'a sample\'s, such as {"key": "a", "labels": {}}')
    except UserError as error:
        raise BadAudio(str(error)) from error
    return {"key": name, **written}


def parse_foreign(content: bytes) -> Any:
    """A JSON of another program, which may hold what is none, such as NaN.

    Raises:
        BadAudio: it cannot be parsed.
    """
    if len(content) > MOST_BYTES:
        raise BadAudio(f"its .json has {len(content)} bytes; expected at most {MOST_BYTES}")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadAudio(f"its .json cannot be parsed: {error}") from error


def names_in(value: Any) -> Names | None:
    """The names that a label's value stands for; None if it has none.

    Raises:
        BadAudio: it is no label.
    """
    if isinstance(value, list):
        names = [None if isinstance(one, list | dict) else names_in(one) for one in value]
        if all(isinstance(name, str) for name in names):
            return list(dict.fromkeys(str(name) for name in names))
    elif isinstance(value, dict):
        if all(isinstance(meant, bool) for meant in value.values()):
            return names_in([name for name, meant in value.items() if meant])
    elif value is None or value == "":
        return None
    elif isinstance(value, bool):
        return str(value).lower()
    elif isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    elif isinstance(value, str) and (name := value.strip()) and len(name) <= MOST_LETTERS and not HALVES.search(name):
        return name
    shown = "an array or an object" if isinstance(value, list | dict) else repr(str(value)[:80])
    raise BadAudio(f"{shown} is no label; expected a name or a list of names")


def names_in_text(content: bytes) -> Names | None:
    """The names that the lines of a text file are; None if it is empty.

    Raises:
        BadAudio: it is no text.
    """
    if len(content) > MOST_BYTES:
        raise BadAudio(f"a file of {len(content)} bytes is no label; expected at most {MOST_BYTES}")
    try:
        lines = [line.strip() for line in content.decode("utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise BadAudio("a file that is no text in UTF-8 is no label") from error
    lines = [line for line in lines if line]
    if any("\0" in line for line in lines):
        raise BadAudio("a file with zero bytes is no label; expected text")
    return names_in(lines[0] if len(lines) == 1 else lines) if lines else None


def value_at(content: Any, field: str) -> Any:
    """What a JSON has at a field, such as `label` or, within an object, `original_data.class_label`; None: nothing."""
    if not isinstance(content, dict):
        return None
    if field in content:
        return content[field]
    for dot in (place for place, letter in enumerate(field) if letter == "."):
        if (value := value_at(content.get(field[:dot]), field[dot + 1 :])) is not None:
            return value
    return None


def label_fields(content: Any, within: str = "", depth: int = _DEPTH) -> Iterator[tuple[str, Names]]:
    """(field, names) of all in a JSON that may be a label."""
    items: Mapping[str, Any] = content if isinstance(content, dict) else {}
    for key, value in items.items():
        try:
            if names := names_in(value):
                yield within + key, names
        except BadAudio:
            if isinstance(value, dict) and depth > 1:
                yield from label_fields(value, f"{within}{key}.", depth - 1)
