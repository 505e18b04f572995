"""Lists as people and programs write them: the same recordings, the same labels, or every offender by name."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ssamba.data.prepare.lists import LABELS, PATHS, SPLITS, Columns, Labels, read_list, split_names
from ssamba.errors import UserError

PAIRS = {"wav/0.wav": "cat", "wav/1.wav": "dog", "wav/2 b.wav": "Speech, human"}


def table(delimiter: str = ",", head: str = "path,label", end: str = "\n", space: str = "") -> str:
    quoted = ['"Speech, human"' if "," in label else label for label in PAIRS.values()]
    rows = [head.split(","), *([path, label] for path, label in zip(PAIRS, quoted, strict=True))]
    return "".join(f"{space}{delimiter}{space}".join(row) + end for row in rows)


WAYS: dict[str, Callable[[], bytes]] = {
    **{f"between fields {delimiter!r}": lambda d=delimiter: table(d).encode() for delimiter in ",;\t|"},  # type: ignore[misc]
    **{f"end {end!r}": lambda e=end: table(end=e).encode() for end in ("\n", "\r\n", "\r")},  # type: ignore[misc]
    **{f"path as {name}": lambda n=name: table(head=f"{n},label").encode() for name in PATHS},  # type: ignore[misc]
    **{f"label as {name}": lambda n=name: table(head=f"path,{n}").encode() for name in LABELS},  # type: ignore[misc]
    "in capitals": lambda: table(head="File_Name,CATEGORY").encode(),
    "with a mark": lambda: table().encode("utf-8-sig"),
    "UTF-16": lambda: table().encode("utf-16"),
    "spaces": lambda: table(space=" ").encode(),
    "spaces at the ends": lambda: table().replace("\n", "  \n").encode(),
    "blank lines": lambda: table().replace("\n", "\n\n").encode() + b"\n  \n,\n",
    "a separator at the end": lambda: table().replace("\n", ",\n").encode(),
    "the same rows again": lambda: (table() + table().partition("\n")[2]).encode(),
    "dots before": lambda: table().replace("wav/", "./wav/").encode(),
    "no end of the last line": lambda: table().rstrip().encode(),
    "a quoted header": lambda: table(head='"path","label"').encode(),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "wav").mkdir()
    for path in PAIRS:
        (tmp_path / path).touch()
    return tmp_path


def labels_of(place: Path, separator: str | None = None, **told: str) -> dict[str, Labels]:
    """Name -> labels, of the recordings of a list."""
    entries = read_list(place, "kind", Columns(**told), separator)
    return {entry.path.relative_to(place.parent).as_posix(): entry.labels for entry in entries}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ending", [".csv", ".tsv", ".txt"])
def test_a_table_in_every_way(way: str, ending: str, folder: Path) -> None:
    path = folder / f"list{ending}"
    path.write_bytes(WAYS[way]())
    assert labels_of(path) == {name: {"kind": label} for name, label in PAIRS.items()}


def test_told_columns(folder: Path) -> None:
    path = folder / "list.csv"
    path.write_text(table(":", head="a,b"))
    assert labels_of(path, path="a", label="b", delimiter=":") == {n: {"kind": kind} for n, kind in PAIRS.items()}
    for columns, said in (
        ({"path": "x", "delimiter": ":"}, "--path-column is x; .* has the columns"),
        ({"path": "a", "label": "x", "delimiter": ":"}, "--label-column is x"),
        ({"delimiter": ":"}, "expected one for a path"),
    ):
        with pytest.raises(UserError, match=said):
            labels_of(path, **columns)


@pytest.mark.parametrize(
    ("ending", "text"),
    [
        (".json", json.dumps({"data": [{"wav": path, "label": label} for path, label in PAIRS.items()]})),
        (".json", json.dumps([{"path": path, "category": label} for path, label in PAIRS.items()])),
        (".json", "\ufeff" + json.dumps({f"u{n}": {"wav": p, "label": k} for n, (p, k) in enumerate(PAIRS.items())})),
        (".jsonl", "\n".join(json.dumps({"file": path, "class": label}) for path, label in PAIRS.items()) + "\n\n"),
    ],
)
def test_a_json_in_every_shape(ending: str, text: str, folder: Path) -> None:
    path = folder / f"list{ending}"
    path.write_text(text, encoding="utf-8")
    assert labels_of(path) == {name: {"kind": label} for name, label in PAIRS.items()}


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ({"labels": "a,b"}, ["a", "b"]),
        ({"labels": "a, b"}, ["a", "b"]),
        ({"labels": ["a", "b"]}, ["a", "b"]),
        ({"label": "a,b"}, "a,b"),
        ({"labels": 3}, "3"),
        ({"label": 3}, "3"),
        ({"class": [1, 2]}, ["1", "2"]),
    ],
)
def test_labels_of_a_json(written: dict[str, object], read: object, folder: Path) -> None:
    path = folder / "list.json"
    path.write_text(json.dumps([{"wav": "wav/0.wav", **written}]))
    assert labels_of(path) == {"wav/0.wav": {"kind": read}}


def test_several_labels_of_a_table(folder: Path) -> None:
    path = folder / "list.csv"
    path.write_text("path,label\nwav/0.wav,cat;dog\nwav/1.wav,dog;\nwav/2 b.wav, cat ; dog\nwav/1.wav,cow\n")
    several = {"wav/0.wav": ["cat", "dog"], "wav/1.wav": ["dog", "cow"], "wav/2 b.wav": ["cat", "dog"]}
    assert labels_of(path, separator=";") == {name: {"kind": names} for name, names in several.items()}
    with pytest.raises(UserError, match=r"line 5 has .*1.wav with .*cow.*, and line 3 has it with .*dog;.*separator"):
        labels_of(path)


def test_where_recordings_lie(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    path = folder / "list.csv"
    path.write_text(f"path\n~/wav/0.wav\n{folder}/wav/1.wav\nwav\\2 b.wav\nC:\\gone.wav\n")
    names = [entry.path for entry in read_list(path, None, Columns())]
    assert names == [folder / "wav/0.wav", folder / "wav/1.wav", folder / "wav/2 b.wav", folder / "C:/gone.wav"]


def test_columns_that_tell_nothing_as_labels(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder / "list.csv"
    path.write_text("path,label,room,seconds\n" + "".join(f"{n}.wav,x,{n % 2},{n / 7}\n" for n in range(9)))
    assert labels_of(path)["3.wav"]["room"] == "1"
    assert "the column seconds has another value in each row" in caplog.text and "column room" not in caplog.text


def test_all_offenders_are_named_at_once(folder: Path) -> None:
    path = folder / "list.csv"
    path.write_text("path,label\n" + "wav/0.wav,\n,x\nwav/1.wav,dog\n" * 8)
    with pytest.raises(UserError) as told:
        labels_of(path)
    message, *details = str(told.value).split("\n  ")
    assert f"{path} has 16 entries that cannot be used" in message
    assert details[:2] == ["line 2 is ['wav/0.wav', '']", "line 3 is ['', 'x']"]
    assert len(details) == 11 and details[-1] == "and 6 more"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "has the columns \\[\\]"),
        (b"<html>403</html>", "is a page of HTML"),
        (b"\0\1\2", "NUL characters"),
        (b"path,label\n\xff,x\n", "cannot be read"),
        (b"path,path\nx,y\n", "expected each once"),
        (b'path,label\n"wav/0.wav,x\n', "cannot be read"),
        (b"path,label\nwav/0.wav\n", "line 2 is"),
        (b"path,label\nwav/0.wav,x,y\n", "line 2 is"),
        (b"wav/0.wav,x\n", "has the columns"),
    ],
)
def test_what_is_no_table(content: bytes, said: str, folder: Path) -> None:
    path = folder / "list.csv"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as told:
        labels_of(path)
    assert str(path) in str(told.value)


def test_what_splits_are_called() -> None:
    assert {split_names([name])[name] for name in SPLITS} == {"train", "validation", "test"}
    assert split_names(["Train", "DEV", "fold1"]) == {"Train": "train", "DEV": "validation", "fold1": "fold1"}
    with pytest.raises(UserError, match="dev and val are both names of the split validation"):
        split_names(["dev", "val"])


@pytest.mark.parametrize("delimiter", ["", "ab", "::"])
def test_a_delimiter_is_one_character(delimiter: str, folder: Path) -> None:
    (folder / "list.csv").write_text(table())
    with pytest.raises(UserError, match="expected one character"):
        labels_of(folder / "list.csv", delimiter=delimiter)


def test_columns_that_are_no_labels(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder / "list.csv"
    path.write_text(
        ",Unnamed: 0,path,filename,label,category,start\n0,0,wav/0.wav,0.wav,cat,pet,0\n1,1,wav/1.wav,1.wav,dog,pet,0\n"
    )
    assert labels_of(path)["wav/1.wav"] == {"kind": "dog", "category": "pet", "start": "0"}
    for said in (
        "['', 'Unnamed: 0', 'filename'] are no labels",
        "label is taken for the labels, and category as",
        "column start is taken as a label; recordings are taken whole",
    ):
        assert said in caplog.text
