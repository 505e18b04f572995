"""What lies below a folder: recordings once each, and what is passed over, counted."""

import os
from pathlib import Path

import pytest

from ssamba.errors import UserError
from ssamba.folders import look_below
from ssamba.recordings import ENDINGS


def names(folder: Path) -> list[str]:
    return [path.as_posix() for path in look_below(folder).recordings]


@pytest.mark.parametrize("ending", sorted(ENDINGS))
def test_every_ending_in_whatever_letters(ending: str, tmp_path: Path) -> None:
    for name in (f"a/1{ending}", f"2{ending.upper()}"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert names(tmp_path) == [f"2{ending.upper()}", f"a/1{ending}"]
    assert not look_below(tmp_path).passed_over


def test_what_is_passed_over(tmp_path: Path) -> None:
    for name in (
        "x.wav",
        "._x.wav",
        "notes.txt",
        "b/more.txt",
        "README",
        ".git/x.wav",
        "__MACOSX/a/._x.wav",
        "Thumbs.db",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.wav").mkdir()
    os.mkfifo(tmp_path / "pipe.wav")
    below = look_below(tmp_path)
    assert below.recordings == [Path("x.wav")]
    assert below.empty == [Path("b"), Path("folder.wav")]
    assert below.passed_over == {
        "hidden": 2,
        ".txt": 2,
        "no ending": 1,
        "__MACOSX": 1,
        "Thumbs.db": 1,
        "no file but a pipe or device": 1,
    }
    assert "2 x .txt (notes.txt, ...)" in str(below.passed_over) and "1 x __MACOSX (__MACOSX)" in str(below.passed_over)


def test_links(tmp_path: Path) -> None:
    """To a file: it, whether it is there or not. To a folder: what lies there, once; not what lies above."""
    top, store = tmp_path / "top", tmp_path / "store"
    (top / "inside").mkdir(parents=True)
    (store / "cat").mkdir(parents=True)
    for path in (top / "inside" / "a.wav", store / "cat" / "b.wav"):
        path.touch()
    for link, to in (
        ("inside/again.wav", "a.wav"),
        ("inside/gone.wav", "nowhere.wav"),
        ("cat", "../store/cat"),
        ("cat2", "../store/cat"),
        ("loop", "."),
        ("inside/up", ".."),
        ("above", "../.."),
        ("first", "inside"),
    ):
        os.symlink(to, top / link)
    below = look_below(top)
    found = [path.as_posix() for path in below.recordings]
    assert found == ["cat/b.wav", "inside/a.wav", "inside/again.wav", "inside/gone.wav"]
    assert below.passed_over == {"link to a folder that is taken elsewhere or lies above": 5}
    # Each is named, for each may have been a label.
    assert str(below.passed_over).endswith(" (above, cat2, first, inside/up, loop)")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(UserError, match="closed cannot be read"):
        look_below(tmp_path)
