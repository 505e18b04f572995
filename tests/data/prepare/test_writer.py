import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import soxr
import webdataset

from ssamba.data.order import ClipOrder, ClipRules
from ssamba.data.prepare.indexing import index_folder
from ssamba.data.prepare.recordings import Recording, check_present, safe_key
from ssamba.data.prepare.unfinished import Finished
from ssamba.data.prepare.verification import verify_shards
from ssamba.data.prepare.writer import finish_shard, write_shards
from ssamba.data.shards.finding import find_shards
from ssamba.data.shards.index import ShardIndex
from ssamba.data.shards.remote import ShardCache
from ssamba.data.stream import ClipStream
from ssamba.errors import UserError
from ssamba.recordings import read_audio


def tone(path: Path, seconds: float = 0.1, rate: int = 16000, channels: int = 1, hertz: float = 440.0) -> Path:
    """A sine as a 16-bit file; further channels are quieter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    soundfile.write(path, np.stack([wave / (n + 1) for n in range(channels)], axis=1), rate, subtype="PCM_16")
    return path


@pytest.fixture
def recordings(tmp_path: Path) -> list[Recording]:
    """Twelve, of three labels, named so that their order in the list is that of the labels."""
    return [
        Recording(
            f"{label}-{take}",
            tone(tmp_path / "in" / label / f"{take}.wav", 0.1 + 0.01 * take),
            {"animal": label, "sounds": [label, "any"]},
        )
        for label in ("bird", "cat", "dog")
        for take in range(4)
    ]


def samples_in(folder: Path) -> dict[str, tuple[np.ndarray[Any, Any], int, dict[str, Any]]]:
    """Key -> waveform (int16), Hz and JSON, in the order of the shards, as webdataset reads them."""
    shards = sorted(map(str, folder.glob("*.tar")))
    found = {}
    for sample in webdataset.DataPipeline(webdataset.SimpleShardList(shards), webdataset.tarfile_to_samples()):
        waveform, rate = soundfile.read(io.BytesIO(sample["flac"]), dtype="int16")
        found[sample["__key__"]] = (waveform, rate, json.loads(sample["json"]))
    return found


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def refused(
    tmp_path: Path, splits: Mapping[str, Sequence[Recording]], message: str, finished: int = 0, **settings: Any
) -> None:
    """write_shards complains with these words, and leaves nothing where it was to write, but for finished shards."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=message) as raised:
        write_shards(splits, tmp_path / "out", "toy", **settings)
    partial = tmp_path / "out.partial"
    assert sorted(tmp_path.iterdir()) == sorted([*before, *[partial] * bool(finished)])
    assert len(list(partial.rglob("finished/*/*.json"))) == finished
    stays = f"Finished shards ({finished}) stay in {partial}: the same call goes on from them"
    assert str(raised.value).endswith(stays) == bool(finished)


