"""Shards of GTZAN, ten genres of music, by its fault-filtered split.

SOURCE is the folder with blues to rock, whose recordings are called blues.00000.wav (or .au), or one that holds it as
genres or genres_original. The split is that of Kereliuk, Sturm and Larsen (arXiv 1507.04761) as torchaudio lists it:
443, 197 and 290 of the 1,000 recordings, without those that are others again, and no artist in two parts. Label: genre.
"""

import argparse
import sys
from collections.abc import Sequence

from ssamba.data.prepare.recordings import DataSet, Recording, check_present
from ssamba.data.prepare.script import run_script
from ssamba.data.prepare.sources import unpacked

GENRES = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")
FOLDERS = ("genres", "genres_original")
ENDINGS = (".wav", ".au")


def fault_filtered() -> dict[str, list[str]]:
    """Split -> names such as blues.00012."""
    # It imports torch, which takes seconds, and every worker reads this file, too.
    from torchaudio.datasets import gtzan

    return {"train": gtzan.filtered_train, "validation": gtzan.filtered_valid, "test": gtzan.filtered_test}


def find(options: argparse.Namespace) -> DataSet:
    source = options.source
    for folder in FOLDERS:
        source = unpacked(source, folder)

    def recording(name: str) -> Recording:
        genre, _, index = name.partition(".")
        paths = [source / genre / f"{name}{ending}" for ending in ENDINGS]
        path = next((path for path in paths if path.is_file()), paths[0])
        return Recording(f"{genre}-{index}", path, {"genre": genre})

    splits = {split: [recording(name) for name in names] for split, names in fault_filtered().items()}
    check_present(splits, options.max_bad_fraction)
    return DataSet("gtzan", splits, {"genre": GENRES})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    return run_script(parser, find, arguments)


if __name__ == "__main__":
    sys.exit(main())
