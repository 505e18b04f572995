"""A server that speaks S3: shards are made into a bucket, indexed there, trained from, and gone on with."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import webdataset as wds
from buckets import BUSY, LOST, Bucket, below, interrupted_after
from layouts import script
from safetensors.torch import load_file

from ssamba.cli import main
from ssamba.data.prepare.recordings import Recording
from ssamba.data.prepare.verification import verify_shards
from ssamba.data.prepare.writer import write_shards
from ssamba.data.shards import stores
from ssamba.data.shards.finding import find_shards
from ssamba.data.shards.remote import ShardCache
from ssamba.errors import UserError

BIG = 10**9


def test_prepare_index_train_resume(
    bucket: Bucket,
    recordings: dict[str, list[Recording]],
    recipes: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The whole way there, with one request in five failing; beside it the same way here."""
    source, cache, runs = recordings["train"][0].path.parent, tmp_path / "cache", {}
    bucket.fails = 5
    options = ["--workers=1", "--samples-per-shard=12", "--unlabelled", "--validation=0.2"]
    for out in (str(tmp_path / "sounds"), "s3://shards/mine/sounds"):
        assert script("folder").main([str(source), out, *options]) == 0, capsys.readouterr().err
    bucket.fails = 0
    assert bucket.content("mine/sounds") == below(tmp_path / "sounds")
    assert set(bucket.objects()) == {f"mine/sounds{name}" for name in below(tmp_path / "sounds")}  # no records are left
    bucket.fails = 5

    url = "s3://shards/mine/sounds/train"
    assert main(["shards", "index", url, "--workers", "1"]) == 2
    assert "index.json exists; --overwrite replaces it" in capsys.readouterr().err
    assert main(["shards", "index", url, "--workers", "1", "--overwrite"]) == 0
    assert main(["shards", "info", url]) == 0
    assert f"fingerprint {find_shards(str(tmp_path / 'sounds' / 'train')).fingerprint}" in capsys.readouterr().out

    for name, train, stops in (("here", str(tmp_path / "sounds" / "train"), (2,)), ("there", url, (1, 2))):
        runs[name] = tmp_path / name
        words = [
            "pretrain",
            str(recipes["pretrain"]),
            f"run_dir={runs[name]}",
            f"data.train={train}",
            "data.validation=null",
            f"data.cache={cache}",
            "optimizer.schedule=constant",
        ]
        for stop in stops:
            resume = ["--resume", "auto", f"trainer.max_steps={stop}"]
            assert main([*words, *resume]) == 0, capsys.readouterr().err
    here, there = (load_file(run / "model" / "model.safetensors") for run in runs.values())
    assert there.keys() == here.keys() and all(torch.equal(there[name], here[name]) for name in here)
    said = (runs["there"] / "recipe.yaml").read_text() + (runs["there"] / "run.json").read_text()
    assert url in said and "hidden" not in said
    assert not list(cache.glob("*.part"))


def test_an_object_that_changed(bucket: Bucket, recordings: dict[str, list[Recording]], tmp_path: Path) -> None:
    write_shards({"train": recordings["train"][:12]}, "s3://shards/set", "sounds", samples_per_shard=4)
    found = find_shards("s3://shards/set/train", tmp_path / "cache")
    was = bucket.client.get_object(Bucket="shards", Key="set/train/000001.tar")["Body"].read()
    bucket.client.put_object(Bucket="shards", Key="set/train/000001.tar", Body=was[:-1] + b"1")
    held = ShardCache(BIG)
    with pytest.raises(
        UserError,
        match=r"000001.tar could not .* in 2 attempts; the last: its sha256 is .*; the index "
        r"expects .*. A run that stopped goes on with --resume",
    ):
        held.local(found.shards[1])
    (problem,) = verify_shards(found, progress=False, local=held.local)
    assert problem.startswith("s3://shards/set/train/000001.tar: it cannot be read: ")
    bucket.client.put_object(Bucket="shards", Key="set/train/000001.tar", Body=was)
    assert verify_shards(found, progress=False, local=held.local) == []


def test_an_interrupted_call_goes_on_in_the_bucket(
    bucket: Bucket, recordings: dict[str, list[Recording]], tmp_path: Path
) -> None:
    mine = {"train": recordings["train"][:12]}
    with interrupted_after(2):
        write_shards(mine, "s3://shards/set", "sounds", samples_per_shard=4)
    assert set(bucket.objects("set/")) == {"set/train/000000.tar", "set/train/000001.tar"}
    record = json.loads(bucket.content("set.partial/finished")["/train/000000.json"])
    assert record["info"]["bytes"] == bucket.objects()["set/train/000000.tar"]
    bucket.asked.clear()
    write_shards(mine, "s3://shards/set", "sounds", samples_per_shard=4)
    assert bucket.asked["PUT set/train/000000.tar"] == 0 and bucket.asked["PUT set/train/000002.tar"] == 1
    write_shards(mine, tmp_path / "set", "sounds", samples_per_shard=4)
    assert bucket.content("set") == below(tmp_path / "set")


