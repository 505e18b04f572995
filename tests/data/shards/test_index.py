import copy
import hashlib
import io
import json
import math
import pickle
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from braceexpand import braceexpand
from changed_index import changed, table

from ssamba.data.shards.index import SAMPLE, ShardIndex, ShardInfo, Skipped, find_shards
from ssamba.data.shards.urls import expand_braces
from ssamba.errors import UserError


def names(found: Any, root: Path) -> list[str]:
    return [str(shard.path.relative_to(root)) for shard in found.shards]


def test_a_folder(made: Path) -> None:
    found = find_shards(str(made / "a" / "train"))
    assert names(found, made) == ["a/train/000000.tar", "a/train/000001.tar", "a/train/000002.tar"]
    assert found.paths == [str(shard.path) for shard in found.shards]
    assert (found.samples, found.sampling_rate) == (6, 16000)
    assert found.seconds == pytest.approx(0.6)
    assert found.labels == {"parity": ("even", "odd")}
    joined = "".join(hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in found.paths)
    assert found.fingerprint == hashlib.sha256(joined.encode()).hexdigest()


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        ("a/train/000001.tar", ["a/train/000001.tar"]),
        ("a/train/*.tar", ["a/train/000000.tar", "a/train/000001.tar", "a/train/000002.tar"]),
        ("a/train/00000[02].tar", ["a/train/000000.tar", "a/train/000002.tar"]),
        ("a/train/{000001..000002}.tar", ["a/train/000001.tar", "a/train/000002.tar"]),
        ("{b,a}/t*t/*.tar", None),
        ("{b/train,a/test}", ["b/train/000000.tar", "a/test/000000.tar"]),
        ("a/*", ["a/test/000000.tar", *(f"a/train/00000{n}.tar" for n in range(3))]),
        ("a/test/*", ["a/test/000000.tar"]),
        (["b/train", "a/train/000002.tar"], ["b/train/000000.tar", "a/train/000002.tar"]),
    ],
)
def test_patterns(made: Path, sources: str | list[str], expected: list[str] | None) -> None:
    given = f"{made}/{sources}" if isinstance(sources, str) else [str(made / one) for one in sources]
    if expected is None:
        with pytest.raises(UserError, match="matches no .tar"):
            find_shards(given)
    else:
        assert names(find_shards(given), made) == expected


def test_paths_are_absolute_and_the_user_is_at_home(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made / "a")
    assert find_shards("test").paths == [str(made / "a" / "test" / "000000.tar")]
    monkeypatch.setenv("HOME", str(made))
    assert find_shards("~/a/test").paths == [str(made / "a" / "test" / "000000.tar")]


def test_a_folder_named_like_a_pattern(shards: Path) -> None:
    (shards / "a").rename(shards / "{a}[1]")
    assert find_shards(str(shards / "{a}[1]" / "train")).samples == 6
    assert find_shards(str(shards / "{a}[1]" / "train" / "000001.tar")).samples == 2


def test_the_fingerprint_is_of_the_content_and_its_order(made: Path, shards: Path) -> None:
    def fingerprint(root: Path, *sources: str) -> str:
        return find_shards([str(root / source) for source in sources]).fingerprint

    assert fingerprint(made, "a/train") == fingerprint(shards, "a/train") == fingerprint(made, "a/train/*.tar")
    assert fingerprint(made, "a/train", "b/train") != fingerprint(made, "b/train", "a/train")
    assert fingerprint(made, "a/train") != fingerprint(made, "a/test")


def test_labels_of_several_data_sets(shards: Path) -> None:
    both = [str(shards / "a" / "train"), str(shards / "b" / "train")]
    joined = find_shards(both)
    assert joined.labels == {"parity": ("even", "odd"), "colour": ("red",)}
    assert joined.label_list("parity") == ("even", "odd") and joined.label_list("colour") == ("red",)
    changed(shards / "b" / "train", labels={"parity": ["odd", "even"]})
    joined = find_shards(both)  # as pretraining does, which reads no labels
    assert joined.samples == 8
    with pytest.raises(
        UserError, match=r"a/train and .*b/train have different lists for the label 'parity' \(2 names: e"
    ):
        joined.label_list("parity")


