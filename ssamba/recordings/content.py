"""What is known of a recording before any of it is decoded."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Content:
    """A recording's container."""

    kind: str = ""
    """What it is, in small letters; "" if it is none of those that are known here."""
    start: int = 0
    """The byte where it begins, behind what others put before it."""
    fraction: float = 1.0
    """Of the sound that it says it has: what is there. 1 also where nothing is said."""
    damage: str = ""
    """Why its sound is not whole, where no fraction tells that."""
    frames: int | None = None
    """Samples of each channel that its parts make, where they were counted."""
    inexact: int = 0
    """Samples by which `frames` may be off, such as what an encoder put before and after the sound."""
    by_libsndfile: bool = True
    """libsndfile reads it to its end, or not at all."""
    guessed: bool = False
    """libsndfile guesses its length, and reads no further: to its end if that is at least `frames`."""