def test_what_is_written(recordings: list[Recording], tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = write_shards({"train": recordings[:10], "test": recordings[10:]}, out, "toy", samples_per_shard=4)

    assert {str(path.relative_to(out)) for path in out.rglob("*.*")} == {
        "train/index.json",
        "train/000000.tar",
        "train/000001.tar",
        "train/000002.tar",
        "train/samples.npy",
        "test/index.json",
        "test/000000.tar",
        "test/samples.npy",
    }
    assert made == {"train": ShardIndex.read(out / "train"), "test": ShardIndex.read(out / "test")}
    train = made["train"]
    assert (train.dataset, train.split, train.sampling_rate, train.samples) == ("toy", "train", 16000, 10)
    assert [shard.samples for shard in train.shards] == [3, 3, 4]
    assert train.labels == made["test"].labels
    assert train.labels == {"animal": ("bird", "cat", "dog"), "sounds": ("any", "bird", "cat", "dog")}
    assert train.seconds == pytest.approx(0.46 * 2 + 0.21)
    assert verify_shards(find_shards([str(out / "train"), str(out / "test")]), progress=False) == []

    held = samples_in(out / "train")
    assert sorted(held) == [recording.key for recording in recordings[:10]]
    assert list(held) != sorted(held)
    assert held["cat-2"][2] == {
        "key": "cat-2",
        "source": "cat/2.wav",
        "seconds": 0.12,
        "labels": {"animal": "cat", "sounds": ["cat", "any"]},
    }


def test_index_on_disk(recordings: list[Recording], tmp_path: Path) -> None:
    write_shards({"train": recordings[:2]}, tmp_path / "out", "toy", {"animal": ["dog", "bird"]})
    shard = tmp_path / "out" / "train" / "000000.tar"
    assert json.loads((shard.parent / "index.json").read_text()) == {
        "format": "ssamba-shards-2",
        "dataset": "toy",
        "split": "train",
        "sampling_rate": 16000,
        "samples": 2,
        "seconds": pytest.approx(0.21),
        "labels": {"animal": ["dog", "bird"], "sounds": ["any", "bird"]},
        "skipped": [],
        "shards": [
            {
                "name": "000000.tar",
                "samples": 2,
                "seconds": pytest.approx(0.21),
                "bytes": shard.stat().st_size,
                "sha256": hashlib.sha256(shard.read_bytes()).hexdigest(),
            }
        ],
        "samples_sha256": hashlib.sha256(shard.with_name("samples.npy").read_bytes()).hexdigest(),
        "passed_over": {},
        "above_full_scale": 0,
    }


def test_same_bytes_whoever_writes_and_whenever(recordings: list[Recording], tmp_path: Path) -> None:
    splits = {"train": recordings}
    write_shards(splits, tmp_path / "one", "toy", samples_per_shard=3)
    write_shards(splits, tmp_path / "two", "toy", samples_per_shard=3, workers=2)
    write_shards({"train": recordings[::-1]}, tmp_path / "reversed", "toy", samples_per_shard=3)
    write_shards(splits, tmp_path / "other", "toy", samples_per_shard=3, seed=1)
    one = digests(tmp_path / "one")
    assert one == digests(tmp_path / "two") == digests(tmp_path / "reversed")
    assert one.keys() == digests(tmp_path / "other").keys()
    assert one != digests(tmp_path / "other")

    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "in").rename(elsewhere)
    moved = [Recording(one.key, elsewhere / one.path.relative_to(tmp_path / "in"), one.labels) for one in recordings]
    write_shards({"train": moved}, tmp_path / "moved", "toy", samples_per_shard=3)
    assert one == digests(tmp_path / "moved")


def test_headers_hold_no_date_and_no_owner(recordings: list[Recording], tmp_path: Path) -> None:
    write_shards({"train": recordings[:2]}, tmp_path / "out", "toy")
    with tarfile.open(tmp_path / "out" / "train" / "000000.tar") as archive:
        members = archive.getmembers()
    assert {member.name for member in members} == {"bird-0.flac", "bird-0.json", "bird-1.flac", "bird-1.json"}
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}


def test_audio_comes_back(tmp_path: Path) -> None:
    """Bit for bit at the same rate; else as an independent resampling; stereo as the mean of its channels."""
    same = tone(tmp_path / "same.wav", 0.5)
    slow = tone(tmp_path / "slow.wav", 0.5, rate=8000)
    stereo = tone(tmp_path / "stereo.wav", 0.5, channels=2)
    paths = [same, slow, stereo]
    write_shards({"train": [Recording(path.stem, path) for path in paths]}, tmp_path / "out", "toy")
    held = samples_in(tmp_path / "out" / "train")

    assert all(rate == 16000 and wave.ndim == 1 for wave, rate, _ in held.values())
    np.testing.assert_array_equal(held["same"][0], soundfile.read(same, dtype="int16")[0])
    expected = soxr.resample(soundfile.read(slow)[0], 8000, 16000) * 32768
    assert held["slow"][0].shape == (8000,)
    np.testing.assert_allclose(held["slow"][0], expected, atol=1)
    ideal = 0.5 * 32768 * np.sin(2 * np.pi * 440 * np.arange(8000) / 16000)
    np.testing.assert_allclose(held["slow"][0][500:-500], ideal[500:-500], atol=20)
    np.testing.assert_allclose(held["stereo"][0], soundfile.read(stereo)[0].mean(1) * 32768, atol=1)
    assert all("full_scale" not in described for _, _, described in held.values())


