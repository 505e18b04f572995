"""Every script of data_prep writes to a url what it writes to a folder."""

import hashlib
import importlib
import shutil
from dataclasses import replace
from pathlib import Path

import layouts
import pytest
from buckets import Bucket, below
from layouts import SCRIPTS, script
from test_layouts import SETS, Nearly

from ssamba.data.prepare.verification import verify_shards
from ssamba.data.shards.finding import find_shards
from ssamba.data.shards.remote import ShardCache

BIG = 10**9


def labelled(root: Path) -> None:
    """Folders of labels within those of splits."""
    for name in ("train/cat/1.wav", "train/dog/2.wav", "test/cat/3.wav"):
        layouts.write_wav(root / name)


def cuts(root: Path) -> None:
    """A manifest of lhotse's."""
    lhotse = importlib.import_module("lhotse")
    labelled(root / "sounds")
    recordings = [lhotse.Recording.from_file(path) for path in sorted((root / "sounds").rglob("*.wav"))]
    lhotse.CutSet.from_cuts(one.to_cut() for one in recordings).to_file(root / "cuts_train.jsonl")


TREES = {
    **SETS,
    "audioset": Nearly(layouts.audioset, ("--validation=0.2",)),
    "soundscapes": Nearly(layouts.urbansound8k, ("--seconds=3",)),
    "folder": Nearly(layouts.folder),
    "huggingface": Nearly(labelled),
    "lhotse": Nearly(cuts),
    "listed": Nearly(layouts.sentences, ("--train=sentences.csv",)),
}
EXTRAS = {"huggingface": "datasets", "lhotse": "lhotse"}


def test_every_script_is_here() -> None:
    assert set(TREES) | {"synthesize"} == {path.stem for path in SCRIPTS.glob("*.py")}  # which makes recordings


@pytest.mark.parametrize("name", TREES)
def test_the_same_in_a_bucket_as_in_a_folder(
    name: str, bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if name in EXTRAS:
        pytest.importorskip(EXTRAS[name], reason=f"the extra {EXTRAS[name]} is not installed")
    tree = TREES[name]
    tree.make(tmp_path / "in")
    here, there = tmp_path / "sounds", "s3://shards/mine/sounds"
    for out in (str(here), there):
        options = ["--workers=1", "--samples-per-shard=100", *tree.options]
        assert script(name).main([str(tmp_path / "in"), out, *options]) == 0, capsys.readouterr().err
    assert bucket.content("mine/sounds") == below(here)
    assert set(bucket.objects()) == {f"mine/sounds{file}" for file in below(here)}  # no record is left
    # And it is read there: each split as what it is here.
    for split in here.iterdir():
        found = find_shards(f"{there}/{split.name}", tmp_path / "cache")
        assert found.fingerprint == find_shards(str(split)).fingerprint
    assert verify_shards(found, progress=False, local=ShardCache(BIG).local) == []


def test_an_archive_is_fetched_from_a_bucket(
    bucket: Bucket, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And checked as any other; what it becomes goes back there."""
    fsdd = script("fsdd")
    layouts.fsdd(tmp_path / "packed" / fsdd.ARCHIVE.folder)
    packed = Path(shutil.make_archive(str(tmp_path / "v1"), "zip", tmp_path / "packed"))
    bucket.client.upload_file(str(packed), "shards", "archives/v1.zip")
    digest = hashlib.md5(packed.read_bytes()).hexdigest()
    words = [str(tmp_path / "in"), "s3://shards/fsdd", "--workers=1", "--fetch"]
    fsdd.ARCHIVE = replace(fsdd.ARCHIVE, url="s3://shards/archives/v1.zip", checksum=f"md5:{'0' * 32}")
    assert fsdd.main(words) == 2
    assert f"has the md5 {digest}; expected 000" in capsys.readouterr().err
    fsdd.ARCHIVE = replace(fsdd.ARCHIVE, checksum=f"md5:{digest}", bytes=packed.stat().st_size)
    bucket.fails = 5
    assert fsdd.main(words) == 0, capsys.readouterr().err
    assert find_shards("s3://shards/fsdd/*", tmp_path / "cache").samples == 80
