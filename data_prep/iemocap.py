"""Shards of IEMOCAP in its usual four classes: ang, hap (with exc), neu and sad, 5,531 utterances.

SOURCE is the folder IEMOCAP_full_release with Session1 to Session5 (or the one that holds it). The split test is one
session, whose speakers are in no other; of the rest a fraction, drawn by the seed, is the split validation. Labels:
emotion, session and speaker.
"""

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from ssamba.data.prepare.recordings import DataSet, Recording, check_present, drawn
from ssamba.data.prepare.script import run_script
from ssamba.data.prepare.sources import unpacked
from ssamba.errors import UserError
from ssamba.folders import instead
from ssamba.values import add_argument, share, whole_number

log = logging.getLogger("ssamba.iemocap")

EMOTIONS = ("ang", "hap", "neu", "sad")
MERGED = {"exc": "hap"}
SESSIONS = range(1, 6)
# [start - end], utterance, what most of the raters said, [valence, activation, dominance]: the lines below are theirs.
_LINE = re.compile(r"\[[\d.]+ - [\d.]+\]\t(Ses0\d[FM]_\w+_([FM])\w+)\t(\w+)\t\[")


def session_recordings(source: Path, session: int) -> tuple[list[Recording], int]:
    """A session's utterances of the four classes, and how many it has of all."""
    folder = source / f"Session{session}"
    dialogs = sorted((folder / "dialog" / "EmoEvaluation").glob("Ses*.txt"))
    if not dialogs:
        raise UserError(
            f"{folder}/dialog/EmoEvaluation has no Ses*.txt; expected IEMOCAP_full_release with Session1 to Session5; "
            + instead(folder / "dialog" / "EmoEvaluation")
        )
    recordings, total = [], 0
    for dialog in dialogs:
        for line in dialog.read_text(encoding="utf-8", errors="replace").splitlines():
            if not (parts := _LINE.match(line)):
                continue
            total += 1
            utterance, gender, emotion = parts.groups()
            emotion = MERGED.get(emotion, emotion)
            if emotion in EMOTIONS:
                path = folder / "sentences" / "wav" / dialog.stem / f"{utterance}.wav"
                labels = {"emotion": emotion, "session": str(session), "speaker": f"Ses{session:02d}{gender}"}
                recordings.append(Recording(utterance, path, labels))
    if not recordings:
        raise UserError(f"{dialogs[0].parent} has no utterance of {', '.join(EMOTIONS)}: unpack the archive again")
    return recordings, total


def find(options: argparse.Namespace) -> DataSet:
    source = unpacked(options.source, "IEMOCAP_full_release")
    sessions = {session: session_recordings(source, session) for session in SESSIONS}
    labelled = sum(len(recordings) for recordings, _ in sessions.values())
    log.info(
        "%d of %d utterances have one of the four emotions", labelled, sum(total for _, total in sessions.values())
    )
    rest = [one for session in SESSIONS if session != options.test_session for one in sessions[session][0]]
    rest.sort(key=lambda one: drawn(options.seed, one.key))
    count = round(options.validation * len(rest))
    splits = {"train": rest[count:], "validation": rest[:count], "test": sessions[options.test_session][0]}
    if not options.validation:
        del splits["validation"]
    check_present(splits, options.max_bad_fraction)
    return DataSet(f"iemocap-{options.test_session}", splits, {"emotion": EMOTIONS})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    test, validation = "the split test: 1 to 5", "fraction of the rest for the split validation (default: %(default)s)"
    add_argument(
        parser, "--test-session", whole_number, SESSIONS[0], SESSIONS[-1], required=True, metavar="N", help=test
    )
    add_argument(parser, "--validation", share, 0, 1, default=0.2, metavar="X", help=validation)
    return run_script(parser, find, arguments)


if __name__ == "__main__":
    sys.exit(main())
