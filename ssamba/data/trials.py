"""Lists of trials: pairs of recordings, and whether they are of one speaker."""

import os
from pathlib import Path
from typing import NamedTuple

from ssamba.errors import UserError
from ssamba.files import read_bounded

_TARGETS = {"1": True, "0": False, "target": True, "nontarget": False, "imposter": False}
_NAMED = 8
_MOST_BYTES = 1 << 30


class Trial(NamedTuple):
    """Two recordings by their names in the list, and whether they are of one speaker."""

    first: str
    second: str
    target: bool


def read_trials(path: Path) -> list[Trial]:
    """A list of trials, one a line: `1 id10270/a/1.wav id10270/b/2.wav` as VoxCeleb's (1: one speaker, 0: two), or
    `enroll.wav test.wav target` as NIST's (target or nontarget); blank lines are passed over.

    Raises:
        UserError: it cannot be read, or lines are none of these, all of them named; or all trials are of one kind.
    """
    try:
        lines = read_bounded(path, "a list of trials", _MOST_BYTES).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} cannot be read ({error}); expected a list of trials in UTF-8") from error
    trials: list[Trial] = []
    wrong: list[str] = []
    for count, line in enumerate(lines, 1):
        match line.split():
            case []:
                continue
            case [("0" | "1") as word, first, second]:
                trials.append(Trial(first, second, _TARGETS[word]))
            case [first, second, word] if word in _TARGETS:
                trials.append(Trial(first, second, _TARGETS[word]))
            case _:
                wrong.append(f"line {count}: {line[:100]}")
    if wrong:
        more = [f"and {len(wrong) - _NAMED} more"] if len(wrong) > _NAMED else []
        raise UserError(
            f"{path}: {len(wrong)} lines are no trials; expected `1 FIRST SECOND` (0: two speakers) or `FIRST SECOND "
            "target` (nontarget)",
            *wrong[:_NAMED],
            *more,
        )
    if not any(trial.target for trial in trials) or all(trial.target for trial in trials):
        kinds = f"{len(trials)} trials, of one kind" if trials else "no trial"
        raise UserError(f"{path} has {kinds}; expected some of one speaker and some of two")
    return trials


def find_trial_recordings(trials: list[Trial], folder: Path, source: Path) -> dict[str, str]:
    """The file of each recording by its name in the trials, which is relative to a folder, or whole.

    Raises:
        UserError: some are not there.
    """
    names = dict.fromkeys(name for trial in trials for name in (trial.first, trial.second))
    paths = {name: os.path.join(folder, name) for name in names}
    if missing := [name for name, path in paths.items() if not os.path.isfile(path)]:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise UserError(
            f"{len(missing)} of the {len(names)} recordings that {source} names are not in {folder}: "
            f"{', '.join(missing[:_NAMED])}{more}; expected --recordings FOLDER, to which its names are relative"
        )
    return paths
