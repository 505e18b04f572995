"""Shards with a teacher's features in them, made of shards without: what stays, what is added, and what is refused."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds
from buckets import Bucket

from ssamba.cli import main
from ssamba.data import pipeline
from ssamba.data.prepare import features as module
from ssamba.data.prepare.features import write_features
from ssamba.data.prepare.verification import verify_shards
from ssamba.data.shards.features import MEMBER, FeatureInfo
from ssamba.data.shards.finding import find_shards
from ssamba.data.shards.remote import ShardCache
from ssamba.errors import UserError
from ssamba.recordings import Waveform

INFO = FeatureInfo("ears", "ab" * 32, 3, 2, 0.05, 10.0)


def ears(waveforms: Sequence[Waveform], rate: int) -> list[np.ndarray[Any, Any]]:
    """Of each tenth of a second its loudness, and how long the recording is."""
    found = []
    for one in waveforms:
        parts = np.array_split(one, max(1, one.size * 10 // rate))
        found.append(np.array([[np.abs(part).mean(), one.size / rate] for part in parts], np.float16))
    return found


def write(sources: Sequence[Path | str], out: Path | str, **options: Any) -> Any:
    chosen = {"teach": ears, "info": INFO, "batch_size": 5, "cache": ShardCache(10**9), **options}
    return write_features([str(one) for one in sources], out, **chosen)


def samples_of(folder: Path) -> list[dict[str, Any]]:
    urls = ({"url": str(path)} for path in sorted(folder.glob("*.tar")))
    return [{k: v for k, v in one.items() if k != "__url__"} for one in wds.tarfile_samples(urls)]


def test_every_sample_has_a_further_member_and_all_else_is_as_it_was(corpus: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in corpus.rglob("*") if path.is_file()}
    out = tmp_path / "out"
    indexes = write([corpus / "train", corpus / "validation"], out)
    assert {path: path.read_bytes() for path in corpus.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    for split in ("train", "validation"):
        ours, theirs = samples_of(out / split), samples_of(corpus / split)
        assert [{k: v for k, v in one.items() if k != MEMBER} for one in ours] == theirs
        held, source = find_shards(str(out / split)), find_shards(str(corpus / split))
        assert verify_shards(held, progress=False) == []
        index, earlier = (next(iter(one.indexes.values())) for one in (held, source))
        assert index == indexes[split] and index.features == INFO and earlier.features is None
        assert (index.labels, index.dataset, index.split) == (earlier.labels, "sounds", split)
        assert np.array_equal(held.table["length"], source.table["length"])
        for sample, length in zip(ours, held.table["length"].tolist(), strict=True):
            features = np.load(io.BytesIO(sample[MEMBER]))
            assert features.dtype == np.float16 and features[0, 1] == np.float16(length / 16000)
            assert len(features) == max(1, length * 10 // 16000)


def test_training_hears_the_same_clips_in_the_same_order(corpus: Path, tmp_path: Path) -> None:
    write([corpus / "train"], tmp_path / "out")
    streams = [pipeline(str(folder / "train"), seconds=0.4, batch_size=7) for folder in (corpus, tmp_path / "out")]
    for _, ours, theirs in zip(range(5), *streams, strict=False):
        assert ours["keys"] == theirs["keys"] and bool((ours["waveform"] == theirs["waveform"]).all())


def test_the_same_call_writes_the_same_bytes_whatever_the_batch(corpus: Path, tmp_path: Path) -> None:
    for name, size in (("a", 1), ("b", 64)):
        write([corpus / "train"], tmp_path / name, batch_size=size)
    ours, theirs = ({p.name: p.read_bytes() for p in (tmp_path / name / "train").iterdir()} for name in "ab")
    assert ours == theirs


def test_a_call_that_was_interrupted_goes_on(corpus: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out, heard = tmp_path / "out", []

    def until(most: int) -> Callable[..., Any]:
        def teach(waveforms: Sequence[Waveform], rate: int) -> list[np.ndarray[Any, Any]]:
            heard.append(len(waveforms))
            if sum(heard) > most:
                raise KeyboardInterrupt
            return ears(waveforms, rate)

        return teach

    with pytest.raises(KeyboardInterrupt):
        write([corpus / "train"], out, teach=until(30))
    assert not out.exists() and len(list((tmp_path / "out.partial" / "whole" / "train").iterdir())) == 2
    with pytest.raises(UserError, match="another call has left unfinished.*layer: 3 there, 4 now"):
        write([corpus / "train"], out, info=FeatureInfo("ears", "ab" * 32, 4, 2, 0.05, 10.0))
    heard.clear()
    write([corpus / "train"], out, teach=until(10**9))
    assert sum(heard) == 60 - 2 * 12
    write([corpus / "train"], tmp_path / "undisturbed")
    ours, theirs = (
        {p.name: p.read_bytes() for p in (tmp_path / n / "train").iterdir()} for n in ("out", "undisturbed")
    )
    assert ours == theirs and not (tmp_path / "out.partial").exists()


def test_nothing_is_overwritten_unless_it_is_asked_for(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write([corpus / "train"], out)
    with pytest.raises(UserError, match="exists; expected a new folder"):
        write([corpus / "validation"], out)
    write([corpus / "validation"], out, overwrite=True)
    assert [path.name for path in out.iterdir()] == ["validation"]
    (out / "validation" / "mine").write_text("")
    with pytest.raises(UserError, match="holds more than folders of shards"):
        write([corpus / "train"], out, overwrite=True)


def test_a_recording_that_cannot_be_used_stays_without_features(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(corpus / "train", folder)
    shard = folder / "000001.tar"
    with tarfile.open(shard) as tar:
        members = [one for one in tar if one.name.endswith(".flac")]
    content = bytearray(shard.read_bytes())
    content[members[4].offset_data : members[4].offset_data + 100] = bytes(100)
    shard.write_bytes(content)
    with pytest.raises(UserError, match="1 of 60 recordings cannot be used; at most 0 may.*000001/4: "):
        write([folder], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(module, "MAX_BAD_FRACTION", 0.05)
    write([folder], tmp_path / "out")
    without = [one["__key__"] for one in samples_of(tmp_path / "out" / "train") if MEMBER not in one]
    assert without == [members[4].name.removesuffix(".flac")]
    assert [one.getMessage() for one in caplog.records if "without features: 000001/4" in one.getMessage()]


def test_labels_in_a_file_of_their_own_stay_there(tmp_path: Path, corpus: Path) -> None:
    """Shards of another program, whose labels lie in members; and members and folders of other kinds."""
    folder = tmp_path / "foreign" / "train"
    folder.mkdir(parents=True)
    with tarfile.open(folder / "a.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        above = tarfile.TarInfo("deep")
        above.type = tarfile.DIRTYPE
        tar.addfile(above)
        for number, sample in enumerate(samples_of(corpus / "train")[:20]):
            for ending, content in ((".txt", b"quiet"), (".flac", sample["flac"]), (".cls", str(number % 3).encode())):
                info = tarfile.TarInfo(f"deep/{'n' * 120}{number}{ending}")
                info.size, info.mtime, info.mode = len(content), 1000 + number, 0o600
                tar.addfile(info, io.BytesIO(content))
    assert main(["shards", "index", str(folder), "--label", "kind=cls", "--workers", "1"]) == 0
    write([folder], tmp_path / "out")
    ours, theirs = samples_of(tmp_path / "out" / "train"), samples_of(folder)
    assert [{k: v for k, v in one.items() if k != MEMBER} for one in ours] == theirs
    assert all(len(np.load(io.BytesIO(one[MEMBER]))) for one in ours)
    held = find_shards(str(tmp_path / "out" / "train"))
    assert verify_shards(held, progress=False) == [] and held.labels == {"kind": ("0", "1", "2")}
    batches = [
        next(iter(pipeline(str(one), seconds=1, batch_size=20, training=False, label="kind")))
        for one in (folder, tmp_path / "out" / "train")
    ]
    assert batches[0]["labels"].tolist() == batches[1]["labels"].tolist() == [n % 3 for n in range(20)]
    with tarfile.open(tmp_path / "out" / "train" / "000000.tar") as tar:
        kept = {one.name: (one.mtime, one.mode) for one in tar if not one.name.endswith(MEMBER)}
    assert kept[f"deep/{'n' * 120}7.txt"] == (1007, 0o600) and "deep" in kept
    write([folder], tmp_path / "out", overwrite=True)


def test_a_bucket_has_the_same_as_a_folder(
    bucket: Bucket, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a folder to a url and from there to a folder; labels in a file of their own among it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, there = tmp_path / "foreign" / "train", "s3://shards/foreign/train"
    shutil.copytree(corpus / "train", folder)
    assert main(["shards", "index", str(folder), "--overwrite", "--label", "who=labels.speaker", "--workers=1"]) == 0
    for path in folder.iterdir():
        bucket.client.put_object(Bucket="shards", Key=f"foreign/train/{path.name}", Body=path.read_bytes())
    write([folder], tmp_path / "here")
    write([there], tmp_path / "fetched")
    write([folder], "s3://shards/put")
    here, fetched = (
        {path.name: path.read_bytes() for path in (tmp_path / name / "train").iterdir()} for name in ("here", "fetched")
    )
    assert here == fetched and "labels.jsonl" in here
    assert bucket.content("put/train/") == here and not bucket.objects("put.partial")
    assert find_shards("s3://shards/put/train").labels["who"] == ("ada", "ben", "cyd")


def test_sources_that_cannot_be_are_told(corpus: Path, tmp_path: Path) -> None:
    write([corpus / "train"], tmp_path / "out")
    with pytest.raises(UserError, match="have the features of layer 3 of ears; expected shards without"):
        write([tmp_path / "out" / "train"], tmp_path / "again")
    with pytest.raises(UserError, match="is called 'train'; expected a name that can be a folder's, and each once"):
        write([corpus / "train", corpus / "train" / "000000.tar"], tmp_path / "again")
    index = json.loads((tmp_path / "out" / "train" / "index.json").read_text())
    del index["features"]
    (tmp_path / "out" / "train" / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=f"has .*{MEMBER} already"):
        write([tmp_path / "out" / "train"], tmp_path / "again")
    assert not (tmp_path / "again").exists() and not (tmp_path / "again.partial").exists()


def test_they_are_shown_and_outlast_another_index(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out" / "train"
    write([corpus / "train"], tmp_path / "out")
    capsys.readouterr()
    assert main(["shards", "info", str(folder)]) == 0
    assert f"{folder}: features of layer 3 of ears, 10 x 2 numbers a second\n" in capsys.readouterr().out
    assert main(["shards", "index", str(folder), "--overwrite", "--workers", "1"]) == 0
    assert next(iter(find_shards(str(folder)).indexes.values())).features == INFO


def test_a_part_of_the_shards_can_be_taken(corpus: Path, tmp_path: Path) -> None:
    write([corpus / "train" / "00000{1,3}.tar"], tmp_path / "out")
    ours = samples_of(tmp_path / "out" / "train")
    urls = ({"url": str(corpus / "train" / f"00000{number}.tar")} for number in (1, 3))
    assert [one["__key__"] for one in ours] == [one["__key__"] for one in wds.tarfile_samples(urls)]
    assert verify_shards(find_shards(str(tmp_path / "out" / "train")), progress=False) == []


def test_models_of_transformers_are_for_shards_alone(corpus: Path, tmp_path: Path, refused: Callable[..., str]) -> None:
    said = refused("embed", "hf:some/model", corpus, "--out", tmp_path / "x.npz")
    assert said == "hf:some/model is a teacher's name, and --out takes a model of ours; expected --into-shards\n"


@pytest.mark.parametrize(
    "more", ["--tokens", "--window=1", "--hop=1", "--pooling=mean", "--segments=2", "--out={}/x.npz"]
)
def test_the_command_takes_no_options_of_vectors(
    more: str, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["embed", "model", str(corpus / "train"), "--into-shards", str(tmp_path / "out")]
    try:
        status = main([*words, more.format(tmp_path)])
    except SystemExit as stop:  # argparse's
        status = int(str(stop.code))
    said = capsys.readouterr().err
    assert status == 2 and more.partition("=")[0] in said and not (tmp_path / "out").exists()
