"""Labels of shards that others wrote: wherever they are, training, its subsets and verification have them."""

import hashlib
import io
import json
import math
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from ssamba.cli import main
from ssamba.data.labels import Labels, read_labels
from ssamba.data.prepare.indexing import index_folder
from ssamba.data.prepare.verification import verify_shards
from ssamba.data.shards.descriptions import (
    label_fields,
    names_in,
    names_in_text,
    parse_description,
    parse_foreign,
    value_at,
)
from ssamba.data.shards.finding import find_shards
from ssamba.data.shards.index import ShardIndex
from ssamba.data.shards.reader import SampleReader
from ssamba.data.shards.remote import ShardCache
from ssamba.errors import BadAudio, UserError

RATE = 8000


def sound(seed: int) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, np.random.default_rng(seed).normal(0, 0.1, 800), RATE, format="FLAC")
    return content.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_set(folder: Path, *samples: dict[str, bytes]) -> Path:
    """Two shards of samples s0, s1, ...: their members by extension beside a recording."""
    for number in range(2):
        members = {}
        for place, sample in list(enumerate(samples))[number::2]:
            members[f"s{place}.flac"] = sound(place)
            members |= {f"s{place}.{extension}": content for extension, content in sample.items()}
        write_tar(folder / f"{number:06d}.tar", members)
    return folder


def read_set(source: str, cache: Path) -> dict[str, Any]:
    """Key -> labels, as the stream reads them; audio and label go together."""
    found = find_shards(source, cache)
    reader = SampleReader(found, ShardCache(1 << 20))
    said = [reader.description(number) for number in range(found.samples)]
    for number, one in enumerate(said):
        assert reader.audio(number) == sound(int(one["key"][1:]))
    return {one["key"]: one["labels"] for one in said}


def as_json(content: Any) -> dict[str, bytes]:
    return {"json": json.dumps(content).encode()}


PLACES = {
    "a class file": ("cls", [{"cls": b"10"}, {"cls": b"9\n"}], "9", "10"),
    "a class file by its dot": (".cls", [{"cls": b"10"}, {"cls": b"9"}], "9", "10"),
    "text": ("txt", [{"txt": b"dog \r\n"}, {"txt": "café".encode()}], "café", "dog"),
    "a field": ("label", [as_json({"label": "dog"}), as_json({"label": "cat"})], "cat", "dog"),
    "numbers": ("label", [as_json({"label": 10}), as_json({"label": 9.0})], "9", "10"),
    "truth": ("speech", [as_json({"speech": True}), as_json({"speech": False})], "false", "true"),
    "labels that are one text": ("labels", [as_json({"labels": "dog"}), as_json({"labels": "cat"})], "cat", "dog"),
    "of numbers, in our words": ("labels.w", [as_json({"labels": {"w": 1}}), as_json({"labels": {"w": 0}})], "0", "1"),
    "within objects": ("a.b", [as_json({"a": {"b": "y"}}), as_json({"a": {"b": "x"}, "n": math.nan})], "x", "y"),
    "with a dot": ("a.b", [as_json({"a.b": "y"}), as_json({"a.b": "x"})], "x", "y"),
}


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("elsewhere", [False, True])
def test_one_label_wherever_it_is(tmp_path: Path, kind: str, elsewhere: bool) -> None:
    field, samples, first, second = PLACES[kind]
    folder = write_set(tmp_path / "set", *samples)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(["shards", "index", str(folder), "--workers=1", f"--label=animal={field}"]) == 0
    assert {name: (folder / name).read_bytes() for name in before} == before
    source = f"pipe:cat {folder}/index.json" if elsewhere else str(folder)
    cache = tmp_path / "cache"
    assert read_set(source, cache) == {"s0": {"animal": second}, "s1": {"animal": first}}
    found = find_shards(source, cache)
    assert found.labels == {"animal": (first, second)}
    held = ShardCache(1 << 20)
    assert read_labels(found, "animal", held) == {0: ("s0", json.dumps(second)), 1: ("s1", json.dumps(first))}
    reader = SampleReader(found, held)
    encoded = [
        Labels("animal", found.labels["animal"]).encode(reader.description(number), "", 0, 1) for number in (0, 1)
    ]
    assert encoded == [1, 0]
    assert verify_shards(found, progress=False, local=held.local) == []


