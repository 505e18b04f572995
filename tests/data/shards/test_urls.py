"""Shards at urls that drivers of fsspec know: found, read, indexed and written there, with drivers that fail."""

import hashlib
import io
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fsspec
import layouts
import numpy as np
import pytest
import soundfile
import torch
import yaml
from fsspec.implementations.local import LocalFileSystem
from layouts import SCRIPTS, script
from safetensors.torch import load_file

from ssamba.cli import main
from ssamba.config import load_recipe, save_recipe
from ssamba.data.prepare import elsewhere
from ssamba.data.prepare.indexing import index_folder
from ssamba.data.prepare.recordings import Recording
from ssamba.data.prepare.verification import verify_shards
from ssamba.data.prepare.writer import write_shards
from ssamba.data.shards import stores, transport
from ssamba.data.shards.finding import find_shards
from ssamba.data.shards.index import ShardIndex
from ssamba.data.shards.remote import ShardCache
from ssamba.data.shards.transport import Expected, fetch_file
from ssamba.data.shards.urls import expand_remote
from ssamba.errors import UserError
from ssamba.printable import masked

BIG = 10**9
THAT_MUST_BE = {"iemocap": ["--test-session=5"], "speech_commands": ["--version=v2"]}


class Shelf(LocalFileSystem):
    """A driver of folders, shelf:///tmp/..., that fails as it is told: `faults` befall its next calls, one each."""

    protocol = "shelf"
    root_marker = "/"
    faults: list[Exception | str | None] = []
    calls: list[tuple[str, str]] = []

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return super()._strip_protocol(str(path).replace("shelf://", ""))

    def unstrip_protocol(self, name: str) -> str:
        return f"shelf://{name.removeprefix('shelf://')}"

    def _told(self, call: str, path: Any) -> Any:
        Shelf.calls.append((call, os.path.basename(str(path))))
        fault = Shelf.faults.pop(0) if Shelf.faults else None
        if isinstance(fault, Exception):
            raise fault
        return fault

    def info(self, path: Any, **options: Any) -> Any:
        self._told("info", path)
        return super().info(path, **options)

    def cat_file(self, path: Any, start: Any = None, end: Any = None, **options: Any) -> Any:
        fault = self._told("cat_file", path)
        if fault == "stalls":
            time.sleep(1)
        content = super().cat_file(path, start, end, **options)
        if fault == "changes":
            Path(self._strip_protocol(path)).write_bytes(content[::-1] + b"more")
        return content[:-1] if fault == "short" else content

    def put_file(self, lpath: Any, rpath: Any, **options: Any) -> Any:
        fault = self._told("put_file", rpath)
        if fault == "half":
            Path(rpath).write_bytes(Path(lpath).read_bytes()[:-1])
            return None
        return super().put_file(lpath, rpath, **options)


fsspec.register_implementation("shelf", Shelf)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "FIRST_WAIT_SECONDS", 0.0)
    monkeypatch.setattr(Shelf, "faults", [])
    monkeypatch.setattr(Shelf, "calls", [])


@pytest.fixture(scope="module")
def noises(tmp_path_factory: pytest.TempPathFactory) -> list[Recording]:
    folder = tmp_path_factory.mktemp("noise")
    found = []
    for number in range(8):
        path = folder / ["even", "odd"][number % 2] / f"key{number:02}.wav"
        path.parent.mkdir(exist_ok=True)
        soundfile.write(path, np.random.default_rng(number).uniform(-0.5, 0.5, 4000), 16000)
        found.append(Recording(path.stem, path, {"parity": path.parent.name}))
    return found


