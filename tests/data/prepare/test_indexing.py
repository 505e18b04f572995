"""The index of tars that another program wrote, sound and damaged."""

import hashlib
import io
import json
import os
import random
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from ssamba.cli import main
from ssamba.data.prepare.indexing import index_folder
from ssamba.data.prepare.recordings import Recording
from ssamba.data.prepare.verification import verify_shards
from ssamba.data.prepare.writer import write_shards
from ssamba.data.shards.finding import find_shards
from ssamba.data.shards.index import ShardIndex
from ssamba.data.shards.reader import SampleReader
from ssamba.data.shards.remote import ShardCache
from ssamba.errors import UserError


def sound(samples: int = 1600, rate: int = 16000, form: str = "FLAC", channels: int = 1, seed: int = 0) -> bytes:
    content = io.BytesIO()
    noise = np.random.default_rng(seed).normal(0, 0.1, (samples, channels))
    soundfile.write(content, noise, rate, format=form, subtype="VORBIS" if form == "OGG" else None)
    return content.getvalue()


def described(key: str, label: Any = "dog") -> bytes:
    return json.dumps({"key": key, "labels": {"animal": label}}).encode()


def write_tar(
    path: Path, members: Mapping[str, bytes] | list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in members.items() if isinstance(members, Mapping) else members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def indexed(folder: Path, **settings: Any) -> tuple[ShardIndex, dict[str, tuple[bytes, dict[str, Any]]]]:
    """The index that is made, and name -> audio and description of each sample, as the stream reads them."""
    index = index_folder(folder, **settings).index
    found = find_shards(str(folder))
    reader = SampleReader(found, ShardCache(1))
    samples = {}
    for number in range(found.samples):
        said = reader.description(number)
        samples[said["key"]] = reader.audio(number), said
    return index, samples


def problems(folder: Path, fraction: float = 1.0, **settings: Any) -> dict[str, str]:
    return {one.source: one.why for one in index_folder(folder, max_bad_fraction=fraction, **settings).index.skipped}


@pytest.mark.parametrize("form", ["FLAC", "WAV", "OGG", "MP3", "AIFF", "CAF"])
@pytest.mark.parametrize("channels", [1, 2])
def test_any_format(tmp_path: Path, form: str, channels: int) -> None:
    content = sound(32000, 44100, form, channels)
    name = f"folder/a.{'aif' if form == 'AIFF' else form.lower()}"
    write_tar(tmp_path / "set" / "train" / "x.tar", {name: content, "folder/a.json": described("a")})
    index, samples = indexed(tmp_path / "set" / "train")
    assert (index.dataset, index.split, index.sampling_rate, index.samples) == ("set", "train", 44100, 1)
    assert index.seconds == pytest.approx(32000 / 44100) and index.labels == {"animal": ("dog",)}
    assert samples == {"a": (content, {"key": "a", "labels": {"animal": "dog"}})}
    found = find_shards(str(tmp_path / "set" / "train"))
    assert found.table["length"].tolist() == [32000]
    assert form == "MP3" or verify_shards(found, progress=False) == []


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("workers", [1, 2])
def test_names_labels_and_other_members(tmp_path: Path, form: int, workers: int) -> None:
    long = "/".join(["a" * 60] * (2 if form == tarfile.USTAR_FORMAT else 5)) + "/long"
    first = {
        "./": b"",
        "./plain.flac": sound(seed=1),
        f"{long}.wav": sound(form="WAV", seed=2),
        f"{long}.json": b'{"labels": {"animal": ["dog", "cat"]}}',
        "text.FLAC": sound(seed=3),
        "text.txt": b"a caption",
        "text.JSON": b'{"labels": [1, 2], "key": 3}',
        "._plain.flac": b"of a Mac",
        "README": b"",
        "speech.16k.flac": sound(seed=4),
        "speech.meta.json": b"{",
    }
    del first["./"]
    write_tar(tmp_path / "b.tar", first, form)
    write_tar(tmp_path / "a.tar", {"y.flac": sound(seed=5), "y.json": described("y", "owl")}, form)
    index, samples = indexed(tmp_path, workers=workers)
    assert [(shard.name, shard.samples) for shard in index.shards] == [("a.tar", 1), ("b.tar", 4)]
    assert index.shards[1].sha256 == hashlib.sha256((tmp_path / "b.tar").read_bytes()).hexdigest()
    assert index.labels == {"animal": ("cat", "dog", "owl")} and index.skipped == ()
    assert {key: content for key, (content, _) in samples.items()} == {
        "y": sound(seed=5),
        "b/0": sound(seed=1),
        "b/1": sound(form="WAV", seed=2),
        "b/2": sound(seed=3),
        "b/3": sound(seed=4),
    }
    assert samples["b/1"][1]["labels"] == {"animal": ["dog", "cat"]} and samples["b/2"][1]["labels"] == {}
    assert verify_shards(find_shards(str(tmp_path)), progress=False) == []


def test_a_flac_without_a_length_in_its_header(tmp_path: Path) -> None:
    """As of an encoder that wrote to a pipe."""
    content = bytearray(sound(5000))
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    write_tar(tmp_path / "x.tar", {"a.flac": bytes(content)})
    index_folder(tmp_path)
    found = find_shards(str(tmp_path))
    assert found.table["length"].tolist() == [5000] and verify_shards(found, progress=False) == []


def test_shards_of_this_program_in_an_older_format(tmp_path: Path) -> None:
    """Everything comes back as their writer had it, but for what it had skipped."""
    paths = [tmp_path / "in" / f"{number}.wav" for number in range(6)]
    paths[0].parent.mkdir()
    for number, path in enumerate(paths):
        path.write_bytes(sound(1600, form="WAV", seed=number))
    recordings = [Recording(path.stem, path, {"parity": ["even", "odd"][n % 2]}) for n, path in enumerate(paths)]
    lists = {"parity": ["odd", "even", "neither"]}
    made = write_shards({"train": recordings}, tmp_path / "out", "toy", lists, samples_per_shard=2)["train"]
    folder = tmp_path / "out" / "train"
    table = (folder / "samples.npy").read_bytes()
    old = json.loads((folder / "index.json").read_text())
    del old["samples_sha256"]
    (folder / "index.json").write_text(json.dumps({**old, "format": "ssamba-shards-1"}))
    (folder / "samples.npy").unlink()
    with pytest.raises(UserError, match="'ssamba-shards-1'; expected 'ssamba-shards-2', which `ssamba shards index"):
        find_shards(str(folder))
    with pytest.raises(UserError, match="index.json exists; --overwrite replaces it"):
        index_folder(folder)
    assert index_folder(folder, overwrite=True).index == made == ShardIndex.read(folder)
    assert (folder / "samples.npy").read_bytes() == table


def test_label_lists(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"a.flac": sound(), "a.json": described("a", "dog")})
    (tmp_path / "classes.txt").write_text("owl\ndog\n")
    assert main(["shards", "index", str(tmp_path), f"--labels=animal={tmp_path / 'classes.txt'}", "--workers=1"]) == 0
    assert ShardIndex.read(tmp_path).labels == {"animal": ("owl", "dog")}
    with pytest.raises(UserError, match="the label list 'animal' lacks 'dog', which a sample has"):
        index_folder(tmp_path, {"animal": ["owl"]}, overwrite=True)
    assert ShardIndex.read(tmp_path).labels == {"animal": ("owl", "dog")}


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Callable[..., str]) -> None:
    folder = tmp_path / "set"
    assert "set is no folder" in refused("shards", "index", folder)
    folder.mkdir()
    assert "set has no .tar" in refused("shards", "index", folder)
    write_tar(folder / "x.tar", {"a.flac": sound(16000), "a.json": described("a"), "b.flac": sound(16000)})
    assert "--labels is animal; expected KEY=FILE" in refused("shards", "index", folder, "--labels=animal")
    assert "--workers is 0" in refused("shards", "index", folder, "--workers=0")
    assert "--max-bad-fraction is 2; expected" in refused("shards", "index", folder, "--max-bad-fraction=2")
    assert "has no index.json" in refused("shards", "info", folder)
    capsys.readouterr()
    assert main(["shards", "index", str(folder), "--workers=1"]) == 0
    assert capsys.readouterr().out == (
        f"{folder}: 2 samples in 1 shards, 0.001 h at 16000 Hz, 0 problems\nanimal: 1 labels; 1 samples have none\n"
    )
    assert sorted(path.name for path in folder.iterdir()) == ["index.json", "samples.npy", "x.tar"]
    assert "exists; --overwrite replaces it" in refused("shards", "index", folder)
    assert main(["shards", "index", str(folder), "--overwrite"]) == 0
    assert main(["shards", "verify", str(folder), "--workers=2"]) == 0
    assert main(["shards", "info", str(folder)]) == 0


