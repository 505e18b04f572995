"""Shards of LibriSpeech, its recordings cut into pieces for pretraining, or whole and with what is said in them.

SOURCE is the folder LibriSpeech, with PART/SPEAKER/CHAPTER/*.flac, or the one that holds it. The parts train-clean-100,
train-clean-360 and train-other-500 make the split train, dev-clean and dev-other the split validation, test-clean and
test-other, whose scores are published one by one, the split test, as far as they are there. --parts takes some of them
alone, and --fetch gets them: 6, 23 and 31 GB, and 0.3 GB each, for a while twice as much. Label: speaker.

Without --transcripts, the parts for testing are left out. With it, label text: what is said, in capitals, as the
SPEAKER-CHAPTER.trans.txt beside the recordings have it.
"""

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from ssamba.data.prepare.fetch import Archive
from ssamba.data.prepare.recordings import DataSet, Recording
from ssamba.data.prepare.script import MOST_SECONDS, run_script
from ssamba.data.prepare.sources import seen, unpacked
from ssamba.data.prepare.writer import MIN_SECONDS
from ssamba.errors import BadAudio, UserError
from ssamba.folders import PassedOver, instead, there
from ssamba.recordings import recording_seconds
from ssamba.values import add_argument, number, plain_text

SPLITS = {
    "train": ("train-clean-100", "train-clean-360", "train-other-500"),
    "validation": ("dev-clean", "dev-other"),
    "test": ("test-clean", "test-other"),
}
ARCHIVES = {
    part: Archive(f"https://www.openslr.org/resources/12/{part}.tar.gz", f"LibriSpeech/{part}", f"md5:{md5}", size)
    for part, md5, size in (
        ("train-clean-100", "2a93770f6d5c6c964bc36631d331a522", 6387309499),
        ("train-clean-360", "c0e676e450a7ff2f54aeade5171606fa", 23049477885),
        ("train-other-500", "d1a0fd59409feb2c614ce4d30c387708", 30593501606),
        ("dev-clean", "42e2234ba48799c1f50f24a7926300a1", 337926286),
        ("dev-other", "c8d0bcc9cca99d4f8b62fcc847357931", 314305928),
        ("test-clean", "32fa31d27d2e1cad72775fee3f4849a9", 346663984),
        ("test-other", "fb5a50374b501bb3bac4815ee91d3135", 328757843),
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


def spoken(path: Path, transcripts: Mapping[str, str]) -> Recording:
    """A recording, whole, with what is said in it."""
    return Recording(path.stem, path, {"speaker": path.parts[-3], "text": transcripts[path.stem]})


def read_transcripts(folder: Path, paths: Sequence[Path]) -> dict[str, str]:
    """What is said in the recordings of a part, by their names.

    Raises:
        UserError: some have no line in the .trans.txt of their chapter, or it cannot be read.
    """
    texts: dict[str, str] = {}
    for chapter in dict.fromkeys(path.parent for path in paths):
        file = chapter / f"{chapter.parent.name}-{chapter.name}.trans.txt"
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{file} cannot be read ({error}); expected what is said in the recordings beside it, a line each; "
                + instead(file)
            ) from error
        for name, _, text in (line.partition(" ") for line in lines):
            texts[name] = " ".join(text.split())
    if missing := [path.stem for path in paths if not texts.get(path.stem)]:
        raise UserError(
            f"{len(missing)} of {len(paths)} recordings of {folder} have no line in the .trans.txt of their chapter: "
            f"{', '.join(missing[:4])}; expected the archive unpacked as it is"
        )
    return texts


def parts_of(options: argparse.Namespace) -> list[str]:
    """Those of the option --parts, or all; without transcripts no test is to be learned from."""
    known = [part for split, parts in SPLITS.items() for part in parts if options.transcripts or split != "test"]
    parts = options.parts.split(",") if options.parts else known
    if unknown := [part for part in parts if part not in known]:
        raise UserError(f"--parts has {', '.join(unknown)}; expected some of {', '.join(known)}")
    return parts


def find(options: argparse.Namespace) -> DataSet:
    source, parts = unpacked(options.source, "LibriSpeech"), parts_of(options)
    if options.parts and (missing := [part for part in parts if not (source / part).is_dir()]):
        raise UserError(f"{source} lacks {', '.join(missing)}, which --parts names: --fetch gets them")
    passed_over = PassedOver()
    splits: dict[str, list[Recording]] = {}
    for split, names in SPLITS.items():
        for folder in (source / name for name in names if name in parts and (source / name).is_dir()):
            paths = seen(folder.glob("*/*/*.flac"), passed_over)
            if not paths:
                raise UserError(
                    f"{folder} has no SPEAKER/CHAPTER/*.flac; expected the archive unpacked as it is; "
                    + there(folder, "*/*/*.flac")
                )
            mine = splits.setdefault(split, [])
            if options.transcripts:
                said = read_transcripts(folder, paths)
                mine.extend(spoken(path, said) for path in paths)
            else:
                mine.extend(piece for path in paths for piece in pieces(path, options.seconds))
    if not splits:
        raise UserError(
            f"{source} has none of the folders {', '.join(parts)}; expected the folder LibriSpeech; "
            + there(source, "[td][re][av]*-*")
        )
    return DataSet("librispeech", splits, passed_over=passed_over)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    seconds, parts = "of a piece, at most (default: %(default)s)", "those to take (default: all that are there)"
    add_argument(parser, "--seconds", number, MIN_SECONDS, MOST_SECONDS, default=10.0, metavar="SECONDS", help=seconds)
    add_argument(parser, "--parts", plain_text, metavar="PART,...", help=parts)
    parser.add_argument("--transcripts", action="store_true", help="whole recordings, label text: what is said in them")
    return run_script(parser, find, arguments, lambda options: [ARCHIVES[part] for part in parts_of(options)])


if __name__ == "__main__":
    sys.exit(main())
