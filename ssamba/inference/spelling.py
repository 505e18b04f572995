"""The words that a CTC model transcribes, hop by hop, while a recording is read.

Shapes: C characters, the blank first.
"""

from collections.abc import Sequence
from typing import NamedTuple

from ssamba.inference.windows import Window


class Word(NamedTuple):
    """What stands between spaces, and the seconds from its first character to the end of its last."""

    text: str
    start: float
    end: float


class Spelling:
    """Joins the likeliest characters of hops to words: a character that goes on is one, until a blank or another comes
    (CTC, Graves et al. 2006)."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self._before = 0
        self._letters: list[str] = []
        self._start = self._end = 0.0

    def add(self, hop: Window) -> list[Word]:
        """The word that the next hop of a recording ends, if it does."""
        assert hop.probabilities is not None
        index, before = int(hop.probabilities.argmax()), self._before
        self._before = index
        if index == before or index == 0:
            self._end = hop.end if index else self._end
            return []
        if self.names[index].isspace():
            return self._word()
        if not self._letters:
            self._start = hop.start
        self._letters.append(self.names[index])
        self._end = hop.end
        return []

    def end(self) -> list[Word]:
        """The word that a recording ends with, if there is one; the next one begins."""
        self._before = 0
        return self._word()

    def _word(self) -> list[Word]:
        word = [Word("".join(self._letters), self._start, self._end)] if self._letters else []
        self._letters.clear()
        return word