def test_several_sampling_rates(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", {"a.flac": sound(), "b.flac": sound(), "c.flac": sound(rate=8000)})
    message = (
        r"x.tar/a has 16000 Hz and x.tar/c has 8000 Hz; expected one sampling rate: unpack the shards and make "
        "them again with `ssamba prepare folder`"
    )
    with pytest.raises(UserError, match=message):
        index_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]
    index = index_folder(tmp_path, max_bad_fraction=0.5).index
    assert index.samples == 2 and [one.source for one in index.skipped] == ["x.tar/c"]
    assert index.seconds == pytest.approx(0.2)


def test_what_is_wrong_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = [
        ("good.flac", sound()),
        ("good.json", described("good")),
        ("noise.flac", b"no audio" * 100),
        ("empty.wav", b""),
        ("none.wav", sound(0, form="WAV")),
        ("twice.flac", sound()),
        ("twice.flac", sound()),
        ("both.wav", sound(form="WAV")),
        ("both.flac", sound()),
        ("../out.flac", sound()),
        ("/etc/out.flac", sound()),
        ("a/../../out.flac", sound()),
        ("torn.flac", sound()),
        ("torn.json", b'{"key": "torn"'),
        ("deep.flac", sound()),
        ("deep.json", b"[" * 10**5),
        ("binary.flac", sound()),
        ("binary.json", bytes(range(256))),
        ("three.flac", sound()),
        ("three.json", described("three", 3)),
        ("nameless.flac", sound()),
        ("nameless.json", described("nameless", [""])),
        ("half.flac", sound()),
        ("half.json", b'{"labels": {"animal": "\\ud800"}}'),
        ("alone.json", described("alone")),
        ("text.txt", b"no audio"),
    ]
    path = write_tar(tmp_path / "x.tar", members)
    with tarfile.open(path, "a") as archive:
        for kind, name in (
            (tarfile.SYMTYPE, "link.flac"),
            (tarfile.LNKTYPE, "hard.flac"),
            (tarfile.FIFOTYPE, "p.flac"),
            (tarfile.DIRTYPE, "folder.flac"),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
    found = problems(tmp_path)
    expected = {
        "noise": "it cannot be decoded",
        "empty": "it cannot be decoded",
        "none": "it has 0 samples",
        "twice.flac": "it is there twice",
        "both.flac": "both.wav is a recording of the same key",
        "../out.flac": "leads out of",
        "/etc/out.flac": "leads out of",
        "a/../../out.flac": "leads out of",
        "torn": "its .json cannot be parsed",
        "deep": "its .json cannot be parsed",
        "binary": "its .json cannot be",
        "three": "its label 'animal' is '3'; expected a name",
        "nameless": "its label 'animal' is",
        "half": "its label 'animal' is",
        "alone": "it has no recording",
        "link.flac": "a link or the like",
        "hard.flac": "a link or the like",
        "p.flac": "a link or the like",
    }
    assert found.keys() == {f"x.tar/{name}" for name in expected}
    assert not [(name, found[f"x.tar/{name}"]) for name, why in expected.items() if why not in found[f"x.tar/{name}"]]
    assert all(f"x.tar/{name}: " in caplog.text for name in expected)
    index = ShardIndex.read(tmp_path)
    assert index.samples == 3 and index.labels == {"animal": ("dog",)} and index.passed_over == {".txt": 1}
    message = (
        r"18 of 21 samples have a problem; at most 0 may .*: copy the shards again.* A key is a name up to the "
        "first dot after its folder, as webdataset has it: both.flac has the key 'both'"
    )
    with pytest.raises(UserError, match=message):
        index_folder(tmp_path, overwrite=True)


def test_damage_between_members(tmp_path: Path) -> None:
    """What is after it is found; what may belong to the place is left out."""
    names = [f"{number}.{kind}" for number in range(6) for kind in ("flac", "json")]
    path = write_tar(
        tmp_path / "x.tar", {name: sound() if name.endswith("flac") else described(name[0]) for name in names}
    )
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        begins = {member.name: member.offset for member in archive}

    def found(content: bytes) -> list[tuple[str, str]]:
        path.write_bytes(content)
        skipped = index_folder(tmp_path, max_bad_fraction=1, overwrite=True).index.skipped
        return [(one.source, one.why) for one in skipped]

    def flipped(name: str) -> bytes:
        return whole[: begins[name] + 3] + b"~" + whole[begins[name] + 4 :]

    at = begins["2.flac"]
    lost, alone = found(flipped("2.flac"))
    assert lost == ("x.tar", f"no member can be read at byte {at}: bad checksum")
    assert alone[0] == "x.tar/2" and alone[1].startswith("it has no recording")
    assert ShardIndex.read(tmp_path).samples == 5
    lost, bare = found(flipped("2.json"))
    assert bare == ("x.tar/2", "its .json may be what is damaged after it")
    assert ShardIndex.read(tmp_path).samples == 5

    torn = begins["2.json"] - 700
    lost, bare = found(whole[:torn] + whole[torn + 100 :])  # 100 bytes of the audio are missing
    assert lost == ("x.tar", f"no member can be read at byte {begins['2.json']}: bad checksum")
    assert bare[0] == "x.tar/2" and ShardIndex.read(tmp_path).samples == 5

    no_mark = ("x.tar", "it has no mark at its end, so something is missing")
    lost, last = found(whole[: begins["4.flac"] + 700])
    assert "4.flac does not end within it" in lost[1] and last == no_mark
    assert ShardIndex.read(tmp_path).samples == 4
    assert found(whole[: begins["4.flac"]]) == [no_mark]
    assert ShardIndex.read(tmp_path).samples == 4
    assert found(whole) == []
    assert ShardIndex.read(tmp_path).samples == 6


def test_shards_that_are_none(tmp_path: Path) -> None:
    write_tar(tmp_path / "good.tar", {"a.flac": sound()})
    write_tar(tmp_path / "bare.tar", {})
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "noise.tar").write_bytes(random.Random(0).randbytes(50000))
    (tmp_path / "folder.tar").mkdir()
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "gone.tar").symlink_to(tmp_path / "nothing")
    assert set(problems(tmp_path)) == {"empty.tar", "noise.tar"}
    index = ShardIndex.read(tmp_path)
    assert [shard.name for shard in index.shards] == ["good.tar"]
    assert index.passed_over == {"shards without samples": 1}
    (tmp_path / "good.tar").unlink()
    with pytest.raises(UserError, match="no sample of .* can be used"):
        index_folder(tmp_path, max_bad_fraction=1, overwrite=True)