@pytest.mark.parametrize(
    ("field", "samples"),
    [
        ("labels", [as_json({"labels": ["dog", "bark"]}), as_json({"labels": ["bark", "bark"]})]),
        ("c", [as_json({"c": {"dog": True, "cat": False, "bark": True}}), as_json({"c": {"bark": True}})]),
        ("txt", [{"txt": b"dog\nbark\n"}, {"txt": b"bark"}]),
    ],
)
def test_several_labels(tmp_path: Path, field: str, samples: list[dict[str, bytes]]) -> None:
    folder = write_set(tmp_path / "set", *samples)
    index = index_folder(folder, fields={"sound": field}).index
    assert index.labels == {"sound": ("bark", "dog")}
    found = find_shards(str(folder))
    reader = SampleReader(found, ShardCache(1))
    encoded = [Labels("sound", index.labels["sound"], True).encode(reader.description(n), "", 0, 1) for n in (0, 1)]
    assert np.array_equal(encoded, [[1, 1], [1, 0]])


def test_several_keys_and_our_own(tmp_path: Path) -> None:
    """What the JSON says in our words stays; its key is the sample's; what a sample does not say is missing."""
    described = {"key": "s0", "labels": {"a": "x", "b": ["y", "z"]}, "n": 3}
    folder = write_set(tmp_path / "set", {**as_json(described), "cls": b"1", "txt": b"a caption"}, {"txt": b"another"})
    made = index_folder(folder, fields={"number": "cls", "n": "n"})
    assert read_set(str(folder), tmp_path) == {"s0": {"a": "x", "b": ["y", "z"], "number": "1", "n": "3"}, "s1": {}}
    assert made.unlabelled == {"a": 1, "b": 1, "n": 1, "number": 1} and made.index.passed_over == {".txt": 2}
    again = index_folder(folder, overwrite=True).index  # the places are those of the index that is replaced
    assert again == made.index and again.descriptions and again.descriptions.fields == {"number": "cls", "n": "n"}
    content = (folder / "labels.jsonl").read_bytes()
    assert hashlib.sha256(content).hexdigest() == again.descriptions.sha256
    assert [json.loads(line)["key"] for line in content.splitlines()] == ["s0", "s1"]


def test_labels_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", {"cls": b"1", "txt": b"a"}, {"cls": b"0", "txt": b"b"})
    index_folder(folder)
    prints = {find_shards(str(folder)).fingerprint}
    for field in ("cls", "txt"):
        index_folder(folder, fields={"label": field}, overwrite=True)
        prints.add(find_shards(str(folder)).fingerprint)
    assert len(prints) == 3


