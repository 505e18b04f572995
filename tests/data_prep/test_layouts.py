"""A layout that is nearly right: every script of a public data set says what it looked for and what it found."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import layouts
import pytest
import test_scripts
from layouts import SCRIPTS

from ssamba.folders import instead, there

fails = test_scripts.fails


class Nearly(NamedTuple):
    """A data set's layout, and what of it a script needs: a list, and a folder in it."""

    make: Callable[[Path], object]
    options: tuple[str, ...] = ()
    table: str | None = None
    folder: str | None = None


SETS = {
    "audioset": Nearly(layouts.audioset, (), "eval_segments.csv", "clips/e"),
    "epic_sounds": Nearly(layouts.epic_sounds, (), "EPIC_Sounds_train.csv", "P01"),
    "esc50": Nearly(layouts.esc50, (), "meta/esc50.csv", "audio"),
    "fma": Nearly(layouts.fma, (), "fma_metadata/tracks.csv", "fma_small"),
    "fsdd": Nearly(layouts.fsdd, (), None, "recordings"),
    "gtzan": Nearly(layouts.gtzan, ("--max-bad-fraction=0.91",), None, "genres"),
    "iemocap": Nearly(layouts.iemocap, ("--test-session=1",), "Session2/dialog/EmoEvaluation", "Session3/sentences"),
    "librispeech": Nearly(layouts.librispeech, ("--transcripts",), "dev-clean/84/1240/84-1240.trans.txt"),
    "nsynth": Nearly(layouts.nsynth, (), "nsynth-valid/examples.json", "nsynth-test/audio"),
    "soundscapes": Nearly(layouts.urbansound8k, (), "metadata/UrbanSound8K.csv", "audio/fold3"),
    "speech_commands": Nearly(layouts.speech_commands_v1, ("--version=v1",), "testing_list.txt", "yes"),
    "urbansound8k": Nearly(layouts.urbansound8k, (), "metadata/UrbanSound8K.csv", "audio/fold3"),
    "vggsound": Nearly(layouts.vggsound, (), "vggsound.csv", "test"),
    "voxceleb1": Nearly(lambda root: layouts.voxceleb1(root, ("wav", "wav")), (), "iden_split.txt", "wav"),
}
# Of one's own recordings, in whatever folders or by whatever list, as other programs keep them, and of none.
WITHOUT_A_LAYOUT = {"folder", "huggingface", "lhotse", "listed", "synthesize"}


def test_every_script_is_here() -> None:
    assert set(SETS) | WITHOUT_A_LAYOUT == {path.stem for path in SCRIPTS.glob("*.py")}


@pytest.mark.parametrize("name", SETS)
def test_a_folder_too_high(name: str, tmp_path: Path, fails: Callable[..., str]) -> None:
    """SOURCE holds a folder of another name that holds what is looked for."""
    nearly = SETS[name]
    nearly.make(tmp_path / "in" / "downloads")
    said = fails(name, *nearly.options)
    assert "expected " in said or "are missing" in said
    assert f"{tmp_path / 'in'} holds downloads/" in said


@pytest.mark.parametrize("name", [name for name, nearly in SETS.items() if nearly.table])
def test_a_list_is_missing(name: str, tmp_path: Path, fails: Callable[..., str]) -> None:
    nearly = SETS[name]
    assert nearly.table
    nearly.make(tmp_path / "in")
    path = tmp_path / "in" / nearly.table
    path.rename(path.with_name("a-list"))
    said = fails(name, *nearly.options)
    assert str(path) in said and "expected " in said
    assert f"{path.parent} holds " in said and "a-list" in said


@pytest.mark.parametrize("name", [name for name, nearly in SETS.items() if nearly.folder])
def test_a_folder_has_another_name(name: str, tmp_path: Path, fails: Callable[..., str]) -> None:
    nearly = SETS[name]
    assert nearly.folder
    nearly.make(tmp_path / "in")
    path = tmp_path / "in" / nearly.folder
    path.rename(path.with_name("a-renamed"))
    if name in ("audioset", "epic_sounds", "vggsound"):
        # Clips are known by their names, whatever folders they are in.
        for index, clip in enumerate(sorted(path.with_name("a-renamed").iterdir())):
            clip.rename(clip.with_name(f"clip {index}.wav"))
    said = fails(name, *nearly.options)
    assert "a-renamed" in said and ("expected " in said or "is missing" in said or "are missing" in said)


def test_where_it_is_instead(tmp_path: Path) -> None:
    for name in ("a/b/list.csv", "a/c.txt", *(f"d/{number}" for number in range(10)), ".hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = tmp_path / "a" / "b" / "list.csv"
    assert instead(tmp_path / "b" / "list.csv") == f"{tmp_path} holds a/, d/; {found} is there"
    assert instead(tmp_path / "list.csv") == f"{tmp_path} holds a/, d/; {found} is there"
    assert instead(tmp_path / "d" / "c.txt").endswith(f"{tmp_path / 'd'} holds 0, 1, 2, 3, 4, 5, 6, 7 and 2 more")
    assert instead(tmp_path / "d" / "a" / "c.txt").endswith(f"and 2 more; {tmp_path / 'a' / 'c.txt'} is there")
    assert there(tmp_path, "*.txt") == f"{tmp_path} holds a/, d/; {tmp_path / 'a' / 'c.txt'} is there"
    assert instead(tmp_path / "[a]").endswith("holds a/, d/")  # no pattern
    shutil.rmtree(tmp_path / "d")
    (tmp_path / "d").mkdir()
    assert there(tmp_path / "d", "x") == f"{tmp_path / 'd'} holds nothing"