def test_samples_above_full_scale_are_kept_at_their_level(tmp_path: Path) -> None:
    """What training hears of a recording is what is heard of its file elsewhere."""
    loud, full = tmp_path / "loud.wav", tmp_path / "full.wav"
    soundfile.write(loud, np.array([3.0, -1.5, 1.0, -0.75, 0.0] * 200), 16000, subtype="FLOAT")
    soundfile.write(full, np.array([1.0, -1.0, 0.5, 0.0, 0.0] * 200), 16000, subtype="FLOAT")
    paths = [loud, full]
    made = write_shards({"train": [Recording(path.stem, path) for path in paths]}, tmp_path / "out", "toy")["train"]
    assert made.above_full_scale == 1 and ShardIndex.read(tmp_path / "out" / "train").above_full_scale == 1
    held = samples_in(tmp_path / "out" / "train")
    assert held["loud"][2]["full_scale"] == 3 and "full_scale" not in held["full"][2]
    np.testing.assert_array_equal(held["loud"][0][:5], [32767, -16384, 10923, -8192, 0])
    np.testing.assert_array_equal(held["full"][0][:5], [32767, -32768, 16384, 0, 0])
    index_folder(tmp_path / "out" / "train", overwrite=True)
    assert ShardIndex.read(tmp_path / "out" / "train").above_full_scale == 1
    shards = find_shards(str(tmp_path / "out" / "train"))
    assert verify_shards(shards, progress=False) == []
    order = ClipOrder(shards, ClipRules(1000, "pad", 0, 0), None)
    (batch,) = ClipStream(
        shards, order, batch_size=2, sampling_rate=16000, training=False, max_bad_fraction=0.0, cache=ShardCache(10**6)
    )
    for key, waveform in zip(batch["keys"], batch["waveform"].numpy(), strict=True):
        np.testing.assert_allclose(waveform, read_audio(tmp_path / f"{key}.wav", 16000, 10), atol=3 / 32768)


