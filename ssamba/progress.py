"""Progress bars that show rate and time left, and say little where nobody watches."""

import sys
from typing import Any, TextIO

from tqdm import tqdm

from ssamba.launch import rank
from ssamba.printable import printable


def progress_bar(total: int | None, unit: str, desc: str, *, initial: int = 0, disable: bool = False) -> "tqdm[Any]":
    """A bar over `total` units, of which `initial` are done, bytes as kB or MB; into a file or a pipe a line now and
    then is enough. Of several ranks the first shows it."""
    terminal = sys.stderr.isatty()
    return tqdm(
        total=total,
        unit=unit,
        unit_scale=unit == "B",
        desc=printable(desc),
        initial=initial,
        disable=disable or rank() > 0,
        mininterval=0.1 if terminal else 30.0,
        dynamic_ncols=terminal,
    )


def print_above(text: str, file: TextIO) -> None:
    """Print a line while a bar stands below; the bar is drawn again only where that is seen. What acts in it instead
    of being seen is escaped."""
    text = printable(text)
    if file is sys.stderr or sys.stderr.isatty():
        tqdm.write(text, file=file)
    else:
        print(text, file=file, flush=True)


def spoken(seconds: float) -> str:
    """A length of time in words: "0.25 s", "5 min", "2 h 40 min", "3 d 4 h"."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h"
