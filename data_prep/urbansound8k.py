"""Shards of UrbanSound8K, one of its ten folds the test set.

SOURCE is the unpacked archive, with audio/fold1/ to audio/fold10/ and metadata/UrbanSound8K.csv. The official figure is
the mean of ten runs, each of them with another --test-fold: the folds are never mixed anew, because cuts of one
recording are in one fold. Labels: class and fold.
"""

import argparse
import sys
from collections.abc import Sequence

from ssamba.data.sources import number, read_table
from ssamba.data.writer import DataSet, Recording, run_script
from ssamba.errors import UserError

FOLDS = tuple(str(fold) for fold in range(1, 11))


def find(given: argparse.Namespace) -> DataSet:
    splits: dict[str, list[Recording]] = {"train": [], "test": []}
    classes: dict[float, str] = {}
    table = given.source / "metadata" / "UrbanSound8K.csv"
    for row in read_table(table, ("slice_file_name", "fold", "classID", "class")):
        fold, name = row["fold"], row["class"]
        path = given.source / "audio" / f"fold{fold}" / row["slice_file_name"]
        if not path.is_file():
            raise UserError(f"{path} is missing, and is in metadata/UrbanSound8K.csv: unpack the archive again")
        classes[number(row["classID"], f"the classID of {path.name}")] = name
        splits["test" if fold == given.test_fold else "train"].append(
            Recording(path.stem, path, {"class": name, "fold": fold})
        )
    return DataSet("urbansound8k", splits, {"class": [classes[one] for one in sorted(classes)], "fold": FOLDS})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test-fold", choices=FOLDS, default="10", help="for the split test (default: %(default)s)")
    return run_script(parser, find, arguments)


if __name__ == "__main__":
    sys.exit(main())