def test_a_bucket_that_does_not_exist(
    bucket: Bucket, tmp_path: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    none = "there is no such file or folder (The specified bucket does not exist)"
    assert f"s3://none/train/index.json could not be fetched in 2 attempts; the last: {none}" in refused(
        "shards", "info", "s3://none/train"
    )
    assert none in refused("shards", "index", "s3://none/train")
    assert "'s3://none/*.tar' matches no .tar and no folder" in refused("shards", "info", "s3://none/*.tar")
    assert script("folder").main([str(tmp_path), "s3://none/train", "--workers=1"]) == 2
    assert none in capsys.readouterr().err
    assert [one["Name"] for one in bucket.client.list_buckets()["Buckets"]] == ["shards"]  # and none is made


def test_credentials_that_expired(
    bucket: Bucket, tmp_path: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    bucket.expired = True
    expired = "expected credentials that are valid, where s3fs looks for them"
    for words in (("info", "s3://shards/train"), ("index", "s3://shards/train"), ("info", "s3://shards/*/train")):
        said = refused("shards", *words)
        assert expired in said and "in 2 attempts" in said and "hidden" not in said  # it is asked for once more
    assert script("folder").main([str(tmp_path), "s3://shards/train", "--workers=1"]) == 2
    assert expired in capsys.readouterr().err


def test_a_strangers_shards_are_streamed_and_indexed_there(
    bucket: Bucket,
    recipes: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Shards of another program, in the bucket alone: trained from and gone on with, one request in five failing; then
    given an index, which is checked there."""
    rng = np.random.default_rng(0)
    for shard in range(3):
        with wds.TarWriter(str(tmp_path / f"{shard}.tar")) as writer:
            for number in range(shard, 9, 3):
                wav = io.BytesIO()
                soundfile.write(wav, rng.uniform(-0.5, 0.5, 8000), 16000, format="WAV")
                writer.write({"__key__": f"s{number}", "wav": wav.getvalue(), "cls": number % 2})
        bucket.client.upload_file(str(tmp_path / f"{shard}.tar"), "shards", f"theirs/train/{shard}.tar")
    url, run, mine = "s3://shards/theirs/train", tmp_path / "run", dict(bucket.objects())
    monkeypatch.setattr(stores, "BLOCK_BYTES", 20_000)  # several requests a shard
    rest = "data.order=streaming data.validation=null data.short=pad data.shuffle_buffer=4 data.num_workers=1 "
    rest += "model.encoder=ssast optimizer.schedule=constant audio.mean=-5 audio.std=4 --resume auto"
    words = ["pretrain", str(recipes["pretrain"]), f"run_dir={run}", f"data.train={url}", *rest.split()]
    bucket.fails, bucket.fault = 5, LOST  # which the driver does not try again
    read = []
    for steps in (2, 3):
        bucket.asked.clear()
        assert main([*words, f"trainer.max_steps={steps}"]) == 0, capsys.readouterr().err
        read.append({name for name in bucket.asked if name.startswith("GET theirs")})
    assert read[0] | read[1] == {f"GET theirs/train/{shard}.tar" for shard in range(3)}
    saved = torch.load(run / "checkpoints" / "step-0000003.ckpt", weights_only=True)["ClipDataModule"]
    assert saved["clips"] == 12 and len(json.loads((run / "run.json").read_text())["resumed"]) == 1
    bucket.fails = 0
    assert bucket.objects() == mine

    bucket.fails, bucket.fault = 5, BUSY
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["shards", "index", url, "--workers=1", "--label", "kind=cls"]) == 0
    assert "kind: 2 labels" in capsys.readouterr().out
    bucket.fails = 0
    assert set(bucket.objects()) - set(mine) == {
        f"theirs/train/{name}" for name in ("index.json", "samples.npy", "labels.jsonl")
    }
    assert main(["shards", "verify", url, "--workers=1"]) == 0
    assert main(["shards", "info", f"{url}/[12].tar"]) == 0
    said = capsys.readouterr().out
    assert "3 shards, 9 samples: all as their index says" in said and "2 shards, 6 samples" in said
    broken = bytearray((tmp_path / "1.tar").read_bytes())
    broken[-20_000] ^= 1
    bucket.client.put_object(Bucket="shards", Key="theirs/train/1.tar", Body=bytes(broken))
    shutil.rmtree(tmp_path / "cache")
    assert main(["shards", "verify", url, "--workers=1"]) == 2
    assert f"{url}/1.tar: it cannot be read: {url}/1.tar could not be fetched" in capsys.readouterr().err
