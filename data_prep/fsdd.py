"""Shards of the Free Spoken Digit Dataset.

SOURCE is its folder `recordings`, with `{digit}_{speaker}_{take}.wav`, or one that holds it; --fetch gets it there (16
MB; no checksum of it is published, so each file is checked by that in the .zip). The official split: takes 0 to 4 are
the test set, the rest is the training set. Labels: digit and speaker.
"""

import argparse
import re
import sys
from collections.abc import Sequence

from ssamba.data.prepare.fetch import Archive
from ssamba.data.prepare.recordings import DataSet, Recording
from ssamba.data.prepare.script import run_script
from ssamba.data.prepare.sources import seen, unpacked
from ssamba.errors import UserError
from ssamba.folders import PassedOver, there

DIGITS = tuple("0123456789")
TEST_TAKES = 5
ARCHIVE = Archive(
    "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/tags/v1.0.10.zip",
    "free-spoken-digit-dataset-1.0.10",
)
_NAME = re.compile(r"(\d)_([a-z]+)_(\d+)")


def find(options: argparse.Namespace) -> DataSet:
    source = unpacked(unpacked(options.source, ARCHIVE.folder), "recordings")
    passed_over = PassedOver()
    splits: dict[str, list[Recording]] = {"train": [], "test": []}
    for path in seen(source.glob("*.wav"), passed_over):
        parts = _NAME.fullmatch(path.stem)
        if not parts:
            raise UserError(f"{path} is not a recording of this data set; expected names like 7_jackson_32.wav")
        digit, speaker, take = parts.groups()
        split = "test" if int(take) < TEST_TAKES else "train"
        splits[split].append(Recording(path.stem, path, {"digit": digit, "speaker": speaker}))
    if not any(splits.values()):
        raise UserError(f"{source} has no .wav; expected the data set's folder `recordings`; {there(source, '*.wav')}")
    return DataSet("fsdd", splits, {"digit": DIGITS}, passed_over)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    return run_script(parser, find, arguments, lambda options: [ARCHIVE])


if __name__ == "__main__":
    sys.exit(main())