COMPRESSED = {
    ".tar.gz": "gunzip",
    ".tgz": "gunzip",
    ".tar.xz": "unxz",
    ".txz": "unxz",
    ".tar.bz2": "bunzip2",
    ".tbz2": "bunzip2",
    ".tar.zst": "unzstd",
    ".tzst": "unzstd",
    ".zip": "unzip",
}


@pytest.mark.parametrize("ending", COMPRESSED)
@pytest.mark.parametrize("beside", [False, True])
def test_compressed_shards(tmp_path: Path, ending: str, beside: bool) -> None:
    if beside:
        write_tar(tmp_path / "a.tar", {"a.flac": sound()})
    (tmp_path / f"b c{ending}").write_bytes(b"")
    with pytest.raises(UserError, match=rf"1 of the shards are compressed; .*: {COMPRESSED[ending]} .*b c{ending}'"):
        index_folder(tmp_path, max_bad_fraction=1)
    assert not (tmp_path / "index.json").exists()
    write_tar(tmp_path / "b c.tar", {"a.flac": sound()})  # it has been unpacked, and is still there
    assert index_folder(tmp_path).index.samples == 1 + beside


@pytest.mark.parametrize("kind", ["gz", "xz", "bz2"])
def test_a_compressed_shard_that_is_called_tar(tmp_path: Path, kind: str) -> None:
    """The command that is told mends it."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, f"w:{kind}") as archive:  # type: ignore[call-overload]
        archive.addfile(tarfile.TarInfo("readme"))
    with pytest.raises(UserError, match=rf"mv \S*a.tar \S*a.tar.{kind} && \w+ \S*a.tar.{kind}") as told:
        index_folder(tmp_path)
    if shutil.which(str(told.value).rpartition(" && ")[2].split()[0]):
        subprocess.run(str(told.value).rpartition(": ")[2], shell=True, check=True)
        with tarfile.open(path, "r:") as archive:
            assert archive.getnames() == ["readme"]


def test_folders_of_shards(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for part in ("one", "two"):
        write_tar(tmp_path / "set" / part / "a.tar", {"a.flac": sound()})
    with pytest.raises(UserError, match="set has no .tar; its folders have: give .*set/one and .*set/two"):
        index_folder(tmp_path / "set")
    write_tar(tmp_path / "set" / "a.tar", {"a.flac": sound()})
    assert index_folder(tmp_path / "set").index.passed_over == {"folders of shards": 2}
    assert "set/two are passed over" in caplog.text


def test_what_is_passed_over_is_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = {
        "__dataset__.json": b"{}",
        "._a.flac": b"of a Mac",
        "LICENSE": b"",
        "README.md": b"",
        "notes/x.CSV": b"",
        "a.flac": sound(),
        "a.npy": b"",
        "a.json": described("a"),
        "b.0.flac": sound(),
        "b.0.json": described("b.0"),
        "b.1.json": b"no",
        "c.in.wav": sound(form="WAV"),
        "c.out.json": b"{",
    }
    write_tar(tmp_path / "x.tar", members)
    index, samples = indexed(tmp_path)
    assert {key: said["labels"] for key, (_, said) in samples.items()} == {
        "a": {"animal": "dog"},
        "b.0": {"animal": "dog"},
        "x/2": {},
    }
    assert index.passed_over == {
        "files about the shard (__)": 1,
        "hidden files": 1,
        "files without an extension": 1,
        ".md": 1,
        ".csv": 1,
        ".npy": 1,
        ".json": 2,
    }
    assert ShardIndex.read(tmp_path) == index and index.skipped == ()
    assert main(["shards", "index", str(tmp_path), "--overwrite", "--workers=1"]) == 0
    assert "passed over: 1 .csv, 2 .json, 1 .md, 1 .npy, 1 files about the shard (__)" in capsys.readouterr().out


@pytest.mark.parametrize("form", ["old", "posix"])
def test_sparse_files(tmp_path: Path, form: str) -> None:
    """As tar --sparse stores them, in its own form, with places in further blocks, and in that of POSIX."""
    header = tarfile.TarInfo("holes.wav")
    if form == "old":
        header.type, header.size = tarfile.GNUTYPE_SPARSE, 700
        block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
        block[482] = 1
        block[148:156] = b" " * 8
        block[148:156] = f"{sum(block):06o}\0 ".encode()
        more = bytearray(512)
        more[504] = 1
        content = bytes(block) + bytes(more) + bytes(512) + b"x" * 700 + bytes(324)
    else:
        header.size, header.pax_headers = 700, {"GNU.sparse.major": "1", "GNU.sparse.name": "holes.wav"}
        content = header.tobuf(tarfile.PAX_FORMAT) + b"x" * 700 + bytes(324)
    path = write_tar(tmp_path / "x.tar", {"a.flac": sound()})
    path.write_bytes(content + path.read_bytes())
    assert list(problems(tmp_path)) == ["x.tar/holes.wav"]
    assert "stored as a sparse file" in ShardIndex.read(tmp_path).skipped[0].why
    assert ShardIndex.read(tmp_path).samples == 1


def test_tars_one_after_another(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.flac": sound()})
    path.write_bytes(path.read_bytes() + write_tar(tmp_path / "y.tar", {"b.flac": sound()}).read_bytes())
    (tmp_path / "y.tar").unlink()
    assert index_folder(tmp_path).index.samples == 2


@pytest.mark.parametrize("name", [b"\xff.tar", b"a\x1b[2J.tar", "a\u202e.tar".encode()])
def test_a_shard_whose_name_cannot_be_shown(tmp_path: Path, name: bytes) -> None:
    (tmp_path / os.fsdecode(name)).write_bytes(write_tar(tmp_path / "a.tar", {"a.flac": sound()}).read_bytes())
    with pytest.raises(UserError, match=r"\\.*tar has a name that cannot be shown or written") as told:
        index_folder(tmp_path)
    assert str(told.value).isprintable()


def test_a_folder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "x.tar", {"a.flac": sound()})

    def denied(path: object, *_: object) -> object:
        raise PermissionError(13, "Permission denied", str(path))

    for kind, method in ((os, "scandir"), (Path, "open")):
        with monkeypatch.context() as patch:
            patch.setattr(kind, method, denied)
            with pytest.raises(UserError, match=rf"{tmp_path}.* cannot be read .Permission denied"):
                index_folder(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tar(tmp_path / "x.tar", {"a.flac": sound()})
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(UserError, match="cannot be written to"):
            index_folder(tmp_path)

    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ssamba.data.prepare.indexing.write_samples", full)
    with pytest.raises(UserError, match="the index cannot be written to .*No space left"):
        index_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


@pytest.fixture(scope="module")
def sound_tar(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    members = {}
    for number in range(6):
        form = ("flac", "wav", "ogg")[number % 3]
        members[f"folder/{number}.{form}"] = sound(1600, form=form.upper(), seed=number)
        members[f"folder/{number}.json"] = described(str(number))
    members["folder/" + "x" * 120 + ".flac"] = sound(1600, seed=9)  # which takes a pax header
    return write_tar(tmp_path_factory.mktemp("sound") / "x.tar", members).read_bytes()


def mutated(content: bytes, seed: int) -> bytes:
    """A tar after one accident of several kinds."""
    rng = random.Random(seed)
    made, at = bytearray(content), rng.randrange(len(content))
    block = at // 512 * 512
    kind = seed % 8
    if kind == 0:
        made[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del made[at:]
    elif kind == 2:
        made[at : at + rng.randrange(1, 3000)] = b""
    elif kind == 3:
        made[at:at] = rng.randbytes(rng.randrange(1, 3000))
    elif kind == 4:
        made[block : block + 512] = bytes(512)
    elif kind == 5:
        made[at : at + 700] = rng.randbytes(700)
    elif kind == 6:  # a header with a right checksum, and anything in one of its fields
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            header = bytearray(made[(begin := rng.choice(archive.getmembers()).offset) : begin + 512])
        field = rng.choice([slice(0, 100), slice(124, 136), slice(156, 157), slice(345, 500)])
        header[field] = rng.randbytes(field.stop - field.start)
        header[148:156] = b" " * 8
        header[148:156] = f"{sum(header):06o}\0 ".encode()
        made[begin : begin + 512] = header
    else:
        other = rng.randrange(len(content) // 512) * 512
        made[block : block + 512] = content[other : other + 512]
    return bytes(made)


@pytest.mark.parametrize("seed", range(64))
def test_an_accident(tmp_path: Path, sound_tar: bytes, seed: int) -> None:
    """Whatever it is, the index is of what is there, or one message says what is wrong; nothing else is written."""
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "x.tar").write_bytes(mutated(sound_tar, seed))
    shutil.copytree(folder, tmp_path / "before")
    for fraction in (0.0, 1.0):
        try:
            index = index_folder(folder, max_bad_fraction=fraction, overwrite=True).index
        except UserError as error:
            assert any(words in str(error) for words in ("have a problem", "no sample of", "Hz"))
            assert not (folder / "index.json").exists()
            continue
        found = find_shards(str(folder))
        assert found.samples == index.samples <= 9 and index.sampling_rate
        reader = SampleReader(found, ShardCache(1))
        for number in range(found.samples):
            assert len(reader.audio(number)) and reader.description(number)["labels"] is not None
    assert (folder / "x.tar").read_bytes() == (tmp_path / "before" / "x.tar").read_bytes()
    assert {path.name for path in folder.iterdir()} <= {"x.tar", "index.json", "samples.npy"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["before", "set"]
