"""Shards of LibriSpeech for pretraining, its recordings cut into pieces.

SOURCE is the folder LibriSpeech, with PART/SPEAKER/CHAPTER/*.flac, or the one that holds it. The parts train-clean-100,
train-clean-360 and train-other-500 make the split train, dev-clean and dev-other the split validation, as far as they
are there. --parts takes some of them alone, and --fetch gets them: 6, 23 and 31 GB, and 0.3 GB each, for a while twice
as much. Label: speaker.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from ssamba.data.fetch import Archive
from ssamba.data.sources import seen, unpacked
from ssamba.data.writer import MIN_SECONDS, MOST_SECONDS, DataSet, Recording, run_script
from ssamba.errors import BadAudio, UserError
from ssamba.folders import PassedOver
from ssamba.recordings import recording_seconds
from ssamba.values import add_argument, number, plain_text

SPLITS = {
    "train": ("train-clean-100", "train-clean-360", "train-other-500"),
    "validation": ("dev-clean", "dev-other"),
}
ARCHIVES = {
    part: Archive(f"https://www.openslr.org/resources/12/{part}.tar.gz", f"LibriSpeech/{part}", f"md5:{md5}", size)
    for part, md5, size in (
        ("train-clean-100", "2a93770f6d5c6c964bc36631d331a522", 6387309499),
        ("train-clean-360", "c0e676e450a7ff2f54aeade5171606fa", 23049477885),
        ("train-other-500", "d1a0fd59409feb2c614ce4d30c387708", 30593501606),
        ("dev-clean", "42e2234ba48799c1f50f24a7926300a1", 337926286),
        ("dev-other", "c8d0bcc9cca99d4f8b62fcc847357931", 314305928),
    )
}
SHORTEST = 1.0  # seconds of what is left after the last whole piece: less of it is left out


def pieces(path: Path, seconds: float) -> Iterator[Recording]:
    """A recording, whole if it is no longer than a piece."""
    labels: dict[str, str | list[str]] = {"speaker": path.parts[-3]}
    try:
        duration = recording_seconds(path)
    except BadAudio:
        duration = 0.0  # whole, for the writer to skip and to count
    if duration <= seconds:
        yield Recording(path.stem, path, labels)
        return
    for piece in range(math.ceil(duration / seconds)):
        start, stop = round(piece * seconds, 6), round((piece + 1) * seconds, 6)
        if stop <= duration or duration - start >= min(SHORTEST, seconds):
            yield Recording(f"{path.stem}_{piece}", path, labels, start, stop if stop <= duration else None)


def parts_of(given: argparse.Namespace) -> list[str]:
    """Those of the option --parts, or all."""
    parts = given.parts.split(",") if given.parts else list(ARCHIVES)
    if unknown := [part for part in parts if part not in ARCHIVES]:
        raise UserError(f"--parts has {', '.join(unknown)}; expected some of {', '.join(ARCHIVES)}")
    return parts


def find(given: argparse.Namespace) -> DataSet:
    source, parts = unpacked(given.source, "LibriSpeech"), parts_of(given)
    if given.parts and (missing := [part for part in parts if not (source / part).is_dir()]):
        raise UserError(f"{source} lacks {', '.join(missing)}, which --parts names: --fetch gets them")
    passed_over = PassedOver()
    splits: dict[str, list[Recording]] = {}
    for split, names in SPLITS.items():
        for folder in (source / name for name in names if name in parts and (source / name).is_dir()):
            paths = seen(folder.glob("*/*/*.flac"), passed_over)
            if not paths:
                raise UserError(f"{folder} has no SPEAKER/CHAPTER/*.flac; expected the archive unpacked as it is")
            splits.setdefault(split, []).extend(piece for path in paths for piece in pieces(path, given.seconds))
    if not splits:
        raise UserError(f"{source} has none of the folders {', '.join(parts)}; expected the folder LibriSpeech")
    return DataSet("librispeech", splits, passed_over=passed_over)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    seconds, parts = "of a piece, at most (default: %(default)s)", "those to take (default: all that are there)"
    add_argument(parser, "--seconds", number, MIN_SECONDS, MOST_SECONDS, default=10.0, metavar="SECONDS", help=seconds)
    add_argument(parser, "--parts", plain_text, metavar="PART,...", help=parts)
    return run_script(parser, find, arguments, lambda given: [ARCHIVES[part] for part in parts_of(given)])


if __name__ == "__main__":
    sys.exit(main())
