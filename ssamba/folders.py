"""Recordings below a folder, and what is passed over there; messages about what is missing. Imports no torch."""

import glob
import logging
import os
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ssamba.errors import UserError
from ssamba.recordings import ENDINGS

log = logging.getLogger(__name__)

_HIDDEN = "hidden"
_OF_THE_SYSTEM = {"__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir", "$RECYCLE.BIN", "System Volume Information"}


_LINK = "link to a folder that is taken elsewhere or lies above"
_MOST_NAMES = 20
_NAMED = 8  # names of what a folder holds, in a message
_ABOVE = 2  # folders between where something was looked for and where it is


class PassedOver(Counter[str]):
    """What was found and not taken: why, in a few words -> how many. `names` has one of each, of links to folders more:
    each may have been a label."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, list[str]] = {}

    def add(self, why: str, name: str) -> None:
        self[why] += 1
        names = self.names.setdefault(why, [])
        if len(names) < (_MOST_NAMES if why == _LINK else 1):
            names.append(name)

    def __str__(self) -> str:
        """Such as: 3 x .txt (a/notes.txt, ...), 1 x hidden (.git)."""
        names = {why: ", ".join(some) + ", ..." * (self[why] > len(some)) for why, some in self.names.items()}
        return ", ".join(f"{self[why]} x {why} ({names[why]})" for why in sorted(self))


@dataclass
class Below:
    """What is below a folder."""

    recordings: list[Path]
    """Relative to it, sorted."""
    passed_over: PassedOver
    empty: list[Path]
    """Folders without a recording in them or below, relative, the uppermost alone."""


def look_below(folder: Path) -> Below:
    """Look for recordings in a folder and in those within it, whose names end as those of recordings do.

    Hidden files and folders are passed over, as is what a system leaves behind (__MACOSX, Thumbs.db), what is no file
    (a pipe, a device), and files with other endings. A link to a folder is followed, but each folder is looked into
    once, where it lies if that is below `folder`: one that leads back to a folder above, or to what another name has
    already led to, is passed over.

    Raises:
        UserError: a folder that cannot be read.
    """
    look = _Look(folder)
    look.into([""])
    while look.links:  # after all that is really there, and those that the links themselves lead to
        links, look.links = sorted(look.links), []
        for link in links:
            look.follow(link)
    with_some = {above for path in look.recordings for above in path.parents} | {Path()}
    empty = [place for place in sorted(look.folders) if place not in with_some and place.parent in with_some]
    return Below(sorted(look.recordings), look.passed_over, empty)


class _Look:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.recordings: list[Path] = []
        self.folders: list[Path] = []
        self.links: list[str] = []
        self.passed_over = PassedOver()
        self.seen: set[tuple[int, int]] = set()
        # None of these is looked into again, whatever leads there.
        place = os.path.realpath(root)
        self.above = {_identity(os.stat(up)) for up in Path(place).parents}

    def follow(self, link: str) -> None:
        status = os.stat(self.root / link)
        if _identity(status) in self.above | self.seen:
            self.passed_over.add(_LINK, link)
            return
        self.into([link])

    def into(self, places: list[str]) -> None:
        """Look into a folder and all below it, links aside."""
        while places:
            place = places.pop()
            whole = self.root / place
            try:
                status = os.stat(whole)
                entries = sorted(os.scandir(whole), key=lambda entry: entry.name)
            except OSError as error:
                raise UserError(f"{whole} cannot be read ({error.strerror})") from error
            if _identity(status) in self.seen:
                self.passed_over.add(_LINK, place)
                continue
            self.seen.add(_identity(status))
            self.folders.append(Path(place))
            for entry in entries:
                name = os.path.join(place, entry.name)
                if entry.name.startswith(".") or entry.name in _OF_THE_SYSTEM:
                    self.passed_over.add(_HIDDEN if entry.name.startswith(".") else entry.name, name)
                elif entry.is_dir(follow_symlinks=False):
                    places.append(name)
                elif entry.is_symlink() and entry.is_dir():
                    self.links.append(name)
                else:
                    self.take(name, entry)

    def take(self, name: str, entry: "os.DirEntry[str]") -> None:
        ending = Path(name).suffix.lower()
        if ending not in ENDINGS:
            self.passed_over.add(ending or "no ending", name)
            return
        try:
            mode = entry.stat().st_mode
        except OSError:  # a link to what is not there: whoever reads it says so
            mode = stat.S_IFREG
        if stat.S_ISREG(mode):
            self.recordings.append(Path(name))
        else:
            self.passed_over.add("no file but a pipe or device", name)


def find_recordings(places: Sequence[str]) -> list[str]:
    """Files, folders and glob patterns -> paths, each once, in the order of `places`; `~` is the user's home.

    A folder stands for every file in and under it that ends as a recording does, sorted, hidden ones aside, also
    behind links to folders; a file that is named itself may end as it likes.

    Raises:
        UserError: something that does not exist, holds no such file, or is no file but a pipe or the like.
    """
    paths: dict[str, str] = {}
    for place in places:
        whole = os.path.expanduser(place)
        matches = [whole] if os.path.exists(whole) else sorted(glob.glob(whole, recursive=True))
        if not matches:
            what = "matches no file" if glob.has_magic(place) else "does not exist"
            raise UserError(f"{place} {what}; expected recordings, folders of them or patterns")
        if len(matches) == 1 and not (os.path.isdir(matches[0]) or os.path.isfile(matches[0])):
            raise UserError(
                f"{place} is a pipe or a device; expected a file, which can be read more than once: write "
                "what comes out of it to one"
            )
        named = [path for match in matches for path in (_inside(match) if os.path.isdir(match) else [match])]
        named = [path for path in named if os.path.isfile(path)]
        if not named:
            raise UserError(f"{place} holds no recording; expected files that end in {', '.join(sorted(ENDINGS))}")
        for path in named:
            paths.setdefault(os.path.abspath(path), path)
    return list(paths.values())


def _inside(folder: str) -> list[str]:
    below = look_below(Path(folder))
    if below.passed_over:
        log.info("%s: passed over %s", folder, below.passed_over)
    return [os.path.join(folder, path) for path in below.recordings]


def instead(path: Path) -> str:
    """What there is instead of a path that does not exist, for a message: as `there`, of the nearest folder
    above."""
    folder = next(above for above in path.absolute().parents if above.is_dir())
    return there(folder, glob.escape(str(path.absolute().relative_to(folder))))


def there(folder: Path, wanted: str) -> str:
    """For the message about a missing file: what the folder contains instead, and where `wanted` is, if it is a folder
    or two below, or one above.

    Args:
        wanted: relative to the folder; * and ? stand for what they do in a pattern.
    """
    names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in os.scandir(folder))
    names = [name for name in names if not name.startswith(".")]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    content = f"{folder} holds {', '.join(names[:_NAMED]) or 'nothing'}{more}"
    above = ["*/" * depth for depth in range(1, _ABOVE + 1)]
    places = ((place, pattern) for place, patterns in ((folder, above), (folder.parent, [""])) for pattern in patterns)
    nearest = next((path for place, pattern in places for path in sorted(place.glob(pattern + wanted))), None)
    return f"{content}; {nearest} is there" if nearest else content


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
