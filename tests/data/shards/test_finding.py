"""Which shards are meant by folders, patterns and lists of them, and that they are as their index says."""

import hashlib
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from braceexpand import braceexpand
from changed_index import changed, table

from ssamba.data.shards.finding import find_shards
from ssamba.data.shards.index import SAMPLE
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


@pytest.mark.parametrize(("name", "value"), [("audio", -1), ("json", 10**9), ("audio_bytes", 2**31 - 1)])
def test_a_table_that_leads_out_of_its_shard(shards: Path, name: str, value: int) -> None:
    folder = shards / "b" / "train"
    table(folder, lambda samples: samples[name].__setitem__(1, value))
    with pytest.raises(UserError, match="samples.npy names places outside of 000000.tar"):
        find_shards(str(folder))
