"""Shards of UrbanSound8K, one of its ten folds the test set.

SOURCE is the unpacked archive, with audio/fold1/ to audio/fold10/ and metadata/UrbanSound8K.csv, or the folder that
holds it as UrbanSound8K; --fetch gets it there (6 GB). The official figure is the mean of ten runs, each of them with
another --test-fold: the folds are never mixed anew, because cuts of one recording are in one fold. Labels: class and
fold.
"""

import argparse
import sys
from collections.abc import Sequence

from ssamba.data.prepare.fetch import Archive
from ssamba.data.prepare.recordings import DataSet
from ssamba.data.prepare.script import run_script
from ssamba.data.prepare.sources import read_folds, unpacked

FOLDS = tuple(str(fold) for fold in range(1, 11))
ARCHIVE = Archive(
    "https://zenodo.org/records/1203745/files/UrbanSound8K.tar.gz",
    "UrbanSound8K",
    "md5:9aa69802bbf37fb986f71ec1483a196e",
    6023741708,
)


def find(options: argparse.Namespace) -> DataSet:
    columns = ("slice_file_name", "classID", "class")
    source = unpacked(options.source, ARCHIVE.folder)
    folds = read_folds(source, "metadata/UrbanSound8K.csv", columns, "audio/fold{fold}", options.test_fold)
    return DataSet("urbansound8k", folds.splits, {"class": folds.classes, "fold": FOLDS})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test-fold", choices=FOLDS, default="10", help="for the split test (default: %(default)s)")
    return run_script(parser, find, arguments, lambda options: [ARCHIVE])


if __name__ == "__main__":
    sys.exit(main())