@pytest.mark.parametrize("rate", [16000, 8000])
def test_cuts(tmp_path: Path, rate: int) -> None:
    path = tone(tmp_path / "long.wav", 2.0, rate=rate, channels=2)
    cuts = [
        Recording("middle", path, {}, 0.5, 0.75),
        Recording("end", path, {}, 1.75),
        Recording("start", path, {}, None, 1.0),
    ]
    # The file is longer than max_seconds; its cuts are not.
    write_shards({"train": cuts}, tmp_path / "out", "toy", max_seconds=1.0)
    held = samples_in(tmp_path / "out" / "train")
    assert {key: described["source"] for key, (_, _, described) in held.items()} == {
        "middle": "long.wav#t=0.5,0.75",
        "end": "long.wav#t=1.75",
        "start": "long.wav#t=0,1.0",
    }
    assert {key: described["seconds"] for key, (_, _, described) in held.items()} == {
        "middle": 0.25,
        "end": 0.25,
        "start": 1.0,
    }
    whole = soundfile.read(path)[0].mean(1)
    part = whole[rate // 2 : 3 * rate // 4]
    expected = soxr.resample(part, rate, 16000) if rate != 16000 else part
    np.testing.assert_allclose(held["middle"][0], expected * 32768, atol=1)


def test_bad_recordings_are_skipped_and_named(
    recordings: list[Recording], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "in"
    (folder / "text.wav").write_text("no audio")
    (folder / "none.wav").write_bytes(b"")
    tone(folder / "short.wav", 0.01)
    tone(folder / "long.wav", 1.1)
    soundfile.write(folder / "nan.wav", np.full(1600, np.nan), 16000, subtype="FLOAT")
    names = ["text", "none", "short", "long", "nan", "missing"]
    bad = [Recording(name, folder / f"{name}.wav") for name in names]
    bad.append(Recording("cut", recordings[0].path, {}, 5.0, 6.0))
    made = write_shards(
        {"train": recordings + bad}, tmp_path / "out", "toy", max_seconds=1.0, max_bad_fraction=0.5, samples_per_shard=5
    )["train"]
    why = {skipped.source: skipped.why for skipped in made.skipped}
    assert why.keys() == {f"{name}.wav" for name in names} | {"bird/0.wav#t=5.0,6.0"}
    assert "cannot be decoded" in why["text.wav"] and "cannot be decoded" in why["none.wav"]
    assert why["short.wav"] == "it has 0.010 s; at least 0.025 s are wanted"
    assert why["long.wav"] == "its header says 1 s; at most 1 s are read"
    assert why["nan.wav"] == "it holds samples that are not finite, the first at 0.000 s"
    assert why["missing.wav"] == "there is no such file"
    assert why["bird/0.wav#t=5.0,6.0"] == "it has 0.100 s; the cut is from 5 to 6 s"
    assert made.samples == 12
    assert sorted(samples_in(tmp_path / "out" / "train")) == sorted(recording.key for recording in recordings)
    assert sum("skipped" in record.message for record in caplog.records) == 7
    assert "short.wav: it has 0.010 s" in caplog.text
    assert ShardIndex.read(tmp_path / "out" / "train").skipped == made.skipped


def test_a_shard_of_bad_recordings_leaves_no_gap(recordings: list[Recording], tmp_path: Path) -> None:
    (tmp_path / "in" / "text.wav").write_text("no audio")
    splits = {"train": [*recordings, Recording("bad", tmp_path / "in" / "text.wav")]}
    made = write_shards(splits, tmp_path / "out", "toy", max_bad_fraction=0.1, samples_per_shard=1)["train"]
    assert [shard.name for shard in made.shards] == [f"{number:06d}.tar" for number in range(12)]
    assert len(samples_in(tmp_path / "out" / "train")) == 12
    assert verify_shards(find_shards(str(tmp_path / "out" / "train")), progress=False) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_too_many_bad_recordings(recordings: list[Recording], tmp_path: Path, workers: int) -> None:
    (tmp_path / "in" / "text.wav").write_text("no audio")
    splits = {"train": [*recordings, Recording("bad", tmp_path / "in" / "text.wav")]}
    message = (
        r"1 of 13 recordings are unusable so far; at most 0 may be .*max-bad-fraction(.|\n)*"
        "/in/text.wav: it cannot be decoded"
    )
    with pytest.raises(UserError, match=message):
        write_shards(splits, tmp_path / "out", "toy", workers=workers, samples_per_shard=2)
    assert not (tmp_path / "out").exists()


def test_a_split_that_is_bad_throughout(recordings: list[Recording], tmp_path: Path) -> None:
    (tmp_path / "in" / "text.wav").write_text("no audio")
    splits = {"train": recordings, "test": [Recording("bad", tmp_path / "in" / "text.wav")]}
    refused(
        tmp_path, splits, "no recording of the split 'test' can be used; text.wav", finished=2, max_bad_fraction=1.0
    )


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "../a", "a b", "a\\b", "a\n"])
def test_keys_that_a_reader_would_cut(recordings: list[Recording], tmp_path: Path, key: str) -> None:
    refused(tmp_path, {"train": [Recording(key, recordings[0].path)]}, "has the key .*expected letters, digits")


@pytest.mark.parametrize(
    ("name", "key"), [("dog/barking 1", "dog-barking-1"), ("a.b", "a-b"), ("grüße_1", "grüße_1"), ("x@2=+,", "x@2=+,")]
)
def test_safe_key(name: str, key: str) -> None:
    assert safe_key(name) == key


