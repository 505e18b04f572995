"""Shards of ESC-50, one of its five folds the test set.

SOURCE is the unpacked archive, with audio/ and meta/esc50.csv. The official figure is the mean of five runs, each of
them with another --test-fold. Labels: category and fold.
"""

import argparse
import sys
from collections.abc import Sequence

from ssamba.data.sources import number, read_table
from ssamba.data.writer import DataSet, Recording, run_script
from ssamba.errors import UserError

FOLDS = tuple("12345")


def find(given: argparse.Namespace) -> DataSet:
    splits: dict[str, list[Recording]] = {"train": [], "test": []}
    targets: dict[float, str] = {}
    for row in read_table(given.source / "meta" / "esc50.csv", ("filename", "fold", "target", "category")):
        path, fold, category = given.source / "audio" / row["filename"], row["fold"], row["category"]
        if not path.is_file():
            raise UserError(f"{path} is missing, and is in meta/esc50.csv: unpack the archive again")
        targets[number(row["target"], f"the target of {path.name}")] = category
        splits["test" if fold == given.test_fold else "train"].append(
            Recording(path.stem, path, {"category": category, "fold": fold})
        )
    return DataSet("esc50", splits, {"category": [targets[one] for one in sorted(targets)], "fold": FOLDS})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test-fold", choices=FOLDS, default="5", help="for the split test (default: %(default)s)")
    return run_script(parser, find, arguments)


if __name__ == "__main__":
    sys.exit(main())