def test_an_index_comes_back(tmp_path: Path) -> None:
    shards = (
        ShardInfo("000000.tar", 3, 1.5, 10240, "ab" * 32),
        ShardInfo("000001.tar", 2, 0.25, 10240, "cd" * 32),
    )
    skipped = (Skipped("x.wav", "it holds no samples"),)
    index = ShardIndex("toy", "train", 8000, {"label": ("ö", "b")}, skipped, shards, "ef" * 32, {".txt": 3})
    index.write(tmp_path)
    assert ShardIndex.read(tmp_path) == index
    assert (index.samples, index.seconds) == (5, 1.75)
    assert [path.name for path in tmp_path.iterdir()] == ["index.json"]


def test_nothing_there(shards: Path) -> None:
    for sources, message in (
        ([], "no shards are given"),
        (str(shards / "a" / "none*.tar"), "none.*matches no .tar and no folder"),
        (str(shards / "none"), "none is no folder and no .tar"),
        (str(shards / "a" / "train" / "{000000..000003}.tar"), "the shard .*000003.tar is missing"),
        (str(shards / "a" / "train" / "{000000.tar"), "unbalanced braces"),
        (str(shards / "a" / "train" / "index.json"), "index.json is no folder and no .tar"),
        (str(shards / "a"), r"a has no index.json; .*data_prep.*Its folders have one: give .*a/test or .*a/train"),
        (["", str(shards / "b" / "train")], "has no index.json"),
    ):
        with pytest.raises(UserError, match=message):
            find_shards(sources)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no index.json; expected the one that data_prep's scripts .* write: make the shards again"),
        ("{", "cannot be used: Input data was truncated; expected the index.json of a writer: make the shards again"),
        ("[]", "cannot be used: Expected `object`, got `array`"),
        ("<!DOCTYPE html><html>Please log in</html>", "is a page of HTML or XML, perhaps a server's message"),
        ('{"format": "ssamba-shards-9"}', "has the format 'ssamba-shards-9'; expected 'ssamba-shards-2'"),
        ('{"format": "ssamba-shards-2"}', "cannot be used: Object missing required field `dataset`"),
    ],
)
def test_an_index_that_is_none(shards: Path, content: str | None, message: str) -> None:
    index = shards / "a" / "train" / "index.json"
    index.unlink()
    if content is not None:
        index.write_text(content)
    for source in (shards / "a" / "train", shards / "a" / "train" / "000000.tar"):
        with pytest.raises(UserError, match=message):
            find_shards(str(source))


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ({"name": "../../b/train/000000.tar"}, "is not the name of a .tar beside it"),
        ({"bytes": -(10**9)}, r"Expected `int` >= 0 at `shards.0..bytes`"),
        ({"samples": "2"}, "Expected `int`, got `str`"),
        ({"samples": 0}, "is empty"),
    ],
)
def test_an_index_with_an_odd_shard(shards: Path, shard: dict[str, Any], message: str) -> None:
    folder = shards / "b" / "train"
    listed = json.loads((folder / "index.json").read_text())["shards"][0]
    changed(folder, shards=[{**listed, **shard}])
    with pytest.raises(UserError, match=message):
        find_shards(str(folder))


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where in a JSON something stands: keys and numbers, outermost first."""
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from places(value, (*path, key))


# For every place of an index; what is right there stands in none of them.
WRONG: tuple[Any, ...] = (
    None,
    True,
    -1,
    1.5,
    10**12,
    2**70,
    "",
    "x\0",
    "..",
    "x" * 20_000,
    [],
    [[]],
    {},
    {"": 1},
    math.nan,
    math.inf,
    -math.inf,
)
HARMLESS = {"labels", "dataset", "split", "source", "why", "skipped", "passed_over", "descriptions", "above_full_scale"}


def test_every_field_of_an_index_with_every_wrong_value(made: Path, tmp_path: Path) -> None:
    """One message, or an index in which nothing is wrong; no place of it takes a value of another type."""
    right = json.loads((made / "a" / "test" / "index.json").read_text())
    right["skipped"] = [{"source": "x", "why": "y"}]
    right["passed_over"] = {".txt": 3}
    right["descriptions"] = {"bytes": 3, "sha256": "ab" * 32, "fields": {"label": "cls"}}
    tried = taken = 0
    for place in places(right):
        for wrong in (*WRONG, KeyError):
            content = copy.deepcopy(right)
            holder = content
            for key in place[:-1]:
                holder = holder[key]
            if wrong is KeyError:
                del holder[place[-1]]
            else:
                holder[place[-1]] = wrong
            tried += 1
            try:
                index = ShardIndex.parse(json.dumps(content).encode(), "PLACE/index.json")
            except UserError as error:
                assert str(error).startswith("PLACE/index.json ") and "\n" not in str(error)
                continue
            taken += 1
            # How many bytes a shard has is compared with the file.
            assert HARMLESS & set(place) or place[-1] == "bytes", (place, wrong)
            assert index.sampling_rate == 16000 and index.samples == 2
    assert tried > 500 and taken < tried / 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 3}, "its shards have 2 samples and 0.200 s, and it says 3 and"),
        ({"seconds": 1.0}, "its shards have 2 samples and 0.200 s, and it says 2 and 1.000 s"),
        ({"labels": {"parity": ["odd", "odd"]}}, "the label 'parity' has a name twice"),
        ({"labels": {"parity": []}}, "the label 'parity' has no names"),
        ({"sampling_rate": 10**12}, "at `sampling_rate`"),
        ({"sampling_rate": -5}, "at `sampling_rate`"),
    ],
)
def test_an_index_that_contradicts_itself(shards: Path, change: dict[str, Any], message: str) -> None:
    changed(shards / "a" / "test", **change)
    with pytest.raises(UserError, match=message):
        find_shards(str(shards / "a" / "test"))


@pytest.mark.parametrize(
    "name", ["a\0b.tar", "a" * 300 + ".tar", "..", ".", "", "/etc/x.tar", "a/b.tar", "passwd", "é" * 200]
)
def test_names_that_are_no_shard_beside_the_index(shards: Path, name: str) -> None:
    folder = shards / "b" / "train"
    listed = json.loads((folder / "index.json").read_text())["shards"][0]
    changed(folder, shards=[{**listed, "name": name}])
    with pytest.raises(UserError, match="index.json cannot be used: .*name"):
        find_shards(str(folder))


def test_a_shard_that_is_listed_twice(shards: Path) -> None:
    folder = shards / "b" / "train"
    listed = json.loads((folder / "index.json").read_text())["shards"]
    changed(folder, shards=listed * 2)
    with pytest.raises(UserError, match="it lists a shard twice"):
        find_shards(str(folder))


@pytest.mark.parametrize("content", [b'{"format":' * 100_000, b"[" * 100_000, b"\xff", b"\0", b"", b"\xef\xbb\xbf{}"])
def test_an_index_that_is_no_json(shards: Path, content: bytes) -> None:
    (shards / "b" / "train" / "index.json").write_bytes(content)
    with pytest.raises(UserError, match=r"index.json cannot be used: .*; expected the index.json of a writer"):
        find_shards(str(shards / "b" / "train"))


def test_an_index_without_an_end(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssamba.data.shards.index._MOST_BYTES", 1000)
    monkeypatch.setattr("ssamba.data.shards.transport.FIRST_WAIT_SECONDS", 0.0)
    path = shards / "b" / "train" / "index.json"
    path.write_bytes(path.read_bytes() + b" " * 1000)
    with pytest.raises(UserError, match="index.json has more than 1000 bytes; expected the index.json"):
        find_shards(str(path.parent))
    with pytest.raises(UserError, match="in 2 attempts; the last: it is larger than the 1000 bytes expected"):
        find_shards("pipe:cat /dev/zero #/index.json", tmp_path / "cache")


def rows(count: int, **columns: str) -> np.ndarray[Any, Any]:
    kinds = {"audio": "<i8", "audio_bytes": "<i4", "json": "<i8", "json_bytes": "<i4", "length": "<i4", **columns}
    return np.zeros(count, [(name, kind) for name, kind in kinds.items()])


def as_npy(array: Any, **settings: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, array, **settings)
    return content.getvalue()


def huge(shape: str, descr: str = "'<f8'") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


TABLES = {
    "a pickle": pickle.dumps(1),
    "an array of objects": as_npy(np.array([{}, 1], object), allow_pickle=True),
    "numbers": as_npy(np.zeros(2)),
    "fewer": as_npy(rows(1)),
    "more": as_npy(rows(3)),
    "a matrix": as_npy(rows(2)[None]),
    "a single one": as_npy(rows(1)[0]),
    "another type": as_npy(rows(2, length="<f4")),
    "wider": as_npy(rows(2, length="<i8")),
    "of the other order": as_npy(rows(2, length=">i4")),
    "another column": as_npy(rows(2, extra="<i4")),
    "cut": as_npy(rows(2))[:-1],
    "with a rest": as_npy(rows(2)) + b"x",
    "nothing": b"",
    "a magic alone": b"\x93NUMPY\x01\x00",
    "another version": b"\x93NUMPY\x09\x00" + as_npy(rows(2))[8:],
    "a huge shape": huge("(10**18,)"),
    "a huge count": huge("(1000000000000000000,)"),
    "negative": huge("(-1,)"),
    "a huge type": huge("(2,)", "'V2147483647'"),
    "a deep header": huge("(" * 3000),
    "no header": huge("")[:9] + b"\xff",
    "a call": huge("__import__('os')"),
    "a shape of text": huge("'2'"),
    "no type": huge("(2,)", "'nothing'"),
    "a list": huge("[2]"),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_that_are_none(shards: Path, kind: str) -> None:
    """Of a right sha256: told before anything is made of them."""
    folder = shards / "b" / "train"
    (folder / "samples.npy").write_bytes(TABLES[kind])
    changed(folder, samples_sha256=hashlib.sha256(TABLES[kind]).hexdigest())
    with pytest.raises(UserError, match=r"samples.npy (is no array of numpy|does not fit its index.json)"):
        find_shards(str(folder))


def test_a_table_with_a_byte_changed_is_told_or_the_same(shards: Path) -> None:
    """Each byte of its header in turn, with a right sha256."""
    folder = shards / "b" / "train"
    whole = (folder / "samples.npy").read_bytes()
    before = find_shards(str(folder)).table
    for place in range(len(whole) - 2 * SAMPLE.itemsize):
        content = bytearray(whole)
        content[place] ^= 1 << (place % 7)
        (folder / "samples.npy").write_bytes(content)
        changed(folder, samples_sha256=hashlib.sha256(content).hexdigest())
        try:
            assert np.array_equal(find_shards(str(folder)).table, before)
        except UserError as error:
            assert "samples.npy" in str(error) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ("x/{0..100000000}.tar", "stands for more than 100000 names"),
        ("x/{0..9999999999999999999999}.tar", "stands for more than 100000 names"),
        ("x/{0..99999}{0..99999}.tar", "stands for more than 100000 names"),
        ("x{" + "{a,b}" * 40 + ",c}.tar", "stands for more than 100000 names"),
        ("{" * 5000 + "}" * 5000, "has unbalanced braces"),
        ("}{0..100000000}{", "has unbalanced braces"),
        ("{" + "9" * 5000 + "..1}", "has unbalanced braces"),
    ],
)
def test_braces_without_a_bound(sources: str, message: str, tmp_path: Path) -> None:
    for source in (str(tmp_path / sources), f"https://host/{sources}"):
        with pytest.raises(UserError, match=message):
            find_shards(source)


@pytest.mark.parametrize(
    "pattern",
    [
        "x{0..9}.tar",
        "{a,b}/{01..03}",
        "{a..e..2}",
        "a{b}c",
        "{}",
        "a{,b}",
        "{a,{1..3},x{y,z}}",
        "{3..1}{x,y}",
        r"\{a,b\}",
        "",
        r"{a\,b,c}",
        "{{a,b}{c,d},e}",
    ],
)
def test_braces_are_those_of_the_shell(pattern: str) -> None:
    assert expand_braces(pattern) == list(braceexpand(pattern))


def test_places_that_cannot_be_read(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"cannot be read \(File name too long\); expected a folder of shards"):
        find_shards("a" * 300)
    with pytest.raises(UserError, match=r"a.x00b is no folder and no .tar; expected a folder of shards"):
        find_shards("a\0b")

    def denied(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", denied)
    with pytest.raises(UserError, match=r"train/index.json cannot be read \(Permission denied\); expected a folder"):
        find_shards(str(shards / "b" / "train"))


def test_shards_that_are_not_as_listed(shards: Path) -> None:
    folder = shards / "a" / "train"
    first = folder / "000000.tar"
    whole = first.read_bytes()

    first.write_bytes(whole[:-100])
    message = rf"000000.tar has {len(whole) - 100} bytes; its index.json expects {len(whole)}, so it is truncated"
    with pytest.raises(UserError, match=message):
        find_shards(str(folder))
    find_shards(str(folder / "000001.tar"))

    first.write_bytes(b"")
    with pytest.raises(UserError, match=r"000000.tar is empty \(0 bytes, 2 samples\)"):
        find_shards(str(folder))

    first.unlink()
    with pytest.raises(UserError, match="000000.tar is missing, but its index.json lists it"):
        find_shards(str(folder))

    shutil.copy(folder / "000001.tar", folder / "000009.tar")
    with pytest.raises(UserError, match="does not list 000009.tar"):
        find_shards(str(folder / "000009.tar"))

    changed(folder, shards=[])
    with pytest.raises(UserError, match="lists no shards"):
        find_shards(str(folder))


def test_sets_that_do_not_fit_together(shards: Path) -> None:
    train = str(shards / "a" / "train")
    with pytest.raises(UserError, match="000001.tar is given twice, again by .*000001.tar'"):
        find_shards([train, f"{train}/000001.tar"])
    changed(shards / "b" / "train", sampling_rate=8000)
    with pytest.raises(UserError, match="different sampling rates .8000 Hz in .*b/train, 16000 Hz in .*a/train"):
        find_shards([train, str(shards / "b" / "train")])


def test_the_table_says_where_each_sample_lies(made: Path) -> None:
    found = find_shards([str(made / "a/train/000002.tar"), str(made / "a/test")])
    assert found.table.dtype == SAMPLE and found.table.shape == (4,)
    for shard, rows in zip(found.shards, found.table.reshape(2, 2), strict=True):
        with tarfile.open(shard.path) as archive:
            members = archive.getmembers()
        held = [
            member for row in rows for member in ((row["audio"], row["audio_bytes"]), (row["json"], row["json_bytes"]))
        ]
        assert held == [(member.offset_data, member.size) for member in members]
        assert rows["length"].tolist() == [1600, 1600]


def test_a_table_of_another_making(shards: Path) -> None:
    folder = shards / "a" / "train"
    shutil.copy(shards / "a" / "test" / "samples.npy", folder)
    with pytest.raises(UserError, match=r"samples.npy is not what index.json expects: copy both again"):
        find_shards(str(folder))
    changed(folder, samples_sha256=hashlib.sha256((folder / "samples.npy").read_bytes()).hexdigest())
    with pytest.raises(UserError, match=r"samples.npy does not fit its index.json"):
        find_shards(str(folder))
    (folder / "samples.npy").unlink()
    with pytest.raises(UserError, match=r"samples.npy cannot be read"):
        find_shards(str(folder))


@pytest.mark.parametrize(("name", "value"), [("audio", -1), ("json", 10**9), ("audio_bytes", 2**31 - 1)])
def test_a_table_that_leads_out_of_its_shard(shards: Path, name: str, value: int) -> None:
    folder = shards / "b" / "train"
    table(folder, lambda samples: samples[name].__setitem__(1, value))
    with pytest.raises(UserError, match="samples.npy names places outside of 000000.tar"):
        find_shards(str(folder))
