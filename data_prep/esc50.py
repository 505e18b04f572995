"""Shards of ESC-50, one of its five folds the test set.

SOURCE is the unpacked archive, with audio/ and meta/esc50.csv. The official figure is the mean of five runs, each of
them with another --test-fold. Labels: category and fold.
"""

import argparse
import sys
from collections.abc import Sequence

from ssamba.data.sources import read_folds
from ssamba.data.writer import DataSet, run_script

FOLDS = tuple("12345")


def find(given: argparse.Namespace) -> DataSet:
    columns = ("filename", "target", "category")
    folds = read_folds(given.source, "meta/esc50.csv", columns, "audio", given.test_fold)
    return DataSet("esc50", folds.splits, {"category": folds.classes, "fold": FOLDS})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test-fold", choices=FOLDS, default="5", help="for the split test (default: %(default)s)")
    return run_script(parser, find, arguments)


if __name__ == "__main__":
    sys.exit(main())
