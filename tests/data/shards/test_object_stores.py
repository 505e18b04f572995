"""Stores of other clouds, whose drivers are not installed here: what is called of fsspec does all of the way with the
least that a driver is, and with fsspec's own in memory."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from buckets import below, interrupted_after
from fsspec import AbstractFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import _registry
from layouts import script

from ssamba.cli import main
from ssamba.data import pipeline
from ssamba.data.prepare.indexing import index_folder
from ssamba.data.prepare.recordings import Recording
from ssamba.data.prepare.verification import verify_shards
from ssamba.data.prepare.writer import write_shards
from ssamba.data.shards import transport
from ssamba.data.shards.finding import find_shards
from ssamba.data.shards.remote import ShardCache
from ssamba.errors import UserError

BIG = 10**9


class Google(AbstractFileSystem):
    """Objects in memory under names without folders, with what of the driver gcsfs is called: no time, no etag."""

    protocol: Any = ("gs", "gcs")
    cachable = False
    objects: dict[str, bytes] = {}

    def _entry(self, name: str) -> dict[str, Any]:
        return {"name": name, "size": len(self.objects[name]), "type": "file"}

    def info(self, path: str, generation: Any = None, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path)
        if path in self.objects:
            return self._entry(path)
        if any(name.startswith(f"{path}/") for name in self.objects):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    def ls(self, path: str, detail: bool = False, **_: Any) -> Any:
        path = self._strip_protocol(path)
        inside = {
            name.removeprefix(f"{path}/").partition("/")[0] for name in self.objects if name.startswith(f"{path}/")
        }
        found = [self.info(f"{path}/{name}") for name in sorted(inside)] or [self.info(path)]
        return found if detail else [one["name"] for one in found]

    def cat_file(self, path: str, start: Any = None, end: Any = None, concurrency: int = 1, **_: Any) -> bytes:
        return self.objects[self._strip_protocol(path)][start:end]

    def put_file(self, lpath: str, rpath: str, metadata: Any = None, mode: str = "overwrite", **_: Any) -> None:
        self.objects[self._strip_protocol(rpath)] = Path(lpath).read_bytes()

    def cp_file(self, path1: str, path2: str, acl: Any = None, **_: Any) -> None:
        self.objects[path2] = self.objects[path1]

    def rm_file(self, path: str) -> None:
        self.objects.pop(path, None)


class Azure(Google):
    """As adlfs: what is told of an object includes when it was read last."""

    protocol = ("az", "abfs", "abfss")
    objects: dict[str, bytes] = {}
    reads = itertools.count()

    def _entry(self, name: str) -> dict[str, Any]:
        return {**super()._entry(name), "last_accessed_on": next(self.reads), "etag": hash(self.objects[name])}


def objects(url: str) -> dict[str, bytes]:
    """Below a folder, as `below`."""
    found = (
        MemoryFileSystem.store if url.startswith("memory:") else (Azure if url.startswith("az:") else Google).objects
    )
    folder = ("/" if url.startswith("memory:") else "") + url.partition("://")[2]
    return {
        name.removeprefix(folder): content if isinstance(content, bytes) else content.getvalue()
        for name, content in found.items()
        if name.startswith(f"{folder}/")
    }


@pytest.fixture(params=["gs", "az", "memory"])
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The url of an empty folder."""
    for kind in (Google, Azure):
        monkeypatch.setattr(kind, "objects", {})
        for scheme in kind.protocol:
            monkeypatch.setitem(_registry, scheme, kind)
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    monkeypatch.setattr(MemoryFileSystem, "pseudo_dirs", [""])
    monkeypatch.setattr(transport, "FIRST_WAIT_SECONDS", 0.0)
    return f"{request.param}://bucket/some"


def test_shards_are_made_read_and_indexed(
    store: str, recordings: dict[str, list[Recording]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, url, here = recordings["train"][0].path.parent, f"{store}/sounds", tmp_path / "sounds"
    for out in (str(here), url):
        words = [str(source), out, "--workers=1", "--samples-per-shard=40", "--unlabelled"]
        assert script("folder").main(words) == 0, capsys.readouterr().err
    made = below(here)
    assert objects(url) == made and not objects(f"{url}.partial")
    assert script("folder").main(words) == 2
    assert f"{url} exists; expected a new folder" in capsys.readouterr().err
    assert script("folder").main([*words, "--overwrite"]) == 0
    assert objects(url) == made
    for place in (f"{url}/train", f"{store}/*/train", f"{url}/train/00000[0-2].tar"):
        found = find_shards(place, tmp_path / "cache")
        assert found.fingerprint == find_shards(str(here / "train")).fingerprint
    assert verify_shards(found, progress=False, local=ShardCache(BIG).local) == []
    index = index_folder(f"{url}/train", overwrite=True).index
    assert (index.dataset, index.split, index.samples) == ("recordings0", "train", 96)
    assert main(["shards", "info", f"{url}/train"]) == 0
    assert f"fingerprint {found.fingerprint}" in capsys.readouterr().out


def test_an_interrupted_call_goes_on(store: str, recordings: dict[str, list[Recording]], tmp_path: Path) -> None:
    mine, url = {"train": recordings["train"][:12]}, f"{store}/sounds"
    with interrupted_after(2):
        write_shards(mine, url, "sounds", samples_per_shard=4)
    assert set(objects(url)) == {"/train/000000.tar", "/train/000001.tar"}
    with pytest.raises(UserError, match=r"is what another call has left unfinished"):
        write_shards(mine, url, "sounds", samples_per_shard=4, seed=1)
    write_shards(mine, url, "sounds", samples_per_shard=4)
    write_shards(mine, tmp_path / "sounds", "sounds", samples_per_shard=4)
    assert objects(url) == below(tmp_path / "sounds") and not objects(f"{url}.partial")


def test_shards_are_streamed(store: str, corpus: Path) -> None:
    for path in (corpus / "train").glob("*.tar"):
        transport.put(path, f"{store}/train/{path.name}")
    settings: dict[str, Any] = {"seconds": 0.2, "batch_size": 20, "sampling_rate": 16000, "order": "streaming"}
    read, here = (
        [key for batch in itertools.islice(pipeline(source, **settings), 3) for key in batch["keys"]]
        for source in (f"{store}/train", str(corpus / "train"))
    )
    assert read == here and len(set(read)) > 40


@pytest.mark.parametrize("name", ["s[1]", "s*", "s?"])
def test_a_name_that_drivers_take_for_a_pattern_is_refused(
    name: str, store: str, recordings: dict[str, list[Recording]], tmp_path: Path, refused: Callable[..., str]
) -> None:
    """Else what it matches would be overwritten, and not what it names."""
    mine = {"train": recordings["train"][:2]}
    write_shards(mine, f"{store}/s1", "sounds")
    before = objects(store)
    with pytest.raises(UserError, match="has a wildcard; expected a name without"):
        write_shards(mine, f"{store}/{name}", "sounds", overwrite=True)
    assert "has a wildcard" in refused("shards", "index", f"{store}/{name}/train", "--overwrite")
    assert objects(store) == before