def test_recordings_that_cannot_be(recordings: list[Recording], tmp_path: Path) -> None:
    one = recordings[0]
    refused(tmp_path, {"train": recordings, "test": [one]}, "have the same key 'bird-0'; expected each once")
    refused(tmp_path, {"train": recordings, "test": []}, "split 'test' has no recordings")
    refused(tmp_path, {}, "no split is given")
    refused(tmp_path, {"../train": recordings}, r"split '\.\./train'")
    refused(tmp_path, {"train": [Recording("a", one.path, {}, 1.0, 0.5)]}, "is cut from 1.0 to 0.5 s")
    refused(tmp_path, {"train": [Recording("a", one.path, {}, -1.0)]}, "is cut from -1.0 to None s")
    refused(
        tmp_path, {"train": [Recording("a", one.path, {"animal": ""})]}, "'a' has an empty name for the label 'animal'"
    )


def test_all_that_share_a_key_or_are_missing_are_named_at_once(recordings: list[Recording], tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        write_shards({"train": [*recordings, *recordings]}, tmp_path / "out", "toy")
    said = str(raised.value).splitlines()
    assert said[0].startswith("12 recordings have a key that another one has; expected each once")
    assert said[1] == f"  {recordings[0].path} and {recordings[0].path} have the same key 'bird-0'"
    assert len(said) == 12 and said[-1] == "  and 2 more"

    for one in recordings[:11]:
        one.path.unlink()
    with pytest.raises(UserError) as raised:
        check_present({"train": recordings}, 0.5)
    said = str(raised.value).splitlines()
    assert said[0].startswith("11 of 12 listed recordings are missing; at most 6 may be")
    assert said[1:] == [*(f"  {one.path}" for one in recordings[:10]), "  and 1 more"]


def test_labels_that_cannot_be(recordings: list[Recording], tmp_path: Path) -> None:
    splits = {"train": recordings}
    refused(
        tmp_path,
        splits,
        "'dog-0' has the animal 'dog'; expected one of the 2 .* bird, cat",
        labels={"animal": ["bird", "cat"]},
    )
    refused(tmp_path, splits, "has the sounds 'any'", labels={"sounds": ["bird", "cat", "dog"]})
    refused(tmp_path, splits, "has a name twice", labels={"animal": ["bird", "cat", "dog", "cat"]})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling_rate": 0}, "sampling rate: 0 is given; expected 100 to 655350"),
        ({"samples_per_shard": 0}, "samples per shard: 0"),
        ({"workers": 0}, "workers: 0"),
        ({"min_seconds": 2, "max_seconds": 1}, "min seconds 2 and max seconds 1 are given"),
        ({"max_bad_fraction": 1.5}, "max bad fraction: 1.5 is given; expected 0 to 1"),
    ],
)
def test_settings_that_cannot_be(
    recordings: list[Recording], tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    refused(tmp_path, {"train": recordings}, message, **settings)


def test_an_existing_folder_is_replaced_only_when_asked(recordings: list[Recording], tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_shards({"train": recordings[:2], "test": recordings[2:4]}, out, "toy")
    before = digests(out)
    refused(tmp_path, {"train": recordings}, "out exists; expected a new folder")
    assert digests(out) == before
    write_shards({"train": recordings[:3]}, out, "toy", overwrite=True)
    assert ShardIndex.read(out / "train").samples == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert sorted(path.name for path in out.iterdir()) == ["train"]


def test_overwriting_spares_what_is_not_shards(recordings: list[Recording], tmp_path: Path) -> None:
    tone(tmp_path / "out" / "dog" / "1.wav")
    refused(tmp_path, {"train": recordings}, "holds more than folders of shards", overwrite=True)
    assert (tmp_path / "out" / "dog" / "1.wav").exists()


def test_overwriting_keeps_the_old_shards_until_the_new_are_whole(recordings: list[Recording], tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_shards({"train": recordings[:2]}, out, "toy")
    before = digests(out)
    (tmp_path / "in" / "text.wav").write_text("no audio")
    bad = [Recording("bad", tmp_path / "in" / "text.wav")]
    refused(tmp_path, {"train": recordings + bad}, "unusable", finished=1, overwrite=True)
    assert digests(out) == before


def test_a_place_that_cannot_be_written(recordings: list[Recording], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be made or used"):
        write_shards({"train": recordings}, tmp_path / "file" / "out", "toy")


def test_a_disk_that_fills(recordings: list[Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finished = []

    def full(job: Any) -> Finished:
        if len(finished) == 2:
            raise OSError(28, "No space left on device")
        finished.append(finish_shard(job))
        return finished[-1]

    monkeypatch.setattr("ssamba.data.prepare.writer.finish_shard", full)
    refused(
        tmp_path, {"train": recordings}, "cannot be written to .*out: .*No space left", finished=2, samples_per_shard=3
    )


def _die(job: Any) -> Finished:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def test_a_worker_that_is_killed(recordings: list[Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssamba.data.prepare.writer.finish_shard", _die)
    refused(tmp_path, {"train": recordings}, "a worker was killed.*fewer --workers", workers=2, samples_per_shard=3)


def test_a_file_whose_name_is_no_text(recordings: list[Recording], tmp_path: Path) -> None:
    odd = recordings[0].path.rename(tmp_path / "in" / "caf\udce9.wav")
    found = [Recording("odd", odd), *recordings[1:]]
    assert not write_shards({"train": found}, tmp_path / "out", "toy")["train"].skipped
    held = samples_in(tmp_path / "out" / "train")
    assert held["odd"][2]["source"] == "caf\\udce9.wav"
    plain = odd.rename(tmp_path / "in" / "plain.wav")
    np.testing.assert_array_equal(held["odd"][0], soundfile.read(plain, dtype="int16")[0])


def test_what_was_passed_over_is_in_each_index(recordings: list[Recording], tmp_path: Path) -> None:
    splits = {"train": recordings[:6], "test": recordings[6:]}
    write_shards(splits, tmp_path / "out", "toy", passed_over={".txt": 3, "hidden files": 1})
    for split in splits:
        assert ShardIndex.read(tmp_path / "out" / split).passed_over == {".txt": 3, "hidden files": 1}


@pytest.mark.parametrize(
    ("test", "torn", "message"),
    [
        ("bird-0 cat-0 dog-0", "", ""),
        ("bird-0 cat-0", "", "labels without recordings: test has no animal dog"),
        ("bird-0 cat-0 dog-0", "dog-1 dog-2 dog-3", "labels without recordings: train has no animal dog"),
        ("bird-0 cat-0 dog-0", "dog-0 dog-1 dog-2 dog-3", "labels without recordings: no split has the animal dog"),
        (
            "dog-0 dog-1 dog-2 dog-3",
            "",
            "labels without recordings: train has no animal dog; test has no animal bird, cat",
        ),
    ],
)
def test_labels_without_recordings_are_told(
    recordings: list[Recording], tmp_path: Path, caplog: pytest.LogCaptureFixture, test: str, torn: str, message: str
) -> None:
    """Whoever trains on them would learn nothing of that class; the split itself, by take, is no class."""
    labelled = []
    for one in recordings:
        if one.key in torn.split():
            one.path.write_text("no audio")
        fold = "test" if one.key in test.split() else "train"
        animal, fold_of = str(one.labels["animal"]), {} if "dog-3" in test else {"fold": fold}
        labelled.append(Recording(one.key, one.path, {"animal": animal, **fold_of}))
    splits = {
        "train": [one for one in labelled if one.key not in test.split()],
        "test": [one for one in labelled if one.key in test.split()],
    }
    write_shards(splits, tmp_path / "out", "toy", max_bad_fraction=0.5)
    told = [record.message for record in caplog.records if "skipped" not in record.message]
    assert told == ([message] if message else [])


def test_of_many_labels_without_recordings_some_are_named(
    recordings: list[Recording], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["bird", "cat", "dog", *(f"x{number}" for number in range(30))]
    write_shards({"train": recordings}, tmp_path / "out", "toy", {"animal": names})
    assert "no split has the animal x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, and 20 more" in caplog.text


def test_neither_module_imports_torch() -> None:
    code = "import sys, ssamba.data.shards.index, ssamba.data.prepare.writer; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