@pytest.fixture(scope="module")
def made(noises: list[Recording], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 4 shards in a folder."""
    return write(noises, tmp_path_factory.mktemp("made") / "noise")


def write(noises: list[Recording], out: Any, **settings: Any) -> Any:
    write_shards({"train": noises}, out, "noise", **{"samples_per_shard": 2, **settings})
    return out


def shelf(folder: Path) -> str:
    return f"shelf://{folder}"


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# How they are named


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("s3://b/train", ["s3://b/train/index.json"]),
        ("s3://b/my data/train/", ["s3://b/my data/train/index.json"]),
        ("gs://b/train/index.json", ["gs://b/train/index.json"]),
        ("az://c/{a,b}/train", ["az://c/a/train/index.json", "az://c/b/train/index.json"]),
        ("s3://b/train/{00..01}.tar", ["s3://b/train/00.tar", "s3://b/train/01.tar"]),
        ("hf://datasets/u/n@v1/train", ["hf://datasets/u/n@v1/train/index.json"]),
        ("hf://datasets/u/n/0.tar", ["hf://datasets/u/n/0.tar"]),
    ],
)
def test_sources(source: str, expected: list[str]) -> None:
    assert expand_remote(source) == expected


@pytest.mark.parametrize("url", ["file://{}", "shelf://{}"])
def test_the_same_data_here_and_there(made: Path, tmp_path: Path, url: str) -> None:
    here, folder = find_shards(str(made / "train")), url.format(made / "train")
    for sources in (
        folder,
        f"{folder}/",
        f"{folder}/index.json",
        f"{folder}/*.tar",
        f"{folder}/00000[0-3].tar",
        f"{folder}/{{000000..000003}}.tar",
        url.format(made / "*"),
        [f"{folder}/00000[01].tar", f"{made}/train/000002.tar", f"pipe:cat {made}/train/000003.tar"],
    ):
        found = find_shards(sources, tmp_path / "cache")
        assert (found.fingerprint, found.labels, found.seconds) == (here.fingerprint, here.labels, here.seconds)
        assert np.array_equal(found.table, here.table)
    assert not list(tmp_path.glob("cache/*.tar"))
    assert verify_shards(found, progress=False, local=ShardCache(BIG).local) == []
    fetched = [here.shards[number].info.sha256 for number in (0, 1, 3)]
    assert sorted(path.stem for path in tmp_path.glob("cache/*.tar")) == sorted(fetched)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "shelf://{}/none",
            r"none/index.json could not be fetched in 2 attempts; the last: there is no such file",
        ),
        ("shelf://{}/none/*.tar", "none/.*.tar' matches no .tar and no folder"),
        ("shelf://{}/train/000009.tar", "index.json does not list 000009.tar"),
        ("https://host/*.tar", "should name one file"),
        ("no+such://b/train", "'no.such://b/train' is not read as it is; expected a path, http.*s3://.*or pipe: and a"),
        ("file:///b/train?a=***", "has .*where its secret was.* name it again, such as data.train="),
    ],
)
def test_sources_that_are_none(source: str, message: str, made: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        find_shards(source.replace("{}", str(made)), tmp_path / "cache")


@pytest.mark.parametrize(
    ("scheme", "driver", "extra"),
    [("gs", "gcsfs", "gs"), ("az", "adlfs", "az"), ("abfs", "adlfs", "az"), ("git", "pygit2", None)],
)
def test_a_driver_that_is_not_installed(
    scheme: str,
    driver: str,
    extra: str | None,
    recipes: dict[str, Path],
    tmp_path: Path,
    refused: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, driver, None)
    install = f"pip install 'ssamba[{extra}]'" if extra else f"Install {driver}"
    told = f"'{scheme}://b/f/train' needs a driver for {scheme}://, which is not installed: {install}"
    local = yaml.safe_load(recipes["pretrain"].read_text())["data"]["train"]
    # Before anything is looked for, of all sources.
    words = ["pretrain", recipes["pretrain"], f"run_dir={tmp_path / 'run'}"]
    assert refused(*words, f"data.train=[{local},{scheme}://b/f/train]").startswith(told)
    assert refused("shards", "info", f"{local}/none", f"{scheme}://b/f/train").startswith(told)
    assert refused("shards", "index", f"{scheme}://b/f/train").startswith(told)
    assert script("folder").main([str(tmp_path), f"{scheme}://b/f/train"]) == 2
    assert f"error: {told}" in capsys.readouterr().err


# What a driver does


def one(made: Path, path: Path) -> None:
    whole = made / "train" / "000000.tar"
    expected = Expected(whole.stat().st_size, sha256=hashlib.sha256(whole.read_bytes()).hexdigest())
    assert fetch_file(f"{shelf(made)}/train/000000.tar", path, expected)
    assert path.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    "faults",
    [
        [OSError("reset")],
        [None, OSError("reset"), OSError("reset")],
        [None, TimeoutError()] * 4,
        [None, RuntimeError("of a library's own")],
        [None, "short"],
        [None, None, OSError("reset")],
        [PermissionError("expired")],
    ],
)
def test_what_a_driver_does_and_stops_doing(faults: list[Any], made: Path, tmp_path: Path) -> None:
    Shelf.faults = list(faults)
    one(made, tmp_path / "one.tar")
    assert not Shelf.faults and [path.name for path in tmp_path.iterdir()] == ["one.tar"]


def test_a_driver_goes_on_where_it_ended(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "BLOCK_BYTES", 1000)
    size = (made / "train" / "000000.tar").stat().st_size
    Shelf.faults = [None, None, None, OSError("reset")]
    one(made, tmp_path / "one.tar")
    read = sum(call == "cat_file" for call, _ in Shelf.calls)
    assert read == -(-size // 1000) + 1


@pytest.mark.parametrize(
    ("fault", "attempts", "cause"),
    [
        (OSError("reset"), 5, "reset"),
        (TimeoutError(), 5, "TimeoutError"),
        (
            PermissionError("The provided token has expired."),
            2,
            "The provided token has expired.: expected credentials that are valid, where test_urls looks for them",
        ),
        (type("NoCredentialsError", (Exception,), {})("Unable to locate"), 2, "Unable to locate: expected credentials"),
        (FileNotFoundError("The bucket does not exist"), 2, "there is no such file or folder .The bucket does not"),
        (ValueError("no such region"), 2, "no such region"),
    ],
)
def test_what_a_driver_does_for_good(fault: Exception, attempts: int, cause: str, made: Path, tmp_path: Path) -> None:
    Shelf.faults = [fault] * 20
    with pytest.raises(UserError, match=f"000000.tar could not be fetched in {attempts} attempts; the last: {cause}"):
        one(made, tmp_path / "one.tar")
    assert len(Shelf.calls) == attempts and not list(tmp_path.iterdir())


def test_a_driver_that_stalls(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "STALL_SECONDS", 0.1)
    Shelf.faults = [None, "stalls"] * 5
    with pytest.raises(UserError, match=r"in 5 attempts; the last: nothing came for 0.1 s"):
        one(made, tmp_path / "one.tar")


def test_a_file_that_changes_while_it_is_read(
    made: Path, copy_of: Callable[[Path], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copy_of(made / "train")
    (shard,) = find_shards(f"{shelf(folder)}/000000.tar", tmp_path / "cache").shards
    Shelf.faults = [None, "changes"]
    with pytest.raises(UserError, match=r"000000.tar could not be fetched in 3 attempts; the last: it has \d+ bytes; "):
        ShardCache(BIG).local(shard)
    assert "it changed while it was read" in caplog.text
    assert not list(tmp_path.glob("cache/*.part"))


def test_a_file_that_changes_while_it_is_streamed(
    made: Path, copy_of: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "BLOCK_BYTES", 1000)
    url = f"{shelf(copy_of(made / 'train'))}/000000.tar"
    Shelf.faults = [None, None, OSError("reset"), None, "changes"]
    with transport.opened(url) as file, pytest.raises(UserError, match="000000.tar changed while it was read$"):
        file.read()


def test_a_shard_that_is_another_one_now(made: Path, copy_of: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = copy_of(made / "train")
    found = find_shards(shelf(folder), tmp_path / "cache")
    content = (folder / "000001.tar").read_bytes()
    (folder / "000001.tar").write_bytes(content[:-1] + b"1")
    with pytest.raises(UserError, match=r"000001.tar .* its sha256 is .*; the index expects .* goes on with --resume"):
        ShardCache(BIG).local(found.shards[1])
    assert ShardCache(BIG).local(found.shards[2]).exists()
    assert not list(tmp_path.glob("cache/*.part"))


def test_a_run_trains_from_a_url_and_goes_on(
    recipes: dict[str, Path],
    pretrained: Callable[[str], Path],
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    words = [
        "pretrain",
        str(recipes["pretrain"]),
        f"run_dir={run}",
        f"data.train=file://{corpus}/train",
        f"data.cache={tmp_path / 'cache'}",
        "trainer.checkpoint_every_steps=1",
    ]
    for steps, resume in ((2, []), (4, ["--resume", str(run)])):
        assert main([*words, f"trainer.max_steps={steps}", *resume]) == 0, capsys.readouterr().err
    there, here = (load_file(one / "model" / "model.safetensors") for one in (run, pretrained("ssamba")))
    assert there.keys() == here.keys() and all(torch.equal(there[name], here[name]) for name in here)
    assert len(list(tmp_path.glob("cache/*.tar"))) == 5 and not list(tmp_path.glob("cache/*.part"))


# Secrets


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://host/a/0.tar?sv=1&sig=a%2Fb is gone", "https://host/a/0.tar?sv=***&sig=*** is gone"),
        ("(https://host/a?TOKEN)", "(https://host/a?***"),
        ("s3://key:secret@b/a, https://token@host/b", "s3://key:***@b/a, https://***@host/b"),
        (
            "pipe:curl -H 'Authorization: Bearer abc' https://h/0.tar",
            "pipe:curl -H 'Authorization: ***' https://h/0.tar",
        ),
        ('pipe:curl --header "X: $KEY" https://h/0.tar', 'pipe:curl --header "X: $KEY" https://h/0.tar'),
        ("hf://datasets/u/n@v1/0.tar", "hf://datasets/u/n@v1/0.tar"),
        ("a/b?c=d and what?=", "a/b?c=d and what?="),
    ],
)
def test_what_is_left_out(text: str, shown: str) -> None:
    assert masked(text) == shown == str(UserError(text))
    assert masked(shown) == shown


def test_a_secret_is_written_nowhere(
    recipes: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = "http://user:hidden1@127.0.0.1:9/train/index.json?sig=hidden2"
    with pytest.raises(UserError) as told:
        find_shards(url, tmp_path / "cache")
    assert "hidden" not in f"{told.value} {caplog.text}" and "127.0.0.1:9/train/index.json?sig=***" in str(told.value)
    recipe = load_recipe(recipes["pretrain"], [f"run_dir={tmp_path}", f"data.train={url}"])
    save_recipe(recipe, tmp_path / "recipe.yaml")
    assert "hidden" not in (tmp_path / "recipe.yaml").read_text()
    with pytest.raises(UserError, match="name it again, such as data.train"):
        find_shards(load_recipe(tmp_path).data.train)


# An index that is made there


def test_an_index_that_is_made_there(made: Path, copy_of: Callable[[Path], Path], tmp_path: Path) -> None:
    folder = copy_of(made / "train")
    before = digests(folder)
    (folder / "index.json").unlink()
    (folder / "samples.npy").unlink()
    index = index_folder(shelf(folder)).index
    assert {name: digest for name, digest in digests(folder).items() if name != "index.json"} == {
        name: digest for name, digest in before.items() if name != "index.json"
    }
    expected = ShardIndex.read(made / "train")
    assert (index.shards, index.labels, index.samples_sha256) == (
        expected.shards,
        expected.labels,
        expected.samples_sha256,
    )
    assert (index.dataset, index.split) == (folder.parent.name, "train")
    with pytest.raises(UserError, match=r"train/index.json exists; --overwrite replaces it"):
        index_folder(shelf(folder))
    again = digests(folder)
    index_folder(shelf(folder), overwrite=True)
    assert digests(folder) == again
    last = [name for call, name in Shelf.calls if call == "put_file"]
    assert last[-1] == "index.json.ssamba-tmp"


def test_labels_of_others_are_indexed_there(tmp_path: Path) -> None:
    import webdataset

    wav = io.BytesIO()
    soundfile.write(wav, np.zeros(1600), 16000, format="WAV")
    folder = tmp_path / "set" / "train"
    folder.mkdir(parents=True)
    with webdataset.TarWriter(str(folder / "a.tar")) as writer:
        for number in range(4):
            writer.write({"__key__": f"s{number}", "wav": wav.getvalue(), "cls": number % 2})
    index = index_folder(shelf(folder), fields={"kind": "cls"}).index
    assert index.labels == {"kind": ("0", "1")} and (folder / "labels.jsonl").is_file()
    found = find_shards(shelf(folder), tmp_path / "cache")
    assert verify_shards(found, progress=False, local=ShardCache(BIG).local) == []
    assert [path.suffix for path in tmp_path.glob("cache/*.jsonl")] == [".jsonl"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "has no .tar; expected shards, or a split's folder"),
        (["train/0.tar"], "has no .tar; its folders have: give shelf://.*/train, one after the other"),
        (
            ["0.tar.gz", "1.tar"],
            "1 of the shards are compressed; .* as plain .tar files: unpack them there",
        ),
        (["a b.tar"], "a b.tar should have a name of letters"),
    ],
)
def test_a_folder_there_that_cannot_be_indexed(names: list[str], message: str, tmp_path: Path) -> None:
    for name in ["README", *names]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(10240))
    before = digests(tmp_path)
    with pytest.raises(UserError, match=message):
        index_folder(shelf(tmp_path))
    assert digests(tmp_path) == before


@pytest.mark.parametrize("url", ["https://host/train", "pipe:cat train"])
def test_where_nothing_can_be_written(
    url: str, tmp_path: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is only read; expected a folder, or a url that can be written to" in refused("shards", "index", url)
    assert script("folder").main([str(tmp_path), url]) == 2
    assert "is only read; expected a folder" in capsys.readouterr().err
    with pytest.raises(UserError, match="cannot be listed; expected a folder, or a url whose files have a list"):
        transport.listed_folder(url)


def test_the_hub_is_only_read(
    hub: list[str], tmp_path: Path, refused: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    said = "each file would be one; write to a folder, then: hf upload --repo-type dataset OWNER/NAME FOLDER"
    assert said in refused("shards", "index", "hf://datasets/us/noise@v1/train", "--overwrite")
    assert script("folder").main([str(tmp_path), "hf://datasets/us/noise/train"]) == 2
    assert said in capsys.readouterr().err and not hub


# Shards that are put there


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_put_there_is_what_is_written_here(
    workers: int, made: Path, noises: list[Recording], tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    write(noises, f"file://{tmp_path}/there/noise", workers=workers)  # a driver that the workers know
    assert digests(tmp_path / "there" / "noise") == digests(made)
    assert names(tmp_path) == {f"there/noise/{name}" for name in names(made)}


def test_a_script_writes_there(
    made: Path, noises: list[Recording], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = noises[0].path.parents[1], f"{shelf(tmp_path)}/out"
    words = [str(source), out, "--workers=1", "--samples-per-shard=2", "--label-key=parity"]
    assert script("folder").main(words) == 0
    assert f"{out}/train: " in capsys.readouterr().out
    found = find_shards([f"{out}/train"], tmp_path / "cache")
    assert verify_shards(found, progress=False, local=ShardCache(BIG).local) == []
    assert found.labels == {"parity": ("even", "odd")}
    assert script("folder").main(words) == 2
    assert "out exists; expected a new folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(path.stem for path in SCRIPTS.glob("*.py") if path.stem != "synthesize"))
def test_every_script_takes_a_url(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("")
    words = [str(tmp_path / "in"), f"{shelf(tmp_path)}/out", *THAT_MUST_BE.get(name, [])]
    assert script(name).main(words) == 2
    assert "/out exists; expected a new folder" in capsys.readouterr().err
    assert names(tmp_path) == {"out/mine.txt"}


def test_trials_lie_beside_the_shards_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layouts.voxceleb1(tmp_path / "in")
    first, second = (f"id10001/1zcIwh-deo4/0000{number}.wav" for number in (1, 2))
    (tmp_path / "trials.txt").write_text(f"1 {first} {second}\n")
    out = f"{shelf(tmp_path)}/out"
    words = [str(tmp_path / "in"), out, f"--trials={tmp_path / 'trials.txt'}", "--workers=1"]
    for place in (out, str(tmp_path / "here")):
        assert script("voxceleb1").main([words[0], place, *words[2:]]) == 0, capsys.readouterr().err
    assert digests(tmp_path / "out") == digests(tmp_path / "here")
    assert (tmp_path / "out-trials.txt").read_bytes() == (tmp_path / "here-trials.txt").read_bytes()
    shutil.rmtree(tmp_path / "out")
    assert script("voxceleb1").main(words) == 2
    assert f"{out}-trials.txt exists; --overwrite replaces it" in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyboardInterrupt(), UserError("gone")])
def test_an_interrupted_call_goes_on_there(
    error: BaseException, made: Path, noises: list[Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = f"{shelf(tmp_path)}/noise"
    with monkeypatch.context() as patch, pytest.raises(type(error)) as told:
        put = elsewhere.put
        patch.setattr("ssamba.data.prepare.elsewhere.put", fails_after(2, put, error))
        write(noises, out)
    assert names(tmp_path) == {
        "noise/train/000000.tar",
        "noise/train/000001.tar",
        "noise.partial/plan.json",
        "noise.partial/finished/train/000000.json",
        "noise.partial/finished/train/000001.json",
    }
    if isinstance(error, UserError):
        assert str(told.value) == f"gone. Finished shards (2) stay in {out}: the same call goes on from them"
    with pytest.raises(UserError, match="index.json could not be fetched"):  # nobody takes it for a data set
        find_shards(f"{out}/train", tmp_path / "cache")
    with pytest.raises(UserError, match=r"left unfinished \(.*seed: 0 there, 1 now.*expected the same call again"):
        write(noises, out, seed=1)
    Shelf.calls.clear()
    write(noises, out)
    assert [name for call, name in Shelf.calls if call == "put_file" and ".tar" in name] == [
        "000002.tar.ssamba-tmp",
        "000003.tar.ssamba-tmp",
    ]
    assert digests(tmp_path / "noise") == digests(made)
    assert not names(tmp_path / "noise.partial")


def fails_after(count: int, put: Callable[..., None], error: BaseException) -> Callable[..., None]:
    done: list[int] = []

    def failing(*arguments: Any) -> None:
        if len(done) == count:
            raise error
        put(*arguments)
        done.append(1)

    return failing


@pytest.mark.parametrize("lost", ["shard", "cut", "record", "damaged", "recording"])
def test_what_is_lost_there_meanwhile_is_made_again(
    lost: str, noises: list[Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = f"{shelf(tmp_path)}/noise"
    mine = []
    for one in noises:
        path = tmp_path / "in" / one.path.name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(one.path.read_bytes())
        mine.append(Recording(one.key, path, one.labels))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("ssamba.data.prepare.elsewhere.put", fails_after(3, elsewhere.put, KeyboardInterrupt()))
        write(mine, out)
    shard = tmp_path / "noise" / "train" / "000001.tar"
    record = tmp_path / "noise.partial" / "finished" / "train" / "000001.json"
    if lost == "shard":
        shard.unlink()
    elif lost == "cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif lost == "record":
        record.unlink()
    elif lost == "damaged":
        record.write_text("{")
    else:  # another recording of the same name
        key = json.loads(record.read_text())
        assert key["info"]["samples"] == 2
        for one in mine:
            soundfile.write(one.path, np.random.default_rng(99).uniform(-0.5, 0.5, 3000), 16000)
    Shelf.calls.clear()
    write(mine, out)
    made_again = [name for call, name in Shelf.calls if call == "put_file" and ".tar" in name]
    assert len(made_again) == (4 if lost == "recording" else 2)
    assert digests(tmp_path / "noise") == digests(write(mine, tmp_path / "here"))


def test_what_is_there_is_replaced_only_if_asked_for(noises: list[Recording], tmp_path: Path) -> None:
    out = f"{shelf(tmp_path)}/noise"
    write(noises, out)
    before = digests(tmp_path)
    with pytest.raises(UserError, match="noise exists; expected a new folder: give another, or replace it with --over"):
        write(noises[:6], out)
    assert digests(tmp_path) == before
    write(noises[:6], out, overwrite=True)
    assert digests(tmp_path / "noise") == digests(write(noises[:6], tmp_path / "here"))
    (tmp_path / "noise" / "mine.txt").write_text("precious")
    with pytest.raises(UserError, match="noise holds more than folders of shards, so it is not overwritten"):
        write(noises, out, overwrite=True)
    assert (tmp_path / "noise" / "mine.txt").read_text() == "precious" and len(names(tmp_path / "noise" / "train")) == 5


def test_what_another_call_left_there_is_discarded_only_if_asked_for(
    noises: list[Recording], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = f"{shelf(tmp_path)}/noise"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("ssamba.data.prepare.elsewhere.put", fails_after(2, elsewhere.put, KeyboardInterrupt()))
        write(noises, out)
    write(noises, out, samples_per_shard=8, overwrite=True)
    assert names(tmp_path) == {"noise/train/000000.tar", "noise/train/samples.npy", "noise/train/index.json"}


def test_nothing_half_written_has_a_name_there(
    noises: list[Recording], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a").write_bytes(b"content")
    Shelf.faults = ["half"]
    transport.put(tmp_path / "a", f"{shelf(tmp_path)}/b")
    assert (tmp_path / "b").read_bytes() == b"content" and "6 of 7 bytes arrived" in caplog.text
    Shelf.faults = ["half", None] * 5
    with pytest.raises(UserError, match="c could not be written in 5 attempts; the last: 6 of 7 bytes arrived"):
        transport.put(tmp_path / "a", f"{shelf(tmp_path)}/c")
    assert not (tmp_path / "c").exists()


def test_a_shard_that_nothing_is_in_leaves_no_gap(noises: list[Recording], tmp_path: Path) -> None:
    bad = []
    for one in noises:
        path = tmp_path / "in" / one.path.name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(one.path.read_bytes())
        bad.append(Recording(one.key, path, one.labels))
    (tmp_path / "there").mkdir()
    here = write(bad, tmp_path / "all", samples_per_shard=1)
    order = [json.loads(line) for line in _keys(here)]
    for key in (order[1], order[4]):
        (tmp_path / "in" / f"{key}.wav").write_bytes(b"no audio")
    write(bad, f"{shelf(tmp_path)}/there/noise", samples_per_shard=1, max_bad_fraction=0.5)
    write(bad, tmp_path / "here", samples_per_shard=1, max_bad_fraction=0.5)
    assert digests(tmp_path / "there" / "noise") == digests(tmp_path / "here")


def _keys(folder: Path) -> Iterator[str]:
    """Of each shard's first sample."""
    import tarfile

    for path in sorted(folder.rglob("*.tar")):
        with tarfile.open(path) as archive:
            yield json.dumps(archive.getnames()[0].partition(".")[0])


def test_one_call_in_five_fails(made: Path, noises: list[Recording], tmp_path: Path) -> None:
    """Writing, finding and reading: nothing is lost."""
    Shelf.faults = [None, None, OSError("reset"), None, None] * 200
    write(noises, f"{shelf(tmp_path)}/noise")
    found = find_shards(f"{shelf(tmp_path)}/noise/train", tmp_path / "cache")
    assert verify_shards(found, progress=False, local=ShardCache(BIG).local) == []
    assert 0 < len(Shelf.faults) < 950
    assert digests(tmp_path / "noise") == digests(made)


@pytest.mark.parametrize("out", ["shelf://noise", "shelf:///"])
def test_a_bucket_is_no_folder(out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script("folder").main([str(tmp_path), out]) == 2
    assert "names no folder; expected one in a bucket, such as s3://BUCKET/FOLDER" in capsys.readouterr().err


# A hub


@pytest.fixture
def hub(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A server that answers as the Hugging Face Hub does: its datasets/us/noise has `made` as the revision v1. What it
    was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self, content: Any, status: int = 200, **headers: str) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def entry(self, name: str) -> dict[str, Any]:
            path = made / name
            return {
                "type": "directory" if path.is_dir() else "file",
                "path": name,
                "oid": "0",
                "size": 0 if path.is_dir() else path.stat().st_size,
            }

        def do_GET(self) -> None:
            path, _, _ = self.path.partition("?")
            asked.append(path)
            if self.headers.get("Authorization") != "Bearer hidden":
                self.answer({"error": "Access to dataset us/noise is restricted."}, 403, X_Error_Code="GatedRepo")
            elif path.startswith("/datasets/us/noise/resolve/v1/"):
                content = (made / path.removeprefix("/datasets/us/noise/resolve/v1/")).read_bytes()
                first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
                part = content[int(first) : int(last) + 1]
                self.answer(part, 206, Content_Range=f"bytes {first}-{last}/{len(content)}")
            elif path.startswith("/api/datasets/us/noise/tree/v1"):
                folder = unquote(path.removeprefix("/api/datasets/us/noise/tree/v1").strip("/"))
                self.answer([self.entry(str(one.relative_to(made))) for one in sorted((made / folder).iterdir())])
            elif path == "/api/datasets/us/noise/revision/v1":
                self.answer({"id": "us/noise", "sha": "0" * 40})
            else:
                self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")

        def do_POST(self) -> None:
            asked.append(self.path)
            told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.answer([self.entry(name) for name in told["paths"] if (made / name).exists()])

        def log_message(self, *arguments: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    endpoint = f"http://127.0.0.1:{running.server_port}"
    monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": endpoint, "token": "hidden"})
    yield asked
    running.shutdown()
    thread.join()
    running.server_close()


def test_a_hub(hub: list[str], made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = find_shards(str(made / "train"))
    for source in ("hf://datasets/us/noise@v1/train", "hf://datasets/us/noise@v1/train/*.tar"):
        found = find_shards(source, tmp_path / "cache")
        assert found.fingerprint == here.fingerprint
    assert verify_shards(found, progress=False, local=ShardCache(BIG).local) == []
    assert "/datasets/us/noise/resolve/v1/train/000003.tar" in hub
    monkeypatch.setitem(fsspec.config.conf["hf"], "token", False)
    with pytest.raises(UserError, match="in 2 attempts; the last: .*make sure you are authenticated") as told:
        find_shards("hf://datasets/us/noise@v1/train", tmp_path / "cache")
    assert "hidden" not in str(told.value)
