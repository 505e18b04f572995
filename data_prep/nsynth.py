"""Shards of NSynth: notes of 4 s, each of one instrument at one pitch, by its official split.

SOURCE holds nsynth-train, nsynth-valid and nsynth-test, each with examples.json and audio/; --fetch gets them there (25
GB; no checksum of them is published, so they are checked by those within). No instrument of train is in the other two.
Labels: family, the 11 families of instruments in the order of their numbers (test has no synth_lead), pitch, the MIDI
numbers that occur, and instrument.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec

from ssamba.data.prepare.fetch import Archive
from ssamba.data.prepare.recordings import DataSet, Recording, check_present
from ssamba.data.prepare.script import run_script
from ssamba.errors import UserError
from ssamba.files import read_json
from ssamba.folders import instead

FAMILIES = ("bass", "brass", "flute", "guitar", "keyboard", "mallet", "organ", "reed", "string", "synth_lead", "vocal")
FOLDERS = {"train": "nsynth-train", "validation": "nsynth-valid", "test": "nsynth-test"}
TABLE = "examples.json"
ARCHIVES = [
    Archive(f"https://download.magenta.tensorflow.org/datasets/nsynth/{folder}.jsonwav.tar.gz", folder)
    for folder in FOLDERS.values()
]


@dataclass(frozen=True)
class Note:
    """What examples.json says of a note that is used here."""

    instrument_family_str: str
    instrument_str: str
    pitch: Annotated[int, msgspec.Meta(ge=0, le=127)]


def find(options: argparse.Namespace) -> DataSet:
    tables = {split: options.source / folder / TABLE for split, folder in FOLDERS.items()}
    for table in tables.values():
        if not table.is_file():
            raise UserError(f"{table} is missing; expected the archives as they are unpacked; {instead(table)}")
    splits: dict[str, list[Recording]] = {}
    pitches: set[int] = set()
    for split, table in tables.items():
        notes = read_json(table, dict[str, Note], "the notes of NSynth, as the archive has them")
        pitches |= {note.pitch for note in notes.values()}
        splits[split] = [
            Recording(
                name,
                table.parent / "audio" / f"{name}.wav",
                {
                    "family": note.instrument_family_str,
                    "pitch": str(note.pitch),
                    "instrument": note.instrument_str,
                },
            )
            for name, note in notes.items()
        ]
    check_present(splits, options.max_bad_fraction)
    return DataSet("nsynth", splits, {"family": FAMILIES, "pitch": [str(pitch) for pitch in sorted(pitches)]})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    return run_script(parser, find, arguments, lambda options: ARCHIVES)


if __name__ == "__main__":
    sys.exit(main())
