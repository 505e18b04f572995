"""Shards of LibriSpeech for pretraining, its recordings cut into pieces.

SOURCE is the folder LibriSpeech (or the one that holds it), with SPLIT/SPEAKER/CHAPTER/*.flac. train-clean-100,
train-clean-360 and train-other-500 make the split train, dev-clean and dev-other the split validation, as far as they
are there. Label: speaker.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import soundfile

from ssamba.data.writer import DataSet, Recording, run_script
from ssamba.errors import UserError

SPLITS = {
    "train": ("train-clean-100", "train-clean-360", "train-other-500"),
    "validation": ("dev-clean", "dev-other"),
}
SHORTEST = 1.0  # seconds of what is left after the last whole piece: less of it is left out


def pieces(path: Path, seconds: float) -> Iterator[Recording]:
    """A recording, whole if it is no longer than a piece."""
    labels: dict[str, str | list[str]] = {"speaker": path.parts[-3]}
    try:
        duration = soundfile.info(path).duration
    except soundfile.LibsndfileError:
        duration = 0.0  # whole, for the writer to skip and to count
    if duration <= seconds:
        yield Recording(path.stem, path, labels)
        return
    for number in range(math.ceil(duration / seconds)):
        start, stop = round(number * seconds, 6), round((number + 1) * seconds, 6)
        if stop <= duration or duration - start >= min(SHORTEST, seconds):
            yield Recording(f"{path.stem}_{number}", path, labels, start, stop if stop <= duration else None)


def find(given: argparse.Namespace) -> DataSet:
    if not 0 < given.seconds < math.inf:
        raise UserError(f"--seconds is {given.seconds:g}; expected more than 0")
    source: Path = given.source
    if (source / "LibriSpeech").is_dir():
        source = source / "LibriSpeech"
    splits: dict[str, list[Recording]] = {}
    for split, names in SPLITS.items():
        for folder in (source / name for name in names if (source / name).is_dir()):
            paths = sorted(folder.glob("*/*/*.flac"))
            if not paths:
                raise UserError(f"{folder} has no SPEAKER/CHAPTER/*.flac; expected the archive unpacked as it is")
            splits.setdefault(split, []).extend(piece for path in paths for piece in pieces(path, given.seconds))
    if not splits:
        wanted = ", ".join(name for names in SPLITS.values() for name in names)
        raise UserError(f"{source} has none of the folders {wanted}; expected the folder LibriSpeech")
    return DataSet("librispeech", splits)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="of a piece, at most (default: %(default)s)")
    return run_script(parser, find, arguments)


if __name__ == "__main__":
    sys.exit(main())
