"""What lies below a folder: recordings once each, what is passed over, counted; what stands for which recordings."""

import os
from pathlib import Path

import pytest

from ssamba.errors import UserError
from ssamba.folders import find_recordings, look_below
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


# Files, folders and patterns


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name in (
        "b.wav",
        "a.FLAC",
        "notes.txt",
        ".hidden.wav",
        "deep/er/c.ogg",
        "deep/d.aif",
        ".git/e.wav",
        "take[1].wav",
        "deep/raw.raw",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "none").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("places", "wanted"),
    [
        (["."], ["a.FLAC", "b.wav", "deep/d.aif", "deep/er/c.ogg", "take[1].wav"]),
        (["notes.txt", "deep/er/../er/c.ogg"], ["notes.txt", "deep/er/../er/c.ogg"]),
        (["deep/d.aif", ".", "./b.wav"], ["deep/d.aif", "a.FLAC", "b.wav", "deep/er/c.ogg", "take[1].wav"]),
        (["*.wav", "b.wav"], ["b.wav", "take[1].wav"]),
        (["**/*.ogg"], ["deep/er/c.ogg"]),
        (["de*"], ["deep/d.aif", "deep/er/c.ogg"]),
        (["take[1].wav"], ["take[1].wav"]),
    ],
)
def test_files_folders_and_patterns(
    places: list[str], wanted: list[str], files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    found = find_recordings(places)
    assert [path.removeprefix("./") for path in found] == wanted


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("gone.wav", "gone.wav does not exist"),
        ("*.mp3", r"\*.mp3 matches no file"),
        ("none", "none holds no recording"),
    ],
)
def test_what_is_not_there(place: str, said: str, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)
    with pytest.raises(UserError, match=said):
        find_recordings(["b.wav", place])


def test_a_home_links_and_what_is_no_file(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links to folders are followed, each folder once; pipes and folders that are named as recordings are none."""
    monkeypatch.setenv("HOME", str(files))
    (files / "elsewhere").mkdir()
    (files / "elsewhere/x.m4a").touch()
    view = files / "view"
    (view / "folder.wav").mkdir(parents=True)
    (view / "folder.wav/inner.wav").touch()
    os.mkfifo(view / "pipe.wav")
    os.symlink("gone.wav", view / "dangling.wav")
    os.symlink("../elsewhere", view / "linked")
    os.symlink("../elsewhere", view / "linked again")
    os.symlink("..", view / "above")
    found = [Path(path).relative_to(view).as_posix() for path in find_recordings(["~/view"])]
    assert found == ["folder.wav/inner.wav", "linked/x.m4a"]
    for place in (str(view / "pipe.wav"), "~/view/pi*.wav"):
        with pytest.raises(UserError, match="is a pipe or a device; expected a file"):
            find_recordings([place])
