"""Shards of ESC-50, one of its five folds the test set.

SOURCE is the unpacked archive, with audio/ and meta/esc50.csv, or the folder that holds it as ESC-50-master; --fetch
gets it there (0.6 GB; no checksum of it is published, so each file is checked by that in the .zip). The official figure
is the mean of five runs, each of them with another --test-fold. Labels: category and fold.
"""

import argparse
import sys
from collections.abc import Sequence

from ssamba.data.prepare.fetch import Archive
from ssamba.data.prepare.recordings import DataSet
from ssamba.data.prepare.script import run_script
from ssamba.data.prepare.sources import read_folds, unpacked

FOLDS = tuple("12345")
ARCHIVE = Archive("https://github.com/karolpiczak/ESC-50/archive/refs/heads/master.zip", "ESC-50-master")


def find(options: argparse.Namespace) -> DataSet:
    columns = ("filename", "target", "category")
    folds = read_folds(unpacked(options.source, ARCHIVE.folder), "meta/esc50.csv", columns, "audio", options.test_fold)
    return DataSet("esc50", folds.splits, {"category": folds.classes, "fold": FOLDS})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test-fold", choices=FOLDS, default="5", help="for the split test (default: %(default)s)")
    return run_script(parser, find, arguments, lambda options: [ARCHIVE])


if __name__ == "__main__":
    sys.exit(main())
