"""Text from elsewhere (names of files, labels, messages) as it may be shown. Imports no torch."""

import re

# Control characters, among them a terminal's escape and the end of a line; halves of characters, as names that are no
# UTF-8 have; the ends of lines and paragraphs that only Unicode has; and what turns the direction of writing.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""The text in one line that shows all it holds: what acts instead of being seen is escaped, as \x1b or \u202e."""
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
