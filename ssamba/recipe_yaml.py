"""YAML whose values are the text that was typed: what a text means is for whoever knows what is expected in its place.

YAML's own reading would make False of no, 8 of 010, 90 of 1:30 and a date of 2024-01-01, and take one value's text from
elsewhere (anchors, merge keys, tags). Nothing of it is done here, and depth and size are bounded. Imports no torch.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]  # omegaconf's own reader

MOST_BYTES = 1 << 18
_DEEPEST = 8


class Scalar(NamedTuple):
    """One value. A quoted one is always a text; of the others some words mean nothing."""

    text: str
    quoted: bool = False

    @property
    def is_nothing(self) -> bool:
        """No value at all, or null."""
        return not self.quoted and self.text in ("", "null", "Null", "NULL")


Node = Scalar | list["Node"] | dict[str, "Node"]


def read_yaml(content: bytes | str) -> Node | None:
    """The one document in a YAML text; None if there is none.

    Raises:
        ValueError: it is none, too large or nested too deep, has a key twice, an alias, a tag or a second document.
    """
    if len(content) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES} bytes")
    try:
        events = iter(yaml.parse(content, Loader=yaml.SafeLoader))
        document: Node | None = None
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                if document is not None:
                    raise _at(event, "another document begins; expected one")
                document = _node(events, next(events), 0)
        return document
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ValueError(f"line {mark.line + 1}: {error.problem}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def _node(events: Iterator[Any], event: Any, depth: int) -> Node:
    """The value that begins with an event."""
    if isinstance(event, yaml.AliasEvent):
        raise _at(event, f"*{event.anchor} stands for a value from elsewhere; expected the value, or quotes around it")
    if event.tag is not None:
        raise _at(event, f"the tag {event.tag} is not read; expected a value without one, or quotes around it")
    if isinstance(event, yaml.ScalarEvent):
        return Scalar(event.value, event.style not in (None, ""))
    if depth == _DEEPEST:
        raise _at(event, f"it is nested too deep; expected at most {_DEEPEST} levels")
    if isinstance(event, yaml.SequenceStartEvent):
        return [
            _node(events, entry, depth + 1)
            for entry in itertools.takewhile(lambda entry: not isinstance(entry, yaml.SequenceEndEvent), events)
        ]
    section: dict[str, Node] = {}
    for key in itertools.takewhile(lambda key: not isinstance(key, yaml.MappingEndEvent), events):
        name = _node(events, key, depth + 1)
        if not isinstance(name, Scalar):
            raise _at(key, "a key is a list or a section; expected a name")
        if name.text in section:
            raise _at(key, f"duplicate key {name.text}; expected each once")
        section[name.text] = _node(events, next(events), depth + 1)
    return section


def _at(event: Any, problem: str) -> ValueError:
    return ValueError(f"line {event.start_mark.line + 1}: {problem}")