def test_labels_that_changed_after_the_index(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", {"cls": b"1"}, {"cls": b"0"})
    index_folder(folder, fields={"label": "cls"})
    said = folder / "labels.jsonl"
    whole = said.read_bytes()
    said.write_bytes(whole.replace(b'"1"', b'"7"'))
    found = find_shards(str(folder))
    problems = verify_shards(found, progress=False)
    assert len(problems) == 2 and "sample 's0': its label 'label' is '7', which index.json does not list" in problems[0]
    assert problems[1].startswith(f"{said}: its sha256 is ")
    said.write_bytes(whole[:-1])
    with pytest.raises(UserError, match=r"labels.jsonl has \d+ bytes; its index.json expects"):
        find_shards(str(folder))
    said.unlink()
    with pytest.raises(UserError, match=r"labels.jsonl is missing"):
        find_shards(str(folder))


def test_what_may_be_a_label_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = {"text": "a dog", "original": {"class_label": {"dog": True}}, "bytes": [1.5], "none": None}
    folder = write_set(tmp_path / "set", {**as_json(said), "cls": b"1"}, as_json({**said, "text": "x\x1b[31m"}))
    assert main(["shards", "index", str(folder), "--workers=1"]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        "passed over: 1 .cls",
        "no labels; what may be some: .cls (1: 1); original.class_label (1: dog); text (2: a dog, x\\x1b[31m). To name "
        f"one: ssamba shards index {folder} --overwrite --label .cls",
    ]
    assert main(["shards", "index", str(folder), "--workers=1", "--overwrite", "--label=.cls", "--label=text"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[1:] == ["cls: 1 labels; 1 samples have none", "text: what is said"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"label": "class"}, r"--label label=class: no sample of .*set has it; .*\.cls \(1: 1\); n \(1: 1\)"),
        ({"label": ".n"}, "--label label=.n: no sample of .*set has it"),
        ({"label": "o"}, "its label 'label': an array or an object is no label"),
        ({"label": "f"}, "its label 'label': '1.5' is no label"),
        ({"label": "bin"}, "its label 'label': a file that is no text in UTF-8 is no label"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, fields: dict[str, str], message: str) -> None:
    folder = write_set(tmp_path / "set", {**as_json({"n": 1, "o": [[1]], "f": 1.5}), "cls": b"1", "bin": b"\xff"})
    (folder / "000001.tar").unlink()
    with pytest.raises(UserError, match=message):
        index_folder(folder, fields=fields)
    assert [path.name for path in folder.iterdir()] == ["000000.tar"]


@pytest.mark.parametrize("given", ["", "=cls", "animal="])
def test_the_option(tmp_path: Path, given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["shards", "index", str(tmp_path), f"--label={given}"]) == 2
    assert f"--label is {given or repr('')}; expected KEY or KEY=FIELD" in capsys.readouterr().err


VALUES: list[tuple[Any, Any]] = [
    ("a", "a"),
    (" a ", "a"),
    ("", None),
    (None, None),
    (3, "3"),
    (-3, "-3"),
    (3.0, "3"),
    (True, "true"),
    ([], []),
    (["a", 1, "a"], ["a", "1"]),
    ({"a": True, "b": False}, ["a"]),
    ({}, []),
]
NONE: list[Any] = [
    1.5,
    math.nan,
    math.inf,
    " ",
    "x" * 10_001,
    "\ud800",
    [None],
    [""],
    [["a"]],
    [{"a": True}],
    {"a": 1},
    {"a": "b"},
    [1.5],
    {"a": {"b": True}},
]


@pytest.mark.parametrize(("value", "expected"), VALUES)
def test_values(value: Any, expected: Any) -> None:
    assert names_in(value) == expected


@pytest.mark.parametrize("value", NONE, ids=lambda value: repr(value)[:20])
def test_values_that_are_none(value: Any) -> None:
    with pytest.raises(BadAudio, match="is no label; expected a name or a list of names"):
        names_in(value)


def test_texts() -> None:
    assert names_in_text(b"\xef\xbb\xbfdog\r\n") == "dog" and names_in_text(b" \n") is None
    for content in (b"\xff\xfe", b"a\0b", b"x" * (1 << 24) + b"x"):
        with pytest.raises(BadAudio, match="is no label"):
            names_in_text(content)


def test_fields() -> None:
    content = {"a": {"b": {"c": "x"}, "b.d": 1}, "a.b": {"e": 2}, "n": None, "deep": {"1": {"2": {"3": {"4": "x"}}}}}
    assert value_at(content, "a.b.c") == "x" and value_at(content, "a.b.d") == 1 and value_at(content, "a.b.e") == 2
    assert value_at(content, "a.c") is value_at(content, "") is value_at([], "a") is value_at(content, "n.a") is None
    assert dict(label_fields(content)) == {"a.b.c": "x", "a.b.d": "1", "a.b.e": "2"}
    assert list(label_fields("text")) == list(label_fields([1])) == []


DESCRIBED = {"key": "a", "labels": {"x": "y", "z": ["u", "v"]}}


@pytest.mark.parametrize("value", [None, 1, -1.5, True, [], [1], {}, {"x": 1}, {"x": None}, {"x": [1]}, {"x": {}}, "x"])
@pytest.mark.parametrize("name", DESCRIBED)
def test_a_description_of_wrong_types(name: str, value: Any) -> None:
    right = (name == "key" and value == "x") or (name == "labels" and value == {})
    content = json.dumps({**DESCRIBED, name: value}).encode()
    if right:
        assert parse_description(content, "")[name] == value  # type: ignore[literal-required]
    else:
        with pytest.raises(BadAudio, match=rf"its .json cannot be used: Expected .* at `{name}"):
            parse_description(content, "")


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 10**5, b"\xff", b'{"labels": NaN}', b" " * (1 << 24) + b"{}"])
def test_a_description_that_is_none(content: bytes) -> None:
    with pytest.raises(BadAudio, match=r"its \.json"):
        parse_description(content, "")
    if b"NaN" not in content:
        with pytest.raises(BadAudio, match=r"its \.json"):
            parse_foreign(content)


def test_an_index_keeps_its_words(tmp_path: Path) -> None:
    """What another program's labels are called is text like any other: it is read back as it was."""
    folder = write_set(tmp_path / "set", {"txt": '=cmd|"\u202e'.encode()}, {"txt": b"b"})
    index_folder(folder, fields={"l\u2028": "txt"})
    assert ShardIndex.read(folder).labels == {"l\u2028": ('=cmd|"\u202e', "b")}
