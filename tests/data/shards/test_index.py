import copy
import hashlib
import io
import json
import math
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from changed_index import changed

from ssamba.data.shards.finding import find_shards
from ssamba.data.shards.index import SAMPLE, ShardIndex, ShardInfo, Skipped
from ssamba.errors import UserError


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
    for part in ("index", "finding"):
        monkeypatch.setattr(f"ssamba.data.shards.{part}.MOST_BYTES", 1000)
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
