"""Shards of VoxCeleb1, by the official identification split; or of the recordings of a list of verification trials.

SOURCE is the folder with idXXXXX/VIDEO/NNNNN.wav, or one with those in wav, in dev/wav and test/wav, or in vox1_dev_wav
and vox1_test_wav, with wav below or without. Where there is no such .wav, one of another ending is taken, such as .m4a.
The splits train, validation and test are those of iden_split.txt. With --trials the split verification has each
recording of the list once instead, and OUT-trials.txt is the list with the recordings' keys for their names. Label:
speaker.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ssamba.data.prepare.recordings import DataSet, Recording, check_present
from ssamba.data.prepare.script import run_script
from ssamba.data.shards.transport import bytes_of, put_bytes
from ssamba.errors import UserError
from ssamba.files import write_text
from ssamba.folders import instead, there
from ssamba.recordings import ENDINGS
from ssamba.values import add_argument, path

SPLITS = {"1": "train", "2": "validation", "3": "test"}
FOLDERS = ("wav", "dev/wav", "test/wav", "vox1_dev_wav/wav", "vox1_test_wav/wav", "vox1_dev_wav", "vox1_test_wav", ".")


def read_list(path: Path, kinds: Sequence[str], files: int) -> list[list[str]]:
    """The lines of a list, each one of some kinds and then so many files."""
    if not path.is_file():
        raise UserError(
            f"there is no list {path}; expected an official one, as it is downloaded beside the data set; "
            + instead(path)
        )
    lines = [line.split() for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    for line in lines:
        if len(line) != 1 + files or line[0] not in kinds or any(name.count("/") != 2 for name in line[1:]):
            raise UserError(
                f"{path} has the line {' '.join(line)!r}; expected {' or '.join(kinds)} and then {files} "
                "of idXXXXX/VIDEO/NNNNN.wav"
            )
    if not lines:
        raise UserError(f"{path} is empty; expected an official list")
    return lines


def key(name: str) -> str:
    return name.removesuffix(".wav").replace("/", "-")


def other_ending(paths: Sequence[Path]) -> Path | None:
    """The recording that is there in place of a .wav."""
    there = (path.with_suffix(ending) for path in paths for ending in sorted(ENDINGS))
    return next((path for path in there if path.is_file()), None)


def find(options: argparse.Namespace) -> DataSet:
    folders = [options.source / name for name in FOLDERS if any((options.source / name).glob("id*/"))]
    if not folders:
        raise UserError(
            f"{options.source} has no idXXXXX in {', '.join(FOLDERS)}; expected VoxCeleb1 unpacked; "
            + there(options.source, "id[0-9]*")
        )

    def recording(name: str) -> Recording:
        paths = [folder / name for folder in folders]
        path = next((path for path in paths if path.is_file()), None) or other_ending(paths) or paths[0]
        return Recording(key(name), path, {"speaker": name.partition("/")[0]})

    splits: dict[str, list[Recording]]
    if options.trials:
        trials = read_list(options.trials, ("0", "1"), 2)
        splits = {"verification": [recording(name) for name in dict.fromkeys(n for line in trials for n in line[1:])]}
    else:
        splits = {split: [] for split in SPLITS.values()}
        for kind, name in read_list(options.split_list or options.source / "iden_split.txt", tuple(SPLITS), 1):
            splits[SPLITS[kind]].append(recording(name))
    check_present(splits, options.max_bad_fraction)
    if options.trials and not options.overwrite:
        copy = trials_copy(options.out)
        if copy.exists() if isinstance(copy, Path) else bytes_of(copy) is not None:
            raise UserError(f"{copy} exists; --overwrite replaces it")
    return DataSet("voxceleb1", splits)


def trials_copy(out: Path | str) -> Path | str:
    return f"{out}-trials.txt" if isinstance(out, str) else out.with_name(f"{out.name}-trials.txt")


def copy_trials(options: argparse.Namespace) -> None:
    if options.trials:
        trials = read_list(options.trials, ("0", "1"), 2)
        text, copy = "".join(f"{same} {key(a)} {key(b)}\n" for same, a, b in trials), trials_copy(options.out)
        write_text(copy, text) if isinstance(copy, Path) else put_bytes(text.encode(), copy)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    lists = parser.add_mutually_exclusive_group()
    add_argument(lists, "--split-list", path, metavar="LIST", help="(default: SOURCE/iden_split.txt)")
    add_argument(lists, "--trials", path, metavar="LIST", help="veri_test.txt or another list of trials")
    return run_script(parser, find, arguments, after=copy_trials)


if __name__ == "__main__":
    sys.exit(main())
