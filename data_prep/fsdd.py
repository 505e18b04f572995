"""Shards of the Free Spoken Digit Dataset.

SOURCE is its folder `recordings` (or the one that holds it), with `{digit}_{speaker}_{take}.wav`. The official split:
takes 0 to 4 are the test set, the rest is the training set. Labels: digit and speaker.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from ssamba.data.writer import DataSet, Recording, run_script
from ssamba.errors import UserError

DIGITS = tuple("0123456789")
TEST_TAKES = 5
_NAME = re.compile(r"(\d)_([a-z]+)_(\d+)")


def find(arguments: argparse.Namespace) -> DataSet:
    source: Path = arguments.source
    if (source / "recordings").is_dir():
        source = source / "recordings"
    splits: dict[str, list[Recording]] = {"train": [], "test": []}
    for path in sorted(source.glob("*.wav")):
        parts = _NAME.fullmatch(path.stem)
        if not parts:
            raise UserError(f"{path} is not a recording of this data set; expected names like 7_jackson_32.wav")
        digit, speaker, take = parts.groups()
        split = "test" if int(take) < TEST_TAKES else "train"
        splits[split].append(Recording(path.stem, path, {"digit": digit, "speaker": speaker}))
    if not any(splits.values()):
        raise UserError(f"{source} has no .wav; expected the data set's folder `recordings`")
    return DataSet("fsdd", splits, {"digit": DIGITS})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    return run_script(parser, find, arguments)


if __name__ == "__main__":
    sys.exit(main())
