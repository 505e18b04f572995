"""Shards of Speech Commands, by its official validation_list.txt and testing_list.txt.

SOURCE is the folder of the unpacked archive, or one that holds it as speech_commands_v0.01 or speech_commands_v0.02;
--fetch gets it there (1.5 or 2.4 GB). Version v2: 35 words, as they are. Version v1: 12 classes, which are ten words,
`_unknown_` (one recording of another word for every ten of the ten words, drawn by the seed) and `_silence_` (as many
cuts of 1 s of the background noise). Labels: word, and speaker for all but silence.
"""

import argparse
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path

from ssamba.data.prepare.fetch import Archive
from ssamba.data.prepare.recordings import DataSet, Recording, drawn
from ssamba.data.prepare.script import run_script
from ssamba.data.prepare.sources import seen, unpacked
from ssamba.errors import BadAudio, UserError
from ssamba.folders import PassedOver, instead, there
from ssamba.recordings import recording_seconds

COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
OTHERS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "bed",
    "bird",
    "cat",
    "dog",
    "happy",
    "house",
    "marvin",
    "sheila",
    "tree",
    "wow",
)
WORDS = {"v1": (*COMMANDS, *OTHERS), "v2": (*COMMANDS, *OTHERS, "backward", "follow", "forward", "learn", "visual")}
_DATA = "https://storage.googleapis.com/download.tensorflow.org/data"
ARCHIVES = {
    "v1": Archive(
        f"{_DATA}/speech_commands_v0.01.tar.gz",
        "speech_commands_v0.01",
        "sha256:743935421bb51cccdb6bdd152e04c5c70274e935c82119ad7faeec31780d811d",
        bare=True,
    ),
    "v2": Archive(
        f"{_DATA}/speech_commands_v0.02.tar.gz",
        "speech_commands_v0.02",
        "sha256:af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58",
        2428923189,
        bare=True,
    ),
}
SILENCE, UNKNOWN = "_silence_", "_unknown_"
NOISE = "_background_noise_"
LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
ONE_IN = 10  # recordings of the ten words, a silence and an unknown word: the official recipe's 10 %
# Each split cuts its silence from its own stretch of every noise, so that no test noise is trained on.
STRETCHES = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}


def official_splits(source: Path, words: Sequence[str], passed_over: PassedOver) -> dict[str, list[Recording]]:
    """Every recording of every word, labelled with it."""
    folders = {path.name for path in seen((path for path in source.iterdir() if path.is_dir()), passed_over)} - {NOISE}
    if SILENCE in folders:  # people add it; here silence is cut from the noises
        folders.remove(SILENCE)
        passed_over.add(SILENCE, SILENCE)
    if folders != set(words):
        raise UserError(
            f"{source} lacks the words {sorted(set(words) - folders)} and has {sorted(folders - set(words))} besides; "
            f"expected the {len(words)} of this version: is --version right, and the archive whole? "
            + there(source, LISTS["test"])
        )
    listed: dict[str, str] = {}
    for split, name in LISTS.items():
        if not (source / name).is_file():
            raise UserError(
                f"{source / name} is missing; expected the official list, which is in the archive; "
                + instead(source / name)
            )
        listed |= dict.fromkeys((source / name).read_text().split(), split)
    splits: dict[str, list[Recording]] = {"train": [], "validation": [], "test": []}
    for word in words:
        for path in seen((source / word).glob("*.wav"), passed_over):
            labels: dict[str, str | list[str]] = {"word": word, "speaker": path.stem.partition("_nohash_")[0]}
            splits[listed.pop(f"{word}/{path.name}", "train")].append(Recording(f"{word}-{path.stem}", path, labels))
    if listed:
        raise UserError(f"{len(listed)} of the official lists' files are missing, first {min(listed)}: unpack again")
    return splits


def twelve_classes(source: Path, splits: dict[str, list[Recording]], seed: int) -> dict[str, list[Recording]]:
    """The ten words, and of the others and of silence a tenth as many each."""
    try:
        lengths = {path: recording_seconds(path) for path in seen((source / NOISE).glob("*.wav"), PassedOver())}
    except BadAudio as error:
        raise UserError(f"a background noise cannot be read ({error}): unpack the archive again") from error
    noises = [(path, seconds) for path, seconds in lengths.items() if seconds >= 10]  # 1 s in each stretch
    if not noises:
        raise UserError(f"{source / NOISE} has no .wav of at least 10 s; expected the archive's noises for {SILENCE}")

    def silence(split: str, index: int) -> Recording:
        chance = random.Random(f"{seed}/{split}/{index}")
        path, seconds = noises[int(chance.random() * len(noises))]
        low, high = (edge * seconds for edge in STRETCHES[split])
        start = math.floor(1000 * (low + chance.random() * (high - low - 1))) / 1000
        return Recording(f"silence-{split}-{index:05d}", path, {"word": SILENCE}, start, round(start + 1, 3))

    made: dict[str, list[Recording]] = {}
    for split, recordings in splits.items():
        wanted = [one for one in recordings if one.labels["word"] in COMMANDS]
        others = [one for one in recordings if one.labels["word"] not in COMMANDS]
        count = math.ceil(len(wanted) / ONE_IN)
        chosen = sorted(others, key=lambda one: drawn(seed, one.key))[:count]
        unknown = [Recording(one.key, one.path, {**one.labels, "word": UNKNOWN}) for one in chosen]
        made[split] = wanted + unknown + [silence(split, index) for index in range(count)]
    return made


def find(options: argparse.Namespace) -> DataSet:
    if not options.source.is_dir():
        raise UserError(f"SOURCE is {options.source}; expected the folder of the unpacked archive")
    words = WORDS[options.version]
    source = unpacked(options.source, ARCHIVES[options.version].folder)
    passed_over = PassedOver()
    splits = official_splits(source, words, passed_over)
    if options.version == "v1":
        splits, words = twelve_classes(source, splits, options.seed), (*COMMANDS, SILENCE, UNKNOWN)
    return DataSet(f"speech-commands-{options.version}", splits, {"word": words}, passed_over)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", required=True, choices=sorted(WORDS), help="of the data set")
    return run_script(parser, find, arguments, lambda options: [ARCHIVES[options.version]])


if __name__ == "__main__":
    sys.exit(main())
