"""${...} in texts: nothing is put in for it, and \\${ is that text."""

import re
from collections.abc import Mapping
from typing import Any

from ssamba.values import is_unicode

_VARIABLE = re.compile(r"(\\*)\$\{")  # with the backslashes that keep it from being one


def unescaped(text: str) -> str:
    r"""The text that is meant by one with \${ in it.

    Raises:
        ValueError: it has a ${ that is to be replaced by something from elsewhere, is OmegaConf's ???, or has halves of
            characters.
    """
    if text == "???" or not is_unicode(text):
        raise ValueError("expected a value" if text == "???" else "expected a text in Unicode")
    if any(len(match[1]) % 2 == 0 for match in _VARIABLE.finditer(text)):
        raise ValueError(
            r"expected the value itself: nothing is put in for ${...}, neither of the environment nor of other keys "
            r"(\${ is that text)"
        )
    return _VARIABLE.sub(lambda match: match[1][: len(match[1]) // 2] + "${", text)


def escaped(value: Any) -> Any:
    """A value, or the values in a section or list, whose texts OmegaConf and `unescaped` take as they are."""
    if isinstance(value, Mapping):
        return {key: escaped(one) for key, one in value.items()}
    if isinstance(value, list):
        return [escaped(one) for one in value]
    return _VARIABLE.sub(lambda match: 2 * match[1] + r"\${", value) if isinstance(value, str) else value
